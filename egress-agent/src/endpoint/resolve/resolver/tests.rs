#![allow(clippy::unwrap_used, reason = "tests")]

use std::pin::Pin;
use std::sync::atomic::AtomicUsize;

use tokio::time::{advance, sleep};

use super::super::entry::LOOKUP_LIMIT;
use super::super::upstream::{Families, Found, Records};
use super::*;

/// A name server that says what the test wrote down.
#[derive(Clone, Default)]
pub(crate) struct Script(Arc<Book>);

#[derive(Default)]
struct Book {
    answers: Mutex<HashMap<String, Families>>,
    counts: Mutex<HashMap<String, usize>>,
    delay: AtomicU64,
    running: AtomicUsize,
    most: AtomicUsize,
}

impl Script {
    pub(crate) fn answer(&self, name: &str, addresses: &[&str], ttl: u64) {
        let v4 = Found::Records(Records {
            addresses: addresses.iter().map(|ip| ip.parse().unwrap()).collect(),
            ttl: Duration::from_secs(ttl),
        });
        let v6 = Found::NoRecords;
        self.set(name, Families { v4, v6 });
    }

    pub(crate) fn fail(&self, name: &str) {
        let reason = "test".into();
        let name_of: Arc<str> = name.into();
        self.set(
            name,
            Families::failed(ResolveError::Server {
                name: name_of,
                reason,
            }),
        );
    }

    fn set(&self, name: &str, families: Families) {
        self.0
            .answers
            .lock()
            .unwrap()
            .insert(name.to_owned(), families);
    }

    fn delay(&self, delay: Duration) {
        let delay = delay.as_millis().try_into().unwrap();
        self.0.delay.store(delay, Ordering::SeqCst);
    }

    pub(crate) fn count(&self, name: &str) -> usize {
        self.0
            .counts
            .lock()
            .unwrap()
            .get(name)
            .copied()
            .unwrap_or(0)
    }
}

impl Query for Script {
    fn query(&self, name: Arc<str>) -> Pin<Box<dyn Future<Output = Families> + Send + '_>> {
        Box::pin(async move {
            let running = self.0.running.fetch_add(1, Ordering::SeqCst) + 1;
            self.0.most.fetch_max(running, Ordering::SeqCst);
            *self
                .0
                .counts
                .lock()
                .unwrap()
                .entry(name.to_string())
                .or_default() += 1;
            sleep(Duration::from_millis(self.0.delay.load(Ordering::SeqCst))).await;
            self.0.running.fetch_sub(1, Ordering::SeqCst);
            let answers = self.0.answers.lock().unwrap();
            let unknown = Families {
                v4: Found::NoSuchName,
                v6: Found::NoSuchName,
            };
            answers.get(&*name).cloned().unwrap_or(unknown)
        })
    }
}

struct V4First;

impl Routes for V4First {
    fn prefer_v6(&self, _: Option<IpAddr>, _: Option<IpAddr>) -> bool {
        false
    }
}

pub(crate) fn resolver(script: &Script) -> Resolver {
    Resolver::new(script.clone(), V4First)
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(5)
}

fn first(answer: &Answer) -> String {
    answer.addresses[0].to_string()
}

#[tokio::test(start_paused = true)]
async fn one_query_serves_all_who_want_a_name() {
    let script = Script::default();
    script.answer("a.example", &["10.0.0.1"], 60);
    script.delay(Duration::from_secs(1));
    let resolver = resolver(&script);
    let mut watches: Vec<_> = (0..10).map(|_| resolver.watch("A.example.")).collect();
    let lookups = (0..10).map(|_| resolver.lookup("a.example", soon()));
    let lookups: Vec<_> = lookups.map(Box::pin).collect();
    for lookup in lookups {
        assert_eq!(first(&lookup.await.unwrap()), "10.0.0.1");
    }
    for watch in &mut watches {
        watch.changed().await.unwrap();
        assert_eq!(first(&watch.borrow()), "10.0.0.1");
    }
    assert_eq!(script.count("a.example"), 1);
    let status = &resolver.status()[0];
    assert_eq!(
        (&*status.name, status.state, status.watchers),
        ("a.example", "fresh", 10)
    );
    assert_eq!((status.ttl, status.age), (60, Some(0)));
}

#[tokio::test(start_paused = true)]
async fn a_watched_name_never_runs_out() {
    let script = Script::default();
    script.answer("a.example", &["10.0.0.1"], 100);
    let resolver = resolver(&script);
    let mut watch = resolver.watch("a.example");
    watch.changed().await.unwrap();
    for _ in 0..3000 {
        advance(Duration::from_secs(1)).await;
        tokio::task::yield_now().await;
        assert!(watch.borrow().expires_at > Instant::now());
    }
    let count = script.count("a.example");
    assert!((30..=37).contains(&count), "{count} queries in 30 TTLs");
    assert!(!watch.has_changed().unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_failure_shows_its_age_and_ends() {
    let script = Script::default();
    script.answer("a.example", &["10.0.0.1"], 100);
    let resolver = resolver(&script);
    let mut watch = resolver.watch("a.example");
    watch.changed().await.unwrap();
    script.fail("a.example");
    watch.changed().await.unwrap();
    sleep(Duration::from_mins(20)).await;
    let status = &resolver.status()[0];
    assert_eq!(
        (status.state, status.addresses.len(), status.ttl),
        ("stale", 1, 0)
    );
    assert!(status.age.unwrap() > 1200);
    assert!(status.error.as_ref().unwrap().contains("a.example"));
    let before = script.count("a.example");
    sleep(Duration::from_mins(20)).await;
    let rate = script.count("a.example") - before;
    assert!(
        (16..=26).contains(&rate),
        "{rate} queries in 20 minutes of failure"
    );
    // A request does not wait for a name that fails, it takes what there is.
    let start = Instant::now();
    assert_eq!(
        first(&resolver.lookup("a.example", soon()).await.unwrap()),
        "10.0.0.1"
    );
    assert_eq!(start, Instant::now());

    script.answer("a.example", &["10.0.0.2"], 100);
    watch.changed().await.unwrap();
    assert_eq!(watch.borrow().state, State::Fresh);
    assert_eq!(first(&watch.borrow()), "10.0.0.2");
}

#[tokio::test(start_paused = true)]
async fn a_lookup_obeys_ttl_deadline_and_truth() {
    let script = Script::default();
    script.answer("a.example", &["10.0.0.1"], 10);
    let resolver = resolver(&script);
    assert_eq!(
        first(&resolver.lookup("a.example", soon()).await.unwrap()),
        "10.0.0.1"
    );
    script.answer("a.example", &["10.0.0.2"], 10);
    assert_eq!(
        first(&resolver.lookup("a.example", soon()).await.unwrap()),
        "10.0.0.1"
    );
    sleep(Duration::from_secs(30)).await;
    assert_eq!(
        first(&resolver.lookup("a.example", soon()).await.unwrap()),
        "10.0.0.2"
    );

    let error = resolver.lookup("none.example", soon()).await.unwrap_err();
    assert_eq!(error, ResolveError::NoSuchName("none.example".into()));
    let ip = resolver.lookup("10.1.2.3", soon()).await.unwrap();
    assert_eq!(first(&ip), "10.1.2.3");

    script.delay(Duration::from_secs(7));
    let start = Instant::now();
    let error = resolver.lookup("slow.example", soon()).await.unwrap_err();
    assert!(matches!(error, ResolveError::Timeout { .. }), "{error}");
    assert_eq!(start.elapsed(), Duration::from_secs(5));
    // One whose TTL is over is better than none.
    sleep(Duration::from_secs(30)).await;
    assert_eq!(
        first(&resolver.lookup("a.example", soon()).await.unwrap()),
        "10.0.0.2"
    );
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_remembered_for_its_back_off_only() {
    let script = Script::default();
    let resolver = resolver(&script);
    for _ in 0..5 {
        assert!(resolver.lookup("a.example", soon()).await.is_err());
    }
    assert_eq!(script.count("a.example"), 1);
    script.answer("a.example", &["10.0.0.1"], 10);
    sleep(Duration::from_secs(30)).await;
    assert_eq!(
        first(&resolver.lookup("a.example", soon()).await.unwrap()),
        "10.0.0.1"
    );
    script.fail("a.example");
    sleep(Duration::from_secs(30)).await;
    let stale = resolver.lookup("a.example", soon()).await.unwrap();
    assert_eq!(
        (first(&stale), stale.state.word()),
        ("10.0.0.1".to_owned(), "stale")
    );
    // At once, while the next lookup runs behind.
    script.answer("a.example", &["10.0.0.2"], 10);
    sleep(Duration::from_secs(30)).await;
    let begun = Instant::now();
    assert_eq!(
        first(&resolver.lookup("a.example", soon()).await.unwrap()),
        "10.0.0.1"
    );
    assert_eq!(begun, Instant::now());
    sleep(Duration::from_secs(1)).await;
    assert_eq!(
        first(&resolver.lookup("a.example", soon()).await.unwrap()),
        "10.0.0.2"
    );
}

#[tokio::test(start_paused = true)]
async fn a_hanging_name_server_is_a_timeout() {
    let script = Script::default();
    script.delay(Duration::from_hours(1));
    let resolver = resolver(&script);
    let mut watch = resolver.watch("a.example");
    let start = Instant::now();
    watch.changed().await.unwrap();
    assert_eq!(start.elapsed(), LOOKUP_LIMIT);
    assert!(matches!(
        watch.borrow().state,
        State::Failed {
            error: ResolveError::Timeout { .. }
        }
    ));
}

#[tokio::test(start_paused = true)]
async fn names_that_nobody_wants_are_neither_asked_for_nor_kept() {
    let script = Script::default();
    script.answer("a.example", &["10.0.0.1"], 10);
    let resolver = resolver(&script);
    resolver.lookup("a.example", soon()).await.unwrap();
    let watch = resolver.watch("b.example");
    sleep(Duration::from_secs(1)).await;
    drop(watch);
    assert_eq!(resolver.status().len(), 2);
    sleep(IDLE_LIMIT + Duration::from_secs(70)).await;
    assert_eq!(resolver.status(), []);
    assert_eq!(script.count("a.example"), 1);
    // And it begins again from nothing.
    resolver.lookup("a.example", soon()).await.unwrap();
    assert_eq!(script.count("a.example"), 2);
}

#[tokio::test(start_paused = true)]
async fn a_name_is_kept_while_it_is_looked_up_or_watched() {
    let script = Script::default();
    script.answer("a.example", &["10.0.0.1"], 10);
    let resolver = resolver(&script);
    let watch = resolver.watch("b.example");
    for _ in 0..10 {
        resolver.lookup("a.example", soon()).await.unwrap();
        sleep(IDLE_LIMIT / 2).await;
    }
    assert_eq!(resolver.status().len(), 2);
    drop(watch);
    // Watched again at the last moment.
    sleep(IDLE_LIMIT / 2).await;
    let watch = resolver.watch("b.example");
    sleep(IDLE_LIMIT * 3).await;
    assert_eq!(resolver.status().len(), 1);
    assert!(watch.borrow().lookups > 3);
}

#[tokio::test(start_paused = true)]
async fn unwatched_names_are_bounded() {
    let script = Script::default();
    let resolver = Resolver::with_unwatched_limit(script.clone(), V4First, 3);
    let _watch = resolver.watch("watched.example");
    for n in 0..4 {
        script.answer(&format!("{n}.example"), &["10.0.0.1"], 100);
        sleep(Duration::from_secs(1)).await;
        resolver
            .lookup(&format!("{n}.example"), soon())
            .await
            .unwrap();
    }
    let status = resolver.status();
    let names: Vec<&str> = status.iter().map(|status| &*status.name).collect();
    assert_eq!(
        names,
        ["1.example", "2.example", "3.example", "watched.example"]
    );

    // All of them still waiting: the next one is told so.
    script.delay(Duration::from_secs(1));
    let resolver = Resolver::with_unwatched_limit(script, V4First, 2);
    let lookup = |name: &'static str| resolver.lookup(name, soon());
    let (a, b, c) = tokio::join!(
        lookup("1.example"),
        lookup("2.example"),
        lookup("3.example")
    );
    assert!(a.is_ok() && b.is_ok());
    assert_eq!(c.unwrap_err(), ResolveError::Overflow { limit: 2 });
}

#[tokio::test(start_paused = true)]
async fn lookups_at_a_time_are_bounded() {
    let script = Script::default();
    script.delay(Duration::from_secs(1));
    let resolver = resolver(&script);
    let watches: Vec<_> = (0..300)
        .map(|n| resolver.watch(&format!("{n}.example")))
        .collect();
    sleep(Duration::from_secs(6)).await;
    assert!(watches.iter().all(|watch| watch.borrow().lookups > 0));
    assert_eq!(script.0.most.load(Ordering::SeqCst), LOOKUPS_LIMIT);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_resolver_stops_asking() {
    let script = Script::default();
    script.answer("a.example", &["10.0.0.1"], 10);
    let resolver = resolver(&script);
    let mut watch = resolver.watch("a.example");
    watch.changed().await.unwrap();
    drop(resolver);
    sleep(Duration::from_secs(100)).await;
    assert_eq!(script.count("a.example"), 1);
    assert!(watch.changed().await.is_err());
}
