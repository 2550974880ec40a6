//! The state of TLS material as metrics, read when asked.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::{SecretStatus, Secrets};

impl Secrets {
    /// Puts `egress_tls_certificate_not_after_timestamp_seconds`,
    /// `egress_tls_material_state` and `egress_tls_verification_skipped` into a
    /// registry.
    pub fn register(self: &Arc<Self>, registry: &mut Registry) {
        registry.register_collector(Box::new(Material(self.clone())));
    }
}

struct Material(Arc<Secrets>);

impl fmt::Debug for Material {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Material")
    }
}

impl Collector for Material {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let list = self.0.status();
        let certificates = list
            .iter()
            .filter_map(|one| Some((one, one.certificate.as_ref()?.not_after.as_second(), None)));
        family(
            &mut encoder,
            "egress_tls_certificate_not_after_timestamp_seconds",
            "When the client certificate in force expires, in Unix time",
            certificates,
        )?;
        family(
            &mut encoder,
            "egress_tls_material_state",
            "1 for the state that TLS material is in: active, stale (a newer version cannot be \
             used) or error",
            list.iter().map(|one| (one, 1, Some(one.state))),
        )?;
        family(
            &mut encoder,
            "egress_tls_verification_skipped",
            "1 where insecureSkipVerify turns verification of the server off",
            list.iter()
                .filter(|one| one.insecure)
                .map(|one| (one, 1, None)),
        )
    }
}

/// One gauge for each piece of material; blocks that differ only in what no
/// label shows appear once.
fn family<'a>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    values: impl Iterator<Item = (&'a SecretStatus, i64, Option<&'static str>)>,
) -> Result<(), fmt::Error> {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    let mut written = std::collections::HashSet::new();
    for (one, value, state) in values {
        let labels = [
            ("name", one.name.as_str()),
            ("namespace", one.namespace.as_str()),
            ("state", state.unwrap_or_default()),
        ];
        if !written.insert(labels) {
            continue;
        }
        let labels = &labels[..if state.is_some() { 3 } else { 2 }];
        ConstGauge::new(value).encode(metric.encode_family(&labels)?)?;
    }
    Ok(())
}
