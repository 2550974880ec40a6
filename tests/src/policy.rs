//! Policy documents that many tests use, as an operator would write them.

use std::fmt::Write as _;
use std::path::Path;

/// Basic TLS origination: plain HTTP on port 80 leaves as verified TLS to port
/// 443; the program's own HTTPS on port 443 passes untouched.
pub fn tls_origination(host: &str, authority: &Path) -> String {
    let name = host.replace('.', "-");
    format!(
        "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata:
  name: {name}
  namespace: default
spec:
  hosts: [{host}]
  location: MESH_EXTERNAL
  resolution: DNS
  ports:
    - number: 80
      name: http
      protocol: HTTP
      targetPort: 443
    - number: 443
      name: https
      protocol: HTTPS
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata:
  name: {name}
  namespace: default
spec:
  host: {host}
  trafficPolicy:
    portLevelSettings:
      - port:
          number: 80
        tls:
          mode: SIMPLE
          sni: {host}
          caCertificates: {}
",
        authority.display()
    )
}

/// A TCP service on one port, resolved by DNS.
pub fn tcp(host: &str, port: u16) -> String {
    let name = host.replace('.', "-");
    format!(
        "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata:
  name: {name}
  namespace: default
spec:
  hosts: [{host}]
  location: MESH_EXTERNAL
  resolution: DNS
  ports:
    - number: {port}
      name: tcp
      protocol: TCP
"
    )
}

/// The same, carried by the agent: the kernel cannot enforce an idle limit.
pub fn tcp_proxied(host: &str, port: u16) -> String {
    let rule = format!(
        "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata:
  name: {}
  namespace: default
spec:
  host: {host}
  trafficPolicy:
    connectionPool:
      tcp:
        idleTimeout: 60s
",
        host.replace('.', "-")
    );
    join(&[&tcp(host, port), &rule])
}

/// A TCP service on one port with fixed endpoints.
pub fn tcp_static(host: &str, port: u16, endpoints: &[&str]) -> String {
    let mut text = tcp(host, port).replace("resolution: DNS", "resolution: STATIC");
    text.push_str("  endpoints:\n");
    for endpoint in endpoints {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "    - address: \"{endpoint}\"");
    }
    text
}

/// A TCP service whose connections leave as TLS that leads to `authority`, with
/// the name of its port, by which the agent may know its protocol.
pub fn tls_tcp(host: &str, port: u16, port_name: &str, authority: &Path) -> String {
    let entry = tcp(host, port).replace("name: tcp", &format!("name: {port_name}"));
    let rule = format!(
        "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata:
  name: {}
  namespace: default
spec:
  host: {host}
  trafficPolicy:
    tls:
      mode: SIMPLE
      caCertificates: {}
",
        host.replace('.', "-"),
        authority.display()
    );
    join(&[&entry, &rule])
}

/// An HTTP service on port 80 with one endpoint, which it is reached at on
/// `port`: in the clear or over TLS, with `h2UpgradePolicy` as `http2` says.
pub fn http(host: &str, address: &str, port: u16, tls: bool, http2: bool) -> String {
    let name = host.replace('.', "-");
    let tls = if tls { "\n    tls: {mode: SIMPLE}" } else { "" };
    let upgrade = if http2 { "UPGRADE" } else { "DEFAULT" };
    format!(
        "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: {name}, namespace: default}}
spec:
  hosts: [{host}]
  ports: [{{number: 80, name: http, protocol: HTTP, targetPort: {port}}}]
  resolution: STATIC
  endpoints: [{{address: {address}}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: {name}, namespace: default}}
spec:
  host: {host}
  trafficPolicy:
    connectionPool: {{http: {{h2UpgradePolicy: {upgrade}}}}}{tls}
---
"
    )
}

/// A service on one port (name and protocol), resolved as `resolution` says.
pub fn by_name(host: &str, resolution: &str, port: u16, name: &str, protocol: &str) -> String {
    let id = host.trim_start_matches("*.").replace('.', "-");
    format!(
        "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: {id}, namespace: default}}
spec:
  hosts: ['{host}']
  resolution: {resolution}
  ports: [{{number: {port}, name: {name}, protocol: {protocol}}}]
"
    )
}

/// Two endpoints, of the subsets v1 and v2 of [`versions`], as lines of a
/// ServiceEntry.
pub fn versioned(v1: &str, v2: &str) -> String {
    format!(
        "  resolution: STATIC
  endpoints:
    - {{address: {v1}, labels: {{version: v1}}}}
    - {{address: {v2}, labels: {{version: v2}}}}
"
    )
}

/// A DestinationRule with the subsets v1 and v2.
pub fn versions(host: &str) -> String {
    let id = host.replace('.', "-");
    format!(
        "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: {id}, namespace: default}}
spec:
  host: {host}
  subsets:
    - {{name: v1, labels: {{version: v1}}}}
    - {{name: v2, labels: {{version: v2}}}}
"
    )
}

/// A DestinationRule of these lines of a `trafficPolicy`, to be put after
/// another document.
pub fn rule(host: &str, traffic_policy: &str) -> String {
    format!(
        "---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata:
  name: rule
  namespace: default
spec:
  host: \"{host}\"
  trafficPolicy:
{traffic_policy}
"
    )
}

/// Several documents as one file.
pub fn join(documents: &[&str]) -> String {
    documents.join("---\n")
}
