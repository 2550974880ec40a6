//! What becomes of a connection, by what the application speaks.

mod http;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use super::query::{Query, Speech};
use super::report::{Destination, Route, Traffic};
use super::words;
use crate::policy::model::Protocol;
use crate::policy::routes::{OpaqueMatch, OpaqueRoute, Target};
use crate::policy::snapshot::{Cluster, Path, Service, View};
use crate::route::opaque::{self, ConnectionFacts};

/// What is shown.
#[derive(Default)]
pub(super) struct Shown {
    pub(super) traffic: Vec<Traffic>,
    /// Where it goes.
    pub(super) clusters: Vec<Arc<Cluster>>,
    pub(super) warnings: Vec<String>,
}

impl Shown {
    /// Remembers where traffic goes, and names it.
    fn destination(&mut self, target: &Target, percent: f64) -> Destination {
        match target {
            Target::Cluster(cluster) => {
                self.goes_to(cluster);
                Destination {
                    cluster: words::cluster(cluster),
                    percent,
                    missing: false,
                }
            }
            Target::Missing(what) => {
                self.warn(format!(
                    "a route leads to nothing: {what}; its share ends as 503 NC"
                ));
                Destination {
                    cluster: what.to_string(),
                    percent,
                    missing: true,
                }
            }
        }
    }

    fn goes_to(&mut self, cluster: &Arc<Cluster>) {
        if !self
            .clusters
            .iter()
            .any(|known| known.index == cluster.index)
        {
            self.clusters.push(Arc::clone(cluster));
        }
    }

    fn warn(&mut self, text: String) {
        if !self.warnings.contains(&text) {
            self.warnings.push(text);
        }
    }
}

/// Shares in per cent; a single destination has all, whatever its weight.
fn shares(weights: &[u32]) -> Vec<f64> {
    let total: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
    let share = |weight: &u32| {
        if weights.len() == 1 {
            100.0
        } else {
            let tenths = (u64::from(*weight) * 1000 + total / 2).checked_div(total);
            f64::from(u32::try_from(tenths.unwrap_or(0)).unwrap_or(1000)) / 10.0
        }
    };
    weights.iter().map(share).collect()
}

/// Everything that an application may speak to the service, what was asked
/// about first.
pub(super) fn describe(service: &Service, view: &View, query: &Query) -> Shown {
    let mut shown = Shown::default();
    if service.protocol == Protocol::Udp {
        return shown;
    }
    let asked = asked(service, query);
    let mut all = vec![asked];
    if matches!(service.path, Path::Proxy(_)) {
        let tls = view.cluster.policy.tls.is_some();
        let also = match service.protocol {
            protocol if protocol.is_tls() => vec![Speech::Tls, Speech::Http],
            protocol if protocol.is_http() => vec![Speech::Http],
            Protocol::Unset => vec![Speech::Http, Speech::Tls, Speech::Other],
            _ if tls => vec![Speech::Other, Speech::Tls],
            _ => Vec::new(),
        };
        all.extend(also.into_iter().filter(|speech| *speech != asked));
    }
    for speech in all {
        let traffic = one(service, view, query, speech, speech == asked, &mut shown);
        shown.traffic.push(traffic);
    }
    if asked == Speech::Tls {
        wasted(service, view, &mut shown);
    }
    shown
}

fn asked(service: &Service, query: &Query) -> Speech {
    let protocol = service.protocol;
    let spoken = query.target.speaks();
    match spoken {
        // Only there are the first bytes read as HTTP.
        Some(Speech::Http)
            if !protocol.is_http() && !protocol.is_tls() && protocol != Protocol::Unset =>
        {
            Speech::Other
        }
        Some(speech) => speech,
        None if protocol.is_http() => Speech::Http,
        None if protocol.is_tls() => Speech::Tls,
        None => Speech::Other,
    }
}

fn one(
    service: &Service,
    view: &View,
    query: &Query,
    speech: Speech,
    asked: bool,
    shown: &mut Shown,
) -> Traffic {
    let (routing, routes) = match speech {
        _ if matches!(service.path, Path::Direct(_)) => {
            shown.goes_to(&view.cluster);
            (
                "the kernel picks an endpoint; no routes are looked at".to_owned(),
                Some(Vec::new()),
            )
        }
        Speech::Http => http::routes(service, view, query, asked, shown),
        Speech::Tls => bytes(view, query, service, true, asked, shown),
        Speech::Other => bytes(view, query, service, false, asked, shown),
    };
    let (tls, wire) = if matches!(service.path, Path::Direct(_)) {
        (
            "passthrough",
            "the bytes as the application speaks them".to_owned(),
        )
    } else {
        wire(view, routes.as_deref(), speech, shown)
    };
    Traffic {
        speaks: match speech {
            Speech::Http => "http",
            Speech::Tls => "tls",
            Speech::Other => "other",
        }
        .to_owned(),
        asked,
        routing,
        routes: routes.unwrap_or_default(),
        wire,
        tls: tls.to_owned(),
    }
}

/// Connections whose bytes are not looked into.
fn bytes(
    view: &View,
    query: &Query,
    service: &Service,
    tls: bool,
    asked: bool,
    shown: &mut Shown,
) -> (String, Option<Vec<Route>>) {
    // As the flow does: a TLS connection falls back on tcp routes.
    let (kind, routes) = match (tls, &view.tls, &view.tcp) {
        (true, Some(routes), _) => ("tls", routes),
        (_, _, Some(routes)) => ("tcp", routes),
        _ => {
            shown.goes_to(&view.cluster);
            return (
                "no routes: to the service itself".to_owned(),
                Some(Vec::new()),
            );
        }
    };
    let address = query
        .target
        .ip()
        .or_else(|| service.addresses.first().map(ipnet::IpNet::addr))
        .unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let name = query.target.ip().is_none().then_some(&*query.target.host);
    let facts = ConnectionFacts {
        sni: name.filter(|_| tls),
        tls,
        address,
        port: service.key.port,
        client: &query.client,
    };
    let of = routes.len();
    let Some(chosen) = opaque::route(routes, &facts) else {
        if asked {
            shown.warn(format!(
                "none of the {kind} routes matches: the connection ends as NR"
            ));
        }
        let text = format!("none of the {kind} routes matches: the connection is reset, NR");
        return (text, None);
    };
    let number = routes.iter().position(|route| std::ptr::eq(route, chosen));
    let route = opaque_route(chosen, number.map_or(0, |number| number + 1), of, shown);
    (
        format!("{kind} routes of the VirtualService"),
        Some(vec![route]),
    )
}

/// Every route of a view, with its kind.
pub(super) fn routes_of(view: &View) -> Vec<(&'static str, Route)> {
    let mut shown = Shown::default();
    let mut out: Vec<(&'static str, Route)> = Vec::new();
    let list = view.http.as_deref().unwrap_or_default();
    for (at, route) in list.iter().enumerate() {
        out.push((
            "http",
            http::route_in_words(route, at + 1, list.len(), &mut shown),
        ));
    }
    for (kind, list) in [("tls", &view.tls), ("tcp", &view.tcp)] {
        let list = list.as_deref().unwrap_or_default();
        for (at, route) in list.iter().enumerate() {
            out.push((kind, opaque_route(route, at + 1, list.len(), &mut shown)));
        }
    }
    out
}

fn opaque_route(route: &OpaqueRoute, number: usize, of: usize, shown: &mut Shown) -> Route {
    let weights: Vec<u32> = route
        .destinations
        .iter()
        .map(|(_, weight)| *weight)
        .collect();
    let shares = shares(&weights);
    Route {
        number,
        of,
        matches: route.matches.iter().map(opaque_match).collect(),
        destinations: route
            .destinations
            .iter()
            .zip(shares)
            .map(|((target, _), percent)| shown.destination(target, percent))
            .collect(),
        ..Route::default()
    }
}

fn opaque_match(block: &OpaqueMatch) -> String {
    let mut parts = Vec::new();
    let list = |items: Vec<String>| items.join(" or ");
    if !block.sni_hosts.is_empty() {
        let hosts = block.sni_hosts.iter().map(ToString::to_string).collect();
        parts.push(format!("SNI is {}", list(hosts)));
    }
    if !block.destination_subnets.is_empty() {
        let nets = block
            .destination_subnets
            .iter()
            .map(|net| words::network(*net));
        parts.push(format!("address is in {}", list(nets.collect())));
    }
    source(
        block.port,
        &block.source_labels,
        block.source_namespace.as_deref(),
        &mut parts,
    );
    all_of(&parts)
}

/// Parts of match blocks that are about the caller.
fn source(
    port: Option<u16>,
    labels: &crate::policy::model::Labels,
    namespace: Option<&str>,
    parts: &mut Vec<String>,
) {
    if let Some(port) = port {
        parts.push(format!("port is {port}"));
    }
    for (key, value) in labels {
        parts.push(format!("the caller has the label {key}={value}"));
    }
    if let Some(namespace) = namespace {
        parts.push(format!("the caller is of namespace {namespace}"));
    }
}

fn all_of(parts: &[String]) -> String {
    if parts.is_empty() {
        "everything".to_owned()
    } else {
        parts.join(" and ")
    }
}

/// What reaches the service; `routes` is `None` where none matches.
fn wire(
    view: &View,
    routes: Option<&[Route]>,
    speech: Speech,
    shown: &Shown,
) -> (&'static str, String) {
    let nothing = || ("", "nothing is sent to the service".to_owned());
    let Some(routes) = routes else {
        return nothing();
    };
    let names: Vec<&String> = routes
        .iter()
        .flat_map(|route| &route.destinations)
        .filter(|destination| !destination.missing)
        .map(|destination| &destination.cluster)
        .collect();
    if names.is_empty() && !routes.is_empty() {
        return nothing();
    }
    let meant = |cluster: &&Arc<Cluster>| names.contains(&&words::cluster(cluster));
    let clusters: Vec<&Arc<Cluster>> = if names.is_empty() {
        vec![&view.cluster]
    } else {
        shown.clusters.iter().filter(meant).collect()
    };
    let with_policy = clusters.iter().any(|cluster| cluster.policy.tls.is_some());
    if speech == Speech::Tls {
        let text = if with_policy {
            "the application's own TLS, untouched; it is not wrapped in TLS again"
        } else {
            "the application's own TLS, untouched"
        };
        return ("passthrough", text.to_owned());
    }
    let tls = |cluster: &&&Arc<Cluster>| cluster.tls_for_cleartext_http().is_some();
    let count = clusters.iter().filter(tls).count();
    let what = if speech == Speech::Http {
        "HTTP"
    } else {
        "the bytes"
    };
    match count {
        0 if speech == Speech::Http => ("cleartext", "cleartext HTTP".to_owned()),
        0 => (
            "passthrough",
            "the bytes as the application speaks them".to_owned(),
        ),
        n if n == clusters.len() => (
            "originate",
            format!("{what} inside TLS that the agent originates"),
        ),
        _ => (
            "originate",
            format!("{what} inside TLS to some of the destinations, see below"),
        ),
    }
}

/// What an operator wrote and a client that speaks TLS itself does not get.
fn wasted(service: &Service, view: &View, shown: &mut Shown) {
    let host = &service.key.host;
    let port = service.key.port;
    let mut idle = Vec::new();
    if view.http.is_some() {
        idle.push("the http routes");
    }
    if view.cluster.policy.tls.is_some() && !view.cluster.key.rule.is_empty() {
        idle.push("the tls settings of the DestinationRule");
    }
    if idle.is_empty() {
        return;
    }
    shown.warn(format!(
        "{} do not act on an application that speaks TLS itself; to have them, let it speak http://{host}:{port}",
        idle.join(" and ")
    ));
}
