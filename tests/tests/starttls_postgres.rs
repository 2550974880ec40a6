//! TLS that starts inside PostgreSQL's protocol: clients that know nothing of
//! it, servers that take nothing else.
#![allow(clippy::panic, reason = "tests")]

use lab::certificates::Authority;
use lab::dns::NameServer;
use lab::postgres::{PASSWORD, Postgres};
use lab::process::Spawn;
use lab::{Lab, RESOLVER, Result, policy};

const HOST: &str = "db.example.com";
const REAL: &str = "203.0.113.20";

/// Tells how the server sees its client.
const TLS_SEEN: &str = "SELECT ssl, version FROM pg_stat_ssl WHERE pid = pg_backend_pid()";

struct World {
    _postgres: Postgres,
    _dns: NameServer,
    authority: Authority,
    lab: Lab,
}

impl World {
    fn new() -> Result<Self> {
        let lab = Lab::new()?;
        let authority = Authority::new(&lab, "world")?;
        let certificate = authority.issue(&[HOST])?;
        let sql = "CREATE TABLE orders (id int, note text);";
        Ok(Self {
            _postgres: Postgres::tls(&lab, REAL, &certificate, sql)?,
            _dns: NameServer::start(&lab, RESOLVER, &format!("{REAL} {HOST}\n"))?,
            authority,
            lab,
        })
    }

    fn policy(&self) -> String {
        policy::tls_tcp(HOST, 5432, "postgres", &self.authority.path())
    }

    fn psql(&self, mode: &str, query: &str) -> Spawn {
        let client = self.lab.psql(HOST, query);
        client.env("PGSSLMODE", mode).env("PGPASSWORD", PASSWORD)
    }

    /// Python with a connection string at hand.
    fn python(&self, mode: &str, script: &str) -> Spawn {
        self.lab.python(&format!(
            "DSN = \"host={HOST} user=postgres password='{PASSWORD}' sslmode={mode}\"\n{script}"
        ))
    }
}

#[test]
fn psql_reaches_a_server_that_takes_only_tls() -> Result<()> {
    let world = World::new()?;
    // Without the agent the server refuses it.
    let direct = world.psql("disable", "SELECT 1").output()?;
    assert_ne!(direct.code(), 0);
    let agent = world.lab.agent().policy("db", &world.policy())?.start()?;
    for mode in ["disable", "allow", "prefer"] {
        let seen = world.psql(mode, TLS_SEEN).text()?;
        assert_eq!(seen.trim(), "t|TLSv1.3", "sslmode={mode}");
    }
    // A client that insists fails on its own side, and the record says what
    // to set.
    let insisting = world.psql("require", "SELECT 1").output()?;
    assert_eq!(insisting.code(), 2, "{insisting:?}");
    assert!(
        insisting.stderr.contains("server does not support SSL"),
        "{insisting:?}"
    );
    let record = agent.record("the record of the client that insists", |record| {
        record
            .detail()
            .contains("sslmode=disable or sslmode=prefer")
    })?;
    assert!(record.has_flag("DC"), "{record}");
    agent.stop()
}

#[test]
fn drivers_cancel_copy_and_come_in_crowds() -> Result<()> {
    let world = World::new()?;
    let agent = world.lab.agent().policy("db", &world.policy())?.start()?;
    // psycopg 2, which is libpq; a query that is cancelled, and what follows.
    let script = r#"
import psycopg2, threading, time
connection = psycopg2.connect(DSN)
connection.autocommit = True
cursor = connection.cursor()
cursor.execute("SELECT ssl, version FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
assert cursor.fetchone() == (True, "TLSv1.3")
threading.Timer(0.5, connection.cancel).start()
begun = time.monotonic()
try:
    cursor.execute("SELECT pg_sleep(60)")
    raise SystemExit("the query was not cancelled")
except psycopg2.errors.QueryCanceled:
    assert time.monotonic() - begun < 30
cursor.execute("SELECT 7")
print(cursor.fetchone()[0])
"#;
    for mode in ["disable", "prefer"] {
        assert_eq!(world.python(mode, script).text()?.trim(), "7");
    }
    // psycopg 3 speaks through libpq too, with pipelines and COPY.
    let megabytes = if lab::long() { 1024 } else { 64 };
    let script = format!(
        r#"
import psycopg
with psycopg.connect(DSN) as connection:
    cursor = connection.cursor()
    line = b"7\t" + b"x" * (64 * 1024 - 3) + b"\n"
    with cursor.copy("COPY orders FROM STDIN") as copy:
        for _ in range({megabytes} * 16):
            copy.write(line)
    received = 0
    with cursor.copy("COPY orders TO STDOUT") as copy:
        for part in copy:
            received += len(part)
    assert received == {megabytes} * 1024 * 1024, received
    with connection.pipeline():
        results = [connection.execute("SELECT %s::int", [n]) for n in range(50)]
    assert [r.fetchone()[0] for r in results] == list(range(50))
print("done")
"#
    );
    let deadline = std::time::Duration::from_mins(5);
    let copied = world.python("disable", &script).deadline(deadline).text()?;
    assert_eq!(copied.trim(), "done");
    let script = r#"
import psycopg2
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
together = Barrier(200)
def one(number):
    connection = psycopg2.connect(DSN)
    together.wait(timeout=60)
    cursor = connection.cursor()
    cursor.execute("SELECT %s + 1, ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()", [number])
    found = cursor.fetchone()
    connection.close()
    return found
with ThreadPoolExecutor(200) as pool:
    assert list(pool.map(one, range(200))) == [(n + 1, True) for n in range(200)]
print("done")
"#;
    let crowd = world.python("prefer", script).deadline(deadline).text()?;
    assert_eq!(crowd.trim(), "done");
    agent.stop()
}

/// Node's driver, which shares no code with libpq: its own protocol, its own
/// SCRAM, its own cancel request.
#[test]
fn nodes_driver_queries_cancels_and_comes_in_crowds() -> Result<()> {
    let world = World::new()?;
    let agent = world.lab.agent().policy("db", &world.policy())?.start()?;
    let script = format!(
        r#"
const {{Client, Pool}} = require('pg');
const config = {{host: '{HOST}', user: 'postgres', password: '{PASSWORD}', ssl: false}};
const seen = 'SELECT ssl, version FROM pg_stat_ssl WHERE pid = pg_backend_pid()';
const expect = (truth, what) => {{ if (!truth) throw new Error(what); }};
(async () => {{
  const client = new Client(config);
  await client.connect();
  const row = (await client.query(seen)).rows[0];
  expect(row.ssl && row.version == 'TLSv1.3', 'the server sees ' + JSON.stringify(row));
  // Prepared, with parameters, and an answer of many messages.
  const many = await client.query({{
    name: 'many', text: "SELECT n, repeat('x', $1) AS x FROM generate_series(1, 2000) n",
    values: [1000],
  }});
  expect(many.rows.length == 2000 && many.rows.every(r => r.x.length == 1000), 'rows are missing');
  // An error leaves the connection usable.
  let refused;
  await client.query('SELECT 1/0').catch(error => {{ refused = error; }});
  expect(refused?.code == '22012', 'not refused: ' + refused);
  // A cancel request goes over a connection of its own.
  const canceller = new Client(config);
  const running = client.query('SELECT pg_sleep(60)').then(() => 'ended', error => error.code);
  setTimeout(() => canceller.cancel(client, client.activeQuery), 500);
  expect(await running == '57014', 'the query was not cancelled');
  expect((await client.query('SELECT 7 AS n')).rows[0].n == 7, 'no query after the cancel');
  await client.end();
  const pool = new Pool({{...config, max: 200}});
  const answers = await Promise.all([...Array(200).keys()].map(n =>
    pool.query('SELECT $1::int + 1 AS n, pg_sleep(0.05)', [n])));
  expect(answers.every((a, n) => a.rows[0].n == n + 1), 'answers are mixed up');
  await pool.end();
  // What insists on TLS of its own is told that there is none.
  const insisting = new Client({{...config, ssl: {{rejectUnauthorized: false}}}});
  let error;
  await insisting.connect().catch(e => {{ error = e; }});
  expect(/does not support SSL/.test(error?.message), 'not refused: ' + error);
  console.log('done');
}})().catch(error => {{ console.error(error); process.exit(1); }});
"#
    );
    assert_eq!(world.lab.node_clients(&script)?.text()?, "done\n");
    agent.record("the record of the client that insists", |record| {
        record
            .detail()
            .contains("sslmode=disable or sslmode=prefer")
    })?;
    agent.stop()
}

#[test]
fn a_failure_of_tls_is_told_in_postgresqls_own_words() -> Result<()> {
    let world = World::new()?;
    let other = Authority::new(&world.lab, "other")?;
    let policy = policy::tls_tcp(HOST, 5432, "postgres", &other.path());
    let agent = world.lab.agent().policy("db", &policy)?.start()?;
    for mode in ["disable", "prefer"] {
        let refused = world.psql(mode, "SELECT 1").output()?;
        assert_eq!(refused.code(), 2, "{refused:?}");
        assert!(
            refused.stderr.contains("FATAL:  egress:")
                && refused.stderr.contains("leads to no trusted authority"),
            "{refused:?}"
        );
    }
    agent.record("the reason", |record| {
        record.has_flag("UF") && record.detail().contains("no trusted authority")
    })?;
    agent.stop()
}

#[test]
fn a_server_without_tls_gets_nothing_in_the_clear() -> Result<()> {
    let lab = Lab::new()?;
    let authority = Authority::new(&lab, "world")?;
    let _postgres = Postgres::start(&lab, REAL, "")?;
    let _dns = NameServer::start(&lab, RESOLVER, &format!("{REAL} {HOST}\n"))?;
    // By annotation, where the port's name does not tell.
    let policy = policy::tls_tcp(HOST, 5432, "tcp-db", &authority.path()).replace(
        "spec:\n  host:",
        "  annotations: {egress-agent.dev/starttls: postgres}\nspec:\n  host:",
    );
    assert!(policy.contains("starttls: postgres"));
    let agent = lab.agent().policy("db", &policy)?.start()?;
    let refused = lab.psql(HOST, "SELECT 1").output()?;
    assert_eq!(refused.code(), 2, "{refused:?}");
    assert!(refused.stderr.contains("turn TLS on there"), "{refused:?}");
    agent.record("the reason", |record| record.detail().contains("ssl = off"))?;
    agent.stop()
}
