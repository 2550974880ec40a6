//! What is measured: no proxy at all, `egress`, and its peers.

mod bare;
mod egress;
mod envoy;
mod haproxy;
mod nginx;
mod records;
mod redirect;

pub(crate) use egress::policies;
pub(crate) use nginx::STREAM as NGINX_STREAM;
pub(crate) use records::Records;

use anyhow::Result;
use lab::Group;
use serde::{Deserialize, Serialize};

use crate::arena::Arena;
use crate::services::Service;

/// A way from the client to the service.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Name {
    Direct,
    Egress,
    Envoy,
    Haproxy,
    Nginx,
    /// No peer, but the least that a proxy on hyper can cost.
    Bare,
    /// No peer, but the least that any proxy can cost.
    Bytes,
}

impl Name {
    pub(crate) const ALL: [Self; 7] = [
        Self::Direct,
        Self::Egress,
        Self::Envoy,
        Self::Haproxy,
        Self::Nginx,
        Self::Bare,
        Self::Bytes,
    ];

    pub(crate) const fn title(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Egress => "egress",
            Self::Envoy => "Envoy",
            Self::Haproxy => "HAProxy",
            Self::Nginx => "nginx",
            Self::Bare => "bare",
            Self::Bytes => "bytes",
        }
    }

    /// No peer, but what a proxy costs that is of no use.
    pub(crate) const fn is_floor(self) -> bool {
        matches!(self, Self::Bare | Self::Bytes)
    }
}

/// What a proxy says of itself.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counters {
    /// Connections that came from clients.
    pub(crate) connections: u64,
    /// HTTP requests.
    pub(crate) requests: u64,
    /// DNS queries that it answered itself.
    pub(crate) dns: u64,
}

/// A running proxy.
pub(crate) trait Peer {
    fn name(&self) -> Name;
    /// Its main process; none for no proxy.
    fn pid(&self) -> Option<u32>;
    /// Where clients stand whose connections it carries.
    fn group(&self) -> Group;
    /// What clients dial.
    fn target(&self, service: &Service) -> String;
    /// Its own counters; none where there is no proxy.
    fn counters(&self, arena: &Arena, service: &Service) -> Result<Option<Counters>>;
    /// Whether it can carry this service at all.
    fn carries(&self, service: &Service) -> bool;
    /// Called before a round, and undone when the guard is dropped.
    fn engage<'a>(&'a self, arena: &'a Arena) -> Result<Option<redirect::Redirect<'a>>>;
}

/// Starts one.
pub(crate) fn start(arena: &Arena, name: Name, services: &[Service]) -> Result<Box<dyn Peer>> {
    Ok(match name {
        Name::Direct => Box::new(Direct),
        Name::Egress => Box::new(egress::Egress::start(arena, services)?),
        Name::Envoy => Box::new(envoy::Envoy::start(arena, services)?),
        Name::Haproxy => Box::new(haproxy::Haproxy::start(arena, services)?),
        Name::Nginx => Box::new(nginx::Nginx::start(arena, services)?),
        Name::Bare | Name::Bytes => Box::new(bare::Bare::start(arena, name)?),
    })
}

/// No proxy, no hook: the client's own connection.
struct Direct;

impl Peer for Direct {
    fn name(&self) -> Name {
        Name::Direct
    }

    fn pid(&self) -> Option<u32> {
        None
    }

    fn group(&self) -> Group {
        Group::Outside
    }

    fn target(&self, service: &Service) -> String {
        format!("{}:{}", service.host(), service.port)
    }

    fn counters(&self, _arena: &Arena, _service: &Service) -> Result<Option<Counters>> {
        Ok(None)
    }

    fn carries(&self, service: &Service) -> bool {
        // Without a proxy nobody originates TLS.
        service.tls == crate::serve::Tls::Off
    }

    fn engage<'a>(&'a self, _arena: &'a Arena) -> Result<Option<redirect::Redirect<'a>>> {
        Ok(None)
    }
}
