//! What unregistered destinations are to callers of one namespace, and which
//! of them are allowed.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Fault, NamespaceName, Outbound, Scalar};

/// `NAMESPACE=allow-any|registry-only`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NamespaceOutbound {
    /// Callers.
    pub namespace: NamespaceName,
    /// What holds for them.
    pub outbound: Outbound,
}

impl Scalar for NamespaceOutbound {
    fn parse(text: &str) -> Result<Self, Fault> {
        let (namespace, outbound) = text.split_once('=').ok_or_else(|| {
            Fault::new(format!(
                "`{text}` is not `NAMESPACE=allow-any` or `NAMESPACE=registry-only`"
            ))
        })?;
        Ok(Self {
            namespace: NamespaceName::parse(namespace)?,
            outbound: Outbound::parse(outbound)?,
        })
    }
}

/// Addresses, on one port or any.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AllowedDestination {
    /// Addresses.
    pub network: IpNet,
    /// Port; `None`: any.
    pub port: Option<u16>,
}

impl Scalar for AllowedDestination {
    fn parse(text: &str) -> Result<Self, Fault> {
        let fault = || {
            Fault::new(format!(
                "`{text}` is not a network or address with or without a port, as in `192.0.2.0/24`, \
                 `192.0.2.1:123`, `2001:db8::/32` or `[2001:db8::/32]:123`"
            ))
        };
        let network = |text: &str| {
            text.parse::<IpNet>()
                .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
                .map_err(|_| fault())
        };
        if let Ok(network) = network(text) {
            return Ok(Self {
                network,
                port: None,
            });
        }
        let (address, port) = text.rsplit_once(':').ok_or_else(fault)?;
        let port: u16 = port.parse().map_err(|_| fault())?;
        let address = match address.strip_prefix('[') {
            Some(inner) => inner.strip_suffix(']').ok_or_else(fault)?,
            // Bare, the last group of an address would be taken for a port.
            None if address.contains(':') => return Err(fault()),
            None => address,
        };
        if port == 0 {
            return Err(fault());
        }
        Ok(Self {
            network: network(address)?,
            port: Some(port),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn destinations_are_networks_or_addresses_with_or_without_a_port() {
        let parsed = |text: &str| {
            let allowed = AllowedDestination::parse(text).unwrap();
            (allowed.network.to_string(), allowed.port)
        };
        assert_eq!(parsed("192.0.2.0/24"), ("192.0.2.0/24".into(), None));
        assert_eq!(parsed("192.0.2.1:123"), ("192.0.2.1/32".into(), Some(123)));
        assert_eq!(parsed("192.0.2.0/24:53"), ("192.0.2.0/24".into(), Some(53)));
        assert_eq!(parsed("2001:db8::1"), ("2001:db8::1/128".into(), None));
        assert_eq!(
            parsed("[2001:db8::/32]:443"),
            ("2001:db8::/32".into(), Some(443))
        );
        for text in [
            "",
            "example.com",
            "192.0.2.1:0",
            "192.0.2.0/33",
            "[::1]",
            "::1:x",
            "1.2.3.4:",
        ] {
            assert!(AllowedDestination::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_namespace_has_a_mode() {
        let parsed = NamespaceOutbound::parse("pay=registry-only").unwrap();
        assert_eq!(&*parsed.namespace.0, "pay");
        assert_eq!(parsed.outbound, Outbound::RegistryOnly);
        for text in ["pay", "Pay=allow-any", "pay=registry", "=allow-any"] {
            assert!(NamespaceOutbound::parse(text).is_err(), "{text}");
        }
    }
}
