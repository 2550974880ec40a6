//! Whom the agent asks for the addresses of endpoints, as the settings say.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use crate::capture::sockets::{NetNs, Sockets};
use crate::endpoint::resolve::{Resolver, Resolvers, SocketRoutes, Upstream, UpstreamOptions};
use crate::settings::Settings;

/// One resolver for all, and one for each namespace that has name servers of
/// its own.
pub(super) fn resolvers(settings: &Settings, sockets: &Sockets, netns: &NetNs) -> Resolvers {
    let resolver = |options: UpstreamOptions| {
        let upstream = Upstream::new(options, sockets.clone(), netns.clone());
        let routes = SocketRoutes::new(sockets.clone(), netns.clone());
        Resolver::new(upstream, routes)
    };
    let servers = settings.dns_upstream.iter().map(|server| server.0);
    let mut common = UpstreamOptions::new(servers.collect());
    common.search = search(settings.dns_search.iter().map(|domain| &domain.0));
    Resolvers::new(
        resolver(common),
        own(settings)
            .into_iter()
            .map(|(namespace, options)| (namespace, resolver(options)))
            .collect(),
    )
}

fn search<'a>(domains: impl Iterator<Item = &'a String>) -> Vec<String> {
    domains.cloned().collect()
}

/// Whom each namespace asks that has servers of its own.
fn own(settings: &Settings) -> BTreeMap<Arc<str>, UpstreamOptions> {
    let mut own: BTreeMap<Arc<str>, (Vec<SocketAddr>, HashMap<SocketAddr, PathBuf>)> =
        BTreeMap::new();
    for one in &settings.dns_upstream_in {
        let (servers, netns) = own.entry(Arc::clone(&one.namespace.0)).or_default();
        servers.push(one.server.0);
        if let Some(path) = &one.netns {
            netns.insert(one.server.0, path.clone());
        }
    }
    for one in &settings.dns_search_in {
        if !own.contains_key(&one.namespace.0) {
            tracing::warn!(
                namespace = &*one.namespace.0,
                "dns-search-in has no effect: dns-upstream-in names no server for this namespace"
            );
        }
    }
    own.into_iter()
        .map(|(namespace, (servers, netns))| {
            let mut options = UpstreamOptions::new(servers);
            options.netns = Arc::new(netns);
            let domains = settings.dns_search_in.iter();
            let domains = domains.filter(|one| one.namespace.0 == namespace);
            options.search = search(domains.map(|one| &one.domain.0));
            (namespace, options)
        })
        .collect()
}
