//! The compiled lookups against slow, obvious ones.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use proptest::prelude::*;

use super::hosts::{HostIndex, pattern};
use super::{Ids, compile};
use crate::policy::Options;
use crate::policy::load::load_text;
use crate::policy::model::HostPattern;
use crate::policy::snapshot::Client;

/// Few labels, so that names meet; two or more, as a rule takes a single one
/// for a host of the cluster.
fn name() -> impl Strategy<Value = String> {
    prop::collection::vec("[ab]{1,2}", 2..4).prop_map(|labels| labels.join("."))
}

fn host() -> impl Strategy<Value = String> {
    (prop::sample::select(vec!["", "", "*.", "*", "*-"]), name())
        .prop_map(|(wildcard, name)| format!("{wildcard}{name}"))
}

/// Whether `wide` is `narrow` or covers it, as its words say.
fn covers(wide: &HostPattern, narrow: &HostPattern) -> bool {
    match (wide, narrow) {
        (HostPattern::Exact(a), HostPattern::Exact(b)) => a == b,
        (HostPattern::Exact(_), HostPattern::Suffix(_)) => false,
        (HostPattern::Suffix(_), HostPattern::Exact(name)) => wide.matches(name),
        (HostPattern::Suffix(a), HostPattern::Suffix(b)) => b.ends_with(&**a),
    }
}

/// Exact names before wildcards, longer ones before shorter ones.
fn specificity(host: &HostPattern) -> (bool, usize) {
    match host {
        HostPattern::Exact(name) => (true, name.len()),
        HostPattern::Suffix(suffix) => (false, suffix.len()),
    }
}

proptest! {
    #[test]
    fn the_index_finds_what_covers_a_host(
        hosts in prop::collection::vec(host(), 0..12),
        wanted in host(),
    ) {
        let mut index = HostIndex::default();
        let patterns: Vec<HostPattern> = hosts.iter().map(|host| pattern(host)).collect();
        for (number, host) in patterns.iter().enumerate() {
            index.insert(host, number);
        }
        let wanted = pattern(&wanted);
        let found: Vec<usize> = index.covering(&wanted).flatten().copied().collect();
        let mut slow: Vec<usize> = (0..patterns.len())
            .filter(|number| covers(&patterns[*number], &wanted))
            .collect();
        slow.sort_by_key(|number| std::cmp::Reverse(specificity(&patterns[*number])));
        prop_assert_eq!(found, slow);
    }

    #[test]
    fn services_and_rules_are_found_as_by_hand(
        entries in prop::collection::vec((host(), 0..3_usize), 1..6),
        rules in prop::collection::vec((host(), 0..3_usize, 0..4_usize), 0..8),
        asked in name(),
        client in 0..4_usize,
    ) {
        const SPACES: [&str; 4] = ["shop", "istio-system", "client", "nobody"];
        let mut text = String::new();
        for (n, (host, space)) in entries.iter().enumerate() {
            text += &format!("---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: e{n}, namespace: {}}}\nspec: {{hosts: [\"{host}\"], ports: [{{number: 80, name: http, protocol: HTTP}}]}}\n", SPACES[*space]);
        }
        for (n, (host, space, to)) in rules.iter().enumerate() {
            let to = ["*", ".", "client", "nobody"][*to];
            text += &format!("---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: r{n}, namespace: {}}}\nspec: {{host: \"{host}\", exportTo: [\"{to}\"], trafficPolicy: {{tls: {{}}}}}}\n", SPACES[*space]);
        }
        let options = Options::default();
        let loaded = load_text("f", &text, &options);
        prop_assert!(loaded.is_valid(), "{:?}", loaded.diagnostics);
        let (snapshot, _) = compile(&mut Ids::default(), &loaded.documents, &options);
        let client = SPACES[client];

        // By hand: the most specific host that anything registers, of the own
        // namespace before the others.
        let claims = |(host, _): &&(String, usize)| pattern(host).matches(&asked);
        let best = entries.iter().filter(claims).map(|(host, _)| specificity(&pattern(host))).max();
        let of_best = |(host, _): &&(String, usize)| Some(specificity(&pattern(host))) == best;
        let spaces: Vec<&str> = entries.iter().filter(claims).filter(of_best).map(|(_, s)| SPACES[*s]).collect();
        let found: Vec<_> = snapshot.services_of(&asked, client).collect();
        prop_assert_eq!(found.is_empty(), spaces.is_empty());
        for service in found {
            prop_assert!(service.key.host.matches(&asked));
            prop_assert_eq!(Some(specificity(&service.key.host)), best);
            if spaces.contains(&client) {
                prop_assert_eq!(&*service.key.namespace, client);
            }
            let who = Client { namespace: client.into(), labels: std::sync::Arc::default() };
            let got = service.view(&who).unwrap().destination_rule.as_ref().map(|r| r.namespace.to_string() + "/" + &r.name);
            let wanted = by_hand(&rules, &SPACES, &service.key.host, client, &service.key.namespace);
            prop_assert_eq!(got, wanted, "{}", text);
        }
    }
}

/// The rule that a client gets, by the words of the rule book.
fn by_hand(
    rules: &[(String, usize, usize)],
    spaces: &[&str; 4],
    host: &HostPattern,
    client: &str,
    service: &str,
) -> Option<String> {
    let seen = |n: usize| {
        let (_, space, to) = &rules[n];
        match *to {
            0 => true,
            1 => spaces[*space] == client,
            2 => client == "client",
            _ => client == "nobody",
        }
    };
    // Private: seen by its own namespace alone.
    let private = |n: usize| {
        let (_, space, to) = &rules[n];
        *to == 1 || (*to == 2 && spaces[*space] == "client")
    };
    // Names have one digit, so the order of names is that of numbers; rules
    // that differ in nothing but their name are one, under the oldest's.
    let name = |n: usize| {
        let (host, space, to) = &rules[n];
        let to = if *to == 2 && spaces[*space] == "client" {
            1
        } else {
            *to
        };
        let same = |m: &usize| {
            let (h, s, t) = &rules[*m];
            let t = if *t == 2 && spaces[*s] == "client" {
                1
            } else {
                *t
            };
            pattern(h) == pattern(host) && s == space && t == to
        };
        (0..rules.len()).find(same).unwrap()
    };
    let level = |space: &str, exported: bool| -> Option<usize> {
        let all: Vec<usize> = (0..rules.len())
            .filter(|n| spaces[rules[*n].1] == space && covers(&pattern(&rules[*n].0), host))
            .filter(|n| if exported { !private(*n) } else { seen(*n) })
            .collect();
        let best = all
            .iter()
            .map(|n| specificity(&pattern(&rules[*n].0)))
            .max()?;
        let fits = |n: &usize| specificity(&pattern(&rules[*n].0)) == best && seen(*n);
        all.into_iter().filter(fits).map(name).max()
    };
    let found = level(client, false)
        .or_else(|| level(service, true))
        .or_else(|| level("istio-system", true))?;
    Some(format!("{}/r{found}", spaces[rules[found].1]))
}
