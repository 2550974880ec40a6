//! Names: hosts, labels, ports, addresses, `exportTo`.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::policy::diagnostic::Span;
use crate::policy::schema::reader::Reader;
use crate::policy::schema::{Entries, Spanned, Text};

const LABEL_MAX: usize = 63;
const DOMAIN_MAX: usize = 255;

/// A DNS label; upper case is allowed.
pub fn is_dns_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() <= LABEL_MAX
        && bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
        && bytes
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || *b == b'-')
}

/// A DNS label, `*`, or a label behind `*` or `*-`.
fn is_wildcard_label(text: &str) -> bool {
    if text.len() > LABEL_MAX {
        return false;
    }
    match text.strip_prefix('*') {
        None => is_dns_label(text),
        Some("") => true,
        Some(rest) => is_dns_label(rest.strip_prefix('-').unwrap_or(rest)),
    }
}

fn check_size(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("a host name must not be empty".into());
    }
    if name.len() > DOMAIN_MAX {
        return Err(format!(
            "the host name has {} characters; at most {DOMAIN_MAX} are allowed",
            name.len()
        ));
    }
    Ok(())
}

fn check_labels(domain: &str, whole: &str) -> Result<(), String> {
    let labels: Vec<&str> = domain.split('.').collect();
    let last = labels.last().copied().unwrap_or_default();
    if last.parse::<i64>().is_ok() {
        return Err(format!(
            "{whole:?} is not a host name: its last label {last:?} is a number"
        ));
    }
    for (index, label) in labels.iter().enumerate() {
        // One trailing dot is allowed.
        if label.is_empty() && index + 1 == labels.len() {
            return Ok(());
        }
        if !is_dns_label(label) {
            return Err(format!(
                "{whole:?} is not a host name: the label {label:?} is not valid"
            ));
        }
    }
    Ok(())
}

/// A full name without wildcards.
pub fn fqdn(name: &str) -> Result<(), String> {
    check_size(name)?;
    check_labels(name, name)
}

/// A full name whose first label may be or hold a wildcard.
pub fn wildcard_host(name: &str) -> Result<(), String> {
    check_size(name)?;
    let (first, rest) = name
        .split_once('.')
        .map_or((name, None), |(first, rest)| (first, Some(rest)));
    if !is_wildcard_label(first) {
        return Err(format!(
            "{name:?} is not a host name: the label {first:?} is not valid"
        ));
    }
    rest.map_or(Ok(()), |rest| check_labels(rest, name))
}

/// Hosts of a VirtualService that is bound to gateways alone may also be names
/// that Istio makes for itself: `outbound_.80_._.host`.
pub fn gateway_host(name: &str, sni: bool) -> Result<(), String> {
    check_size(name)?;
    if sni && name.starts_with("outbound_") {
        let parts: Vec<&str> = name.split('_').collect();
        let port = parts.get(1).map(|part| part.trim_matches('.'));
        let host = parts.get(3).map(|part| part.trim_matches('.'));
        return match (port, host) {
            (Some(port), Some(host))
                if port.bytes().any(|b| b.is_ascii_digit())
                    && host.bytes().any(|b| b.is_ascii_alphabetic()) =>
            {
                Ok(())
            }
            _ => Err(format!(
                "{name:?} is not of the form outbound_.PORT_._.HOST"
            )),
        };
    }
    wildcard_host(name)
}

/// An IP address; a zone may follow an IPv6 one.
pub fn ip(text: &str) -> Option<IpAddr> {
    match text.split_once('%') {
        Some((address, zone)) if !zone.is_empty() => match address.parse().ok()? {
            IpAddr::V6(address) => Some(IpAddr::V6(address)),
            IpAddr::V4(_) => None,
        },
        _ => text.parse().ok(),
    }
}

/// An IP address, or a network in CIDR form; bits past the prefix may be set.
pub fn subnet(text: &str) -> Result<IpNet, String> {
    let Some((address, bits)) = text.split_once('/') else {
        return ip(text)
            .map(IpNet::from)
            .ok_or_else(|| format!("{text:?} is not an IP address"));
    };
    let bad = || format!("{text:?} is not a CIDR block");
    let address: IpAddr = address.parse().map_err(|_| bad())?;
    let plain = !bits.is_empty()
        && bits.len() <= 3
        && bits.bytes().all(|b| b.is_ascii_digit())
        && (bits.len() == 1 || !bits.starts_with('0'));
    if !plain {
        return Err(bad());
    }
    let bits = bits.parse().map_err(|_| bad())?;
    IpNet::new(address, bits).map_err(|_| bad())
}

/// Key of a label: an optional DNS prefix and `/`, then a name.
pub fn label_key(key: &str) -> bool {
    let name = match key.rsplit_once('/') {
        Some((prefix, name)) => {
            // Labels of a prefix have no bound of their own in Istio.
            let label = |label: &str| label.len() <= 253 && is_alphanumeric_within(label, b"-");
            if prefix.len() > 253 || !prefix.split('.').all(label) {
                return false;
            }
            name
        }
        None => key,
    };
    name.len() <= LABEL_MAX && is_alphanumeric_within(name, b"-_.")
}

/// Value of a label.
pub fn label_value(value: &str) -> bool {
    value.is_empty() || (value.len() <= LABEL_MAX && is_alphanumeric_within(value, b"-_."))
}

fn is_alphanumeric_within(text: &str, inner: &[u8]) -> bool {
    let bytes = text.as_bytes();
    bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
        && bytes
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || inner.contains(b))
}

/// Reports labels that are none.
pub fn check_label_map(reader: &mut Reader<'_>, labels: &Entries<Text>) {
    for (key, value) in labels {
        reader.at_key(key, |reader| {
            if !label_key(key) {
                let message = format!("{:?} is not a label key", &***key);
                let help = "letters, digits, `-`, `_` and `.`, at most 63, after an optional DNS name and `/`";
                reader.error("label", key.span, message, help);
            }
            if !label_value(value) {
                let message = format!("{:?} is not a label value", &***value);
                let help = "letters, digits, `-`, `_` and `.`, at most 63";
                reader.error("label", value.span, message, help);
            }
        });
    }
}

/// Reports a selector with wildcards, empty keys, long values, more than `most`
/// labels, or nothing in it.
pub fn check_selector(reader: &mut Reader<'_>, labels: &Entries<Text>, most: usize, span: Span) {
    if labels.len() > most {
        let message = format!(
            "the selector has {} labels; at most {most} are allowed",
            labels.len()
        );
        reader.error("too-many", span, message, "remove some");
    }
    for (key, value) in labels {
        if key.is_empty() {
            reader.error(
                "selector",
                value.span,
                "a selector must not have an empty key",
                "name the label",
            );
        }
        if key.contains('*') || value.contains('*') {
            let message = format!(
                "wildcards do not work in a selector: {:?}",
                format!("{}={}", &***key, &***value)
            );
            reader.error("selector", value.span, message, "write whole labels");
        }
        if value.chars().count() > LABEL_MAX {
            let message = format!("a label value has at most {LABEL_MAX} characters");
            reader.error("label", value.span, message, "shorten it");
        }
    }
    if labels.is_empty() {
        reader.warn(
            "selector-empty",
            span,
            "the workload selector has no labels, so it selects everything",
            "add labels, or remove the selector",
        );
    }
}

/// Reports a port that is none.
pub fn check_port(reader: &mut Reader<'_>, port: Spanned<u32>) -> bool {
    if (1..=65535).contains(&port.value) {
        return true;
    }
    let message = format!("port {} is not between 1 and 65535", port.value);
    reader.error("port-range", port.span, message, "write a port number");
    false
}

/// Reports the name of a port that is none.
pub fn check_port_name(reader: &mut Reader<'_>, name: &str, span: Span) {
    if !is_dns_label(name) {
        let message = format!("{name:?} is not a port name");
        let help =
            "letters, digits and `-`, at most 63, starting and ending with a letter or digit";
        reader.error("port-name", span, message, help);
    }
}

/// Which kind of document an `exportTo` stands in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exported {
    /// A ServiceEntry: `~` is allowed.
    Service,
    /// A DestinationRule with a workloadSelector: only the own namespace is.
    SelectedRule,
    /// Any other.
    Other,
}

/// Reports an `exportTo` that contradicts itself.
pub fn check_export_to(reader: &mut Reader<'_>, list: &[Text], kind: Exported) {
    let own = reader.namespace.clone();
    let mut seen: Vec<&str> = Vec::new();
    for (index, entry) in list.iter().enumerate() {
        let name: &str = if &***entry == "." { &own } else { entry };
        reader.at_index(index, |reader| {
            if seen.contains(&name) {
                let message = if name == &***entry {
                    format!("{name:?} stands in exportTo twice")
                } else {
                    format!("`.` and {name:?} are the same namespace")
                };
                reader.error("export-to", entry.span, message, "remove one of them");
                return;
            }
            let fits = match name {
                "*" => true,
                "~" => kind == Exported::Service,
                name => is_dns_label(name),
            };
            if fits {
                seen.push(name);
            } else {
                let message = format!("{name:?} cannot stand in exportTo");
                let help = match (name, kind) {
                    ("~", _) => "`~` is for a ServiceEntry; here, leave the document out",
                    (_, Exported::Service) => "write `.`, `*`, `~` or a namespace",
                    _ => "write `.`, `*` or a namespace",
                };
                reader.error("export-to", entry.span, message, help);
            }
        });
    }
    let Some(first) = list.first() else { return };
    if kind == Exported::SelectedRule
        && !seen.is_empty()
        && !(seen.len() == 1 && seen.contains(&&*own))
    {
        reader.error(
            "export-to",
            first.span,
            "a rule with a workloadSelector acts in its own namespace only",
            "write `exportTo: [\".\"]`, or remove the workloadSelector",
        );
    }
    for (all, words) in [("*", "everyone"), ("~", "nobody")] {
        if list.len() > 1 && seen.contains(&all) {
            let message = format!("`{all}` means {words} and cannot stand with other namespaces");
            reader.error("export-to", first.span, message, "keep one or the other");
        }
    }
}
