//! The bench's own proxy that only passes HTTP/1.1 on.

use std::net::SocketAddr;

use anyhow::Result;
use lab::Group;
use lab::process::Process;

use super::{Counters, Name, Peer, redirect};
use crate::arena::Arena;
use crate::bare;
use crate::services::{HTTP1, Service};

const PORT: u16 = 18_999;

pub(super) struct Bare {
    process: Process,
}

impl Bare {
    pub(super) fn start(arena: &Arena) -> Result<Self> {
        let description = bare::Bare {
            listen: SocketAddr::from(([127, 0, 0, 1], PORT)),
            upstream: format!("{}:{}", HTTP1.address(), HTTP1.upstream_port).parse()?,
            threads: arena.cpus.threads(),
        };
        let mut process = arena
            .proxy("bare", &arena.own)?
            .arg("bare")
            .arg(serde_json::to_string(&description)?)
            .start()?;
        arena.wait_listening(&mut process, "bare", PORT)?;
        Ok(Self { process })
    }
}

impl Peer for Bare {
    fn name(&self) -> Name {
        Name::Bare
    }

    fn pid(&self) -> Option<u32> {
        Some(self.process.id())
    }

    fn group(&self) -> Group {
        Group::Outside
    }

    fn target(&self, _service: &Service) -> String {
        format!("127.0.0.1:{PORT}")
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
