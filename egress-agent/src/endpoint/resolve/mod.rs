//! From the endpoints that a policy names to addresses.
//!
//! A [`Resolver`] keeps one [`Answer`] for each name that somebody watches or
//! looks up, with one query in flight for it however many want it. The names
//! of a cluster are watched through [`Endpoints`]; names that only requests
//! know (wildcard hosts, DYNAMIC_DNS) are looked up with a deadline.
//!
//! The rules, beside Istio's (every A and AAAA answer is one host, TTL obeyed,
//! a failed lookup keeps the last answer):
//! - A name is asked for again when about 90 % of its TTL is over, so that its
//!   answer does not run out; after a failure in 1 s, then in twice as long
//!   each time, up to Istio's 60 s. Both with jitter.
//! - A resolver that fails (timeout, SERVFAIL) never takes the last answer
//!   away. One that says that the name has no address does, after
//!   [`NEGATIVE_GRACE`]: long enough for a zone that was published by mistake,
//!   short enough that a name which was given up stops being used.
//! - Where only one family fails, its last addresses stay beside the new ones
//!   of the other.
//! - A name with a dot is absolute. Search domains apply to single labels
//!   only: otherwise a name that vanished from DNS could turn into somebody
//!   else's under a search domain, and get what was meant for the first.
//! - An answer made of our own virtual addresses is an error, not an endpoint:
//!   it came through a local forwarder whose own queries are captured.
//!
//! The agent asks the servers of `--dns-upstream`, else those that
//! `/etc/resolv.conf` names, and reads `/etc/hosts` in the latter case, as any
//! program on the node would. Where `resolv.conf` names only systemd-resolved's
//! stub, the servers behind it are asked (`/run/systemd/resolve/resolv.conf`),
//! since the stub's own queries are captured and would be answered with
//! virtual addresses.

mod answer;
mod endpoints;
mod entry;
mod error;
mod namespaces;
mod order;
mod resolver;
mod sockets;
mod upstream;

pub use answer::{Answer, MAX_TTL, MIN_TTL, NEGATIVE_GRACE, State};
pub use endpoints::{Endpoints, Resolution};
pub use entry::NameStatus;
pub use error::ResolveError;
pub use namespaces::Resolvers;
pub use order::{Routes, SocketRoutes};
pub use resolver::{IDLE_LIMIT, LOOKUPS_LIMIT, Resolver, UNWATCHED_LIMIT};
pub use sockets::ServerNetns;
pub use upstream::{Families, Found, Query, Records, Upstream, UpstreamOptions};
