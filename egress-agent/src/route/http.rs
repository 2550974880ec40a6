//! Which `http` route a request takes, and what that route asks for.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use ::http::{HeaderMap, Method, StatusCode};
use bytes::Bytes;

use super::{RouteError, matching};
use crate::policy::routes::{
    Abort, Fault, HeaderOps, HttpAction, HttpDestination, HttpMatch, HttpRoute, Mirror, Redirect,
    RetryOn, RetryPolicy, Rewrite, Target,
};
use crate::policy::snapshot::{Client, Cluster, View};

pub use super::matching::{query_value, without_port};

/// What a match block looks at.
#[derive(Clone, Copy, Debug)]
pub struct RequestFacts<'a> {
    /// Method.
    pub method: &'a Method,
    /// Path without the query.
    pub path: &'a str,
    /// What follows the `?`.
    pub query: Option<&'a str>,
    /// `http` or `https`.
    pub scheme: &'a str,
    /// Host or `:authority` as sent.
    pub authority: &'a str,
    /// Headers.
    pub headers: &'a HeaderMap,
    /// The port that the client dialled.
    pub port: u16,
    /// Who asks.
    pub client: &'a Client,
}

/// What is to be done with a request.
#[derive(Clone, Copy, Debug)]
pub enum Routed<'r> {
    /// Send it on.
    Forward(Forward<'r>),
    /// Answer with a redirect.
    Redirect(&'r Redirect, Chosen<'r>),
    /// Answer with `directResponse`.
    Respond {
        /// `status`.
        status: StatusCode,
        /// `body`.
        body: &'r Bytes,
        /// The route.
        chosen: Chosen<'r>,
    },
}

/// A route and the block that matched.
#[derive(Clone, Copy, Debug)]
pub struct Chosen<'r> {
    /// The route.
    pub route: &'r HttpRoute,
    /// The block; `None` where the route has none.
    pub matched: Option<&'r HttpMatch>,
    /// Where they are.
    index: (usize, Option<usize>),
}

impl Chosen<'_> {
    /// The name for the access log: the route's, joined with the match's.
    pub fn name(&self) -> Arc<str> {
        match self.matched.and_then(|block| block.name.as_ref()) {
            None => Arc::clone(&self.route.name),
            Some(name) if self.route.name.is_empty() => Arc::clone(name),
            Some(name) => format!("{}.{name}", self.route.name).into(),
        }
    }
}

/// What was chosen, by place in the view's routes: it outlives the borrow.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Route and block.
    chosen: Option<(usize, Option<usize>)>,
    destination: usize,
}

/// Where a request goes, and under which plan.
#[derive(Clone, Copy, Debug)]
pub struct Forward<'r> {
    /// The cluster.
    pub cluster: &'r Arc<Cluster>,
    /// The route; `None` without a VirtualService.
    pub chosen: Option<Chosen<'r>>,
    /// The destination drawn among the weighted ones; retries keep it.
    pub destination: Option<&'r HttpDestination>,
    /// `rewrite`.
    pub rewrite: Option<&'r Rewrite>,
    /// `timeout`: from the end of the request to the end of the response.
    pub timeout: Option<Duration>,
    /// `retries`, or Istio's default.
    pub retries: &'r RetryPolicy,
    place: Place,
}

impl<'r> Forward<'r> {
    /// Where in the view this plan is.
    pub const fn place(&self) -> Place {
        self.place
    }

    /// The plan at a place of `view`; `None` if it is not from this view.
    pub fn at(view: &'r View, place: Place) -> Option<Self> {
        let Some((route, block)) = place.chosen else {
            return Some(Self::without_route(&view.cluster));
        };
        let route = view.http.as_ref()?.get(route)?;
        let chosen = Chosen {
            route,
            matched: block.and_then(|block| route.matches.get(block)),
            index: place.chosen?,
        };
        let HttpAction::Forward {
            destinations,
            rewrite,
        } = &route.action
        else {
            return None;
        };
        let destination = destinations.get(place.destination)?;
        match &destination.target {
            Target::Missing(_) => None,
            Target::Cluster(cluster) => Some(Self {
                cluster,
                chosen: Some(chosen),
                destination: Some(destination),
                rewrite: rewrite.as_ref(),
                timeout: route.timeout,
                retries: &route.retries,
                place,
            }),
        }
    }

    /// The plan of a route before a destination is drawn, for what explains it.
    pub const fn to_explain(
        chosen: Chosen<'r>,
        cluster: &'r Arc<Cluster>,
        rewrite: &'r Rewrite,
    ) -> Self {
        Self {
            cluster,
            chosen: Some(chosen),
            destination: None,
            rewrite: Some(rewrite),
            timeout: chosen.route.timeout,
            retries: &chosen.route.retries,
            place: Place {
                chosen: None,
                destination: 0,
            },
        }
    }

    fn without_route(cluster: &'r Arc<Cluster>) -> Self {
        Self {
            cluster,
            chosen: None,
            destination: None,
            rewrite: None,
            timeout: None,
            retries: default_retries(),
            place: Place {
                chosen: None,
                destination: 0,
            },
        }
    }

    /// `perTryTimeout`, which is ignored unless it is below `timeout`.
    pub fn per_try_timeout(&self) -> Option<Duration> {
        self.retries
            .per_try_timeout
            .filter(|each| self.timeout.is_none_or(|all| *each < all))
    }

    /// `headers` of the route, then of the destination.
    pub fn header_ops(&self) -> impl Iterator<Item = &'r HeaderOps> + use<'r> {
        let route = self.chosen.map(|chosen| &chosen.route.headers);
        let destination = self.destination.map(|destination| &destination.headers);
        route.into_iter().chain(destination)
    }

    /// `mirror` and `mirrors`.
    pub fn mirrors(&self) -> &'r [Mirror] {
        self.chosen
            .map_or(&[], |chosen| chosen.route.mirrors.as_slice())
    }

    /// Name for the access log: Envoy's `default` where no VirtualService
    /// applies.
    pub fn name(&self) -> Arc<str> {
        static DEFAULT: LazyLock<Arc<str>> = LazyLock::new(|| Arc::from("default"));
        self.chosen
            .map_or_else(|| Arc::clone(&DEFAULT), |chosen| chosen.name())
    }
}

/// Istio's retries where a route writes none: 2, on connect-failure,
/// refused-stream, unavailable and cancelled. A 503 answer has not been among
/// them since Istio 1.24.
pub fn default_retries() -> &'static RetryPolicy {
    static DEFAULT: LazyLock<RetryPolicy> = LazyLock::new(|| RetryPolicy {
        attempts: 2,
        per_try_timeout: None,
        on: RetryOn {
            connect_failure: true,
            refused_stream: true,
            grpc: vec![1, 14],
            ..RetryOn::default()
        },
        backoff: Duration::from_millis(25),
        remote_localities: false,
        ignore_previous_hosts: true,
    });
    &DEFAULT
}

/// The first of `routes` with a block that fits.
pub fn route<'r>(routes: &'r [HttpRoute], facts: &RequestFacts<'_>) -> Option<Chosen<'r>> {
    routes.iter().enumerate().find_map(|(index, route)| {
        let mut blocks = route.matches.iter().enumerate();
        let matched = if route.matches.is_empty() {
            None
        } else {
            Some(blocks.find(|(_, block)| matching::fits(block, facts))?)
        };
        Some(Chosen {
            route,
            matched: matched.map(|(_, block)| block),
            index: (index, matched.map(|(number, _)| number)),
        })
    })
}

/// What `view` does with a request: the routes of its VirtualService, or,
/// without one, everything to its own cluster.
///
/// # Errors
/// [`RouteError::NoRoute`] and [`RouteError::NoCluster`].
pub fn decide<'r>(view: &'r View, facts: &RequestFacts<'_>) -> Result<Routed<'r>, RouteError> {
    let Some(routes) = &view.http else {
        return Ok(Routed::Forward(Forward::without_route(&view.cluster)));
    };
    let chosen = route(routes, facts).ok_or(RouteError::NoRoute)?;
    match &chosen.route.action {
        HttpAction::Redirect(redirect) => Ok(Routed::Redirect(redirect, chosen)),
        HttpAction::Respond { status, body } => Ok(Routed::Respond {
            status: *status,
            body,
            chosen,
        }),
        HttpAction::Forward {
            destinations,
            rewrite,
        } => {
            let number = draw(destinations, |one| one.weight)
                .ok_or_else(|| RouteError::NoCluster("the route has no destination".into()))?;
            let destination = &destinations[number];
            match &destination.target {
                Target::Missing(what) => Err(RouteError::NoCluster(what.clone())),
                Target::Cluster(cluster) => Ok(Routed::Forward(Forward {
                    cluster,
                    chosen: Some(chosen),
                    destination: Some(destination),
                    rewrite: rewrite.as_ref(),
                    timeout: chosen.route.timeout,
                    retries: &chosen.route.retries,
                    place: Place {
                        chosen: Some(chosen.index),
                        destination: number,
                    },
                })),
            }
        }
    }
}

/// Draws one of weighted things and gives its number; a single one is taken
/// whatever its weight, one of weight 0 among several never.
pub(super) fn draw<T>(things: &[T], weight: impl Fn(&T) -> u32) -> Option<usize> {
    if things.len() == 1 {
        return Some(0);
    }
    let total: u64 = things.iter().map(|one| u64::from(weight(one))).sum();
    if total == 0 {
        return None;
    }
    let mut at = fastrand::u64(..total);
    things.iter().position(|one| {
        let share = u64::from(weight(one));
        let hit = at < share;
        at = at.saturating_sub(share);
        hit
    })
}

/// Whether a share in parts per million hits this time.
pub fn hit(parts_per_million: u32) -> bool {
    parts_per_million >= 1_000_000 || fastrand::u32(..1_000_000) < parts_per_million
}

/// What `fault` does to one request. Delay and abort are drawn apart, as in
/// Envoy's fault filter.
pub fn draw_fault(fault: &Fault) -> (Option<Duration>, Option<Abort>) {
    let delay = fault
        .delay
        .and_then(|(time, share)| hit(share).then_some(time));
    let abort = fault
        .abort
        .and_then(|(what, share)| hit(share).then_some(what));
    (delay, abort)
}
