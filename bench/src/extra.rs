//! What is no load over every path: single figures of one program.

use serde::Serialize;

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
