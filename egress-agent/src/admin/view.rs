//! Shapes of the answers of the admin API. Fields may be added within `/v1`;
//! none changes its meaning or goes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// `GET /v1/status`.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// The process.
    pub agent: Agent,
    /// The policy in force.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<Policy>,
    /// The Kubernetes API server, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kubernetes: Option<Kubernetes>,
    /// The kernel side.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capture: Option<Capture>,
    /// What an operator should look at, worst first.
    pub warnings: Vec<String>,
}

/// The process.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Agent {
    /// Version of the program.
    pub version: String,
    /// Process id.
    pub pid: u32,
    /// `starting`, `ready` or `draining`.
    pub state: String,
    /// Seconds since the start.
    pub uptime_seconds: u64,
    /// The settings file, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub settings_file: Option<String>,
    /// Number of worker threads.
    pub workers: usize,
    /// Workers that do not turn.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stalled_workers: Vec<usize>,
    /// Connections through the agent that are open now.
    pub connections: usize,
    /// Log filter in force.
    pub log: String,
    /// Panics since the start.
    pub panics: u64,
    /// Settings that were changed in the file and wait for a restart.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub need_restart: Vec<String>,
}

/// The policy in force.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Policy {
    /// Grows with each change.
    pub generation: u64,
    /// Documents in force.
    pub documents: usize,
    /// Documents that were rejected.
    pub rejected: usize,
    /// Services (hosts and ports).
    pub services: usize,
    /// Services whose endpoint the kernel picks.
    pub direct: usize,
    /// Services that go through the agent.
    pub proxied: usize,
    /// Seconds since the last change.
    pub age_seconds: u64,
}

/// The Kubernetes API server.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Kubernetes {
    /// Its URL.
    pub server: String,
    /// Name of this node.
    pub node: String,
    /// Every list was read at least once since the start.
    pub synced: bool,
    /// Seconds since the server was seen last; 0 while it is there.
    pub age_seconds: u64,
    /// Why it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What is followed.
    pub watches: Vec<KubernetesWatch>,
}

/// A set of objects that is followed.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct KubernetesWatch {
    /// Plural of the kind; for a Secret with its namespace and name.
    pub resource: String,
    /// Objects in force.
    pub objects: usize,
    /// It was listed since the start.
    pub synced: bool,
    /// Seconds since it was seen last; 0 while it is followed.
    pub age_seconds: u64,
    /// Lists so far.
    pub lists: u64,
    /// Watches opened so far.
    pub watches: u64,
    /// Requests that failed so far.
    pub failures: u64,
    /// What is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// The kernel side.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Capture {
    /// Cgroup that we are attached to.
    pub cgroup: String,
    /// Programs of ours that are attached.
    pub programs: Vec<String>,
    /// Programs of others on the same hooks.
    pub others: Vec<String>,
    /// Network namespaces with listeners.
    pub namespaces: usize,
    /// Counters of the kernel programs by name.
    pub counters: BTreeMap<String, u64>,
}

/// A policy document.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DocumentName {
    /// `ServiceEntry`, `DestinationRule`, `VirtualService`.
    pub kind: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

/// `GET /v1/services`.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Service {
    /// Namespace of the ServiceEntry.
    pub namespace: String,
    /// Host.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Name of the port.
    pub port_name: String,
    /// Protocol of the port.
    pub protocol: String,
    /// Resolution.
    pub resolution: String,
    /// `direct` or `proxy`.
    pub path: String,
    /// Why that path.
    pub reason: String,
    /// Virtual addresses, and those of `addresses`.
    pub addresses: Vec<String>,
    /// Endpoints that may be picked.
    pub healthy: usize,
    /// All endpoints.
    pub endpoints: usize,
    /// Open connections.
    pub connections: u64,
    /// The ServiceEntry.
    pub service_entry: DocumentName,
    /// The DestinationRule of callers in the own namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination_rule: Option<DocumentName>,
    /// The VirtualService of callers in the own namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub virtual_service: Option<DocumentName>,
    /// Namespaces that see it; `*` is all.
    pub export_to: Vec<String>,
}

/// `GET /v1/endpoints`.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Endpoint {
    /// Namespace of the ServiceEntry.
    pub namespace: String,
    /// Host of the service.
    pub host: String,
    /// Port of the service.
    pub port: u16,
    /// Subset; empty for none.
    pub subset: String,
    /// Address and port, or `unix:` path.
    pub address: String,
    /// Name that it was resolved from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Locality.
    pub locality: String,
    /// Weight.
    pub weight: u32,
    /// Priority level; 0 is the nearest.
    pub priority: u32,
    /// `healthy`, `ejected`, `unhealthy` or `draining`.
    pub health: String,
    /// What made it so, and until when.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Open connections or requests in flight.
    pub active: u64,
    /// Open connections, those of the direct path included.
    pub connections: u64,
    /// Requests in flight (HTTP).
    pub requests: u64,
    /// Connections or requests since it is known.
    pub total: u64,
    /// Failed ones.
    pub failed: u64,
    /// Times that outlier detection ejected it.
    pub ejections: u64,
    /// What the newest failure was.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub last_failure: String,
    /// Seconds since then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_failure_seconds: Option<u64>,
}

/// `GET /v1/routes`.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Route {
    /// Host of the service.
    pub host: String,
    /// Port of the service.
    pub port: u16,
    /// Namespace of the callers that it is for; `*` is all others.
    pub clients: String,
    /// The VirtualService.
    pub virtual_service: DocumentName,
    /// `http`, `tls` or `tcp`.
    pub kind: String,
    /// Place among the routes of its kind that the port has, from 1.
    pub number: usize,
    /// Name of the route.
    pub name: String,
    /// Match blocks in words.
    pub matches: Vec<String>,
    /// Where to, or what it does, in words.
    pub action: String,
}

/// `GET /v1/secrets`.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Secret {
    /// `NAMESPACE/NAME`, or the path of a file.
    pub name: String,
    /// `ca`, `certificate` or `crl`.
    pub kind: String,
    /// Where it was read from.
    pub source: String,
    /// `active`; `stale` where a newer version cannot be used and the one
    /// shown stays in force; `error` where there is none.
    pub state: String,
    /// Subject of the (first) certificate.
    pub subject: String,
    /// Issuer of it.
    pub issuer: String,
    /// Names that the certificate is for.
    pub alternative_names: Vec<String>,
    /// Start of validity, RFC 3339.
    pub not_before: String,
    /// End of validity, RFC 3339.
    pub not_after: String,
    /// Whole days until then; negative after.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub days_left: Option<i64>,
    /// Serial number in hexadecimal.
    pub serial: String,
    /// Counts the versions that were in force since the start.
    pub version: u64,
    /// Hosts that use it.
    pub used_by: Vec<String>,
    /// Why it, or its newest version, cannot be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Remarks that do not keep it from working.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// `GET /v1/dns`.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Name {
    /// Host.
    pub host: String,
    /// The namespace whose own name servers resolved it; none: those of all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// What applications get.
    pub virtual_addresses: Vec<String>,
    /// What the agent resolved it to.
    pub resolved: Vec<String>,
    /// Seconds since the last good answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub age_seconds: Option<u64>,
    /// Seconds until it is asked for again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refresh_seconds: Option<u64>,
    /// Why the last lookup failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// `GET /v1/unregistered`: a destination that nothing registers, and who went
/// there.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Unregistered {
    /// Policy namespace of the caller.
    pub namespace: String,
    /// Workload: unit, container or pod, or the name that a rule gives.
    pub workload: String,
    /// Path of its cgroup; empty when it is gone.
    pub cgroup: String,
    /// Task name of the first process of the cgroup that went there.
    pub comm: String,
    /// Id of that process.
    pub pid: u32,
    /// Its user id.
    pub uid: u32,
    /// Cookie of its network namespace.
    pub netns: u64,
    /// Address and port.
    pub destination: String,
    /// `tcp` or `udp`.
    pub transport: String,
    /// Names that DNS answers gave for the address, the latest first.
    pub names: Vec<String>,
    /// Whether it was refused; else it passed.
    pub refused: bool,
    /// Connections, and datagrams sent without one.
    pub count: u64,
    /// Seconds since the first.
    pub first_seconds: u64,
    /// Seconds since the last.
    pub last_seconds: u64,
}

/// `GET /v1/documents`.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Document {
    /// Which.
    #[serde(flatten)]
    pub id: DocumentName,
    /// File, or the name of another source.
    pub source: String,
    /// Line of its first line.
    pub line: u32,
    /// Hosts that it is for.
    pub hosts: Vec<String>,
    /// Whether this version is in force.
    pub accepted: bool,
    /// This version was rejected, and an older one is still in force.
    pub previous_in_force: bool,
    /// The snapshot with which the version in force came.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// `Accepted` and `InForce`.
    pub conditions: Vec<Condition>,
    /// Seconds since it was read.
    pub age_seconds: u64,
    /// What is wrong with it.
    pub problems: Vec<Problem>,
    /// The document as it was read.
    pub object: serde_json::Value,
}

/// A condition, as Kubernetes has them.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Condition {
    /// `Accepted` or `InForce`.
    #[serde(rename = "type")]
    pub kind: String,
    /// `True` or `False`.
    pub status: String,
    /// One word.
    pub reason: String,
    /// A sentence.
    pub message: String,
}

/// A problem of a document.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Problem {
    /// `error` or `warning`.
    pub severity: String,
    /// File, or the name of another source.
    pub source: String,
    /// Line from 1.
    pub line: u32,
    /// Column from 1.
    pub column: u32,
    /// What is wrong, which rule, how to mend it.
    pub message: String,
}

/// One document of an apply or delete.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Change {
    /// Which.
    #[serde(flatten)]
    pub id: DocumentName,
    /// `created`, `configured`, `unchanged`, `deleted` or `rejected`.
    pub outcome: String,
    /// What is wrong with it.
    pub problems: Vec<Problem>,
    /// The version that was in force before; with `dry-run` only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<serde_json::Value>,
    /// The version that would be in force now; with `dry-run` only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<serde_json::Value>,
}

/// `POST /v1/drain`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Draining {
    /// Connections that are open now.
    pub connections: usize,
    /// Time until what is left is cut, in milliseconds.
    pub deadline_ms: u64,
}

/// `PUT /v1/log`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Log {
    /// The filter in force.
    pub filter: String,
}

/// Body of every answer that is not 200.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Failure {
    /// What went wrong.
    pub error: String,
}
