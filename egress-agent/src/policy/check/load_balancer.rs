//! Rules of `loadBalancer`.

use std::collections::HashMap;

use crate::policy::schema::load_balancer::{Distribute, Failover, Hash, LoadBalancer, Locality};
use crate::policy::schema::reader::Reader;
use crate::policy::schema::{Spanned, Text};

const TOPOLOGY: [&str; 3] = [
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
    "topology.istio.io/subzone",
];
/// `ringHash.minimumRingSize` when unset.
pub const MINIMUM_RING: u64 = 1024;
const MAGLEV_LIMIT: u64 = 5_000_011;

fn text(text: Option<&Text>) -> &str {
    text.map_or("", |text| &***text)
}

/// Reports what is wrong with a balancer, but for what depends on its
/// neighbours.
pub fn check(reader: &mut Reader<'_>, balancer: &LoadBalancer) {
    if let Some(hash) = &balancer.consistent_hash {
        if balancer.simple.is_some() {
            let message = "`simple` and `consistentHash` exclude each other";
            reader.error("one-of", balancer.span, message, "keep one of them");
        }
        reader.within("consistentHash", |reader| check_hash(reader, hash));
    }
    if let Some(zone) = &balancer.zone_aware_lb_setting {
        reader.within("zoneAwareLbSetting", |reader| {
            if balancer.locality_lb_setting.is_some() {
                let message = "`localityLbSetting` and `zoneAwareLbSetting` exclude each other";
                reader.error("one-of", zone.span, message, "keep localityLbSetting");
            }
            check_failover(reader, &zone.failover);
            for label in &zone.failover_priority {
                let key = label.split_once('=').map_or(&***label, |(key, _)| key);
                if TOPOLOGY.contains(&key) {
                    let message = format!("{key:?} cannot stand in failoverPriority here");
                    reader.error(
                        "failover-priority",
                        label.span,
                        message,
                        "regions and zones are compared by themselves",
                    );
                }
            }
            reader.no_meaning(
                zone.span,
                "zoneAwareLbSetting",
                "it is too new; use localityLbSetting",
            );
        });
    }
    if let Some(warmup) = &balancer.warmup {
        reader.within("warmup", |reader| {
            if warmup.duration.is_none() {
                reader.required(warmup.span, "duration");
            }
            if let Some(percent) = warmup.minimum_percent
                && !(0.0..=100.0).contains(&percent.value)
            {
                let message = format!("`minimumPercent` is {}, not a percentage", percent.value);
                reader.error("percentage", percent.span, message, "write 0 to 100");
            }
            if let Some(aggression) = warmup.aggression
                && aggression.value <= 0.0
            {
                let message = format!("`aggression` is {}; it must be above 0", aggression.value);
                reader.error("number-range", aggression.span, message, "1 is the default");
            }
        });
    } else if let Some(old) = balancer.warmup_duration_secs {
        let message = "`warmupDurationSecs` is the old form of `warmup.duration`";
        reader.warn(
            "old-form",
            old.span,
            message,
            "write `warmup: {duration: …}`",
        );
    }
}

fn check_hash(reader: &mut Reader<'_>, hash: &Hash) {
    let keys = [
        hash.http_header_name.is_some(),
        hash.http_cookie.is_some(),
        hash.use_source_ip.is_some(),
        hash.http_query_parameter_name.is_some(),
    ];
    match keys.iter().filter(|key| **key).count() {
        0 => {
            let message =
                "`consistentHash` names nothing to hash, so endpoints are taken at random";
            let help = "add httpHeaderName, httpCookie, useSourceIp or httpQueryParameterName";
            reader.warn("hash-key", hash.span, message, help);
        }
        1 => {}
        _ => reader.error(
            "one-of",
            hash.span,
            "`consistentHash` hashes one thing only",
            "keep one of httpHeaderName, httpCookie, useSourceIp and httpQueryParameterName",
        ),
    }
    if let Some(cookie) = &hash.http_cookie {
        reader.within("httpCookie", |reader| {
            if text(cookie.name.as_ref()).is_empty() {
                reader.required(cookie.span, "name");
            }
            if let Some(ttl) = cookie.ttl
                && ttl.nanoseconds < 0
            {
                reader.warn(
                    "duration-range",
                    ttl.span,
                    "a negative `ttl` counts as 0s, a session cookie",
                    "write 0s",
                );
            }
            for (index, attribute) in cookie.attributes.iter().enumerate() {
                let name = text(attribute.name.as_ref());
                let earlier = cookie.attributes[..index].iter();
                if name.is_empty() {
                    reader.within("attributes", |reader| {
                        reader.at_index(index, |reader| reader.required(attribute.span, "name"));
                    });
                } else if earlier.map(|a| text(a.name.as_ref())).any(|n| n == name) {
                    let message = format!("the cookie attribute {name:?} stands here twice");
                    reader.error(
                        "cookie-attribute",
                        attribute.span,
                        message,
                        "remove one of them",
                    );
                }
            }
        });
    }
    if hash.ring_hash.is_some() && hash.maglev.is_some() {
        let message = "`ringHash` and `maglev` exclude each other";
        reader.error("one-of", hash.span, message, "keep one of them");
    }
    if let Some(size) = hash.minimum_ring_size {
        let message =
            "`consistentHash.minimumRingSize` is the old form of `ringHash.minimumRingSize`";
        reader.warn("old-form", size.span, message, "move it into `ringHash`");
        if size.value != 0 && (hash.ring_hash.is_some() || hash.maglev.is_some()) {
            let message = "`minimumRingSize` beside `ringHash` or `maglev`";
            reader.error("one-of", size.span, message, "move it into `ringHash`");
        }
    }
    if let Some(maglev) = &hash.maglev {
        let size = maglev.table_size.map_or(0, |size| size.value);
        let span = maglev.table_size.map_or(maglev.span, |size| size.span);
        let problem = match size {
            0 => "`maglev.tableSize` is missing".to_owned(),
            MAGLEV_LIMIT.. => {
                format!("`maglev.tableSize` is {size}; it must be below {MAGLEV_LIMIT}")
            }
            size if !is_prime(size) => {
                format!("`maglev.tableSize` is {size}, which is not a prime")
            }
            _ => return,
        };
        reader.within("maglev", |reader| {
            reader.error("maglev-size", span, problem, "65537 is a good size");
        });
    }
}

/// As Envoy counts: 1 is one.
fn is_prime(number: u64) -> bool {
    match number {
        0 => false,
        1..=3 => true,
        n if n % 2 == 0 => false,
        n => (3..)
            .step_by(2)
            .take_while(|f| f * f <= n)
            .all(|f| n % f != 0),
    }
}

/// Reports what is wrong with a `localityLbSetting`.
pub fn check_locality(reader: &mut Reader<'_>, setting: &Locality) {
    if let (Some(_), Some(failover)) = (setting.distribute.first(), setting.failover.first()) {
        let message = "`distribute` and `failover` exclude each other";
        reader.error("one-of", failover.span, message, "keep one of them");
        return;
    }
    if !setting.failover.is_empty() {
        let topology = |label: &&Text| TOPOLOGY.contains(&&****label);
        if let Some(label) = setting.failover_priority.iter().find(topology) {
            let message = format!(
                "`failover` already compares regions, so {:?} cannot stand in failoverPriority",
                &***label
            );
            reader.error(
                "failover-priority",
                label.span,
                message,
                "remove the label, or `failover`",
            );
            return;
        }
    }
    let mut from = Vec::new();
    for (index, distribute) in setting.distribute.iter().enumerate() {
        if let Some(locality) = &distribute.from {
            from.push(locality.clone());
        } else {
            from.push(Spanned::new("".into(), distribute.span));
        }
        reader.within("distribute", |reader| {
            reader.at_index(index, |reader| check_weights(reader, distribute));
        });
    }
    reader.within("distribute", |reader| check_localities(reader, &from));
    check_failover(reader, &setting.failover);
}

fn check_weights(reader: &mut Reader<'_>, distribute: &Distribute) {
    let mut sum: u64 = 0;
    for (locality, weight) in &distribute.to {
        sum += u64::from(weight.value);
        if !(1..=100).contains(&weight.value) {
            let message = format!(
                "the weight of {:?} is {}, not 1 to 100",
                &***locality, weight.value
            );
            reader.error(
                "locality-weight",
                weight.span,
                message,
                "leave out localities that get nothing",
            );
            return;
        }
    }
    if sum != 100 {
        let message = format!("the weights of `to` add up to {sum}, not 100");
        reader.error(
            "locality-weight",
            distribute.span,
            message,
            "change them to make 100",
        );
        return;
    }
    let names: Vec<Text> = distribute.to.iter().map(|(name, _)| name.clone()).collect();
    reader.within("to", |reader| check_localities(reader, &names));
}

/// Reports localities that overlap earlier ones, or have `*` in the middle.
fn check_localities(reader: &mut Reader<'_>, localities: &[Text]) {
    let mut seen: HashMap<String, HashMap<String, Vec<String>>> = HashMap::new();
    for locality in localities {
        let whole: &str = locality;
        let stars = whole.matches('*').count();
        let parts: Vec<&str> = whole.splitn(3, '/').collect();
        let (problem, help) = if stars > 1 || (stars == 1 && !whole.ends_with('*')) {
            (
                "has `*` elsewhere than at its end",
                "write `region/*` or `region/zone/*`",
            )
        } else if parts.iter().any(|part| part.is_empty()) && !seen.contains_key("*") {
            (
                "has an empty part",
                "write `region`, `region/zone` or `region/zone/subzone`",
            )
        } else if overlaps(&mut seen, &parts) {
            (
                "overlaps an earlier one",
                "keep the wider or the narrower one",
            )
        } else {
            continue;
        };
        let message = format!("the locality {whole:?} {problem}");
        reader.error("locality", locality.span, message, help);
        return;
    }
}

/// Notes a locality; whether one that stands before covers it.
fn overlaps(seen: &mut HashMap<String, HashMap<String, Vec<String>>>, parts: &[&str]) -> bool {
    if seen.contains_key("*") {
        return true;
    }
    let all = || "*".to_owned();
    let known = seen.get_mut(*parts.first().unwrap_or(&""));
    match (parts, known) {
        ([_], Some(_)) => return true,
        ([region], None) => {
            seen.insert((*region).to_owned(), HashMap::from([(all(), vec![all()])]));
        }
        ([_, zone], Some(zones)) => {
            if zones.contains_key("*") || zones.contains_key(*zone) {
                return true;
            }
            zones.insert((*zone).to_owned(), vec![all()]);
        }
        ([region, zone], None) => {
            let zones = HashMap::from([((*zone).to_owned(), vec![all()])]);
            seen.insert((*region).to_owned(), zones);
        }
        ([_, zone, subzone, ..], Some(zones)) => {
            if zones.contains_key("*") {
                return true;
            }
            let subzones = zones.entry((*zone).to_owned()).or_default();
            if subzones
                .iter()
                .any(|known| known == "*" || known == subzone)
            {
                return true;
            }
            subzones.push((*subzone).to_owned());
        }
        ([region, zone, subzone, ..], None) => {
            let zones = HashMap::from([((*zone).to_owned(), vec![(*subzone).to_owned()])]);
            seen.insert((*region).to_owned(), zones);
        }
        ([], _) => {}
    }
    false
}

fn check_failover(reader: &mut Reader<'_>, failover: &[Failover]) {
    for (index, rule) in failover.iter().enumerate() {
        let (from, to) = (text(rule.from.as_ref()), text(rule.to.as_ref()));
        let (problem, help) = if from == to {
            ("`from` and `to` are the same region", "name two regions")
        } else if from.contains('/') || to.contains('/') {
            (
                "failover is between regions",
                "leave out the zone; zones fail over by themselves",
            )
        } else if from.contains('*') || to.contains('*') {
            ("a region of failover has a wildcard", "name the region")
        } else {
            continue;
        };
        reader.within("failover", |reader| {
            reader.at_index(index, |reader| {
                reader.error("failover", rule.span, problem, help);
            });
        });
    }
}
