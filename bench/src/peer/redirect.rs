//! nftables rules as a sidecar's: what programs send to the services' ports
//! goes to the proxy, but for what the proxy itself sends.

use std::fmt::Write as _;

use anyhow::Result;

use crate::arena::Arena;
use crate::services::Service;

/// The user that the proxy runs as, which is how its own connections are
/// known. Istio's number.
pub(super) const PROXY_USER: u32 = 1337;

/// The rules; gone with everything that connection tracking remembers when
/// this is dropped, for a later peer must not inherit either.
pub(crate) struct Redirect<'a> {
    arena: &'a Arena,
}

impl<'a> Redirect<'a> {
    pub(super) fn new(arena: &'a Arena, services: &[Service], port: u16) -> Result<Self> {
        let mut ports = String::new();
        for service in services {
            let separator = if ports.is_empty() { "" } else { ", " };
            // Writing to a string cannot fail.
            let _ = write!(ports, "{separator}{}", service.port);
        }
        let rules = format!(
            "table ip bench {{
    chain output {{
        type nat hook output priority -100;
        meta skuid {PROXY_USER} return
        ip daddr 203.0.113.0/24 tcp dport {{ {ports} }} redirect to :{port}
    }}
}}
"
        );
        arena
            .lab
            .outsider("nft")
            .args(["-f", "-"])
            .input(rules)
            .output()?
            .text()?;
        Ok(Self { arena })
    }
}

impl Drop for Redirect<'_> {
    fn drop(&mut self) {
        let run = |program: &str, arguments: &[&str]| {
            self.arena.lab.outsider(program).args(arguments).output()
        };
        for (program, arguments) in [
            ("nft", &["delete", "table", "ip", "bench"][..]),
            ("conntrack", &["-F"][..]),
        ] {
            if let Err(error) = run(program, arguments).and_then(lab::process::Finished::text) {
                eprintln!("bench: redirect rules could not be taken away: {error:#}");
            }
        }
    }
}
