//! The report for people.

use std::fmt::Write;

use super::report::{Cluster, Connection, Document, Explanation, Route, Setting, Tls, Traffic};

/// Width of the column of titles.
const TITLE: usize = 13;
const BOLD: &str = "\u{1b}[1m";
const YELLOW: &str = "\u{1b}[33m";
const DIM: &str = "\u{1b}[2m";
const PLAIN: &str = "\u{1b}[0m";

/// Writes a report, with styles that anstream takes out where they cannot be
/// shown.
pub fn text(report: &Explanation) -> String {
    let mut page = Page::default();
    let _ = writeln!(page.out, "{BOLD}{}{PLAIN}", safe(&report.target));
    caller(&mut page, report);
    if let Some(nothing) = &report.unregistered {
        page.section("Service", &format!("not registered: {}", nothing.reason));
        page.section("Outcome", &nothing.outcome);
        for (at, suggestion) in nothing.suggestions.iter().enumerate() {
            page.section(if at == 0 { "Registered" } else { "" }, suggestion);
        }
        return page.out;
    }
    service(&mut page, report);
    documents(&mut page, report);
    if let Some(path) = &report.path {
        page.section(
            "Path",
            &format!("{BOLD}{}{PLAIN}: {}", path.path, path.reason),
        );
        let down = &path.while_agent_is_down;
        match path.on_agent_failure.as_str() {
            "" if path.path == "refused" => {}
            "" => page.line(&format!("while the agent is down: {down}")),
            word => page.line(&format!("while the agent is down: {word}, {down}")),
        }
    }
    for one in &report.traffic {
        traffic(&mut page, one);
    }
    for one in &report.clusters {
        cluster(&mut page, one, report.clusters.len() > 1);
    }
    for one in &report.connections {
        connection(&mut page, one);
    }
    for warning in &report.warnings {
        page.styled(YELLOW, "Warning", warning);
    }
    page.out
}

/// Lines behind a column of titles.
#[derive(Default)]
struct Page {
    out: String,
}

impl Page {
    fn section(&mut self, title: &str, text: &str) {
        self.styled("", title, text);
    }

    fn styled(&mut self, style: &str, title: &str, text: &str) {
        let title = format!("{title:<TITLE$}");
        let end = if style.is_empty() { "" } else { PLAIN };
        let line = format!("{style}{title}{end}{}", safe(text));
        let _ = writeln!(self.out, "{}", line.trim_end());
    }

    fn line(&mut self, text: &str) {
        self.section("", text);
    }
}

/// What comes from documents never steers the terminal; our own styles do.
fn safe(text: &str) -> String {
    let own = [BOLD, YELLOW, DIM, PLAIN];
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if let Some(style) = own.iter().find(|style| rest.starts_with(**style)) {
            out.push_str(style);
            rest = rest.get(style.len()..).unwrap_or_default();
            continue;
        }
        if c.is_control() {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
        rest = rest.get(c.len_utf8()..).unwrap_or_default();
    }
    out
}

fn at(document: &Document) -> String {
    format!(
        "{} {}/{} {DIM}({}:{}){PLAIN}",
        document.kind, document.namespace, document.name, document.source, document.line
    )
}

fn caller(page: &mut Page, report: &Explanation) {
    let caller = &report.caller;
    let mut text = format!("namespace {}", caller.namespace);
    if !caller.labels.is_empty() {
        let labels: Vec<String> = caller
            .labels
            .iter()
            .map(|(k, v)| format!("{k}={v}"))
            .collect();
        let _ = write!(text, ", labels {}", labels.join(","));
    }
    if let Some(name) = &caller.name {
        let _ = write!(text, " ({name})");
    }
    page.section("From", &text);
}

fn service(page: &mut Page, report: &Explanation) {
    let Some(service) = &report.service else {
        return;
    };
    let mut text = format!(
        "{BOLD}{}:{}{PLAIN}, {}",
        service.host, service.port, service.protocol
    );
    if !service.port_name.is_empty() {
        let _ = write!(text, " (port name {})", service.port_name);
    }
    page.section("Service", &text);
    let visible = match service.export_to.as_slice() {
        [all] if all == "*" => "all namespaces".to_owned(),
        [] => "no namespace".to_owned(),
        list => format!("namespaces {}", list.join(", ")),
    };
    page.line(&format!("visible to {visible}"));
    page.line(&format!(
        "recognized by {}",
        service.recognized_by.join(", ")
    ));
}

fn documents(page: &mut Page, report: &Explanation) {
    for (number, document) in report.documents.iter().enumerate() {
        page.section(if number == 0 { "Policy" } else { "" }, &at(document));
    }
    for (number, lost) in report.lost.iter().enumerate() {
        page.section(
            if number == 0 { "Not acting" } else { "" },
            &at(&lost.document),
        );
        page.line(&format!("  {}", lost.reason));
    }
}

fn traffic(page: &mut Page, traffic: &Traffic) {
    let speaks = match traffic.speaks.as_str() {
        "http" => "cleartext HTTP",
        "tls" => "TLS of its own",
        _ => "bytes of any kind",
    };
    let title = if traffic.asked { "Application" } else { "  or" };
    page.section(title, &format!("speaks {speaks}"));
    page.line(&format!("routing: {}", traffic.routing));
    for one in &traffic.routes {
        route(page, one);
    }
    page.line(&format!("to the service: {}", traffic.wire));
}

fn route(page: &mut Page, route: &Route) {
    let name = if route.name.is_empty() {
        String::new()
    } else {
        format!(" {:?}", route.name)
    };
    let matches = if route.matches.is_empty() {
        "everything".to_owned()
    } else {
        route.matches.join(", or ")
    };
    page.line(&format!(
        "  route {} of {}{name}: {matches}",
        route.number, route.of
    ));
    if let Some(answer) = &route.answer {
        page.line(&format!("    answered by the agent: {answer}"));
    }
    for destination in &route.destinations {
        let share = if route.destinations.len() > 1 {
            format!("{}% ", destination.percent)
        } else {
            String::new()
        };
        let missing = if destination.missing { ": 503 NC" } else { "" };
        page.line(&format!("    {share}to {}{missing}", destination.cluster));
    }
    settings(page, "    ", &route.actions);
}

fn settings(page: &mut Page, indent: &str, list: &[Setting]) {
    for setting in list {
        page.line(&format!("{indent}{}", written(setting)));
    }
}

fn written(setting: &Setting) -> String {
    let default = if setting.default {
        format!(" {DIM}(default){PLAIN}")
    } else {
        String::new()
    };
    format!("{}: {}{default}", setting.field, setting.value)
}

fn section(page: &mut Page, title: &str, list: &[Setting]) {
    for (number, setting) in list.iter().enumerate() {
        page.section(if number == 0 { title } else { "" }, &written(setting));
    }
}

fn cluster(page: &mut Page, cluster: &Cluster, several: bool) {
    if several {
        page.section("", "");
        page.section("To", &format!("{BOLD}{}{PLAIN}", cluster.name));
    }
    page.section(
        "Resolution",
        &format!("{}: {}", cluster.resolution, cluster.resolved),
    );
    for (number, endpoint) in cluster.endpoints.iter().enumerate() {
        let mut text = endpoint.address.clone();
        if let Some(name) = &endpoint.resolved_from {
            let _ = write!(text, " ({name})");
        }
        if let Some(health) = &endpoint.health {
            let _ = write!(text, ", {health}");
        }
        if let Some(detail) = &endpoint.detail {
            let _ = write!(text, " ({detail})");
        }
        if let Some(count) = endpoint.connections {
            let _ = write!(text, ", {count} open");
        }
        if endpoint.weight != 1 {
            let _ = write!(text, ", weight {}", endpoint.weight);
        }
        if !endpoint.locality.is_empty() {
            let _ = write!(text, ", {}", endpoint.locality);
        }
        if !endpoint.labels.is_empty() {
            let labels: Vec<String> = endpoint
                .labels
                .iter()
                .map(|(key, value)| format!("{key}={value}"))
                .collect();
            let _ = write!(text, ", {}", labels.join(","));
        }
        page.section(if number == 0 { "Endpoints" } else { "" }, &text);
    }
    section(page, "Balancing", &cluster.load_balancer);
    section(page, "Limits", &cluster.limits);
    if cluster.health.is_empty() {
        page.section("Ejection", "none: no outlierDetection");
    }
    section(page, "Ejection", &cluster.health);
    if let Some(tls) = &cluster.tls {
        self::tls(page, tls);
    }
}

fn connection(page: &mut Page, one: &Connection) {
    let local = one.local.as_deref().map(|from| format!(" from {from}"));
    let local = local.unwrap_or_default();
    if let Some(error) = &one.error {
        page.styled(YELLOW, "Connect", &format!("{} failed", one.endpoint));
        page.line(error);
        return;
    }
    let Some(tls) = &one.tls else {
        let text = format!("{}{local}: connected in the clear", one.endpoint);
        page.section("Connect", &text);
        page.line(&format!("time: TCP {:.1} ms", one.tcp_ms));
        return;
    };
    let text = format!("{}{local}: {}, {}", one.endpoint, tls.version, tls.cipher);
    page.section("Connect", &text);
    page.line(&format!(
        "time: TCP {:.1} ms, TLS {:.1} ms",
        one.tcp_ms, one.tls_ms
    ));
    page.line(&format!(
        "SNI: {}",
        tls.sni.as_deref().unwrap_or("none (an address)")
    ));
    page.line(&format!("ALPN: {}", tls.alpn.as_deref().unwrap_or("none")));
    page.line(&format!(
        "client certificate: {}",
        tls.client_certificate.as_deref().unwrap_or("none")
    ));
    for (place, certificate) in tls.chain.iter().enumerate() {
        page.line(&format!(
            "chain {place}: {}, issued by {}, serial {}",
            certificate.subject, certificate.issuer, certificate.serial
        ));
        page.line(&format!(
            "  until {} ({} days)",
            certificate.not_after, certificate.days_left
        ));
        if !certificate.names.is_empty() {
            page.line(&format!("  names: {}", certificate.names.join(", ")));
        }
    }
}

fn tls(page: &mut Page, tls: &Tls) {
    let implied = if tls.implied {
        ", since the port is declared HTTPS or TLS and no DestinationRule says otherwise"
    } else {
        ""
    };
    page.section("TLS", &format!("{}{implied}", tls.mode));
    if let Some(protocol) = &tls.starttls {
        page.line(&format!("starts within {protocol}"));
    }
    page.line(&format!("SNI: {}", tls.sni));
    let names = if tls.accepted_names.is_empty() {
        "any".to_owned()
    } else {
        tls.accepted_names.join(", ")
    };
    page.line(&format!("names accepted: {names}"));
    page.line(&format!("trust: {}", tls.trust));
    page.line(&format!(
        "client certificate: {}",
        tls.client_certificate.as_deref().unwrap_or("none")
    ));
    if !tls.credential_namespaces.is_empty() {
        page.line(&format!(
            "credential looked for in namespaces {}",
            tls.credential_namespaces.join(", ")
        ));
    }
    page.line(&format!("versions: {}", tls.versions));
    if !tls.cipher_suites.is_empty() {
        page.line(&format!("cipher suites: {}", tls.cipher_suites.join(", ")));
    }
}
