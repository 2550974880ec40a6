#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::*;
use crate::dns::state::Record;
use crate::dns::virtual_address::number::NUMBERS;
use tokio::time::Instant;

fn names(list: &[&str]) -> Vec<Arc<str>> {
    list.iter().map(|&name| Arc::from(name)).collect()
}

/// A change of policy, from beginning to end.
fn apply<'a>(
    all: &VirtualAddresses,
    exact: impl IntoIterator<Item = &'a Arc<str>>,
    covers: impl Fn(&str) -> bool,
) -> (Assignment, Vec<Arc<Holding>>) {
    let exact: Vec<&Arc<str>> = exact.into_iter().collect();
    let assignment = all.assign(exact.iter().copied(), &covers);
    let released = all.retire(|name| covers(name) || exact.iter().any(|exact| ***exact == *name));
    (assignment, released)
}

fn nothing(_: &str) -> bool {
    false
}

#[test]
fn hash_never_changes() {
    assert_eq!(hash("db.example.com"), 0xdb0);
    assert_eq!(hash(""), 0xf011);
}

#[test]
fn shows_one_number_in_both_families() {
    let address = VirtualAddress(0x0102);
    assert_eq!(address.v4().to_string(), "240.240.1.2");
    assert_eq!(address.v6().to_string(), "2001:2::f0f0:102");
    assert_eq!(VirtualAddress::of(address.v4().into()), Some(address));
    assert_eq!(VirtualAddress::of(address.v6().into()), Some(address));
    let mapped = address.v4().to_ipv6_mapped();
    assert_eq!(VirtualAddress::of(mapped.into()), Some(address));
    assert_eq!(VirtualAddress::of("240.241.1.2".parse().unwrap()), None);
    assert_eq!(VirtualAddress::of("2001:2::1".parse().unwrap()), None);
    assert!(is_virtual("2001:2::1".parse().unwrap()));
    assert!(!is_virtual("2001:3::1".parse().unwrap()));
}

#[test]
fn finds_names_both_ways() {
    let all = VirtualAddresses::in_memory();
    let (assignment, _) = apply(&all, &names(&["a.example", "b.example"]), nothing);
    assert_eq!(assignment.holdings.len(), 2);
    let a = all.get("a.example").unwrap();
    assert_eq!(
        &*all.reverse(a.address.v4().into()).unwrap().name,
        "a.example"
    );
    assert_eq!(
        &*all.reverse(a.address.v6().into()).unwrap().name,
        "a.example"
    );
    assert!(all.get("c.example").is_none());
    assert!(all.reverse("240.240.255.1".parse().unwrap()).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_released_number_is_not_given_away_while_it_may_be_remembered() {
    let all = VirtualAddresses::in_memory();
    // Two names that meet on one number.
    let (first, second) = colliding();
    apply(&all, [&first], nothing);
    let number = all.get(&first).unwrap().address;
    apply(&all, [], nothing);
    assert!(all.get(&first).is_none());
    assert!(all.reverse(number.v4().into()).is_some_and(|h| !h.held()));

    tokio::time::advance(Duration::from_secs(QUARANTINE.as_secs() - 1)).await;
    apply(&all, [&second], nothing);
    assert_ne!(all.get(&second).unwrap().address, number);
    apply(&all, [], nothing);

    // The name itself gets it back at any time.
    apply(&all, [&first], nothing);
    assert_eq!(all.get(&first).unwrap().address, number);
    apply(&all, [], nothing);

    tokio::time::advance(QUARANTINE * 2).await;
    let third = another_at(number, &[&first, &second]);
    apply(&all, [&third], nothing);
    assert_eq!(all.get(&third).unwrap().address, number);
    // The old name must not bring the number's old meaning back.
    apply(&all, [&first, &third], nothing);
    assert_ne!(all.get(&first).unwrap().address, number);
}

fn colliding() -> (Arc<str>, Arc<str>) {
    let mut seen: HashMap<u16, Arc<str>> = HashMap::new();
    for n in 0_u32.. {
        let name: Arc<str> = format!("host-{n}.example").into();
        let number = VirtualAddress(hash(&name));
        let next = VirtualAddress(hash(&name).wrapping_add(1));
        if !number.usable() || !next.usable() {
            continue;
        }
        if let Some(first) = seen.insert(number.0, Arc::clone(&name)) {
            return (first, name);
        }
    }
    unreachable!("65,537 names must collide")
}

fn another_at(number: VirtualAddress, not: &[&Arc<str>]) -> Arc<str> {
    (0..10_000_000)
        .map(|n| Arc::from(format!("other-{n}.example")))
        .find(|name: &Arc<str>| hash(name) == number.0 && !not.contains(&name))
        .unwrap()
}

#[tokio::test(start_paused = true)]
async fn releases_the_least_recently_used_derived_name() {
    let all = VirtualAddresses::in_memory().with_derived_limit(3);
    let derived = names(&["a.w.example", "b.w.example", "c.w.example", "d.w.example"]);
    for name in &derived[..3] {
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(all.allocate(name).unwrap().1.is_empty());
    }
    tokio::time::advance(Duration::from_secs(1)).await;
    all.touch(&all.get("a.w.example").unwrap());
    let (_, released) = all.allocate(&derived[3]).unwrap();
    assert_eq!(released.len(), 1);
    assert_eq!(&*released[0].name, "b.w.example");
    assert!(all.get("a.w.example").is_some());
    assert!(all.get("b.w.example").is_none());
    // Asked again, it gets the same number, and another one goes.
    let before = released[0].address;
    let (again, released) = all.allocate(&derived[1]).unwrap();
    assert_eq!(again.address, before);
    assert_eq!(&*released[0].name, "c.w.example");
}

#[tokio::test(start_paused = true)]
async fn says_when_nothing_is_left_and_recovers() {
    let all = VirtualAddresses::in_memory().with_derived_limit(usize::MAX);
    let mut count = 0;
    let last = loop {
        let name: Arc<str> = format!("{count}.w.example").into();
        match all.allocate(&name) {
            Ok(_) => count += 1,
            Err(DnsError::Exhausted { name }) => break name,
            Err(other) => unreachable!("{other}"),
        }
    };
    assert_eq!(count, NUMBERS - 256 - 1);
    // Released ones are given again, under pressure after ten minutes.
    apply(&all, [], nothing);
    assert!(all.allocate(&last).is_err());
    tokio::time::advance(QUARANTINE_UNDER_PRESSURE).await;
    assert!(all.allocate(&last).is_ok());
}

#[tokio::test]
async fn keeps_derived_names_with_their_wildcard_host_only() {
    let all = VirtualAddresses::in_memory();
    let name: Arc<str> = "x.w.example".into();
    all.allocate(&name).unwrap();
    let (assignment, _) = apply(&all, [], |name| name.ends_with(".w.example"));
    assert_eq!(assignment.holdings.len(), 1);
    // Written out in full, it is no longer derived, and keeps its number.
    let number = all.get(&name).unwrap().address;
    let (assignment, _) = apply(&all, [&name], |name| name.ends_with(".w.example"));
    assert_eq!(assignment.holdings.len(), 1);
    assert!(!assignment.holdings[0].derived);
    assert_eq!(assignment.holdings[0].address, number);
    let (_, released) = apply(&all, [], nothing);
    assert_eq!(released.len(), 1);
}

#[tokio::test]
async fn a_restart_gives_the_same_addresses() {
    let directory = tempfile::tempdir().unwrap();
    let (first, second) = colliding();
    let derived: Arc<str> = "x.w.example".into();
    let covers = |name: &str| name.ends_with(".w.example");
    let before = VirtualAddresses::open(directory.path());
    // In the order that probing makes matter.
    apply(&before, [&second], covers);
    apply(&before, [&first, &second], covers);
    before.allocate(&derived).unwrap();
    before.save().await.unwrap();

    let after = VirtualAddresses::open(directory.path());
    let (assignment, _) = apply(&after, [&first, &second], covers);
    assert_eq!(assignment.holdings.len(), 3);
    for name in [&first, &second, &derived] {
        let (old, new) = (before.get(name).unwrap(), after.get(name).unwrap());
        assert_eq!(old.address, new.address);
        assert_eq!(old.derived, new.derived);
        assert!(!new.ready(), "the kernel knows nothing yet");
    }
}

#[test]
fn skips_records_that_contradict_each_other() {
    let record = |name: &str, index| Record {
        name: name.into(),
        index,
        derived: false,
        used: 0,
        released: 0,
    };
    let records = vec![
        record("a", 5),
        record("b", 5),
        record("a", 6),
        record("zero", 0),
        record("self-test", 0xff01),
    ];
    let all = VirtualAddresses::restored(None, records);
    let (assignment, _) = apply(&all, &names(&["a", "b", "zero", "self-test"]), nothing);
    assert_eq!(all.get("a").unwrap().address, VirtualAddress(5));
    let numbers: HashSet<_> = assignment.holdings.iter().map(|h| h.address).collect();
    assert_eq!(numbers.len(), 4);
    assert!(numbers.iter().all(|address| address.usable()));
}

#[derive(Clone, Debug)]
enum Step {
    Assign(Vec<u8>),
    Allocate(u8),
    Advance(u32),
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        proptest::collection::vec(0_u8..40, 0..20).prop_map(Step::Assign),
        (40_u8..120).prop_map(Step::Allocate),
        (0_u32..200_000).prop_map(Step::Advance),
        Just(Step::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// No two live names ever share a number, no number changes its name while
    /// it may be remembered, and a restart gives the same.
    #[test]
    fn numbers_stay_with_their_names(steps in proptest::collection::vec(step(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let directory = tempfile::tempdir().unwrap();
            let mut all = VirtualAddresses::open(directory.path()).with_derived_limit(16);
            // Wall time does not move on a paused clock, so no step may
            // restart after it advanced.
            let mut advanced = false;
            // When each number was last live, and for whom.
            let mut last: HashMap<VirtualAddress, (Arc<str>, Instant)> = HashMap::new();
            for step in steps {
                match step {
                    Step::Assign(list) => {
                        let list: Vec<Arc<str>> =
                            list.iter().map(|n| Arc::from(format!("n{n}.example"))).collect();
                        apply(&all, &list, |name| name.ends_with(".w.example"));
                    }
                    Step::Allocate(n) => {
                        all.allocate(&Arc::from(format!("n{n}.w.example"))).unwrap();
                    }
                    Step::Advance(seconds) => {
                        advanced = true;
                        tokio::time::advance(Duration::from_secs(seconds.into())).await;
                    }
                    Step::Restart if !advanced => {
                        let exact: Vec<Arc<str>> = all.held.values().iter()
                            .filter(|h| !h.derived).map(|h| Arc::clone(&h.name)).collect();
                        let before: HashMap<_, _> = all.held.values().iter()
                            .map(|h| (Arc::clone(&h.name), h.address)).collect();
                        all.save().await.unwrap();
                        all = VirtualAddresses::open(directory.path()).with_derived_limit(16);
                        apply(&all, &exact, |name| name.ends_with(".w.example"));
                        for (name, address) in before {
                            prop_assert_eq!(all.get(&name).map(|h| h.address), Some(address));
                        }
                    }
                    Step::Restart => {}
                }
                let live = all.held.values();
                let numbers: HashSet<_> = live.iter().map(|h| h.address).collect();
                prop_assert_eq!(numbers.len(), live.len());
                let derived = live.iter().filter(|h| h.derived).count();
                prop_assert_eq!(derived, all.lock().derived);
                for holding in &live {
                    prop_assert!(holding.held() && holding.address.usable());
                    let named = all.reverse(holding.address.v6().into()).unwrap();
                    prop_assert_eq!(&named.name, &holding.name);
                    let now = Instant::now();
                    let before = last.insert(holding.address, (Arc::clone(&holding.name), now));
                    if let Some((name, when)) = before
                        && name != holding.name
                    {
                        prop_assert!(now - when + Duration::from_secs(1) >= QUARANTINE);
                    }
                }
            }
            Ok(())
        })?;
    }
}
