//! `consistentHash`: what of a request is hashed, and the cookie that keeps a
//! client on its endpoint.

use std::fmt::Write as _;
use std::net::IpAddr;

use http::header::COOKIE;
use http::{HeaderMap, HeaderValue};

use crate::endpoint::{hash_address, hash_bytes};
use crate::policy::model::{Algorithm, HashKey, TrafficPolicy};
use crate::route::http::query_value;

/// What a request says about the endpoint it wants.
#[derive(Debug, Default)]
pub(super) struct Affinity {
    /// Hash of the key; `None` without a key: any endpoint.
    pub(super) hash: Option<u64>,
    /// `set-cookie` for a client that has none yet.
    pub(super) cookie: Option<HeaderValue>,
}

/// Reads the key that the policy names.
pub(super) fn affinity(
    policy: &TrafficPolicy,
    headers: &HeaderMap,
    query: Option<&str>,
    peer: IpAddr,
) -> Affinity {
    let Algorithm::Hash { key, .. } = &policy.load_balancer.algorithm else {
        return Affinity::default();
    };
    let hash = match key {
        HashKey::Header(name) => headers
            .get(&**name)
            .map(|value| hash_bytes(value.as_bytes())),
        HashKey::SourceIp => Some(hash_address(peer)),
        HashKey::QueryParameter(name) => {
            query_value(query, name).map(|value| hash_bytes(value.as_bytes()))
        }
        HashKey::Cookie {
            name,
            path,
            ttl,
            attributes,
        } => {
            if let Some(value) = cookie(headers, name) {
                return Affinity {
                    hash: Some(hash_bytes(value)),
                    cookie: None,
                };
            }
            let Some(ttl) = ttl else {
                return Affinity::default();
            };
            // A value of its own for each client, as Envoy makes one.
            let value = format!("{:016x}", fastrand::u64(..));
            let mut text = format!("{name}=\"{value}\"");
            if !ttl.is_zero() {
                let _ = write!(text, "; Max-Age={}", ttl.as_secs());
            }
            if let Some(path) = path {
                let _ = write!(text, "; Path={path}");
            }
            for (name, value) in attributes {
                if value.is_empty() {
                    let _ = write!(text, "; {name}");
                } else {
                    let _ = write!(text, "; {name}={value}");
                }
            }
            text.push_str("; HttpOnly");
            return Affinity {
                hash: Some(hash_bytes(value.as_bytes())),
                cookie: HeaderValue::try_from(text).ok(),
            };
        }
    };
    Affinity { hash, cookie: None }
}

/// Value of a cookie, without quotes.
fn cookie<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h [u8]> {
    headers
        .get_all(COOKIE)
        .iter()
        .flat_map(|line| line.as_bytes().split(|&byte| byte == b';'))
        .find_map(|pair| {
            let pair = pair.trim_ascii();
            let value = pair.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
            let inner = value
                .strip_prefix(b"\"")
                .and_then(|value| value.strip_suffix(b"\""));
            Some(inner.unwrap_or(value))
        })
}
