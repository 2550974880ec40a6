//! The agent of `egress` as a library; the two programs are thin shells on it.
//!
//! Data flows one way through the rooms below, and a room never imports from
//! one that stands after it:
//! [`capture`] → [`accept`] → [`identify`] → [`route`] → [`endpoint`] →
//! [`connect`] → [`relay`] → [`account`]. [`flow`] calls them in order and is
//! the first file to read. Beside the flow, and handing values to it without
//! ever calling into it, stand [`policy`], [`secret`], [`dns`], [`workload`],
//! [`lifecycle`], [`admin`], [`settings`] and [`cli`].

pub mod flag;
pub mod flow;
pub mod memory;
pub mod numbers;
pub mod shared_map;

pub mod capture;

pub mod accept;
pub mod identify;
pub mod route;

pub mod endpoint;

pub mod connect;

pub mod relay;

pub mod account;

pub mod admin;
pub mod cli;
pub mod dns;
pub mod kubernetes;
pub mod lifecycle;
pub mod policy;
pub mod secret;
pub mod settings;
#[cfg(test)]
mod testing;
pub mod workload;
