//! What is left of a private key in the agent's memory once it is out of use:
//! nothing of one that came from a file; of one that came in a `Secret`
//! document, the lines of its text.
#![allow(clippy::panic, reason = "tests")]

use std::fs;
use std::path::Path;
use std::time::Duration;

use lab::agent::Agent;
use lab::certificates::Certificate;
use lab::process::wait_for;
use lab::scene::MutualUpstream;
use lab::{Group, Result, bail};

/// Looks for keys in a process's memory and prints, for each, the forms that
/// it was found in: the text of the file (with and without line ends), the
/// encoded key, and the secret numbers, as written and as a processor holds
/// them.
const SEARCH: &str = r#"
import base64, subprocess, sys
pid, keys = sys.argv[1], sys.argv[2:]

def forms(file):
    body = [line for line in open(file).read().split("\n") if line and not line.startswith("-")]
    der = base64.b64decode("".join(body))
    found = {"line": body[1].encode(), "text": "".join(body)[56:120].encode(), "encoded": der[30:80]}
    text = subprocess.run(["openssl", "pkey", "-in", file, "-noout", "-text"],
                          capture_output=True, text=True, check=True).stdout
    name, digits = None, {}
    for line in text.split("\n"):
        if not line.startswith(" "):
            name = line.split(":")[0]
        elif name in ("priv", "prime1", "prime2", "privateExponent"):
            digits[name] = digits.get(name, "") + line.strip()
    assert digits, text
    for name, value in digits.items():
        number = bytes.fromhex(value.replace(":", "")).lstrip(b"\0")
        found[name], found[name + " in memory"] = number, number[::-1]
    return found

wanted = {key: forms(key) for key in keys}
hits = {key: set() for key in keys}
PART, OVERLAP = 1 << 24, 4096
with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
    for line in maps:
        words = line.split()
        if not words[1].startswith("rw") or words[-1] in ("[vvar]", "[vsyscall]"):
            continue
        at, end = (int(word, 16) for word in words[0].split("-"))
        while at < end:
            memory.seek(at)
            try:
                part = memory.read(min(PART + OVERLAP, end - at))
            except OSError:
                break
            for key, named in wanted.items():
                hits[key].update(name for name, form in named.items() if form in part)
            at += PART
for key in keys:
    print(" ".join(sorted(hits[key])) or "nothing")
"#;

struct World(MutualUpstream);

impl World {
    /// A client certificate with a key in this form, an option of `openssl`.
    fn issue(&self, number: usize, form: &[&str]) -> Result<Certificate> {
        let mut made = self.0.authority.issue(&[&format!("client{number}")])?;
        if !form.is_empty() {
            let key = made.key.with_extension("other.key");
            self.0
                .lab
                .spawn(Group::Outside, "openssl")
                .args(form)
                .arg("-in")
                .arg(&made.key)
                .arg("-out")
                .arg(&key)
                .text()?;
            made.key = key;
        }
        Ok(made)
    }

    /// In which forms each of these keys is in the agent's memory.
    fn search(&self, agent: &Agent, keys: &[Certificate]) -> Result<Vec<String>> {
        let id = agent.id().to_string();
        let search = self
            .0
            .lab
            .python_in(Group::Outside, SEARCH)
            .arg(&id)
            .args(keys.iter().map(|one| one.key.display().to_string()));
        Ok(search.text()?.lines().map(ToOwned::to_owned).collect())
    }

    /// The last of these keys is there; the others leave nothing behind but, at
    /// most, the form `save`.
    fn only_the_last(&self, agent: &Agent, keys: &[Certificate], save: &str) -> Result<()> {
        let mut found = Vec::new();
        let what = "keys that are out of use to be gone";
        let gone = wait_for(what, Duration::from_secs(15), || {
            found = self.search(agent, keys)?;
            let old = &found[..found.len() - 1];
            let gone = |forms: &String| forms == "nothing" || forms == save;
            Ok(old.iter().all(gone).then_some(()))
        });
        if gone.is_err() {
            bail!("keys in memory, the last one in use: {found:?}");
        }
        // Or the search would find nothing whatever there is.
        assert_ne!(found[found.len() - 1], "nothing");
        Ok(())
    }
}

fn replace(from: &Path, to: &Path) -> Result<()> {
    let next = to.with_extension("next");
    fs::copy(from, &next)?;
    fs::rename(&next, to)?;
    Ok(())
}

/// PKCS#8 as it is made, and SEC1.
const FORMS: [&[&str]; 4] = [&[], &["ec"], &[], &[]];

#[test]
fn keys_of_files_leave_nothing_behind() -> Result<()> {
    let world = World(MutualUpstream::new()?);
    let lab = &world.0.lab;
    let files = lab.directory().join("files");
    fs::create_dir(&files)?;
    let (pem, key) = (files.join("client.pem"), files.join("client.key"));
    let identity = format!(
        "clientCertificate: {}\n      privateKey: {}\n      caCertificates: {}",
        pem.display(),
        key.display(),
        world.0.authority.path().display()
    );
    let mut used = Vec::new();
    let mut agent = None;
    for (number, form) in FORMS.iter().enumerate() {
        let made = world.issue(number, form)?;
        replace(&made.certificate, &pem)?;
        replace(&made.key, &key)?;
        if agent.is_none() {
            let policy = MutualUpstream::policy(&identity);
            agent = Some(lab.agent().policy("pay", &policy)?.start()?);
        }
        world.0.sees(&made)?;
        used.push(made);
    }
    let Some(agent) = agent else {
        bail!("no key at all");
    };
    world.only_the_last(&agent, &used, "nothing")?;
    agent.stop()
}

#[test]
fn keys_of_applied_secrets_leave_no_key_behind() -> Result<()> {
    let world = World(MutualUpstream::new()?);
    let lab = &world.0.lab;
    let agent = lab
        .agent()
        .policy("pay", &MutualUpstream::policy("credentialName: client"))?
        .start()?;
    let indented = |path: &Path| -> Result<String> {
        Ok(fs::read_to_string(path)?.trim().replace('\n', "\n    "))
    };
    let mut used = Vec::new();
    for (number, form) in FORMS.iter().enumerate() {
        let made = world.issue(number, form)?;
        let document = format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: client, namespace: default}}\n\
             stringData:\n  tls.crt: |\n    {}\n  tls.key: |\n    {}\n  ca.crt: |\n    {}\n",
            indented(&made.certificate)?,
            indented(&made.key)?,
            indented(&world.0.authority.path())?,
        );
        let file = lab.write("secret.yaml", &document)?;
        lab.egressctl(&["apply", "-f", &file.display().to_string()])?
            .text()?;
        world.0.sees(&made)?;
        used.push(made);
    }
    // The document's text went through buffers of others, which do not wipe.
    world.only_the_last(&agent, &used, "line")?;
    agent.stop()
}
