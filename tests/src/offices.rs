//! Mail and directory servers in the world, which take nothing but STARTTLS:
//! Postfix, Dovecot and OpenLDAP, each with a folder of its own.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use rustix::process::Signal;

use crate::certificates::Certificate;
use crate::process::{DEADLINE, Process, wait_for};
use crate::{Context, Group, Lab, Result, bail, tcp};

/// Of every user of these servers.
pub const PASSWORD: &str = "correct-horse";

/// A running server; ended on drop.
pub struct Office {
    process: Process,
}

impl Office {
    /// Postfix on port 25: takes mail for `example.com` and throws it away.
    pub fn postfix(lab: &Lab, address: &str, certificate: &Certificate) -> Result<Self> {
        let directory = folder(lab, "postfix", address)?;
        let (queue, data) = (directory.join("queue"), directory.join("data"));
        fs::create_dir_all(&queue)?;
        fs::create_dir_all(&data)?;
        let owner = fs::metadata("/var/lib/postfix").context("Postfix is not installed")?;
        own(&data, &owner)?;
        let here = directory.display();
        fs::write(
            directory.join("main.cf"),
            format!(
                "compatibility_level = 3.6\nqueue_directory = {here}/queue\n\
                 data_directory = {here}/data\nmaillog_file = {here}/log\n\
                 maillog_file_prefixes = {here}\ninet_interfaces = {address}\n\
                 inet_protocols = ipv4\nmyhostname = mail.example.com\n\
                 mydestination = example.com\nlocal_transport = discard\n\
                 local_recipient_maps =\nalias_maps =\nsmtpd_tls_security_level = encrypt\n\
                 smtpd_tls_cert_file = {}\nsmtpd_tls_key_file = {}\n",
                certificate.certificate.display(),
                certificate.key.display()
            ),
        )?;
        let mut services = String::from("smtp inet n - n - - smtpd\n");
        for (name, kind, wake, limit, program) in [
            ("cleanup", "unix", "-", "0", "cleanup"),
            ("qmgr", "unix", "300", "1", "qmgr"),
            ("rewrite", "unix", "-", "-", "trivial-rewrite"),
            ("bounce", "unix", "-", "0", "bounce"),
            ("defer", "unix", "-", "0", "bounce"),
            ("proxymap", "unix", "-", "-", "proxymap"),
            ("tlsmgr", "unix", "1000?", "1", "tlsmgr"),
            ("error", "unix", "-", "-", "error"),
            ("discard", "unix", "-", "-", "discard"),
            ("anvil", "unix", "-", "1", "anvil"),
            ("postlog", "unix-dgram", "-", "1", "postlogd"),
        ] {
            let public = matches!(name, "cleanup" | "qmgr" | "postlog");
            let private = if public { "n" } else { "-" };
            services.push_str(&format!(
                "{name} {kind} {private} - n {wake} {limit} {program}\n"
            ));
        }
        fs::write(directory.join("master.cf"), services)?;
        let spawn = lab
            .spawn(Group::Servers, "postfix")
            .arg("-c")
            .arg(&directory)
            .arg("start-fg");
        Self::start(lab, spawn, &directory, address, 25)
    }

    /// Dovecot's IMAP on port 143, for any user with [`PASSWORD`].
    pub fn dovecot(lab: &Lab, address: &str, certificate: &Certificate) -> Result<Self> {
        let directory = folder(lab, "dovecot", address)?;
        let here = directory.display();
        let mail = directory.join("mail");
        fs::create_dir(&mail)?;
        std::os::unix::fs::chown(&mail, Some(65534), Some(65534))?;
        let file = directory.join("dovecot.conf");
        fs::write(
            &file,
            format!(
                "protocols = imap\nlisten = {address}\nbase_dir = {here}/run\n\
                 state_dir = {here}/state\nlog_path = {here}/log\nssl = required\n\
                 ssl_cert = <{}\nssl_key = <{}\nauth_mechanisms = plain\n\
                 first_valid_uid = 1\nmail_location = maildir:{here}/mail/%u\n\
                 passdb {{\n  driver = static\n  args = password={PASSWORD}\n}}\n\
                 userdb {{\n  driver = static\n  args = uid=65534 gid=65534 home={here}/mail/%u\n}}\n\
                 service imap-login {{\n  chroot =\n  inet_listener imap {{\n    port = 143\n  }}\n  \
                 inet_listener imaps {{\n    port = 0\n  }}\n}}\n",
                certificate.certificate.display(),
                certificate.key.display()
            ),
        )?;
        let spawn = lab
            .spawn(Group::Servers, "dovecot")
            .arg("-F")
            .arg("-c")
            .arg(&file);
        Self::start(lab, spawn, &directory, address, 143)
    }

    /// OpenLDAP on port 389: `cn=admin,dc=example` with [`PASSWORD`].
    pub fn slapd(lab: &Lab, address: &str, certificate: &Certificate) -> Result<Self> {
        let directory = folder(lab, "slapd", address)?;
        let here = directory.display();
        fs::create_dir(directory.join("db"))?;
        let file = directory.join("slapd.conf");
        fs::write(
            &file,
            format!(
                "include /etc/ldap/schema/core.schema\npidfile {here}/pid\n\
                 modulepath /usr/lib/ldap\nmoduleload back_mdb\nTLSCertificateFile {}\n\
                 TLSCertificateKeyFile {}\nsecurity tls=1\ndatabase mdb\nsuffix \"dc=example\"\n\
                 directory {here}/db\nrootdn \"cn=admin,dc=example\"\nrootpw \"{PASSWORD}\"\n",
                certificate.certificate.display(),
                certificate.key.display()
            ),
        )?;
        let spawn = lab
            .spawn(Group::Servers, "slapd")
            .args(["-d", "0", "-h", &format!("ldap://{address}:389/")])
            .arg("-f")
            .arg(&file);
        Self::start(lab, spawn, &directory, address, 389)
    }

    fn start(
        lab: &Lab,
        spawn: crate::process::Spawn,
        directory: &std::path::Path,
        address: &str,
        port: u16,
    ) -> Result<Self> {
        let output = fs::File::create(directory.join("output"))?;
        let mut process = spawn.stdout(output.try_clone()?).stderr(output).start()?;
        let address: SocketAddr = format!("{address}:{port}").parse()?;
        let told = || {
            let text = |name| fs::read_to_string(directory.join(name)).unwrap_or_default();
            format!("{}{}", text("output"), text("log"))
        };
        wait_for("the server to listen", DEADLINE, || {
            if !process.is_running() {
                bail!("the server ended: {}", told());
            }
            tcp::answers(lab, address)
        })
        .with_context(told)?;
        Ok(Self { process })
    }
}

impl Drop for Office {
    fn drop(&mut self) {
        if self.process.signal(Signal::TERM).is_ok() {
            let _ = self.process.wait(std::time::Duration::from_secs(3));
        }
    }
}

fn folder(lab: &Lab, name: &str, address: &str) -> Result<PathBuf> {
    let ip: IpAddr = address.parse()?;
    lab.world().add_address(ip)?;
    let directory = lab.directory().join(name);
    fs::create_dir_all(&directory)?;
    Ok(directory)
}

fn own(path: &std::path::Path, like: &fs::Metadata) -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    Ok(std::os::unix::fs::chown(
        path,
        Some(like.uid()),
        Some(like.gid()),
    )?)
}
