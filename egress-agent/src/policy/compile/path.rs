//! Direct or through the agent, and why.

use std::borrow::Cow;

use super::clusters::Built;
use super::services::Shell;
use crate::policy::model::{Algorithm, EndpointAddress, HashKey, Protocol, Resolution};
use crate::policy::routes::Target;
use crate::policy::snapshot::{OnAgentFailure, Path, View};

/// Whether a service needs the agent: it does if any of its views does, since
/// the kernel decides before it is known who will be served.
pub(super) fn decide(shell: &Shell<'_>, views: &[(View, Vec<Built>)]) -> Path {
    let protocol = shell.target.protocol;
    if protocol == Protocol::Udp {
        return Path::Direct("UDP is refused, so that clients fall back to TCP".into());
    }
    if protocol.is_http() {
        return Path::Proxy(format!("port {} speaks HTTP", shell.key.port).into());
    }
    for (view, clusters) in views {
        if let Some(reason) = reason(shell, view, clusters) {
            return Path::Proxy(reason);
        }
    }
    if views.len() > 1 {
        return Path::Proxy("the policy depends on who the client is".into());
    }
    if shell.key.host.exact().is_none() && shell.addresses.is_empty() {
        let host = &shell.key.host;
        return Path::Proxy(
            format!("{host} is many names, and only the first bytes tell which").into(),
        );
    }
    if protocol == Protocol::Unset && shell.target.resolution != Resolution::None {
        // Nothing acts on HTTP alone, so what it speaks does not matter.
        return Path::Direct("no setting needs a look at the bytes".into());
    }
    Path::Direct(if protocol.is_tls() {
        "TLS passes as the client speaks it; no setting needs a look at the bytes".into()
    } else {
        "no setting needs a look at the bytes".into()
    })
}

fn reason(shell: &Shell<'_>, view: &View, clusters: &[Built]) -> Option<Cow<'static, str>> {
    let port = shell.key.port;
    if view.http.is_some() {
        return Some("http routes of a VirtualService".into());
    }
    if view.tls.is_some() {
        return Some("tls routes of a VirtualService choose by the name in the ClientHello".into());
    }
    if view.tcp.as_deref().is_some_and(|routes| {
        // One route of everything to the service itself changes nothing.
        let plain = |target: &Target| match target {
            Target::Cluster(cluster) => cluster.index == view.cluster.index,
            Target::Missing(_) => false,
        };
        !routes.first().is_some_and(|route| {
            route.matches.is_empty() && route.destinations.iter().all(|(target, _)| plain(target))
        })
    }) {
        return Some("tcp routes of a VirtualService".into());
    }
    for built in clusters {
        let policy = &built.cluster.policy;
        let reason: Cow<'_, str> = if built.originates_tls {
            format!("TLS is originated on port {port}").into()
        } else if policy.proxy_protocol.is_some() {
            "proxyProtocol: a header goes before the first bytes".into()
        } else if policy.tunnel.is_some() {
            "tunnel: the bytes go through a CONNECT or POST".into()
        } else if policy.connection_pool.max_connection_duration.is_some() {
            "connectionPool.tcp.maxConnectionDuration, which the kernel cannot enforce".into()
        } else if built.idle_timeout {
            "connectionPool.tcp.idleTimeout, which the kernel cannot enforce".into()
        } else if let Some(setting) = built.http_setting
            && (shell.target.protocol.is_tls() || shell.target.protocol == Protocol::Unset)
        {
            format!("{setting} acts on HTTP, and only the first bytes tell whether it is spoken")
                .into()
        } else if policy.credential.is_some()
            && (shell.target.protocol.is_tls() || shell.target.protocol == Protocol::Unset)
        {
            "egress-agent.dev/inject-credential acts on HTTP, and only the first bytes tell \
             whether it is spoken"
                .into()
        } else if let Algorithm::Hash {
            key: HashKey::SourceIp,
            ..
        } = policy.load_balancer.algorithm
        {
            "loadBalancer.consistentHash by source address".into()
        } else if built.cluster.endpoints.iter().any(is_unix) {
            "an endpoint is a Unix socket".into()
        } else if shell.target.resolution == Resolution::DynamicDns {
            "DYNAMIC_DNS: the name asked for is resolved for each connection".into()
        } else {
            continue;
        };
        return Some(reason);
    }
    None
}

fn is_unix(endpoint: &crate::policy::model::EndpointSpec) -> bool {
    matches!(endpoint.address, EndpointAddress::Unix(_))
}

/// `on-agent-failure`, but never open where TLS would be lost.
pub(super) fn on_failure(wanted: OnAgentFailure, views: &[(View, Vec<Built>)]) -> OnAgentFailure {
    let tls = |built: &Built| built.originates_tls || built.cluster.policy.tls.is_some();
    let loses = views.iter().flat_map(|(_, clusters)| clusters).any(tls);
    if loses {
        OnAgentFailure::Closed
    } else {
        wanted
    }
}
