//! Policy that changes while the agent runs.
#![allow(clippy::panic, reason = "tests")]

use std::fs;
use std::time::Duration;

use lab::dns::NameServer;
use lab::process::wait_for;
use lab::tcp::{Behaviour, Server};
use lab::{Lab, RESOLVER, Result, long, policy};
use serde_json::Value;

/// How long a change of a file may take to be in force.
const SOON: Duration = Duration::from_secs(10);

/// Connects fifty times a second to two hosts in turn, echoes, and counts what
/// failed, until the file STOP is there.
const TRAFFIC: &str = r#"
import os, socket, time
done, failed, next_at = 0, [], time.monotonic()
while not os.path.exists(STOP):
    host = ("one.example.com", "two.example.com")[done % 2]
    try:
        with socket.create_connection((host, 7000), 5) as s:
            s.settimeout(5)
            s.sendall(b"ping")
            if s.recv(100) != b"ping":
                failed.append("no echo")
    except OSError as error:
        failed.append(f"{host}: {error}")
    done += 1
    next_at += 0.02
    time.sleep(max(0, next_at - time.monotonic()))
with open(REPORT, "w") as report:
    report.write(f"{done} {len(failed)} {failed[:3]}")
"#;

fn hosts_in_force(lab: &Lab) -> Result<Vec<String>> {
    let json = lab
        .egressctl(&["proxy-config", "services", "-o", "json"])?
        .text()?;
    let list: Value = serde_json::from_str(&json)?;
    let list = list.as_array().cloned().unwrap_or_default();
    Ok(list
        .iter()
        .filter_map(|service| Some(service["host"].as_str()?.to_owned()))
        .collect())
}

#[test]
fn a_directory_that_is_rewritten_again_and_again_disturbs_no_other_service() -> Result<()> {
    let lab = Lab::new()?;
    let _dns = NameServer::start(
        &lab,
        RESOLVER,
        "203.0.113.20 one.example.com two.example.com\n",
    )?;
    let _server = Server::start(&lab, "203.0.113.20:7000", Behaviour::Echo)?;
    let agent = lab
        .agent()
        .policy("one", &policy::tcp("one.example.com", 7000))?
        .policy("two", &policy::tcp_proxied("two.example.com", 7000))?
        .start()?;
    let (stop, report) = (lab.directory().join("stop"), lab.directory().join("report"));
    let script = format!(
        "STOP = {:?}\nREPORT = {:?}\n{TRAFFIC}",
        stop.display().to_string(),
        report.display().to_string()
    );
    let mut traffic = lab.python(&script).start()?;

    let times = if long() { 1_000 } else { 200 };
    let folder = lab.policy_directory();
    for number in 0..times {
        // One file is replaced as editors do it, one in place, one comes and goes.
        let changed = policy::tcp_static(
            &format!("churn-{number}.example.com"),
            7000 + (number % 50),
            &["203.0.113.20"],
        );
        let name = format!("churn-{number}-example-com");
        let changed = changed.replace(&name, "churn");
        fs::write(folder.join(".new"), &changed)?;
        fs::rename(folder.join(".new"), folder.join("churn.yaml"))?;
        let host = format!("place-{number}.example.com");
        lab.write_policy("place", &policy::tcp_static(&host, 7001, &["203.0.113.21"]))?;
        if number % 2 == 0 {
            lab.write_policy("guest", &policy::tcp("guest.example.com", 7002))?;
        } else {
            fs::remove_file(folder.join("guest.yaml"))?;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let last = times - 1;
    wait_for("the last version in force", SOON, || {
        let mut hosts = hosts_in_force(&lab)?;
        hosts.sort_unstable();
        let mut wanted = vec![
            format!("churn-{last}.example.com"),
            "one.example.com".to_owned(),
            format!("place-{last}.example.com"),
            "two.example.com".to_owned(),
        ];
        wanted.sort_unstable();
        Ok((hosts == wanted).then_some(()))
    })?;
    fs::write(&stop, "")?;
    traffic.wait(Duration::from_secs(15))?;
    let report = fs::read_to_string(&report)?;
    let mut words = report.split(' ');
    let done: u32 = words.next().unwrap_or_default().parse()?;
    assert_eq!(words.next(), Some("0"), "{report}");
    assert!(done > 20, "{report}");
    agent.stop()
}

#[test]
fn a_broken_document_keeps_its_previous_version_and_get_shows_both_facts() -> Result<()> {
    let lab = Lab::new()?;
    let agent = lab
        .agent()
        .policy(
            "db",
            &policy::tcp_static("db.example.com", 7000, &["203.0.113.20"]),
        )?
        .start()?;
    let conditions = |name: &str| -> Result<Vec<(String, bool)>> {
        let json = lab.egressctl(&["get", "se", name, "-o", "json"])?.text()?;
        let document: Value = serde_json::from_str(&json)?;
        let list = document["status"]["conditions"].as_array().cloned();
        Ok(list
            .unwrap_or_default()
            .iter()
            .map(|c| {
                let word = |key: &str| c[key].as_str().unwrap_or_default().to_owned();
                (word("type"), word("status") == "True")
            })
            .collect())
    };
    let both = |accepted| {
        vec![
            ("Accepted".to_owned(), accepted),
            ("InForce".to_owned(), true),
        ]
    };
    assert_eq!(conditions("db-example-com")?, both(true));
    // A half-written file, then one with a mistake.
    let whole = policy::tcp_static("db.example.com", 7000, &["203.0.113.20"]);
    for broken in [
        &whole[..whole.len() / 2],
        &whole.replace("number: 7000", "number: 0"),
    ] {
        lab.write_policy("db", broken)?;
        wait_for("the refusal", SOON, || {
            Ok((conditions("db-example-com")? == both(false)).then_some(()))
        })?;
        assert_eq!(hosts_in_force(&lab)?, ["db.example.com"]);
    }
    lab.write_policy("db", &whole)?;
    wait_for("the mended version", SOON, || {
        Ok((conditions("db-example-com")? == both(true)).then_some(()))
    })?;

    // The same for documents that were applied.
    let applied = policy::tcp_static("api.example.com", 7001, &["203.0.113.20"]);
    let apply = |text: &str| {
        let file = lab.write("apply.yaml", text)?;
        lab.egressctl(&["apply", "-f"])?.arg(file).output()
    };
    assert_eq!(apply(&applied)?.code(), 0);
    assert_eq!(hosts_in_force(&lab)?, ["api.example.com", "db.example.com"]);
    assert_eq!(
        apply(&applied.replace("number: 7001", "number: 0"))?.code(),
        1
    );
    assert_eq!(conditions("api-example-com")?, both(false));
    assert_eq!(hosts_in_force(&lab)?, ["api.example.com", "db.example.com"]);
    assert_eq!(apply(&applied)?.code(), 0);
    assert_eq!(conditions("api-example-com")?, both(true));
    agent.stop()
}

#[test]
fn a_config_map_that_is_swapped_is_followed() -> Result<()> {
    let lab = Lab::new()?;
    // As the kubelet lays a ConfigMap out: names lead through `..data`, which is
    // swapped whole.
    let mount = lab.directory().join("mount");
    let version = |number: u32, host: &str| -> Result<()> {
        let folder = mount.join(format!("..v{number}"));
        fs::create_dir_all(&folder)?;
        fs::write(
            folder.join("db.yaml"),
            policy::tcp_static(host, 7000, &["203.0.113.20"]),
        )?;
        let link = mount.join("..data_tmp");
        std::os::unix::fs::symlink(format!("..v{number}"), &link)?;
        fs::rename(&link, mount.join("..data"))?;
        Ok(())
    };
    version(1, "first.example.com")?;
    std::os::unix::fs::symlink("..data/db.yaml", mount.join("db.yaml"))?;
    let agent = lab
        .agent()
        .setting("--policy", mount.display().to_string())
        .start()?;
    assert_eq!(hosts_in_force(&lab)?, ["first.example.com"]);
    for number in 2..6 {
        let host = format!("version-{number}.example.com");
        version(number, &host)?;
        fs::remove_dir_all(mount.join(format!("..v{}", number - 1)))?;
        wait_for("the new version", SOON, || {
            Ok((hosts_in_force(&lab)? == [host.as_str()]).then_some(()))
        })?;
    }
    agent.stop()
}

#[test]
fn of_two_sources_the_last_applied_wins_with_a_warning() -> Result<()> {
    let lab = Lab::new()?;
    let document = |port: u16| policy::tcp_static("db.example.com", port, &["203.0.113.20"]);
    let agent = lab.agent().policy("db", &document(7000))?.start()?;
    let ports = || -> Result<Vec<u64>> {
        let json = lab
            .egressctl(&["proxy-config", "services", "-o", "json"])?
            .text()?;
        let list: Value = serde_json::from_str(&json)?;
        let list = list.as_array().cloned().unwrap_or_default();
        Ok(list.iter().filter_map(|s| s["port"].as_u64()).collect())
    };
    let file = lab.write("apply.yaml", &document(7001))?;
    let diff = lab.egressctl(&["diff", "-f"])?.arg(&file).text()?;
    assert!(diff.contains("7000") && diff.contains("7001"), "{diff}");
    assert_eq!(ports()?, [7000]);
    lab.egressctl(&["apply", "-f"])?.arg(&file).text()?;
    assert_eq!(ports()?, [7001]);
    let told = lab.egressctl(&["get", "-o", "json"])?.text()?;
    assert!(told.contains("same-document"), "{told}");
    // The file changes later than that, and wins again.
    lab.write_policy("db", &document(7002))?;
    wait_for("the file's version", SOON, || {
        Ok((ports()? == [7002]).then_some(()))
    })?;
    lab.egressctl(&["delete", "-f"])?.arg(&file).text()?;
    assert_eq!(ports()?, [7002]);
    agent.stop()
}

#[test]
fn applied_documents_survive_a_kill_in_the_middle_and_a_full_disk_is_told() -> Result<()> {
    let lab = Lab::new()?;
    let state = lab.directory().join("state");
    fs::create_dir_all(&state)?;
    rustix::mount::mount(
        "tmpfs",
        &state,
        "tmpfs",
        rustix::mount::MountFlags::empty(),
        Some(c"size=512k"),
    )?;
    let _mounted = Mounted(state.clone());
    let all = |from: u32, to: u32| {
        let documents: Vec<String> = (from..to)
            .map(|n| policy::tcp_static(&format!("h{n}.example.com"), 7000, &["203.0.113.20"]))
            .collect();
        let documents: Vec<&str> = documents.iter().map(String::as_str).collect();
        lab.write(&format!("{from}.yaml"), &policy::join(&documents))
    };
    let agent = lab.agent().start()?;
    lab.egressctl(&["apply", "-f"])?.arg(all(0, 3)?).text()?;
    // Killed while it applies: what is there afterwards is whole.
    let mut apply = lab.egressctl(&["apply", "-f"])?.arg(all(3, 30)?).start()?;
    std::thread::sleep(Duration::from_millis(20));
    agent.kill();
    apply.wait(Duration::from_secs(20))?;
    let agent = lab.agent().start()?;
    let hosts = hosts_in_force(&lab)?;
    assert!(hosts.len() >= 3, "{hosts:?}");
    let rejected = lab.egressctl(&["get"])?.text()?;
    assert!(!rejected.contains("rejected"), "{rejected}");
    // A disk that is full: nothing of it is in force, and what was stays.
    let full = fs::write(state.join("ballast"), vec![0_u8; 512 << 10]);
    assert!(full.is_err(), "the disk is larger than it should be");
    let finished = lab
        .egressctl(&["apply", "-f"])?
        .arg(all(100, 400)?)
        .output()?;
    assert_ne!(finished.code(), 0, "{finished:?}");
    let said = format!("{}{}", finished.stdout, finished.stderr);
    assert!(said.to_lowercase().contains("no space left"), "{said}");
    assert_eq!(hosts_in_force(&lab)?, hosts);
    fs::remove_file(state.join("ballast"))?;
    lab.egressctl(&["apply", "-f"])?
        .arg(all(100, 103)?)
        .text()?;
    assert_eq!(hosts_in_force(&lab)?.len(), hosts.len() + 3);
    agent.stop()
}

/// A mount that goes when the test ends, however it ends.
struct Mounted(std::path::PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        // Nothing more can be done where it does not go.
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

#[test]
fn a_policy_path_that_is_not_there_is_a_clear_error() -> Result<()> {
    let lab = Lab::new()?;
    let finished = lab.agent().setting("--policy", "/nowhere/policy").fail()?;
    assert_ne!(finished.code(), 0);
    let said = format!("{}{}", finished.stdout, finished.stderr);
    assert!(
        said.contains("cannot read policy /nowhere/policy: No such file"),
        "{said}"
    );
    Ok(())
}

#[test]
fn top_prints_one_plain_table_without_a_terminal() -> Result<()> {
    let lab = Lab::new()?;
    let _dns = NameServer::start(&lab, RESOLVER, "203.0.113.20 one.example.com\n")?;
    let _server = Server::start(&lab, "203.0.113.20:7000", Behaviour::Echo)?;
    let agent = lab
        .agent()
        .policy("one", &policy::tcp("one.example.com", 7000))?
        .start()?;
    let table = lab.egressctl(&["top", "-i", "1"])?.text()?;
    let mut lines = table.lines();
    assert!(
        lines.next().is_some_and(|titles| titles.contains("CONN/S")),
        "{table}"
    );
    let line = lines.next().unwrap_or_default();
    assert!(
        line.contains("one.example.com") && line.contains("direct"),
        "{table}"
    );
    assert!(!table.contains('\u{1b}'), "{table}");
    let filter = lab.egressctl(&["log", "debug"])?.text()?;
    assert!(filter.contains("debug"), "{filter}");
    lab.egressctl(&["drain"])?.text()?;
    agent.finish()
}
