//! Hand-made policy for tests of this room and of those below it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::policy::model::{
    ConnectionPool, DocumentRef, EndpointAddress, EndpointSpec, HostPattern, Labels, LoadBalancer,
    Locality, Protocol, Resolution, TrafficPolicy, Visibility,
};
use crate::policy::routes::HttpRoute;
use crate::policy::snapshot::{
    ClientMatch, Cluster, ClusterKey, ClusterTarget, OnAgentFailure, Path, Service, ServiceId,
    ServiceKey, View,
};

/// A policy that sets nothing.
pub(crate) fn traffic_policy() -> TrafficPolicy {
    TrafficPolicy {
        connection_pool: ConnectionPool::default(),
        load_balancer: LoadBalancer::default(),
        outlier_detection: None,
        tls: None,
        tunnel: None,
        proxy_protocol: None,
        retry_budget: None,
        health_check: None,
        credential: None,
    }
}

/// Cluster number `index` of `host`, with static endpoints.
pub(crate) fn cluster(
    index: usize,
    host: &str,
    protocol: Protocol,
    policy: TrafficPolicy,
    endpoints: &[SocketAddr],
) -> Arc<Cluster> {
    let key = ServiceKey {
        namespace: "shop".into(),
        host: HostPattern::Exact(host.into()),
        port: 80,
    };
    Arc::new(Cluster {
        index,
        key: ClusterKey {
            service: key.clone(),
            subset: "".into(),
            rule: "".into(),
        },
        target: Arc::new(ClusterTarget {
            service: ServiceId(1),
            host: key.host,
            port: 80,
            target_port: 80,
            protocol,
            resolution: Resolution::Static,
            https_port: false,
        }),
        policy: Arc::new(policy),
        endpoints: endpoints
            .iter()
            .map(|address| EndpointSpec {
                address: EndpointAddress::Ip(address.ip()),
                port: address.port(),
                weight: 1,
                locality: Locality::default(),
                labels: Labels::new(),
            })
            .collect(),
    })
}

/// What every client gets: `routes`, or everything to `cluster`.
pub(crate) fn view(cluster: Arc<Cluster>, routes: Option<Vec<HttpRoute>>) -> View {
    View {
        clients: ClientMatch::default(),
        destination_rule: None,
        virtual_service: None,
        cluster,
        subsets: BTreeMap::new(),
        http: routes.map(Arc::from),
        tls: None,
        tcp: None,
    }
}

/// A service with one view.
pub(crate) fn service(view: View) -> Arc<Service> {
    let target = &view.cluster.target;
    Arc::new(Service {
        id: target.service,
        key: view.cluster.key.service.clone(),
        entry: Arc::new(DocumentRef {
            kind: "ServiceEntry",
            namespace: "shop".into(),
            name: "test".into(),
            source: "test".into(),
            line: 1,
        }),
        port_name: "http".into(),
        protocol: target.protocol,
        resolution: target.resolution,
        target_port: target.target_port,
        addresses: Vec::new(),
        virtual_address: false,
        endpoints: view.cluster.endpoints.clone(),
        visibility: Visibility::All,
        path: Path::Proxy("test".into()),
        on_agent_failure: OnAgentFailure::Closed,
        views: vec![view],
    })
}
