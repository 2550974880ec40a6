#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use serde_json::{Value as Json, json};

use super::*;
use crate::policy::Options;
use crate::policy::diagnostic::{Diagnostic, Source};
use crate::policy::load::load_text;

fn read(text: &str) -> Result<Node, Box<Diagnostic>> {
    let source = Arc::new(Source {
        name: "test".into(),
        text: text.into(),
        lines_before: 0,
    });
    let mut nodes = parse(&source, &Limits::default())?;
    assert_eq!(nodes.len(), 1, "{text}");
    Ok(nodes.remove(0))
}

fn json_of(node: &Node) -> Json {
    match &node.value {
        Value::Null => Json::Null,
        Value::Bool(value) => json!(value),
        Value::Integer(value) => json!(value),
        Value::Float(value) => json!(value),
        Value::String(text) => json!(text),
        Value::Sequence(items) => items.iter().map(json_of).collect(),
        Value::Mapping(entries) => Json::Object(
            entries
                .iter()
                .map(|(key, value)| (key.name.to_string(), json_of(value)))
                .collect(),
        ),
    }
}

fn rule(text: &str) -> &'static str {
    read(text).unwrap_err().rule
}

#[test]
fn scalars_are_those_of_yaml_1_1() {
    for (text, value) in [
        ("yes", json!(true)),
        ("Off", json!(false)),
        ("y", json!(true)),
        ("~", json!(null)),
        ("010", json!(8)),
        ("0o17", json!(15)),
        ("0x1F", json!(31)),
        ("1_000", json!(1000)),
        ("089", json!(89.0)),
        ("-5", json!(-5)),
        ("1e3", json!(1000.0)),
        (".5", json!(0.5)),
        ("5.", json!(5.0)),
        ("1.2.3", json!("1.2.3")),
        ("10s", json!("10s")),
        ("2026-01-31", json!("2026-01-31")),
        ("'yes'", json!("yes")),
        ("!!str 80", json!("80")),
        ("+", json!("+")),
        (".", json!(".")),
    ] {
        assert_eq!(
            json_of(&read(&format!("[{text}]\n")).unwrap_or_else(|e| panic!("{e}")))[0],
            value,
            "{text}"
        );
    }
}

#[test]
fn every_node_knows_its_place() {
    let node = read("a:\n  b: [one, two]\n").unwrap();
    let b = node.get("a").unwrap().get("b").unwrap();
    let Value::Sequence(items) = &b.value else {
        panic!()
    };
    assert_eq!(
        (items[1].span.line, items[1].span.column, items[1].span.end),
        (2, 12, 15)
    );
}

#[test]
fn merges_take_what_is_not_there() {
    let node = read("base: &b {x: 1, z: 2}\nown:\n  <<: *b\n  x: 3\n").unwrap();
    assert_eq!(json_of(&node)["own"], json!({"x": 3, "z": 2}));
}

#[test]
fn duplicate_keys_are_refused_with_both_places() {
    let error = read("a: 1\nb: 2\na: 3\n").unwrap_err();
    assert_eq!(error.rule, "duplicate-key");
    assert_eq!(error.location.unwrap().span.line, 3);
    assert_eq!(error.related[0].0.span.line, 1);
}

#[test]
fn what_no_document_needs_is_refused() {
    assert_eq!(
        rule(&format!("{}{}", "[".repeat(200), "]".repeat(200))),
        "yaml-depth"
    );
    let mut deep = String::new();
    for level in 0..200 {
        deep.push_str(&" ".repeat(level));
        deep.push_str("a:\n");
    }
    assert_eq!(rule(&deep), "yaml-depth");
    // Billion laughs.
    let mut laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for n in 1..12 {
        let items = vec![format!("*a{}", n - 1); 10].join(", ");
        laughs.push_str(&format!("a{n}: &a{n} [{items}]\n"));
    }
    assert_eq!(rule(&laughs), "yaml-size");
    let long = "x".repeat(1 << 20);
    let copies = "- *a\n".repeat(100);
    assert_eq!(rule(&format!("a: &a {long}\nb:\n{copies}")), "yaml-size");
    assert_eq!(rule("a: &a [*a]\n"), "yaml-syntax");
    assert_eq!(rule("? [a]\n: b\n"), "yaml-key");
    assert_eq!(rule("a: !!binary aGk=\n"), "yaml-tag");
    assert_eq!(rule("a: !mine b\n"), "yaml-tag");
    assert_eq!(rule("a: [1\nb: 2"), "yaml-syntax");
}

#[test]
fn bad_bytes_and_large_files_are_refused_quickly() {
    let error = text_of("f", b"a: 1\nb: \xff\n".to_vec(), &Limits::default()).unwrap_err();
    let location = error.location.clone().unwrap();
    assert_eq!(
        (error.rule, location.span.line, location.span.column),
        ("encoding", 2, 4)
    );
    let utf16: Vec<u8> = "a: 1".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let mut with_mark = vec![0xff, 0xfe];
    with_mark.extend(utf16);
    assert_eq!(
        text_of("f", with_mark, &Limits::default())
            .unwrap_err()
            .rule,
        "encoding"
    );
    let start = Instant::now();
    let error = text_of("f", vec![b'a'; 50 << 20], &Limits::default()).unwrap_err();
    assert_eq!(error.rule, "file-size");
    assert!(start.elapsed() < Duration::from_secs(1));
}

#[test]
fn a_document_that_cannot_be_read_costs_the_others_nothing() {
    let text = "\u{feff}# first\n---\na: [\n---\nkind: Other\napiVersion: x/v1\n--- # last\n{\"apiVersion\": \"v1\", \"kind\": \"Secret\", \"metadata\": {\"name\": \"s\"}}\n";
    let loaded = load_text("f", text, &Options::default());
    assert_eq!(loaded.outcomes.len(), 3);
    assert_eq!(loaded.documents.list.len(), 1);
    assert_eq!(loaded.documents.list[0].reference.line, 8);
    let place = loaded.diagnostics[0].location.as_ref().unwrap();
    assert!(place.line() == 3 || place.line() == 4, "{}", place.line());
}

fn any_json() -> impl Strategy<Value = Json> {
    let leaf = prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(|b| json!(b)),
        any::<i64>().prop_map(|n| json!(n)),
        any::<String>().prop_map(|s| json!(s)),
        "[-a-z0-9yn~:#,.]{0,8}".prop_map(|s| json!(s)),
    ];
    leaf.prop_recursive(4, 32, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5)
                .prop_map(|list| list.into_iter().filter(|v| !v.is_array()).collect::<Json>()),
            prop::collection::btree_map("[ -~]{1,9}", inner, 0..5)
                .prop_map(|map| Json::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #![proptest_config(crate::policy::cases(1000))]

    #[test]
    fn what_is_printed_reads_back_the_same(value in any_json()) {
        let value = json!({ "k": value });
        // `<<` is not a key that can be printed plainly.
        let text = to_yaml(&value);
        prop_assume!(!value.to_string().contains("<<"));
        let node = read(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
        prop_assert_eq!(json_of(&node), value, "{}", text);
    }

    #[test]
    fn no_text_panics_the_reader(text in "[-a-z0-9:{}\\[\\],&*!|>'\"%@`#? \n\t]{0,80}") {
        let _ = load_text("f", &text, &Options::default());
    }

    #[test]
    fn no_bytes_panic_the_reader(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(text) = text_of("f", bytes, &Limits::default()) {
            let _ = load_text("f", &text, &Options::default());
        }
    }
}
