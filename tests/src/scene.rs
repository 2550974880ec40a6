//! What many tests begin with.

use crate::agent::Builder;
use crate::certificates::Authority;
use crate::dns::NameServer;
use crate::nginx::{Nginx, RunningNginx};
use crate::{Lab, RESOLVER, Result, policy};

/// The host of the external service.
pub const HOST: &str = "api.secure-service.com";
/// Its real address.
pub const REAL: &str = "203.0.113.10";
/// Its real IPv6 address, which its DNS record does not name.
pub const REAL6: &str = "2001:db8:1::10";

/// A lab with an external service that speaks nothing but TLS.
pub struct TlsUpstream {
    // Guards are dropped in this order, the lab last.
    /// The service.
    pub nginx: RunningNginx,
    /// The name server that knows its real address.
    pub dns: NameServer,
    /// The authority that signed its certificate.
    pub authority: Authority,
    /// Path of that authority's certificate.
    pub ca: String,
    /// The lab.
    pub lab: Lab,
}

impl TlsUpstream {
    /// Makes the lab and starts the servers.
    pub fn new() -> Result<Self> {
        let lab = Lab::new()?;
        let authority = Authority::new(&lab, "world")?;
        let certificate = authority.issue(&[HOST])?;
        let dns = NameServer::start(&lab, RESOLVER, &format!("{REAL} {HOST}\n"))?;
        let nginx = Nginx::new(&lab, "api")
            .https(&format!("{REAL}:443"), &certificate)?
            .https(&format!("[{REAL6}]:443"), &certificate)?
            .start()?;
        Ok(Self {
            ca: authority.path().display().to_string(),
            nginx,
            dns,
            authority,
            lab,
        })
    }

    /// An agent with the document of basic TLS origination for the service.
    pub fn agent(&self) -> Result<Builder<'_>> {
        self.lab
            .agent()
            .policy("api", &policy::tls_origination(HOST, self.ca.as_ref()))
    }
}
