//! Whom the agent asks for the addresses of endpoints, as the settings say.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::capture::sockets::{NetNs, Sockets};
use crate::endpoint::resolve::{Resolver, Resolvers, SocketRoutes, Upstream, UpstreamOptions};
use crate::settings::Settings;
use crate::settings::value::NamespaceServer;

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
    let mut servers: BTreeMap<Arc<str>, Vec<&NamespaceServer>> = BTreeMap::new();
    for one in &settings.dns_upstream_in {
        let list = servers.entry(Arc::clone(&one.namespace.0)).or_default();
        list.push(one);
    }
    for one in &settings.dns_search_in {
        if !servers.contains_key(&one.namespace.0) {
            tracing::warn!(
                namespace = &*one.namespace.0,
                "dns-search-in has no effect: dns-upstream-in names no server for this namespace"
            );
        }
    }
    let own = servers.into_iter().map(|(namespace, servers)| {
        let addresses = servers.iter().map(|one| one.server.0);
        let mut options = UpstreamOptions::new(addresses.collect());
        let inside = servers.iter();
        let inside = inside.filter_map(|one| Some((one.server.0, one.netns.clone()?)));
        options.netns = Arc::new(inside.collect());
        let domains = settings.dns_search_in.iter();
        let domains = domains.filter(|one| one.namespace.0 == namespace);
        options.search = search(domains.map(|one| &one.domain.0));
        (namespace, options)
    });
    own.collect()
}
