//! A cluster: resolution, endpoints, balancing, TLS.

use super::limits::{health, limits};
use super::report::{self, Setting};
use super::words::{self, setting};
use super::{LiveEndpoint, LiveView, Query};
use crate::policy::model::{
    Algorithm, ClientTls, EndpointAddress, EndpointSpec, HashKey, HashTable, Identity,
    LoadBalancer, Resolution, Trust,
};
use crate::policy::snapshot::{Cluster, Snapshot};

pub(super) fn describe(
    snapshot: &Snapshot,
    cluster: &Cluster,
    query: &Query,
    live: &dyn LiveView,
) -> report::Cluster {
    let policy = &*cluster.policy;
    let known = live.endpoints(cluster);
    let target = &cluster.target;
    report::Cluster {
        name: words::cluster(cluster),
        destination_rule: rule(snapshot, cluster),
        resolution: words::resolution(target.resolution).to_owned(),
        resolved: resolved(cluster),
        live: known.is_some(),
        endpoints: match known {
            Some(list) => list.into_iter().map(live_endpoint).collect(),
            None => cluster.endpoints.iter().map(written_endpoint).collect(),
        },
        load_balancer: load_balancer(&policy.load_balancer, target.resolution),
        limits: limits(policy),
        health: health(policy),
        tls: cluster
            .tls_for_cleartext_http()
            .map(|tls| self::tls(cluster, &tls, query)),
    }
}

/// The DestinationRule of a cluster, found among the views that have it.
fn rule(snapshot: &Snapshot, cluster: &Cluster) -> Option<report::Document> {
    if cluster.key.rule.is_empty() {
        return None;
    }
    let service = snapshot.service(cluster.target.service)?;
    let rules = service
        .views
        .iter()
        .filter_map(|view| view.destination_rule.as_deref());
    let mut same = rules
        .filter(|rule| cluster.key.rule.split_once('/') == Some((&*rule.namespace, &*rule.name)));
    same.next().map(words::document)
}

fn live_endpoint(endpoint: LiveEndpoint) -> report::Endpoint {
    report::Endpoint {
        address: endpoint.address,
        resolved_from: endpoint.resolved_from,
        weight: endpoint.weight,
        locality: endpoint.locality,
        health: Some(endpoint.health),
        detail: endpoint.detail,
        connections: Some(endpoint.connections),
        ..report::Endpoint::default()
    }
}

fn written_endpoint(endpoint: &EndpointSpec) -> report::Endpoint {
    report::Endpoint {
        address: words::address(endpoint),
        weight: endpoint.weight,
        locality: endpoint.locality.to_string(),
        labels: words::labels(&endpoint.labels),
        ..report::Endpoint::default()
    }
}

fn resolved(cluster: &Cluster) -> String {
    let target = &cluster.target;
    let names = cluster
        .endpoints
        .iter()
        .any(|endpoint| matches!(endpoint.address, EndpointAddress::Name(_)));
    match target.resolution {
        Resolution::None if target.target_port == target.port => {
            "to the address that the application dialled".to_owned()
        }
        Resolution::None => format!(
            "to the address that the application dialled, on port {}",
            target.target_port
        ),
        Resolution::Dns if names => {
            "every address of the newest DNS answer is an endpoint; connections to one that vanishes drain".to_owned()
        }
        Resolution::DnsRoundRobin if names => {
            "new connections go to all addresses of the newest DNS answer; open ones stay".to_owned()
        }
        Resolution::Static | Resolution::Dns | Resolution::DnsRoundRobin => {
            "the endpoints that are listed".to_owned()
        }
        Resolution::DynamicDns => format!(
            "the name that the application asks for is looked up for each connection, port {}",
            target.target_port
        ),
    }
}

fn load_balancer(balancer: &LoadBalancer, resolution: Resolution) -> Vec<Setting> {
    if resolution == Resolution::None {
        return Vec::new();
    }
    let mut out = Vec::new();
    match &balancer.algorithm {
        Algorithm::Hash { key, table } => {
            out.push(setting("consistentHash", hash_key(key), false));
            out.push(match table {
                HashTable::Ring(size) => {
                    setting("ringHash.minimumRingSize", size.to_string(), *size == 1024)
                }
                HashTable::Maglev(size) => setting("maglev.tableSize", size.to_string(), false),
            });
        }
        simple => out.push(setting(
            "simple",
            algorithm(simple),
            *simple == Algorithm::LeastRequest,
        )),
    }
    let locality = &balancer.locality;
    if !locality.enabled {
        out.push(setting("localityLbSetting.enabled", "false", false));
    }
    for (from, to) in &locality.distribute {
        let shares: Vec<String> = to
            .iter()
            .map(|(place, weight)| format!("{} {weight}%", words::locality(place)))
            .collect();
        let text = format!("from {} to {}", words::locality(from), shares.join(", "));
        out.push(setting("localityLbSetting.distribute", text, false));
    }
    for (from, to) in &locality.failover {
        let text = format!("from {from} to {to}");
        out.push(setting("localityLbSetting.failover", text, false));
    }
    if !locality.failover_priority.is_empty() {
        let keys = locality
            .failover_priority
            .iter()
            .map(|(key, value)| match value {
                Some(value) => format!("{key}={value}"),
                None => key.to_string(),
            });
        let text = keys.collect::<Vec<_>>().join(", ");
        out.push(setting("localityLbSetting.failoverPriority", text, false));
    }
    if let Some(warmup) = &balancer.warmup {
        let text = format!(
            "{}, from {}%, aggression {}",
            words::duration(warmup.duration),
            warmup.minimum_percent,
            warmup.aggression
        );
        out.push(setting("warmup", text, false));
    }
    out
}

const fn algorithm(algorithm: &Algorithm) -> &'static str {
    match algorithm {
        Algorithm::LeastRequest => "LEAST_REQUEST",
        Algorithm::RoundRobin => "ROUND_ROBIN",
        Algorithm::Random => "RANDOM",
        Algorithm::Passthrough => "PASSTHROUGH",
        Algorithm::Hash { .. } => "consistentHash",
    }
}

fn hash_key(key: &HashKey) -> String {
    match key {
        HashKey::Header(name) => format!("header {name}"),
        HashKey::Cookie { name, ttl, .. } => match ttl {
            None => format!("cookie {name}, which is read and never set"),
            Some(ttl) if ttl.is_zero() => format!("cookie {name}, set for the session"),
            Some(ttl) => format!("cookie {name}, set for {}", words::duration(*ttl)),
        },
        HashKey::SourceIp => "source address".to_owned(),
        HashKey::QueryParameter(name) => format!("query parameter {name}"),
    }
}

fn tls(cluster: &Cluster, tls: &ClientTls, query: &Query) -> report::Tls {
    let host = cluster.target.host.exact();
    let requested = "the host requested";
    let sni = match (&tls.sni, host) {
        (Some(sni), _) => sni.to_string(),
        (None, Some(host)) => host.to_string(),
        (None, None) => requested.to_owned(),
    };
    let accepted: Vec<String> = if tls.insecure_skip_verify {
        Vec::new()
    } else if tls.subject_alt_names.is_empty() {
        vec![sni.clone()]
    } else {
        tls.subject_alt_names
            .iter()
            .map(ToString::to_string)
            .collect()
    };
    let crl = |crl: &Option<std::path::PathBuf>| {
        crl.as_ref().map_or_else(String::new, |path| {
            format!(", revocations from {}", path.display())
        })
    };
    let mode = match tls.identity {
        Identity::None => "SIMPLE",
        Identity::Files { .. } | Identity::Secret(_) => "MUTUAL",
        Identity::Mesh => "ISTIO_MUTUAL",
    };
    let secret =
        matches!(tls.identity, Identity::Secret(_)) || matches!(tls.trust, Trust::Secret(_));
    let mut namespaces = Vec::new();
    if secret {
        let own = std::iter::once(&query.client.namespace);
        for namespace in own.chain(&tls.secret_namespaces) {
            let namespace = namespace.to_string();
            if !namespaces.contains(&namespace) {
                namespaces.push(namespace);
            }
        }
    }
    report::Tls {
        mode: mode.to_owned(),
        implied: cluster.key.rule.is_empty() || cluster.policy.tls.is_none(),
        sni,
        accepted_names: accepted,
        trust: if tls.insecure_skip_verify {
            "not checked".to_owned()
        } else {
            match &tls.trust {
                Trust::System { crl: path } => format!("the system's roots{}", crl(path)),
                Trust::File { ca, crl: path } => format!("{}{}", ca.display(), crl(path)),
                Trust::Secret(name) => format!("the CA of credential {name}"),
                Trust::Mesh => "the mesh's roots".to_owned(),
            }
        },
        client_certificate: match &tls.identity {
            Identity::None => None,
            Identity::Files { certificate, key } => {
                Some(format!("{}, key {}", certificate.display(), key.display()))
            }
            Identity::Secret(name) => Some(format!("of credential {name}")),
            Identity::Mesh => Some("the mesh identity of the agent's settings".to_owned()),
        },
        credential_namespaces: namespaces,
        versions: if tls.extra.only_tls13 {
            "TLS 1.3"
        } else {
            "TLS 1.2 and 1.3"
        }
        .to_owned(),
        cipher_suites: tls
            .extra
            .cipher_suites
            .iter()
            .map(ToString::to_string)
            .collect(),
        starttls: tls
            .extra
            .starttls
            .map(|protocol| protocol.name().to_owned()),
        insecure_skip_verify: tls.insecure_skip_verify,
    }
}

/// What an operator should look at in a cluster.
pub(super) fn warnings(cluster: &report::Cluster, out: &mut Vec<String>) {
    let name = &cluster.name;
    if cluster
        .tls
        .as_ref()
        .is_some_and(|tls| tls.insecure_skip_verify)
    {
        out.push(format!(
            "insecureSkipVerify: whoever answers for {name} is taken for the service; neither chain nor name is checked"
        ));
    }
    let listed = !matches!(cluster.resolution.as_str(), "NONE" | "DYNAMIC_DNS");
    if listed && cluster.endpoints.is_empty() {
        out.push(format!("{name} has no endpoints: connections fail with UH"));
    }
    let usable = |endpoint: &report::Endpoint| endpoint.health.as_deref() == Some("healthy");
    if cluster.live && !cluster.endpoints.is_empty() && !cluster.endpoints.iter().any(usable) {
        out.push(format!("no endpoint of {name} is healthy now"));
    }
}
