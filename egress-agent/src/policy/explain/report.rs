//! The answer: shapes for the admin API and `-o json`. Fields may be added;
//! none changes its meaning or goes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What a snapshot decides for a destination, and why.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Explanation {
    /// The destination as asked.
    pub target: String,
    /// Its host.
    pub host: String,
    /// Its port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Who goes there.
    pub caller: Caller,
    /// Whether a service matches.
    pub registered: bool,
    /// The service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<Service>,
    /// Without a service: what happens, and what may have been meant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unregistered: Option<Unregistered>,
    /// Documents that act, in the order ServiceEntry, VirtualService,
    /// DestinationRules.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub documents: Vec<Document>,
    /// Documents about the service that do not act on it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub lost: Vec<Lost>,
    /// Through the kernel or the agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<Path>,
    /// What becomes of a connection, by what the application speaks.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub traffic: Vec<Traffic>,
    /// What the traffic goes to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub clusters: Vec<Cluster>,
    /// Connections that were tried, where that was asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub connections: Vec<Connection>,
    /// What an operator should look at.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// A connection that the agent has tried with the policy's identity, and closed
/// again before a byte of an application.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Connection {
    /// Name of the cluster.
    pub cluster: String,
    /// Address of the endpoint.
    pub endpoint: String,
    /// Our own address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local: Option<String>,
    /// Why there is no connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Milliseconds until TCP was connected.
    pub tcp_ms: f64,
    /// Milliseconds of the TLS handshake, and of what came before it inside
    /// the application's protocol.
    pub tls_ms: f64,
    /// The handshake; `None` in the clear, or where it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<Handshake>,
}

/// What a TLS handshake came to.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Handshake {
    /// `TLSv1.3` or `TLSv1.2`.
    pub version: String,
    /// Cipher suite, by IANA's name.
    pub cipher: String,
    /// Server name that was sent; `None` for an address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sni: Option<String>,
    /// Protocol that ALPN settled on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alpn: Option<String>,
    /// Client certificate at hand, sent where the server asks for one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_certificate: Option<String>,
    /// What the server presented, its own certificate first.
    pub chain: Vec<Certificate>,
}

/// A certificate that a server presented.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Certificate {
    /// Subject.
    pub subject: String,
    /// Issuer.
    pub issuer: String,
    /// Subject alternative names.
    pub names: Vec<String>,
    /// Serial number, hexadecimal.
    pub serial: String,
    /// End of validity, RFC 3339.
    pub not_after: String,
    /// Whole days until then; negative after.
    pub days_left: i64,
}

/// Who asks.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Caller {
    /// Namespace.
    pub namespace: String,
    /// Labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Process, unit or pod, where one was named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// A document and where it stands.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Document {
    /// `ServiceEntry`, `DestinationRule` or `VirtualService`.
    pub kind: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// File, or the name of another source.
    pub source: String,
    /// First line in it.
    pub line: u32,
}

/// A document that does not act.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Lost {
    /// Which.
    pub document: Document,
    /// Why not.
    pub reason: String,
}

/// One host on one port.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Service {
    /// Namespace of the ServiceEntry.
    pub namespace: String,
    /// Host as registered; it may be a wildcard.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Name of the port.
    pub port_name: String,
    /// Protocol of the port.
    pub protocol: String,
    /// Namespaces that see it; `*` is all.
    pub export_to: Vec<String>,
    /// How a connection is known to be meant for it.
    pub recognized_by: Vec<String>,
}

/// No service matches.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Unregistered {
    /// Why none matches.
    pub reason: String,
    /// What happens to such a connection.
    pub outcome: String,
    /// What may have been meant.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub suggestions: Vec<String>,
}

/// Through the kernel or the agent.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Path {
    /// `direct`, `proxy` or `refused`.
    pub path: String,
    /// Why.
    pub reason: String,
    /// `closed` or `open`; for `direct`, the agent's failure changes nothing.
    pub on_agent_failure: String,
    /// The same in words.
    pub while_agent_is_down: String,
}

/// What becomes of a connection in which the application speaks this.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Traffic {
    /// `http`, `tls` or `other`.
    pub speaks: String,
    /// This is what the question was about.
    pub asked: bool,
    /// Which routing applies, in words.
    pub routing: String,
    /// Routes: for a URL the one that matches, else all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
    /// What reaches the service, in words: TLS or not.
    pub wire: String,
    /// `originate`, `passthrough` or `cleartext`; empty where nothing is sent.
    pub tls: String,
}

/// A route.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Route {
    /// Place among the routes that this port has, from 1.
    pub number: usize,
    /// Of so many.
    pub of: usize,
    /// Name, with that of the match block.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Match blocks in words, the one that matched alone where one did; empty:
    /// everything.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub matches: Vec<String>,
    /// Destinations: cluster and share in per cent.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub destinations: Vec<Destination>,
    /// What it does besides: rewrite, timeout, retries, faults, headers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub actions: Vec<Setting>,
    /// What the application gets instead of an answer of the service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
}

/// A weighted destination.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Destination {
    /// Name of the [`Cluster`], or what does not exist.
    pub cluster: String,
    /// Share in per cent.
    pub percent: f64,
    /// It does not exist: 503 NC.
    pub missing: bool,
}

/// A setting in force.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Setting {
    /// Name of the Istio field.
    pub field: String,
    /// Value, with its unit.
    pub value: String,
    /// It is what acts where nobody writes the field.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub default: bool,
}

/// What limits, balancing and ejection are counted for.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Cluster {
    /// `HOST:PORT`, with the subset where there is one.
    pub name: String,
    /// The DestinationRule.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination_rule: Option<Document>,
    /// `NONE`, `STATIC`, `DNS`, `DNS_ROUND_ROBIN` or `DYNAMIC_DNS`.
    pub resolution: String,
    /// The same in words.
    pub resolved: String,
    /// Endpoints: live where the agent told, else as written.
    pub endpoints: Vec<Endpoint>,
    /// The endpoints are those of the running agent.
    pub live: bool,
    /// `loadBalancer`.
    pub load_balancer: Vec<Setting>,
    /// `connectionPool`, and what else is on the connection.
    pub limits: Vec<Setting>,
    /// `outlierDetection` and health checks; empty: nothing is ejected.
    pub health: Vec<Setting>,
    /// TLS that is originated, if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
}

/// An endpoint.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Endpoint {
    /// Address and port, or Unix socket.
    pub address: String,
    /// Name that it was resolved from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resolved_from: Option<String>,
    /// Weight.
    pub weight: u32,
    /// Locality.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub locality: String,
    /// Labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// `healthy`, `ejected`, `unhealthy` or `draining`; of the running agent
    /// only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health: Option<String>,
    /// More on its health.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Open connections.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections: Option<u64>,
}

/// TLS that is originated.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Tls {
    /// `SIMPLE`, `MUTUAL` or `ISTIO_MUTUAL`.
    pub mode: String,
    /// No DestinationRule asks for it: the port is declared HTTPS.
    pub implied: bool,
    /// Server name that is sent.
    pub sni: String,
    /// Names of which the certificate must have one; empty: not checked.
    pub accepted_names: Vec<String>,
    /// What the chain must lead to.
    pub trust: String,
    /// Client certificate, if one is sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_certificate: Option<String>,
    /// Namespaces where the credential is looked for, in order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub credential_namespaces: Vec<String>,
    /// Versions.
    pub versions: String,
    /// Cipher suites; empty: the defaults.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cipher_suites: Vec<String>,
    /// Protocol that TLS starts within.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub starttls: Option<String>,
    /// Neither chain nor name is checked.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub insecure_skip_verify: bool,
}
