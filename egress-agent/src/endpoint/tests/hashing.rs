use super::*;
use crate::policy::model::{HashKey, HashTable};

pub(super) const KEYS: u64 = 20_000;

pub(super) fn hashed(table: HashTable) -> Algorithm {
    Algorithm::Hash {
        key: HashKey::SourceIp,
        table,
    }
}

pub(super) fn tables() -> [HashTable; 2] {
    [HashTable::Ring(1024), HashTable::Maglev(65_537)]
}

fn owner(set: &Arc<EndpointSet>, n: u64) -> usize {
    let hash = hash_bytes(&n.to_be_bytes());
    number(&pick_with(set, |c| c.hash = Some(hash)).unwrap())
}

pub(super) fn owners(set: &Arc<EndpointSet>) -> Vec<usize> {
    (0..KEYS).map(|n| owner(set, n)).collect()
}

#[tokio::test(start_paused = true)]
async fn a_key_stays_with_its_endpoint_on_every_node() {
    for table in tables() {
        let one = set(balanced(hashed(table)), many(10));
        let mut backwards = many(10);
        backwards.reverse();
        let other = set(balanced(hashed(table)), backwards);
        let here = owners(&one);
        assert_eq!(here, owners(&one));
        assert_eq!(here, owners(&other));
    }
}

#[tokio::test(start_paused = true)]
async fn removal_of_one_moves_about_its_own_keys() {
    for table in tables() {
        for count in [2, 3, 10, 33] {
            let set = set(balanced(hashed(table)), many(count));
            let before = owners(&set);
            set.update(many(count - 1));
            let after = owners(&set);
            let moved = before.iter().zip(&after).filter(|(a, b)| a != b).count();
            let share = moved as f64 / KEYS as f64;
            let wanted = 1.0 / count as f64;
            assert!(
                share < wanted * 1.25 + 0.02,
                "{table:?}: {share} of the keys moved, not {wanted}"
            );
            if let HashTable::Ring(_) = table {
                // On the ring nothing else moves at all.
                let gone = count - 1;
                assert!(before.iter().zip(&after).all(|(a, b)| *a == gone || a == b));
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn shares_are_even_and_follow_weights() {
    for table in tables() {
        let set = set(
            balanced(hashed(table)),
            vec![weighing(0, 1), weighing(1, 1), weighing(2, 2)],
        );
        let owners = owners(&set);
        for (n, wanted) in [(0, 0.25), (1, 0.25), (2, 0.5)] {
            let share = owners.iter().filter(|o| **o == n).count() as f64 / KEYS as f64;
            assert!((share - wanted).abs() < 0.04, "{table:?} {n}: {share}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_ejection_moves_only_the_keys_of_the_ejected() {
    for table in tables() {
        let mut policy = ejecting(|o| o.max_ejection_percent = Some(50));
        policy.load_balancer.algorithm = hashed(table);
        let set = set(policy, many(5));
        let before = owners(&set);
        fail(&set, 2, Outcome::ConnectRefused, 5);
        let during = owners(&set);
        for (before, during) in before.iter().zip(&during) {
            assert!(*before == *during || *before == 2);
            assert_ne!(*during, 2);
        }
        // Those that moved are spread over all others.
        for n in [0, 1, 3, 4] {
            let moved = before
                .iter()
                .zip(&during)
                .filter(|(b, d)| **b == 2 && **d == n);
            assert!(moved.count() > KEYS as usize / 50, "{table:?} {n}");
        }
        live(&set, 45).await;
        assert_eq!(owners(&set), before);
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_without_a_key_goes_anywhere() {
    let set = set(balanced(hashed(HashTable::Ring(1024))), many(4));
    assert_shares(&set, &[(0, 0.25), (1, 0.25), (2, 0.25), (3, 0.25)]);
}

#[tokio::test(start_paused = true)]
async fn a_retry_with_a_key_stays_with_its_endpoint() {
    let set = set(balanced(hashed(HashTable::Maglev(65_537))), many(4));
    let first = pick_with(&set, |c| c.hash = Some(7)).unwrap();
    let tried = [first.endpoint.id];
    let again = pick_with(&set, |c| {
        c.hash = Some(7);
        c.tried = &tried;
    });
    assert_eq!(again.unwrap().endpoint.id, first.endpoint.id);
}

#[tokio::test(start_paused = true)]
async fn extreme_weights_and_sizes_stay_within_bounds() {
    for table in [
        HashTable::Ring(0),
        HashTable::Ring(u64::MAX),
        HashTable::Maglev(0),
        HashTable::Maglev(2),
    ] {
        let set = set(
            balanced(hashed(table)),
            vec![weighing(0, 1), weighing(1, u32::MAX)],
        );
        let heavy = (0..1000).filter(|n| owner(&set, *n) == 1).count();
        assert!(heavy > 400, "{table:?}: {heavy}");
    }
}

#[test]
fn a_source_address_hashes_as_its_text() {
    let v4: IpAddr = "192.0.2.7".parse().unwrap();
    let mapped: IpAddr = "::ffff:192.0.2.7".parse().unwrap();
    assert_eq!(hash_address(v4), hash_bytes(b"192.0.2.7"));
    assert_eq!(hash_address(mapped), hash_address(v4));
    let v6: IpAddr = "2001:db8:1111:2222:3333:4444:5555:6666".parse().unwrap();
    assert_eq!(hash_address(v6), hash_bytes(v6.to_string().as_bytes()));
    // The published test vector of xxHash64.
    assert_eq!(hash_bytes(b""), 0xef46_db37_51d8_e999);
}
