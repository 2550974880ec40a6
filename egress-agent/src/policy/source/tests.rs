#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::watch;

use super::files::Watcher;
use super::keeper::{Keeper, Places, Published};
use super::reader::Reader;
use super::scan::Interest;
use crate::policy::Options;
use crate::policy::store::Content;

/// Far more than any of it takes.
const DEADLINE: Duration = Duration::from_secs(30);

fn entry(name: &str, host: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata:\n  name: {name}\nspec:\n  hosts: [{host}]\n  ports:\n  - {{number: 443, name: tls, protocol: TLS}}\n  resolution: DNS\n"
    )
}

fn hosts(published: &Published) -> Vec<String> {
    let services = published.snapshot.services.iter();
    let mut hosts: Vec<String> = services.map(|s| s.key.host.to_string()).collect();
    hosts.sort();
    hosts
}

struct Rig {
    home: tempfile::TempDir,
    keeper: Keeper,
    published: watch::Receiver<Published>,
}

impl Rig {
    /// A keeper of `policy` in a new directory, which `prepare` fills first.
    async fn new(prepare: impl FnOnce(&Path)) -> Self {
        let home = tempfile::tempdir().unwrap();
        prepare(home.path());
        let keeper = Keeper::start(Places {
            paths: vec![home.path().join("policy")],
            state: home.path().join("state"),
            known: crate::numbers::Known::default(),
            options: Options::default(),
        })
        .await
        .unwrap();
        let published = keeper.published();
        Self {
            home,
            keeper,
            published,
        }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.home.path().join(path)
    }

    fn write(&self, path: &str, text: &str) {
        fs::write(self.path(path), text).unwrap();
    }

    /// Waits until these hosts are in force.
    async fn until(&mut self, expected: &[&str]) {
        let reached = self.published.wait_for(|p| hosts(p) == expected);
        let in_time = tokio::time::timeout(DEADLINE, reached).await.is_ok();
        let found = hosts(&self.published.borrow());
        assert!(in_time, "{found:?} is not {expected:?}");
    }
}

fn with_directory(home: &Path) {
    fs::create_dir(home.join("policy")).unwrap();
}

#[tokio::test]
async fn files_come_change_and_go() {
    let mut rig = Rig::new(|home| {
        with_directory(home);
        fs::write(home.join("policy/a.yaml"), entry("a", "a.example.com")).unwrap();
    })
    .await;
    rig.until(&["a.example.com"]).await;
    rig.write("policy/b.yml", &entry("b", "b.example.com"));
    rig.until(&["a.example.com", "b.example.com"]).await;
    rig.write("policy/a.yaml", &entry("a", "c.example.com"));
    rig.until(&["b.example.com", "c.example.com"]).await;
    fs::remove_file(rig.path("policy/b.yml")).unwrap();
    rig.until(&["c.example.com"]).await;
    assert_eq!(rig.published.borrow().watch_fault, None);
}

#[tokio::test]
async fn a_file_is_replaced_by_rename() {
    let mut rig = Rig::new(with_directory).await;
    for n in 0..20 {
        let host = format!("h{n}.example.com");
        rig.write("policy/.a.yaml.swp", &entry("a", &host));
        fs::rename(rig.path("policy/.a.yaml.swp"), rig.path("policy/a.yaml")).unwrap();
        rig.until(&[&host]).await;
    }
}

#[tokio::test]
async fn directories_appear_later_are_replaced_and_vanish() {
    let mut rig = Rig::new(|_| {}).await;
    rig.until(&[]).await;
    fs::create_dir_all(rig.path("policy/team/sub")).unwrap();
    rig.write("policy/team/sub/a.yaml", &entry("a", "a.example.com"));
    rig.until(&["a.example.com"]).await;
    // Another directory under the same name.
    fs::create_dir(rig.path("other")).unwrap();
    rig.write("other/b.yaml", &entry("b", "b.example.com"));
    fs::rename(rig.path("policy"), rig.path("old")).unwrap();
    fs::rename(rig.path("other"), rig.path("policy")).unwrap();
    rig.until(&["b.example.com"]).await;
    rig.write("policy/b.yaml", &entry("b", "c.example.com"));
    rig.until(&["c.example.com"]).await;
    fs::remove_dir_all(rig.path("policy")).unwrap();
    rig.until(&[]).await;
    with_directory(rig.home.path());
    rig.write("policy/d.yaml", &entry("d", "d.example.com"));
    rig.until(&["d.example.com"]).await;
}

/// The kubelet writes a new directory and renames a link to it over `..data`.
fn swap(directory: &Path, n: usize, files: &[(&str, String)]) {
    let version = format!("..version_{n}");
    fs::create_dir(directory.join(&version)).unwrap();
    for (name, text) in files {
        fs::write(directory.join(&version).join(name), text).unwrap();
        let link = directory.join(name);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new("..data").join(name), link).unwrap();
        }
    }
    symlink(&version, directory.join("..data_tmp")).unwrap();
    fs::rename(directory.join("..data_tmp"), directory.join("..data")).unwrap();
    if n > 0 {
        fs::remove_dir_all(directory.join(format!("..version_{}", n - 1))).unwrap();
    }
}

#[tokio::test]
async fn a_config_map_is_swapped() {
    let files = |n: usize| {
        [
            ("a.yaml", entry("a", &format!("a{n}.example.com"))),
            ("b.yaml", entry("b", &format!("b{n}.example.com"))),
        ]
    };
    let mut rig = Rig::new(|home| {
        with_directory(home);
        swap(&home.join("policy"), 0, &files(0));
    })
    .await;
    for n in 0..20 {
        if n > 0 {
            swap(&rig.path("policy"), n, &files(n));
        }
        let (a, b) = (format!("a{n}.example.com"), format!("b{n}.example.com"));
        rig.until(&[&a, &b]).await;
    }
}

#[tokio::test]
async fn what_a_link_leads_to_is_watched() {
    let mut rig = Rig::new(|home| {
        with_directory(home);
        fs::create_dir(home.join("real")).unwrap();
        fs::write(home.join("real/a.yaml"), entry("a", "a.example.com")).unwrap();
        symlink("../real/a.yaml", home.join("policy/a.yaml")).unwrap();
    })
    .await;
    rig.until(&["a.example.com"]).await;
    rig.write("real/a.yaml", &entry("a", "b.example.com"));
    rig.until(&["b.example.com"]).await;
}

#[tokio::test]
async fn a_directory_that_is_rewritten_a_thousand_times_ends_as_the_last() {
    let mut rig = Rig::new(with_directory).await;
    for n in 0..1000 {
        for name in ["a", "b", "c"] {
            let path = format!("policy/{name}.yaml");
            rig.write(&path, &entry(name, &format!("{name}{n}.example.com")));
        }
        // One that comes and goes.
        let path = rig.path("policy/d.yaml");
        if n % 2 == 0 {
            fs::write(path, entry("d", "d.example.com")).unwrap();
        } else {
            fs::remove_file(path).unwrap();
        }
        if n % 50 == 0 {
            tokio::task::yield_now().await;
        }
    }
    rig.until(&["a999.example.com", "b999.example.com", "c999.example.com"])
        .await;
    assert_eq!(rig.published.borrow().counts.rejected, 0);
}

#[tokio::test]
async fn a_half_written_file_takes_nothing_away() {
    use std::io::Write;
    let mut rig = Rig::new(|home| {
        with_directory(home);
        let text = format!(
            "{}---\n{}",
            entry("a", "a.example.com"),
            entry("b", "b.example.com")
        );
        fs::write(home.join("policy/p.yaml"), text).unwrap();
    })
    .await;
    rig.until(&["a.example.com", "b.example.com"]).await;
    let text = format!(
        "{}---\n{}",
        entry("a", "c.example.com"),
        entry("b", "d.example.com")
    );
    let mut file = fs::File::create(rig.path("policy/p.yaml")).unwrap();
    let (head, tail) = text.split_at(text.len() / 2);
    file.write_all(head.as_bytes()).unwrap();
    file.write_all(tail.as_bytes()).unwrap();
    drop(file);
    rig.published.mark_unchanged();
    tokio::time::timeout(DEADLINE, rig.published.changed())
        .await
        .unwrap()
        .unwrap();
    // The first thing that is published is the whole of it.
    assert_eq!(
        hosts(&rig.published.borrow()),
        ["c.example.com", "d.example.com"]
    );
}

#[tokio::test]
async fn applied_documents_and_reloads_are_in_force_when_told() {
    let rig = Rig::new(with_directory).await;
    let changes = rig
        .keeper
        .apply(entry("a", "a.example.com"), false)
        .await
        .unwrap();
    assert_eq!(changes[0].outcome.word(), "created");
    assert_eq!(hosts(&rig.published.borrow()), ["a.example.com"]);
    fs::create_dir(rig.path("second")).unwrap();
    rig.write("second/b.yaml", &entry("b", "b.example.com"));
    rig.write("policy/c.yaml", &entry("c", "c.example.com"));
    rig.keeper
        .reload(vec![rig.path("second")], Options::default())
        .await
        .unwrap();
    assert_eq!(
        hosts(&rig.published.borrow()),
        ["a.example.com", "b.example.com"]
    );
    assert_eq!(rig.keeper.documents().await.unwrap().len(), 2);
    rig.keeper
        .delete(entry("a", "a.example.com"), false)
        .await
        .unwrap();
    assert_eq!(hosts(&rig.published.borrow()), ["b.example.com"]);
}

#[tokio::test]
async fn a_state_directory_that_cannot_be_used_is_an_error() {
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("state"), "a file").unwrap();
    let places = Places {
        paths: Vec::new(),
        state: home.path().join("state"),
        known: crate::numbers::Known::default(),
        options: Options::default(),
    };
    let error = Keeper::start(places).await.unwrap_err();
    assert!(error.to_string().contains("applied documents"), "{error}");
}

#[test]
fn only_files_that_changed_are_read() {
    let home = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(home.path().join(name), text).unwrap();
    for n in 0..100 {
        write(&format!("{n}.yaml"), "# one\n");
    }
    let mut reader = Reader::new(vec![home.path().to_owned()]);
    assert_eq!(reader.changes().files.len(), 100);
    assert!(reader.changes().files.is_empty());
    // Written again with what it had.
    write("7.yaml", "# one\n");
    assert!(reader.changes().files.is_empty());
    // As long as before, perhaps within the same tick of the clock.
    write("7.yaml", "# two\n");
    let changes = reader.changes();
    assert_eq!(changes.files.len(), 1);
    assert!(matches!(&changes.files[0].content, Content::Bytes(bytes) if bytes == b"# two\n"));
    fs::remove_file(home.path().join("7.yaml")).unwrap();
    let changes = reader.changes();
    assert!(matches!(changes.files[..], [ref one] if matches!(one.content, Content::Gone)));
    write("notes.txt", "no policy");
    write(".hidden.yaml", "no policy");
    assert!(reader.changes().files.is_empty());
    reader.forget();
    assert_eq!(reader.changes().files.len(), 99);
}

#[tokio::test(start_paused = true)]
async fn without_inotify_it_looks_every_two_seconds() {
    let mut watcher = Watcher::polling();
    assert!(watcher.fault().is_some());
    assert!(!watcher.watch(&BTreeMap::from([(PathBuf::from("/"), Interest::All)])));
    let began = tokio::time::Instant::now();
    watcher.changed().await;
    watcher.changed().await;
    assert_eq!(began.elapsed(), Duration::from_secs(4));
}
