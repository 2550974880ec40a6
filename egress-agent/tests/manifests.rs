//! The Kubernetes manifests: the API server would take them, the plain ones
//! are what the chart gives, and both agree with the agent.
//!
//! `EGRESS_UPDATE=1 cargo test -p egress-agent --test manifests` writes the
//! plain ones anew after a change of the chart.
#![cfg(feature = "kubernetes")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use egress_agent::settings::command::command;
use egress_agent::settings::{Settings, Sources, TABLE};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

const NAMESPACE: &str = "egress-system";

fn config() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../config")
}

fn documents(text: &str) -> Vec<Value> {
    text.split("\n---\n")
        .map(|part| serde_saphyr::from_str::<Value>(part).unwrap_or_else(|e| panic!("{e}\n{part}")))
        .filter(|value| !value.is_null())
        .collect()
}

fn file(name: &str) -> String {
    fs::read_to_string(config().join(name)).unwrap()
}

// A few of Helm's functions over Go's template language.

fn to_template(value: &Value) -> gtmpl::Value {
    match value {
        Value::Null => gtmpl::Value::Nil,
        Value::Bool(yes) => gtmpl::Value::Bool(*yes),
        Value::Number(number) => gtmpl::Value::Number(number.as_i64().unwrap().into()),
        Value::String(text) => gtmpl::Value::String(text.clone()),
        Value::Array(list) => gtmpl::Value::Array(list.iter().map(to_template).collect()),
        Value::Object(map) => {
            let pairs = map.iter().map(|(k, v)| (k.clone(), to_template(v)));
            gtmpl::Value::Map(pairs.collect::<HashMap<_, _>>())
        }
    }
}

fn from_template(value: &gtmpl::Value) -> Value {
    match value {
        gtmpl::Value::Bool(yes) => json!(yes),
        gtmpl::Value::String(text) => json!(text),
        gtmpl::Value::Number(number) => json!(number.as_i64().unwrap()),
        gtmpl::Value::Array(list) => list.iter().map(from_template).collect(),
        gtmpl::Value::Map(map) | gtmpl::Value::Object(map) => {
            let sorted: BTreeMap<_, _> = map
                .iter()
                .map(|(k, v)| (k.clone(), from_template(v)))
                .collect();
            json!(sorted)
        }
        _ => Value::Null,
    }
}

type Answer = Result<gtmpl::Value, gtmpl::FuncError>;

#[expect(
    clippy::unnecessary_wraps,
    reason = "the shape of a function of templates"
)]
fn quote(arguments: &[gtmpl::Value]) -> Answer {
    let text = match &arguments[0] {
        gtmpl::Value::String(text) => text.clone(),
        other => from_template(other).to_string(),
    };
    Ok(gtmpl::Value::String(json!(text).to_string()))
}

#[expect(
    clippy::unnecessary_wraps,
    reason = "the shape of a function of templates"
)]
fn to_yaml(arguments: &[gtmpl::Value]) -> Answer {
    let text = egress_agent::policy::yaml::to_yaml(&from_template(&arguments[0]));
    Ok(gtmpl::Value::String(text.trim_end().to_owned()))
}

#[expect(
    clippy::unnecessary_wraps,
    reason = "the shape of a function of templates"
)]
fn indent(arguments: &[gtmpl::Value]) -> Answer {
    let (gtmpl::Value::Number(width), gtmpl::Value::String(text)) = (&arguments[0], &arguments[1])
    else {
        panic!("indent {arguments:?}");
    };
    let space = " ".repeat(usize::try_from(width.as_u64().unwrap()).unwrap());
    let lines: Vec<String> = text.lines().map(|line| format!("{space}{line}")).collect();
    Ok(gtmpl::Value::String(lines.join("\n")))
}

/// One template with the chart's values, and others over them.
fn render(template: &str, change: impl FnOnce(&mut Value)) -> String {
    let text = file("helm/egress/values.yaml");
    let mut values: Value = serde_saphyr::from_str(&text).unwrap();
    change(&mut values);
    let context = json!({ "Values": values, "Release": { "Namespace": NAMESPACE } });
    let mut parsed = gtmpl::Template::default();
    parsed.add_func("quote", quote);
    parsed.add_func("toYaml", to_yaml);
    parsed.add_func("indent", indent);
    let source = file(&format!("helm/egress/templates/{template}"));
    parsed
        .parse(source)
        .unwrap_or_else(|e| panic!("{template}: {e}"));
    parsed
        .render(&gtmpl::Context::from(to_template(&context)))
        .unwrap_or_else(|e| panic!("{template}: {e}"))
}

fn all_of_the_chart() -> String {
    ["serviceaccount.yaml", "rbac.yaml", "daemonset.yaml"]
        .map(|template| render(template, |_| ()).trim().to_owned())
        .join("\n---\n")
}

/// Compares a plain manifest with what the chart gives, or writes it.
fn is_as_rendered(name: &str, rendered: &str) {
    let head = "# Made from the chart in config/helm by `EGRESS_UPDATE=1 cargo test -p egress-agent --test manifests`.\n";
    let text = format!("{head}{}\n", rendered.trim());
    let path = config().join("kubernetes").join(name);
    if std::env::var_os("EGRESS_UPDATE").is_some() {
        fs::write(&path, &text).unwrap();
    }
    let there = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        there == text,
        "{} is not what the chart gives",
        path.display()
    );
}

#[test]
fn the_plain_manifests_are_what_the_chart_gives() {
    is_as_rendered("egress.yaml", &all_of_the_chart());
    let monitor = render("podmonitor.yaml", |values| {
        values["podMonitor"]["enabled"] = json!(true);
    });
    is_as_rendered("podmonitor.yaml", &monitor);
    assert_eq!(render("podmonitor.yaml", |_| ()).trim(), "");
    assert_eq!(
        file("kubernetes/crds.yaml"),
        file("helm/egress/crds/istio.yaml")
    );

    let granted = render("rbac.yaml", |values| {
        values["secrets"] = json!([{
            "namespace": "payments", "names": ["partner-client", "partner-client-cacert"],
        }]);
    });
    let granted = documents(&granted);
    assert_eq!(
        granted[2..],
        documents(&file("kubernetes/secret-access.yaml"))
    );
}

#[test]
fn every_value_of_the_chart_has_its_effect() {
    let daemonset = render("daemonset.yaml", |values| {
        values["imagePullSecrets"] = json!([{ "name": "registry" }]);
        values["podAnnotations"] = json!({ "team": "network" });
        values["settings"] = json!({ "EGRESS_OUTBOUND": "registry-only" });
        values["image"]["tag"] = json!("9.9.9");
        values["metrics"]["port"] = json!(9999);
        values["paths"]["state"] = json!("/srv/egress");
    });
    let value = &documents(&daemonset)[0];
    accept::<DaemonSet>(value);
    let pod = &value["spec"]["template"];
    assert_eq!(pod["metadata"]["annotations"]["team"], "network");
    assert_eq!(pod["spec"]["imagePullSecrets"][0]["name"], "registry");
    let agent = &pod["spec"]["containers"][0];
    assert_eq!(agent["image"], "egress-agent:9.9.9");
    assert_eq!(agent["livenessProbe"]["httpGet"]["port"], 9999);
    let environment = agent["env"].as_array().unwrap();
    assert!(environment.contains(&json!({ "name": "EGRESS_OUTBOUND", "value": "registry-only" })));
    assert!(daemonset.contains("path: /srv/egress"));
}

/// Every field of `written` is in `read`.
fn contains(read: &Value, written: &Value, path: &str) {
    match (read, written) {
        (Value::Object(read), Value::Object(written)) => {
            for (key, value) in written {
                let inner = format!("{path}.{key}");
                let there = read.get(key);
                // An empty list or object may be left out when written again.
                let empty = value == &json!({}) || value == &json!([]);
                assert!(
                    there.is_some() || empty,
                    "{inner}: the API has no such field"
                );
                if let Some(there) = there {
                    contains(there, value, &inner);
                }
            }
        }
        (Value::Array(read), Value::Array(written)) => {
            assert_eq!(read.len(), written.len(), "{path}");
            for (n, (read, written)) in read.iter().zip(written).enumerate() {
                contains(read, written, &format!("{path}[{n}]"));
            }
        }
        // Bounds are numbers of any kind.
        (Value::Number(read), Value::Number(written)) => {
            assert_eq!(read.as_f64(), written.as_f64(), "{path}");
        }
        (read, written) => assert_eq!(read, written, "{path}"),
    }
}

fn accept<T: DeserializeOwned + Serialize>(value: &Value) {
    let name = &value["metadata"]["name"];
    let read: T = serde_json::from_value(value.clone()).unwrap_or_else(|e| panic!("{name}: {e}"));
    contains(
        &serde_json::to_value(read).unwrap(),
        value,
        &name.to_string(),
    );
}

fn plain() -> Vec<Value> {
    [
        "namespace.yaml",
        "crds.yaml",
        "egress.yaml",
        "podmonitor.yaml",
        "secret-access.yaml",
    ]
    .into_iter()
    .flat_map(|name| documents(&file(&format!("kubernetes/{name}"))))
    .collect()
}

#[test]
fn the_api_server_knows_every_field() {
    let mut kinds = BTreeSet::new();
    for value in plain() {
        let kind = value["kind"].as_str().unwrap().to_owned();
        match kind.as_str() {
            "Namespace" => accept::<Namespace>(&value),
            "ServiceAccount" => accept::<ServiceAccount>(&value),
            "ClusterRole" => accept::<ClusterRole>(&value),
            "ClusterRoleBinding" => accept::<ClusterRoleBinding>(&value),
            "Role" => accept::<Role>(&value),
            "RoleBinding" => accept::<RoleBinding>(&value),
            "DaemonSet" => accept::<DaemonSet>(&value),
            "CustomResourceDefinition" => accept::<CustomResourceDefinition>(&value),
            // Not the API server's own kind.
            "PodMonitor" => assert_eq!(value["apiVersion"], "monitoring.coreos.com/v1"),
            other => panic!("{other} is not checked"),
        }
        kinds.insert(kind);
    }
    assert_eq!(kinds.len(), 9, "{kinds:?}");
}

/// A structural schema (apiextensions `structural.Schema`): each node has a
/// type, and nothing is written that the server would refuse.
fn structural(schema: &Value, path: &str) {
    let kind = schema["type"]
        .as_str()
        .unwrap_or_else(|| panic!("{path}: no type"));
    match kind {
        "object" => {
            for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
                structural(inner, &format!("{path}.{name}"));
            }
            for name in schema["required"].as_array().into_iter().flatten() {
                let name = name.as_str().unwrap();
                assert!(schema["properties"].get(name).is_some(), "{path}: {name}");
            }
        }
        "array" => structural(&schema["items"], &format!("{path}[]")),
        "string" | "integer" | "boolean" | "number" => {}
        other => panic!("{path}: type {other}"),
    }
}

#[test]
fn the_kinds_that_we_ship_take_what_the_agent_takes() {
    let mut examples: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for entry in fs::read_dir(config().join("examples")).unwrap().flatten() {
        for document in documents(&fs::read_to_string(entry.path()).unwrap()) {
            let kind = document["kind"].as_str().unwrap().to_owned();
            examples.entry(kind).or_default().push(document);
        }
    }
    for crd in documents(&file("kubernetes/crds.yaml")) {
        let spec = &crd["spec"];
        let (group, plural) = (&spec["group"], &spec["names"]["plural"]);
        let name = format!("{}.{}", plural.as_str().unwrap(), group.as_str().unwrap());
        assert_eq!(crd["metadata"]["name"], name);
        let versions = spec["versions"].as_array().unwrap();
        let storage = versions.iter().filter(|v| v["storage"] == true).count();
        assert_eq!(storage, 1, "{name}");
        for version in versions {
            let schema = &version["schema"]["openAPIV3Schema"];
            structural(schema, &name);
            let kind = spec["names"]["kind"].as_str().unwrap();
            for example in examples.get(kind).into_iter().flatten() {
                matches(&schema["properties"]["spec"], &example["spec"], &name);
            }
        }
    }
}

/// A value as the server would check it.
fn matches(schema: &Value, value: &Value, path: &str) {
    match schema["type"].as_str().unwrap() {
        "object" => {
            let object = value
                .as_object()
                .unwrap_or_else(|| panic!("{path}: {value}"));
            for name in schema["required"].as_array().into_iter().flatten() {
                assert!(
                    object.contains_key(name.as_str().unwrap()),
                    "{path}: {name}"
                );
            }
            for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
                if let Some(value) = object.get(name) {
                    matches(inner, value, &format!("{path}.{name}"));
                }
            }
            // Else the server would prune what the agent needs to see.
            assert!(
                schema["x-kubernetes-preserve-unknown-fields"] == true,
                "{path} prunes"
            );
        }
        "array" => {
            for one in value
                .as_array()
                .unwrap_or_else(|| panic!("{path}: {value}"))
            {
                matches(&schema["items"], one, path);
            }
        }
        "string" => {
            let text = value.as_str().unwrap_or_else(|| panic!("{path}: {value}"));
            if let Some(words) = schema["enum"].as_array() {
                assert!(words.iter().any(|word| word == text), "{path}: {text}");
            }
        }
        "integer" => assert!(value.is_i64(), "{path}: {value}"),
        other => panic!("{path}: {other}"),
    }
}

#[test]
fn the_daemonset_agrees_with_the_agent() {
    let value = documents(&render("daemonset.yaml", |_| ())).remove(0);
    let pod = &value["spec"]["template"]["spec"];
    let agent = &pod["containers"][0];
    let mut environment = Vec::new();
    for variable in agent["env"].as_array().unwrap() {
        let name = variable["name"].as_str().unwrap();
        if name.starts_with("EGRESS_") {
            assert!(
                TABLE.iter().any(|setting| setting.variable() == name),
                "{name}"
            );
            let text = variable["value"].as_str().unwrap_or("node-1");
            environment.push((name.to_owned(), text.replace("$(POD_IP)", "192.0.2.7")));
        }
    }
    let matches = command()
        .try_get_matches_from(["egress-agent", "--settings", "/dev/null"])
        .unwrap();
    let settings: Settings = Sources::new(&matches, environment).load().unwrap().settings;
    assert!(settings.kubernetes.is_on());
    // A drain must fit in.
    let grace = pod["terminationGracePeriodSeconds"].as_u64().unwrap();
    assert!(grace > settings.drain_deadline.as_secs());
    // What must outlive the pod is on the node.
    let mounts: Vec<&str> = agent["volumeMounts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|mount| mount["mountPath"].as_str().unwrap())
        .collect();
    for path in [&settings.bpffs, &settings.state_dir, &settings.admin.0] {
        let under = |mount: &&str| path.starts_with(mount);
        assert!(
            mounts.iter().any(|mount| under(&mount)),
            "{}",
            path.display()
        );
    }
    assert_eq!(pod["volumes"].as_array().unwrap().len(), mounts.len());
    // The new pod of an update starts beside the old one.
    assert!(agent.get("ports").is_none());
    assert_eq!(
        value["spec"]["updateStrategy"]["rollingUpdate"]["maxSurge"],
        1
    );
    let context = &agent["securityContext"];
    assert!(context.get("privileged").is_none());
    assert_eq!(context["capabilities"]["drop"], json!(["ALL"]));
    assert_eq!(
        context["capabilities"]["add"],
        json!(["NET_ADMIN", "SYS_ADMIN", "SYS_PTRACE"])
    );
}

#[test]
fn the_roles_allow_no_secret_unnamed_and_nothing_to_be_changed() {
    for value in plain() {
        let kind = value["kind"].as_str().unwrap();
        if kind != "Role" && kind != "ClusterRole" {
            continue;
        }
        for rule in value["rules"].as_array().unwrap() {
            let words = |field: &str| -> Vec<String> {
                let list = rule[field].as_array().cloned().unwrap_or_default();
                list.iter()
                    .map(|w| w.as_str().unwrap().to_owned())
                    .collect()
            };
            for field in ["apiGroups", "resources", "verbs"] {
                assert!(!words(field).contains(&"*".to_owned()), "{rule}");
            }
            let resources = words("resources");
            if resources.contains(&"secrets".to_owned()) {
                assert!(!words("resourceNames").is_empty(), "{rule}");
            }
            for verb in words("verbs") {
                let reads = ["get", "list", "watch"].contains(&verb.as_str());
                let status = resources.iter().all(|r| r.ends_with("/status"));
                let tells =
                    (verb == "patch" && status) || (verb == "create" && resources == ["events"]);
                assert!(reads || tells, "{rule}");
            }
        }
    }
}
