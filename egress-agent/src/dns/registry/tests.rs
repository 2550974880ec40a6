#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Semaphore;

use super::super::names::tests::{service, snapshot};
use super::*;
use crate::policy::model::Visibility;

/// A capture side that takes as long as the test lets it.
#[derive(Clone, Default)]
pub(crate) struct Kernel(Arc<Inner>);

pub(crate) struct Inner {
    published: Mutex<Vec<NewAddress>>,
    withdrawn: Mutex<Vec<Arc<str>>>,
    running: AtomicUsize,
    permits: Semaphore,
    fail: AtomicBool,
}

impl Default for Inner {
    fn default() -> Self {
        Self {
            published: Mutex::default(),
            withdrawn: Mutex::default(),
            running: AtomicUsize::default(),
            permits: Semaphore::new(Semaphore::MAX_PERMITS),
            fail: false.into(),
        }
    }
}

impl Kernel {
    pub(crate) fn published(&self) -> Vec<String> {
        let list = self.0.published.lock().unwrap();
        list.iter().map(|new| new.name.to_string()).collect()
    }
}

impl Publish for Kernel {
    fn publish(&self, new: NewAddress) -> Published<'_> {
        Box::pin(async move {
            assert_eq!(self.0.running.fetch_add(1, Ordering::SeqCst), 0);
            let permit = self.0.permits.acquire().await;
            self.0.running.fetch_sub(1, Ordering::SeqCst);
            permit?.forget();
            if self.0.fail.load(Ordering::SeqCst) {
                return Err("map is full".into());
            }
            self.0.published.lock().unwrap().push(new);
            Ok(())
        })
    }

    fn withdraw(&self, gone: &[Arc<Holding>]) {
        let names = gone.iter().map(|holding| Arc::clone(&holding.name));
        self.0.withdrawn.lock().unwrap().extend(names);
    }
}

async fn apply(registry: &Registry, snapshot: &Arc<Snapshot>) -> (Assignment, Vec<Arc<Holding>>) {
    let assignment = registry.prepare(snapshot);
    let released = registry.install(Arc::clone(snapshot), &assignment).await;
    (assignment, released)
}

fn registry(kernel: &Kernel, limit: usize) -> Registry {
    let addresses = VirtualAddresses::in_memory().with_derived_limit(limit);
    Registry::new(Arc::new(addresses), kernel.clone())
}

#[tokio::test]
async fn full_names_are_answered_once_the_policy_is_installed() {
    let kernel = Kernel::default();
    let registry = registry(&kernel, 10);
    let policy = snapshot(vec![
        service("db.example", 5432),
        service("db.example", 5433),
    ]);
    let assignment = registry.prepare(&policy);
    assert_eq!(assignment.holdings.len(), 1);
    assert!(registry.view("default").address("db.example").is_none());
    registry.install(Arc::clone(&policy), &assignment).await;
    let address = registry.view("default").address("db.example");
    assert_eq!(address, Some(assignment.holdings[0].address));
    assert!(
        kernel.published().is_empty(),
        "its entries came with the policy"
    );
    let (_, released) = apply(&registry, &Arc::default()).await;
    assert_eq!(&*released[0].name, "db.example");
    assert!(registry.view("default").address("db.example").is_none());
}

#[tokio::test(start_paused = true)]
async fn a_derived_name_waits_for_the_kernel_and_is_published_once() {
    let kernel = Kernel::default();
    let registry = registry(&kernel, 10);
    let mut hidden = service("*.b.w.example", 80);
    hidden.visibility = Visibility::Namespaces(vec!["other".into()]);
    apply(
        &registry,
        &snapshot(vec![service("*.w.example", 443), hidden]),
    )
    .await;
    let name: Arc<str> = "a.b.w.example".into();
    let all = tokio::join!(
        registry.ensure(&name),
        registry.ensure(&name),
        registry.ensure(&name)
    );
    assert!(all.0.is_ok() && all.1.is_ok() && all.2.is_ok());
    assert_eq!(kernel.published(), ["a.b.w.example"]);
    let services = kernel.0.published.lock().unwrap()[0].services.clone();
    let ports: Vec<u16> = services.iter().map(|service| service.key.port).collect();
    assert_eq!(ports, [80, 443], "the most specific host first");
    assert!(registry.view("default").address(&name).is_some());
    assert!(registry.pending.lock().unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_kernel_that_fails_or_hangs_fails_the_query_and_not_the_next() {
    let kernel = Kernel::default();
    let registry = registry(&kernel, 10);
    apply(&registry, &snapshot(vec![service("*.w.example", 443)])).await;
    let name: Arc<str> = "a.w.example".into();
    kernel.0.fail.store(true, Ordering::SeqCst);
    let error = registry.ensure(&name).await.unwrap_err();
    assert!(error.to_string().contains("map is full"), "{error}");
    assert!(registry.view("default").address(&name).is_none());

    kernel.0.fail.store(false, Ordering::SeqCst);
    kernel.0.permits.forget_permits(Semaphore::MAX_PERMITS);
    let error = registry.ensure(&name).await.unwrap_err();
    assert!(matches!(error, DnsError::PublishTimeout { .. }));
    kernel.0.running.store(0, Ordering::SeqCst);
    kernel.0.permits.add_permits(1);
    registry.ensure(&name).await.unwrap();
    assert!(registry.view("default").address(&name).is_some());
}

#[tokio::test]
async fn names_that_came_during_a_change_of_policy_are_published_for_it() {
    let kernel = Kernel::default();
    let registry = registry(&kernel, 10);
    let before = snapshot(vec![service("*.w.example", 443)]);
    apply(&registry, &before).await;
    registry.ensure(&"early.w.example".into()).await.unwrap();
    let after = snapshot(vec![
        service("*.w.example", 443),
        service("*.w.example", 80),
    ]);
    let assignment = registry.prepare(&after);
    assert_eq!(
        assignment.holdings.len(),
        1,
        "the early one is compiled with it"
    );
    registry.ensure(&"late.w.example".into()).await.unwrap();
    registry.install(after, &assignment).await;
    let names = ["early.w.example", "late.w.example", "late.w.example"];
    assert_eq!(kernel.published(), names);
    let last = kernel.0.published.lock().unwrap().pop().unwrap();
    assert_eq!(last.services.len(), 2);
}

#[tokio::test]
async fn names_that_a_new_policy_drops_are_answered_until_it_is_in_force() {
    let kernel = Kernel::default();
    let registry = registry(&kernel, 10);
    let before = snapshot(vec![
        service("db.example", 5432),
        service("*.w.example", 443),
    ]);
    apply(&registry, &before).await;
    let assignment = registry.prepare(&Arc::default());
    assert!(registry.view("default").address("db.example").is_some());
    registry.ensure(&"late.w.example".into()).await.unwrap();
    let released = registry.install(Arc::default(), &assignment).await;
    let mut names: Vec<&str> = released.iter().map(|holding| &*holding.name).collect();
    names.sort_unstable();
    assert_eq!(names, ["db.example", "late.w.example"]);
    assert!(registry.addresses().all().is_empty());
    assert_eq!(kernel.published(), ["late.w.example"], "and not again");
}

#[tokio::test]
async fn every_client_gets_the_self_test() {
    let registry = registry(&Kernel::default(), 10);
    let claim = registry.view("anyone").claim(SELF_TEST_HOST);
    assert_eq!(
        claim,
        Claim::Listed(vec!["240.240.255.53".parse().unwrap()])
    );
}

#[tokio::test]
async fn too_many_derived_names_push_the_oldest_out() {
    let kernel = Kernel::default();
    let registry = registry(&kernel, 2);
    apply(&registry, &snapshot(vec![service("*.w.example", 443)])).await;
    for name in ["a.w.example", "b.w.example", "c.w.example"] {
        registry.ensure(&name.into()).await.unwrap();
    }
    assert_eq!(kernel.0.withdrawn.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn an_address_has_a_name_only_for_those_who_see_it() {
    let kernel = Kernel::default();
    let registry = registry(&kernel, 10);
    let mut hidden = service("db.example", 5432);
    hidden.visibility = Visibility::Namespaces(vec!["other".into()]);
    let (assignment, _) = apply(&registry, &snapshot(vec![hidden])).await;
    let ip = assignment.holdings[0].address.v4().into();
    assert_eq!(
        registry.view("other").name(ip).as_deref(),
        Some("db.example")
    );
    assert_eq!(registry.view("default").name(ip), None);
}

#[tokio::test]
async fn the_kernel_knows_a_service_by_its_own_names_only() {
    let kernel = Kernel::default();
    let registry = registry(&kernel, 10);
    let mut hidden = service("*.b.w.example", 443);
    hidden.visibility = Visibility::Namespaces(vec!["other".into()]);
    let all = vec![
        service("db.example", 5432),
        service("*.a.w.example", 443),
        hidden,
        service("*.w.example", 443),
        service("*.w.example", 80),
    ];
    let policy = snapshot(all);
    apply(&registry, &policy).await;
    for name in ["x.w.example", "x.a.w.example", "x.b.w.example"] {
        registry.ensure(&name.into()).await.unwrap();
    }
    let shown = |host: &str, port: u16| -> Vec<String> {
        let services = policy.services.iter();
        let mut of = services
            .filter(|service| service.key.host.to_string() == host && service.key.port == port);
        let addresses = registry.addresses_of(&policy, of.next().unwrap());
        let names = addresses.iter().map(|address| {
            let holding = registry.addresses().reverse(address.v4().into());
            holding.unwrap().name.to_string()
        });
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    };
    assert_eq!(shown("db.example", 5432), ["db.example"]);
    assert_eq!(shown("*.a.w.example", 443), ["x.a.w.example"]);
    assert_eq!(shown("*.b.w.example", 443), ["x.b.w.example"]);
    // What is exported to one namespace hides nothing from the others.
    assert_eq!(shown("*.w.example", 443), ["x.b.w.example", "x.w.example"]);
    let all = ["x.a.w.example", "x.b.w.example", "x.w.example"];
    assert_eq!(shown("*.w.example", 80), all);
}

mod changes {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::super::super::names::tests::snapshot_of;
    use super::*;

    /// Full names, and two wildcard hosts that cover some of them.
    fn host(n: u8) -> String {
        match n {
            6 => "*.a.example".into(),
            7 => "*.example".into(),
            n if n % 2 == 0 => format!("h{n}.a.example"),
            n => format!("h{n}.b.example"),
        }
    }

    proptest! {
        #[test]
        fn names_hold_addresses_by_the_policy_whatever_came_before(
            steps in prop::collection::vec(prop::collection::btree_set(0..8_u8, 0..7), 1..7)
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .build()
                .unwrap();
            let registry = registry(&Kernel::default(), 10);
            let mut services: BTreeMap<u8, Arc<Service>> = BTreeMap::new();
            let mut held: BTreeSet<String> = BTreeSet::new();
            for step in steps {
                // What did not change stays the same value.
                services.retain(|n, _| step.contains(n));
                for n in &step {
                    let new = || Arc::new(service(&host(*n), 443));
                    services.entry(*n).or_insert_with(new);
                }
                let policy = snapshot_of(services.values().cloned().collect());
                runtime.block_on(apply(&registry, &policy));
                let covers = |name: &String| services.values().any(|s| s.key.host.matches(name));
                held.retain(covers);
                held.extend(step.iter().filter(|n| **n < 6).map(|n| host(*n)));
                let all = registry.addresses().all();
                prop_assert!(all.iter().all(|holding| holding.ready()));
                let all: BTreeSet<String> = all.iter().map(|h| h.name.to_string()).collect();
                prop_assert_eq!(&all, &held);
            }
        }
    }
}
