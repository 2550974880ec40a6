#![allow(clippy::panic, reason = "tests")]

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use egress_common::{
    ENTRY_NAME_DECIDES, ENTRY_REAL_ADDRESS, NetworkKey, SCOPE_ALL, ServiceValue, VERDICT_DIRECT,
    VERDICT_PROXY,
};

use super::{AddressBook, MapKey, Plan, Scopes, exact, plan};
use crate::policy::model::{DocumentRef, HostPattern, Protocol, Resolution, Visibility};
use crate::policy::snapshot::{OnAgentFailure, Path, Service, ServiceId, ServiceKey, Snapshot};

#[derive(Default)]
struct Book {
    virtuals: HashMap<u32, (Ipv4Addr, Ipv6Addr)>,
    resolved: HashMap<u32, Vec<IpAddr>>,
}

impl AddressBook for Book {
    fn virtual_addresses(&self, service: &Service) -> Vec<(Ipv4Addr, Ipv6Addr)> {
        self.virtuals
            .get(&service.id.0)
            .copied()
            .into_iter()
            .collect()
    }

    fn resolved(&self, service: &Service) -> Arc<[IpAddr]> {
        self.resolved
            .get(&service.id.0)
            .map_or_else(|| Arc::from([]), |list| Arc::from(list.as_slice()))
    }
}

fn service(id: u32, host: &str, port: u16, protocol: Protocol) -> Service {
    Service {
        id: ServiceId(id),
        key: ServiceKey {
            namespace: "production".into(),
            host: HostPattern::Exact(host.into()),
            port,
        },
        entry: Arc::new(DocumentRef {
            kind: "ServiceEntry",
            namespace: "production".into(),
            name: host.into(),
            source: "test".into(),
            line: 1,
        }),
        port_name: "p".into(),
        protocol,
        resolution: Resolution::Dns,
        target_port: port,
        addresses: Vec::new(),
        virtual_address: true,
        endpoints: [].into(),
        visibility: Visibility::All,
        path: Path::Direct("".into()),
        on_agent_failure: OnAgentFailure::Closed,
        views: Vec::new(),
    }
}

fn planned(services: Vec<Service>, book: &Book) -> (Plan, Scopes) {
    let snapshot = Snapshot {
        services: services.into_iter().map(Arc::new).collect(),
        ..Snapshot::default()
    };
    let mut scopes = Scopes::default();
    let plan = plan(&snapshot, &mut scopes, book);
    (plan, scopes)
}

fn at(plan: &Plan, scope: u32, port: u16, ip: &str) -> Option<ServiceValue> {
    let Ok(ip) = ip.parse() else {
        panic!("not an address: {ip}")
    };
    plan.get(&exact(scope, port, ip)).copied()
}

#[test]
fn virtual_addresses_stand_in_the_own_namespace_and_for_all() {
    let mut book = Book::default();
    book.virtuals
        .insert(7, (Ipv4Addr::new(240, 240, 1, 2), Ipv6Addr::LOCALHOST));
    let (plan, mut scopes) = planned(vec![service(7, "a.com", 5432, Protocol::Tcp)], &book);
    let own = scopes.number(&"production".into());
    for scope in [own, SCOPE_ALL] {
        let value = at(&plan, scope, 5432, "240.240.1.2");
        assert_eq!(
            value.map(|v| (v.service, v.verdict)),
            Some((7, VERDICT_DIRECT))
        );
        assert!(at(&plan, scope, 5432, "::1").is_some());
    }
    assert_eq!(plan.len(), 4);
}

#[test]
fn an_entry_for_some_namespaces_has_no_key_for_all() {
    let mut book = Book::default();
    book.virtuals
        .insert(1, (Ipv4Addr::new(240, 240, 1, 2), Ipv6Addr::LOCALHOST));
    let mut entry = service(1, "a.com", 443, Protocol::Tls);
    entry.visibility = Visibility::Namespaces(vec!["other".into()]);
    let (plan, mut scopes) = planned(vec![entry], &book);
    let other = scopes.number(&"other".into());
    assert!(at(&plan, other, 443, "240.240.1.2").is_some());
    assert!(at(&plan, SCOPE_ALL, 443, "240.240.1.2").is_none());
}

#[test]
fn networks_and_whole_ports_have_the_right_prefix() {
    let mut cidr = service(1, "a.com", 80, Protocol::Http);
    cidr.addresses = "10.1.0.0/16".parse().into_iter().collect();
    let mut whole = service(2, "db", 5432, Protocol::Tcp);
    whole.resolution = Resolution::None;
    let mut whole_tls = service(3, "*.b.com", 443, Protocol::Tls);
    whole_tls.resolution = Resolution::None;
    let (plan, _) = planned(vec![cidr, whole, whole_tls], &Book::default());
    let mut found: Vec<(u32, u32, u8, u8)> = plan
        .iter()
        .filter_map(|(key, value)| match key {
            MapKey::Network(net) if net.data.scope == [0; 4] => {
                Some((value.service, net.bits, value.specificity, value.flags))
            }
            _ => None,
        })
        .collect();
    found.sort_unstable();
    assert_eq!(
        found,
        [
            (1, NetworkKey::FIXED_BITS + 96 + 16, 112, 0),
            (2, NetworkKey::FIXED_BITS, 0, 0),
            (3, NetworkKey::FIXED_BITS, 0, ENTRY_NAME_DECIDES),
        ]
    );
}

#[test]
fn a_resolved_address_is_taken_only_where_that_is_safe() {
    let shared: IpAddr = Ipv4Addr::new(203, 0, 113, 1).into();
    let single: IpAddr = Ipv4Addr::new(203, 0, 113, 2).into();
    let declared: IpAddr = Ipv4Addr::new(203, 0, 113, 3).into();
    let mut book = Book::default();
    book.resolved.insert(1, vec![shared, single]);
    book.resolved.insert(2, vec![shared]);
    book.resolved.insert(3, vec![shared, single, declared]);
    book.resolved.insert(4, vec![shared]);
    let mut owner = service(5, "owner.com", 443, Protocol::Https);
    owner.addresses = vec![declared.into()];
    let (plan, _) = planned(
        vec![
            service(1, "db1", 5432, Protocol::Tcp),
            service(2, "db2", 5432, Protocol::Tcp),
            service(3, "a.com", 443, Protocol::Https),
            service(4, "b.com", 443, Protocol::Https),
            owner,
        ],
        &book,
    );
    // Two opaque services at one address and port: nothing tells them apart.
    assert!(at(&plan, SCOPE_ALL, 5432, "203.0.113.1").is_none());
    // One opaque service: its own, and the kernel may pick.
    let value = at(&plan, SCOPE_ALL, 5432, "203.0.113.2");
    assert_eq!(
        value.map(|v| (v.service, v.verdict, v.flags)),
        Some((1, VERDICT_DIRECT, ENTRY_REAL_ADDRESS))
    );
    // TLS carries the name, so the agent looks at it, for one service as for
    // two: unregistered names may live at the same address.
    for ip in ["203.0.113.1", "203.0.113.2"] {
        let value = at(&plan, SCOPE_ALL, 443, ip);
        assert_eq!(
            value.map(|v| (v.service, v.verdict, v.flags)),
            Some((3, VERDICT_PROXY, ENTRY_REAL_ADDRESS | ENTRY_NAME_DECIDES))
        );
    }
    // What `addresses` says goes before what was resolved.
    let value = at(&plan, SCOPE_ALL, 443, "203.0.113.3");
    assert_eq!(value.map(|v| (v.service, v.flags)), Some((5, 0)));
}

#[test]
fn scope_numbers_are_stable_and_never_zero() {
    let mut scopes = Scopes::default();
    let a = scopes.number(&"a".into());
    let b = scopes.number(&"b".into());
    assert_eq!((a, b, scopes.number(&"a".into())), (1, 2, 1));
}

mod kept {
    use proptest::prelude::*;

    use super::*;
    use crate::capture::keys::{Changed, Planner};

    /// Host, port, protocol, visibility, resolution: few, so that keys meet.
    #[derive(Clone, Debug)]
    struct Made {
        host: u8,
        port: u8,
        tcp: bool,
        public: bool,
        listed: Option<u8>,
        virtual_address: Option<u8>,
        resolved: Vec<u8>,
    }

    fn made() -> impl Strategy<Value = Made> {
        (
            (0..5_u8, 0..2_u8, any::<bool>(), any::<bool>()),
            prop::option::of(0..3_u8),
            prop::option::of(0..3_u8),
            prop::collection::vec(0..3_u8, 0..3),
        )
            .prop_map(
                |((host, port, tcp, public), listed, virtual_address, resolved)| Made {
                    host,
                    port,
                    tcp,
                    public,
                    listed,
                    virtual_address,
                    resolved,
                },
            )
    }

    fn build(list: &[Made], before: &Snapshot, book: &mut Book) -> Snapshot {
        let mut services: HashMap<ServiceKey, Arc<Service>> = HashMap::new();
        *book = Book::default();
        for made in list {
            let id = u32::from(made.host) * 2 + u32::from(made.port) + 1;
            let protocol = if made.tcp {
                Protocol::Tcp
            } else {
                Protocol::Http
            };
            let mut new = service(
                id,
                &format!("h{}", made.host),
                80 + u16::from(made.port),
                protocol,
            );
            if !made.public {
                new.visibility = Visibility::Namespaces(vec!["a".into(), "b".into()]);
            }
            let listed = made
                .listed
                .map(|last| IpAddr::from([192, 0, 2, last]).into());
            new.addresses = listed.into_iter().collect();
            if let Some(last) = made.virtual_address {
                let v6 = Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, last.into());
                book.virtuals
                    .insert(id, (Ipv4Addr::new(240, 240, 0, last), v6));
            }
            let resolved = made
                .resolved
                .iter()
                .map(|last| IpAddr::from([203, 0, 113, *last]));
            book.resolved.insert(id, resolved.collect());
            // What did not change stays the same value.
            let old = before.by_id.get(&new.id);
            let same = |old: &&Arc<Service>| format!("{old:?}") == format!("{new:?}");
            let new = old.filter(same).cloned().unwrap_or_else(|| Arc::new(new));
            services.insert(new.key.clone(), new);
        }
        let mut services: Vec<_> = services.into_values().collect();
        services.sort_by(|a, b| a.key.cmp(&b.key));
        Snapshot {
            by_id: services.iter().map(|s| (s.id, Arc::clone(s))).collect(),
            services,
            ..Snapshot::default()
        }
    }

    proptest! {
        #[test]
        fn a_plan_that_is_kept_is_the_plan_that_is_made_anew(
            steps in prop::collection::vec(prop::collection::vec(made(), 0..7), 1..6)
        ) {
            let mut scopes = Scopes::default();
            let mut planner = Planner::default();
            let mut snapshot = Arc::new(Snapshot::default());
            let mut kept = Plan::new();
            let mut book = Book::default();
            for list in steps {
                snapshot = Arc::new(build(&list, &snapshot, &mut book));
                let changes = planner.update(&snapshot, &mut scopes, &book, Changed::Addresses);
                for (key, value) in changes {
                    match value {
                        Some(value) => kept.insert(key, value),
                        None => kept.remove(&key),
                    };
                }
                prop_assert_eq!(&kept, &plan(&snapshot, &mut scopes, &book));
                // Nothing new: nothing to do.
                let again = planner.update(&snapshot, &mut scopes, &book, Changed::Policy);
                prop_assert!(again.is_empty());
            }
        }
    }
}
