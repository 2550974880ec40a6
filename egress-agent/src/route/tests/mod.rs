#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version};
use proptest::prelude::*;
use regex::Regex;

use super::headers::{Variables, apply_request, apply_response, fill, save};
use super::http::{Forward, RequestFacts, Routed, default_retries, route, without_port};
use super::matching::fits;
use super::opaque::ConnectionFacts;
use super::{opaque, rewrite};
use crate::policy::model::{HostPattern, Labels};
use crate::policy::routes::{
    HeaderList, HeaderOps, HeaderTemplate, HttpAction, HttpDestination, HttpMatch, HttpRoute,
    OpaqueMatch, OpaqueRoute, PathRewrite, Redirect, RedirectPath, RedirectPort, RequestField,
    Rewrite, StringMatch, Target, TemplatePart,
};
use crate::policy::snapshot::Client;

mod matching;
mod operations;
mod rewriting;

fn client() -> Client {
    Client {
        namespace: "shop".into(),
        labels: Arc::new(Labels::from([("app".into(), "cart".into())])),
    }
}

fn facts<'a>(
    path: &'a str,
    query: Option<&'a str>,
    headers: &'a HeaderMap,
    client: &'a Client,
) -> RequestFacts<'a> {
    RequestFacts {
        method: &Method::GET,
        path,
        query,
        scheme: "http",
        authority: "api.example.com:8080",
        headers,
        port: 8080,
        client,
    }
}

fn plain_route(matches: Vec<HttpMatch>) -> HttpRoute {
    HttpRoute {
        name: "r".into(),
        matches,
        action: HttpAction::Respond {
            status: StatusCode::OK,
            body: bytes::Bytes::new(),
        },
        headers: HeaderOps::default(),
        timeout: None,
        retries: default_retries().clone(),
        fault: None,
        mirrors: Vec::new(),
    }
}

fn uri(want: StringMatch) -> HttpMatch {
    HttpMatch {
        uri: Some(want),
        ..HttpMatch::default()
    }
}

fn regex(pattern: &str) -> StringMatch {
    StringMatch::Regex(Regex::new(&format!("^(?:{pattern})$")).unwrap())
}

// ---- splits and opaque routes ----

#[test]
fn weights_divide_the_draws() {
    let things = [("a", 3u32), ("never", 0), ("b", 1)];
    let mut counts = [0u32; 3];
    fastrand::seed(7);
    for _ in 0..4000 {
        counts[super::http::draw(&things, |one| one.1).unwrap()] += 1;
    }
    assert_eq!(counts[1], 0);
    assert!((2850..3150).contains(&counts[0]), "{counts:?}");
    assert_eq!(super::http::draw(&[("only", 0u32)], |one| one.1), Some(0));
}

#[test]
fn opaque_routes_match_name_network_and_port() {
    let missing = |name: &str| vec![(Target::Missing(name.into()), 1)];
    let routes = [
        OpaqueRoute {
            matches: vec![OpaqueMatch {
                sni_hosts: vec![HostPattern::Suffix(".a.com".into())],
                port: Some(443),
                ..OpaqueMatch::default()
            }],
            destinations: missing("sni"),
        },
        OpaqueRoute {
            matches: vec![OpaqueMatch {
                destination_subnets: vec!["10.0.0.0/8".parse().unwrap()],
                ..OpaqueMatch::default()
            }],
            destinations: missing("net"),
        },
    ];
    let client = client();
    let found = |sni, address: &str, port| {
        let facts = ConnectionFacts {
            sni,
            tls: sni.is_some(),
            address: address.parse().unwrap(),
            port,
            client: &client,
        };
        opaque::route(&routes, &facts).map(|route| match &route.destinations[0].0 {
            Target::Missing(name) => name.to_string(),
            Target::Cluster(_) => panic!("no cluster here"),
        })
    };
    assert_eq!(
        found(Some("x.a.com"), "1.1.1.1", 443).as_deref(),
        Some("sni")
    );
    assert_eq!(found(Some("x.a.com"), "1.1.1.1", 444), None);
    assert_eq!(
        found(Some("a.com"), "10.1.1.1", 443).as_deref(),
        Some("net")
    );
    assert_eq!(found(None, "10.1.1.1", 1).as_deref(), Some("net"));
    assert_eq!(found(None, "11.1.1.1", 443), None);
}
