//! Rewrites and redirects.

use super::*;

fn rewrite_of(path: PathRewrite) -> Rewrite {
    Rewrite {
        path: Some(path),
        authority: None,
    }
}

fn rewritten(
    matched: Option<HttpMatch>,
    rule: PathRewrite,
    path: &str,
    query: Option<&str>,
) -> String {
    let cluster = crate::route::testing::cluster(
        0,
        "a.com",
        crate::policy::model::Protocol::Http,
        crate::route::testing::traffic_policy(),
        &[],
    );
    let mut route = plain_route(matched.into_iter().collect());
    route.action = HttpAction::Forward {
        destinations: vec![HttpDestination {
            target: Target::Cluster(Arc::clone(&cluster)),
            weight: 1,
            headers: HeaderOps::default(),
        }],
        rewrite: Some(rewrite_of(rule)),
    };
    let view = crate::route::testing::view(cluster, Some(vec![route]));
    let (headers, client) = (HeaderMap::new(), client());
    let facts = facts(path, query, &headers, &client);
    let Ok(Routed::Forward(forward)) = crate::route::http::decide(&view, &facts) else {
        panic!("the route forwards");
    };
    // The place of a plan leads back to it.
    let again = Forward::at(&view, forward.place()).unwrap();
    assert!(std::ptr::eq(
        again.destination.unwrap(),
        forward.destination.unwrap()
    ));
    rewrite::path(&again, &facts)
        .unwrap()
        .map_or_else(|| "unchanged".to_owned(), |path| path.as_str().to_owned())
}

#[test]
fn a_prefix_is_replaced_and_the_rest_and_the_query_stay() {
    let prefix = || Some(uri(StringMatch::Prefix("/api/v2".into())));
    let rule = || PathRewrite::Uri("/api/v1".into());
    assert_eq!(
        rewritten(prefix(), rule(), "/api/v2/users", Some("a=1&b")),
        "/api/v1/users?a=1&b"
    );
    assert_eq!(rewritten(prefix(), rule(), "/api/v2", None), "/api/v1");
    assert_eq!(rewritten(prefix(), rule(), "/api/v2x", None), "/api/v1x");
}

#[test]
fn without_a_prefix_the_whole_path_is_replaced() {
    let exact = Some(uri(StringMatch::Exact("/old".into())));
    assert_eq!(
        rewritten(exact, PathRewrite::Uri("/new".into()), "/old", Some("q")),
        "/new?q"
    );
    assert_eq!(
        rewritten(None, PathRewrite::Uri("/new".into()), "/any/thing", None),
        "/new"
    );
    assert_eq!(
        rewritten(None, PathRewrite::Uri("/same".into()), "/same", Some("q")),
        "unchanged"
    );
}

#[test]
fn a_regex_rewrites_the_path_but_not_the_query() {
    let rule = PathRewrite::Regex {
        pattern: Regex::new("/v([0-9]+)/").unwrap(),
        replacement: "/version-${1}/".into(),
    };
    assert_eq!(
        rewritten(None, rule, "/v12/x", Some("to=/v12/")),
        "/version-12/x?to=/v12/"
    );
}

fn location(redirect: &Redirect, authority: &str, path: &str, query: Option<&str>) -> String {
    let route = plain_route(vec![uri(StringMatch::Prefix("/old".into()))]);
    let (headers, client) = (HeaderMap::new(), client());
    let facts = RequestFacts {
        authority,
        ..facts(path, query, &headers, &client)
    };
    let routes = [route];
    let anything = HeaderMap::new();
    let matching = RequestFacts {
        path: "/old",
        ..super::facts("/old", None, &anything, &client)
    };
    let chosen = crate::route::http::route(&routes, &matching).unwrap();
    rewrite::location(redirect, &chosen, &facts)
        .unwrap()
        .to_str()
        .unwrap()
        .to_owned()
}

#[test]
fn redirects_keep_what_they_do_not_name() {
    let base = || Redirect {
        path: None,
        authority: None,
        scheme: None,
        port: RedirectPort::Keep,
        status: StatusCode::MOVED_PERMANENTLY,
    };
    assert_eq!(
        location(&base(), "a.com:81", "/x", Some("q=1")),
        "http://a.com:81/x?q=1"
    );
    let secure = Redirect {
        scheme: Some("https".into()),
        ..base()
    };
    assert_eq!(location(&secure, "a.com:80", "/x", None), "https://a.com/x");
    assert_eq!(
        location(&secure, "a.com:8080", "/x", None),
        "https://a.com:8080/x"
    );
    let prefix = Redirect {
        path: Some(RedirectPath::Prefix("/new".into())),
        authority: Some("b.com".into()),
        ..base()
    };
    assert_eq!(
        location(&prefix, "a.com", "/old/x", Some("q")),
        "http://b.com/new/x?q"
    );
    let full = Redirect {
        path: Some(RedirectPath::Full("/there?z=2".into())),
        port: RedirectPort::Fixed(444),
        ..base()
    };
    assert_eq!(
        location(&full, "[::1]:80", "/old", Some("q")),
        "http://[::1]:444/there?z=2"
    );
    let derived = Redirect {
        port: RedirectPort::ProtocolDefault,
        ..base()
    };
    assert_eq!(
        location(&derived, "a.com:8080", "/x", None),
        "http://a.com/x"
    );
    let request = Redirect {
        port: RedirectPort::RequestPort,
        ..base()
    };
    assert_eq!(
        location(&request, "a.com", "/x", None),
        "http://a.com:8080/x"
    );
}
