//! Captured DNS queries: virtual addresses for registered names, everything
//! else forwarded to the resolver that the application asked.
//!
//! A query goes through [`server`] (sockets and framing), [`answer`] (a pure
//! function from a message to an answer or to what must happen first),
//! [`names`] (what the policy claims, for a client in one namespace) and
//! [`virtual_address`] (which address stands for which name); what is not
//! claimed leaves through [`forward`] as the very bytes that came.
//!
//! # What is answered here
//! | query | answer |
//! |---|---|
//! | A, AAAA of a host with a virtual address | that address, TTL 30 s; AAAA is empty where IPv6 is off |
//! | A, AAAA of a host whose ServiceEntry lists single `addresses` | those, as Istio's DNS proxy does |
//! | HTTPS, SVCB of such a host, and of `_port._scheme.host` (RFC 9460 section 2.3) | empty: hints would name real addresses |
//! | ANY of such a host | its addresses of one family (RFC 8482 section 4.1) |
//! | every other type of such a host (MX, TXT, CNAME, …) | forwarded: it names no address of the host |
//! | PTR of a virtual address | the name, or NXDOMAIN |
//! | a host with resolution NONE or only CIDRs, and everything unregistered | forwarded |
//! | a name under a wildcard host | see below |
//! | a registered name with a search domain behind it | forwarded: it is another name |
//!
//! A name under a wildcard host is captured only when it exists: at the first
//! query, the resolver that the application asked must know an address for it.
//! Otherwise a search list (`ndots:5` in a pod with `search corp.example.com`)
//! would make every name in the world exist under `*.example.com`. Where the
//! ServiceEntry brings its own endpoints, no resolver needs to know the name,
//! and it is captured at once.
//!
//! # Local resolvers
//! *systemd-resolved's stub* (127.0.0.53) is a resolver like any other: a
//! registered name never reaches it, an unregistered one is forwarded to it.
//! What resolved itself then asks upstream is captured again, since resolved
//! runs in a cgroup too, and forwarded to its upstream.
//!
//! *Lookups that use no DNS socket of their own*, through resolved's Varlink
//! or D-Bus interface (`nss-resolve`) or through nscd, are made by that
//! daemon. They cannot be captured at the application, but the daemon's own
//! query is, where the daemon runs inside the captured cgroup (it does when
//! that is the root): the application gets the virtual address all the same,
//! with two limits. The query counts as the daemon's, so only entries
//! exported to the daemon's namespace are seen; and the daemon may cache the
//! answer for its TTL (nscd: for `positive-time-to-live`), so a changed policy
//! is seen that much later. An entry that was removed keeps its address
//! reserved for far longer than that ([`virtual_address::QUARANTINE`]). A
//! daemon that validates DNSSEC refuses our unsigned answers for signed zones,
//! and one that asks its upstream over TLS is not captured: there the policy
//! is met through the real addresses of the host.
//!
//! *A DNS server for others* (CoreDNS, dnsmasq for virtual machines) must run
//! in a cgroup that is not captured: it would hand our virtual addresses to
//! clients on other machines.

pub mod answer;
mod error;
pub mod forward;
pub mod metrics;
pub mod names;
pub mod real;
pub mod registry;
pub mod seen;
pub mod server;
pub mod state;
pub mod virtual_address;

pub use error::DnsError;
