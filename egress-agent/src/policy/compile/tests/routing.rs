//! VirtualServices, and what claims a host.

use super::*;

fn routes(view: &View) -> Vec<String> {
    let list = view.http.as_deref().unwrap();
    let name = |route: &crate::policy::routes::HttpRoute| match &route.action {
        HttpAction::Forward { destinations, .. } => destinations
            .iter()
            .map(|d| match &d.target {
                Target::Cluster(cluster) => format!(
                    "{}:{}/{}",
                    cluster.target.host, cluster.target.port, cluster.key.subset
                ),
                Target::Missing(why) => format!("missing: {why}"),
            })
            .collect::<Vec<_>>()
            .join(" "),
        other => format!("{other:?}"),
    };
    list.iter().map(name).collect()
}

#[test]
fn destinations_are_bound_to_clusters() {
    let text = entry("a", "shop", "a.example.com", HTTP, "resolution: DNS")
        + &entry(
            "b",
            "shop",
            "b.example.com",
            &format!("{HTTP}, {HTTPS}"),
            "resolution: DNS",
        )
        + &document(
            "DestinationRule",
            "b",
            "shop",
            "host: b.example.com\nsubsets: [{name: v1}]",
        )
        + &document(
            "VirtualService",
            "v",
            "shop",
            "hosts: [a.example.com]\nhttp:\n- match: [{uri: {regex: '/v\\d+'}, port: 80}, {port: 81}]\n  route: [{destination: {host: b.example.com, port: {number: 443}, subset: v1}}]\n- match: [{port: 8080}]\n  route: [{destination: {host: b.example.com}}]\n- match: [{gateways: [x/y]}]\n  route: [{destination: {host: b.example.com}}]\n- route: [{destination: {host: b.example.com}}, {destination: {host: b.example.com, subset: none}, weight: 1}, {destination: {host: c.example.com}}, {destination: {host: b.example.com, port: {number: 9}}}]\n",
        );
    let (snapshot, problems) = build(&text);
    let view = &service(&snapshot, "a.example.com", 80).views[0];
    assert_eq!(
        routes(view),
        [
            "b.example.com:443/v1",
            "b.example.com:80/ missing: no DestinationRule gives b.example.com the subset none missing: no ServiceEntry registers c.example.com missing: b.example.com has no port 9"
        ]
    );
    let first = &view.http.as_deref().unwrap()[0];
    assert_eq!(first.matches.len(), 1);
    let Some(StringMatch::Regex(regex)) = &first.matches[0].uri else {
        panic!()
    };
    assert!(regex.is_match("/v12") && !regex.is_match("/v12/"));
    assert_eq!(
        rules(&problems),
        ["subset-unknown", "destination-unknown", "port-unknown"]
    );
}

#[test]
fn https_ports_get_both_kinds_of_routes() {
    let text = entry("a", "shop", "a.example.com", HTTPS, "resolution: DNS")
        + &document(
            "VirtualService",
            "v",
            "shop",
            "hosts: [a.example.com]\nhttp: [{route: [{destination: {host: a.example.com}}]}]\ntls: [{match: [{sniHosts: [a.example.com]}], route: [{destination: {host: a.example.com}}]}]",
        );
    let (snapshot, _) = build(&text);
    let view = &service(&snapshot, "a.example.com", 443).views[0];
    assert!(view.http.is_some() && view.tls.is_some() && view.tcp.is_none());
}

#[test]
fn a_closer_host_and_a_narrower_export_win_among_virtual_services() {
    let v = |name: &str, namespace: &str, host: &str, to: &str| {
        let spec = format!(
            "hosts: [\"{host}\"]\nexportTo: [\"{to}\"]\nhttp: [{{route: [{{destination: {{host: a.example.com}}}}]}}]"
        );
        document("VirtualService", name, namespace, &spec)
    };
    let text = entry("a", "shop", "a.example.com", HTTP, "resolution: DNS")
        + &v("a-public", "shop", "a.example.com", "*")
        + &v("b-private", "mine", "a.example.com", ".")
        + &v("c-exported", "shop", "a.example.com", "friend")
        + &v("d-wide", "friend", "*.example.com", ".");
    let (snapshot, _) = build(&text);
    let service = service(&snapshot, "a.example.com", 80);
    let name = |namespace: &str| {
        view(service, namespace)
            .virtual_service
            .as_ref()
            .unwrap()
            .name
            .to_string()
    };
    assert_eq!(name("any"), "a-public");
    assert_eq!(name("mine"), "b-private");
    assert_eq!(name("friend"), "c-exported");
    let lost = &snapshot.lost[&service.id];
    assert!(
        lost.iter()
            .any(|l| &*l.document.name == "d-wide" && l.namespace.as_deref() == Some("friend")),
        "{lost:?}"
    );
}

#[test]
fn a_virtual_service_names_a_part_of_a_wildcard() {
    let text = entry(
        "a",
        "shop",
        "*.example.com",
        &format!("{HTTP}, {HTTPS}"),
        "resolution: NONE",
    ) + &document(
        "VirtualService",
        "v",
        "shop",
        "hosts: [x.example.com]\nhttp: [{timeout: 3s, route: [{destination: {host: \"*.example.com\"}}]}]",
    );
    let (snapshot, problems) = build(&text);
    assert!(problems.is_empty(), "{problems:?}");
    let part = service(&snapshot, "x.example.com", 80);
    let whole = service(&snapshot, "*.example.com", 80);
    assert!(Arc::ptr_eq(&part.views[0].cluster, &whole.views[0].cluster));
    assert!(part.views[0].http.is_some() && whole.views[0].http.is_none());
    assert_eq!(snapshot.services_of("x.example.com", "shop").count(), 2);
    assert_eq!(snapshot.services_of("y.example.com", "shop").count(), 2);
}

#[test]
fn a_host_that_nothing_registers_is_http_on_port_80() {
    let text = entry("a", "shop", "a.example.com", HTTP, "resolution: DNS")
        + &document(
            "VirtualService",
            "v",
            "shop",
            "hosts: [old.example.com, reviews]\nhttp: [{route: [{destination: {host: a.example.com}}]}]",
        );
    let (snapshot, problems) = build(&text);
    let old = service(&snapshot, "old.example.com", 80);
    assert_eq!(old.entry.kind, "VirtualService");
    assert_eq!(routes(&old.views[0]), ["a.example.com:80/"]);
    assert!(old.virtual_address);
    assert_eq!(snapshot.services.len(), 2);
    assert_eq!(rules(&problems), ["cluster-host"]);
}

#[test]
fn two_entries_that_claim_one_host() {
    let text = entry("b", "shop", "a.example.com", HTTP, "resolution: DNS")
        + &entry(
            "a",
            "shop",
            "a.example.com",
            &format!("{HTTP}, {HTTPS}"),
            "resolution: STATIC\nendpoints: [{address: 192.0.2.1}]",
        )
        + &entry("c", "other", "a.example.com", HTTP, "resolution: DNS");
    let (snapshot, problems) = build(&text);
    assert_eq!(snapshot.services.len(), 3);
    let own: Vec<_> = snapshot.services_of("a.example.com", "other").collect();
    assert_eq!(own.len(), 2);
    assert_eq!(rules(&problems), ["host-claimed", "host-claimed"]);
}
