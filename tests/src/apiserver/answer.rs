//! Discovery, reads and writes.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Instant;

use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};

use super::Seen;
use super::body::{Answer, failure, refuse, whole};
use super::request::{Place, parameters, place, selected};
use super::state::Shared;
use super::watch::open;

const GROUP: &str = "networking.istio.io";
const KINDS: [(&str, &str); 3] = [
    ("ServiceEntry", "serviceentries"),
    ("DestinationRule", "destinationrules"),
    ("VirtualService", "virtualservices"),
];

pub(super) async fn answer(
    shared: Arc<Shared>,
    request: Request<Incoming>,
) -> Result<Response<Answer>, Infallible> {
    let path = request.uri().path().to_owned();
    let query = request.uri().query().unwrap_or_default().to_owned();
    let method = request.method().clone();
    let authorized = request
        .headers()
        .get(hyper::header::AUTHORIZATION)
        .is_some_and(|value| value == "Bearer lab-token");
    let manners = {
        let mut state = shared.state();
        state.seen.push(Seen {
            method: method.to_string(),
            path: if query.is_empty() {
                path.clone()
            } else {
                format!("{path}?{query}")
            },
            at: Instant::now(),
        });
        state.manners.clone()
    };
    if !authorized {
        return Ok(refuse(401, "Unauthorized", "Unauthorized"));
    }
    if let Some(seconds) = manners.busy {
        let mut status = failure(429, "TooManyRequests", "too many requests");
        status["details"] = json!({ "retryAfterSeconds": seconds });
        return Ok(whole(StatusCode::TOO_MANY_REQUESTS, &status));
    }
    let forbidden = manners.forbid.as_ref();
    if forbidden.is_some_and(|part| path.contains(part)) {
        return Ok(refuse(403, "Forbidden", &format!("{path} is forbidden")));
    }
    if path.starts_with(&format!("/apis/{GROUP}"))
        && manners
            .istio
            .is_none_or(|version| !path.starts_with(&format!("/apis/{GROUP}/{version}")))
    {
        return Ok(refuse(
            404,
            "NotFound",
            "the server could not find the requested resource",
        ));
    }
    if let Some(version) = manners.istio
        && path == format!("/apis/{GROUP}/{version}")
    {
        return Ok(whole(StatusCode::OK, &resources(version)));
    }
    let Some(place) = place(&path) else {
        return Ok(refuse(404, "NotFound", &path));
    };
    let parameters = parameters(&query);
    Ok(match method {
        Method::GET if !place.name.is_empty() => get(&shared, &place),
        Method::GET if parameters.get("watch").is_some_and(|w| w == "true") => {
            open(&shared, place, &parameters, &manners)
        }
        Method::GET => list(&shared, &place, &parameters),
        Method::POST | Method::PATCH => {
            let bytes = request.into_body().collect().await;
            let bytes = bytes.map(http_body_util::Collected::to_bytes);
            let value = bytes.ok().and_then(|b| serde_json::from_slice(&b).ok());
            match value {
                Some(value) => write(&shared, &method, &place, value),
                None => refuse(400, "BadRequest", "not JSON"),
            }
        }
        _ => refuse(405, "MethodNotAllowed", "not here"),
    })
}

fn resources(version: &str) -> Value {
    let verbs = ["get", "list", "watch", "patch"];
    let mut list = Vec::new();
    for (kind, plural) in KINDS {
        for name in [plural.to_owned(), format!("{plural}/status")] {
            list.push(json!({
                "name": name, "singularName": "", "namespaced": true, "kind": kind, "verbs": verbs,
            }));
        }
    }
    json!({
        "kind": "APIResourceList", "apiVersion": "v1",
        "groupVersion": format!("{GROUP}/{version}"), "resources": list,
    })
}

fn get(shared: &Shared, place: &Place) -> Response<Answer> {
    let key = (
        place.plural.clone(),
        place.namespace.clone(),
        place.name.clone(),
    );
    match shared.state().objects.get(&key) {
        Some(object) => whole(StatusCode::OK, object),
        None => refuse(404, "NotFound", &format!("{} not found", place.name)),
    }
}

fn list(shared: &Shared, place: &Place, parameters: &BTreeMap<String, String>) -> Response<Answer> {
    let mut state = shared.state();
    let limit: usize = parameters
        .get("limit")
        .and_then(|limit| limit.parse().ok())
        .unwrap_or(usize::MAX);
    let (version, mut items) = if let Some(token) = parameters.get("continue") {
        match state.pages.remove(token) {
            Some(page) => page,
            None => return refuse(410, "Expired", "the continue parameter is too old"),
        }
    } else {
        let selector = parameters.get("fieldSelector");
        let items: Vec<Value> = state
            .objects
            .iter()
            .filter(|((plural, namespace, _), _)| {
                *plural == place.plural
                    && (place.namespace.is_empty() || *namespace == place.namespace)
            })
            .map(|(_, object)| object.clone())
            .filter(|object| selected(selector, object))
            .collect();
        (state.version, items)
    };
    let mut meta = json!({ "resourceVersion": version.to_string() });
    if items.len() > limit {
        let rest = items.split_off(limit);
        let token = format!("page-{version}-{}", rest.len());
        meta["continue"] = json!(token);
        state.pages.insert(token, (version, rest));
    }
    drop(state);
    whole(
        StatusCode::OK,
        &json!({
            "kind": "List", "apiVersion": place.api_version, "metadata": meta, "items": items,
        }),
    )
}

fn write(shared: &Arc<Shared>, method: &Method, place: &Place, value: Value) -> Response<Answer> {
    let mut state = shared.state();
    let name = match *method {
        Method::POST => value["metadata"]["name"]
            .as_str()
            .unwrap_or_default()
            .to_owned(),
        _ => place.name.clone(),
    };
    let key = (place.plural.clone(), place.namespace.clone(), name);
    let old = state.objects.get(&key).cloned();
    let (kind, mut object) = match (method, old) {
        (&Method::POST, Some(_)) => return refuse(409, "AlreadyExists", "it is there"),
        (&Method::POST, None) => {
            let long = value["message"].as_str().is_some_and(|m| m.len() > 1024);
            if long {
                return refuse(422, "Invalid", "message: can have at most 1024 bytes");
            }
            ("ADDED", value)
        }
        (_, None) => return refuse(404, "NotFound", "no such object"),
        (_, Some(mut old)) => {
            let stands = old["metadata"]["resourceVersion"].clone();
            let expected = &value["metadata"]["resourceVersion"];
            if !expected.is_null() && *expected != stands {
                return refuse(409, "Conflict", "the object has been modified");
            }
            if place.status {
                old["status"] = value["status"].clone();
            } else {
                old["spec"] = value["spec"].clone();
            }
            ("MODIFIED", old)
        }
    };
    state.version += 1;
    let version = state.version;
    object["metadata"]["resourceVersion"] = json!(version.to_string());
    state.objects.insert(key.clone(), object.clone());
    state.change(version, kind, key, object.clone());
    let told = (state.version, state.era);
    drop(state);
    shared.changed.send_replace(told);
    whole(StatusCode::OK, &object)
}
