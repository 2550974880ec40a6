//! What is no load over every path: figures of measurements that set up what
//! they need by themselves.

use anyhow::{Context, Result};
use serde::Serialize;

use crate::arena::Arena;
use crate::cpus::Cpus;
use crate::peer::{self, Name};
use crate::progress::Progress;
use crate::{direct, dns, idle, restart, scale, services};

/// How much is to be done.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Amount {
    pub(crate) rounds: usize,
    /// Part of the usual work of each round.
    pub(crate) share: f64,
}

/// A measurement, named and chosen as the workloads are.
pub(crate) struct Measurement {
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    /// Part of a quick run.
    pub(crate) quick: bool,
    measure: fn(&Measurement, Amount) -> Result<Vec<Row>>,
}

pub(crate) const ALL: [Measurement; 7] = [
    Measurement {
        name: "direct-path",
        title: "the direct path beside no interception, in rounds of milliseconds",
        quick: false,
        measure: |_, amount| direct::measure(amount.share),
    },
    Measurement {
        name: "dns-answer",
        title: "DNS, A and AAAA of registered hosts, as fast as it goes (dnsperf)",
        quick: true,
        measure: names,
    },
    Measurement {
        name: "dns-forward",
        title: "DNS, names that are not registered, one query at a time",
        quick: true,
        measure: names,
    },
    Measurement {
        name: "memory-idle",
        title: "memory of each of 5,000 idle connections",
        quick: false,
        measure: |_, _| idle::measure(),
    },
    Measurement {
        name: "memory-services",
        title: "memory at rest with 1, 1,000 and 10,000 services with DestinationRules",
        quick: false,
        measure: |_, _| Ok(scale::memory()),
    },
    Measurement {
        name: "policy-10k",
        title: "policy load and single change at 10,000 services with DestinationRules",
        quick: false,
        measure: |_, _| Ok(scale::policy()),
    },
    Measurement {
        name: "restart",
        title: "new connections while the proxy is restarted, 500 a second",
        quick: false,
        measure: |_, _| Ok(restart::measure(&Arena::new(Cpus::new(false)?)?)),
    },
];

fn names(chosen: &Measurement, amount: Amount) -> Result<Vec<Row>> {
    let arena = Arena::new(Cpus::new(false)?)?;
    let agent = peer::start(&arena, Name::Egress, &services::ALL)?;
    let mut progress = Progress::new(dns::WAYS * amount.rounds);
    dns::measure(&arena, &*agent, chosen.name, amount, &mut progress)
}

impl Measurement {
    /// What cannot be measured has the reason in place of figures.
    pub(crate) fn run(&self, amount: Amount) -> Extra {
        eprintln!("{}: {}", self.name, self.title);
        let rows = (self.measure)(self, amount).with_context(|| self.name);
        Extra {
            name: self.name,
            title: self.title,
            rows: rows.unwrap_or_else(|error| {
                vec![Row {
                    what: self.title.to_owned(),
                    unit: "",
                    value: Err(format!("{error:#}")),
                    target: None,
                }]
            }),
        }
    }
}

/// Some figures that belong together.
#[derive(Debug, Serialize)]
pub(crate) struct Extra {
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    pub(crate) rows: Vec<Row>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) what: String,
    pub(crate) unit: &'static str,
    /// Or why there is none.
    pub(crate) value: Result<f64, String>,
    /// What it is to reach, and whether less is better.
    pub(crate) target: Option<(f64, bool)>,
}
