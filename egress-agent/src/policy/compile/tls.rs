//! `tls` of a policy as the settings of a client.

use std::path::PathBuf;
use std::sync::Arc;

use crate::policy::Options;
use crate::policy::document::Document;
use crate::policy::model::{ClientTls, Identity, Protocol, StartTls, TlsExtra, Trust};
use crate::policy::schema::tls::{Mode, Tls};
use crate::policy::schema::{Text, annotation};

/// What TLS settings depend on beside themselves.
#[derive(Clone, Copy)]
pub(super) struct Facts<'d> {
    /// The DestinationRule whose policy counts.
    pub(super) rule: Option<&'d Arc<Document>>,
    /// The ServiceEntry.
    pub(super) entry: &'d Arc<Document>,
    /// `subjectAltNames` of the ServiceEntry.
    pub(super) subject_alt_names: &'d [Text],
    /// Protocol that starts TLS inside it, by the port's protocol and name.
    pub(super) guessed: Option<StartTls>,
    /// Settings.
    pub(super) options: &'d Options,
}

impl<'d> Facts<'d> {
    /// Documents whose annotations count, the first that says something wins.
    pub(super) fn documents(&self) -> impl Iterator<Item = &'d Arc<Document>> {
        self.rule.into_iter().chain([self.entry])
    }
}

/// The protocol that a port's name or protocol plainly is, of those that start
/// TLS inside themselves.
pub(super) fn guess(protocol: Protocol, name: &str) -> Option<StartTls> {
    if protocol == Protocol::Mysql {
        return Some(StartTls::Mysql);
    }
    if !matches!(protocol, Protocol::Tcp | Protocol::Unset) {
        return None;
    }
    let first = name.split('-').next().unwrap_or_default();
    match first.to_ascii_lowercase().as_str() {
        "postgres" | "postgresql" | "pgsql" => Some(StartTls::Postgres),
        "mysql" | "mariadb" => Some(StartTls::Mysql),
        "smtp" | "submission" => Some(StartTls::Smtp),
        "imap" => Some(StartTls::Imap),
        "ldap" => Some(StartTls::Ldap),
        _ => None,
    }
}

fn names(list: &[Text]) -> Vec<Arc<str>> {
    list.iter().map(|name| Arc::from(&***name)).collect()
}

fn text(text: Option<&Text>) -> Option<&str> {
    text.map(|text| &***text).filter(|text| !text.is_empty())
}

/// TLS with the system's roots, for cleartext HTTP on a port that says HTTPS.
pub(super) fn plain(facts: &Facts<'_>) -> ClientTls {
    ClientTls {
        subject_alt_names: names(facts.subject_alt_names),
        ..ClientTls::simple()
    }
}

/// The settings of a client; `None` for mode DISABLE.
pub(super) fn client(tls: &Tls, facts: &Facts<'_>) -> Option<ClientTls> {
    let mode = tls.mode();
    let path = |file: &Option<Text>| text(file.as_ref()).map(PathBuf::from);
    let credential = text(tls.credential_name.as_ref()).map(|name| {
        // A ConfigMap is looked for under its name.
        let name = name.strip_prefix("configmap://").unwrap_or(name);
        let name = name.rsplit_once('/').map_or(name, |(_, name)| name);
        Arc::<str>::from(name)
    });
    let crl = path(&tls.ca_crl);
    let skip = tls.insecure_skip_verify.is_some_and(|skip| skip.value);
    let (identity, trust) = match (mode, credential) {
        (Mode::Disable, _) => return None,
        (Mode::IstioMutual, _) => (Identity::Mesh, Trust::Mesh),
        (Mode::Simple, Some(name)) => (Identity::None, Trust::Secret(name)),
        (Mode::Mutual, Some(name)) if skip => (Identity::Secret(name), Trust::System { crl: None }),
        (Mode::Mutual, Some(name)) => (Identity::Secret(Arc::clone(&name)), Trust::Secret(name)),
        (Mode::Simple | Mode::Mutual, None) => {
            let trust = match path(&tls.ca_certificates) {
                Some(ca) => Trust::File { ca, crl },
                None => Trust::System { crl },
            };
            let identity = if mode == Mode::Mutual {
                // Both were checked to be there; with one missing the
                // handshake fails, and nothing is sent in the clear.
                Identity::Files {
                    certificate: path(&tls.client_certificate).unwrap_or_default(),
                    key: path(&tls.private_key).unwrap_or_default(),
                }
            } else {
                Identity::None
            };
            (identity, trust)
        }
    };
    let own = names(&tls.subject_alt_names);
    let mut namespaces: Vec<Arc<str>> = Vec::new();
    let rule = facts.rule.unwrap_or(facts.entry);
    for namespace in [&rule.id.namespace, &facts.options.root_namespace] {
        if !namespaces.contains(namespace) {
            namespaces.push(Arc::clone(namespace));
        }
    }
    Some(ClientTls {
        identity,
        trust,
        sni: text(tls.sni.as_ref()).map(|sni| sni.to_ascii_lowercase().into()),
        subject_alt_names: if own.is_empty() && !skip {
            names(facts.subject_alt_names)
        } else {
            own
        },
        insecure_skip_verify: skip,
        secret_namespaces: namespaces,
        extra: extra(facts),
    })
}

fn extra(facts: &Facts<'_>) -> TlsExtra {
    let value = |name: &str| {
        let found = facts
            .documents()
            .find_map(|document| document.annotation(name));
        found.map(|(value, _)| value.to_owned())
    };
    TlsExtra {
        only_tls13: value("tls-min-version")
            .and_then(|text| annotation::only_tls13(&text).ok())
            .unwrap_or(false),
        cipher_suites: value("tls-cipher-suites")
            .and_then(|text| annotation::cipher_suites(&text).ok())
            .unwrap_or_default(),
        starttls: match value("starttls").map(|text| annotation::starttls(&text)) {
            Some(Ok(written)) => written,
            _ => facts.guessed,
        },
    }
}
