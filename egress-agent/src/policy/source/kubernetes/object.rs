//! From an object of the API server to the text of a document.

use std::hash::Hasher;
use std::sync::Arc;
use std::time::SystemTime;

use kube::core::{ApiResource, DynamicObject};
use serde_json::{Map, Value, json};
use twox_hash::XxHash64;

use crate::policy::yaml::to_yaml;

/// Left out of the text: it repeats the document.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// A document as it stands in the API server.
#[derive(Clone, Debug)]
pub struct Object {
    /// `KIND/NAMESPACE/NAME`.
    pub name: Arc<str>,
    /// When it was changed, by the server's account.
    pub modified: SystemTime,
    /// The document as YAML.
    pub text: String,
    /// What reports need.
    pub meta: Meta,
}

/// What reports on an object need.
#[derive(Clone, PartialEq, Debug)]
pub struct Meta {
    /// Version and plural.
    pub resource: ApiResource,
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.generation`.
    pub generation: i64,
    /// `metadata.resourceVersion`.
    pub version: String,
    /// `status.conditions`.
    pub conditions: Vec<Value>,
}

/// Of a text, to see whether it changed.
pub fn hash(text: &str) -> u64 {
    let mut hasher = XxHash64::with_seed(0);
    hasher.write(text.as_bytes());
    hasher.finish()
}

/// What a document is called in messages.
pub fn name_of(kind: &str, namespace: &str, name: &str) -> Arc<str> {
    format!("{kind}/{namespace}/{name}").into()
}

impl Object {
    /// Reads an object. Its `status` and what the server keeps for itself are
    /// left out of the text.
    pub fn read(resource: &ApiResource, object: DynamicObject) -> Self {
        let meta = object.metadata;
        let namespace = meta.namespace.unwrap_or_default();
        let name = meta.name.unwrap_or_default();
        let created = meta.creation_timestamp.map(|time| time.0);
        // A write to the status changes nothing that we read.
        let written = meta
            .managed_fields
            .iter()
            .flatten()
            .filter(|field| field.subresource.is_none())
            .filter_map(|field| field.time.as_ref())
            .map(|time| time.0)
            .max();
        let modified = written.or(created);

        let mut metadata = Map::new();
        metadata.insert("name".into(), json!(name));
        metadata.insert("namespace".into(), json!(namespace));
        if let Some(created) = created {
            metadata.insert("creationTimestamp".into(), json!(created.to_string()));
        }
        if let Some(labels) = meta.labels.filter(|labels| !labels.is_empty()) {
            metadata.insert("labels".into(), json!(labels));
        }
        let mut annotations = meta.annotations.unwrap_or_default();
        annotations.remove(LAST_APPLIED);
        if !annotations.is_empty() {
            metadata.insert("annotations".into(), json!(annotations));
        }
        let mut document = Map::new();
        document.insert("apiVersion".into(), json!(resource.api_version));
        document.insert("kind".into(), json!(resource.kind));
        document.insert("metadata".into(), Value::Object(metadata));
        let mut conditions = Vec::new();
        if let Value::Object(rest) = object.data {
            for (key, mut value) in rest {
                if key == "status" {
                    if let Some(Value::Array(list)) = value.get_mut("conditions") {
                        conditions = std::mem::take(list);
                    }
                } else if key != "apiVersion" && key != "kind" {
                    document.insert(key, value);
                }
            }
        }
        Self {
            name: name_of(&resource.kind, &namespace, &name),
            modified: modified.map_or_else(SystemTime::now, Into::into),
            text: to_yaml(&Value::Object(document)),
            meta: Meta {
                resource: resource.clone(),
                namespace,
                name,
                uid: meta.uid.unwrap_or_default(),
                generation: meta.generation.unwrap_or_default(),
                version: meta.resource_version.unwrap_or_default(),
                conditions,
            },
        }
    }
}
