//! Header operations and their templates.

use super::*;

fn variables(method: &Method) -> Variables<'_> {
    Variables {
        remote: "10.0.0.1:5000".parse().unwrap(),
        dialled: "240.240.0.9:80".parse().unwrap(),
        start: SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_123),
        version: Version::HTTP_11,
        method,
        path: "/p?q",
        authority: "a.com",
        cluster: None,
        route: "r",
        upstream: None,
        request: None,
        saved: &[],
        status: None,
        response: None,
    }
}

fn template(text: &str) -> HeaderTemplate {
    // Text and variables in turn, as the policy's compiler makes them.
    HeaderTemplate::Parts(
        text.split('%')
            .enumerate()
            .map(|(i, part)| {
                if i % 2 == 0 {
                    TemplatePart::Text(part.into())
                } else {
                    TemplatePart::Variable(part.into())
                }
            })
            .collect(),
    )
}

fn filled(text: &str, variables: &Variables<'_>) -> String {
    let value = fill(&template(text), variables).unwrap();
    value.to_str().unwrap().to_owned()
}

#[test]
fn variables_are_filled_and_unknown_ones_stay() {
    let method = Method::GET;
    let mut headers = HeaderMap::new();
    headers.insert("x-b", HeaderValue::from_static("bee"));
    let variables = Variables {
        request: Some(&headers),
        upstream: Some("203.0.113.10:443".parse().unwrap()),
        status: Some(StatusCode::NOT_FOUND),
        ..variables(&method)
    };
    let check = |text, want| assert_eq!(filled(text, &variables), want);
    check("%DOWNSTREAM_REMOTE_ADDRESS%", "10.0.0.1:5000");
    check(
        "a-%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%-b",
        "a-10.0.0.1-b",
    );
    check("%DOWNSTREAM_LOCAL_ADDRESS%", "240.240.0.9:80");
    check("%START_TIME%", "2023-11-14T22:13:20.123Z");
    check("%PROTOCOL%", "HTTP/1.1");
    check("%REQ(X-A?X-B)%", "bee");
    check("%REQ(X-B):2%", "be");
    check("%REQ(x-none)%", "-");
    check("%REQ(:path)% %REQ(:authority)%", "/p?q a.com");
    check("%UPSTREAM_HOST%", "203.0.113.10:443");
    check("%RESPONSE_CODE%", "404");
    check("%ROUTE_NAME%", "r");
    check("%NOT_A_THING%", "%NOT_A_THING%");
    assert!(!filled("%HOSTNAME%", &variables).is_empty());
    let format = HeaderTemplate::Parts(vec![TemplatePart::Variable("START_TIME(%s.%3f)".into())]);
    assert_eq!(fill(&format, &variables).unwrap(), "1700000000.123");
}

#[test]
fn operations_run_in_the_order_set_add_remove() {
    let method = Method::GET;
    let name = |text| HeaderName::from_static(text);
    let fixed = |text| HeaderTemplate::Fixed(HeaderValue::from_static(text));
    let list = HeaderList {
        set: vec![
            (name("a"), fixed("set")),
            (name("c"), template("%REQ(b)%!")),
        ],
        add: vec![(name("a"), fixed("added")), (name("gone"), fixed("x"))],
        remove: vec![name("gone"), name("b")],
    };
    let mut headers = HeaderMap::new();
    headers.insert("a", HeaderValue::from_static("old"));
    headers.insert("b", HeaderValue::from_static("bee"));
    apply_request(&list, &mut headers, &variables(&method));
    let all: Vec<_> = headers
        .iter()
        .map(|(n, v)| (n.as_str(), v.to_str().unwrap()))
        .collect();
    assert_eq!(all, [("a", "set"), ("a", "added"), ("c", "bee!")]);
}

#[test]
fn a_response_can_speak_of_the_request() {
    let method = Method::GET;
    let ops = HeaderOps {
        response: HeaderList {
            set: vec![(
                HeaderName::from_static("x-echo"),
                template("%REQ(x-b)% %RESP(x-r)%"),
            )],
            ..HeaderList::default()
        },
        ..HeaderOps::default()
    };
    let mut request = HeaderMap::new();
    request.insert("x-b", HeaderValue::from_static("bee"));
    let saved = save(
        [&ops].into_iter(),
        &Variables {
            request: Some(&request),
            ..variables(&method)
        },
    );
    drop(request);
    let mut response = HeaderMap::new();
    response.insert("x-r", HeaderValue::from_static("are"));
    let variables = Variables {
        saved: &saved,
        status: Some(StatusCode::OK),
        ..variables(&method)
    };
    apply_response(&ops.response, &mut response, &variables);
    assert_eq!(response["x-echo"], "bee are");
}
