#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use std::fs;
use std::io;
use std::time::Duration;

use super::*;
use crate::policy::schema::meta::Kind;

fn entry(name: &str, host: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata:\n  name: {name}\nspec:\n  hosts: [{host}]\n  ports:\n  - {{number: 443, name: tls, protocol: TLS}}\n  resolution: DNS\n"
    )
}

fn broken(name: &str) -> String {
    entry(name, "a.example.com").replace("resolution: DNS", "resolutoin: DNS")
}

fn id(name: &str) -> DocumentId {
    DocumentId {
        kind: Kind::ServiceEntry,
        namespace: "default".into(),
        name: name.into(),
    }
}

fn file(path: &str, text: &str) -> FileChange {
    FileChange {
        path: Path::new(path).into(),
        modified: SystemTime::UNIX_EPOCH,
        content: Content::Bytes(text.as_bytes().to_vec()),
    }
}

fn gone(path: &str) -> FileChange {
    FileChange {
        content: Content::Gone,
        ..file(path, "")
    }
}

/// Hosts of the services in force.
fn hosts(store: &mut Store) -> Vec<String> {
    let (snapshot, _) = store.compile();
    let mut hosts: Vec<String> = snapshot
        .services
        .iter()
        .map(|service| service.key.host.to_string())
        .collect();
    hosts.sort();
    hosts
}

fn status<'a>(list: &'a [DocumentStatus], name: &str) -> &'a DocumentStatus {
    let found = list.iter().find(|s| s.id == Some(id(name)));
    found.unwrap_or_else(|| panic!("no {name} in {list:?}"))
}

fn reasons(status: &DocumentStatus) -> Vec<&'static str> {
    status.conditions.iter().map(|c| c.reason).collect()
}

fn outcomes(changes: &[Change]) -> Vec<&'static str> {
    changes.iter().map(|change| change.outcome.word()).collect()
}

fn state() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn open(state: &tempfile::TempDir) -> Store {
    Store::open(Options::default(), state.path()).unwrap()
}

#[test]
fn a_rejected_document_leaves_its_previous_version_in_force() {
    let mut store = Store::new(Options::default());
    let two = format!(
        "{}---\n{}",
        entry("a", "a.example.com"),
        entry("b", "b.example.com")
    );
    assert!(store.replace(vec![file("/p.yaml", &two)]).is_empty());
    assert_eq!(hosts(&mut store), ["a.example.com", "b.example.com"]);
    let first = store.snapshot().generation;

    // One is broken, the other is changed.
    let two = format!("{}---\n{}", broken("a"), entry("b", "new.example.com"));
    let problems = store.replace(vec![file("/p.yaml", &two)]);
    assert!(
        problems.iter().any(|p| p.rule == "unknown-field"),
        "{problems:?}"
    );
    assert_eq!(hosts(&mut store), ["a.example.com", "new.example.com"]);
    let list = store.documents();
    let a = status(&list, "a");
    assert!(!a.accepted && a.in_force());
    assert_eq!(a.generation, Some(first));
    assert_eq!(reasons(a), ["Invalid", "PreviousVersion"]);
    assert!(a.conditions[0].message.contains("resolutoin"), "{a:?}");
    assert!(a.line > 0 && &*a.file == "/p.yaml");
    let b = status(&list, "b");
    assert_eq!(reasons(b), ["Valid", "ThisVersion"]);
    assert!(b.generation > Some(first));
    assert_eq!(
        store.counts(),
        Counts {
            in_force: 2,
            rejected: 1
        }
    );

    // Mended, and the other removed.
    store.replace(vec![file("/p.yaml", &entry("a", "a.example.com"))]);
    assert_eq!(hosts(&mut store), ["a.example.com"]);
    let list = store.documents();
    assert_eq!(list.len(), 1);
    // It is what it was, so it is in force since then.
    assert_eq!(status(&list, "a").generation, Some(first));
}

#[test]
fn one_that_was_never_valid_is_told_and_not_in_force() {
    let mut store = Store::new(Options::default());
    store.replace(vec![file("/p.yaml", &broken("a"))]);
    assert!(hosts(&mut store).is_empty());
    let list = store.documents();
    assert_eq!(reasons(status(&list, "a")), ["Invalid", "NeverAccepted"]);
    store.replace(vec![gone("/p.yaml")]);
    assert!(store.documents().is_empty());
}

#[test]
fn a_file_that_cannot_be_read_keeps_what_it_had() {
    let mut store = Store::new(Options::default());
    let good = entry("a", "a.example.com");
    store.replace(vec![file("/p.yaml", &good)]);
    let unreadable = FileChange {
        content: Content::Unreadable(io::ErrorKind::PermissionDenied.into()),
        ..file("/p.yaml", "")
    };
    let not_text = FileChange {
        content: Content::Bytes(vec![0xff, 0xfe]),
        ..file("/p.yaml", "")
    };
    for bad in [unreadable, not_text, file("/p.yaml", "{ a: [")] {
        let problems = store.replace(vec![bad]);
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert_eq!(hosts(&mut store), ["a.example.com"]);
        let list = store.documents();
        assert!(status(&list, "a").in_force());
        let other = list.iter().find(|s| s.id.is_none()).unwrap();
        assert_eq!((&*other.file, other.accepted), ("/p.yaml", false));
    }
    // Empty is no error: the documents were taken out.
    store.replace(vec![file("/p.yaml", "# nothing\n")]);
    assert!(hosts(&mut store).is_empty());
    assert!(store.documents().is_empty());
}

#[test]
fn of_two_sources_the_last_wins_with_a_warning() {
    let mut store = Store::new(Options::default());
    store.replace(vec![
        file("/1.yaml", &entry("a", "one.example.com")),
        file("/2.yaml", &entry("a", "two.example.com")),
    ]);
    assert_eq!(hosts(&mut store), ["two.example.com"]);
    let (_, warnings) = store.compile();
    assert_eq!(warnings.len(), 1);
    assert_eq!(warnings[0].rule, "same-document");

    store.replace(vec![file("/1.yaml", &entry("a", "three.example.com"))]);
    assert_eq!(hosts(&mut store), ["three.example.com"]);
    let list = store.documents();
    let by = |path: &str| list.iter().find(|s| &*s.file == path).unwrap();
    assert_eq!(reasons(by("/1.yaml")), ["Valid", "ThisVersion"]);
    assert_eq!(reasons(by("/2.yaml")), ["Valid", "Overridden"]);
    assert_eq!(by("/1.yaml").problems.len(), 1);

    // A file that says what it said before does not win for it.
    let same = format!("# a word\n{}", entry("a", "two.example.com"));
    store.replace(vec![file("/2.yaml", &same)]);
    assert_eq!(hosts(&mut store), ["three.example.com"]);
    // What is left comes in force, and the warning goes.
    store.replace(vec![gone("/1.yaml")]);
    assert_eq!(hosts(&mut store), ["two.example.com"]);
    assert!(store.compile().1.is_empty());
}

#[test]
fn at_the_start_the_later_file_wins() {
    let late = FileChange {
        modified: SystemTime::UNIX_EPOCH + Duration::from_secs(5),
        ..file("/1.yaml", &entry("a", "late.example.com"))
    };
    let mut store = Store::new(Options::default());
    store.replace(vec![
        late,
        file("/2.yaml", &entry("a", "early.example.com")),
    ]);
    assert_eq!(hosts(&mut store), ["late.example.com"]);
}

#[test]
fn a_document_may_move_between_files_in_any_order() {
    let text = entry("a", "a.example.com");
    for reverse in [false, true] {
        let mut store = Store::new(Options::default());
        store.replace(vec![file("/1.yaml", &text)]);
        let first = hosts(&mut store);
        let mut moved = vec![gone("/1.yaml"), file("/2.yaml", &text)];
        if reverse {
            moved.reverse();
        }
        store.replace(moved);
        assert_eq!(hosts(&mut store), first);
        assert!(store.compile().1.is_empty());
        // Moved and broken at once: the last valid version stays.
        let mut moved = vec![gone("/2.yaml"), file("/3.yaml", &broken("a"))];
        if reverse {
            moved.reverse();
        }
        store.replace(moved);
        assert_eq!(hosts(&mut store), first);
        let list = store.documents();
        assert_eq!(reasons(status(&list, "a")), ["Invalid", "PreviousVersion"]);
    }
}

#[test]
fn a_document_twice_in_a_file_is_the_last_one() {
    let mut store = Store::new(Options::default());
    let text = format!(
        "{}---\n{}",
        entry("a", "a.example.com"),
        entry("a", "b.example.com")
    );
    store.replace(vec![file("/p.yaml", &text)]);
    assert_eq!(hosts(&mut store), ["b.example.com"]);
    let list = store.documents();
    assert_eq!(list[0].problems.len(), 1);
    assert_eq!(list[0].problems[0].rule, "same-document");
}

#[test]
fn applied_documents_outlive_the_store() {
    let state = state();
    let mut store = open(&state);
    let text = format!(
        "{}---\n{}---\n{}",
        entry("a", "a.example.com"),
        broken("b"),
        entry("c", "c.example.com")
    );
    assert_eq!(
        outcomes(&store.apply(text.clone(), true).unwrap()),
        ["created", "rejected", "created"]
    );
    assert!(hosts(&mut store).is_empty());
    assert_eq!(
        outcomes(&store.apply(text.clone(), false).unwrap()),
        ["created", "rejected", "created"]
    );
    assert_eq!(outcomes(&store.apply(text, false).unwrap())[0], "unchanged");
    let again = store.apply(entry("a", "new.example.com"), false).unwrap();
    assert_eq!(outcomes(&again), ["configured"]);
    assert_eq!(again[0].before.as_ref().unwrap().id, id("a"));
    let expected = ["c.example.com", "new.example.com"];
    assert_eq!(hosts(&mut store), expected);

    // As after a crash: nothing is told to the store.
    let mut store = open(&state);
    assert_eq!(hosts(&mut store), expected);
    let list = store.documents();
    assert_eq!(status(&list, "a").source, SourceName::Applied);
    assert!(
        status(&list, "a")
            .file
            .ends_with("serviceentry.default.a.yaml")
    );

    let deleted = store.delete(&[id("a"), id("x")], false).unwrap();
    assert_eq!(outcomes(&deleted), ["deleted", "rejected"]);
    assert_eq!(deleted[1].problems[0].rule, "not-found");
    assert_eq!(hosts(&mut store), ["c.example.com"]);
    assert_eq!(hosts(&mut open(&state)), ["c.example.com"]);
}

#[test]
fn a_refused_apply_is_told_beside_the_version_in_force() {
    let state = state();
    let mut store = open(&state);
    store.apply(entry("a", "a.example.com"), false).unwrap();
    assert_eq!(hosts(&mut store), ["a.example.com"]);
    let refused = store.apply(broken("a"), false).unwrap();
    assert_eq!(outcomes(&refused), ["rejected"]);
    assert_eq!(hosts(&mut store), ["a.example.com"]);
    let list = store.documents();
    let told = status(&list, "a");
    let conditions: Vec<_> = told.conditions.iter().map(|c| (c.kind, c.status)).collect();
    assert_eq!(conditions, [("Accepted", false), ("InForce", true)]);
    assert!(!told.problems.is_empty() && told.document.is_some());
    assert_eq!(store.counts().rejected, 1);
    // A look at what would happen changes nothing, and the old version again
    // is a version that is accepted.
    store.apply(broken("never"), false).unwrap();
    store.apply(entry("a", "a.example.com"), true).unwrap();
    assert_eq!(store.counts().rejected, 1);
    let again = store.apply(entry("a", "a.example.com"), false).unwrap();
    assert_eq!(outcomes(&again), ["unchanged"]);
    assert_eq!((store.counts().rejected, store.documents().len()), (0, 1));
}

#[test]
fn an_unfinished_or_corrupt_file_costs_no_other() {
    let state = state();
    let mut store = open(&state);
    for name in ["a", "b", "c"] {
        let text = entry(name, &format!("{name}.example.com"));
        store.apply(text, false).unwrap();
    }
    let directory = state.path().join("applied");
    let path = |name: &str| directory.join(format!("serviceentry.default.{name}.yaml"));
    let whole = fs::read_to_string(path("a")).unwrap();
    // Cut at every place, as a file system may after a crash.
    for length in 0..whole.len() {
        fs::write(path("a"), &whole[..length]).unwrap();
        let mut store = open(&state);
        assert_eq!(
            hosts(&mut store),
            ["b.example.com", "c.example.com"],
            "{length}"
        );
        let list = store.documents();
        let told: Vec<_> = list.iter().filter(|s| s.id.is_none()).collect();
        assert_eq!(told.len(), 1, "{length}: {list:?}");
        assert!(told[0].file.ends_with(".a.yaml"));
    }
    // Changed by hand.
    fs::write(path("b"), whole.replace("a.example", "x.example")).unwrap();
    // Never renamed.
    fs::write(directory.join(".new-x"), "half").unwrap();
    assert_eq!(hosts(&mut open(&state)), ["c.example.com"]);
    assert!(!directory.join(".new-x").exists());
}

#[test]
fn names_that_no_file_may_have_are_kept_all_the_same() {
    let state = state();
    let mut store = open(&state);
    let names = ["../up", "A", "a b", &"n".repeat(300)];
    for (n, name) in names.iter().enumerate() {
        let text = entry(&format!("{name:?}"), &format!("h{n}.example.com"));
        let changes = store.apply(text, false).unwrap();
        assert_eq!(outcomes(&changes), ["created"], "{changes:?}");
    }
    assert_eq!(hosts(&mut open(&state)).len(), names.len());
    assert_eq!(fs::read_dir(state.path()).unwrap().count(), 1);
}

#[test]
fn items_of_a_list_are_kept_each_for_itself() {
    let state = state();
    let mut store = open(&state);
    let item = |name: &str| {
        let text = entry(name, &format!("{name}.example.com"));
        let lines = text.lines().map(|line| format!("  {line}\n"));
        lines.collect::<String>().replacen("  api", "- api", 1)
    };
    let text = format!(
        "apiVersion: v1\nkind: List\nitems:\n{}{}",
        item("a"),
        item("b")
    );
    assert_eq!(
        outcomes(&store.apply(text, false).unwrap()),
        ["created", "created"]
    );
    store.delete(&[id("a")], false).unwrap();
    assert_eq!(hosts(&mut store), ["b.example.com"]);
    assert_eq!(hosts(&mut open(&state)), ["b.example.com"]);
}

#[test]
fn secrets_are_kept_with_their_data_and_readable_by_us_alone() {
    use std::os::unix::fs::PermissionsExt;
    let state = state();
    let text = |value: &str| {
        format!(
            "apiVersion: v1\nkind: Secret\nmetadata:\n  name: s\nstringData:\n  cert: {value}\n"
        )
    };
    let mut store = open(&state);
    store.apply(text("one"), false).unwrap();
    assert_eq!(
        outcomes(&store.apply(text("one"), false).unwrap()),
        ["unchanged"]
    );
    assert_eq!(
        outcomes(&store.apply(text("two"), false).unwrap()),
        ["configured"]
    );
    let path = state.path().join("applied/secret.default.s.yaml");
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let mut store = open(&state);
    let (snapshot, _) = store.compile();
    let secret = snapshot.secrets.values().next().unwrap();
    assert_eq!(&***secret.data.get("cert").unwrap(), b"two");
}

#[test]
fn what_is_applied_and_in_a_file_is_the_later_one() {
    let state = state();
    let mut store = open(&state);
    store.replace(vec![file("/p.yaml", &entry("a", "file.example.com"))]);
    let refused = store.delete(&[id("a")], false).unwrap();
    assert_eq!(refused[0].problems[0].rule, "not-applied");
    assert!(refused[0].problems[0].message.contains("/p.yaml"));
    let changes = store
        .apply(entry("a", "applied.example.com"), false)
        .unwrap();
    assert_eq!(outcomes(&changes), ["configured"]);
    assert_eq!(hosts(&mut store), ["applied.example.com"]);
    // A file that is broken now takes nothing from the applied one, and gets
    // nothing of it when that is deleted.
    store.replace(vec![file("/p.yaml", &broken("a"))]);
    assert_eq!(hosts(&mut store), ["applied.example.com"]);
    let deleted = store.delete(&[id("a")], false).unwrap();
    assert_eq!(deleted[0].problems[0].rule, "same-document");
    assert_eq!(hosts(&mut store), ["file.example.com"]);
}

#[test]
fn only_kind_and_name_matter_for_a_delete() {
    let state = state();
    let mut store = open(&state);
    store.apply(entry("a", "a.example.com"), false).unwrap();
    let text = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: a}\n";
    assert_eq!(
        outcomes(&store.delete_text(text.to_owned(), true).unwrap()),
        ["deleted"]
    );
    assert_eq!(
        outcomes(&store.delete_text(text.to_owned(), false).unwrap()),
        ["deleted"]
    );
    assert!(hosts(&mut store).is_empty());
}

#[test]
fn other_options_hold_for_what_was_applied() {
    let state = state();
    let lenient = Options {
        unknown_fields: crate::policy::UnknownFields::Warn,
        ..Options::default()
    };
    let mut store = Store::open(lenient, state.path()).unwrap();
    let text = entry("a", "a.example.com").replace("spec:\n", "spec:\n  newField: 1\n");
    assert_eq!(outcomes(&store.apply(text, false).unwrap()), ["created"]);
    // Now unknown fields are errors: the version in force stays, and both are
    // told.
    store.set_options(Options::default());
    assert_eq!(hosts(&mut store), ["a.example.com"]);
    let list = store.documents();
    assert_eq!(reasons(status(&list, "a")), ["Invalid", "PreviousVersion"]);
}

proptest::proptest! {
    /// Whatever happens, what is in force is what a slow model says.
    #[test]
    fn agrees_with_an_obvious_model(
        steps in proptest::collection::vec((0_usize..3, 0_usize..4, 0_usize..3), 1..40)
    ) {
        let mut store = Store::new(Options::default());
        // Per file: the valid version, and when it came.
        let mut model: [Option<(usize, String)>; 3] = Default::default();
        for (step, (n, action, version)) in steps.into_iter().enumerate() {
            let path = format!("/{n}.yaml");
            let host = format!("v{version}.example.com");
            match action {
                0 => {
                    store.replace(vec![gone(&path)]);
                    let old = model[n].take();
                    // It may have been broken elsewhere first; see below.
                    let _ = old;
                }
                1 => {
                    // Broken only where it was valid, so that nothing is
                    // inherited.
                    if model[n].is_some() {
                        store.replace(vec![file(&path, &broken("a"))]);
                    }
                }
                _ => {
                    store.replace(vec![file(&path, &entry("a", &host))]);
                    if model[n].as_ref().is_none_or(|(_, old)| *old != host) {
                        model[n] = Some((step, host));
                    }
                }
            }
            let expected: Vec<String> =
                model.iter().flatten().max().map(|(_, host)| host.clone()).into_iter().collect();
            proptest::prop_assert_eq!(hosts(&mut store), expected);
        }
    }
}
