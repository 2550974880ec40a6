//! Many short connections by clients that are killed at random: every counter
//! of the kernel comes back to zero, and every map to what it was.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use lab::churn::{self, Churn};
use lab::dns::NameServer;
use lab::process::wait_for;
use lab::{Context, Lab, RESOLVER, Result, ensure, kernel, policy};

const CHURN: &str = env!("CARGO_BIN_EXE_churn");

const TARGETS: [&str; 4] = [
    "tcp:direct.example.com:7001",
    "tcp:limited.example.com:7002",
    "tcp:proxied.example.com:7000",
    "tcp:direct.example.com:7001",
];

/// Clients at a time.
const CLIENTS: usize = 4;

/// A limit that the load does not meet, so that places are taken one by one.
const LIMIT: &str = "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata:
  name: limited
  namespace: default
spec:
  host: limited.example.com
  trafficPolicy:
    connectionPool:
      tcp:
        maxConnections: 5000
";

/// The hash maps of the kernel programs, and how many entries each has.
fn entries(maps: &BTreeMap<String, u64>) -> Result<BTreeMap<String, usize>> {
    let count = |(name, id): (&String, &u64)| Ok((name.clone(), kernel::entries(*id)?));
    maps.iter().map(count).collect()
}

#[test]
fn clients_killed_at_random_leave_every_counter_at_zero() -> Result<()> {
    let (rate, time) = if lab::long() {
        (1_000, Duration::from_mins(10))
    } else {
        (200, Duration::from_secs(8))
    };
    let lab = Lab::new()?;
    churn::widen_ports(&lab)?;
    let _dns = NameServer::start(&lab, RESOLVER, "203.0.113.20 proxied.example.com\n")?;
    let addresses: Vec<String> = (30..40).map(|n| format!("203.0.113.{n}")).collect();
    let endpoints: Vec<&str> = addresses.iter().map(String::as_str).collect();
    let mut listeners = vec!["203.0.113.20:7000".to_owned()];
    for address in &addresses {
        listeners.extend([format!("{address}:7001"), format!("{address}:7002")]);
    }
    let listeners: Vec<&str> = listeners.iter().map(String::as_str).collect();
    let _servers = churn::serve(&lab, CHURN, &listeners)?;
    let agent = lab
        .agent()
        .policy("proxied", &policy::tcp_proxied("proxied.example.com", 7000))?
        .policy(
            "direct",
            &policy::tcp_static("direct.example.com", 7001, &endpoints),
        )?
        .policy(
            "limited",
            &policy::join(&[
                &policy::tcp_static("limited.example.com", 7002, &endpoints),
                LIMIT,
            ]),
        )?
        .setting("--access-log", "off")
        .start()?;

    let share = rate / u32::try_from(CLIENTS)?;
    let client = || churn::start(&lab, CHURN, share, &TARGETS);
    // What is made on first use is made.
    let first = churn::start(&lab, CHURN, 50, &TARGETS)?;
    std::thread::sleep(Duration::from_millis(500));
    ensure!(first.finish()?.failures.is_empty(), "before the load");
    let maps = kernel::maps(&lab.client_cgroup())?;
    let at_rest = entries(&maps)?;

    let mut clients: Vec<Churn> = (0..CLIENTS).map(|_| client()).collect::<Result<_>>()?;
    let until = Instant::now() + time;
    let mut random = u64::from(std::process::id()) | 1;
    let mut killed = 0;
    let mut most = 0;
    while Instant::now() < until {
        // Marsaglia's xorshift: when and whom is all that it decides.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        std::thread::sleep(Duration::from_millis(50 + random % 400));
        let whom = usize::try_from(random >> 32)? % clients.len();
        let failures = clients[whom].failures()?;
        ensure!(failures.is_empty(), "{failures:?}");
        let next = client()?;
        std::mem::replace(&mut clients[whom], next).kill();
        killed += 1;
        most = most.max(open(&maps)?);
    }
    for client in clients {
        client.kill();
    }
    ensure!(most > 0, "places were never taken");

    let mut last = String::new();
    wait_for("nothing to be left", Duration::from_secs(30), || {
        let left = open(&maps)?;
        let now = entries(&maps)?;
        last = format!("{left} counted; {now:?}, at first {at_rest:?}");
        let clean = now
            .iter()
            .all(|(name, left)| at_rest.get(name).is_some_and(|first| left <= first));
        Ok((left == 0 && clean).then_some(()))
    })
    .with_context(|| last.clone())?;
    ensure!(entries(&maps)?.get("ORIGINS") == Some(&0), "{last}");

    // And all of it still works.
    let after = churn::start(&lab, CHURN, 50, &TARGETS)?;
    std::thread::sleep(Duration::from_millis(500));
    let seen = after.finish()?;
    ensure!(seen.failures.is_empty(), "{:?}", seen.failures);

    let opened: f64 = agent
        .metrics(&lab)?
        .lines()
        .filter(|line| line.starts_with("istio_tcp_connections_opened_total"))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum();
    println!("{opened} connections opened, {killed} clients killed, at most {most} places taken");
    agent.stop()
}

/// Connections that the kernel counts, over all services and endpoints.
fn open(maps: &BTreeMap<String, u64>) -> Result<u64> {
    let mut sum = 0;
    for name in ["PLACES", "ENDPOINTS"] {
        let id = maps.get(name).with_context(|| format!("no map {name}"))?;
        sum += kernel::values(*id)?.iter().sum::<u64>();
    }
    Ok(sum)
}
