//! Our own knobs: annotations under `egress-agent.dev/`.
//!
//! | annotation | on | beside | value |
//! |---|---|---|---|
//! | `on-agent-failure` | ServiceEntry | `resolution` | `closed` (default) or `open` |
//! | `health-check` | DestinationRule, ServiceEntry | `outlierDetection` | `tcp`, `tls` or `http`, then any of `path=/healthz`, `expected=200-299,404`, `interval=10s`, `timeout=2s`, `unhealthy=3`, `healthy=2` |
//! | `starttls` | DestinationRule, ServiceEntry | `tls` | `postgres`, `mysql`, `smtp`, `imap`, `ldap`, or `none` against guessing from the port's name |
//! | `tls-min-version` | DestinationRule | `tls` | `1.2` (default) or `1.3` |
//! | `inject-credential` | DestinationRule, ServiceEntry | `headers` | `bearer`, `basic` or `header`, then `secret=NAME`, and any of `key=token`, `username=username`, `password=password`, `name=x-api-key` |
//! | `tls-cipher-suites` | DestinationRule | `tls` | IANA names, with commas |

use std::time::Duration;

use super::meta::{Kind, Metadata};
use super::parse_duration;
use super::reader::{Reader, nearest};
use crate::policy::model::{CredentialForm, HeaderCredential, HealthCheck, Probe, StartTls};
use crate::policy::snapshot::OnAgentFailure;

/// What our annotations start with.
pub const PREFIX: &str = "egress-agent.dev/";

/// Names of the annotations, and where they may stand.
const NAMES: [(&str, &[Kind]); 6] = [
    ("on-agent-failure", &[Kind::ServiceEntry]),
    ("health-check", &[Kind::DestinationRule, Kind::ServiceEntry]),
    ("starttls", &[Kind::DestinationRule, Kind::ServiceEntry]),
    ("tls-min-version", &[Kind::DestinationRule]),
    ("tls-cipher-suites", &[Kind::DestinationRule]),
    (
        "inject-credential",
        &[Kind::DestinationRule, Kind::ServiceEntry],
    ),
];

/// Cipher suites that can be asked for.
pub const CIPHER_SUITES: [&str; 9] = [
    "TLS_AES_256_GCM_SHA384",
    "TLS_AES_128_GCM_SHA256",
    "TLS_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
];

/// Reports annotations of ours that are not understood.
pub fn check(reader: &mut Reader<'_>, kind: Kind, meta: &Metadata) {
    for (key, value) in &meta.annotations {
        let Some(name) = key.strip_prefix(PREFIX) else {
            continue;
        };
        let Some((_, kinds)) = NAMES.iter().find(|(known, _)| *known == name) else {
            let help = nearest(name, NAMES.iter().map(|(name, _)| *name)).map_or_else(
                || format!("names are: {}", NAMES.map(|(name, _)| name).join(", ")),
                |nearest| format!("did you mean `{PREFIX}{nearest}`?"),
            );
            let message = format!("unknown annotation {:?}", &***key);
            reader.error("unknown-annotation", key.span, message, help);
            continue;
        };
        if !kinds.contains(&kind) {
            let message = format!("{:?} has no effect on a {}", &***key, kind.name());
            let names: Vec<&str> = kinds.iter().map(|kind| kind.name()).collect();
            reader.warn(
                "no-effect",
                key.span,
                message,
                format!("write it on a {}", names.join(" or ")),
            );
        }
        let problem = match name {
            "on-agent-failure" => on_agent_failure(value).err(),
            "health-check" => health_check(value).err(),
            "starttls" => starttls(value).err(),
            "tls-min-version" => only_tls13(value).err(),
            "inject-credential" => inject_credential(value).err(),
            _ => cipher_suites(value).err(),
        };
        if let Some(problem) = problem {
            let message = format!("{:?}: {problem}", &***key);
            reader.error(
                "annotation-value",
                value.span,
                message,
                "see the documentation of the annotation",
            );
        }
    }
}

/// Reads `on-agent-failure`.
pub fn on_agent_failure(value: &str) -> Result<OnAgentFailure, String> {
    match value {
        "closed" => Ok(OnAgentFailure::Closed),
        "open" => Ok(OnAgentFailure::Open),
        other => Err(format!("{other:?} is neither `closed` nor `open`")),
    }
}

/// Reads `starttls`; `None`: none, whatever the port is called.
pub fn starttls(value: &str) -> Result<Option<StartTls>, String> {
    match value {
        "postgres" => Ok(Some(StartTls::Postgres)),
        "mysql" => Ok(Some(StartTls::Mysql)),
        "smtp" => Ok(Some(StartTls::Smtp)),
        "imap" => Ok(Some(StartTls::Imap)),
        "ldap" => Ok(Some(StartTls::Ldap)),
        "none" => Ok(None),
        other => Err(format!(
            "{other:?} is none of postgres, mysql, smtp, imap, ldap and none"
        )),
    }
}

/// Reads `tls-min-version`.
pub fn only_tls13(value: &str) -> Result<bool, String> {
    match value {
        "1.2" => Ok(false),
        "1.3" => Ok(true),
        other => Err(format!("{other:?} is neither `1.2` nor `1.3`")),
    }
}

/// Reads `tls-cipher-suites`.
pub fn cipher_suites(value: &str) -> Result<Vec<Box<str>>, String> {
    let names = value
        .split(',')
        .map(str::trim)
        .filter(|name| !name.is_empty());
    let read = names.map(|name| {
        if CIPHER_SUITES.contains(&name) {
            Ok(name.into())
        } else {
            Err(format!("{name:?} is none of {}", CIPHER_SUITES.join(", ")))
        }
    });
    let list: Vec<Box<str>> = read.collect::<Result<_, _>>()?;
    if list.is_empty() {
        return Err("no cipher suite is named".into());
    }
    Ok(list)
}

/// Reads `inject-credential`. The secret's namespaces are for the caller to
/// fill in.
pub fn inject_credential(value: &str) -> Result<HeaderCredential, String> {
    let mut words = value.split_whitespace();
    let kind = words.next().unwrap_or_default();
    if !["bearer", "basic", "header"].contains(&kind) {
        return Err(format!("{kind:?} is none of bearer, basic and header"));
    }
    let (mut secret, mut key, mut username, mut password, mut name) =
        (None, None, None, None, None);
    for word in words {
        let Some((setting, value)) = word.split_once('=') else {
            return Err(format!("{word:?} is not of the form name=value"));
        };
        let place = match (setting, kind) {
            ("secret", _) => &mut secret,
            ("key", "bearer" | "header") => &mut key,
            ("username", "basic") => &mut username,
            ("password", "basic") => &mut password,
            ("name", "header") => &mut name,
            (other, _) => return Err(format!("{other:?} is not a setting of {kind}")),
        };
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if value.is_empty() || value.starts_with('.') || !value.bytes().all(plain) {
            return Err(format!(
                "{value:?} is not made of letters, digits, `-`, `_` and `.`"
            ));
        }
        if place.replace(value).is_some() {
            return Err(format!("{setting:?} is there twice"));
        }
    }
    let or = |given: Option<&str>, default: &str| Box::from(given.unwrap_or(default));
    let header = match (kind, name) {
        ("header", None) => return Err("name=HEADER is missing".into()),
        ("header", Some(name)) => header_name(name)?,
        _ => http::header::AUTHORIZATION,
    };
    Ok(HeaderCredential {
        header,
        form: match kind {
            "bearer" => CredentialForm::Bearer {
                key: or(key, "token"),
            },
            "basic" => CredentialForm::Basic {
                username: or(username, "username"),
                password: or(password, "password"),
            },
            _ => CredentialForm::Plain {
                key: or(key, "token"),
            },
        },
        secret: secret.ok_or("secret=NAME is missing")?.into(),
        secret_namespaces: Vec::new(),
    })
}

/// A header that does not frame or route the message.
fn header_name(name: &str) -> Result<http::HeaderName, String> {
    use http::header::{
        CONNECTION, CONTENT_LENGTH, EXPECT, HOST, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
    };
    let known = http::HeaderName::try_from(name)
        .map_err(|_| format!("{name:?} is not the name of a header"))?;
    let taken = [
        CONNECTION,
        CONTENT_LENGTH,
        EXPECT,
        HOST,
        TE,
        TRAILER,
        TRANSFER_ENCODING,
        UPGRADE,
    ];
    if taken.contains(&known) {
        return Err(format!("{name:?} is the connection's own"));
    }
    Ok(known)
}

/// Reads `health-check`.
pub fn health_check(value: &str) -> Result<HealthCheck, String> {
    let mut words = value.split_whitespace();
    let kind = words.next().unwrap_or_default();
    let (mut path, mut expected) = (None, Vec::new());
    let mut check = HealthCheck {
        probe: match kind {
            "tcp" => Probe::Tcp,
            "tls" => Probe::Tls,
            "http" => Probe::Http {
                path: "/".into(),
                expected: Vec::new(),
            },
            other => return Err(format!("{other:?} is none of tcp, tls and http")),
        },
        interval: Duration::from_secs(10),
        timeout: Duration::from_secs(2),
        unhealthy_threshold: 3,
        healthy_threshold: 2,
    };
    for word in words {
        let Some((name, value)) = word.split_once('=') else {
            return Err(format!("{word:?} is not of the form name=value"));
        };
        match name {
            "path" if kind == "http" => {
                if !value.starts_with('/') || !value.is_ascii() {
                    return Err(format!("the path {value:?} does not start with `/`"));
                }
                path = Some(value.into());
            }
            "expected" if kind == "http" => expected = statuses(value)?,
            "interval" => check.interval = time(value)?,
            "timeout" => check.timeout = time(value)?,
            "unhealthy" => check.unhealthy_threshold = threshold(value)?,
            "healthy" => check.healthy_threshold = threshold(value)?,
            other => return Err(format!("{other:?} is not a setting of a {kind} check")),
        }
    }
    if let Probe::Http {
        path: p,
        expected: e,
    } = &mut check.probe
    {
        *p = path.unwrap_or_else(|| "/".into());
        *e = expected;
    }
    Ok(check)
}

fn time(value: &str) -> Result<Duration, String> {
    let time = parse_duration(value).map(super::Interval::duration);
    let fits = Duration::from_millis(1)..=Duration::from_hours(24);
    time.filter(|time| fits.contains(time))
        .ok_or_else(|| format!("{value:?} is not a duration of 1ms to 24h"))
}

fn threshold(value: &str) -> Result<u32, String> {
    let number = value
        .parse()
        .ok()
        .filter(|number| (1..=1000).contains(number));
    number.ok_or_else(|| format!("{value:?} is not a number of 1 to 1000"))
}

/// `200-299,404`.
fn statuses(value: &str) -> Result<Vec<(u16, u16)>, String> {
    let range = |part: &str| {
        let (low, high) = part.split_once('-').unwrap_or((part, part));
        let (low, high): (u16, u16) = (low.parse().ok()?, high.parse().ok()?);
        (100..=599).contains(&low).then_some(())?;
        ((low..=599).contains(&high)).then_some((low, high))
    };
    value
        .split(',')
        .map(|part| {
            range(part).ok_or_else(|| format!("{part:?} is not a status or a range of them"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn credentials_are_read_with_their_defaults() {
        let bearer = inject_credential("bearer secret=partner").unwrap();
        assert_eq!(bearer.header, http::header::AUTHORIZATION);
        assert_eq!(&*bearer.secret, "partner");
        let key = "token".into();
        assert_eq!(bearer.form, CredentialForm::Bearer { key });
        let basic = inject_credential("basic secret=login username=user").unwrap();
        let (username, password) = ("user".into(), "password".into());
        assert_eq!(basic.form, CredentialForm::Basic { username, password });
        let plain = inject_credential("header name=X-Api-Key secret=k key=v").unwrap();
        assert_eq!(plain.header, "x-api-key");
        let key = "v".into();
        assert_eq!(plain.form, CredentialForm::Plain { key });
    }

    #[test]
    fn credentials_that_make_no_sense_are_refused() {
        for (value, word) in [
            ("", "none of"),
            ("digest secret=a", "none of"),
            ("bearer", "secret=NAME"),
            ("bearer secret=../../etc/shadow", "not made of"),
            ("bearer secret=.hidden", "not made of"),
            ("bearer secret=a secret=b", "twice"),
            ("bearer secret=a name=x", "not a setting"),
            ("bearer a", "name=value"),
            ("header secret=a", "name=HEADER"),
            ("header secret=a name=host", "connection's own"),
            ("header secret=a name=content-length", "connection's own"),
        ] {
            let error = inject_credential(value).unwrap_err();
            assert!(error.contains(word), "{value}: {error}");
        }
    }
}
