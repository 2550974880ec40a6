//! `Secret` of Kubernetes' core group: what a `credentialName` names.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use super::reader::{Fields, Reader};
use crate::policy::yaml::Node;

/// A Secret. Its data is wiped from memory when dropped, and never printed.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret {
    /// `data`, decoded, and `stringData`, which wins.
    pub data: BTreeMap<Box<str>, Zeroizing<Vec<u8>>>,
    /// `type`.
    pub kind: Box<str>,
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret")
            .field("kind", &self.kind)
            .field("keys", &self.data.keys().collect::<Vec<_>>())
            .finish()
    }
}

/// Reads the fields of a Secret, which stand beside `metadata`.
pub fn read(reader: &mut Reader<'_>, fields: &mut Fields<'_>) -> Secret {
    let kind = reader.text_field(fields, "type");
    reader.nullable(fields, "immutable", Reader::boolean);
    let mut data = BTreeMap::new();
    for (name, value) in reader.map(fields, "data", decode) {
        data.insert(name.value, value);
    }
    for (name, value) in reader.text_map(fields, "stringData") {
        data.insert(name.value, Zeroizing::new(value.as_bytes().to_vec()));
    }
    Secret {
        data,
        kind: kind.map_or_else(|| "Opaque".into(), |kind| kind.value),
    }
}

fn decode(reader: &mut Reader<'_>, node: &Node) -> Option<Zeroizing<Vec<u8>>> {
    let text = reader.text(node)?;
    // Tools wrap long lines.
    let plain: Zeroizing<Vec<u8>> =
        Zeroizing::new(text.bytes().filter(|b| !b.is_ascii_whitespace()).collect());
    if let Ok(bytes) = STANDARD.decode(&*plain) {
        return Some(Zeroizing::new(bytes));
    }
    reader.error(
        "base64",
        node.span,
        "the value is not base64",
        "encode it, or move it to `stringData`",
    );
    None
}
