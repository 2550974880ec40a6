//! `egressctl explain --connect`: real connections to the endpoints of a
//! destination.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use crate::admin::ApiError;
use crate::capture::sockets::{NetNs, Sockets};
use crate::connect::{self, Alpn, DialContext};
use crate::endpoint::{Live, PickContext, PickError};
use crate::identify::Spoken;
use crate::policy::explain::report::Connection;
use crate::policy::model::{Protocol, UpstreamHttp};
use crate::policy::snapshot::{Client, Cluster};
use crate::secret::Secrets;

/// Endpoints of one cluster that are tried, and clusters.
const ENDPOINTS: usize = 4;
const CLUSTERS: usize = 4;
/// For all of them; the admin API answers within ten seconds.
const LIMIT: Duration = Duration::from_secs(8);

/// For a name that is resolved for the first time.
const RESOLVE: Duration = Duration::from_secs(3);

/// What connections need.
#[derive(Clone)]
pub(super) struct Connector {
    pub(super) sockets: Sockets,
    /// The agent's own: the endpoints may look different from a container.
    pub(super) netns: NetNs,
    pub(super) secrets: Arc<Secrets>,
}

/// What is to be tried.
pub(super) struct Attempt {
    pub(super) live: Arc<Live>,
    pub(super) host: Arc<str>,
    pub(super) client: Client,
    pub(super) clusters: Vec<Arc<Cluster>>,
}

impl Connector {
    /// Tries the endpoints, one after the other.
    pub(super) async fn connect(&self, attempt: Attempt) -> Result<Vec<Connection>, ApiError> {
        let mut seen = Vec::new();
        let all = async {
            for cluster in attempt.clusters.iter().take(CLUSTERS) {
                self.try_cluster(&attempt, cluster, &mut seen).await;
            }
        };
        if timeout(LIMIT, all).await.is_err() {
            seen.push(Connection {
                endpoint: "(the rest)".to_owned(),
                error: Some(format!("not tried to its end within {LIMIT:?}")),
                ..Connection::default()
            });
        }
        Ok(seen)
    }

    async fn try_cluster(
        &self,
        attempt: &Attempt,
        cluster: &Arc<Cluster>,
        seen: &mut Vec<Connection>,
    ) {
        let Some(set) = attempt.live.sets.get(cluster.index) else {
            return;
        };
        let mut tried = Vec::new();
        while tried.len() < ENDPOINTS {
            let context = PickContext {
                client: &attempt.client,
                original: ([0, 0, 0, 0], cluster.target.port).into(),
                host: &attempt.host,
                hash: None,
                tried: &tried,
                remote_localities: false,
            };
            let picked = match set.pick(&context) {
                // A name that nobody has asked for yet.
                Err(PickError::Unresolved) => {
                    let _ = timeout(RESOLVE, set.resolved(&attempt.host)).await;
                    set.pick(&context)
                }
                picked => picked,
            };
            let picked = match picked {
                Ok(picked) => picked,
                Err(error) => {
                    seen.push(Connection {
                        cluster: cluster.target.host.to_string(),
                        endpoint: cluster.target.host.to_string(),
                        error: Some(set.explain(error, &attempt.host)),
                        ..Connection::default()
                    });
                    return;
                }
            };
            if tried.contains(&picked.endpoint.id) {
                return;
            }
            tried.push(picked.endpoint.id);
            let context = DialContext {
                sockets: &self.sockets,
                netns: &self.netns,
                secrets: &self.secrets,
                policy: &cluster.policy,
                tls: connect::origination(cluster, &Spoken::Http),
                host: &attempt.host,
                namespace: &attempt.client.namespace,
                alpn: if speaks_http2(cluster) {
                    Alpn::Http2OrHttp1
                } else {
                    Alpn::None
                },
                source: ([127, 0, 0, 1], 0).into(),
            };
            let mut connection = connect::inspect(&context, &picked.destination).await;
            connection.cluster = cluster.target.host.to_string();
            seen.push(connection);
        }
    }
}

/// Whether requests to a cluster go by HTTP/2, as far as the policy decides it.
fn speaks_http2(cluster: &Cluster) -> bool {
    match cluster.policy.connection_pool.http_version {
        UpstreamHttp::Upgrade => true,
        UpstreamHttp::SameAsClient => false,
        UpstreamHttp::ByPort => {
            matches!(cluster.target.protocol, Protocol::Http2 | Protocol::Grpc)
        }
    }
}
