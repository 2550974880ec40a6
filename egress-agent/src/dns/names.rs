//! What a policy claims of the name space, for a client in one namespace.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use crate::policy::model::{HostPattern, Resolution, Visibility};
use crate::policy::snapshot::{Service, Snapshot};

/// How a name is answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Claim {
    /// Not here: unregistered, or registered in a way that needs the truth
    /// (resolution NONE, only CIDRs in `addresses`, or
    /// `networking.istio.io/enable-autoallocate-ip: "false"`).
    Forward,
    /// With the single addresses of the ServiceEntry.
    Listed(Vec<IpAddr>),
    /// With the virtual address of the name.
    Virtual,
    /// With the virtual address of the name, which falls under a wildcard host
    /// and may not have one yet.
    Derived {
        /// Capture it only if the resolver that was asked knows an address.
        confirm: bool,
    },
}

/// The names of one snapshot.
#[derive(Clone, Debug)]
pub struct Names {
    snapshot: Arc<Snapshot>,
}

impl Names {
    /// The names of a snapshot.
    pub const fn new(snapshot: Arc<Snapshot>) -> Self {
        Self { snapshot }
    }

    /// The snapshot.
    pub const fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }

    /// How `host` (lower case, no trailing dot) is answered for a client in
    /// `namespace`. Where several ServiceEntries name the host, written
    /// addresses go before virtual ones, as they are all that an application
    /// which knows the service has ever seen.
    pub fn claim(&self, host: &str, namespace: &str) -> Claim {
        if self.is_plain(host, namespace) {
            return Claim::Virtual;
        }
        let mut listed = Vec::new();
        let mut exact = false;
        let mut derived = false;
        let mut confirm = true;
        for service in self.snapshot.services_of(host, namespace) {
            for net in &service.addresses {
                if net.prefix_len() == net.max_prefix_len() && !listed.contains(&net.addr()) {
                    listed.push(net.addr());
                }
            }
            if !claims(service) {
                continue;
            }
            match service.key.host {
                HostPattern::Exact(_) => exact = true,
                HostPattern::Suffix(_) => {
                    derived = true;
                    // With endpoints of its own, the name need not exist
                    // anywhere else.
                    confirm &=
                        service.resolution != Resolution::Static && service.endpoints.is_empty();
                }
            }
        }
        if !listed.is_empty() {
            Claim::Listed(listed)
        } else if exact {
            Claim::Virtual
        } else if derived && is_host_name(host) {
            Claim::Derived { confirm }
        } else {
            Claim::Forward
        }
    }

    /// Whether everything that the client sees of `host` has its virtual
    /// address: the usual case, told without a list.
    fn is_plain(&self, host: &str, namespace: &str) -> bool {
        let exact = self.snapshot.by_host.get(host).into_iter().flatten();
        let mut visible = exact.filter(|service| service.visibility.includes(namespace));
        visible.next().is_some_and(|first| claims(first)) && visible.all(|other| claims(other))
    }

    /// Every full name that holds a virtual address under this policy.
    pub fn exact(&self) -> impl Iterator<Item = &Arc<str>> {
        let hosts = self.snapshot.by_host.iter();
        hosts
            .filter(|(_, services)| services.iter().any(|service| claims(service)))
            .map(|(host, _)| host)
    }

    /// Whether some wildcard host claims `name` for some client.
    pub fn covers(&self, name: &str) -> bool {
        self.under_wildcards(name).next().is_some()
    }

    /// Whether `name` is a full name that holds a virtual address under this
    /// policy.
    pub fn claims_exactly(&self, name: &str) -> bool {
        let exact = self.snapshot.by_host.get(name);
        exact.is_some_and(|services| services.iter().any(|service| claims(service)))
    }

    /// Whether this policy gives `name` a virtual address for some client.
    pub fn keeps(&self, name: &str) -> bool {
        self.claims_exactly(name) || self.covers(name)
    }

    /// The full names to which the policy may not give what the one `before`
    /// gave. `None`: any name, since wildcard hosts came or went, or there was
    /// none before.
    pub fn since(&self, before: &Self) -> Option<Vec<Arc<str>>> {
        if before.snapshot.services.is_empty() {
            return None;
        }
        let difference = self.snapshot.since(&before.snapshot);
        let changed = difference.gone.into_iter().chain(difference.new);
        let names: Option<HashSet<&Arc<str>>> =
            changed.map(|service| service.key.host.exact()).collect();
        Some(names?.into_iter().cloned().collect())
    }

    fn under_wildcards<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Arc<Service>> {
        let lists = self.snapshot.wildcards.iter().map(|(_, list)| list);
        lists
            .flatten()
            .filter(move |service| claims(service) && service.key.host.matches(name))
    }

    /// Every service that a connection to the virtual address of `name` may
    /// belong to, whoever calls: those of the full name, then those of
    /// wildcard hosts, longest suffix first. Which of them a caller gets, its
    /// namespace decides ([`Snapshot::services_of`]).
    pub fn services(&self, name: &str) -> Vec<Arc<Service>> {
        let exact = self.snapshot.by_host.get(name).into_iter().flatten();
        exact
            .filter(|service| claims(service))
            .chain(self.under_wildcards(name))
            .cloned()
            .collect()
    }
}

/// Whether everyone who sees `service` sees a more specific one for `name` on
/// the same port, which then has the connection.
pub(super) fn hidden(service: &Service, name: &str, services: &[Arc<Service>]) -> bool {
    let before = services
        .iter()
        .take_while(|other| other.key.host != service.key.host);
    before
        .filter(|other| other.key.port == service.key.port && other.key.host.matches(name))
        .any(|other| match (&other.visibility, &service.visibility) {
            (Visibility::All, _) => true,
            (Visibility::Namespaces(_), Visibility::All) => false,
            (Visibility::Namespaces(theirs), Visibility::Namespaces(ours)) => {
                ours.iter().all(|namespace| theirs.contains(namespace))
            }
        })
}

/// Whether the policy gives the service's names virtual addresses.
pub fn claims(service: &Service) -> bool {
    service.virtual_address
        && service.resolution != Resolution::None
        && service.addresses.is_empty()
}

/// Letters, digits, hyphens and underscores: what a derived name may be made
/// of. A query may hold any bytes, and this one is kept and shown.
fn is_host_name(name: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    name.len() <= 253 && name.split('.').all(label)
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::collections::HashMap;

    use super::*;
    use crate::policy::model::{
        DocumentRef, EndpointAddress, EndpointSpec, Labels, Locality, Protocol,
    };
    use crate::policy::snapshot::{OnAgentFailure, Path, ServiceId, ServiceKey};

    /// A service as the compiler would make it, to be changed by tests.
    pub(crate) fn service(host: &str, port: u16) -> Service {
        let pattern = match host.strip_prefix('*') {
            Some(suffix) => HostPattern::Suffix(suffix.into()),
            None => HostPattern::Exact(host.into()),
        };
        Service {
            id: ServiceId(u32::from(port)),
            key: ServiceKey {
                namespace: "default".into(),
                host: pattern,
                port,
            },
            entry: Arc::new(DocumentRef {
                kind: "ServiceEntry",
                namespace: "default".into(),
                name: host.into(),
                source: "test.yaml".into(),
                line: 1,
            }),
            port_name: "port".into(),
            protocol: Protocol::Tcp,
            resolution: if host.starts_with('*') {
                Resolution::DynamicDns
            } else {
                Resolution::Dns
            },
            target_port: port,
            addresses: Vec::new(),
            virtual_address: true,
            endpoints: [].into(),
            visibility: Visibility::All,
            path: Path::Proxy("test".into()),
            on_agent_failure: OnAgentFailure::Closed,
            views: Vec::new(),
        }
    }

    pub(crate) fn snapshot(services: Vec<Service>) -> Arc<Snapshot> {
        snapshot_of(services.into_iter().map(Arc::new).collect())
    }

    /// In order, as the compiler would make it.
    pub(crate) fn snapshot_of(mut services: Vec<Arc<Service>>) -> Arc<Snapshot> {
        services.sort_by(|a, b| a.key.cmp(&b.key));
        let mut snapshot = Snapshot::default();
        let mut wildcards: HashMap<Arc<str>, Vec<Arc<Service>>> = HashMap::new();
        for service in services {
            match &service.key.host {
                HostPattern::Exact(host) => snapshot
                    .by_host
                    .entry(Arc::clone(host))
                    .or_default()
                    .push(Arc::clone(&service)),
                HostPattern::Suffix(suffix) => wildcards
                    .entry(Arc::clone(suffix))
                    .or_default()
                    .push(Arc::clone(&service)),
            }
            snapshot.by_id.insert(service.id, Arc::clone(&service));
            snapshot.services.push(service);
        }
        snapshot.wildcards = wildcards.into_iter().collect();
        snapshot
            .wildcards
            .sort_by_key(|(suffix, _)| std::cmp::Reverse(suffix.len()));
        Arc::new(snapshot)
    }

    fn names(services: Vec<Service>) -> Names {
        Names::new(snapshot(services))
    }

    #[test]
    fn claims_what_istio_would_allocate_for() {
        let mut none = service("none.example", 5432);
        none.resolution = Resolution::None;
        let mut off = service("off.example", 5432);
        off.virtual_address = false;
        let mut cidr = service("cidr.example", 5432);
        cidr.resolution = Resolution::Static;
        cidr.addresses = vec!["10.1.0.0/16".parse().unwrap()];
        let mut listed = service("listed.example", 5432);
        listed.resolution = Resolution::None;
        listed.addresses = vec![
            "10.1.0.0/16".parse().unwrap(),
            "10.2.0.1/32".parse().unwrap(),
            "2001:db8::1/128".parse().unwrap(),
        ];
        let names = names(vec![service("db.example", 5432), none, off, cidr, listed]);
        assert_eq!(names.claim("db.example", "default"), Claim::Virtual);
        for host in [
            "none.example",
            "off.example",
            "cidr.example",
            "other.example",
        ] {
            assert_eq!(names.claim(host, "default"), Claim::Forward, "{host}");
        }
        let expected = vec!["10.2.0.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        assert_eq!(
            names.claim("listed.example", "default"),
            Claim::Listed(expected)
        );
        let exact: Vec<&str> = names.exact().map(|name| &**name).collect();
        assert_eq!(exact, ["db.example"]);
    }

    #[test]
    fn a_search_domain_makes_another_name() {
        let names = names(vec![service("db.internal.corp", 5432)]);
        let searched = "db.internal.corp.default.svc.cluster.local";
        assert_eq!(names.claim(searched, "default"), Claim::Forward);
    }

    #[test]
    fn only_visible_entries_claim() {
        let mut hidden = service("db.example", 5432);
        hidden.visibility = Visibility::Namespaces(vec!["other".into()]);
        let names = names(vec![hidden]);
        assert_eq!(names.claim("db.example", "default"), Claim::Forward);
        assert_eq!(names.claim("db.example", "other"), Claim::Virtual);
        // The address belongs to the name, whoever may see it.
        assert_eq!(names.exact().count(), 1);
    }

    #[test]
    fn wildcards_claim_names_that_are_host_names() {
        let mut fixed = service("*.fixed.example", 443);
        fixed.resolution = Resolution::Static;
        fixed.endpoints = [EndpointSpec {
            address: EndpointAddress::Ip("10.0.0.1".parse().unwrap()),
            port: 443,
            weight: 1,
            locality: Locality::default(),
            labels: Labels::default(),
        }]
        .into();
        let mut none = service("*.none.example", 443);
        none.resolution = Resolution::None;
        let names = names(vec![service("*.w.example", 443), fixed, none]);
        let derived = |confirm| Claim::Derived { confirm };
        assert_eq!(names.claim("a.w.example", "default"), derived(true));
        assert_eq!(names.claim("a.b.w.example", "default"), derived(true));
        assert_eq!(names.claim("a.fixed.example", "default"), derived(false));
        for host in [
            "w.example",
            "*.w.example",
            "a\\000b.w.example",
            "a.none.example",
        ] {
            assert_eq!(names.claim(host, "default"), Claim::Forward, "{host}");
        }
        assert!(names.covers("a.w.example"));
        assert!(!names.covers("a.none.example"));
    }

    #[test]
    fn an_address_may_belong_to_several_services() {
        let mut own = service("*.b.w.example", 443);
        own.visibility = Visibility::Namespaces(vec!["other".into()]);
        let names = names(vec![
            service("*.w.example", 443),
            own,
            service("x.b.w.example", 80),
        ]);
        let hosts: Vec<String> = names
            .services("x.b.w.example")
            .iter()
            .map(|service| service.key.host.to_string())
            .collect();
        assert_eq!(hosts, ["x.b.w.example", "*.b.w.example", "*.w.example"]);
    }
}
