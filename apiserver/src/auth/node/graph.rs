//! Which node has what to do with which object (upstream's node authorizer graph): node <- pod <- secret, config map, claim
//! <- volume <- secret, service account. Fed by the store's events when somebody asks, so it is never behind; an answer is
//! a look-up. Decides nothing.

use super::references::{self, KINDS, Kind, is_mirror};
use crate::store::{Entry, Event, Range, Store, Watch};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;
use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

const PODS: &str = "/core/pods/";
const VOLUMES: &str = "/core/persistentvolumes/";
const ATTACHMENTS: &str = "/storage.k8s.io/volumeattachments/";

/// Nodes with the number of their pods that refer to an object, by name.
#[derive(Default)]
struct Nodes(Vec<(Arc<str>, u32)>);

impl Nodes {
    fn find(&self, node: &str) -> Result<usize, usize> {
        self.0.binary_search_by(|(n, _)| (**n).cmp(node))
    }
    fn add(&mut self, node: &Arc<str>) {
        match self.find(node) {
            Ok(i) => self.0[i].1 += 1,
            Err(i) => self.0.insert(i, (node.clone(), 1)),
        }
    }
    fn take(&mut self, node: &str) {
        if let Ok(i) = self.find(node) {
            self.0[i].1 -= 1;
            if self.0[i].1 == 0 {
                self.0.remove(i);
            }
        }
    }
}

/// A pod that is bound to a node.
struct Pod {
    node: Arc<str>,
    uid: Box<str>,
    /// How many there are: they can bring references later.
    ephemeral_containers: usize,
    references: Box<[(Kind, Box<str>)]>,
}

/// A volume that is bound to a claim.
struct Volume {
    /// `namespace/name`
    claim: Box<str>,
    /// `namespace/name`
    secrets: Box<[Box<str>]>,
}

/// The part of a pod that says whether it has to be read again.
#[derive(Deserialize)]
struct Head<'a> {
    #[serde(borrow, default)]
    metadata: Meta<'a>,
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: Status,
}
#[derive(Deserialize, Default)]
struct Meta<'a> {
    #[serde(borrow, default)]
    uid: Cow<'a, str>,
}
#[derive(Deserialize, Default)]
#[serde(default)]
struct Spec {
    #[serde(rename = "ephemeralContainers")]
    ephemeral_containers: Option<Vec<IgnoredAny>>,
}
#[derive(Deserialize, Default)]
#[serde(default)]
struct Status {
    #[serde(rename = "resourceClaimStatuses")]
    claims: Option<Vec<IgnoredAny>>,
    #[serde(rename = "extendedResourceClaimStatus")]
    extended: Option<IgnoredAny>,
}

impl Head<'_> {
    fn ephemeral_containers(&self) -> usize {
        self.spec.ephemeral_containers.as_ref().map_or(0, Vec::len)
    }
    /// Whoever makes claims for the pod writes their names into its status whenever they like.
    fn has_claims(&self) -> bool {
        self.status.claims.as_ref().is_some_and(|c| !c.is_empty()) || self.status.extended.is_some()
    }
}

/// The graph.
#[derive(Default)]
pub struct Graph {
    /// By `namespace/name`.
    pods: HashMap<Box<str>, Pod>,
    /// By kind, then `namespace/name`.
    objects: [HashMap<Box<str>, Nodes>; KINDS],
    volumes: HashMap<Box<str>, Volume>,
    /// Volumes by the `namespace/name` of the secrets that their mounts need.
    volumes_of_secret: HashMap<Box<str>, Vec<Box<str>>>,
    /// Nodes of volume attachments, by name.
    attachments: HashMap<Box<str>, Box<str>>,
    watches: Vec<Watch>,
    store: Option<Arc<dyn Store>>,
}

impl Graph {
    /// Follows this store from now on.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn follow(&mut self, store: Arc<dyn Store>) -> Result<(), crate::store::Error> {
        self.store = Some(store);
        self.reload()
    }

    fn reload(&mut self) -> Result<(), crate::store::Error> {
        let Some(store) = self.store.clone() else {
            return Ok(());
        };
        *self = Self {
            store: Some(store.clone()),
            ..Self::default()
        };
        for prefix in [PODS, VOLUMES, ATTACHMENTS] {
            let page = store.range(&Range {
                prefix,
                ..Range::default()
            })?;
            for e in &page.entries {
                self.put(e);
            }
            self.watches.push(store.watch(prefix, page.revision)?);
        }
        Ok(())
    }

    /// True when something was written that is not in here yet.
    pub fn pending(&self) -> bool {
        self.watches.iter().any(|w| w.progress().is_none())
    }

    /// Takes in what was written.
    pub fn catch_up(&mut self) {
        let mut watches = std::mem::take(&mut self.watches);
        let mut fell_off = false;
        for w in &mut watches {
            loop {
                match w.ready() {
                    Ok(events) if events.is_empty() => break,
                    Ok(events) => events.iter().for_each(|e| self.event(e)),
                    Err(_) => {
                        fell_off = true;
                        break;
                    }
                }
            }
        }
        self.watches = watches;
        if fell_off && let Err(e) = self.reload() {
            tracing::warn!(error = %e, "what nodes may read could not be read again");
        }
    }

    fn event(&mut self, e: &Event) {
        if e.deleted {
            self.remove(&e.entry)
        } else {
            self.put(&e.entry)
        }
    }

    /// Takes in an object.
    pub fn put(&mut self, e: &Entry) {
        if let Some(key) = e.key.strip_prefix(PODS) {
            self.put_pod(key, e);
        } else if let Some(name) = e.key.strip_prefix(VOLUMES) {
            self.put_volume(name, e);
        } else if let Some(name) = e.key.strip_prefix(ATTACHMENTS) {
            let v: Value = serde_json::from_slice(&e.value).unwrap_or_default();
            let node = crate::admission::text(&v, &["spec", "nodeName"]);
            self.attachments.insert(name.into(), node.into());
        }
    }

    /// Forgets an object.
    pub fn remove(&mut self, e: &Entry) {
        if let Some(key) = e.key.strip_prefix(PODS) {
            self.remove_pod(key);
        } else if let Some(name) = e.key.strip_prefix(VOLUMES) {
            self.remove_volume(name);
        } else if let Some(name) = e.key.strip_prefix(ATTACHMENTS) {
            self.attachments.remove(name);
        }
    }

    fn put_pod(&mut self, key: &str, e: &Entry) {
        let node = e.attributes.field("spec.nodeName").unwrap_or("");
        if node.is_empty() {
            // Not bound: nobody's.
            return self.remove_pod(key);
        }
        let Ok(head) = serde_json::from_slice::<Head<'_>>(&e.value) else {
            return self.remove_pod(key);
        };
        if let Some(known) = self.pods.get(key)
            && *known.node == *node
            && *known.uid == *head.metadata.uid
            && known.ephemeral_containers == head.ephemeral_containers()
            && !head.has_claims()
        {
            // Whatever else refers to something does not change while a pod is bound.
            return;
        }
        self.remove_pod(key);
        let node: Arc<str> = node.into();
        let pod: Value = serde_json::from_slice(&e.value).unwrap_or_default();
        let mut found: Vec<(Kind, Box<str>)> = Vec::new();
        // A node makes mirror pods itself: they must open nothing, whatever they name.
        if !is_mirror(&pod) {
            references::of_pod(&pod, &mut |kind, name| found.push((kind, name.into())));
            found.sort();
            found.dedup();
        }
        let namespace = e.namespace();
        for (kind, name) in &found {
            let object = format!("{namespace}/{name}");
            let nodes = self.objects[*kind as usize].entry(object.into());
            nodes.or_default().add(&node);
        }
        let pod = Pod {
            node,
            uid: head.metadata.uid.as_ref().into(),
            ephemeral_containers: head.ephemeral_containers(),
            references: found.into(),
        };
        self.pods.insert(key.into(), pod);
    }

    fn remove_pod(&mut self, key: &str) {
        let Some(pod) = self.pods.remove(key) else {
            return;
        };
        let namespace = key.split('/').next().unwrap_or("");
        for (kind, name) in &pod.references {
            let object = format!("{namespace}/{name}");
            let map = &mut self.objects[*kind as usize];
            if let Some(nodes) = map.get_mut(object.as_str()) {
                nodes.take(&pod.node);
                if nodes.0.is_empty() {
                    map.remove(object.as_str());
                }
            }
        }
    }

    fn put_volume(&mut self, name: &str, e: &Entry) {
        self.remove_volume(name);
        let v: Value = serde_json::from_slice(&e.value).unwrap_or_default();
        let Some((ns, claim)) = references::claim_of(&v) else {
            return;
        };
        let mut secrets: Vec<Box<str>> = Vec::new();
        references::secrets_of_volume(&v, &mut |ns, n| secrets.push(format!("{ns}/{n}").into()));
        secrets.sort();
        secrets.dedup();
        for s in &secrets {
            let list = self.volumes_of_secret.entry(s.clone()).or_default();
            list.push(name.into());
        }
        let volume = Volume {
            claim: format!("{ns}/{claim}").into(),
            secrets: secrets.into(),
        };
        self.volumes.insert(name.into(), volume);
    }

    fn remove_volume(&mut self, name: &str) {
        let Some(volume) = self.volumes.remove(name) else {
            return;
        };
        for s in &volume.secrets {
            if let Some(list) = self.volumes_of_secret.get_mut(s) {
                list.retain(|v| **v != *name);
                if list.is_empty() {
                    self.volumes_of_secret.remove(s);
                }
            }
        }
    }

    fn refers(&self, node: &str, kind: Kind, object: &str) -> bool {
        let nodes = self.objects[kind as usize].get(object);
        nodes.is_some_and(|n| n.find(node).is_ok())
    }

    /// Does a pod of the node refer to the object, itself or (secrets) through a volume of one of its claims?
    pub fn reaches(&self, node: &str, kind: Kind, namespace: &str, name: &str) -> bool {
        let object = format!("{namespace}/{name}");
        self.refers(node, kind, &object)
            || (kind == Kind::Secret
                && self
                    .volumes_of_secret
                    .get(object.as_str())
                    .is_some_and(|l| l.iter().any(|v| self.reaches_volume(node, v))))
    }

    /// Is the persistent volume that of a claim of one of the node's pods?
    pub fn reaches_volume(&self, node: &str, name: &str) -> bool {
        self.volumes
            .get(name)
            .is_some_and(|v| self.refers(node, Kind::Claim, &v.claim))
    }

    /// Is the pod bound to the node?
    pub fn has_pod(&self, node: &str, namespace: &str, name: &str) -> bool {
        self.pods
            .get(format!("{namespace}/{name}").as_str())
            .is_some_and(|p| *p.node == *node)
    }

    /// Is the volume attachment the node's?
    pub fn has_attachment(&self, node: &str, name: &str) -> bool {
        self.attachments.get(name).is_some_and(|n| **n == *node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Attributes;
    use serde_json::json;

    fn entry(key: &str, v: &Value) -> Entry {
        let node = crate::admission::text(v, &["spec", "nodeName"]);
        let fields = (!node.is_empty() && key.starts_with(PODS)).then_some(("spec.nodeName", node));
        Entry {
            key: key.into(),
            value: v.to_string().into(),
            revision: 1,
            attributes: Attributes::new(std::iter::empty(), fields.into_iter()),
        }
    }

    fn pod(name: &str, uid: &str, node: &str, secret: &str) -> Entry {
        let v = json!({"metadata": {"name": name, "uid": uid}, "spec": {"nodeName": node, "serviceAccountName": "sa",
            "volumes": [{"name": "s", "secret": {"secretName": secret}}, {"name": "c", "persistentVolumeClaim": {"claimName": "claim"}}]}});
        entry(&format!("/core/pods/ns/{name}"), &v)
    }

    fn empty(g: &Graph) -> bool {
        g.pods.is_empty() && g.objects.iter().all(HashMap::is_empty)
    }

    #[test]
    fn an_object_is_reached_while_a_pod_of_the_node_refers_to_it() {
        let mut g = Graph::default();
        let secret = |g: &Graph, node: &str| g.reaches(node, Kind::Secret, "ns", "s");
        g.put(&pod("a", "1", "", "s"));
        assert!(empty(&g), "an unbound pod is nobody's");
        g.put(&pod("a", "1", "one", "s"));
        g.put(&pod("b", "2", "one", "s"));
        g.put(&pod("c", "3", "two", "t"));
        assert!(secret(&g, "one") && !secret(&g, "two"));
        assert!(g.reaches("two", Kind::Secret, "ns", "t"));
        assert!(!g.reaches("one", Kind::Secret, "other", "s"), "namespace");
        assert!(!g.reaches("one", Kind::ConfigMap, "ns", "s"), "kind");
        assert!(g.reaches("one", Kind::ServiceAccount, "ns", "sa"));
        assert!(g.has_pod("one", "ns", "a") && !g.has_pod("two", "ns", "a"));
        g.remove(&pod("a", "1", "one", "s"));
        assert!(secret(&g, "one"), "the other pod still does");
        // A pod of the same name, bound elsewhere.
        g.put(&pod("b", "9", "two", "s"));
        assert!(!secret(&g, "one") && secret(&g, "two"));
        g.remove(&pod("b", "9", "two", "s"));
        g.remove(&pod("c", "3", "two", "t"));
        assert!(empty(&g));
    }

    #[test]
    fn a_volume_and_its_secret_are_reached_through_the_claim() {
        let mut g = Graph::default();
        let pv = json!({"metadata": {"name": "pv"}, "spec": {"claimRef": {"namespace": "ns", "name": "claim"}, "rbd": {"secretRef": {"name": "key", "namespace": "store"}}}});
        let pv = entry("/core/persistentvolumes/pv", &pv);
        let key = |g: &Graph| g.reaches("one", Kind::Secret, "store", "key");
        g.put(&pv);
        assert!(!g.reaches_volume("one", "pv") && !key(&g));
        g.put(&pod("a", "1", "one", "s"));
        assert!(g.reaches_volume("one", "pv") && key(&g));
        assert!(!g.reaches_volume("two", "pv"));
        let other = json!({"metadata": {"name": "pv"}, "spec": {"claimRef": {"namespace": "ns", "name": "another"}}});
        g.put(&entry("/core/persistentvolumes/pv", &other));
        assert!(!g.reaches_volume("one", "pv") && !key(&g));
        g.put(&pv);
        g.remove(&pv);
        assert!(!g.reaches_volume("one", "pv") && !key(&g));
        assert!(g.volumes.is_empty() && g.volumes_of_secret.is_empty());
    }

    #[test]
    fn mirror_pods_open_nothing_and_ephemeral_containers_are_seen() {
        let mut g = Graph::default();
        let mut v = json!({"metadata": {"name": "m", "uid": "1", "annotations": {"kubernetes.io/config.mirror": "x"}}, "spec": {"nodeName": "one",
            "containers": [{"envFrom": [{"secretRef": {"name": "s"}}]}]}});
        g.put(&entry("/core/pods/ns/m", &v));
        assert!(g.has_pod("one", "ns", "m") && !g.reaches("one", Kind::Secret, "ns", "s"));
        v["metadata"] = json!({"name": "e", "uid": "2"});
        g.put(&entry("/core/pods/ns/e", &v));
        assert!(g.reaches("one", Kind::Secret, "ns", "s"));
        v["spec"]["ephemeralContainers"] = json!([{"envFrom": [{"configMapRef": {"name": "c"}}]}]);
        g.put(&entry("/core/pods/ns/e", &v));
        assert!(g.reaches("one", Kind::ConfigMap, "ns", "c"));
    }

    proptest::proptest! {
        /// Whatever happens to pods in whatever order, the index says what a scan of the pods that are there says.
        #[test]
        fn the_index_is_what_a_scan_would_find(steps in proptest::collection::vec((0..4u8, 0..3u8, 0..3u8, 0..3u8), 0..40)) {
            let mut g = Graph::default();
            let mut there: HashMap<u8, (u8, u8)> = HashMap::new();
            for (i, (name, node, secret, what)) in steps.into_iter().enumerate() {
                let node_name = if node == 0 { String::new() } else { format!("n{node}") };
                let e = pod(&format!("p{name}"), &i.to_string(), &node_name, &format!("s{secret}"));
                if what == 0 {
                    g.remove(&e);
                    there.remove(&name);
                } else {
                    g.put(&e);
                    there.insert(name, (node, secret));
                }
                for node in 1..3u8 {
                    for secret in 0..3u8 {
                        let scan = there.values().any(|p| *p == (node, secret));
                        proptest::prop_assert_eq!(g.reaches(&format!("n{node}"), Kind::Secret, "ns", &format!("s{secret}")), scan);
                    }
                }
            }
        }
    }
}
