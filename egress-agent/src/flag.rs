//! The vocabulary that every room uses to say how a connection or request
//! ended: Envoy's response flags, and whose side failed.

use std::fmt;

/// Why a connection or request did not end well, with Envoy's name for it in
/// the access log (`%RESPONSE_FLAGS%`). They are ordered as Envoy writes them
/// (`CORE_RESPONSE_FLAGS`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Flag {
    /// `UH`: no healthy upstream host.
    NoHealthyUpstream,
    /// `UT`: the request timed out.
    UpstreamRequestTimeout,
    /// `LR`: we reset it.
    LocalReset,
    /// `UR`: the upstream reset the stream.
    UpstreamRemoteReset,
    /// `UF`: the upstream connection failed, TLS included.
    UpstreamConnectionFailure,
    /// `UC`: the upstream closed the connection too early.
    UpstreamConnectionTermination,
    /// `UO`: a limit overflowed.
    UpstreamOverflow,
    /// `NR`: no route.
    NoRouteFound,
    /// `DI`: a fault delayed it.
    DelayInjected,
    /// `FI`: a fault aborted it.
    FaultInjected,
    /// `DC`: the client went away.
    DownstreamConnectionTermination,
    /// `URX`: retries or connect attempts are used up.
    UpstreamRetryLimitExceeded,
    /// `SI`: idle for too long.
    StreamIdleTimeout,
    /// `DPE`: the client broke its protocol.
    DownstreamProtocolError,
    /// `UMSDR`: the connection reached its maximum duration.
    UpstreamMaxStreamDurationReached,
    /// `DT`: the connection lived too long.
    DurationTimeout,
    /// `UPE`: the upstream broke its protocol.
    UpstreamProtocolError,
    /// `NC`: no such cluster (destination or subset unknown).
    NoClusterFound,
    /// `DF`: name resolution failed.
    DnsResolutionFailure,
}

impl Flag {
    /// Envoy's short name.
    pub const fn code(self) -> &'static str {
        match self {
            Self::NoHealthyUpstream => "UH",
            Self::UpstreamConnectionFailure => "UF",
            Self::UpstreamOverflow => "UO",
            Self::UpstreamConnectionTermination => "UC",
            Self::UpstreamRemoteReset => "UR",
            Self::LocalReset => "LR",
            Self::UpstreamRequestTimeout => "UT",
            Self::UpstreamRetryLimitExceeded => "URX",
            Self::NoRouteFound => "NR",
            Self::NoClusterFound => "NC",
            Self::UpstreamProtocolError => "UPE",
            Self::DownstreamProtocolError => "DPE",
            Self::DownstreamConnectionTermination => "DC",
            Self::DnsResolutionFailure => "DF",
            Self::DelayInjected => "DI",
            Self::FaultInjected => "FI",
            Self::UpstreamMaxStreamDurationReached => "UMSDR",
            Self::DurationTimeout => "DT",
            Self::StreamIdleTimeout => "SI",
        }
    }
}

impl fmt::Display for Flag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

/// Whose side an error lies on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// The application.
    Downstream,
    /// The external service, its network or its name servers.
    Upstream,
    /// What the operator wrote: policy, settings, credentials.
    Policy,
    /// The agent or the kernel under it.
    Internal,
}
