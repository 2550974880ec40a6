//! Settings: file, environment, flags, in rising order of rank.
//!
//! [`Settings`] is the one list: a field's doc comment is its help text and its
//! comment in `config/egress-agent.toml`, and its key is its flag, its key in
//! the file and, in capitals after `EGRESS_`, its environment variable. A list
//! given in a higher rank replaces the lower one whole.

use std::path::PathBuf;
use std::time::Duration;

use crate::policy::model::Locality;
use crate::workload::rules::Rule;

pub mod command;
mod error;
mod example;
mod file;
mod layer;
mod load;
pub mod table;
#[cfg(test)]
mod tests;
pub mod value;

pub use error::{Problem, SettingsError};
pub use example::example;
pub use load::{Loaded, Sources};
use table::settings;
use value::{
    AccessLog, AdminSocket, AllowedDestination, ClusterDomain, ConnectionLimit, LogFilter,
    LogFormat, MetricsListener, NameServer, NamespaceName, NamespaceOutbound, NamespaceSearch,
    NamespaceServer, NodeName, Outbound, RefusalErrno, SearchDomain, Switch, UnknownFields,
    Workers,
};

settings! {
    /// Everything that an operator can set on the agent.
    #[derive(Clone, PartialEq, Debug)]
    pub struct Settings {
        "Policy" {
            /// Policy file or directory of `*.yaml`, `*.yml` and `*.json` files,
            /// watched for changes; may be given several times.
            ///
            /// The default directory may be absent; one that is named must exist.
            policy: Vec<PathBuf> { "policy" "PATH" Reload default "/etc/egress/policy" separator ':' }

            /// What an unknown field in a policy document is: `error` rejects
            /// the document, `warn` loads it without the field.
            ///
            /// Use `warn` only for documents that are newer than this agent: a
            /// mistyped `tls` would then mean plaintext.
            unknown_fields: UnknownFields { "unknown-fields" "error|warn" Reload default "error" }

            /// Directory of secrets: `credentialName: NAME` is read from
            /// `DIR/NAMESPACE/NAME/`.
            ///
            /// Files are `tls.crt` or `cert`, `tls.key` or `key`, `ca.crt` or
            /// `cacert`, `ca.crl` or `crl`. A change takes effect on the next
            /// handshake.
            secrets_dir: PathBuf { "secrets-dir" "DIR" Start default "/etc/egress/secrets" }

            /// Identity that `tls.mode: ISTIO_MUTUAL` presents, and the roots
            /// that it trusts.
            ///
            /// A directory with `cert-chain.pem`, `key.pem` and `root-cert.pem`
            /// (Istio's names) or `tls.crt`, `tls.key` and `ca.crt`, read again
            /// when they change; or `unix:PATH`, the socket of a SPIFFE Workload
            /// API. Without it such connections are refused.
            mesh_identity: Option<PathBuf> { "mesh-identity" "DIR|unix:PATH" Start }

            /// Namespace whose exported DestinationRules apply to all others.
            root_namespace: NamespaceName { "root-namespace" "NAME" Reload default "istio-system" }

            /// Domain that completes a host without a dot:
            /// `NAME.NAMESPACE.svc.DOMAIN`.
            cluster_domain: ClusterDomain { "cluster-domain" "DOMAIN" Reload default "cluster.local" }
        }

        "Callers" {
            /// Cgroup below which connections are captured.
            ///
            /// Default: the root of the unified hierarchy, wherever it is
            /// mounted, which captures every process of the node.
            cgroup: Option<PathBuf> { "cgroup" "PATH" Start }

            /// Namespace of callers that no `workload` rule names.
            namespace: NamespaceName { "namespace" "NAME" Reload default "default" }

            /// Where this node is: `region/zone/subzone`, the last two optional.
            /// Endpoints near to it are preferred.
            locality: Option<Locality> { "locality" "R/Z/S" Start }

            /// Gives the callers in matching cgroups a namespace and labels;
            /// may be given several times. The match nearest to the caller's own
            /// cgroup decides, then the first.
            ///
            /// The pattern is a cgroup path relative to the root of the
            /// hierarchy, such as `system.slice/payments-*.service`; `*` and `?`
            /// stay within a segment, `**` crosses segments, and a pattern
            /// without `/` matches a segment anywhere. A cgroup below a matching
            /// one belongs to it. In the file this is a table with the keys
            /// `cgroup`, `namespace`, `name` and `labels`.
            workload: Vec<Rule> { "workload" "PATTERN=NAMESPACE[,LABEL=VALUE]" Reload separator ';' }
        }

        "Kubernetes" {
            /// Take policy, callers and Secrets from a Kubernetes API server:
            /// ServiceEntry, DestinationRule and VirtualService objects, the
            /// pods of this node, and the Secrets that policies name.
            ///
            /// While the server is away, what it had last stays in force, also
            /// over a restart, except for Secrets, which are never written to
            /// disk.
            kubernetes: Switch { "kubernetes" "on|off" Start default "off" }

            /// Kubeconfig that says where the API server is and who we are.
            ///
            /// Default: the service account of the pod that the agent runs in.
            kubeconfig: Option<PathBuf> { "kubeconfig" "PATH" Start }

            /// Name of the Node object of this host, which chooses the pods.
            ///
            /// Default: the host's name in lower case.
            node_name: Option<NodeName> { "node-name" "NAME" Start }

            /// Tell problems of a policy object to it, as Events and as the
            /// condition `egress-agent.dev/Accepted` of its status.
            kubernetes_report: Switch { "kubernetes-report" "on|off" Start default "on" }
        }

        "Outbound" {
            /// What happens to connections and datagrams to destinations that
            /// are not registered: `allow-any` lets them pass untouched,
            /// `registry-only` refuses them.
            ///
            /// Always allowed are loopback, DNS as far as the agent answers or
            /// forwards it, the agent's own connections, and what
            /// `outbound-allow` lists. DHCP and NTP clients must be listed
            /// there.
            outbound: Outbound { "outbound" "allow-any|registry-only" Reload default "allow-any" }

            /// Error that `connect` and `sendmsg` give for a refused
            /// destination under `registry-only`.
            outbound_errno: RefusalErrno { "outbound-errno" "ECONNREFUSED|EPERM|EACCES|EHOSTUNREACH|ENETUNREACH" Reload default "ECONNREFUSED" }

            /// Time that open connections to an address have to end after it
            /// disappeared from DNS (`resolution: DNS`). New ones do not go
            /// there. `0s` cuts them at once.
            dns_drain_grace: Duration { "dns-drain-grace" "DURATION" Start default "30s" }

            /// Another mode for the callers of one namespace; may be given
            /// several times.
            outbound_in: Vec<NamespaceOutbound> { "outbound-in" "NAMESPACE=allow-any|registry-only" Reload separator ',' }

            /// Destinations that are allowed under `registry-only` although
            /// nothing registers them: a network or an address, and a port
            /// where only that one is meant; may be given several times.
            outbound_allow: Vec<AllowedDestination> { "outbound-allow" "CIDR[:PORT]" Reload separator ',' }

            /// Keep count of unregistered destinations by caller, for
            /// `egressctl observe`. Refusals are counted in any case.
            observe: Switch { "observe" "on|off" Reload default "on" }

            /// Connections through the agent that may be open at once; further
            /// ones are reset. `auto` is what the limit of open descriptors
            /// allows.
            max_connections: ConnectionLimit { "max-connections" "N|auto" Reload default "auto" }
        }

        "DNS" {
            /// Answer queries of captured callers for registered hosts with
            /// virtual addresses. `off` leaves DNS alone; services are then
            /// known by their `addresses` only.
            dns: Switch { "dns" "on|off" Start default "on" }

            /// Name server that the agent itself asks for the addresses of
            /// endpoints; may be given several times. Port 53 unless written.
            ///
            /// Default: those of `/etc/resolv.conf`. Queries of applications
            /// for unregistered names always go to the server that the
            /// application asked.
            dns_upstream: Vec<NameServer> { "dns-upstream" "ADDR[:PORT]" Start separator ',' }

            /// Domain that is tried behind names of a single label, with the
            /// servers of `dns-upstream`; may be given several times. Without
            /// `dns-upstream` those of `/etc/resolv.conf` are.
            dns_search: Vec<SearchDomain> { "dns-search" "DOMAIN" Start separator ',' }

            /// Name server for the names in ServiceEntries of one namespace,
            /// in place of all others; may be given several times. With
            /// `@NETNS`, the file of a network namespace, it is asked from
            /// there, for a server that can be reached nowhere else.
            dns_upstream_in: Vec<NamespaceServer> { "dns-upstream-in" "NAMESPACE=ADDR[:PORT][@NETNS]" Start separator ',' }

            /// Domain that is tried behind names of a single label in
            /// ServiceEntries of one namespace, with the servers of
            /// `dns-upstream-in`; may be given several times.
            dns_search_in: Vec<NamespaceSearch> { "dns-search-in" "NAMESPACE=DOMAIN" Start separator ',' }
        }

        "Process" {
            /// Threads that carry connections; `auto` is one for each CPU that
            /// this process may use.
            workers: Workers { "workers" "N|auto" Start default "auto" }

            /// Directory for what must survive a restart: virtual addresses,
            /// applied documents. One agent at a time may use it.
            state_dir: PathBuf { "state-dir" "DIR" Start default "/var/lib/egress" }

            /// Directory on a BPF file system for pinned maps and links.
            bpffs: PathBuf { "bpffs" "DIR" Start default "/sys/fs/bpf/egress" }

            /// Time that open connections have to end after SIGTERM, before
            /// they are cut.
            drain_deadline: Duration { "drain-deadline" "DURATION" Reload default "30s" }

            /// Age of the last heartbeat after which the kernel programs take
            /// the agent for dead; from 100ms to 1m. The agent beats four times
            /// as often.
            heartbeat_limit: Duration { "heartbeat-limit" "DURATION" Start default "800ms" }
        }

        "Observation" {
            /// Socket of the admin API, which egressctl talks to. Only root and
            /// the agent's own user may use it.
            admin: AdminSocket { "admin" "unix:PATH" Start default "unix:/run/egress/admin.sock" }

            /// Where `/metrics`, `/healthz` and `/readyz` are served over HTTP;
            /// `off` for nowhere.
            metrics: MetricsListener { "metrics" "ADDR:PORT|off" Start default "127.0.0.1:15090" }

            /// What is logged: a level (`error`, `warn`, `info`, `debug`,
            /// `trace`), or a list such as `info,egress_agent::dns=debug`.
            log: LogFilter { "log" "FILTER" Reload default "info" }

            /// Form of log lines, on standard error.
            log_format: LogFormat { "log-format" "text|json" Start default "text" }

            /// File of the access log, one JSON object a line; `-` is standard
            /// output, `off` is none. Opened again at a reload, for rotation.
            access_log: AccessLog { "access-log" "PATH|-|off" Reload default "-" }

            /// How long a line may wait for others, to be written with them; 0
            /// writes each one at once.
            access_log_linger: Duration { "access-log-linger" "DURATION" Start default "100ms" }

            /// Log what the kernel programs decide, at level debug. Costs time
            /// on every connection of the node.
            kernel_log: Switch { "kernel-log" "on|off" Start default "off" }
        }
    }
}

/// What a reload did.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Reloaded {
    /// Keys whose new value is in force.
    pub taken: Vec<&'static str>,
    /// Keys whose new value waits for a restart.
    pub need_restart: Vec<&'static str>,
}

/// The settings file that is read when none is named, if it exists.
pub const DEFAULT_FILE: &str = "/etc/egress/egress-agent.toml";
