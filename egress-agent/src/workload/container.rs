//! What the path of a cgroup says about who is in it: the Kubernetes pod, the
//! container, the systemd unit. A pure function of the path, after the names
//! that kubelet, containerd, CRI-O, Docker, Podman and systemd give.

use std::fmt;

/// What the path of a cgroup says.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Identity {
    /// The pod, the innermost where nodes run inside of containers.
    pub pod: Option<Pod>,
    /// The container; in a pod that of the pod, not one nested in it.
    pub container: Option<Container>,
    /// The systemd unit that is nearest, with its suffix.
    pub unit: Option<Box<str>>,
}

/// A Kubernetes pod.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Pod {
    /// `metadata.uid`, as the API writes it; for a static pod the hash of its
    /// file.
    pub uid: Box<str>,
    /// QoS class.
    pub qos: Qos,
}

/// QoS class of a pod.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Qos {
    /// Requests equal limits.
    Guaranteed,
    /// Some requests.
    Burstable,
    /// None.
    BestEffort,
}

/// A container.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Container {
    /// Which runtime, as far as the name tells.
    pub runtime: Runtime,
    /// Full id: 64 hexadecimal digits.
    pub id: Box<str>,
}

impl Container {
    /// The first twelve digits, as the runtimes' own tools show it.
    pub fn short(&self) -> &str {
        self.id.get(..12).unwrap_or(&self.id)
    }
}

/// A container runtime.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Runtime {
    /// containerd through the CRI.
    Containerd,
    /// containerd through nerdctl.
    Nerdctl,
    /// CRI-O.
    CriO,
    /// Docker.
    Docker,
    /// Podman.
    Podman,
    /// The name does not say (cgroupfs driver).
    Unknown,
}

impl fmt::Display for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Containerd => "containerd",
            Self::Nerdctl => "nerdctl",
            Self::CriO => "cri-o",
            Self::Docker => "docker",
            Self::Podman => "podman",
            Self::Unknown => "unknown",
        })
    }
}

/// Prefixes before a container id. A monitor process (`conmon`) has a cgroup of
/// its own beside the container, which is none.
const PREFIXES: &[(&str, Runtime)] = &[
    ("cri-containerd-", Runtime::Containerd),
    ("crio-", Runtime::CriO),
    ("docker-", Runtime::Docker),
    ("libpod-payload-", Runtime::Podman),
    ("libpod-", Runtime::Podman),
    ("nerdctl-", Runtime::Nerdctl),
];

/// Reads a path, relative to the root of the hierarchy.
pub fn identify(path: &str) -> Identity {
    let mut identity = Identity::default();
    // Directories of the cgroupfs driver say the class before the pod.
    let mut class = Qos::Guaranteed;
    let mut above = "";
    for segment in path.split('/').filter(|segment| !segment.is_empty()) {
        match segment {
            "burstable" => class = Qos::Burstable,
            "besteffort" => class = Qos::BestEffort,
            "kubepods" => class = Qos::Guaranteed,
            _ => {}
        }
        // `kubepods-….slice:cri-containerd:ID`: containerd with its own driver
        // left at cgroupfs under a kubelet with systemd's.
        let (slice, nested) = match segment.split_once(':') {
            Some((slice, rest)) => (slice, rest.split_once(':')),
            None => (segment, None),
        };
        if let Some(pod) = pod(slice, class) {
            identity.pod = Some(pod);
            identity.container = None;
        }
        if identity.container.is_none() {
            identity.container = match nested {
                Some((runtime, id)) => container(&format!("{runtime}-{id}"), above),
                None => container(segment, above),
            };
        }
        if let Some(unit) = unit(slice) {
            identity.unit = Some(unit.into());
        }
        above = segment;
    }
    identity
}

/// The pod whose own cgroup this is, not one of its containers'.
pub fn pod_of(path: &str) -> Option<Pod> {
    let last = path.rsplit('/').next()?;
    let slice = last.split_once(':').map_or(last, |(slice, _)| slice);
    pod(slice, Qos::Guaranteed)?;
    identify(path).pod
}

fn pod(segment: &str, class: Qos) -> Option<Pod> {
    // cgroupfs driver: the directory `podUID`.
    if let Some(uid) = segment.strip_prefix("pod").filter(|uid| is_uid(uid, b'-')) {
        return Some(Pod {
            uid: uid.into(),
            qos: class,
        });
    }
    // systemd driver: `…kubepods[-CLASS]-podUID.slice`, where a dash in the uid
    // became an underscore, since dashes nest slices.
    let (parents, uid) = segment.strip_suffix(".slice")?.rsplit_once("-pod")?;
    if !is_uid(uid, b'_') {
        return None;
    }
    let qos = match parents.rsplit('-').next()? {
        "burstable" => Qos::Burstable,
        "besteffort" => Qos::BestEffort,
        "kubepods" => Qos::Guaranteed,
        _ => return None,
    };
    Some(Pod {
        uid: uid.replace('_', "-").into(),
        qos,
    })
}

/// A UUID with this separator, or the 32 digits of a static pod.
fn is_uid(text: &str, separator: u8) -> bool {
    match text.len() {
        32 => is_hex(text),
        36 => text.bytes().enumerate().all(|(at, b)| match at {
            8 | 13 | 18 | 23 => b == separator,
            _ => b.is_ascii_hexdigit(),
        }),
        _ => false,
    }
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_hexdigit())
}

fn is_container_id(text: &str) -> bool {
    text.len() == 64 && is_hex(text)
}

fn container(segment: &str, above: &str) -> Option<Container> {
    let name = segment.strip_suffix(".scope").unwrap_or(segment);
    let (runtime, id) = PREFIXES
        .iter()
        .find_map(|(prefix, runtime)| Some((*runtime, name.strip_prefix(prefix)?)))
        .unwrap_or(match above {
            "docker" => (Runtime::Docker, name),
            _ => (Runtime::Unknown, name),
        });
    is_container_id(id).then(|| Container {
        runtime,
        id: id.into(),
    })
}

/// A slice only groups; a service or scope is what runs.
fn unit(segment: &str) -> Option<&str> {
    let (_, kind) = segment.rsplit_once('.')?;
    // systemd's own scope inside of a service or container says nothing.
    (matches!(kind, "service" | "scope") && segment != "init.scope").then_some(segment)
}

impl Identity {
    /// A name for records: the unit without its suffix, or the container.
    pub fn name(&self) -> Option<&str> {
        match (&self.container, &self.unit) {
            (Some(container), _) => Some(container.short()),
            (None, Some(unit)) => unit.rsplit_once('.').map(|(name, _)| name),
            (None, None) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use proptest::prelude::*;

    use super::*;

    const ID: &str = "4f8d1c0a9be2433da2b6a0c5ab7b3e5d9a1f60cf2f0b6a7c8d9e0f1a2b3c4d5e";
    const UID: &str = "0f6a2b3c-11aa-4bcd-9e8f-001122334455";

    fn short(path: &str) -> (Option<String>, Option<Qos>, Option<Runtime>, Option<String>) {
        let found = identify(path);
        (
            found.pod.as_ref().map(|pod| pod.uid.to_string()),
            found.pod.as_ref().map(|pod| pod.qos),
            found.container.map(|container| {
                assert_eq!(&*container.id, ID);
                container.runtime
            }),
            found.unit.map(String::from),
        )
    }

    #[test]
    fn paths_as_the_runtimes_write_them() {
        use Qos::{BestEffort, Burstable, Guaranteed};
        use Runtime::{Containerd, CriO, Docker, Nerdctl, Podman, Unknown};
        let under = UID.replace('-', "_");
        let cases = [
            (
                format!("/kubepods/burstable/pod{UID}/{ID}"),
                Some(Burstable),
                Some(Unknown),
                None,
            ),
            (
                format!("/kubepods/besteffort/pod{UID}/{ID}"),
                Some(BestEffort),
                Some(Unknown),
                None,
            ),
            (
                format!("/kubepods/pod{UID}/crio-{ID}"),
                Some(Guaranteed),
                Some(CriO),
                None,
            ),
            (
                format!(
                    "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{under}.slice/cri-containerd-{ID}.scope"
                ),
                Some(BestEffort),
                Some(Containerd),
                Some(format!("cri-containerd-{ID}.scope")),
            ),
            (
                format!("/kubepods.slice/kubepods-pod{under}.slice/crio-{ID}.scope/container"),
                Some(Guaranteed),
                Some(CriO),
                Some(format!("crio-{ID}.scope")),
            ),
            (
                format!(
                    "/system.slice/containerd.service/kubepods-burstable-pod{under}.slice:cri-containerd:{ID}"
                ),
                Some(Burstable),
                Some(Containerd),
                Some("containerd.service".to_owned()),
            ),
            (format!("/kubepods/pod{UID}"), Some(Guaranteed), None, None),
            // A monitor is in the pod, but not in the container.
            (
                format!("/kubepods.slice/kubepods-pod{under}.slice/crio-conmon-{ID}.scope"),
                Some(Guaranteed),
                None,
                Some(format!("crio-conmon-{ID}.scope")),
            ),
            // A node in a container (kind), with kubelet's own root.
            (
                format!(
                    "/docker/{}/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod{under}.slice/cri-containerd-{ID}.scope",
                    ID.replace('4', "5")
                ),
                Some(Burstable),
                Some(Containerd),
                Some(format!("cri-containerd-{ID}.scope")),
            ),
            // A container that runs containers is one workload.
            (
                format!("/kubepods/pod{UID}/{ID}/docker/{}", ID.replace('4', "5")),
                Some(Guaranteed),
                Some(Unknown),
                None,
            ),
            (format!("/docker/{ID}"), None, Some(Docker), None),
            (
                format!("/system.slice/docker-{ID}.scope"),
                None,
                Some(Docker),
                Some(format!("docker-{ID}.scope")),
            ),
            (
                format!(
                    "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope/container"
                ),
                None,
                Some(Podman),
                Some(format!("libpod-{ID}.scope")),
            ),
            (
                format!("/machine.slice/machine-libpod_pod_{ID}.slice/libpod-{ID}.scope"),
                None,
                Some(Podman),
                Some(format!("libpod-{ID}.scope")),
            ),
            (
                format!("/libpod_parent/libpod-{ID}"),
                None,
                Some(Podman),
                None,
            ),
            (
                format!("/machine.slice/libpod-conmon-{ID}.scope"),
                None,
                None,
                Some(format!("libpod-conmon-{ID}.scope")),
            ),
            (
                format!("/system.slice/nerdctl-{ID}.scope"),
                None,
                Some(Nerdctl),
                Some(format!("nerdctl-{ID}.scope")),
            ),
        ];
        for (path, qos, runtime, unit) in cases {
            let uid = qos.map(|_| UID.to_owned());
            assert_eq!(short(&path), (uid, qos, runtime, unit), "{path}");
        }
    }

    #[test]
    fn units_and_what_is_none() {
        let unit = |path: &str| identify(path).unit.map(String::from);
        assert_eq!(
            unit("/system.slice/pay-api.service").as_deref(),
            Some("pay-api.service")
        );
        assert_eq!(
            unit("/system.slice/pay-api.service/workers/1").as_deref(),
            Some("pay-api.service")
        );
        assert_eq!(unit("/user.slice/user-1000.slice"), None);
        assert_eq!(unit("/init.scope"), None);
        assert_eq!(identify("/"), Identity::default());
        assert_eq!(identify(""), Identity::default());
        assert_eq!(
            identify("/system.slice/pay.api.service").name(),
            Some("pay.api")
        );
        for path in [
            "/podcast.slice",
            "/podinfo",
            "/kubepods/podzz",
            "/a-pod.slice",
        ] {
            assert_eq!(identify(path).pod, None, "{path}");
        }
        // A static pod has a hash for a uid.
        let hash = &ID[..32];
        let path =
            format!("/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{hash}.slice");
        assert_eq!(&*identify(&path).pod.unwrap().uid, hash);
    }

    fn qos() -> impl Strategy<Value = Qos> {
        prop_oneof![
            Just(Qos::Guaranteed),
            Just(Qos::Burstable),
            Just(Qos::BestEffort)
        ]
    }

    /// A path as kubelet (`config/cgroup.go`, `pod_container_manager_linux.go`)
    /// and the runtime lay it out.
    fn layout(systemd: bool, qos: Qos, uid: &str, runtime: Runtime, id: &str) -> String {
        let class = match qos {
            Qos::Guaranteed => None,
            Qos::Burstable => Some("burstable"),
            Qos::BestEffort => Some("besteffort"),
        };
        let prefix = match runtime {
            Runtime::Containerd => "cri-containerd-",
            Runtime::CriO => "crio-",
            Runtime::Docker => "docker-",
            _ => "",
        };
        if systemd {
            let mut path = "/kubepods.slice".to_owned();
            let mut name = "kubepods".to_owned();
            if let Some(class) = class {
                name = format!("{name}-{class}");
                path = format!("{path}/{name}.slice");
            }
            let uid = uid.replace('-', "_");
            format!("{path}/{name}-pod{uid}.slice/{prefix}{id}.scope")
        } else {
            let class = class.map(|class| format!("{class}/")).unwrap_or_default();
            format!("/kubepods/{class}pod{uid}/{prefix}{id}")
        }
    }

    proptest! {
        #[test]
        fn every_layout_reads_back(
            systemd: bool,
            qos in qos(),
            uid in "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|[0-9a-f]{32}",
            id in "[0-9a-f]{64}",
            runtime in prop_oneof![
                Just(Runtime::Containerd), Just(Runtime::CriO), Just(Runtime::Docker)
            ],
            root in "(/[a-z]{1,8}(\\.slice|\\.service)?){0,3}",
            below in "(/[a-z]{1,8}){0,2}",
        ) {
            let path = format!("{root}{}{below}", layout(systemd, qos, &uid, runtime, &id));
            let found = identify(&path);
            let pod = Pod { uid: uid.into(), qos };
            prop_assert_eq!(found.pod, Some(pod));
            prop_assert_eq!(found.container, Some(Container { runtime, id: id.into() }));
        }

        #[test]
        fn no_path_panics(path in "\\PC*", parts in prop::collection::vec("[a-z0-9:.@_-]{0,70}", 0..6)) {
            let _ = identify(&path);
            let _ = identify(&parts.join("/"));
        }
    }
}
