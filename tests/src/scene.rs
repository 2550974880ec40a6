//! What many tests begin with.

use std::time::Duration;

use crate::agent::Builder;
use crate::certificates::{Authority, Certificate};
use crate::dns::NameServer;
use crate::nginx::{Nginx, RunningNginx};
use crate::process::wait_for;
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

/// The host of the service that demands client certificates.
pub const PAY: &str = "pay.example.com";
const PAY_REAL: &str = "203.0.113.50";

/// A lab with a service that demands a client certificate, and tells its serial
/// number at `/who`.
pub struct MutualUpstream {
    // Guards are dropped in this order, the lab last.
    _nginx: RunningNginx,
    _dns: NameServer,
    /// The authority of both sides' certificates.
    pub authority: Authority,
    /// The lab.
    pub lab: Lab,
}

impl MutualUpstream {
    /// Makes the lab and starts the servers.
    pub fn new() -> Result<Self> {
        let lab = Lab::new()?;
        let authority = Authority::new(&lab, "world")?;
        let server = authority.issue(&[PAY])?;
        let lines = format!(
            "ssl_verify_client on;\nssl_client_certificate {};\n\
             location /who {{ return 200 '$ssl_client_serial'; }}\n",
            authority.path().display()
        );
        Ok(Self {
            _nginx: Nginx::new(&lab, "pay")
                .https(&format!("{PAY_REAL}:443"), &server)?
                .with(&lines)
                .start()?,
            _dns: NameServer::start(&lab, RESOLVER, &format!("{PAY_REAL} {PAY}\n"))?,
            authority,
            lab,
        })
    }

    /// A service of bytes, which is why each connection of a client is one
    /// handshake, with these lines of a `tls` block for an identity.
    pub fn policy(identity: &str) -> String {
        let entry =
            policy::tcp(PAY, 80).replace("protocol: TCP", "protocol: TCP\n      targetPort: 443");
        let rule = format!(
            "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: pay, namespace: default}}
spec:
  host: {PAY}
  trafficPolicy:
    tls:
      mode: MUTUAL
      {identity}
"
        );
        policy::join(&[&entry, &rule])
    }

    /// Waits until the service sees this certificate.
    pub fn sees(&self, certificate: &Certificate) -> Result<()> {
        let what = "the service to see the new certificate";
        wait_for(what, Duration::from_secs(10), || {
            let url = format!("http://{PAY}/who");
            let serial = self.lab.curl(&["--fail", &url]).text()?;
            Ok((serial.trim() == certificate.serial).then_some(()))
        })
    }
}
