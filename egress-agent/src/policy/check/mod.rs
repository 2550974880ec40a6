//! The rules: those within one document, which reject it, here; those between
//! documents, which only warn, in [`across`].
//!
//! Each function takes a part as written and reports what is wrong with it.
//! The rules are those of Istio's own validator and schema; where ours differ,
//! the comment says so.

pub mod destination_rule;
pub mod header;
pub mod load_balancer;
pub mod names;
pub mod reachable;
pub mod regexp;
pub mod route;
pub mod service_entry;
pub mod virtual_service;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod verdicts;
