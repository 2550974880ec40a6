//! TLS that starts inside MySQL's protocol, where the server speaks first.
#![allow(clippy::panic, reason = "tests")]

use lab::certificates::Authority;
use lab::dns::NameServer;
use lab::mariadb::{MariaDb, PASSWORD};
use lab::process::Spawn;
use lab::{Group, Lab, RESOLVER, Result, policy};

const HOST: &str = "shop.example.com";
const REAL: &str = "203.0.113.30";

struct World {
    _dns: NameServer,
    authority: Authority,
    lab: Lab,
}

impl World {
    fn new() -> Result<Self> {
        let lab = Lab::new()?;
        Ok(Self {
            _dns: NameServer::start(&lab, RESOLVER, &format!("{REAL} {HOST}\n"))?,
            authority: Authority::new(&lab, "world")?,
            lab,
        })
    }

    fn policy(&self) -> String {
        policy::tls_tcp(HOST, 3306, "mysql", &self.authority.path())
    }

    fn mariadb(&self, flag: &str, query: &str) -> Spawn {
        self.lab
            .client("mariadb")
            .args([
                "--no-defaults",
                "--user=app",
                "--batch",
                "--skip-column-names",
            ])
            .args(["--connect-timeout=10", &format!("--host={HOST}")])
            .args([&format!("--password={PASSWORD}"), flag])
            .args(["--execute", query])
    }

    fn python(&self, script: &str) -> Spawn {
        self.lab
            .python(&format!(
                r#"
import pymysql
def connect(**more):
    settings = dict(host="{HOST}", user="app", password="{PASSWORD}", connect_timeout=20)
    return pymysql.connect(**{{**settings, **more}})
{script}"#
            ))
            .deadline(std::time::Duration::from_mins(3))
    }
}

#[test]
fn clients_reach_a_mariadb_that_takes_only_tls() -> Result<()> {
    let world = World::new()?;
    let certificate = world.authority.issue(&[HOST])?;
    let _server = MariaDb::tls(&world.lab, REAL, &certificate)?;
    let direct = world.mariadb("--skip-ssl", "SELECT 1").output()?;
    assert_ne!(direct.code(), 0, "{direct:?}");
    let agent = world.lab.agent().policy("db", &world.policy())?.start()?;
    for flag in [
        "--skip-ssl",
        "--compress",
        "--default-auth=mysql_clear_password",
    ] {
        let seen = world
            .mariadb(flag, "SHOW STATUS LIKE 'Ssl_version'")
            .text()?;
        assert_eq!(seen.trim(), "Ssl_version\tTLSv1.3", "{flag}");
    }
    let wrong = world.mariadb("--password=wrong", "SELECT 1").output()?;
    assert!(wrong.stderr.contains("ERROR 1045"), "{wrong:?}");
    // A client that insists on TLS fails, and the record says what to set.
    let insisting = world.mariadb("--ssl", "SELECT 1").output()?;
    if insisting.code() != 0 {
        assert!(insisting.stderr.contains("SSL"), "{insisting:?}");
        agent.record("the record of the client that insists", |record| {
            record.detail().contains("ssl-mode=DISABLED")
        })?;
    }
    let megabytes = if lab::long() { 1024 } else { 64 };
    let script = format!(
        r#"
import threading, time
connection = connect(database="shop")
cursor = connection.cursor()
cursor.execute("SHOW STATUS LIKE 'Ssl_version'")
assert cursor.fetchone() == ("Ssl_version", "TLSv1.3")
received = 0
for _ in range({megabytes} // 16):
    cursor.execute("SELECT REPEAT('x', 16 * 1024 * 1024)")
    received += len(cursor.fetchone()[0])
assert received == {megabytes} * 1024 * 1024
number = connection.thread_id()
def kill():
    other = connect()
    other.cursor().execute(f"KILL QUERY {{number}}")
    other.close()
threading.Timer(0.5, kill).start()
begun = time.monotonic()
try:
    cursor.execute("SELECT SLEEP(60), 1 FROM mysql.user")
except pymysql.err.OperationalError as error:
    assert error.args[0] == 1317, error
assert time.monotonic() - begun < 30
cursor.execute("SELECT 7")
print(cursor.fetchone()[0])
"#
    );
    assert_eq!(world.python(&script).text()?.trim(), "7");
    let script = r#"
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
together = Barrier(200)
def one(number):
    connection = connect(database="shop")
    together.wait(timeout=60)
    cursor = connection.cursor()
    cursor.execute("SELECT %s + 1", [number])
    found = cursor.fetchone()[0]
    connection.close()
    return found
with ThreadPoolExecutor(200) as pool:
    assert list(pool.map(one, range(200))) == [n + 1 for n in range(200)]
print("done")
"#;
    assert_eq!(world.python(script).text()?.trim(), "done");
    agent.stop()
}

#[test]
fn a_failure_of_tls_is_told_in_mysqls_own_words() -> Result<()> {
    let world = World::new()?;
    let other = Authority::new(&world.lab, "other")?;
    let _server = MariaDb::tls(&world.lab, REAL, &other.issue(&[HOST])?)?;
    let agent = world.lab.agent().policy("db", &world.policy())?.start()?;
    let refused = world.mariadb("--skip-ssl", "SELECT 1").output()?;
    assert_eq!(refused.code(), 1, "{refused:?}");
    assert!(
        refused.stderr.contains("ERROR 1043 (08S01)")
            && refused.stderr.contains("leads to no trusted authority"),
        "{refused:?}"
    );
    agent.record("the reason", |record| {
        record.has_flag("UF") && record.detail().contains("no trusted authority")
    })?;
    agent.stop()
}

/// MySQL 8's `caching_sha2_password` as its manual describes it, which Debian's
/// servers do not have.
const MYSQL8: &str = include_str!("../src/mysql8.py");

#[test]
fn caching_sha2_password_works_with_full_authentication() -> Result<()> {
    let world = World::new()?;
    let certificate = world.authority.issue(&[HOST])?;
    world.lab.world().add_address(REAL.parse()?)?;
    let mut server = world
        .lab
        .python_in(Group::Servers, MYSQL8)
        .env("ADDRESS", REAL)
        .env("CERTIFICATE", &certificate.certificate)
        .env("KEY", &certificate.key)
        .env("PASSWORD", PASSWORD)
        .interactive()
        .start()?;
    server.expect_line("ready")?;
    let agent = world.lab.agent().policy("db", &world.policy())?.start()?;
    // The second time the server knows the password's hash (fast path).
    let script = r#"
for path in ("full", "fast"):
    connection = connect()
    cursor = connection.cursor()
    cursor.execute("SELECT path")
    assert cursor.fetchone() == (path,)
    connection.close()
try:
    connect(password="wrong")
    raise SystemExit("a wrong password was taken")
except pymysql.err.OperationalError as error:
    assert error.args[0] == 1045, error
print("done")
"#;
    assert_eq!(world.python(script).text()?.trim(), "done");
    agent.stop()
}
