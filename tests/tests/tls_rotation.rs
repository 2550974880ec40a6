//! Client certificates that change while connections are made.
#![allow(clippy::panic, reason = "tests")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use lab::Result;
use lab::agent::Agent;
use lab::certificates::Certificate;
use lab::process::{Process, wait_for};
use lab::scene::{MutualUpstream, PAY};

/// What is done with the scene while certificates change.
trait Rotating {
    fn load(&self) -> Result<Process>;
    fn secrets(&self) -> Result<serde_json::Value>;
}

impl Rotating for MutualUpstream {
    /// Starts clients that connect all the time and count what fails, until
    /// they are told to end and have made more than 10 connections.
    fn load(&self) -> Result<Process> {
        let rate = if lab::long() { 200 } else { 20 };
        let script = format!(
            r#"
import sys, threading, time, urllib.request
failed, done, stop = [], [0], threading.Event()
def run():
    while not stop.is_set():
        begun = time.monotonic()
        try:
            urllib.request.urlopen("http://{PAY}/who", timeout=20).read()
            done[0] += 1
        except Exception as error:
            failed.append(repr(error))
        time.sleep(max(0, 4 / {rate} - (time.monotonic() - begun)))
threads = [threading.Thread(target=run) for _ in range(4)]
for thread in threads: thread.start()
print("running", flush=True)
sys.stdin.readline()
while done[0] <= 10 and not failed: time.sleep(0.05)
stop.set()
for thread in threads: thread.join()
print("failed", len(failed), *failed[:3], flush=True)
"#
        );
        let mut load = self.lab.python(&script).interactive().start()?;
        load.expect_line("running")?;
        Ok(load)
    }

    /// What `egressctl proxy-config secrets` says.
    fn secrets(&self) -> Result<serde_json::Value> {
        let text = self
            .lab
            .egressctl(&["proxy-config", "secrets", "-o", "json"])?
            .text()?;
        Ok(serde_json::from_str(&text)?)
    }
}

fn end(load: &mut Process) -> Result<()> {
    load.send_line("stop")?;
    load.expect_line("failed 0")
}

fn rotations() -> usize {
    if lab::long() { 100 } else { 7 }
}

fn replace(from: &Path, to: &Path) -> Result<()> {
    let next = to.with_extension("next");
    fs::copy(from, &next)?;
    fs::rename(&next, to)?;
    Ok(())
}

#[test]
fn files_and_links_rotate_under_load_any_number_of_times() -> Result<()> {
    let world = MutualUpstream::new()?;
    let lab = &world.lab;
    let files = lab.directory().join("files");
    fs::create_dir(&files)?;
    let (pem, key) = (files.join("client.pem"), files.join("client.key"));
    let mut last = world.authority.issue(&["client"])?;
    fs::copy(&last.certificate, &pem)?;
    fs::copy(&last.key, &key)?;
    let ca = world.authority.path();
    let identity = format!(
        "clientCertificate: {}\n      privateKey: {}\n      caCertificates: {}",
        pem.display(),
        key.display(),
        ca.display()
    );
    let secrets = lab.directory().join("secrets");
    let agent = lab
        .agent()
        .policy("pay", &MutualUpstream::policy(&identity))?
        .setting("--secrets-dir", secrets.display().to_string())
        .start()?;
    world.sees(&last)?;
    let mut load = world.load()?;
    for _ in 0..rotations() {
        last = world.authority.issue(&["client"])?;
        replace(&last.certificate, &pem)?;
        replace(&last.key, &key)?;
        world.sees(&last)?;
    }
    a_bad_version_leaves_the_old_one(&world, &agent, &last, &key)?;
    end(&mut load)?;

    // A directory behind a link, as kubelet and certbot have it.
    let credential = secrets.join("default/client");
    fs::create_dir_all(&credential)?;
    let swap = |round: usize| -> Result<Certificate> {
        let made = world.authority.issue(&["client"])?;
        let version = credential.join(format!("..{round}"));
        fs::create_dir(&version)?;
        fs::copy(&made.certificate, version.join("tls.crt"))?;
        fs::copy(&made.key, version.join("tls.key"))?;
        fs::copy(&ca, version.join("ca.crt"))?;
        let next = credential.join("..next");
        symlink(format!("..{round}"), &next)?;
        fs::rename(&next, credential.join("..data"))?;
        Ok(made)
    };
    last = swap(0)?;
    for name in ["tls.crt", "tls.key", "ca.crt"] {
        symlink(format!("..data/{name}"), credential.join(name))?;
    }
    lab.write_policy("pay", &MutualUpstream::policy("credentialName: client"))?;
    world.sees(&last)?;
    let mut load = world.load()?;
    for round in 1..=rotations() {
        last = swap(round)?;
        world.sees(&last)?;
    }
    end(&mut load)?;
    agent.stop()
}

fn a_bad_version_leaves_the_old_one(
    world: &MutualUpstream,
    agent: &Agent,
    last: &Certificate,
    key: &Path,
) -> Result<()> {
    let stranger = world.authority.issue(&["stranger"])?;
    replace(&stranger.key, key)?;
    wait_for(
        "the bad version to be told",
        Duration::from_secs(10),
        || {
            let secrets = world.secrets()?;
            let told = secrets[0]["state"] == "stale"
                && secrets[0]["error"]
                    .as_str()
                    .is_some_and(|error| error.contains("does not belong to the certificate"));
            Ok(told.then_some(()))
        },
    )?;
    world.sees(last)?;
    wait_for("the log to tell", Duration::from_secs(10), || {
        Ok(agent
            .log()?
            .contains("the old stays in force")
            .then_some(()))
    })?;
    replace(&last.key, key)?;
    wait_for(
        "the good version to be in force",
        Duration::from_secs(10),
        || Ok((world.secrets()?[0]["state"] == "active").then_some(())),
    )
}

#[test]
fn secrets_rotate_by_the_api() -> Result<()> {
    let world = MutualUpstream::new()?;
    let lab = &world.lab;
    let agent = lab
        .agent()
        .policy("pay", &MutualUpstream::policy("credentialName: client"))?
        .start()?;
    // Before there is a secret, nothing goes out.
    let refused = lab.curl(&[&format!("http://{PAY}/who")]).output()?;
    assert_ne!(refused.code(), 0);
    let apply = || -> Result<Certificate> {
        let made = world.authority.issue(&["client"])?;
        let indented = |path: &Path| -> Result<String> {
            Ok(fs::read_to_string(path)?.trim().replace('\n', "\n    "))
        };
        let document = format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: client, namespace: default}}\n\
             stringData:\n  tls.crt: |\n    {}\n  tls.key: |\n    {}\n  ca.crt: |\n    {}\n",
            indented(&made.certificate)?,
            indented(&made.key)?,
            indented(&world.authority.path())?,
        );
        let file = lab.write("secret.yaml", &document)?;
        lab.egressctl(&["apply", "-f", &file.display().to_string()])?
            .text()?;
        Ok(made)
    };
    world.sees(&apply()?)?;
    let mut load = world.load()?;
    for _ in 0..rotations() {
        world.sees(&apply()?)?;
    }
    end(&mut load)?;
    agent.stop()
}
