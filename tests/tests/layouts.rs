//! Pins whose maps have another layout than this agent's are replaced as a
//! whole.

use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use lab::dns::NameServer;
use lab::process::{DEADLINE, wait_for};
use lab::tcp::{Behaviour, Server};
use lab::{Context, Lab, RESOLVER, Result, ensure, kernel, policy};

/// The folders of pins of the lab's agents.
fn layouts(lab: &Lab) -> Result<Vec<PathBuf>> {
    fs::read_dir(lab.directory().join("bpffs/egress"))?
        .map(|entry| Ok(entry?.path()))
        .collect()
}

/// An open connection, and a new one when a line comes.
const CLIENT: &str = r#"
import socket, sys
def connect():
    address = (socket.gethostbyname("direct.example.com"), 7001)
    assert address[0].startswith("240.240."), address
    s = socket.create_connection(address, 5)
    assert s.getpeername() == address
    return s
def echo(s, text):
    s.sendall(text)
    assert s.recv(len(text)) == text
s = connect()
echo(s, b"one")
print("open", flush=True)
sys.stdin.readline()
echo(s, b"two")
with connect() as other:
    echo(other, b"three")
    print("goes on", flush=True)
    sys.stdin.readline()
"#;

#[test]
fn pins_of_another_layout_are_replaced_and_leave_nothing() -> Result<()> {
    let lab = Lab::new()?;
    let _dns = NameServer::start(&lab, RESOLVER, "203.0.113.21 direct.example.com\n")?;
    let _server = Server::start(&lab, "203.0.113.21:7001", Behaviour::Echo)?;
    lab.write_policy("direct", &policy::tcp("direct.example.com", 7001))?;
    let cgroup = lab.client_cgroup();

    let first = lab.agent().start()?;
    let mut client = lab.python(CLIENT).interactive().start()?;
    client.expect_line("open")?;
    first.kill();
    let programs: HashSet<u64> = kernel::attached(&cgroup)?
        .into_iter()
        .map(|(_, id)| id)
        .collect();
    let maps = kernel::maps(&cgroup)?;
    let found = layouts(&lab)?;
    let [pins] = found.as_slice() else {
        lab::bail!("{found:?} is not one folder of pins");
    };
    fs::rename(pins, pins.with_file_name("layout-0"))?;

    let second = lab.agent().start()?;
    let log = second.log()?;
    ensure!(
        log.contains("another layout") && log.contains("layout-0"),
        "{log}"
    );
    let attached = kernel::attached(&cgroup)?;
    ensure!(
        attached.len() == programs.len()
            && attached
                .iter()
                .all(|(_, program)| !programs.contains(program)),
        "{attached:?} after {programs:?}"
    );
    ensure!(layouts(&lab)? == found);
    // The kernel frees them some time after their last user is gone.
    wait_for("the old maps to be gone", DEADLINE, || {
        for map in maps.values() {
            if kernel::is_map(*map)? {
                return Ok(None);
            }
        }
        Ok(Some(()))
    })?;
    let status = lab.egressctl(&["status"])?.text()?;
    ensure!(!status.contains("Beside"), "{status}");

    client.send_line("go on")?;
    client.expect_line("goes on")?;
    let places = *kernel::maps(&cgroup)?.get("PLACES").context("no PLACES")?;
    // The other connection was counted in a map that is no more.
    ensure!(kernel::values(places)? == [1]);
    client.send_line("end")?;
    ensure!(client.wait(DEADLINE)?.success());
    wait_for("the place to come back", Duration::from_secs(10), || {
        Ok((kernel::values(places)? == [0]).then_some(()))
    })?;
    second.stop()
}
