//! Remembers who each cgroup is. Reading takes no lock; finding out may walk
//! the hierarchy, which is done off the runtime and not too often.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::time::Instant;

use super::Workload;
use super::container::identify;
use super::hierarchy::Hierarchy;
use super::pods::Pods;
use super::rules::{Rule, classify};
use crate::policy::model::Labels;
use crate::policy::snapshot::Client;
use crate::settings::value::NamespaceName;

/// Who each cgroup is; shared by all threads.
#[derive(Clone, Debug)]
pub struct Directory(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    hierarchy: Hierarchy,
    known: ArcSwap<Known>,
    /// Taken to find out or to change rules, and when the last walk was.
    finding: Mutex<Option<Instant>>,
    /// Pods that had no cgroup at the last look.
    homeless: AtomicUsize,
}

#[derive(Clone, Debug)]
struct Known {
    rules: Arc<Rules>,
    /// Pods of this node.
    pods: Arc<Pods>,
    workloads: HashMap<u64, Arc<Workload>>,
    /// A caller of whom nothing is known.
    stranger: Arc<Workload>,
}

#[derive(Clone, PartialEq, Debug)]
struct Rules {
    list: Vec<Rule>,
    default: Arc<str>,
}

/// Shortest time between two walks, so that ids that no walk finds (of cgroups
/// that are gone already) cost little.
const WALK_PAUSE: Duration = Duration::from_millis(250);
/// Time that a caller waits to be known before it counts as a stranger.
const FIND_DEADLINE: Duration = Duration::from_millis(500);
/// Cgroups that are remembered; past this, those that are gone are forgotten.
const CAPACITY: usize = 65_536;

impl Known {
    fn new(rules: Rules, pods: Arc<Pods>) -> Self {
        let mut known = Self {
            rules: Arc::new(rules),
            pods,
            workloads: HashMap::new(),
            stranger: Arc::new(Workload {
                client: Client {
                    namespace: "".into(),
                    labels: Arc::default(),
                },
                name: "unknown".into(),
                cgroup: "".into(),
                identity: super::container::Identity::default(),
                pod: None,
            }),
        };
        let mut stranger = Workload::clone(&known.stranger);
        stranger.client.namespace = Arc::clone(&known.rules.default);
        known.stranger = Arc::new(stranger);
        known
    }

    fn workload(&self, path: &str) -> Workload {
        let identity = identify(path);
        let rule = classify(&self.rules.list, path);
        let pod = identity.pod.as_ref();
        let pod = pod.and_then(|pod| self.pods.get(&pod.uid)).cloned();
        let name = rule
            .and_then(|rule| rule.name.clone())
            .or_else(|| pod.as_ref().map(|pod| Arc::clone(&pod.workload)))
            .or_else(|| identity.name().map(Arc::from))
            .unwrap_or_else(|| path.into());
        let client = match (rule, &pod) {
            (Some(rule), _) => Client {
                namespace: Arc::clone(&rule.namespace),
                labels: Arc::clone(&rule.labels),
            },
            (None, Some(pod)) => Client {
                namespace: Arc::clone(&pod.namespace),
                labels: Arc::clone(&pod.labels),
            },
            (None, None) => Client {
                namespace: Arc::clone(&self.rules.default),
                labels: Arc::new(Labels::new()),
            },
        };
        Workload {
            client,
            name,
            cgroup: path.into(),
            identity,
            pod,
        }
    }
}

impl Directory {
    /// Knows nobody yet.
    pub fn new(hierarchy: Hierarchy, rules: &[Rule], default: &NamespaceName) -> Self {
        let rules = Rules {
            list: rules.to_vec(),
            default: Arc::clone(&default.0),
        };
        Self(Arc::new(Shared {
            hierarchy,
            known: ArcSwap::from_pointee(Known::new(rules, Arc::default())),
            finding: Mutex::new(None),
            homeless: AtomicUsize::new(0),
        }))
    }

    /// Puts other rules in force. What is known is judged anew.
    pub fn set_rules(&self, rules: &[Rule], default: &NamespaceName) {
        let _finding = self
            .0
            .finding
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let old = self.0.known.load();
        let rules = Rules {
            list: rules.to_vec(),
            default: Arc::clone(&default.0),
        };
        self.judge(Known::new(rules, Arc::clone(&old.pods)), &old);
    }

    /// Namespaces of callers that rules and pods name.
    pub fn namespaces(&self) -> std::collections::BTreeSet<Arc<str>> {
        let known = self.0.known.load();
        let rules = known.rules.list.iter().map(|rule| &rule.namespace);
        let pods = known.pods.values().map(|pod| &pod.namespace);
        rules.chain(pods).cloned().collect()
    }

    /// Takes over which pods run on this node. What is known is judged anew.
    pub fn set_pods(&self, pods: Pods) {
        let _finding = self
            .0
            .finding
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let old = self.0.known.load();
        let new = Known::new(Rules::clone(&old.rules), Arc::new(pods));
        self.judge(new, &old);
    }

    fn judge(&self, mut new: Known, old: &Known) {
        new.workloads = old
            .workloads
            .iter()
            .map(|(&id, workload)| (id, Arc::new(new.workload(&workload.cgroup))))
            .collect();
        self.0.known.store(Arc::new(new));
    }

    /// A caller that is known already. Takes no lock and asks the kernel
    /// nothing.
    pub fn known(&self, cgroup: u64) -> Option<Arc<Workload>> {
        self.0.known.load().workloads.get(&cgroup).cloned()
    }

    /// A caller of whom nothing is known: default namespace, no labels.
    pub fn stranger(&self) -> Arc<Workload> {
        Arc::clone(&self.0.known.load().stranger)
    }

    /// Who a caller is. One that cannot be found within half a second is a
    /// stranger.
    pub async fn lookup(&self, cgroup: u64, pid: u32) -> Arc<Workload> {
        if let Some(known) = self.known(cgroup) {
            return known;
        }
        let directory = self.clone();
        let find = tokio::task::spawn_blocking(move || directory.find(cgroup, pid));
        match tokio::time::timeout(FIND_DEADLINE, find).await {
            Ok(Ok(Some(found))) => found,
            _ => self.stranger(),
        }
    }

    /// Finds out who a caller is: by its process if that still runs, else by a
    /// walk. Blocks.
    pub fn find(&self, cgroup: u64, pid: u32) -> Option<Arc<Workload>> {
        let mut walked = self
            .0
            .finding
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // Another thread may have found it while this one waited.
        if let Some(known) = self.known(cgroup) {
            return Some(known);
        }
        if let Some(path) = self.0.hierarchy.path_by_process(cgroup, pid) {
            self.learn(&[(cgroup, path)]);
        } else if walked.is_none_or(|at| at.elapsed() >= WALK_PAUSE) {
            *walked = Some(Instant::now());
            if let Err(error) = self.learn_all() {
                tracing::warn!("cannot read the cgroup hierarchy: {error}");
            }
        }
        self.known(cgroup)
    }

    /// Who a running process is, found out anew. Blocks for one file of
    /// `/proc`.
    ///
    /// # Errors
    /// When there is no such process, or it is outside of the hierarchy.
    pub fn of_process(&self, pid: u32) -> io::Result<Workload> {
        let path = self.0.hierarchy.of_process(pid)?;
        Ok(self.0.known.load().workload(&path))
    }

    /// Who runs in a cgroup, given by its path in the hierarchy or in the file
    /// system.
    ///
    /// # Errors
    /// When there is no such cgroup.
    pub fn of_path(&self, path: &str) -> io::Result<Workload> {
        let root = self.0.hierarchy.root();
        let inside = match std::path::Path::new(path).strip_prefix(root) {
            Ok(rest) => format!("/{}", rest.display()),
            Err(_) => path.to_owned(),
        };
        self.0.hierarchy.id(&inside)?;
        Ok(self.0.known.load().workload(&inside))
    }

    /// Learns every cgroup that exists, and forgets those that are gone.
    /// Blocks.
    ///
    /// # Errors
    /// When the hierarchy cannot be read.
    pub fn refresh(&self) -> io::Result<()> {
        let mut walked = self
            .0
            .finding
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *walked = Some(Instant::now());
        self.learn_all()
    }

    /// The cgroups that a rule names and those of pods, each with its id: what the kernel must
    /// know, since it goes by the nearest ancestor. Blocks; does not change
    /// what is known.
    ///
    /// # Errors
    /// When the hierarchy cannot be read.
    pub fn matching(&self) -> io::Result<Vec<(u64, Arc<Workload>)>> {
        let known = self.0.known.load();
        let mut found = Vec::new();
        let mut pods = std::collections::HashSet::new();
        self.0.hierarchy.walk(|id, path| {
            let named = |rule: &Rule| rule.cgroup.matches(path);
            let pod = super::container::pod_of(path);
            let pod = pod.filter(|pod| known.pods.contains_key(&pod.uid));
            if pod.is_some() || known.rules.list.iter().any(named) {
                found.push((id, Arc::new(known.workload(path))));
            }
            pods.extend(pod.map(|pod| pod.uid));
        })?;
        let homeless = known.pods.len().saturating_sub(pods.len());
        self.0.homeless.store(homeless, Ordering::Relaxed);
        Ok(found)
    }

    /// Pods that had no cgroup yet when [`matching`](Self::matching) looked
    /// last.
    pub fn homeless(&self) -> usize {
        self.0.homeless.load(Ordering::Relaxed)
    }

    /// How many are known.
    pub fn len(&self) -> usize {
        self.0.known.load().workloads.len()
    }

    /// Whether nobody is known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn learn_all(&self) -> io::Result<()> {
        let old = self.0.known.load();
        let mut workloads = HashMap::with_capacity(old.workloads.len());
        self.0.hierarchy.walk(|id, path| {
            let workload = match old.workloads.get(&id) {
                Some(same) if *same.cgroup == *path => Arc::clone(same),
                _ => Arc::new(old.workload(path)),
            };
            workloads.insert(id, workload);
        })?;
        self.0.known.store(Arc::new(Known {
            workloads,
            ..Known::clone(&old)
        }));
        Ok(())
    }

    fn learn(&self, found: &[(u64, String)]) {
        let mut new = Known::clone(&self.0.known.load());
        if new.workloads.len() >= CAPACITY {
            new.workloads
                .retain(|id, workload| self.0.hierarchy.id(&workload.cgroup).ok() == Some(*id));
        }
        // Still full of live ones: this one is found again when it calls again.
        if new.workloads.len() < CAPACITY {
            for (id, path) in found {
                let workload = Arc::new(new.workload(path));
                new.workloads.insert(*id, workload);
            }
            self.0.known.store(Arc::new(new));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::fs;

    use super::*;
    use crate::settings::value::Scalar;

    /// No process has this id.
    const NOBODY: u32 = u32::MAX;

    fn directory(rules: &[&str]) -> (tempfile::TempDir, Hierarchy, Directory) {
        let home = tempfile::tempdir().unwrap();
        let hierarchy = Hierarchy::at(home.path());
        let rules = parse(rules);
        let directory = Directory::new(hierarchy.clone(), &rules, &namespace("default"));
        (home, hierarchy, directory)
    }

    fn parse(rules: &[&str]) -> Vec<Rule> {
        rules
            .iter()
            .map(|rule| Rule::parse(rule).unwrap())
            .collect()
    }

    fn namespace(name: &str) -> NamespaceName {
        NamespaceName::parse(name).unwrap()
    }

    #[tokio::test]
    async fn callers_are_found_by_a_walk_and_remembered() {
        let (home, hierarchy, directory) = directory(&[
            "system.slice/pay-*.service=pay,app=pay",
            "batch.slice=batch",
        ]);
        fs::create_dir_all(home.path().join("system.slice/pay-api.service/worker")).unwrap();
        let id = hierarchy
            .id("/system.slice/pay-api.service/worker")
            .unwrap();
        assert_eq!(directory.known(id), None);
        let found = directory.lookup(id, NOBODY).await;
        assert_eq!(&*found.client.namespace, "pay");
        assert_eq!(found.client.labels.get("app").map(|v| &**v), Some("pay"));
        assert_eq!(&*found.name, "pay-api");
        assert_eq!(&*found.cgroup, "/system.slice/pay-api.service/worker");
        assert!(directory.known(id).is_some());
    }

    #[tokio::test]
    async fn one_that_nobody_finds_is_a_stranger_and_costs_one_walk() {
        let (home, hierarchy, directory) = directory(&[]);
        let stranger = directory.lookup(1, NOBODY).await;
        assert_eq!(&*stranger.client.namespace, "default");
        assert_eq!(&*stranger.name, "unknown");
        // Within the pause no second walk is made, so this one stays unknown.
        fs::create_dir(home.path().join("late")).unwrap();
        let late = hierarchy.id("late").unwrap();
        assert_eq!(&*directory.lookup(late, NOBODY).await.cgroup, "");
        directory.refresh().unwrap();
        assert_eq!(&*directory.lookup(late, NOBODY).await.cgroup, "/late");
    }

    #[tokio::test]
    async fn new_rules_judge_anew_and_gone_cgroups_are_forgotten() {
        let (home, hierarchy, directory) = directory(&[]);
        fs::create_dir(home.path().join("a.slice")).unwrap();
        let id = hierarchy.id("a.slice").unwrap();
        directory.refresh().unwrap();
        assert_eq!(&*directory.known(id).unwrap().client.namespace, "default");
        directory.set_rules(&parse(&["a.slice=a"]), &namespace("other"));
        assert_eq!(&*directory.known(id).unwrap().client.namespace, "a");
        assert_eq!(&*directory.stranger().client.namespace, "other");
        fs::remove_dir(home.path().join("a.slice")).unwrap();
        directory.refresh().unwrap();
        assert_eq!(directory.known(id), None);
        assert_eq!(directory.len(), 1);
    }

    #[test]
    fn the_kernel_is_told_only_of_cgroups_that_rules_name() {
        let (home, hierarchy, directory) = directory(&["a.slice=a", "a.slice/b=b"]);
        fs::create_dir_all(home.path().join("a.slice/b/c")).unwrap();
        fs::create_dir_all(home.path().join("z")).unwrap();
        let mut told: Vec<(u64, Arc<str>)> = directory
            .matching()
            .unwrap()
            .into_iter()
            .map(|(id, workload)| (id, Arc::clone(&workload.client.namespace)))
            .collect();
        told.sort();
        let mut expected = vec![
            (hierarchy.id("a.slice").unwrap(), Arc::from("a")),
            (hierarchy.id("a.slice/b").unwrap(), Arc::from("b")),
        ];
        expected.sort();
        assert_eq!(told, expected);
    }

    #[test]
    fn pods_give_their_cgroups_namespace_and_labels() {
        use super::super::pods::PodInfo;
        let (home, hierarchy, directory) =
            directory(&["kubepods/podaaaaaaaa-0000-4000-8000-000000000003=named"]);
        let uid = |n: u8| format!("aaaaaaaa-0000-4000-8000-00000000000{n}");
        let systemd = format!(
            "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{}.slice",
            uid(1).replace('-', "_")
        );
        let cgroupfs = format!("kubepods/besteffort/pod{}", uid(2));
        let named = format!("kubepods/pod{}", uid(3));
        for pod in [&systemd, &cgroupfs, &named] {
            fs::create_dir_all(home.path().join(pod).join("container")).unwrap();
        }
        let pod = |n: u8| {
            let info = PodInfo {
                namespace: format!("ns{n}").into(),
                name: format!("shop-{n}").into(),
                workload: "shop".into(),
                labels: Arc::new([("app".into(), "shop".into())].into()),
                service_account: "default".into(),
            };
            (uid(n).into(), Arc::new(info))
        };
        directory.set_pods([pod(1), pod(2), pod(3)].into());
        directory.refresh().unwrap();
        let who = |path: &str| {
            let id = hierarchy.id(path).unwrap();
            directory.known(id).unwrap().client.namespace.to_string()
        };
        assert_eq!(who(&format!("{systemd}/container")), "ns1");
        assert_eq!(who(&cgroupfs), "ns2");
        // What the settings say goes first.
        assert_eq!(who(&format!("{named}/container")), "named");
        let told: Vec<u64> = directory
            .matching()
            .unwrap()
            .iter()
            .map(|(id, _)| *id)
            .collect();
        assert_eq!(told.len(), 3, "the pods' own cgroups and no others");
        assert_eq!(directory.homeless(), 0);
        let workload = directory.of_path(&format!("/{systemd}/container")).unwrap();
        assert_eq!(&*workload.name, "shop");
        assert_eq!(&*workload.pod.unwrap().name, "shop-1");

        directory.set_pods([pod(4)].into());
        assert_eq!(directory.matching().unwrap().len(), 1);
        assert_eq!(directory.homeless(), 1);
        directory.set_pods(Pods::new());
        assert_eq!(who(&cgroupfs), "default");
        assert_eq!(directory.matching().unwrap().len(), 1);
    }
}
