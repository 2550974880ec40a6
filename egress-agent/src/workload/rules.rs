//! Rules of the settings that give cgroups a namespace and labels.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use regex::Regex;

use crate::policy::model::Labels;
use crate::settings::value::{Fault, Form, NamespaceName, Raw, Scalar, nearest};

/// Gives callers in matching cgroups a namespace and labels.
#[derive(Clone, PartialEq, Debug)]
pub struct Rule {
    /// Which cgroups.
    pub cgroup: Pattern,
    /// Their namespace.
    pub namespace: Arc<str>,
    /// Their name in records; `None`: the unit's.
    pub name: Option<Arc<str>>,
    /// Their labels.
    pub labels: Arc<Labels>,
}

/// A glob over cgroup paths: `*` and `?` stay within a segment, `**` crosses
/// segments; without `/` it is compared with the last segment alone.
#[derive(Clone, Debug)]
pub struct Pattern {
    text: Box<str>,
    regex: Regex,
    whole_path: bool,
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Pattern {
    /// Reads a glob. A leading `/` is allowed and changes nothing but that
    /// the pattern is for the whole path.
    pub fn new(text: &str) -> Result<Self, Fault> {
        let glob = text.trim_start_matches('/');
        if glob.is_empty() {
            return Err(Fault::new(
                "the cgroup pattern is empty; `**` matches every cgroup",
            ));
        }
        let mut regex = String::from("^");
        let mut rest = glob;
        while let Some(c) = rest.chars().next() {
            let taken = match c {
                '*' if rest.starts_with("**") => {
                    regex.push_str(".*");
                    2
                }
                '*' => {
                    regex.push_str("[^/]*");
                    1
                }
                '?' => {
                    regex.push_str("[^/]");
                    1
                }
                other => {
                    let mut bytes = [0; 4];
                    regex.push_str(&regex::escape(other.encode_utf8(&mut bytes)));
                    other.len_utf8()
                }
            };
            rest = rest.get(taken..).unwrap_or_default();
        }
        regex.push('$');
        let regex = Regex::new(&regex)
            .map_err(|error| Fault::new(format!("`{text}` is not a cgroup pattern: {error}")))?;
        Ok(Self {
            text: text.into(),
            regex,
            whole_path: text.contains('/') || text.contains("**"),
        })
    }

    /// Whether the cgroup at `path` (relative to the root of the hierarchy,
    /// with or without a leading `/`) is one of these itself.
    pub fn matches(&self, path: &str) -> bool {
        let path = path.trim_start_matches('/');
        if self.whole_path {
            self.regex.is_match(path)
        } else {
            self.regex
                .is_match(path.rsplit('/').next().unwrap_or_default())
        }
    }

    /// As written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

/// `label` rules of ISTIO-API section 1, the same as Kubernetes'.
fn label(key: &str, value: &str) -> Result<(), String> {
    let word = |text: &str, empty: bool| {
        (empty && text.is_empty())
            || (text.len() <= 63
                && text.starts_with(|c: char| c.is_ascii_alphanumeric())
                && text.ends_with(|c: char| c.is_ascii_alphanumeric())
                && text
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)))
    };
    let name = match key.split_once('/') {
        Some((prefix, name)) if !prefix.is_empty() && prefix.len() <= 253 => name,
        Some(_) => "",
        None => key,
    };
    if !word(name, false) {
        return Err(format!("`{key}` is not a label key"));
    }
    if !word(value, true) {
        return Err(format!("`{value}` is not a value of label `{key}`"));
    }
    Ok(())
}

impl Scalar for Rule {
    /// `PATTERN=NAMESPACE[,LABEL=VALUE]…`
    fn parse(text: &str) -> Result<Self, Fault> {
        let shape = || {
            Fault::new(format!(
                "`{text}` is not a workload rule; write `PATTERN=NAMESPACE` and then `,LABEL=VALUE` as often as needed"
            ))
        };
        let (pattern, rest) = text.split_once('=').ok_or_else(shape)?;
        let mut parts = rest.split(',');
        let namespace = NamespaceName::parse(parts.next().unwrap_or_default())?;
        let mut labels = Labels::new();
        for part in parts {
            let (key, value) = part.split_once('=').ok_or_else(shape)?;
            label(key, value).map_err(Fault::new)?;
            labels.insert(key.into(), value.into());
        }
        Ok(Self {
            cgroup: Pattern::new(pattern)?,
            namespace: namespace.0,
            name: None,
            labels: Arc::new(labels),
        })
    }

    /// `{ cgroup = …, namespace = …, name = …, labels = {…} }`
    fn table(fields: &[(String, Range<usize>, Raw)]) -> Result<Self, Fault> {
        const KEYS: [&str; 4] = ["cgroup", "namespace", "name", "labels"];
        let mut texts: BTreeMap<&str, (&str, &Raw)> = BTreeMap::new();
        let mut labels = Labels::new();
        for (key, at, value) in fields {
            match (key.as_str(), &value.form) {
                ("labels", Form::Table(entries)) => {
                    for (key, at, value) in entries {
                        let Form::Text(text) = &value.form else {
                            return Err(Fault::at("a label is text", value.span.clone()));
                        };
                        label(key, text).map_err(|message| Fault::at(message, Some(at.clone())))?;
                        labels.insert(key.as_str().into(), text.as_str().into());
                    }
                }
                ("labels", Form::Text(_)) => {
                    let message = "labels is a table, as in `{ app = \"payments\" }`";
                    return Err(Fault::at(message, value.span.clone()));
                }
                (known, Form::Text(text)) if KEYS.contains(&known) => {
                    texts.insert(known, (text, value));
                }
                (known, Form::Table(_)) if KEYS.contains(&known) => {
                    return Err(Fault::at(format!("{known} is text"), value.span.clone()));
                }
                (unknown, _) => {
                    let near = nearest(unknown, KEYS.into_iter())
                        .map(|near| format!("; did you mean `{near}`?"))
                        .unwrap_or_default();
                    let message = format!("a workload rule has no key `{unknown}`{near}");
                    return Err(Fault::at(message, Some(at.clone())));
                }
            }
        }
        let need = |key: &str| {
            texts
                .get(key)
                .copied()
                .ok_or_else(|| Fault::new(format!("this workload rule has no `{key}`")))
        };
        let place = |raw: &Raw| {
            let span = raw.span.clone();
            move |fault: Fault| Fault::at(fault.message, fault.span.or(span))
        };
        let (pattern, pattern_at) = need("cgroup")?;
        let (namespace, namespace_at) = need("namespace")?;
        Ok(Self {
            cgroup: Pattern::new(pattern).map_err(place(pattern_at))?,
            namespace: NamespaceName::parse(namespace)
                .map_err(place(namespace_at))?
                .0,
            name: texts.get("name").map(|(text, _)| Arc::from(*text)),
            labels: Arc::new(labels),
        })
    }
}

/// The rule for a cgroup: the one that names the cgroup itself or, failing
/// that, its nearest ancestor; where several do, the first in the list.
pub fn classify<'a>(rules: &'a [Rule], path: &str) -> Option<&'a Rule> {
    let mut path = path.trim_matches('/');
    while !path.is_empty() {
        if let Some(rule) = rules.iter().find(|rule| rule.cgroup.matches(path)) {
            return Some(rule);
        }
        path = path.rsplit_once('/').map_or("", |(parent, _)| parent);
    }
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn rules(texts: &[&str]) -> Vec<Rule> {
        texts
            .iter()
            .map(|text| Rule::parse(text).unwrap())
            .collect()
    }

    #[test]
    fn stars_stay_in_their_segment_and_double_stars_do_not() {
        let matches = |pattern: &str, path: &str| Pattern::new(pattern).unwrap().matches(path);
        assert!(matches(
            "system.slice/pay-*.service",
            "/system.slice/pay-api.service"
        ));
        assert!(!matches(
            "system.slice/pay-*.service",
            "/system.slice/pay-api.service/x"
        ));
        assert!(!matches("system.slice/*", "/system.slice/a/b"));
        assert!(matches("**/b", "/system.slice/a/b"));
        assert!(matches("user@?.service", "/user.slice/user@1.service"));
        assert!(!matches("user@?.service", "/user.slice/user@10.service"));
        // Without a slash, the last segment alone; with one, the whole path.
        assert!(matches("b", "/a/b"));
        assert!(!matches("/b", "/a/b"));
        assert!(matches("a+b(c)", "/x/a+b(c)"));
        assert!(!matches("a.b", "/axb"));
        assert!(Pattern::new("/").is_err());
    }

    #[test]
    fn the_nearest_ancestor_decides_then_the_order() {
        let rules = rules(&[
            "a.slice=outer",
            "a.slice/**=inner",
            "*.service=service",
            "b.service=late",
        ]);
        let namespace = |path: &str| classify(&rules, path).map(|rule| rule.namespace.to_string());
        assert_eq!(namespace("/a.slice").as_deref(), Some("outer"));
        assert_eq!(namespace("/a.slice/x/y").as_deref(), Some("inner"));
        assert_eq!(namespace("/z/b.service/x/y").as_deref(), Some("service"));
        assert_eq!(namespace("/z"), None);
        assert_eq!(namespace("/"), None);
    }

    #[test]
    fn malformed_rules_say_what_is_wrong() {
        let fault = |text: &str| Rule::parse(text).unwrap_err().message;
        assert!(fault("a.slice").contains("PATTERN=NAMESPACE"));
        assert!(fault("a.slice=No").contains("not a namespace"));
        assert!(fault("a.slice=a,b").contains("LABEL=VALUE"));
        assert!(fault("a.slice=a,-b=c").contains("`-b` is not a label key"));
        assert!(fault("a.slice=a,b=c d").contains("not a value of label `b`"));
        assert!(fault("=a").contains("pattern is empty"));
    }
}
