//! Rules of `ServiceEntry`.

use super::names::{
    Exported, check_export_to, check_label_map, check_port, check_port_name, check_selector, fqdn,
    ip, is_dns_label, subnet, wildcard_host,
};
use crate::policy::model::Protocol;
use crate::policy::schema::reader::Reader;
use crate::policy::schema::service_entry::{Endpoint, Location, Port, Resolution, ServiceEntry};
use crate::policy::schema::{Spanned, Text};

/// The protocol that a word names, in any case.
pub fn protocol(word: &str) -> Option<Protocol> {
    Some(match word.to_ascii_lowercase().as_str() {
        "" => Protocol::Unset,
        "http" | "http_proxy" => Protocol::Http,
        "https" => Protocol::Https,
        "http2" => Protocol::Http2,
        "grpc" => Protocol::Grpc,
        "grpc-web" => Protocol::GrpcWeb,
        "tcp" => Protocol::Tcp,
        "tls" => Protocol::Tls,
        "mongo" => Protocol::Mongo,
        "mysql" => Protocol::Mysql,
        "redis" => Protocol::Redis,
        "udp" => Protocol::Udp,
        _ => return None,
    })
}

/// The protocol of a port; an unknown one counts as unset.
pub fn port_protocol(port: &Port) -> Protocol {
    port.protocol
        .as_ref()
        .and_then(|word| protocol(word))
        .unwrap_or(Protocol::Unset)
}

/// Reports everything that is wrong with a ServiceEntry.
pub fn check(reader: &mut Reader<'_>, entry: &ServiceEntry) {
    check_bounds(reader, entry);
    if entry.hosts.is_empty() {
        reader.required(entry.span, "hosts");
    }
    let resolution = entry.resolution();
    for (index, host) in entry.hosts.iter().enumerate() {
        reader.within("hosts", |reader| {
            reader.at_index(index, |reader| check_host(reader, host, resolution));
        });
    }
    reader.within("addresses", |reader| check_addresses(reader, entry));
    reader.within("ports", |reader| check_ports(reader, entry));
    if let Some(selector) = &entry.workload_selector {
        reader.within("workloadSelector", |reader| {
            check_selector(reader, &selector.labels, 256, selector.span);
            if entry.endpoints.is_some() {
                reader.error(
                    "selector-with-endpoints",
                    selector.span,
                    "`workloadSelector` and `endpoints` exclude each other",
                    "keep one of them",
                );
            }
            if matches!(resolution, Resolution::Static) {
                reader.no_meaning(
                    selector.span,
                    "workloadSelector",
                    "workloads of a mesh are not known to this node; no endpoint comes from it",
                );
            } else {
                let message = format!(
                    "`workloadSelector` does not fit resolution {}",
                    resolution.word()
                );
                reader.warn("selector-resolution", selector.span, message, "remove it");
            }
        });
    }
    if let Some(location) = entry.location
        && location.value == Location::Internal
    {
        reader.no_meaning(
            location.span,
            "location: MESH_INTERNAL",
            "every registered host is treated as outside of the mesh",
        );
    }
    check_resolution(reader, entry);
    reader.within("exportTo", |reader| {
        check_export_to(reader, &entry.export_to, Exported::Service);
    });
}

fn check_bounds(reader: &mut Reader<'_>, entry: &ServiceEntry) {
    let lengths = [
        ("hosts", entry.hosts.len(), 256),
        ("addresses", entry.addresses.len(), 256),
        ("ports", entry.ports.len(), 256),
        ("endpoints", entry.endpoints().len(), 4096),
    ];
    for (name, length, most) in lengths {
        if length > most {
            let message = format!("`{name}` has {length} items; at most {most} are allowed");
            reader.within(name, |reader| {
                reader.error(
                    "too-many",
                    entry.span,
                    message,
                    "use several ServiceEntries",
                );
            });
        }
    }
}

fn check_host(reader: &mut Reader<'_>, host: &Text, resolution: Resolution) {
    if &***host == "*" {
        reader.error(
            "host-wildcard",
            host.span,
            "a ServiceEntry cannot claim every host",
            "name the hosts, or a domain as `*.example.com`",
        );
        return;
    }
    if let Err(problem) = wildcard_host(host) {
        reader.error("host", host.span, problem, "write a DNS name");
        return;
    }
    if host.starts_with('*') && !host.starts_with("*.") && resolution != Resolution::DynamicDns {
        let message = format!("{:?} has a wildcard for part of a label", &***host);
        reader.warn(
            "host-partial-wildcard",
            host.span,
            message,
            "write `*.` before a domain",
        );
    }
}

fn check_addresses(reader: &mut Reader<'_>, entry: &ServiceEntry) {
    for (index, address) in entry.addresses.iter().enumerate() {
        reader.at_index(index, |reader| {
            if let Err(problem) = subnet(address) {
                let help = "write an IP address or a network such as 192.0.2.0/24";
                reader.error("address", address.span, problem, help);
            } else if address.len() > 64 {
                reader.error(
                    "address",
                    address.span,
                    "an address has at most 64 characters",
                    "shorten it",
                );
            }
        });
    }
    let resolution = entry.resolution();
    let network = entry.addresses.iter().find(|a| a.contains('/'));
    if let Some(network) = network
        && !matches!(resolution, Resolution::None | Resolution::Static)
    {
        let message = format!(
            "{:?} is a network, which resolution {} does not allow",
            &***network,
            resolution.word()
        );
        let help = "write single addresses, or use resolution NONE or STATIC";
        reader.error("address-network", network.span, message, help);
    }
}

fn check_ports(reader: &mut Reader<'_>, entry: &ServiceEntry) {
    let auto = auto_allocates(reader, entry);
    for (index, port) in entry.ports.iter().enumerate() {
        reader.at_index(index, |reader| {
            check_one_port(reader, port);
            let earlier = &entry.ports[..index];
            let same = |a: &Option<Text>, b: &Option<Text>| a.is_some() && a == b;
            if let Some(name) = &port.name
                && earlier.iter().any(|other| same(&other.name, &port.name))
            {
                let message = format!("two ports are named {:?}", &***name);
                reader.error("port-duplicate", name.span, message, "give each port its own name");
            }
            if let Some(number) = port.number
                && earlier.iter().any(|other| other.number == port.number)
            {
                let message = format!("port {} stands here twice", number.value);
                reader.error("port-duplicate", number.span, message, "remove one of them");
            }
            let word = port.protocol.as_ref().map_or("", |word| &***word);
            if entry.addresses.is_empty() && !auto && matches!(word, "" | "TCP") {
                let number = port.number.map_or(0, |number| number.value);
                let message = format!(
                    "nothing tells this service apart on port {number}: it has no address, no virtual address and a protocol without host names"
                );
                let help = "add `addresses`, or a protocol such as HTTP or TLS; resolution NONE without addresses covers any address on the port";
                reader.warn("port-any-address", port.span, message, help);
            }
        });
    }
}

/// Whether the hosts get virtual addresses: Istio's rule, which asks for a
/// resolution, no addresses and no objection by label. (Wildcard hosts get
/// theirs per name, when a name is asked for.)
fn auto_allocates(reader: &Reader<'_>, entry: &ServiceEntry) -> bool {
    entry.resolution() != Resolution::None && entry.addresses.is_empty() && reader.allocates
}

fn check_one_port(reader: &mut Reader<'_>, port: &Port) {
    match port.number {
        Some(number) => {
            reader.within("number", |reader| check_port(reader, number));
        }
        None => reader.required(port.span, "number"),
    }
    match &port.name {
        Some(name) => reader.within("name", |reader| check_port_name(reader, name, name.span)),
        None => reader.required(port.span, "name"),
    }
    if let Some(target) = port.target_port {
        reader.within("targetPort", |reader| check_port(reader, target));
    }
    if let Some(word) = &port.protocol
        && protocol(word).is_none()
    {
        let message = format!("{:?} is not a protocol", &***word);
        let help = "one of HTTP, HTTPS, HTTP2, GRPC, GRPC-WEB, TCP, TLS, MONGO, MYSQL, REDIS, UDP, or none to look at the first bytes";
        reader.within("protocol", |reader| {
            reader.error("protocol", word.span, message, help);
        });
    }
}

fn check_resolution(reader: &mut Reader<'_>, entry: &ServiceEntry) {
    let resolution = entry.resolution();
    let word = resolution.word();
    if let Some(endpoints) = &entry.endpoints {
        reader.within("endpoints", |reader| {
            for (index, endpoint) in endpoints.iter().enumerate() {
                reader.at_index(index, |reader| check_endpoint(reader, entry, endpoint));
            }
            let (problem, help) = match resolution {
                Resolution::None => (
                    "endpoints have no place under resolution NONE",
                    "use STATIC or DNS, or remove the endpoints",
                ),
                Resolution::DynamicDns if !endpoints.is_empty() => (
                    "endpoints have no place under resolution DYNAMIC_DNS",
                    "remove them: the name asked for is resolved",
                ),
                Resolution::DnsRoundRobin if endpoints.len() > 1 => (
                    "resolution DNS_ROUND_ROBIN takes one endpoint at most",
                    "use DNS for several",
                ),
                _ => return,
            };
            reader.error("endpoints-resolution", endpoints.span, problem, help);
        });
    }
    if matches!(resolution, Resolution::Dns | Resolution::DnsRoundRobin)
        && entry.endpoints().is_empty()
    {
        for (index, host) in entry.hosts.iter().enumerate() {
            let Err(problem) = fqdn(host) else { continue };
            // A host that is none at all was reported already.
            if wildcard_host(host).is_err() || &***host == "*" {
                continue;
            }
            let message = format!("resolution {word} has to look the host up: {problem}");
            reader.within("hosts", |reader| {
                reader.at_index(index, |reader| {
                    let help = "name the hosts, add `endpoints`, or use DYNAMIC_DNS or NONE";
                    reader.error("host-resolution", host.span, message, help);
                });
            });
        }
    }
    if resolution == Resolution::DynamicDns {
        check_dynamic_dns(reader, entry);
    }
    let protocols = || entry.ports.iter().map(|port| (port, port_protocol(port)));
    if resolution != Resolution::None && entry.hosts.len() > 1 {
        let port = protocols().find(|(_, protocol)| !protocol.is_http() && !protocol.is_tls());
        if let Some((port, _)) = port {
            let message = "several hosts share a port on which nothing names the host";
            let help =
                "use one ServiceEntry a host, or a protocol that names it (HTTP, TLS, HTTPS)";
            reader.error("hosts-port", port.span, message, help);
        }
    }
    if matches!(resolution, Resolution::Dns | Resolution::DnsRoundRobin)
        && !entry.addresses.is_empty()
        && entry.hosts.len() > 1
    {
        let opaque = |p| !Protocol::is_http(p) && !matches!(p, Protocol::Udp | Protocol::Unset);
        if let Some((port, _)) = protocols().find(|(_, protocol)| opaque(*protocol)) {
            let message = "several hosts share the addresses of an opaque port";
            reader.warn(
                "hosts-addresses",
                port.span,
                message,
                "use one ServiceEntry a host",
            );
        }
    }
}

fn check_dynamic_dns(reader: &mut Reader<'_>, entry: &ServiceEntry) {
    for (index, host) in entry.hosts.iter().enumerate() {
        if !host.starts_with('*') {
            let message = format!("{:?} has no wildcard, which DYNAMIC_DNS needs", &***host);
            reader.within("hosts", |reader| {
                reader.at_index(index, |reader| {
                    reader.error(
                        "host-resolution",
                        host.span,
                        message,
                        "use resolution DNS for full names",
                    );
                });
            });
        }
    }
    if let Some(address) = entry.addresses.first() {
        reader.within("addresses", |reader| {
            let message = "addresses have no place under resolution DYNAMIC_DNS";
            reader.error("address-resolution", address.span, message, "remove them");
        });
    }
    for (index, port) in entry.ports.iter().enumerate() {
        let word = port.protocol.as_ref().map_or("", |word| &***word);
        let fits = ["http", "tls", "grpc", "http2"]
            .iter()
            .any(|fits| word.eq_ignore_ascii_case(fits));
        if !fits {
            reader.within("ports", |reader| {
                reader.at_index(index, |reader| {
                    let message = format!(
                        "protocol {word:?} does not name the host, which DYNAMIC_DNS needs"
                    );
                    reader.error(
                        "protocol-resolution",
                        port.span,
                        message,
                        "use HTTP, HTTP2, GRPC or TLS",
                    );
                });
            });
        }
    }
    if let Some(Spanned {
        value: Location::Internal,
        span,
    }) = entry.location
        && reader.waypoint
    {
        let message = "DYNAMIC_DNS with MESH_INTERNAL does not work behind a waypoint";
        reader.error(
            "location-resolution",
            span,
            message,
            "remove the label istio.io/use-waypoint",
        );
    }
}

fn check_endpoint(reader: &mut Reader<'_>, entry: &ServiceEntry, endpoint: &Endpoint) {
    let resolution = entry.resolution();
    let address = endpoint.address.as_ref();
    let span = address.map_or(endpoint.span, |address| address.span);
    let text = address.map_or("", |address| &***address);
    reader.within("address", |reader| {
        check_endpoint_address(reader, entry, endpoint, text, span);
    });
    let lengths = [
        ("locality", &endpoint.locality, 2048),
        ("network", &endpoint.network, 2048),
        ("serviceAccount", &endpoint.service_account, 253),
        ("address", &endpoint.address, 256),
    ];
    for (name, text, most) in lengths {
        if let Some(text) = text
            && text.chars().count() > most
        {
            let message = format!("`{name}` has more than {most} characters");
            reader.within(name, |reader| {
                reader.error("too-long", text.span, message, "shorten it");
            });
        }
    }
    for (name, written) in [
        ("network", &endpoint.network),
        ("serviceAccount", &endpoint.service_account),
    ] {
        if let Some(written) = written {
            reader.within(name, |reader| {
                reader.no_meaning(written.span, name, "it belongs to the mesh");
            });
        }
    }
    if endpoint.labels.len() > 256 {
        reader.error(
            "too-many",
            endpoint.span,
            "an endpoint has at most 256 labels",
            "remove some",
        );
    }
    if let Some(ports) = &endpoint.ports {
        reader.within("ports", |reader| {
            if ports.value.len() > 128 {
                let message = "an endpoint has at most 128 ports";
                reader.error("too-many", ports.span, message, "remove some");
            }
            for (name, number) in &ports.value {
                reader.at_key(name, |reader| {
                    check_endpoint_port(reader, entry, name, *number);
                });
            }
        });
    }
    if resolution != Resolution::None {
        reader.within("labels", |reader| check_label_map(reader, &endpoint.labels));
    }
}

fn check_endpoint_port(
    reader: &mut Reader<'_>,
    entry: &ServiceEntry,
    name: &Text,
    number: Spanned<u32>,
) {
    let known = |port: &Port| port.name.as_ref().is_some_and(|n| n.value == name.value);
    if !entry.ports.iter().any(known) && entry.resolution() != Resolution::None {
        let names: Vec<&str> = entry
            .ports
            .iter()
            .filter_map(|port| port.name.as_ref().map(|name| &***name))
            .collect();
        let message = format!("{:?} is not the name of a port of this entry", &***name);
        let help = format!("ports here are: {}", names.join(", "));
        reader.error("endpoint-port", name.span, message, help);
    }
    if name.len() >= 63 || !is_dns_label(name) {
        check_port_name(
            reader,
            if is_dns_label(name) { "" } else { name },
            name.span,
        );
    }
    check_port(reader, number);
}

fn check_endpoint_address(
    reader: &mut Reader<'_>,
    entry: &ServiceEntry,
    endpoint: &Endpoint,
    text: &str,
    span: crate::policy::diagnostic::Span,
) {
    let resolution = entry.resolution();
    if let Some(path) = text.strip_prefix("unix://") {
        let (problem, help) = if !matches!(resolution, Resolution::Static | Resolution::None) {
            (
                "a Unix socket has no place under a DNS resolution",
                "use resolution STATIC",
            )
        } else if !path.starts_with(['/', '@']) || (path.ends_with('/')) {
            (
                "a Unix socket is named by an absolute path to a file, or by `@` and a name",
                "write `unix:///path/to/socket` or `unix://@name`",
            )
        } else if endpoint.ports.is_some() {
            ("a Unix socket has no ports", "remove `ports`")
        } else if entry.ports.len() != 1 && resolution == Resolution::Static {
            (
                "a Unix socket needs an entry with exactly one port",
                "use one ServiceEntry a port",
            )
        } else {
            return;
        };
        reader.error("endpoint-unix", span, problem, help);
        return;
    }
    let network = endpoint.network.as_ref().is_some_and(|n| !n.is_empty());
    match resolution {
        Resolution::Static if text.is_empty() && network => {
            let message = "the endpoint has a network but no address, so nothing can reach it";
            reader.warn("endpoint-address", span, message, "add `address`");
        }
        Resolution::Static if ip(text).is_some() => {}
        Resolution::Dns | Resolution::DnsRoundRobin if ip(text).is_some() || fqdn(text).is_ok() => {
        }
        // Endpoints are wrong there as a whole.
        Resolution::None | Resolution::DynamicDns
            if endpoint.address.is_some() || endpoint.network.is_some() => {}
        _ if text.is_empty() => {
            reader.error(
                "required",
                span,
                "an endpoint needs an `address`",
                "add `address`",
            );
        }
        Resolution::Static => {
            let message = format!("{text:?} is not an IP address, which resolution STATIC needs");
            reader.error(
                "endpoint-address",
                span,
                message,
                "write an IP address, or use resolution DNS",
            );
        }
        _ => {
            let message = format!("{text:?} is neither an IP address nor a host name");
            reader.error(
                "endpoint-address",
                span,
                message,
                "write an address or a full name",
            );
        }
    }
}
