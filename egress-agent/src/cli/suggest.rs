//! From unregistered destinations to ServiceEntry documents that register
//! them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

use crate::admin::view::Unregistered;

/// Most hosts by address; more are one network that a person should name.
const UNNAMED: usize = 64;

/// What one document registers.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Target {
    Name(String),
    Address(IpAddr),
}

#[derive(Debug, Default)]
struct Entry {
    ports: BTreeSet<u16>,
    callers: BTreeSet<String>,
    other_names: BTreeSet<String>,
    count: u64,
}

/// YAML that `validate` accepts: a ServiceEntry for each namespace and name,
/// visible in that namespace alone. Destinations without a name are entered by
/// their address. What cannot be registered stands in comments.
pub(super) fn suggest(rows: &[Unregistered]) -> String {
    let mut entries: BTreeMap<(String, Target), Entry> = BTreeMap::new();
    let mut datagrams: BTreeSet<String> = BTreeSet::new();
    let tcp: BTreeSet<(&str, &str)> = rows
        .iter()
        .filter(|row| row.transport == "tcp")
        .map(|row| (row.namespace.as_str(), row.destination.as_str()))
        .collect();
    for row in rows {
        let Ok(destination) = row.destination.parse::<SocketAddr>() else {
            continue;
        };
        if row.transport != "tcp" {
            // Resolvers connect a datagram socket to each address of a name, to
            // sort them, and QUIC clients fall back: TCP says it all.
            if !tcp.contains(&(row.namespace.as_str(), row.destination.as_str())) {
                datagrams.insert(format!(
                    "# {} of {}: UDP to {}",
                    comment(&row.workload),
                    comment(&row.namespace),
                    row.destination
                ));
            }
            continue;
        }
        if destination.port() == 0 {
            continue;
        }
        let mut names = row.names.iter().filter(|name| is_host(name));
        let target = match names.next() {
            Some(name) => Target::Name(name.to_ascii_lowercase()),
            None => Target::Address(destination.ip()),
        };
        let entry = entries.entry((row.namespace.clone(), target)).or_default();
        entry.ports.insert(destination.port());
        entry.callers.insert(row.workload.clone());
        entry.other_names.extend(names.cloned());
        entry.count += row.count;
    }
    write(&entries, &datagrams)
}

fn write(entries: &BTreeMap<(String, Target), Entry>, datagrams: &BTreeSet<String>) -> String {
    let mut text = String::new();
    let mut unnamed = 0;
    let mut first = true;
    for ((namespace, target), entry) in entries {
        if matches!(target, Target::Address(_)) {
            unnamed += 1;
            if unnamed > UNNAMED {
                continue;
            }
        }
        if !first {
            text.push_str("---\n");
        }
        first = false;
        // Writing to a string cannot fail.
        let _ = document(&mut text, namespace, target, entry);
    }
    if unnamed > UNNAMED {
        let _ = writeln!(
            text,
            "# {} more destinations have no name; see `egressctl observe`",
            unnamed - UNNAMED
        );
    }
    if !datagrams.is_empty() {
        text.push_str(
            "# Services are reached over TCP. Under `registry-only`, allow these with the\n\
             # setting `outbound-allow` if they are needed:\n",
        );
        for line in datagrams {
            let _ = writeln!(text, "{line}");
        }
    }
    text
}

fn document(
    text: &mut String,
    namespace: &str,
    target: &Target,
    entry: &Entry,
) -> std::fmt::Result {
    let callers: Vec<String> = entry.callers.iter().map(|name| comment(name)).collect();
    writeln!(
        text,
        "# {} connections of {}",
        entry.count,
        callers.join(", ")
    )?;
    if !entry.other_names.is_empty() {
        let others: Vec<String> = entry.other_names.iter().map(|name| comment(name)).collect();
        writeln!(text, "# the address is also that of {}", others.join(", "))?;
    }
    let host = match target {
        Target::Name(name) => name.clone(),
        // A name that no DNS has (RFC 6761 section 6.4): the address decides.
        Target::Address(ip) => format!("{}.unnamed.invalid", label(&ip.to_string())),
    };
    write!(
        text,
        "apiVersion: networking.istio.io/v1\n\
         kind: ServiceEntry\n\
         metadata:\n  name: {}\n  namespace: {namespace}\n\
         spec:\n  hosts: [\"{host}\"]\n",
        label(&host)
    )?;
    if let Target::Address(ip) = target {
        writeln!(text, "  addresses: [\"{ip}\"]")?;
    }
    text.push_str("  exportTo: [\".\"]\n  location: MESH_EXTERNAL\n  ports:\n");
    for port in &entry.ports {
        let (name, protocol) = protocol(*port);
        writeln!(
            text,
            "    - number: {port}\n      name: {name}-{port}\n      protocol: {protocol}"
        )?;
    }
    match target {
        Target::Name(_) => text.push_str("  resolution: DNS\n"),
        Target::Address(ip) => write!(
            text,
            "  resolution: STATIC\n  endpoints:\n    - address: \"{ip}\"\n"
        )?,
    }
    Ok(())
}

/// What a port usually carries. Where in doubt TCP, which never looks inside.
const fn protocol(port: u16) -> (&'static str, &'static str) {
    match port {
        80 | 8080 => ("http", "HTTP"),
        443 | 8443 => ("https", "HTTPS"),
        _ => ("tcp", "TCP"),
    }
}

/// Whether a name of a DNS answer can be a host of a ServiceEntry.
fn is_host(name: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let last = name.rsplit('.').next().unwrap_or_default();
    name.len() <= 253
        && name.contains('.')
        && name.split('.').all(label)
        && !last.bytes().all(|b| b.is_ascii_digit())
}

/// A name of a document: an RFC 1123 label.
fn label(text: &str) -> String {
    let plain: String = text
        .to_ascii_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    let plain = plain.trim_matches('-');
    match plain.get(..63) {
        Some(cut) => cut.trim_end_matches('-').to_owned(),
        None => plain.to_owned(),
    }
}

/// Text that stays within its comment.
fn comment(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::fs;

    use proptest::prelude::*;

    use super::*;
    use crate::policy::Options;
    use crate::policy::load::load_paths;

    fn row(namespace: &str, destination: &str, names: &[&str]) -> Unregistered {
        Unregistered {
            namespace: namespace.to_owned(),
            workload: "worker".to_owned(),
            destination: destination.to_owned(),
            transport: "tcp".to_owned(),
            names: names.iter().map(|&name| name.to_owned()).collect(),
            count: 2,
            ..Unregistered::default()
        }
    }

    fn check(text: &str) -> usize {
        let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
        fs::write(file.path(), text).unwrap();
        let loaded = load_paths(&[file.path().to_owned()], &Options::default());
        let problems: Vec<String> = loaded.diagnostics.iter().map(ToString::to_string).collect();
        assert!(loaded.is_valid(), "{text}\n{problems:?}");
        loaded.outcomes.len()
    }

    #[test]
    fn names_and_addresses_become_documents_that_are_valid() {
        let mut quic = row("pay", "192.0.2.9:443", &[]);
        quic.transport = "udp".to_owned();
        let text = suggest(&[
            row(
                "pay",
                "192.0.2.1:443",
                &["api.example.com", "cdn.example.com"],
            ),
            row("pay", "192.0.2.2:443", &["api.example.com"]),
            row("pay", "192.0.2.2:80", &["api.example.com"]),
            row("batch", "192.0.2.1:443", &["api.example.com"]),
            row("pay", "[2001:db8::7]:5432", &[]),
            row("pay", "192.0.2.8:22", &["_odd name", "x"]),
            quic,
        ]);
        assert_eq!(check(&text), 4, "{text}");
        assert_eq!(text.matches("hosts: [\"api.example.com\"]").count(), 2);
        assert!(text.contains("number: 80\n      name: http-80\n      protocol: HTTP\n"));
        assert!(text.contains("also that of cdn.example.com"));
        assert!(text.contains("addresses: [\"2001:db8::7\"]"));
        assert!(text.contains("UDP to 192.0.2.9:443"));
        assert!(text.contains("# 6 connections of worker"));
    }

    #[test]
    fn nothing_seen_suggests_nothing() {
        assert_eq!(suggest(&[]), "");
    }

    proptest! {
        #[test]
        fn whatever_was_seen_the_documents_are_valid(
            name in "[a-zA-Z0-9_.*-]{0,80}",
            workload in any::<String>(),
            address in any::<IpAddr>(),
            port in any::<u16>(),
        ) {
            let mut seen = row("default", &SocketAddr::new(address, port).to_string(), &[&name]);
            seen.workload = workload;
            let text = suggest(&[seen]);
            if port != 0 {
                prop_assert_eq!(check(&text), 1);
            }
        }
    }
}
