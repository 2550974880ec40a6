//! Rules of `VirtualService`.

use super::names::{
    Exported, check_export_to, check_label_map, check_port, fqdn, gateway_host, ip, is_dns_label,
    subnet, wildcard_host,
};
use super::reachable;
use super::route::{Place, check_destinations, check_http};
use crate::policy::schema::Text;
use crate::policy::schema::reader::Reader;
use crate::policy::schema::virtual_service::{OpaqueMatch, OpaqueRoute, VirtualService};

/// Reports everything that is wrong with a VirtualService.
pub fn check(reader: &mut Reader<'_>, service: &VirtualService) {
    let delegate = service.hosts.is_empty();
    if delegate {
        for (name, written) in [
            ("gateways", !service.gateways.is_empty()),
            ("tls", !service.tls.is_empty()),
            ("tcp", !service.tcp.is_empty()),
        ] {
            if written {
                let message = format!(
                    "a VirtualService without hosts, which others delegate to, cannot have `{name}`"
                );
                reader.error(
                    "delegate",
                    service.span,
                    message,
                    format!("add `hosts`, or remove `{name}`"),
                );
            }
        }
        let why = "it has no hosts and VirtualServices are not chained";
        reader.no_meaning(service.span, "this VirtualService", why);
    }
    reader.within("gateways", |reader| {
        check_gateways(reader, &service.gateways);
        if service.for_gateways_only()
            && let Some(first) = service.gateways.first()
        {
            reader.no_meaning(
                first.span,
                "this VirtualService",
                "it is bound to gateways and not to `mesh`",
            );
        }
    });
    check_hosts(reader, service);
    if service.http.is_empty() && service.tls.is_empty() && service.tcp.is_empty() {
        let message = "a VirtualService needs `http`, `tls` or `tcp` routes";
        reader.error("required", service.span, message, "add one of them");
    }
    let place = Place {
        delegate,
        gateways_only: service.for_gateways_only(),
    };
    for (index, route) in service.http.iter().enumerate() {
        reader.within("http", |reader| {
            reader.at_index(index, |reader| check_http(reader, route, place));
        });
    }
    for (index, route) in service.tls.iter().enumerate() {
        reader.within("tls", |reader| {
            reader.at_index(index, |reader| check_tls(reader, service, route));
        });
    }
    for (index, route) in service.tcp.iter().enumerate() {
        reader.within("tcp", |reader| {
            reader.at_index(index, |reader| check_opaque(reader, route));
        });
    }
    reader.within("exportTo", |reader| {
        check_export_to(reader, &service.export_to, Exported::Other);
    });
    reachable::check(reader, service);
}

/// Names of gateways. After one without a namespace Istio looks at no more.
pub fn check_gateways(reader: &mut Reader<'_>, gateways: &[Text]) {
    for (index, gateway) in gateways.iter().enumerate() {
        let Some((namespace, name)) = gateway.split_once('/') else {
            reader.at_index(index, |reader| {
                if let Some((name, rest)) = gateway.split_once('.') {
                    let namespace = rest.split('.').next().unwrap_or_default();
                    let message = format!("{:?} is the old form of a gateway's name", &***gateway);
                    reader.warn(
                        "old-form",
                        gateway.span,
                        message,
                        format!("write {namespace}/{name}"),
                    );
                }
                if let Err(problem) = fqdn(gateway) {
                    reader.error(
                        "gateway",
                        gateway.span,
                        problem,
                        "write NAMESPACE/NAME, or mesh",
                    );
                }
            });
            return;
        };
        for (what, part) in [("namespace", namespace), ("name", name)] {
            if !is_dns_label(part) {
                reader.at_index(index, |reader| {
                    let message = format!("{part:?} is not the {what} of a gateway");
                    reader.error(
                        "gateway",
                        gateway.span,
                        message,
                        "write NAMESPACE/NAME, or mesh",
                    );
                });
            }
        }
    }
}

fn check_hosts(reader: &mut Reader<'_>, service: &VirtualService) {
    let gateways = service.for_gateways_only();
    let sni = service
        .tls
        .iter()
        .flat_map(|route| &route.matches)
        .any(|rule| !rule.sni_hosts.is_empty());
    let mut valid = true;
    for (index, host) in service.hosts.iter().enumerate() {
        let problem = if gateways {
            gateway_host(host, sni)
        } else {
            wildcard_host(host)
        };
        let (problem, help) = match problem {
            Err(problem) if ip(host).is_none() => (problem, "write a DNS name or an IP address"),
            Ok(()) if &***host == "*" && !gateways => (
                "`*` would catch the traffic of every service".to_owned(),
                "name the hosts, or a domain as `*.example.com`",
            ),
            _ => continue,
        };
        valid = false;
        reader.within("hosts", |reader| {
            reader.at_index(index, |reader| {
                reader.error("host", host.span, problem, help);
            });
        });
    }
    if !valid {
        return;
    }
    for (index, host) in service.hosts.iter().enumerate() {
        let earlier = &service.hosts[..index];
        if let Some(other) = earlier.iter().find(|other| overlap(other, host)) {
            let message = format!(
                "{:?} and {:?} are the same or cover each other",
                &***other, &***host
            );
            reader.within("hosts", |reader| {
                reader.at_index(index, |reader| {
                    reader.error("host-duplicate", host.span, message, "keep the wider one");
                });
            });
        }
    }
}

/// Whether one of two hosts covers the other.
fn overlap(a: &str, b: &str) -> bool {
    match (a.strip_prefix('*'), b.strip_prefix('*')) {
        (Some(a), Some(b)) => a.ends_with(b) || b.ends_with(a),
        (Some(a), None) => b.ends_with(a),
        (None, Some(b)) => a.ends_with(b),
        (None, None) => a == b,
    }
}

/// Whether `narrow` lies within `wide`.
fn within(narrow: &str, wide: &str) -> bool {
    match (narrow.strip_prefix('*'), wide.strip_prefix('*')) {
        (Some(narrow), Some(wide)) => narrow.ends_with(wide),
        (Some(_), None) => false,
        (None, Some(wide)) => narrow.ends_with(wide),
        (None, None) => narrow == wide,
    }
}

fn check_tls(reader: &mut Reader<'_>, service: &VirtualService, route: &OpaqueRoute) {
    if route.matches.is_empty() {
        reader.required(route.span, "match");
    }
    for (index, rule) in route.matches.iter().enumerate() {
        reader.within("match", |reader| {
            reader.at_index(index, |reader| {
                if rule.sni_hosts.is_empty() {
                    reader.required(rule.span, "sniHosts");
                }
                for (index, host) in rule.sni_hosts.iter().enumerate() {
                    reader.within("sniHosts", |reader| {
                        reader.at_index(index, |reader| check_sni(reader, service, host));
                    });
                }
            });
        });
    }
    check_opaque(reader, route);
}

fn check_sni(reader: &mut Reader<'_>, service: &VirtualService, host: &Text) {
    // Istio takes an empty list of gateways for gateways here.
    let mesh = service.gateways.iter().any(|name| &***name == "mesh");
    let problem = if mesh {
        wildcard_host(host)
    } else {
        gateway_host(host, true)
    };
    if let Err(problem) = problem {
        if ip(host).is_some() {
            let message = format!("{:?} is an address, which no client sends as SNI", &***host);
            reader.warn(
                "sni-address",
                host.span,
                message,
                "match `destinationSubnets` of a tcp route",
            );
        } else {
            reader.error("host", host.span, problem, "write a DNS name");
        }
        return;
    }
    if !service.hosts.iter().any(|wide| within(host, wide)) {
        let hosts: Vec<&str> = service.hosts.iter().map(|host| &***host).collect();
        let message = format!(
            "{:?} lies outside of the hosts of this VirtualService",
            &***host
        );
        reader.error(
            "sni-host",
            host.span,
            message,
            format!("hosts are: {}", hosts.join(", ")),
        );
    }
}

fn check_opaque(reader: &mut Reader<'_>, route: &OpaqueRoute) {
    for (index, rule) in route.matches.iter().enumerate() {
        reader.within("match", |reader| {
            reader.at_index(index, |reader| check_opaque_match(reader, rule));
        });
    }
    if route.route.is_empty() {
        reader.required(route.span, "route");
    }
    reader.within("route", |reader| check_destinations(reader, &route.route));
}

fn check_opaque_match(reader: &mut Reader<'_>, rule: &OpaqueMatch) {
    for (index, network) in rule.destination_subnets.iter().enumerate() {
        if let Err(problem) = subnet(network) {
            reader.within("destinationSubnets", |reader| {
                reader.at_index(index, |reader| {
                    let help = "write an IP address or a network such as 192.0.2.0/24";
                    reader.error("address", network.span, problem, help);
                });
            });
        }
    }
    if let Some(port) = rule.port
        && port.value != 0
    {
        reader.within("port", |reader| check_port(reader, port));
    }
    if let Some(old) = &rule.source_subnet {
        reader.no_meaning(
            old.span,
            "sourceSubnet",
            "it was given up; use sourceLabels or sourceNamespace",
        );
    }
    reader.within("sourceLabels", |reader| {
        check_label_map(reader, &rule.source_labels);
    });
    reader.within("gateways", |reader| check_gateways(reader, &rule.gateways));
}
