//! What nginx and HAProxy write of each request. Envoy and egress write Istio's
//! fields as JSON and give each request an id; a peer that does less is no peer
//! of the same work.

use std::fmt::Write as _;

/// How much they write.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum Records {
    /// What they know of Istio's fields, as JSON, and an id for each request.
    #[default]
    Istio,
    /// Their own usual line, and no ids.
    Own,
}

/// Istio's name, nginx's, HAProxy's.
const FIELDS: [(&str, &str, &str); 19] = [
    ("start_time", "$time_iso8601", "%t"),
    ("duration", "$request_time", "%Ta"),
    ("method", "$request_method", "%HM"),
    ("path", "$request_uri", "%HU"),
    ("protocol", "$server_protocol", "%HV"),
    ("response_code", "$status", "%ST"),
    ("response_flags", "$request_completion", "%ts"),
    ("bytes_received", "$request_length", "%U"),
    ("bytes_sent", "$body_bytes_sent", "%B"),
    ("upstream_service_time", "$upstream_header_time", "%Tr"),
    (
        "x_forwarded_for",
        "$http_x_forwarded_for",
        "%[capture.req.hdr(0)]",
    ),
    ("user_agent", "$http_user_agent", "%[capture.req.hdr(1)]"),
    ("authority", "$http_host", "%[capture.req.hdr(2)]"),
    ("request_id", "$request_id", "%ID"),
    ("upstream_host", "$upstream_addr", "%si:%sp"),
    ("upstream_cluster", "$proxy_host", "%b"),
    (
        "downstream_local_address",
        "$server_addr:$server_port",
        "%fi:%fp",
    ),
    (
        "downstream_remote_address",
        "$remote_addr:$remote_port",
        "%ci:%cp",
    ),
    ("route_name", "$server_name", "%f"),
];

/// An object of these values, all as text.
fn object(value: impl Fn(&(&str, &'static str, &'static str)) -> &'static str) -> String {
    let mut text = String::new();
    for field in &FIELDS {
        let separator = if text.is_empty() { '{' } else { ',' };
        // Writing to a string cannot fail.
        let _ = write!(text, "{separator}\"{}\":\"{}\"", field.0, value(field));
    }
    text.push('}');
    text
}

impl Records {
    /// For nginx's `http`, to be written to `log`.
    pub(super) fn nginx(self, log: &str) -> String {
        match self {
            Self::Own => format!("access_log {log} combined buffer=64k flush=1s;"),
            Self::Istio => format!(
                "log_format istio escape=json '{}';
    access_log {log} istio buffer=64k flush=1s;
    proxy_set_header X-Request-Id $request_id;",
                object(|field| field.1)
            ),
        }
    }

    /// For a proxy of HAProxy's that speaks HTTP.
    pub(super) fn haproxy(self) -> String {
        match self {
            Self::Own => "option httplog".to_owned(),
            Self::Istio => format!(
                "capture request header X-Forwarded-For len 64
    capture request header User-Agent len 64
    capture request header Host len 64
    unique-id-format %[uuid()]
    unique-id-header X-Request-Id
    log-format '{}'",
                object(|field| field.2)
            ),
        }
    }
}
