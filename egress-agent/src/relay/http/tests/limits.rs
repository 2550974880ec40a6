//! Limits of the pool: connections, requests on each, idle time, the queue.

use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, sleep};

use super::rig::{Do, HOST, OK, Rig, address, ask, cluster, paused, read_all, request};
use crate::policy::model::{Protocol, TrafficPolicy};
use crate::route::testing;
use crate::secret::Replaced;

fn rig(change: impl FnOnce(&mut TrafficPolicy), endpoints: u8) -> Rig {
    let mut policy = testing::traffic_policy();
    change(&mut policy);
    Rig::new(cluster(policy, Protocol::Http, endpoints), None)
}

#[test]
fn one_request_a_connection_means_no_keep_alive() {
    paused(async {
        let rig = rig(
            |p| p.connection_pool.max_requests_per_connection = Some(1),
            1,
        );
        let (mut stream, _) = rig.connect();
        for _ in 0..3 {
            assert_eq!(ask(&mut stream, &request("/")).await.status(), 200);
        }
        assert_eq!(rig.world.connections.get(), 3);
        assert_eq!(rig.world.open.get(), 0);
    });
}

#[test]
fn idle_connections_close_after_their_time() {
    paused(async {
        let rig = rig(
            |p| p.connection_pool.http_idle_timeout = Some(Duration::from_mins(1)),
            1,
        );
        assert_eq!(rig.get("/").await.0, 200);
        sleep(Duration::from_secs(59)).await;
        assert_eq!(rig.world.open.get(), 1);
        sleep(Duration::from_secs(2)).await;
        assert_eq!(rig.world.open.get(), 0);
        assert!(rig.worker.pool.is_empty(), "nothing is kept for it");
        assert_eq!(rig.get("/").await.0, 200);
        assert_eq!(rig.world.connections.get(), 2);
    });
}

#[test]
fn no_request_goes_over_a_connection_of_replaced_material() {
    paused(async {
        let rig = rig(|_| {}, 1);
        let (mut stream, _) = rig.connect();
        let rotate = || rig.world.replaced.replace(Replaced::not_yet()).set();
        rotate();
        for _ in 0..2 {
            assert_eq!(ask(&mut stream, &request("/")).await.status(), 200);
        }
        assert_eq!(rig.world.connections.get(), 1);
        rotate();
        assert_eq!(ask(&mut stream, &request("/")).await.status(), 200);
        assert_eq!(rig.world.connections.get(), 2);
        assert_eq!(rig.world.open.get(), 1, "the old one is closed");
        // While a request is under way: it ends as it began.
        rig.script(&[Do::SayAfter(Duration::from_secs(2), OK)]);
        let (answer, ()) = tokio::join!(rig.get("/slow"), async {
            sleep(Duration::from_secs(1)).await;
            rotate();
        });
        assert_eq!(answer.0, 200);
        assert_eq!(rig.world.connections.get(), 2);
        assert_eq!(rig.world.open.get(), 0, "it was not kept");
    });
}

#[test]
fn a_service_that_closes_an_idle_connection_frees_its_place_at_once() {
    paused(async {
        let rig = rig(|p| p.connection_pool.max_connections = 1, 1);
        rig.script(&[Do::SayAndClose(OK)]);
        assert_eq!(rig.get("/").await.0, 200);
        sleep(Duration::from_millis(1)).await;
        assert_eq!(rig.world.open.get(), 0);
    });
}

#[test]
fn old_connections_take_no_more_requests() {
    paused(async {
        let rig = rig(
            |p| p.connection_pool.max_connection_duration = Some(Duration::from_secs(10)),
            1,
        );
        let (mut stream, _) = rig.connect();
        for _ in 0..3 {
            ask(&mut stream, &request("/")).await;
            sleep(Duration::from_secs(4)).await;
        }
        assert_eq!(rig.world.connections.get(), 1);
        ask(&mut stream, &request("/")).await;
        assert_eq!(rig.world.connections.get(), 2);
    });
}

#[test]
fn requests_wait_in_turn_for_a_connection() {
    paused(async {
        let rig = rig(|p| p.connection_pool.max_connections = 1, 1);
        rig.script(&vec![Do::SayAfter(Duration::from_secs(1), OK); 4]);
        let started = Instant::now();
        let mut clients = Vec::new();
        for n in 0..4 {
            let (mut stream, _) = rig.connect();
            stream
                .write_all(request(&format!("/{n}")).as_bytes())
                .await
                .unwrap();
            clients.push(stream);
        }
        for stream in &mut clients {
            assert_eq!(ask(stream, "").await.status(), 200);
        }
        assert_eq!(started.elapsed().as_secs(), 4);
        let order: Vec<_> = rig.seen().iter().map(|s| s.line().to_owned()).collect();
        let want: Vec<_> = (0..4).map(|n| format!("GET /{n} HTTP/1.1")).collect();
        assert_eq!(order, want);
        assert_eq!(rig.world.connections.get(), 1);
    });
}

#[test]
fn waiting_has_an_end() {
    paused(async {
        let rig = rig(|p| p.connection_pool.max_connections = 1, 1);
        rig.script(&[Do::Silence]);
        let (mut first, _) = rig.connect();
        first.write_all(request("/").as_bytes()).await.unwrap();
        sleep(Duration::from_secs(1)).await;
        let started = Instant::now();
        let (status, body) = rig.get("/").await;
        assert_eq!(status, 503);
        assert!(body.contains("maxConnections"), "{body}");
        assert_eq!(started.elapsed().as_secs(), 60);
        assert_eq!(rig.record().flags, ["UO"]);
    });
}

#[test]
fn a_waiting_client_that_goes_away_leaves_the_queue() {
    paused(async {
        let rig = rig(
            |p| {
                p.connection_pool.max_connections = 1;
                p.connection_pool.max_pending_requests = 1;
            },
            1,
        );
        rig.script(&[Do::SayAfter(Duration::from_secs(5), OK)]);
        let (mut first, _) = rig.connect();
        first.write_all(request("/").as_bytes()).await.unwrap();
        sleep(Duration::from_millis(10)).await;
        let (mut second, end) = rig.connect();
        second.write_all(request("/").as_bytes()).await.unwrap();
        sleep(Duration::from_millis(10)).await;
        assert_eq!(rig.get("/").await.0, 503);
        drop(second);
        end.await.unwrap();
        let (mut third, _) = rig.connect();
        third.write_all(request("/").as_bytes()).await.unwrap();
        assert_eq!(ask(&mut first, "").await.status(), 200);
        assert_eq!(ask(&mut third, "").await.status(), 200);
    });
}

#[test]
fn an_idle_connection_to_one_address_makes_room_for_another() {
    paused(async {
        let rig = rig(|p| p.connection_pool.max_connections = 1, 2);
        for _ in 0..20 {
            assert_eq!(rig.get("/").await.0, 200);
        }
        let seen = rig.seen();
        for n in 1..=2 {
            assert!(seen.iter().any(|s| s.address == address(n)));
        }
        // An address without any gets one beyond the limit.
        assert!(rig.world.most_open.get() <= 2);
    });
}

#[test]
fn requests_in_flight_are_limited() {
    paused(async {
        let rig = rig(|p| p.connection_pool.max_requests = 2, 1);
        rig.script(&vec![Do::SayAfter(Duration::from_secs(1), OK); 2]);
        let mut clients = Vec::new();
        for _ in 0..2 {
            let (mut stream, _) = rig.connect();
            stream.write_all(request("/").as_bytes()).await.unwrap();
            clients.push(stream);
        }
        sleep(Duration::from_millis(10)).await;
        let (mut stream, _) = rig.connect();
        let answer = ask(&mut stream, &request("/")).await;
        assert_eq!(answer.status(), 503);
        assert_eq!(answer.header("x-envoy-overloaded"), Some("true"));
        assert!(answer.body.contains("http2MaxRequests"), "{}", answer.body);
        for stream in &mut clients {
            assert_eq!(ask(stream, "").await.status(), 200);
        }
        assert_eq!(ask(&mut stream, &request("/")).await.status(), 200);
    });
}

#[test]
fn a_changed_policy_opens_new_connections() {
    paused(async {
        let rig = rig(|_| {}, 1);
        let (mut stream, _) = rig.connect();
        ask(&mut stream, &request("/")).await;
        let mut policy = testing::traffic_policy();
        policy.connection_pool.connect_timeout = Duration::from_secs(1);
        let next = Rig::new(cluster(policy, Protocol::Http, 1), None);
        // The set stays, as it does over a reload.
        let mut live = crate::endpoint::Live {
            snapshot: std::sync::Arc::clone(&next.live.load().snapshot),
            sets: rig.live.load().sets.clone(),
        };
        live.sets.truncate(1);
        rig.live.store(std::sync::Arc::new(live));
        ask(&mut stream, &request("/")).await;
        assert_eq!(rig.world.connections.get(), 2);
        assert_eq!(rig.world.open.get(), 1);
    });
}

#[test]
fn closing_the_pool_lets_requests_finish() {
    paused(async {
        let rig = rig(|_| {}, 1);
        rig.get("/").await;
        rig.script(&[Do::SayAfter(Duration::from_secs(1), OK)]);
        let (mut stream, _) = rig.connect();
        let last = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n");
        stream.write_all(last.as_bytes()).await.unwrap();
        sleep(Duration::from_millis(10)).await;
        rig.worker.pool.close();
        let answer = read_all(&mut stream).await;
        assert!(answer.ends_with("ok"), "{answer}");
        assert_eq!(rig.world.open.get(), 0);
    });
}
