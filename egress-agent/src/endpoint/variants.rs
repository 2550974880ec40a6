//! The tables of a pool: one for each kind of client that `failoverPriority`
//! tells apart.

use std::sync::Arc;

use tokio::time::Instant;

use super::config::Config;
use super::locality;
use super::table::{Candidate, Table};
use crate::policy::snapshot::Client;

/// Tables for clients with different labels, where `failoverPriority` looks at
/// them; clients beyond that get the one for a client without labels.
const VARIANTS: usize = 64;
#[derive(Debug, Default)]
pub(super) struct Tables {
    /// For a client without the labels that matter.
    plain: Option<Arc<Table>>,
    /// By the values of `Config::client_keys`.
    variants: Vec<(Values, Arc<Table>)>,
}

/// Values of a client for the labels that matter.
type Values = Box<[Box<str>]>;

impl Tables {
    pub(super) fn of(&self, config: &Config, client: &Client) -> Option<&Arc<Table>> {
        if config.client_keys.is_empty() {
            return self.plain.as_ref();
        }
        self.variants
            .iter()
            .find(|(values, _)| {
                values.len() == config.client_keys.len()
                    && values_of(config, client).eq(values.iter().map(|value| &**value))
            })
            .map(|(_, table)| table)
            .or_else(|| {
                self.plain
                    .as_ref()
                    .filter(|_| self.variants.len() >= VARIANTS)
            })
    }

    /// The table for a client without labels.
    pub(super) const fn plain(&self) -> Option<&Arc<Table>> {
        self.plain.as_ref()
    }

    /// All tables anew.
    pub(super) fn rebuilt(&self, config: &Config, candidates: &[Candidate], now: Instant) -> Self {
        let build = |values: &[Box<str>], previous: Option<&Table>| {
            Arc::new(Table::build(config, values, candidates, now, previous))
        };
        let keys = config.client_keys.len();
        let variants = self.variants.iter();
        Self {
            plain: Some(build(&vec![Box::default(); keys], self.plain.as_deref())),
            variants: variants
                .filter(|(values, _)| values.len() == keys && keys > 0)
                .map(|(values, table)| (values.clone(), build(values, Some(table))))
                .collect(),
        }
    }

    /// These tables and one for a client not met before; `None` when there is
    /// one, or no room for it.
    pub(super) fn with(
        &self,
        config: &Config,
        client: &Client,
        candidates: &[Candidate],
        now: Instant,
    ) -> Option<Self> {
        let values: Values = values_of(config, client).map(Box::from).collect();
        let known = self.variants.iter().any(|(known, _)| *known == values);
        if known || self.variants.len() >= VARIANTS {
            return None;
        }
        let plain = self.plain.as_ref()?;
        let table = Table::build(config, &values, candidates, now, Some(plain));
        let mut variants = self.variants.clone();
        variants.push((values, Arc::new(table)));
        Some(Self {
            plain: Some(Arc::clone(plain)),
            variants,
        })
    }
}

/// Values of a client for the labels that matter.
fn values_of<'a>(config: &'a Config, client: &'a Client) -> impl Iterator<Item = &'a str> {
    let keys = config.client_keys.iter();
    keys.map(|key| locality::label(&client.labels, config.locality(), key))
}
