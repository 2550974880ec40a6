//! The bench's own proxies that only pass HTTP/1.1 on.

use std::net::SocketAddr;

use anyhow::Result;
use lab::Group;
use lab::process::Process;

use super::{Counters, Name, Peer, redirect};
use crate::arena::Arena;
use crate::bare::{self, Passes};
use crate::services::{HTTP1, Service};

const PORT: u16 = 18_999;
const BYTES_PORT: u16 = 18_998;

pub(super) struct Bare {
    name: Name,
    port: u16,
    process: Process,
}

impl Bare {
    pub(super) fn start(arena: &Arena, name: Name) -> Result<Self> {
        let (passes, port) = match name {
            Name::Bytes => (Passes::Bytes, BYTES_PORT),
            _ => (Passes::Http, PORT),
        };
        let description = bare::Bare {
            listen: SocketAddr::from(([127, 0, 0, 1], port)),
            upstream: format!("{}:{}", HTTP1.address(), HTTP1.upstream_port).parse()?,
            threads: arena.cpus.threads(),
            passes,
        };
        let mut process = arena
            .proxy(name.title(), &arena.own)?
            .arg("bare")
            .arg(serde_json::to_string(&description)?)
            .start()?;
        arena.wait_listening(&mut process, name.title(), port)?;
        Ok(Self {
            name,
            port,
            process,
        })
    }
}

impl Peer for Bare {
    fn name(&self) -> Name {
        self.name
    }

    fn pid(&self) -> Option<u32> {
        Some(self.process.id())
    }

    fn group(&self) -> Group {
        Group::Outside
    }

    fn target(&self, _service: &Service) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// It counts nothing; its port leads nowhere else.
    fn counters(&self, _arena: &Arena, _service: &Service) -> Result<Option<Counters>> {
        Ok(None)
    }

    fn carries(&self, service: &Service) -> bool {
        service.name == HTTP1.name
    }

    fn engage<'a>(&'a self, _arena: &'a Arena) -> Result<Option<redirect::Redirect<'a>>> {
        Ok(None)
    }
}
