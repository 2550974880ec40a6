//! Nothing is left behind: no map entry, no descriptor, whatever clients do.
#![allow(clippy::panic, reason = "tests")]

use std::collections::BTreeMap;
use std::time::Duration;

use lab::agent::Agent;
use lab::dns::NameServer;
use lab::process::wait_for;
use lab::tcp::{Behaviour, Server};
use lab::{Lab, RESOLVER, Result, kernel, policy};

const HOST: &str = "echo.example.com";

/// An idle limit, which only the agent can enforce: the connections must not
/// go past it.
const THROUGH_THE_AGENT: &str = "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata:
  name: echo
spec:
  host: echo.example.com
  trafficPolicy:
    connectionPool:
      tcp:
        idleTimeout: 10m
";

struct Echo {
    agent: Agent,
    descriptors: usize,
    /// Hash maps of the kernel programs, each with its entries at rest.
    entries: BTreeMap<String, usize>,
    _server: Server,
    _dns: NameServer,
    lab: Lab,
}

/// An agent that has already served its first connections, so that what it
/// keeps open for good is open.
fn echo() -> Result<Echo> {
    let lab = Lab::new()?;
    let dns = NameServer::start(&lab, RESOLVER, &format!("203.0.113.20 {HOST}\n"))?;
    let server = Server::start(&lab, "203.0.113.20:7000", Behaviour::Echo)?;
    let agent = lab
        .agent()
        .policy(
            "echo",
            &policy::join(&[&policy::tcp(HOST, 7000), THROUGH_THE_AGENT]),
        )?
        .start()?;
    lab.python(&script("sequential(50)")).text()?;
    agent.record("a record of the agent's", |record| record.service() == HOST)?;
    let echo = Echo {
        entries: entries(&lab)?,
        descriptors: kernel::descriptors_at_rest(agent.id())?,
        agent,
        _server: server,
        _dns: dns,
        lab,
    };
    Ok(echo)
}

/// Entries of each hash map of the kernel programs, which at rest are those
/// that the agent wrote.
fn entries(lab: &Lab) -> Result<BTreeMap<String, usize>> {
    let entries = kernel::maps(&lab.client_cgroup())?
        .into_iter()
        .map(|(name, id)| Ok((name, kernel::entries(id)?)))
        .collect::<Result<BTreeMap<_, _>>>()?;
    assert_eq!(entries.get("ORIGINS"), Some(&0), "{entries:?}");
    assert!(
        entries.get("SERVICES").is_some_and(|count| *count > 0),
        "{entries:?}"
    );
    Ok(entries)
}

impl Echo {
    /// Waits until nothing is left of earlier connections.
    fn is_clean(&self) -> Result<()> {
        let maps = kernel::maps(&self.lab.client_cgroup())?;
        let mut last = String::new();
        wait_for(
            "the agent to let go of everything",
            Duration::from_secs(15),
            || {
                let descriptors = kernel::descriptors(self.agent.id())?;
                let mut entries = BTreeMap::new();
                for (name, id) in &maps {
                    entries.insert(name.clone(), kernel::entries(*id)?);
                }
                last = format!(
                    "{descriptors} descriptors, at first {}; {entries:?}, at first {:?}",
                    self.descriptors, self.entries
                );
                // Less is no leak: a namespace of the start may have gone.
                let clean = entries
                    .iter()
                    .all(|(name, left)| self.entries.get(name).is_some_and(|first| left <= first));
                Ok((clean && descriptors <= self.descriptors).then_some(()))
            },
        )
        .map_err(|error| error.context(last))
    }
}

fn script(call: &str) -> String {
    format!(
        r#"
import asyncio, os, random, signal, socket, sys

def sequential(count):
    address = socket.getaddrinfo("{HOST}", 7000, socket.AF_INET)[0][4]
    for number in range(count):
        with socket.create_connection(address, 10) as s:
            s.sendall(b"ping")
            assert s.recv(4) == b"ping"

async def one(address, number):
    reader, writer = await asyncio.open_connection(*address)
    data = bytes([number % 256]) * 1000
    writer.write(data)
    assert await asyncio.wait_for(reader.readexactly(1000), 20) == data
    writer.close()
    await writer.wait_closed()

async def concurrent(count):
    address = socket.getaddrinfo("{HOST}", 7000, socket.AF_INET)[0][4]
    await asyncio.gather(*(one(address, number) for number in range(count)))

def killed(rounds):
    # Children that die by SIGKILL at any moment of many connections.
    address = socket.getaddrinfo("{HOST}", 7000, socket.AF_INET)[0][4]
    for _ in range(rounds):
        pid = os.fork()
        if pid == 0:
            sockets = []
            while True:
                s = socket.socket()
                s.setblocking(False)
                try:
                    s.connect(address)
                except BlockingIOError:
                    pass
                except OSError:
                    continue
                sockets.append(s)
                if len(sockets) > 50:
                    try:
                        sockets.pop(0).send(b"x" * random.randrange(1, 5000))
                    except OSError:
                        pass
        import time
        time.sleep(random.random() / 20)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)

{call}
"#
    )
}

#[test]
fn slow_ten_thousand_connections_in_a_row_leave_nothing() -> Result<()> {
    let echo = echo()?;
    echo.lab
        .python(&script("sequential(10000)"))
        .deadline(Duration::from_mins(2))
        .text()?;
    echo.is_clean()?;
    echo.agent.stop()
}

#[test]
fn two_hundred_connections_at_once_leave_nothing() -> Result<()> {
    let echo = echo()?;
    for _ in 0..3 {
        echo.lab
            .python(&script("asyncio.run(concurrent(200))"))
            .text()?;
    }
    echo.is_clean()?;
    echo.agent.stop()
}

#[test]
fn clients_killed_at_random_leave_nothing() -> Result<()> {
    let echo = echo()?;
    echo.lab
        .python(&script("killed(60)"))
        .deadline(Duration::from_mins(1))
        .text()?;
    echo.is_clean()?;
    // And it still works.
    echo.lab.python(&script("sequential(10)")).text()?;
    echo.agent.stop()
}
