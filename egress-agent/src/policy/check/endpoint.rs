//! Rules of the endpoints of a ServiceEntry.

use super::names::{check_label_map, check_port, check_port_name, fqdn, ip, is_dns_label};
use crate::policy::schema::reader::Reader;
use crate::policy::schema::service_entry::{Endpoint, Port, Resolution, ServiceEntry};
use crate::policy::schema::{Spanned, Text};

pub(super) fn check_endpoint(reader: &mut Reader<'_>, entry: &ServiceEntry, endpoint: &Endpoint) {
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
