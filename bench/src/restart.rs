//! What a restart costs those who connect meanwhile: new connections at a
//! steady rate while the proxy makes place for its successor, in its own way.

use std::path::PathBuf;
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use lab::Group;
use lab::agent::Agent;
use lab::process::{DEADLINE, Process};
use rustix::process::Signal;

use crate::arena::Arena;
use crate::extra::Row;
use crate::load::{Kind, Load, Outcome};
use crate::peer;
use crate::services::{self, Service};

const NAME: &str = "restart";

/// Connections, and how many of them a second.
const WORK: u64 = 4_000;
const RATE: u32 = 500;
/// The restart begins this long after the load.
const AFTER: Duration = Duration::from_secs(2);
/// Ports of HAProxy and nginx, which clients dial.
const HAPROXY: u16 = 30_001;
const NGINX: u16 = 30_002;
const SERVICE: Service = services::ECHO;

/// The load without a restart, and with one.
type Way = fn(&Arena) -> Result<[Outcome; 2]>;

/// Measures every way that can be had here.
pub(crate) fn measure(arena: &Arena) -> Vec<Row> {
    let mut rows = Vec::new();
    let ways: [(&str, Way); 4] = [
        ("egress, hand-over to a second agent", hand_over),
        ("egress, stopped and started", stop_and_start),
        ("HAProxy, reload of the master", haproxy),
        ("nginx, reload", nginx),
    ];
    for (title, way) in ways {
        eprintln!("{NAME}: {title}");
        match way(arena) {
            Ok([quiet, restarted]) => rows.extend(told(title, &quiet, &restarted)),
            Err(error) => rows.push(Row {
                what: title.to_owned(),
                unit: "",
                value: Err(format!("{error:#}")),
                target: None,
            }),
        }
    }
    rows.push(Row {
        what: "Envoy".to_owned(),
        unit: "",
        value: Err(
            "its hot restart needs a program that is not in its package; Istio restarts a \
             sidecar with its pod"
                .to_owned(),
        ),
        target: None,
    });
    rows
}

fn told(title: &str, quiet: &Outcome, restarted: &Outcome) -> [Row; 3] {
    let row = |what: &str, unit, value, target| Row {
        what: format!("{title}: {what}"),
        unit,
        value: Ok(value),
        target,
    };
    #[allow(clippy::cast_precision_loss, reason = "thousands")]
    let failed = restarted.errors as f64;
    let added = |of: fn(&Outcome) -> f64| (of(restarted) - of(quiet)).max(0.0) / 1000.0;
    // What hands over loses nothing.
    let target = title.contains("hand-over").then_some((0.0, true));
    [
        row(&format!("failed of {WORK}"), "connections", failed, target),
        row("added at p99", "ms", added(|o| o.latency.p99), None),
        row("added to the slowest", "ms", added(|o| o.latency.max), None),
    ]
}

/// The load without a restart, and with one.
fn twice(
    arena: &Arena,
    group: Group,
    target: &str,
    restart: impl FnOnce() -> Result<()>,
) -> Result<[Outcome; 2]> {
    let load = Load {
        target: target.to_owned(),
        kind: Kind::Connect,
        connections: 32,
        work: WORK,
        rate: Some(RATE),
        size: 1024,
        watched: Vec::new(),
        deadline: Duration::from_mins(1),
    };
    let quiet = arena.load(group, &load, || Ok(()))?;
    if let Some(error) = &quiet.first_error {
        bail!("it fails without a restart, too: {error}");
    }
    let (begun, begins) = mpsc::channel();
    let restarted = std::thread::scope(|scope| {
        let load = &load;
        let loading = scope.spawn(move || {
            arena.load(group, load, || {
                begun.send(()).context("nobody waits for the load")
            })
        });
        // Not in a thread of its own: what it starts dies with the thread that
        // started it. A load that never began says why below.
        let done = begins.recv().map_or(Ok(()), |()| {
            std::thread::sleep(AFTER);
            restart()
        });
        let outcome = loading
            .join()
            .map_err(|_| anyhow!("the thread of the load ended early"))?;
        done.context("the restart")?;
        outcome
    })?;
    Ok([quiet, restarted])
}

fn agent(arena: &Arena) -> Result<Agent> {
    let policy = peer::policies(arena, &[SERVICE]);
    let builder = arena.lab.agent().policy("services", &policy)?;
    builder
        .setting("--access-log", "off")
        .setting("--metrics", "off")
        .log_filter("warn")
        .start()
}

fn egress_target() -> String {
    format!("{}:{}", SERVICE.host(), SERVICE.port)
}

fn hand_over(arena: &Arena) -> Result<[Outcome; 2]> {
    let first = agent(arena)?;
    let mut second = None;
    let outcomes = twice(arena, Group::Clients, &egress_target(), || {
        second = Some(agent(arena)?);
        Ok(())
    });
    // It ended when the second was ready.
    first.finish()?;
    second.context("no second agent")?.stop()?;
    outcomes
}

fn stop_and_start(arena: &Arena) -> Result<[Outcome; 2]> {
    let first = agent(arena)?;
    let mut second = None;
    let outcomes = twice(arena, Group::Clients, &egress_target(), || {
        first.stop()?;
        second = Some(agent(arena)?);
        Ok(())
    });
    second.context("no second agent")?.stop()?;
    outcomes
}

fn haproxy(arena: &Arena) -> Result<[Outcome; 2]> {
    let text = format!(
        "global\n    nbthread 2\n    stats socket {}/haproxy.sock expose-fd listeners\n\
         defaults\n    mode tcp\n    timeout connect 10s\n    timeout client 1m\n    timeout server 1m\n\
         listen echo\n    bind 127.0.0.1:{HAPROXY}\n    server one {}:{}\n",
        arena.lab.directory().display(),
        SERVICE.address(),
        SERVICE.upstream_port,
    );
    let file = arena.lab.write("haproxy-restart.cfg", &text)?;
    let mut process = arena
        .proxy("haproxy-restart", "haproxy".as_ref())?
        .args(["-W", "-f"])
        .arg(file)
        .start()?;
    arena.wait_listening(&mut process, "haproxy-restart", HAPROXY)?;
    reloaded(arena, process, HAPROXY, Signal::USR2)
}

fn nginx(arena: &Arena) -> Result<[Outcome; 2]> {
    let directory: PathBuf = arena.lab.directory().join("nginx-restart");
    std::fs::create_dir_all(&directory)?;
    let file = directory.join("nginx.conf");
    let text = format!(
        "load_module {};\ndaemon off;\nuser root;\nworker_processes 2;\npid nginx.pid;\n\
         error_log error.log error;\nevents {{ worker_connections 1000; }}\n\
         stream {{ server {{ listen 127.0.0.1:{NGINX}; proxy_pass {}:{}; }} }}\n",
        peer::NGINX_STREAM,
        SERVICE.address(),
        SERVICE.upstream_port,
    );
    std::fs::write(&file, text)?;
    let mut process = arena
        .proxy("nginx-restart", "nginx".as_ref())?
        .arg("-c")
        .arg(&file)
        .arg("-p")
        .arg(&directory)
        .arg("-e")
        .arg(directory.join("error.log"))
        .start()?;
    arena.wait_listening(&mut process, "nginx-restart", NGINX)?;
    reloaded(arena, process, NGINX, Signal::HUP)
}

/// By a signal to the master, whose workers are replaced.
fn reloaded(
    arena: &Arena,
    mut process: Process,
    port: u16,
    signal: Signal,
) -> Result<[Outcome; 2]> {
    let target = format!("127.0.0.1:{port}");
    let outcomes = twice(arena, Group::Outside, &target, || process.signal(signal));
    process.signal(Signal::TERM)?;
    process.wait(DEADLINE)?;
    outcomes
}
