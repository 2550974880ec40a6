//! Where this node is: the well-known labels of its Node object.

use std::collections::BTreeMap;

use crate::policy::model::Locality;

/// <https://kubernetes.io/docs/reference/labels-annotations-taints/>, the
/// deprecated names of the first two, and Istio's third.
const REGION: [&str; 2] = [
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/region",
];
const ZONE: [&str; 2] = [
    "topology.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/zone",
];
const SUBZONE: [&str; 1] = ["topology.istio.io/subzone"];

/// The locality that labels of a node say; `None` without a region.
pub fn locality(labels: &BTreeMap<String, String>) -> Option<Locality> {
    let first = |keys: &[&str]| -> Box<str> {
        let mut values = keys.iter().filter_map(|key| labels.get(*key));
        values
            .next()
            .map_or_else(Box::default, |v| v.as_str().into())
    };
    let locality = Locality {
        region: first(&REGION),
        zone: first(&ZONE),
        subzone: first(&SUBZONE),
    };
    (!locality.region.is_empty()).then_some(locality)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(list: &[(&str, &str)]) -> BTreeMap<String, String> {
        let pairs = list.iter();
        pairs
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn labels_of_a_node_give_its_locality() {
        let node = labels(&[
            ("topology.kubernetes.io/region", "eu-west-1"),
            ("topology.kubernetes.io/zone", "eu-west-1a"),
            ("failure-domain.beta.kubernetes.io/zone", "old"),
            ("topology.istio.io/subzone", "rack-7"),
        ]);
        let found = locality(&node).map(|locality| locality.to_string());
        assert_eq!(found.as_deref(), Some("eu-west-1/eu-west-1a/rack-7"));
        let old = labels(&[("failure-domain.beta.kubernetes.io/region", "r")]);
        let found = locality(&old).map(|locality| locality.to_string());
        assert_eq!(found.as_deref(), Some("r"));
        assert_eq!(
            locality(&labels(&[("topology.kubernetes.io/zone", "z")])),
            None
        );
    }
}
