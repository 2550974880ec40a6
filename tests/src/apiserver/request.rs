//! What paths, queries and selectors mean.

use std::collections::BTreeMap;

use serde_json::Value;

/// What a path means.
pub(super) struct Place {
    pub(super) plural: String,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) status: bool,
    pub(super) api_version: String,
}

pub(super) fn place(path: &str) -> Option<Place> {
    let mut parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let api_version = if parts.first() == Some(&"api") {
        let version = (*parts.get(1)?).to_owned();
        parts.drain(..2);
        version
    } else {
        let version = format!("{}/{}", parts.get(1)?, parts.get(2)?);
        parts.drain(..3);
        version
    };
    let namespace = if parts.first() == Some(&"namespaces") && parts.len() > 2 {
        let namespace = parts[1].to_owned();
        parts.drain(..2);
        namespace
    } else {
        String::new()
    };
    Some(Place {
        api_version,
        plural: (*parts.first()?).to_owned(),
        namespace,
        name: (*parts.get(1).unwrap_or(&"")).to_owned(),
        status: parts.get(2) == Some(&"status"),
    })
}

pub(super) fn parameters(query: &str) -> BTreeMap<String, String> {
    query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(key, value)| (key.to_owned(), unescape(value)))
        .collect()
}

fn unescape(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = text.get(at + 1..at + 3).filter(|_| bytes[at] == b'%');
        if let Some(byte) = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            out.push(byte);
            at += 3;
        } else {
            out.push(if bytes[at] == b'+' { b' ' } else { bytes[at] });
            at += 1;
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// `metadata.name=…` and `spec.nodeName=…`, as the real one has for these.
pub(super) fn selected(selector: Option<&String>, object: &Value) -> bool {
    let Some(selector) = selector else {
        return true;
    };
    selector.split(',').all(|term| {
        let (path, wanted) = term.split_once('=').unwrap_or((term, ""));
        let pointer = format!("/{}", path.replace('.', "/"));
        object.pointer(&pointer).and_then(Value::as_str) == Some(wanted)
    })
}
