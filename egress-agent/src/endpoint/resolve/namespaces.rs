//! Resolvers by the policy namespace whose names they look up.

use std::collections::HashMap;
use std::sync::Arc;

use super::entry::NameStatus;
use super::resolver::Resolver;

/// The resolver of everybody, and those of namespaces that have their own:
/// names that a ServiceEntry of such a namespace lists mean what that
/// namespace's servers say.
#[derive(Clone, Debug)]
pub struct Resolvers {
    common: Resolver,
    own: Arc<HashMap<Arc<str>, Resolver>>,
}

impl Resolvers {
    /// `own` by namespace.
    pub fn new(common: Resolver, own: HashMap<Arc<str>, Resolver>) -> Self {
        Self {
            common,
            own: Arc::new(own),
        }
    }

    /// The resolver for names in ServiceEntries of a namespace.
    pub fn of(&self, namespace: &str) -> &Resolver {
        self.own.get(namespace).unwrap_or(&self.common)
    }

    /// Every name in use, in order, with the namespace where it has a resolver
    /// of its own.
    pub fn status(&self) -> Vec<(Option<Arc<str>>, NameStatus)> {
        let common = self.common.status().into_iter().map(|one| (None, one));
        let mut own: Vec<_> = self.own.iter().collect();
        own.sort_unstable_by_key(|(namespace, _)| Arc::clone(namespace));
        let own = own.into_iter().flat_map(|(namespace, resolver)| {
            let all = resolver.status().into_iter();
            all.map(|one| (Some(Arc::clone(namespace)), one))
        });
        common.chain(own).collect()
    }
}

impl From<Resolver> for Resolvers {
    fn from(common: Resolver) -> Self {
        Self::new(common, HashMap::new())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::time::Duration;

    use tokio::time::Instant;

    use super::super::resolver::tests::{Script, resolver};
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_namespace_has_answers_of_its_own() {
        let (common, own) = (Script::default(), Script::default());
        common.answer("db.example", &["10.0.0.1"], 100);
        own.answer("db.example", &["10.0.0.2"], 100);
        let resolvers = Resolvers::new(
            resolver(&common),
            HashMap::from([("payments".into(), resolver(&own))]),
        );
        let deadline = Instant::now() + Duration::from_secs(5);
        for (namespace, expected) in [("payments", "10.0.0.2"), ("other", "10.0.0.1")] {
            let answer = resolvers.of(namespace).lookup("db.example", deadline).await;
            let expected: std::net::IpAddr = expected.parse().unwrap();
            assert_eq!(*answer.unwrap().addresses, [expected], "{namespace}");
        }
        let status = resolvers.status();
        let told: Vec<_> = status
            .iter()
            .map(|(namespace, _)| namespace.as_deref())
            .collect();
        assert_eq!(told, [None, Some("payments")]);
    }
}
