//! TLS that starts inside SMTP, IMAP and LDAP, towards servers that take nothing
//! else.
#![allow(clippy::panic, reason = "tests")]

use lab::certificates::Authority;
use lab::dns::NameServer;
use lab::offices::{Office, PASSWORD};
use lab::{Lab, RESOLVER, Result, policy};

const HOST: &str = "office.example.com";
const REAL: &str = "203.0.113.60";

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

    fn policy(&self, port: u16, name: &str) -> String {
        policy::tls_tcp(HOST, port, name, &self.authority.path())
    }
}

#[test]
fn mail_goes_to_a_postfix_that_takes_only_tls() -> Result<()> {
    let world = World::new()?;
    let lab = &world.lab;
    let _postfix = Office::postfix(lab, REAL, &world.authority.issue(&[HOST])?)?;
    let script = format!(
        r#"
import smtplib
client = smtplib.SMTP("{HOST}", 25, timeout=20)
client.ehlo("app.example.com")
assert client.esmtp_features, "the greeting is followed by EHLO"
print("starttls" in client.esmtp_features)
try:
    client.sendmail("a@example.com", ["b@example.com"], "Subject: hello\r\n\r\nline\r\n.dot\r\n")
    print("sent")
except smtplib.SMTPException as error:
    print(error)
client.quit()
"#
    );
    let direct = lab.python(&script).text()?;
    assert!(
        direct.contains("True") && direct.contains("530"),
        "{direct}"
    );
    let agent = lab
        .agent()
        .policy("mail", &world.policy(25, "smtp"))?
        .start()?;
    assert_eq!(lab.python(&script).text()?, "False\nsent\n");
    agent.stop()?;
    // With another authority the client hears why.
    let other = Authority::new(lab, "other")?;
    let policy = policy::tls_tcp(HOST, 25, "smtp", &other.path());
    let agent = lab.agent().policy("mail", &policy)?.start()?;
    let refused = lab.python(&script).output()?;
    assert!(
        refused.stderr.contains("421") && refused.stderr.contains("no trusted authority"),
        "{refused:?}"
    );
    agent.stop()
}

#[test]
fn imap_reaches_a_dovecot_that_takes_only_tls() -> Result<()> {
    let world = World::new()?;
    let lab = &world.lab;
    let _dovecot = Office::dovecot(lab, REAL, &world.authority.issue(&[HOST])?)?;
    let script = format!(
        r#"
import imaplib
client = imaplib.IMAP4("{HOST}", 143, timeout=20)
print("STARTTLS" in client.capabilities, "LOGINDISABLED" in client.capabilities)
try:
    client.login("user", "{PASSWORD}")
    client.append("INBOX", None, None, b"Subject: hello\r\n\r\nbody\r\n")
    client.select()
    print(client.search(None, "ALL")[1][0].decode())
except imaplib.IMAP4.error as error:
    print("refused")
client.logout()
"#
    );
    assert_eq!(lab.python(&script).text()?, "True True\nrefused\n");
    let agent = lab
        .agent()
        .policy("mail", &world.policy(143, "imap"))?
        .start()?;
    assert_eq!(lab.python(&script).text()?, "False False\n1\n");
    agent.stop()
}

#[test]
fn ldap_reaches_an_openldap_that_takes_only_tls() -> Result<()> {
    let world = World::new()?;
    let lab = &world.lab;
    let _slapd = Office::slapd(lab, REAL, &world.authority.issue(&[HOST])?)?;
    let whoami = |flag: &str| {
        lab.client("ldapwhoami")
            .args([
                "-x",
                "-H",
                &format!("ldap://{HOST}"),
                "-D",
                "cn=admin,dc=example",
            ])
            .args(["-w", PASSWORD, flag])
            .env("LDAPNOINIT", "1")
            .output()
    };
    let direct = whoami("-v")?;
    assert!(
        direct.stderr.contains("confidentiality required"),
        "{direct:?}"
    );
    let agent = lab
        .agent()
        .policy("directory", &world.policy(389, "ldap"))?
        .start()?;
    // `-Z` asks for TLS of its own and goes on without.
    for flag in ["-v", "-Z"] {
        let seen = whoami(flag)?;
        assert!(
            seen.stdout.contains("dn:cn=admin,dc=example"),
            "{flag} {seen:?}"
        );
    }
    agent.stop()
}
