//! The paths of the admin API.

use http::{Method, StatusCode};
use serde::Serialize;

use super::api::{AdminApi, ApiError};
use super::connection::{Answer, Asked, content, failure, json};
use super::query::Query;

/// Answers a request to the admin socket.
pub(super) async fn answer(api: &dyn AdminApi, asked: Asked) -> Answer {
    let Asked { head, body } = asked;
    let query = Query::parse(head.uri.query().unwrap_or_default());
    let path = head.uri.path();
    let Some(known) = ROUTES.iter().find(|route| route.0 == path) else {
        return failure(StatusCode::NOT_FOUND, &format!("there is no {path}"));
    };
    let (_, methods, parameters) = known;
    if !methods.contains(&head.method) {
        let text = format!("{path} takes {}", list(methods));
        return failure(StatusCode::METHOD_NOT_ALLOWED, &text);
    }
    if let Some(unknown) = query.unknown(parameters) {
        let text = format!(
            "{path} has no parameter `{unknown}`; it has {}",
            if parameters.is_empty() {
                "none".to_owned()
            } else {
                parameters.join(", ")
            }
        );
        return failure(StatusCode::BAD_REQUEST, &text);
    }
    match (&head.method, path) {
        (_, "/v1/status") => reply(Ok(api.status())),
        (_, "/v1/services") => reply(api.services(&query)),
        (_, "/v1/endpoints") => reply(api.endpoints(&query)),
        (_, "/v1/routes") => reply(api.routes(&query)),
        (_, "/v1/secrets") => reply(api.secrets(&query)),
        (_, "/v1/dns") => reply(api.dns(&query)),
        (method, "/v1/unregistered") if *method == Method::DELETE => reply(api.forget_observed()),
        (_, "/v1/unregistered") => reply(api.observe(&query)),
        (_, "/v1/stats") => match api.metrics() {
            Ok(text) => content(StatusCode::OK, super::metrics::OPEN_METRICS, text),
            Err(error) => refuse(&error),
        },
        (_, "/v1/explain") => reply(api.explain(&query).await),
        (_, "/v1/drain") => reply(api.drain()),
        (_, "/v1/log") => match String::from_utf8(body.to_vec()) {
            Ok(filter) => reply(api.set_log(filter.trim())),
            Err(_) => failure(StatusCode::BAD_REQUEST, "the filter is not UTF-8"),
        },
        (method, "/v1/documents") if *method == Method::GET => reply(api.documents(&query).await),
        (method, "/v1/documents") => match String::from_utf8(body.to_vec()) {
            Ok(text) if *method == Method::DELETE => reply(api.delete(text, &query).await),
            Ok(text) => reply(api.apply(text, &query).await),
            Err(_) => failure(StatusCode::BAD_REQUEST, "the documents are not UTF-8"),
        },
        _ => failure(StatusCode::NOT_FOUND, &format!("there is no {path}")),
    }
}

const SELECT: &[&str] = &["host", "namespace"];

/// Path, methods, parameters.
const ROUTES: &[(&str, &[Method], &[&str])] = &[
    ("/v1/status", &[Method::GET], &[]),
    ("/v1/services", &[Method::GET], SELECT),
    ("/v1/endpoints", &[Method::GET], SELECT),
    ("/v1/routes", &[Method::GET], SELECT),
    ("/v1/secrets", &[Method::GET], SELECT),
    ("/v1/dns", &[Method::GET], SELECT),
    (
        "/v1/unregistered",
        &[Method::GET, Method::DELETE],
        &["namespace"],
    ),
    (
        "/v1/documents",
        &[Method::GET, Method::POST, Method::DELETE],
        &["kind", "name", "namespace", "dry-run"],
    ),
    (
        "/v1/explain",
        &[Method::GET],
        &["target", "from", "method", "headers", "connect"],
    ),
    ("/v1/stats", &[Method::GET], &[]),
    ("/v1/drain", &[Method::POST], &[]),
    ("/v1/log", &[Method::PUT], &[]),
];

fn list(methods: &[Method]) -> String {
    let names: Vec<&str> = methods.iter().map(Method::as_str).collect();
    names.join(", ")
}

fn reply<T: Serialize>(result: Result<T, ApiError>) -> Answer {
    match result {
        Ok(value) => json(StatusCode::OK, &value),
        Err(error) => refuse(&error),
    }
}

fn refuse(error: &ApiError) -> Answer {
    let status = match error {
        ApiError::NotServed => StatusCode::NOT_IMPLEMENTED,
        ApiError::NotFound(_) => StatusCode::NOT_FOUND,
        ApiError::Invalid(_) => StatusCode::BAD_REQUEST,
        ApiError::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
        ApiError::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
    };
    failure(status, &error.to_string())
}
