//! Who is asked for the names of one policy namespace, and from where.

use std::path::PathBuf;

use super::{Fault, NameServer, NamespaceName, Scalar};

/// `NAMESPACE=ADDR[:PORT][@NETNS]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NamespaceServer {
    /// Whose ServiceEntries.
    pub namespace: NamespaceName,
    /// The name server.
    pub server: NameServer,
    /// File of the network namespace that it is asked from; `None`: the
    /// agent's own.
    pub netns: Option<PathBuf>,
}

impl Scalar for NamespaceServer {
    fn parse(text: &str) -> Result<Self, Fault> {
        let (namespace, rest) = text.split_once('=').ok_or_else(|| {
            Fault::new(format!(
                "`{text}` is not `NAMESPACE=ADDR[:PORT][@NETNS]`, as in `payments=10.0.0.2` or \
                 `payments=10.0.0.2:5353@/run/netns/payments`"
            ))
        })?;
        let (server, netns) = match rest.split_once('@') {
            Some((server, path)) if path.starts_with('/') => (server, Some(PathBuf::from(path))),
            Some((_, path)) => {
                return Err(Fault::new(format!(
                    "`{path}` is not the file of a network namespace, as in `/run/netns/payments`"
                )));
            }
            None => (rest, None),
        };
        Ok(Self {
            namespace: NamespaceName::parse(namespace)?,
            server: NameServer::parse(server)?,
            netns,
        })
    }
}

/// A domain that is tried behind single labels.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SearchDomain(pub String);

impl Scalar for SearchDomain {
    fn parse(text: &str) -> Result<Self, Fault> {
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        };
        let name = text.strip_suffix('.').unwrap_or(text);
        if name.len() > 253 || !name.split('.').all(label) {
            return Err(Fault::new(format!(
                "`{text}` is not a domain name, as in `corp.example.com`"
            )));
        }
        Ok(Self(name.to_ascii_lowercase()))
    }
}

/// `NAMESPACE=DOMAIN`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NamespaceSearch {
    /// Whose ServiceEntries.
    pub namespace: NamespaceName,
    /// The domain.
    pub domain: SearchDomain,
}

impl Scalar for NamespaceSearch {
    fn parse(text: &str) -> Result<Self, Fault> {
        let (namespace, domain) = text.split_once('=').ok_or_else(|| {
            Fault::new(format!(
                "`{text}` is not `NAMESPACE=DOMAIN`, as in `payments=corp.example.com`"
            ))
        })?;
        Ok(Self {
            namespace: NamespaceName::parse(namespace)?,
            domain: SearchDomain::parse(domain)?,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn a_server_of_a_namespace_may_stand_in_a_network_namespace() {
        let plain = NamespaceServer::parse("payments=10.0.0.2").unwrap();
        assert_eq!(&*plain.namespace.0, "payments");
        assert_eq!(plain.server.0, "10.0.0.2:53".parse().unwrap());
        assert_eq!(plain.netns, None);
        let inside = NamespaceServer::parse("payments=[2001:db8::53]:5353@/run/netns/a").unwrap();
        assert_eq!(inside.server.0, "[2001:db8::53]:5353".parse().unwrap());
        assert_eq!(inside.netns, Some("/run/netns/a".into()));
        for wrong in ["10.0.0.2", "payments=", "payments=x", "payments=10.0.0.2@a"] {
            assert!(NamespaceServer::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn domains_are_names() {
        let search = NamespaceSearch::parse("payments=Corp.Example.com.").unwrap();
        assert_eq!(search.domain.0, "corp.example.com");
        for wrong in ["corp.example", "a=", "a=b..c", "a=b c"] {
            assert!(NamespaceSearch::parse(wrong).is_err(), "{wrong}");
        }
    }
}
