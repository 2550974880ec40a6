//! Which version of a kind the server serves.

use std::time::Duration;

use kube::Client;
use kube::core::{ApiResource, GroupVersionKind};
use tokio::time::timeout;

use crate::kubernetes::KubernetesError;
use crate::policy::document::GROUP;
use crate::policy::schema::meta::Kind;

/// Versions that we can read, best first. All have the same fields.
const VERSIONS: [&str; 3] = ["v1", "v1beta1", "v1alpha3"];
/// Time for one answer.
const DEADLINE: Duration = Duration::from_secs(30);

/// A kind as the server serves it.
#[derive(Clone, Debug)]
pub struct Served {
    /// Version and plural.
    pub resource: ApiResource,
    /// Conditions can be written to its status.
    pub has_status: bool,
}

/// Finds the best version of a kind that the server serves; `None` when it
/// serves none.
///
/// # Errors
/// When the server cannot be asked.
pub async fn discover(client: &Client, kind: Kind) -> Result<Option<Served>, KubernetesError> {
    for version in VERSIONS {
        let group_version = format!("{GROUP}/{version}");
        let asked = timeout(DEADLINE, client.list_api_group_resources(&group_version))
            .await
            .map_err(|_| KubernetesError::Slow("discovery"))?
            .map_err(KubernetesError::from);
        let list = match asked {
            Ok(list) => list,
            Err(error) if error.status() == Some(404) => continue,
            Err(error) => return Err(error),
        };
        let found = list
            .resources
            .iter()
            .find(|resource| resource.kind == kind.name() && !resource.name.contains('/'));
        if let Some(found) = found {
            let status = format!("{}/status", found.name);
            let gvk = GroupVersionKind::gvk(GROUP, version, kind.name());
            return Ok(Some(Served {
                resource: ApiResource::from_gvk_with_plural(&gvk, &found.name),
                has_status: list.resources.iter().any(|one| one.name == status),
            }));
        }
    }
    Ok(None)
}
