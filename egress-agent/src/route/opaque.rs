//! Which `tls` or `tcp` route a connection takes.

use std::net::IpAddr;
use std::sync::Arc;

use super::{RouteError, http::draw};
use crate::policy::routes::{OpaqueMatch, OpaqueRoute, Target};
use crate::policy::snapshot::{Client, Cluster, View};

/// What a match block of a `tls` or `tcp` route looks at.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionFacts<'a> {
    /// Server name of the ClientHello, lower case; `None` without TLS or name.
    pub sni: Option<&'a str>,
    /// The client speaks TLS.
    pub tls: bool,
    /// The address that the client dialled.
    pub address: IpAddr,
    /// The port that the client dialled.
    pub port: u16,
    /// Who asks.
    pub client: &'a Client,
}

/// The first of `routes` with a block that fits; a block that names SNI hosts
/// fits only a connection with such a name.
pub fn route<'r>(
    routes: &'r [OpaqueRoute],
    facts: &ConnectionFacts<'_>,
) -> Option<&'r OpaqueRoute> {
    routes.iter().find(|route| {
        route.matches.is_empty() || route.matches.iter().any(|block| fits(block, facts))
    })
}

/// What `view` does with a connection whose bytes are not looked into: `tls`
/// routes for TLS, `tcp` routes for the rest; without routes of the kind, its
/// own cluster.
///
/// # Errors
/// [`RouteError::NoRoute`] and [`RouteError::NoCluster`].
pub fn decide<'r>(
    view: &'r View,
    facts: &ConnectionFacts<'_>,
) -> Result<&'r Arc<Cluster>, RouteError> {
    let routes = if facts.tls {
        // A TLS connection that no tls route names may still be meant by a
        // tcp route of the same port.
        view.tls.as_ref().or(view.tcp.as_ref())
    } else {
        view.tcp.as_ref()
    };
    let Some(routes) = routes else {
        return Ok(&view.cluster);
    };
    let chosen = route(routes, facts).ok_or(RouteError::NoRoute)?;
    let drawn = draw(&chosen.destinations, |(_, weight)| *weight);
    match drawn.map(|number| &chosen.destinations[number].0) {
        Some(Target::Cluster(cluster)) => Ok(cluster),
        Some(Target::Missing(what)) => Err(RouteError::NoCluster(what.clone())),
        None => Err(RouteError::NoCluster("the route has no destination".into())),
    }
}

fn fits(block: &OpaqueMatch, facts: &ConnectionFacts<'_>) -> bool {
    block.port.is_none_or(|port| port == facts.port)
        && (block.sni_hosts.is_empty()
            || facts
                .sni
                .is_some_and(|name| block.sni_hosts.iter().any(|host| host.matches(name))))
        && (block.destination_subnets.is_empty()
            || block
                .destination_subnets
                .iter()
                .any(|net| net.contains(&facts.address)))
        && block
            .source_namespace
            .as_ref()
            .is_none_or(|name| *name == facts.client.namespace)
        && block
            .source_labels
            .iter()
            .all(|(key, value)| facts.client.labels.get(key) == Some(value))
}
