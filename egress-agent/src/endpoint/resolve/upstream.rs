//! One lookup of a name: who is asked, and what came back.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use hickory_net::{DnsError, NetError};
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, RecordType};
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ProtocolConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::system_conf::parse_resolv_conf;
use tokio::time::Instant;

use super::error::ResolveError;
use super::sockets::{Provider, ServerNetns};
use crate::capture::sockets::{NetNs, Sockets};

/// Time for one try of one server.
const TRY_LIMIT: Duration = Duration::from_secs(3);

/// Further tries after the first.
const RETRIES: usize = 1;

/// How often the system's files are looked at for a change.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// Addresses of one family, and how long they hold.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Records {
    /// At least one.
    pub addresses: Vec<IpAddr>,
    /// The shortest TTL on the way to them, CNAMEs included.
    pub ttl: Duration,
}

/// What a lookup of one family found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Found {
    /// Addresses.
    Records(Records),
    /// The name has none of this family.
    NoRecords,
    /// The name does not exist.
    NoSuchName,
    /// No answer.
    Failed(ResolveError),
}

impl Found {
    pub(super) fn ttl(&self) -> Option<Duration> {
        match self {
            Self::Records(records) => Some(records.ttl),
            _ => None,
        }
    }

    pub(super) fn failure(&self) -> Option<ResolveError> {
        match self {
            Self::Failed(error) => Some(error.clone()),
            _ => None,
        }
    }
}

/// What a lookup found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Families {
    /// A records.
    pub v4: Found,
    /// AAAA records.
    pub v6: Found,
}

impl Families {
    /// Both families failed for one reason.
    pub fn failed(error: ResolveError) -> Self {
        Self {
            v4: Found::Failed(error.clone()),
            v6: Found::Failed(error),
        }
    }
}

/// Looks names up.
pub trait Query: Send + Sync + 'static {
    /// Asks for both families. The caller sets the deadline.
    fn query(&self, name: Arc<str>) -> Pin<Box<dyn Future<Output = Families> + Send + '_>>;
}

/// Whom the agent asks.
#[derive(Clone, Debug)]
pub struct UpstreamOptions {
    /// `--dns-upstream`; empty: what the system's files say.
    pub servers: Vec<SocketAddr>,
    /// `--dns-search`, with `servers` only.
    pub search: Vec<String>,
    /// From where some of `servers` are asked.
    pub netns: ServerNetns,
    /// `/etc/resolv.conf`.
    pub resolv_conf: PathBuf,
    /// systemd-resolved's list of the servers behind its stub.
    pub resolved_conf: PathBuf,
    /// `/etc/hosts`, looked at for a change only: hickory reads it itself.
    pub hosts: PathBuf,
}

impl UpstreamOptions {
    /// These servers, or the system's if there are none.
    pub fn new(servers: Vec<SocketAddr>) -> Self {
        Self {
            servers,
            search: Vec::new(),
            netns: ServerNetns::default(),
            resolv_conf: "/etc/resolv.conf".into(),
            resolved_conf: "/run/systemd/resolve/resolv.conf".into(),
            hosts: "/etc/hosts".into(),
        }
    }
}

impl UpstreamOptions {
    /// Who is asked, and from where: the end of a sentence.
    fn whom(&self) -> String {
        let servers = self.servers.iter().map(|server| {
            let from = self.netns.get(server).map(|path| {
                let path = path.display();
                format!(" in the network namespace {path}")
            });
            format!("{server}{}", from.unwrap_or_default())
        });
        let servers = servers.collect::<Vec<_>>().join(", ");
        if servers.is_empty() {
            return format!(" (those of {})", self.resolv_conf.display());
        }
        format!(" ({servers})")
    }
}

type Hickory = hickory_resolver::Resolver<Provider>;

/// The name servers of the agent, asked through hickory.
pub struct Upstream {
    options: UpstreamOptions,
    provider: Provider,
    built: Mutex<Option<Built>>,
}

/// A hickory resolver and the files that it was made from.
struct Built {
    hickory: Result<Hickory, ResolveError>,
    stamp: Stamp,
    checked: Instant,
}

/// Which versions of the system's files are in use.
type Stamp = [Option<SystemTime>; 3];

impl Upstream {
    /// Sends from `netns`.
    pub fn new(options: UpstreamOptions, sockets: Sockets, netns: NetNs) -> Self {
        Self {
            provider: Provider::new(sockets, netns, Arc::clone(&options.netns)),
            options,
            built: Mutex::new(None),
        }
    }

    /// The resolver, made anew when the system's files have changed.
    fn hickory(&self) -> Result<Hickory, ResolveError> {
        let mut built = self.built.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if let Some(built) = &mut *built {
            if now.duration_since(built.checked) < CHECK_INTERVAL {
                return built.hickory.clone();
            }
            built.checked = now;
            if built.stamp == self.stamp() {
                return built.hickory.clone();
            }
            tracing::info!("the system's DNS configuration has changed");
        }
        // Before the files are read, so that a change meanwhile is not missed.
        let stamp = self.stamp();
        let hickory = self.build();
        *built = Some(Built {
            hickory: hickory.clone(),
            stamp,
            checked: now,
        });
        hickory
    }

    fn stamp(&self) -> Stamp {
        if !self.options.servers.is_empty() {
            return Stamp::default();
        }
        let options = &self.options;
        let changed = |path: &Path| fs::metadata(path).and_then(|file| file.modified()).ok();
        [&options.resolv_conf, &options.resolved_conf, &options.hosts].map(|path| changed(path))
    }

    fn build(&self) -> Result<Hickory, ResolveError> {
        let mut options = ResolverOpts::default();
        let config = if self.options.servers.is_empty() {
            let (config, system) = self.system()?;
            options.ndots = system.ndots;
            options.use_hosts_file = ResolveHosts::Always;
            config
        } else {
            options.use_hosts_file = ResolveHosts::Never;
            let servers = self.options.servers.iter().copied().map(server).collect();
            let search = self.options.search.iter();
            let search = search.filter_map(|domain| Name::from_ascii(domain).ok());
            let search = search.map(|mut domain| {
                domain.set_fqdn(true);
                domain
            });
            ResolverConfig::from_parts(None, search.collect(), servers)
        };
        options.timeout = TRY_LIMIT;
        options.attempts = RETRIES;
        options.edns0 = true;
        // Answers are kept by the caller, who knows what failed.
        options.cache_size = 0;
        // For the TTLs of CNAMEs.
        options.preserve_intermediates = true;
        let mut builder = Hickory::builder_with_config(config, self.provider.clone());
        *builder.options_mut() = options;
        builder.build().map_err(|error| self.unusable(&error))
    }

    fn system(&self) -> Result<(ResolverConfig, ResolverOpts), ResolveError> {
        let read = |path: &Path| -> Result<_, NetError> { parse_resolv_conf(fs::read(path)?) };
        let (config, options) =
            read(&self.options.resolv_conf).map_err(|error| self.unusable(&error))?;
        if !config
            .name_servers()
            .iter()
            .all(|server| is_stub(server.ip))
        {
            return Ok((config, options));
        }
        match read(&self.options.resolved_conf) {
            Ok((behind, _))
                if !behind
                    .name_servers()
                    .iter()
                    .all(|server| is_stub(server.ip)) =>
            {
                let (domain, search, _) = config.into_parts();
                let (_, _, servers) = behind.into_parts();
                Ok((ResolverConfig::from_parts(domain, search, servers), options))
            }
            // Then the stub's answers must do; virtual ones are told apart.
            _ => Ok((config, options)),
        }
    }

    fn unusable(&self, error: &NetError) -> ResolveError {
        ResolveError::Configuration {
            path: self.options.resolv_conf.clone(),
            reason: error.to_string().into(),
        }
    }
}

impl Query for Upstream {
    fn query(&self, name: Arc<str>) -> Pin<Box<dyn Future<Output = Families> + Send + '_>> {
        Box::pin(async move {
            let hickory = match self.hickory() {
                Ok(hickory) => hickory,
                Err(error) => return Families::failed(error),
            };
            let Ok(mut host) = Name::from_ascii(&*name) else {
                return Families::failed(ResolveError::InvalidName(name));
            };
            // Search domains are for single labels only.
            host.set_fqdn(name.contains('.'));
            let (v4, v6) = tokio::join!(
                hickory.lookup(host.clone(), RecordType::A),
                hickory.lookup(host.clone(), RecordType::AAAA),
            );
            Families {
                v4: found(v4, &name, &self.options),
                v6: found(v6, &name, &self.options),
            }
        })
    }
}

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upstream")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

/// systemd-resolved's stub listeners (systemd-resolved.service(8)).
fn is_stub(ip: IpAddr) -> bool {
    ip == Ipv4Addr::new(127, 0, 0, 53) || ip == Ipv4Addr::new(127, 0, 0, 54)
}

fn server(address: SocketAddr) -> NameServerConfig {
    let connection = |protocol| {
        let mut connection = ConnectionConfig::new(protocol);
        connection.port = address.port();
        connection
    };
    let connections = vec![
        connection(ProtocolConfig::Udp),
        connection(ProtocolConfig::Tcp),
    ];
    NameServerConfig::new(address.ip(), true, connections)
}

fn found(
    result: Result<hickory_resolver::lookup::Lookup, NetError>,
    name: &Arc<str>,
    options: &UpstreamOptions,
) -> Found {
    let error = match result {
        Ok(lookup) => {
            let records = lookup.answers().iter();
            let on_the_way = records.clone().filter(|record| {
                matches!(
                    record.record_type(),
                    RecordType::A | RecordType::AAAA | RecordType::CNAME
                )
            });
            let ttl = on_the_way.map(|record| record.ttl).min().unwrap_or(0);
            let addresses: Vec<IpAddr> =
                records.filter_map(|record| record.data.ip_addr()).collect();
            return if addresses.is_empty() {
                Found::NoRecords
            } else {
                Found::Records(Records {
                    addresses,
                    ttl: Duration::from_secs(ttl.into()),
                })
            };
        }
        Err(error) => error,
    };
    let failed = |reason: String| {
        Found::Failed(ResolveError::Server {
            name: Arc::clone(name),
            reason: reason.into(),
        })
    };
    match error {
        NetError::Dns(DnsError::NoRecordsFound(none)) => match none.response_code {
            ResponseCode::NXDomain => Found::NoSuchName,
            ResponseCode::NoError => Found::NoRecords,
            code => failed(code.to_string()),
        },
        NetError::Dns(DnsError::ResponseCode(code)) => {
            failed(format!("the name server says {code}"))
        }
        NetError::Timeout => Found::Failed(ResolveError::Timeout {
            name: Arc::clone(name),
            limit: TRY_LIMIT * 2,
        }),
        NetError::NoConnections => {
            failed(format!("no name server could be reached{}", options.whom()))
        }
        NetError::Io(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            failed("the name server refused the connection".to_owned())
        }
        other => failed(other.to_string()),
    }
}

#[cfg(test)]
mod tests;
