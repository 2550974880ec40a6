//! Single changes to small documents, each with the verdict of Istio's own
//! validator and schema: `ok` or `bad`, then what is changed.
#![allow(clippy::panic, reason = "tests")]

use std::fmt::Write;

use crate::policy::Options;
use crate::policy::load::load_text;

/// Lines of a table: `ok` or `bad`, then a `spec` in one line.
fn judge(kind: &str, table: &str) {
    let mut wrong = String::new();
    for line in table.lines().map(str::trim) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let Some((verdict, spec)) = line.split_once(' ') else {
            panic!("no spec: {line}");
        };
        assert!(matches!(verdict, "ok" | "bad"), "{line}");
        // X⟨n⟩ stands for n letters.
        let mut text = String::new();
        let mut rest = spec;
        while let Some((before, after)) = rest.split_once("X<") {
            let Some((number, after)) = after.split_once('>') else {
                panic!("{line}")
            };
            let Ok(number) = number.parse() else {
                panic!("{line}")
            };
            text.push_str(before);
            text.push_str(&"x".repeat(number));
            rest = after;
        }
        text.push_str(rest);
        let document = format!(
            "apiVersion: networking.istio.io/v1\nkind: {kind}\nmetadata: {{name: a, namespace: own}}\nspec: {{{text}}}\n"
        );
        let loaded = load_text("table", &document, &Options::default());
        let errors: Vec<String> = loaded
            .diagnostics
            .iter()
            .filter(|diagnostic| diagnostic.is_error())
            .map(|diagnostic| format!("{}: {}", diagnostic.rule, diagnostic.message))
            .collect();
        if errors.is_empty() != (verdict == "ok") {
            let _ = writeln!(wrong, "{line}\n    {}", errors.join("\n    "));
        }
        assert!(
            errors.iter().all(|error| !error.contains("invalid")),
            "{errors:?}"
        );
    }
    assert!(wrong.is_empty(), "{kind}: other verdicts on\n{wrong}");
}

#[test]
fn service_entries() {
    judge("ServiceEntry", include_str!("verdicts/service_entry.txt"));
}

#[test]
fn destination_rules() {
    judge(
        "DestinationRule",
        include_str!("verdicts/destination_rule.txt"),
    );
}

#[test]
fn virtual_services() {
    judge(
        "VirtualService",
        include_str!("verdicts/virtual_service.txt"),
    );
}
