//! The endpoints of one cluster, with the names among them resolved.

use std::collections::HashSet;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use tokio::sync::watch;

use super::answer::{Answer, State};
use super::error::ResolveError;
use super::resolver::Resolver;
use crate::endpoint::resolved::{Destination, ResolvedEndpoint};
use crate::policy::model::{EndpointAddress, EndpointSpec};
use std::net::SocketAddr;

/// What the endpoints of a cluster are at present.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Resolution {
    /// In the order of the policy; of two that lead to one destination, the
    /// first.
    pub endpoints: Vec<ResolvedEndpoint>,
    /// Some name has not been looked up yet.
    pub pending: bool,
    /// Names whose last lookup failed, with or without older addresses.
    pub errors: Vec<ResolveError>,
}

/// The endpoints of a cluster, followed.
#[derive(Debug)]
pub struct Endpoints {
    specs: Vec<EndpointSpec>,
    /// One for each name, by its place in `specs`.
    names: Vec<Option<watch::Receiver<Arc<Answer>>>>,
}

impl Resolver {
    /// Follows the endpoints of a cluster.
    pub fn endpoints(&self, specs: &[EndpointSpec]) -> Endpoints {
        let names = specs.iter().map(|spec| match &spec.address {
            EndpointAddress::Name(name) => Some(self.watch(name)),
            EndpointAddress::Ip(_) | EndpointAddress::Unix(_) => None,
        });
        Endpoints {
            names: names.collect(),
            specs: specs.to_vec(),
        }
    }
}

impl Endpoints {
    /// What they are now. [`changed`](Self::changed) waits for what comes
    /// after this.
    pub fn current(&mut self) -> Resolution {
        let mut resolution = Resolution {
            endpoints: Vec::with_capacity(self.specs.len()),
            pending: false,
            errors: Vec::new(),
        };
        let mut seen = HashSet::new();
        for (spec, name) in self.specs.iter().zip(&mut self.names) {
            let mut add = |destination: Destination, name: Option<&Arc<str>>| {
                if seen.insert(destination.clone()) {
                    resolution.endpoints.push(ResolvedEndpoint {
                        destination,
                        name: name.cloned(),
                        weight: spec.weight,
                        locality: spec.locality.clone(),
                        labels: spec.labels.clone(),
                    });
                }
            };
            match (&spec.address, name) {
                (EndpointAddress::Ip(ip), _) => {
                    add(Destination::Tcp(SocketAddr::new(*ip, spec.port)), None);
                }
                (EndpointAddress::Unix(path), _) => {
                    add(Destination::Unix(Arc::clone(path)), None);
                }
                (EndpointAddress::Name(name), Some(receiver)) => {
                    let answer = Arc::clone(&receiver.borrow_and_update());
                    for ip in &*answer.addresses {
                        add(
                            Destination::Tcp(SocketAddr::new(*ip, spec.port)),
                            Some(name),
                        );
                    }
                    resolution.pending |= answer.state == State::Pending;
                    resolution.errors.extend(answer.state.error().cloned());
                }
                (EndpointAddress::Name(_), None) => {}
            }
        }
        resolution
    }

    /// Whether there is a name among them, so that they can change at all.
    pub fn can_change(&self) -> bool {
        self.names.iter().any(Option::is_some)
    }

    /// Waits until the answer for some name differs from what
    /// [`current`](Self::current) saw. For ever, where no name is followed.
    pub async fn changed(&mut self) {
        let receivers = self.names.iter_mut().flatten();
        let mut changes: Vec<_> = receivers
            .map(|receiver| {
                Box::pin(async move {
                    // A sender that is gone will never change anything.
                    if receiver.changed().await.is_err() {
                        std::future::pending::<()>().await;
                    }
                })
            })
            .collect();
        let any = poll_fn(|context| {
            for change in &mut changes {
                if change.as_mut().poll(context).is_ready() {
                    return Poll::Ready(());
                }
            }
            Poll::Pending
        });
        pin!(any).await;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::time::Duration;

    use tokio::time::timeout;

    use super::super::resolver::tests::{Script, resolver};
    use super::*;
    use crate::policy::model::{Labels, Locality};

    fn spec(address: EndpointAddress, port: u16, region: &str) -> EndpointSpec {
        EndpointSpec {
            address,
            port,
            weight: 3,
            locality: Locality::parse(region),
            labels: Labels::default(),
        }
    }

    fn shown(resolution: &Resolution) -> Vec<String> {
        let endpoints = resolution.endpoints.iter();
        endpoints
            .map(|endpoint| match &endpoint.destination {
                Destination::Tcp(address) => format!("{address} {}", endpoint.locality),
                Destination::Unix(path) => path.to_string(),
            })
            .collect()
    }

    #[tokio::test(start_paused = true)]
    async fn follows_the_names_of_a_cluster() {
        let script = Script::default();
        script.answer("a.example", &["10.0.0.1", "10.0.0.2"], 100);
        script.answer("b.example", &["10.0.0.2"], 100);
        let resolver = resolver(&script);
        let name = |name: &str| EndpointAddress::Name(name.into());
        let mut endpoints = resolver.endpoints(&[
            spec(EndpointAddress::Ip("10.9.9.9".parse().unwrap()), 1, "z"),
            spec(name("a.example"), 80, "x"),
            // The same address again, and the same on another port.
            spec(name("b.example"), 80, "y"),
            spec(name("b.example"), 81, "y"),
            spec(EndpointAddress::Unix("/run/db".into()), 0, ""),
        ]);
        assert!(endpoints.can_change() && endpoints.current().pending);
        while endpoints.current().pending {
            endpoints.changed().await;
        }
        let resolution = endpoints.current();
        let expected = [
            "10.9.9.9:1 z",
            "10.0.0.1:80 x",
            "10.0.0.2:80 x",
            "10.0.0.2:81 y",
            "/run/db",
        ];
        assert_eq!(shown(&resolution), expected);
        assert_eq!(resolution.endpoints[1].name.as_deref(), Some("a.example"));
        assert_eq!(resolution.endpoints[1].weight, 3);
        assert!(resolution.errors.is_empty());
        assert_eq!(script.count("b.example"), 1, "one query for two endpoints");

        // Nothing changes, nothing is told.
        let quiet = timeout(Duration::from_secs(1000), endpoints.changed()).await;
        assert!(quiet.is_err());
        script.answer("a.example", &["10.0.0.3"], 100);
        endpoints.changed().await;
        assert_eq!(
            shown(&endpoints.current())[1..3],
            ["10.0.0.3:80 x", "10.0.0.2:80 y"]
        );
        script.fail("a.example");
        endpoints.changed().await;
        let resolution = endpoints.current();
        assert_eq!(resolution.endpoints.len(), 5);
        assert_eq!(resolution.errors.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn fixed_endpoints_never_change() {
        let resolver = resolver(&Script::default());
        let mut endpoints = resolver.endpoints(&[spec(
            EndpointAddress::Ip("10.9.9.9".parse().unwrap()),
            1,
            "",
        )]);
        assert!(!endpoints.can_change() && !endpoints.current().pending);
        assert!(
            timeout(Duration::from_secs(9), endpoints.changed())
                .await
                .is_err()
        );
    }
}
