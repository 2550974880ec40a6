//! `top`: the services and what they do, again and again.
//!
//! Two looks at the agent a while apart give the rates. [`Look`] and [`rows`]
//! know nothing of terminals; [`screen`] draws.

mod screen;

use std::cmp::Ordering;
use std::collections::HashMap;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::Failure;
use super::args::{Output, TopArgs};
use super::client::Client;
use super::output;
use super::stats::samples;
use super::table::Column;
use crate::admin::view;

/// `top`.
pub(super) async fn top(client: &Client, args: &TopArgs) -> Result<(), Failure> {
    let interval = Duration::from_secs(args.interval.into());
    if args.once || !std::io::stdout().is_terminal() {
        let before = Look::take(client, args).await?;
        tokio::time::sleep(interval).await;
        let now = Look::take(client, args).await?;
        output::rows(Output::Table, COLUMNS, &rows(&before, &now), "no services")?;
        return Ok(());
    }
    screen::run(client, args, interval).await
}

/// A line: a port of a host.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub(super) struct Row {
    pub(super) namespace: String,
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) path: String,
    /// Open connections.
    pub(super) open: u64,
    /// Connections and requests a second, and failures among them. Metrics
    /// know hosts only, so that every port of a host shows the same.
    pub(super) connections: f64,
    pub(super) requests: f64,
    pub(super) errors: f64,
    pub(super) healthy: usize,
    pub(super) endpoints: usize,
}

/// The columns, on the screen as well.
pub(super) const COLUMNS: &[Column<Row>] = &[
    Column::new("NAMESPACE", |r| r.namespace.clone()),
    Column::new("HOST", |r| r.host.clone()),
    Column::new("PORT", |r| r.port.to_string()),
    Column::new("PATH", |r| r.path.clone()),
    Column::new("OPEN", |r| r.open.to_string()),
    Column::new("CONN/S", |r| rate(r.connections)),
    Column::new("REQ/S", |r| rate(r.requests)),
    Column::new("ERR/S", |r| rate(r.errors)),
    Column::new("HEALTHY", |r| format!("{}/{}", r.healthy, r.endpoints)),
];

fn rate(rate: f64) -> String {
    if rate >= 100.0 {
        format!("{rate:.0}")
    } else {
        format!("{rate:.1}")
    }
}

/// Counters of a host in a namespace.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
struct Counted {
    connections: f64,
    requests: f64,
    errors: f64,
}

/// What the agent told at one time.
#[derive(Debug)]
pub(super) struct Look {
    at: Instant,
    services: Vec<view::Service>,
    counted: HashMap<(String, String), Counted>,
}

impl Look {
    /// Asks the agent.
    pub(super) async fn take(client: &Client, args: &TopArgs) -> Result<Self, Failure> {
        let select = [("namespace", args.namespace.as_deref())];
        let mut services: Vec<view::Service> = client.get("/v1/services", &select).await?;
        if let Some(part) = &args.host {
            let part = part.to_ascii_lowercase();
            services.retain(|service| service.host.contains(&part));
        }
        let text = client.text("/v1/stats").await?;
        Ok(Self::of(services, &text))
    }

    fn of(services: Vec<view::Service>, metrics: &str) -> Self {
        let mut counted: HashMap<(String, String), Counted> = HashMap::new();
        for sample in samples(metrics) {
            let label = |name| label(&sample.labels, name);
            let (Some(host), Some(namespace), Ok(value)) = (
                label("destination_service"),
                label("destination_service_namespace"),
                sample.value.parse::<f64>(),
            ) else {
                continue;
            };
            let counted = counted
                .entry((namespace.to_owned(), host.to_owned()))
                .or_default();
            let flagged = label("response_flags").is_some_and(|flags| !matches!(flags, "-" | ""));
            match sample.name.as_str() {
                "istio_requests_total" => {
                    counted.requests += value;
                    let failed = label("response_code").is_some_and(|code| code.starts_with('5'));
                    if failed || flagged {
                        counted.errors += value;
                    }
                }
                "istio_tcp_connections_opened_total" => counted.connections += value,
                "istio_tcp_connections_closed_total" if flagged => counted.errors += value,
                _ => {}
            }
        }
        Self {
            at: Instant::now(),
            services,
            counted,
        }
    }
}

/// The value of a label in `a="x",b="y"`.
fn label<'l>(labels: &'l str, name: &str) -> Option<&'l str> {
    let mut rest = labels;
    loop {
        let (key, after) = rest.split_once("=\"")?;
        // No label of these metrics holds a quote.
        let (value, after) = after.split_once('"')?;
        if key.trim_start_matches(',') == name {
            return Some(value);
        }
        rest = after;
    }
}

/// What happened between two looks.
pub(super) fn rows(before: &Look, now: &Look) -> Vec<Row> {
    let seconds = now.at.duration_since(before.at).as_secs_f64().max(0.001);
    let rate = |new: f64, old: f64| ((new - old) / seconds).max(0.0);
    now.services
        .iter()
        .map(|service| {
            let key = (service.namespace.clone(), service.host.clone());
            let new = now.counted.get(&key).copied().unwrap_or_default();
            let old = before.counted.get(&key).copied().unwrap_or_default();
            Row {
                namespace: service.namespace.clone(),
                host: service.host.clone(),
                port: service.port,
                path: service.path.clone(),
                open: service.connections,
                connections: rate(new.connections, old.connections),
                requests: rate(new.requests, old.requests),
                errors: rate(new.errors, old.errors),
                healthy: service.healthy,
                endpoints: service.endpoints,
            }
        })
        .collect()
}

/// What lines are ordered by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Order {
    /// The busiest first.
    Busy,
    /// Most errors first.
    Errors,
    /// Most open connections first.
    Open,
    /// By host.
    Host,
}

impl Order {
    /// The next one, as the key changes it.
    pub(super) const fn next(self) -> Self {
        match self {
            Self::Busy => Self::Errors,
            Self::Errors => Self::Open,
            Self::Open => Self::Host,
            Self::Host => Self::Busy,
        }
    }

    /// Its word.
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Busy => "load",
            Self::Errors => "errors",
            Self::Open => "open connections",
            Self::Host => "host",
        }
    }

    /// Puts rows in order; equal ones by host and port.
    pub(super) fn sort(self, rows: &mut [Row], turned: bool) {
        let load = |row: &Row| row.requests + row.connections;
        rows.sort_by(|a, b| {
            let order = match self {
                Self::Busy => load(b).total_cmp(&load(a)),
                Self::Errors => b.errors.total_cmp(&a.errors),
                Self::Open => b.open.cmp(&a.open),
                Self::Host => Ordering::Equal,
            };
            let names = |row: &Row| (row.host.clone(), row.port);
            let order = order.then_with(|| names(a).cmp(&names(b)));
            if turned { order.reverse() } else { order }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(host: &str, port: u16) -> view::Service {
        view::Service {
            namespace: "shop".to_owned(),
            host: host.to_owned(),
            port,
            path: "proxy".to_owned(),
            healthy: 1,
            endpoints: 2,
            connections: 4,
            ..view::Service::default()
        }
    }

    fn metrics(requests: u32, failed: u32, opened: u32) -> String {
        let labels =
            r#"reporter="source",destination_service="a.com",destination_service_namespace="shop""#;
        format!(
            "istio_requests_total{{{labels},response_flags=\"-\",response_code=\"200\"}} {requests}\n\
             istio_requests_total{{{labels},response_flags=\"-\",response_code=\"503\"}} {failed}\n\
             istio_tcp_connections_opened_total{{{labels},response_flags=\"-\"}} {opened}\n\
             istio_tcp_connections_closed_total{{{labels},response_flags=\"UF\"}} {failed}\n\
             egress_draining 0\n"
        )
    }

    #[test]
    fn rates_are_what_came_between_two_looks() {
        let services = || vec![service("a.com", 80), service("b.com", 80)];
        let before = Look::of(services(), &metrics(10, 1, 5));
        let mut now = Look::of(services(), &metrics(30, 2, 9));
        now.at = before.at + Duration::from_secs(2);
        let rows = rows(&before, &now);
        let a = &rows[0];
        let told = (a.requests, a.errors, a.connections, a.open);
        assert!((told.0 - 10.5).abs() < 0.001, "{told:?}");
        assert!((told.1 - 1.0).abs() < 0.001, "{told:?}");
        assert!((told.2 - 2.0).abs() < 0.001, "{told:?}");
        assert_eq!((a.open, a.healthy, a.endpoints), (4, 1, 2));
        assert!(rows[1].requests.abs() < 0.001);
        // Counters that begin anew after a restart are no negative rate.
        let mut restarted = Look::of(services(), &metrics(0, 0, 0));
        restarted.at = now.at + Duration::from_secs(1);
        assert!(super::rows(&now, &restarted)[0].requests.abs() < 0.001);
    }

    #[test]
    fn labels_are_found_whole() {
        let labels = r#"xb="1",b="two, three",c="""#;
        assert_eq!(label(labels, "b"), Some("two, three"));
        assert_eq!(label(labels, "c"), Some(""));
        assert_eq!(label(labels, "d"), None);
        assert_eq!(label("", "d"), None);
    }

    #[test]
    fn rows_are_ordered_by_what_was_asked_for() {
        let row = |host: &str, requests: f64, errors: f64, open: u64| Row {
            host: host.to_owned(),
            requests,
            errors,
            open,
            ..Row::default()
        };
        let mut list = [
            row("a", 1.0, 9.0, 1),
            row("b", 5.0, 0.0, 2),
            row("c", 1.0, 0.0, 3),
        ];
        let mut sorted = |order: Order, turned| {
            order.sort(&mut list, turned);
            list.iter().map(|row| row.host.clone()).collect::<String>()
        };
        assert_eq!(sorted(Order::Busy, false), "bac");
        assert_eq!(sorted(Order::Errors, false), "abc");
        assert_eq!(sorted(Order::Open, false), "cba");
        assert_eq!(sorted(Order::Host, true), "cba");
        let orders = [Order::Busy; 4].map(|order| order.next().next().next().next());
        assert!(orders.iter().all(|order| *order == Order::Busy));
    }
}
