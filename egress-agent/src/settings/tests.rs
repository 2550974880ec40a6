#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use std::io::Write;
use std::time::Duration;

use super::table::When;
use super::value::*;
use super::*;

fn load(flags: &[&str], env: &[(&str, &str)], file: &str) -> Result<Loaded, SettingsError> {
    let mut source = tempfile::NamedTempFile::new().unwrap();
    source.write_all(file.as_bytes()).unwrap();
    let path = source.path().to_str().unwrap().to_owned();
    let mut line = vec!["egress-agent", "--settings", &path];
    line.extend(flags);
    let matches = command::command().try_get_matches_from(line).unwrap();
    let env = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    Sources::new(&matches, env).load()
}

fn failure(flags: &[&str], env: &[(&str, &str)], file: &str) -> String {
    load(flags, env, file).expect_err("must fail").to_string()
}

#[test]
fn defaults_are_valid_and_complete() {
    let settings = load(&[], &[], "").unwrap().settings;
    assert_eq!(settings.policy, [PathBuf::from("/etc/egress/policy")]);
    assert_eq!(settings.drain_deadline, Duration::from_secs(30));
    assert_eq!(settings.heartbeat_limit, Duration::from_millis(800));
    assert_eq!(settings.admin.0, PathBuf::from("/run/egress/admin.sock"));
    assert_eq!(
        settings.metrics,
        MetricsListener::At("127.0.0.1:15090".parse().unwrap())
    );
    assert_eq!(settings.outbound, Outbound::AllowAny);
    assert!(settings.dns.is_on());
    assert!(settings.cgroup.is_none() && settings.locality.is_none());
}

#[test]
fn a_flag_beats_a_variable_beats_the_file() {
    let file = "state-dir = '/file'\nbpffs = '/file'\nsecrets-dir = '/file'";
    let env = [("EGRESS_STATE_DIR", "/env"), ("EGRESS_BPFFS", "/env")];
    let settings = load(&["--state-dir", "/flag"], &env, file)
        .unwrap()
        .settings;
    assert_eq!(settings.state_dir, PathBuf::from("/flag"));
    assert_eq!(settings.bpffs, PathBuf::from("/env"));
    assert_eq!(settings.secrets_dir, PathBuf::from("/file"));
}

#[test]
fn a_higher_rank_replaces_a_list_whole() {
    let file = "policy = ['/a', '/b']";
    let settings = load(&[], &[("EGRESS_POLICY", "/c:/d")], file)
        .unwrap()
        .settings;
    assert_eq!(settings.policy, [PathBuf::from("/c"), PathBuf::from("/d")]);
    let loaded = load(&["--policy", "/e", "--policy", "/f"], &[], file).unwrap();
    assert_eq!(
        loaded.settings.policy,
        [PathBuf::from("/e"), PathBuf::from("/f")]
    );
    assert!(!loaded.default_policy);
}

#[test]
fn an_unknown_key_shows_its_line_and_the_nearest_name() {
    let text = failure(&[], &[], "log = 'info'\nstate_dirr = '/x'\n");
    assert!(text.contains("unknown setting `state_dirr`"), "{text}");
    assert!(text.contains("did you mean `state-dir`?"), "{text}");
    assert!(text.contains(":2:1"), "{text}");
    assert!(text.contains("^^^^^^^^^^"), "{text}");
}

#[test]
fn all_problems_are_told_at_once_with_their_source() {
    let text = failure(
        &["--drain-deadline", "30"],
        &[("EGRESS_WORKERS", "many")],
        "metrics = 'localhost'\nnamespace = 'Not_One'\n",
    );
    assert!(text.contains("flag --drain-deadline"), "{text}");
    assert!(
        text.contains("environment variable EGRESS_WORKERS"),
        "{text}"
    );
    assert!(text.contains("metrics: `localhost`"), "{text}");
    assert!(text.contains("namespace: `Not_One`"), "{text}");
    assert!(text.contains(":2:13"), "{text}");
}

#[test]
fn syntax_errors_show_the_line() {
    let text = failure(&[], &[], "log = 'info'\nworkers = = 2\n");
    assert!(text.contains(":2:"), "{text}");
    assert!(text.contains("workers = = 2"), "{text}");
}

#[test]
fn a_named_file_must_exist() {
    let matches = command::command()
        .try_get_matches_from(["egress-agent", "--settings", "/nonexistent/agent.toml"])
        .unwrap();
    let error = Sources::new(&matches, []).load().unwrap_err().to_string();
    assert!(error.contains("/nonexistent/agent.toml"), "{error}");
}

#[test]
fn a_mistyped_variable_is_noted_and_a_strange_one_is_not() {
    let env = [
        ("EGRESS_STATEDIR", "/x"),
        ("EGRESS_AGENT_SERVICE_HOST", "10.0.0.1"),
    ];
    let notes = load(&[], &env, "").unwrap().notes;
    assert_eq!(notes.len(), 1, "{notes:?}");
    assert!(notes[0].contains("did you mean EGRESS_STATE_DIR?"));
}

#[test]
fn durations_need_a_unit_and_limits_hold() {
    for (text, millis) in [("500ms", 500), ("1m30s", 90_000), ("0", 0), ("1.5s", 1500)] {
        let settings = load(&["--drain-deadline", text], &[], "").unwrap().settings;
        assert_eq!(settings.drain_deadline, Duration::from_millis(millis));
    }
    for text in ["30", "-3s", "soon", ""] {
        let flag = format!("--drain-deadline={text}");
        failure(&[&flag], &[], "");
    }
    let text = failure(&["--heartbeat-limit", "10ms"], &[], "");
    assert!(text.contains("flag --heartbeat-limit"), "{text}");
}

#[test]
fn toml_numbers_and_booleans_are_taken_as_they_are() {
    let settings = load(
        &[],
        &[],
        "workers = 3\ndns = false\nmax-connections = 10_000\n",
    )
    .unwrap()
    .settings;
    assert_eq!(settings.workers.0.get(), 3);
    assert!(!settings.dns.is_on());
    assert_eq!(
        settings.max_connections,
        ConnectionLimit::At(std::num::NonZeroU32::new(10_000).unwrap())
    );
    let text = failure(&[], &[], "workers = 1.5\n");
    assert!(text.contains("no setting takes a TOML float"), "{text}");
}

#[test]
fn workload_rules_come_from_tables_and_from_text() {
    let file = r#"
workload = [
  { cgroup = "system.slice/pay-*.service", namespace = "pay", name = "p", labels = { app = "pay" } },
]"#;
    let rule = load(&[], &[], file).unwrap().settings.workload.remove(0);
    assert_eq!((&*rule.namespace, rule.name.as_deref()), ("pay", Some("p")));
    assert_eq!(rule.labels.get("app").map(|v| &**v), Some("pay"));
    let headers = "[[workload]]\ncgroup = 'a.slice'\nnamespace = 'a'\n";
    assert_eq!(load(&[], &[], headers).unwrap().settings.workload.len(), 1);

    let flags = ["--workload", "batch.slice=batch,tier=low"];
    let rule = load(&flags, &[], file).unwrap().settings.workload.remove(0);
    assert_eq!(&*rule.namespace, "batch");
    assert_eq!(rule.labels.get("tier").map(|v| &**v), Some("low"));

    let text = failure(&[], &[], "workload = [{ cgrup = 'a', namespace = 'b' }]");
    assert!(text.contains("did you mean `cgroup`?"), "{text}");
    assert!(text.contains(":1:15"), "{text}");
}

#[test]
fn values_of_each_kind_are_checked() {
    assert!(AdminSocket::parse("unix:/run/a.sock").is_ok());
    assert!(AdminSocket::parse("unix:///run/a.sock").is_ok());
    assert!(AdminSocket::parse("/run/a.sock").is_err());
    assert!(AdminSocket::parse(&format!("unix:/{}", "a".repeat(200))).is_err());
    assert_eq!(
        NameServer::parse("2001:db8::1").unwrap().0.to_string(),
        "[2001:db8::1]:53"
    );
    assert!(NameServer::parse("dns.example").is_err());
    assert!(<Locality as Scalar>::parse("eu//z").is_err());
    assert!(<Locality as Scalar>::parse("eu/a/b/c").is_err());
    assert!(LogFilter::parse("info,egress_agent=debug").is_ok());
    assert!(LogFilter::parse("info,[=").is_err());
    let slip = LogFilter::parse("debgu").unwrap_err().message;
    assert!(slip.contains("did you mean `debug`?"), "{slip}");
    assert!(
        Outbound::parse("registry_only")
            .unwrap_err()
            .message
            .contains("did you mean `registry-only`?")
    );
    assert_eq!(ClusterDomain::parse("Cluster.local").ok(), None);
}

#[test]
fn a_reload_takes_only_what_may_change() {
    let mut old = load(&[], &[], "").unwrap().settings;
    let new = load(&["--log", "debug", "--workers", "7"], &[], "")
        .unwrap()
        .settings;
    let workers = old.workers;
    let outcome = old.reload(&new);
    assert_eq!(outcome.taken, ["log"]);
    let expected: &[&str] = if workers == new.workers {
        &[]
    } else {
        &["workers"]
    };
    assert_eq!(outcome.need_restart, expected);
    assert_eq!(old.log.as_str(), "debug");
    assert_eq!(old.workers, workers);
}

/// The file in the repository, the table and the parser say the same. Run with
/// `UPDATE_EXAMPLE=1` to write the file anew.
#[test]
fn the_example_file_is_what_the_table_says_and_loads_as_the_defaults() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../config/egress-agent.toml");
    if std::env::var_os("UPDATE_EXAMPLE").is_some() {
        std::fs::write(path, example()).unwrap();
    }
    assert_eq!(std::fs::read_to_string(path).unwrap(), example());

    let defaults = load(&[], &[], "").unwrap().settings;
    assert_eq!(load(&[], &[], &example()).unwrap().settings, defaults);
    // Uncommented, every line that stands for a default must be accepted and
    // change nothing; the others must be accepted.
    let uncommented: String = example()
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(rest) if !rest.starts_with([' ', '#']) || rest.starts_with("  {") => rest,
            Some(_) => "",
            None => line,
        })
        .flat_map(|line| [line, "\n"])
        .collect();
    let mut settings = load(&[], &[], &uncommented).unwrap().settings;
    assert_eq!(settings.workload.len(), 2);
    settings.workload.clear();
    settings.dns_upstream.clear();
    settings.dns_search.clear();
    settings.dns_upstream_in.clear();
    settings.dns_search_in.clear();
    settings.outbound_in.clear();
    settings.outbound_allow.clear();
    (settings.cgroup, settings.locality) = (None, None);
    (settings.kubeconfig, settings.node_name) = (None, None);
    settings.mesh_identity = None;
    assert_eq!(settings, defaults);
}

#[test]
fn every_setting_is_in_the_help_with_its_variable() {
    let help = command::command().render_long_help().to_string();
    for setting in TABLE {
        assert!(
            help.contains(&format!("--{} ", setting.key)),
            "{}",
            setting.key
        );
        assert!(help.contains(&setting.variable()), "{}", setting.key);
        assert!(!setting.paragraphs().is_empty());
    }
    assert!(TABLE.iter().any(|setting| setting.when == When::Start));
    command::command().debug_assert();
}
