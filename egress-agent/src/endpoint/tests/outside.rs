use super::*;

#[tokio::test(start_paused = true)]
async fn status_tells_all_that_is_asked_for() {
    let set = set_in_us(
        ejecting(|o| o.max_ejection_percent = Some(50)),
        vec![
            ResolvedEndpoint {
                name: Some("db.example.com".into()),
                ..located(0, "us/a")
            },
            located(1, "eu"),
            located(2, "eu"),
        ],
    );
    let held = pick_at(&set, 0);
    let _connection = held.endpoint.open_connection();
    pass(3).await;
    fail(&set, 1, Outcome::Status(503), 5);
    pass(2).await;
    set.update(vec![located(0, "us/a"), located(1, "eu")]);
    let status = serde_json::to_value(set.status()).unwrap();
    assert_eq!(status["host"], "db.example.com");
    assert_eq!(status["resolution"], "DNS");
    assert_eq!(status["loadBalancer"], "LEAST_REQUEST");
    assert_eq!(status["resolvedMsAgo"], 0);
    assert_eq!(status["levels"][0]["loadPercent"], 100);
    assert_eq!(status["levels"][1]["healthy"], 0);
    assert_eq!(status["limits"][0]["name"], "maxConnections");
    let endpoints = &status["endpoints"];
    assert_eq!(endpoints[0]["address"], "10.0.0.0:443");
    assert_eq!(endpoints[0]["locality"], "us/a");
    assert_eq!(endpoints[0]["priority"], 0);
    assert_eq!(endpoints[0]["state"], "healthy");
    assert_eq!(endpoints[0]["activeConnections"], 1);
    assert_eq!(endpoints[0]["activeRequests"], 1);
    assert_eq!(endpoints[1]["state"], "ejected");
    assert_eq!(endpoints[1]["reason"], "consecutive-5xx");
    assert_eq!(endpoints[1]["remainingMs"], 28_000);
    assert!(endpoints[1]["until"].as_str().unwrap().ends_with('Z'));
    assert_eq!(endpoints[1]["lastFailure"]["what"], "status 503");
    assert_eq!(endpoints[1]["lastFailure"]["msAgo"], 2000);
    assert_eq!(endpoints[2]["state"], "draining");
    assert_eq!(endpoints[2]["remainingMs"], 30_000);
}

#[tokio::test(start_paused = true)]
async fn metrics_tell_the_same() {
    use prometheus_client::encoding::text::encode;
    use prometheus_client::registry::Registry as Prometheus;

    let set = set(ejecting(|o| o.max_ejection_percent = Some(50)), many(2));
    let _held = pick_at(&set, 0);
    fail(&set, 1, Outcome::Status(503), 5);
    let live = Live {
        snapshot: Arc::default(),
        sets: vec![Arc::clone(&set)],
    };
    let live = Arc::new(arc_swap::ArcSwap::from_pointee(live));
    let mut registry = Prometheus::default();
    registry.register_collector(Box::new(Metrics::new(live)));
    let text = || {
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        text
    };
    let of_set = "destination_service=\"db.example.com\",destination_service_namespace=\"default\",\
                  port=\"443\",subset=\"\",destination_rule=\"\"";
    let first = text();
    for line in [
        format!("egress_endpoints{{{of_set}}} 2"),
        format!("egress_endpoints_available{{{of_set}}} 1"),
        format!("egress_endpoints_ejected{{{of_set}}} 1"),
        format!("egress_outlier_ejections_total{{{of_set},reason=\"consecutive-5xx\"}} 1"),
        format!("egress_limit_taken{{{of_set},limit=\"maxConnections\"}} 0"),
        format!(
            "egress_endpoint_available{{{of_set},address=\"10.0.0.1:443\",name=\"\",locality=\"\"}} 0"
        ),
        format!(
            "egress_endpoint_state{{{of_set},address=\"10.0.0.0:443\",name=\"\",locality=\"\",\
             state=\"healthy\",reason=\"\"}} 1"
        ),
        format!(
            "egress_endpoint_state{{{of_set},address=\"10.0.0.1:443\",name=\"\",locality=\"\",\
             state=\"ejected\",reason=\"consecutive-5xx\"}} 1"
        ),
        format!(
            "egress_endpoint_out_seconds{{{of_set},address=\"10.0.0.1:443\",name=\"\",locality=\"\"}} 30"
        ),
        format!(
            "egress_endpoint_weight{{{of_set},address=\"10.0.0.1:443\",name=\"\",locality=\"\"}} 1"
        ),
        format!(
            "egress_endpoint_last_failure_timestamp_seconds{{{of_set},address=\"10.0.0.0:443\",\
             name=\"\",locality=\"\"}} 0"
        ),
        format!(
            "egress_endpoint_requests{{{of_set},address=\"10.0.0.0:443\",name=\"\",locality=\"\"}} 1"
        ),
    ] {
        assert!(
            first.lines().any(|l| l == line),
            "{line} is not in:\n{first}"
        );
    }
    let failed = "egress_endpoint_last_failure_timestamp_seconds";
    let mut failed = first.lines().filter(|line| line.starts_with(failed));
    let failed = failed.find(|line| line.contains("10.0.0.1")).unwrap();
    assert!(!failed.ends_with(" 0"), "{failed}");
    // One that left DNS drains, and says so.
    let drains =
        "address=\"10.0.0.0:443\",name=\"\",locality=\"\",state=\"draining\",reason=\"dns\"} 1";
    let _open = pick_at(&set, 0).endpoint.open_connection();
    set.update(vec![many(2).swap_remove(1)]);
    let gone = text();
    assert!(gone.contains(drains), "{gone}");
    // A large set is told as a whole.
    set.update(many(101));
    let large = text();
    assert!(large.contains(&format!("egress_endpoints{{{of_set}}} 101")));
    assert!(!large.contains("address="));
}

#[tokio::test(start_paused = true)]
async fn a_failed_resolution_is_shown_until_one_succeeds() {
    let set = set(policy(), many(1));
    pass(7).await;
    set.resolution_failed("SERVFAIL".into());
    let status = set.status();
    assert_eq!(status.resolved_ms_ago, Some(7000));
    assert_eq!(status.resolution_error.as_deref(), Some("SERVFAIL"));
    pass(1).await;
    set.update(many(1));
    assert_eq!(set.status().resolution_error, None);
}

fn places(set: &Arc<EndpointSet>, size: u16) -> Vec<(usize, usize)> {
    let slots = set.slots(&client(&[]), size);
    assert!(slots.table.len() <= usize::from(size));
    let mut places: Vec<(usize, usize)> = slots
        .endpoints
        .iter()
        .enumerate()
        .map(|(index, slot)| {
            let count = slots
                .table
                .iter()
                .filter(|i| usize::from(**i) == index)
                .count();
            assert_eq!(count, usize::from(slot.places));
            (number_of(&slot.endpoint), count)
        })
        .collect();
    places.sort_unstable();
    places
}

#[tokio::test(start_paused = true)]
async fn slots_follow_weights_locality_and_ejection() {
    let equal = set(policy(), many(3));
    assert_eq!(places(&equal, 128), [(0, 42), (1, 42), (2, 42)]);
    let weighted = set(policy(), vec![weighing(0, 3), weighing(1, 1)]);
    assert_eq!(places(&weighted, 128), [(0, 96), (1, 32)]);
    // Even the lightest has a place.
    let extreme = set(policy(), vec![weighing(0, 1_000_000), weighing(1, 1)]);
    assert_eq!(places(&extreme, 128), [(0, 127), (1, 1)]);

    let all = ejecting(|o| o.max_ejection_percent = Some(100));
    let located = set_in_us(all, vec![located(0, "us"), located(1, "eu")]);
    assert_eq!(places(&located, 16), [(0, 16)]);
    fail(&located, 0, Outcome::ConnectRefused, 5);
    assert_eq!(places(&located, 16), [(1, 16)]);
    fail(&located, 1, Outcome::ConnectRefused, 5);
    assert_eq!(places(&located, 16), []);
    // More endpoints than places.
    assert_eq!(places(&set(policy(), many(20)), 16).len(), 16);
}

#[tokio::test(start_paused = true)]
async fn slots_are_evenly_spread() {
    let set = set(policy(), vec![weighing(0, 2), weighing(1, 1)]);
    let slots = set.slots(&client(&[]), 9);
    let order: Vec<usize> = slots
        .table
        .iter()
        .map(|i| number_of(&slots.endpoints[usize::from(*i)].endpoint))
        .collect();
    assert_eq!(order, [0, 1, 0, 0, 1, 0, 0, 1, 0]);
}

#[tokio::test(start_paused = true)]
async fn dialled_destinations_have_no_slots() {
    let set = set_of(Resolution::None, policy());
    drop(pick(&set).unwrap());
    assert!(set.slots(&client(&[]), 16).table.is_empty());
}
