//! One record of the agent's access log. The names of its fields stand here
//! and nowhere else in the tests.

use std::fmt;

use serde_json::Value;

use crate::{Context, Result};

/// One connection, or one request.
#[derive(Clone, Debug)]
pub struct Record(Value);

impl Record {
    pub(crate) fn parse(line: &str) -> Result<Self> {
        serde_json::from_str(line)
            .map(Self)
            .with_context(|| line.to_owned())
    }

    fn text(&self, name: &str) -> &str {
        self.0[name].as_str().unwrap_or_default()
    }

    fn number(&self, name: &str) -> u64 {
        self.0[name].as_u64().unwrap_or_default()
    }

    /// Name of the calling process.
    pub fn process(&self) -> &str {
        self.text("comm")
    }

    /// Id of the calling process.
    pub fn pid(&self) -> u64 {
        self.number("pid")
    }

    /// Cookie of its network namespace.
    pub fn netns(&self) -> u64 {
        self.number("netns")
    }

    /// Policy namespace of the caller.
    pub fn namespace(&self) -> &str {
        self.text("namespace")
    }

    /// Workload of the caller.
    pub fn workload(&self) -> &str {
        self.text("workload")
    }

    /// Id of the caller's cgroup.
    pub fn cgroup(&self) -> u64 {
        self.number("cgroup")
    }

    /// User of the calling process.
    pub fn uid(&self) -> u64 {
        self.number("uid")
    }

    /// Host of the service, without its port.
    pub fn service(&self) -> &str {
        let service = self.text("service");
        service.rsplit_once(':').map_or(service, |(host, _)| host)
    }

    /// Address and port of the endpoint.
    pub fn endpoint(&self) -> &str {
        self.text("endpoint")
    }

    /// Envoy's response flags, separated by commas; `-` when all went well.
    pub fn flag(&self) -> &str {
        self.text("response_flags")
    }

    /// What went wrong, in words.
    pub fn detail(&self) -> &str {
        self.text("cause")
    }

    /// How long it took, in milliseconds.
    pub fn duration(&self) -> f64 {
        self.0["duration_ms"].as_f64().unwrap_or_default()
    }

    /// Bytes that the client sent: what the agent received from it
    /// (Envoy's `%BYTES_RECEIVED%`). Of an HTTP request, the body.
    pub fn sent(&self) -> u64 {
        self.number("bytes_received")
    }

    /// Bytes that the client got: what the agent sent to it (Envoy's
    /// `%BYTES_SENT%`). Of an HTTP response, the body.
    pub fn received(&self) -> u64 {
        self.number("bytes_sent")
    }

    /// Whether `flag` is among Envoy's response flags.
    pub fn has_flag(&self, flag: &str) -> bool {
        self.flag().split(',').any(|one| one == flag)
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
