//! The `Store` seam: a revisioned key-value log. Owns the trait, its values and errors; the implementations live in their
//! own files and all pass [`conformance`]. Knows nothing of Kubernetes but the two [`Hooks`] it is given.
//!
//! Keys look like `/core/pods/default/web-0`: the first two elements name a *collection*. Ranges and watches lie within one
//! collection, so their prefix starts with `/group/plural/`.
//!
//! Reads are answered out of memory and never wait; writes wait until they are durable.

pub mod conformance;
pub mod disk;
pub mod embedded;
#[cfg(test)]
mod embedded_tests;
mod expiry;
mod load;
pub mod memory;
mod record;
pub mod space;
mod writer;

use async_trait::async_trait;
use bytes::Bytes;
use skiff_api::status::Status;
use std::sync::Arc;

pub use memory::Watch;

/// An object as it is stored, never changed once it is made.
#[derive(Debug)]
pub struct Entry {
    /// `/group/plural/[namespace/]name`
    pub key: Box<str>,
    /// The object's bytes, [`Hooks::splice`] applied (resourceVersion inside).
    pub value: Bytes,
    /// The revision of its last write. For the entry of a deletion: the revision of the deletion.
    pub revision: u64,
    /// Labels and selectable fields, so that selectors need not decode.
    pub attributes: Attributes,
}

impl Entry {
    /// The name: the key's last element.
    pub fn name(&self) -> &str {
        self.key.rsplit('/').next().unwrap_or("")
    }
    /// The namespace; empty for cluster-wide objects.
    pub fn namespace(&self) -> &str {
        let mut parts = self.key.split('/').skip(3);
        match (parts.next(), parts.next()) {
            (Some(ns), Some(_)) => ns,
            _ => "",
        }
    }
    /// What it costs in memory, roughly, in bytes.
    pub fn cost(&self) -> usize {
        self.key.len() + self.value.len() + self.attributes.0.len() + 160
    }
}

/// Labels, selectable fields and claims in one allocation (none when there are none).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attributes(Box<str>);

impl Attributes {
    /// Packs them. NUL, which neither labels nor fields of valid objects contain, is replaced.
    pub fn new<'a>(
        labels: impl Iterator<Item = (&'a str, &'a str)>,
        fields: impl Iterator<Item = (&'a str, &'a str)>,
    ) -> Self {
        let mut s = String::new();
        let mut put = |mark: char, k: &str, v: &str| {
            s.push(mark);
            for part in [k, v] {
                if part.contains('\0') {
                    s.push_str(&part.replace('\0', "\u{fffd}"));
                } else {
                    s.push_str(part);
                }
                s.push('\0');
            }
        };
        labels.for_each(|(k, v)| put('l', k, v));
        fields.for_each(|(k, v)| put('f', k, v));
        Self(s.into_boxed_str())
    }
    /// The same with claims: what at most one object may have at a time, e.g. `ip/10.43.0.7`. The store refuses a write
    /// that claims what another object has.
    #[must_use]
    pub fn with_claims(self, claims: impl Iterator<Item = String>) -> Self {
        let mut s = String::from(self.0);
        for c in claims {
            s.push('c');
            s.push_str(&c.replace('\0', "\u{fffd}"));
            s.push_str("\0\0");
        }
        Self(s.into_boxed_str())
    }
    fn pairs(&self, mark: char) -> impl Iterator<Item = (&str, &str)> {
        let mut parts = self.0.split_terminator('\0');
        std::iter::from_fn(move || Some((parts.next()?, parts.next()?)))
            .filter_map(move |(k, v)| k.strip_prefix(mark).map(|k| (k, v)))
    }
    /// All labels.
    pub fn labels(&self) -> impl Iterator<Item = (&str, &str)> {
        self.pairs('l')
    }
    /// All selectable fields.
    pub fn fields(&self) -> impl Iterator<Item = (&str, &str)> {
        self.pairs('f')
    }
    /// What the object has for itself alone.
    pub fn claims(&self) -> impl Iterator<Item = &str> {
        self.pairs('c').map(|(k, _)| k)
    }
    /// The value of a label.
    pub fn label(&self, name: &str) -> Option<&str> {
        self.labels().find(|(k, _)| *k == name).map(|(_, v)| v)
    }
    /// The value of a selectable field.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields().find(|(k, _)| *k == name).map(|(_, v)| v)
    }
}

/// How attributes are found in an object: key, value (with or without its revision).
pub type AttributesOf = Arc<dyn Fn(&str, &[u8]) -> Attributes + Send + Sync>;

/// What the store is told about its values when it is opened.
#[derive(Clone)]
pub struct Hooks {
    /// Puts the revision into a value. `old` is the revision that is in there now (none: a value as it was given). Of a value
    /// with a revision inside it must be undone by being done the other way round.
    pub splice: fn(value: &[u8], old: Option<u64>, new: u64) -> Bytes,
    /// Finds labels and selectable fields. Called once for each write, and for each object when the store is opened.
    pub attributes: AttributesOf,
}

/// Where [`splice`] puts the revision.
const OPENING: &[u8] = b"{\"metadata\":{";

/// The [`Hooks::splice`] of Kubernetes objects: `"resourceVersion":"N",` right after `{"metadata":{`. Values that do not
/// begin so are left as they are.
pub fn splice(value: &[u8], old: Option<u64>, new: u64) -> Bytes {
    let Some(mut rest) = value.strip_prefix(OPENING) else {
        return Bytes::copy_from_slice(value);
    };
    if let Some(old) = old {
        rest = rest.strip_prefix(member(old).as_bytes()).unwrap_or(rest);
    }
    let inserted = member(new);
    let mut out = Vec::with_capacity(OPENING.len() + inserted.len() + rest.len());
    out.extend_from_slice(OPENING);
    out.extend_from_slice(inserted.as_bytes());
    if rest.first() == Some(&b'}') {
        // No other member: no comma.
        out.pop();
    }
    out.extend_from_slice(rest);
    // A boxed slice of exact size: nothing is wasted and nothing is counted twice.
    Bytes::from(out.into_boxed_slice())
}

fn member(revision: u64) -> String {
    format!("\"resourceVersion\":\"{revision}\",")
}

impl Hooks {
    /// Kubernetes' splice with these attributes.
    pub fn new(attributes: AttributesOf) -> Self {
        Self { splice, attributes }
    }
}

/// What a write expects to find; [`Error::Conflict`] when it does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// Nothing under the key: a create.
    Absent,
    /// The object's last write had this revision.
    Revision(u64),
    /// Anything or nothing.
    Any,
}

/// What a range asks for.
#[derive(Clone, Copy, Default)]
pub struct Range<'a> {
    /// Keys that start with this; `/group/plural/` at least.
    pub prefix: &'a str,
    /// Only keys after this one (of a continue token); empty for all.
    pub start_after: &'a str,
    /// At most so many; 0 for all.
    pub limit: usize,
    /// As it was at this revision; none for now.
    pub revision: Option<u64>,
    /// Only entries for which this is true; the limit counts these alone. Called while the state is locked for reading: it
    /// must not ask the store.
    pub filter: Option<&'a dyn Fn(&Entry) -> bool>,
}

/// A range's answer.
#[derive(Debug)]
pub struct Page {
    /// In key order.
    pub entries: Vec<Arc<Entry>>,
    /// The revision at which all of them are true.
    pub revision: u64,
    /// True when the limit cut the answer short and at least one more entry matches.
    pub more: bool,
    /// How many entries (filter not applied) follow the last one given.
    pub remaining: usize,
}

/// One write, as watchers see it.
#[derive(Debug)]
pub struct Event {
    /// The write's revision.
    pub revision: u64,
    /// True for a deletion.
    pub deleted: bool,
    /// The new state; for a deletion the last state, with the deletion's revision.
    pub entry: Arc<Entry>,
    /// The state before; none for a create.
    pub previous: Option<Arc<Entry>>,
}

/// Why the store refused.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// [`Expect`] did not hold; what is there instead.
    #[error("the object was changed by somebody else")]
    Conflict(Option<Arc<Entry>>),
    /// The revision is no longer in memory.
    #[error("revision {asked} is older than the oldest one that is kept ({oldest})")]
    Compacted {
        /// Asked for.
        asked: u64,
        /// The oldest that can be asked for.
        oldest: u64,
    },
    /// The revision has not happened yet.
    #[error("revision {asked} is newer than the current one ({current})")]
    Future {
        /// Asked for.
        asked: u64,
        /// The current one.
        current: u64,
    },
    /// Somebody else has what this object claims.
    #[error("{claim} is taken by {by}")]
    Claimed {
        /// The claim.
        claim: String,
        /// The key of the object that has it.
        by: String,
    },
    /// No space left for the database; reads and deletes go on.
    #[error("the disk of {0} is full: free some space; until then only reads and deletes pass")]
    Full(String),
    /// The quota is used up; reads and deletes go on. The first words are those of etcd's alarm, which people look for.
    #[error(
        "etcdserver: mvcc: database space exceeded: {used} of {quota} bytes of {flag} are used; delete what is not needed or raise it; until then only reads and deletes pass"
    )]
    Quota {
        /// What is used, in bytes.
        used: u64,
        /// What may be used.
        quota: u64,
        /// What sets it.
        flag: &'static str,
    },
    /// The store has failed for good: nothing is written any more, and the server ends. What the failed write did shows at
    /// the next start.
    #[error(
        "the store {file} failed: {why}; the server ends, check the disk and start it again: it goes on with what the disk holds"
    )]
    Failed {
        /// The database.
        file: String,
        /// What happened.
        why: String,
    },
    /// The store has been closed.
    #[error("the store is closed, the server is stopping")]
    Closed,
    /// Opening failed; the text names the file and the mend.
    #[error("{0}")]
    Open(String),
}

impl Error {
    /// True when somebody else wrote first.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Conflict(_))
    }
    /// The API's answer. Conflicts are better mapped by who knows the object's kind and name.
    pub fn status(&self) -> Status {
        match self {
            Self::Conflict(_) => Status::new(
                409,
                "Conflict",
                format!("Operation cannot be fulfilled: {self}"),
            ),
            Self::Compacted { asked, oldest } => {
                Status::expired(format!("too old resource version: {asked} ({oldest})"))
            }
            Self::Future { asked, current } => {
                let mut s = Status::new(
                    504,
                    "Timeout",
                    format!("Too large resource version: {asked}, current: {current}"),
                );
                s.details = serde_json::json!({
                    "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
                    "retryAfterSeconds": 1,
                });
                s
            }
            // RFC 4918's code for a disk that is full; client-go treats it as any other server error.
            Self::Full(_) | Self::Quota { .. } => {
                Status::new(507, "InternalError", self.to_string())
            }
            // It was free a moment ago: another try allocates something else.
            Self::Claimed { .. } => {
                let mut s = Status::new(500, "ServerTimeout", format!("{self}, please try again"));
                s.details = serde_json::json!({"retryAfterSeconds": 1});
                s
            }
            Self::Closed => Status::service_unavailable(self.to_string()),
            Self::Failed { .. } | Self::Open(_) => Status::internal(self),
        }
    }
}

/// A revisioned key-value log.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// The revision of the last write. Never goes back, not even over restarts.
    fn revision(&self) -> u64;

    /// The entry of a key.
    fn get(&self, key: &str) -> Option<Arc<Entry>>;

    /// The entries of a prefix, consistent at one revision.
    ///
    /// # Errors
    /// [`Error::Compacted`] and [`Error::Future`] for revisions that are not there.
    fn range(&self, range: &Range<'_>) -> Result<Page, Error>;

    /// How many entries a prefix has. Cheap for a whole collection.
    fn count(&self, prefix: &str) -> usize;

    /// Has any object this claim ([`Attributes::claims`])?
    fn claimed(&self, claim: &str) -> bool;

    /// Writes a value, or deletes the key when there is none, if what is there is as expected. Returns when it is durable
    /// and visible to reads and watches, with the new entry (of a delete: the last state with the deletion's revision).
    /// Deleting what is not there is a conflict, whatever was expected. A future that is dropped may have written.
    ///
    /// # Errors
    /// [`Error::Conflict`] and [`Error::Claimed`]; [`Error::Full`] and [`Error::Quota`] when there is no space for it;
    /// [`Error::Failed`] when it is unknown whether it was written, and nothing will be any more.
    async fn write(
        &self,
        key: String,
        expect: Expect,
        value: Option<Bytes>,
    ) -> Result<Arc<Entry>, Error>;

    /// All writes below a prefix after a revision, in order, none missing. A revision that has not happened yet waits.
    ///
    /// # Errors
    /// [`Error::Compacted`].
    fn watch(&self, prefix: &str, after: u64) -> Result<Watch, Error>;

    /// Forgets the history up to and including a revision.
    fn compact(&self, revision: u64);

    /// Does it work, as far as is known? A full disk or quota is no fault of the store: see [`Store::alarm`].
    ///
    /// # Errors
    /// Why not.
    fn check(&self) -> Result<(), String>;

    /// Why it takes no new objects at the moment: the disk or the quota is full. Ends by itself once there is space.
    fn alarms(&self) -> tokio::sync::watch::Receiver<Option<String>>;

    /// Refuses further writes, waits for those under way and closes files. Watches end.
    async fn close(&self);
}

/// The collection of a key or prefix: `/group/plural/`; all of it when it has fewer elements.
pub fn collection(key: &str) -> &str {
    let mut slashes = key
        .bytes()
        .enumerate()
        .filter(|(_, b)| *b == b'/')
        .map(|(i, _)| i);
    match slashes.nth(2) {
        Some(i) => &key[..=i],
        None => key,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_revision_is_spliced_in_and_replaced() {
        let raw = br#"{"metadata":{"name":"a"},"data":{}}"#;
        let one = splice(raw, None, 41);
        assert_eq!(
            &one[..],
            br#"{"metadata":{"resourceVersion":"41","name":"a"},"data":{}}"#
        );
        let two = splice(&one, Some(41), 1000);
        assert_eq!(
            &two[..],
            br#"{"metadata":{"resourceVersion":"1000","name":"a"},"data":{}}"#
        );
        assert_eq!(
            &splice(br#"{"metadata":{}}"#, None, 3)[..],
            br#"{"metadata":{"resourceVersion":"3"}}"#
        );
        assert_eq!(&splice(b"opaque", None, 3)[..], b"opaque");
    }

    #[test]
    fn attributes_are_found_again() {
        let a = Attributes::new(
            [("app", "web"), ("x", "")].into_iter(),
            [("spec.nodeName", "n=1")].into_iter(),
        );
        assert_eq!(
            (a.label("app"), a.label("x"), a.label("spec.nodeName")),
            (Some("web"), Some(""), None)
        );
        assert_eq!(a.field("spec.nodeName"), Some("n=1"));
        assert_eq!(a.labels().count(), 2);
        assert_eq!(Attributes::default().labels().count(), 0);
    }

    #[test]
    fn keys_name_their_collection_namespace_and_name() {
        assert_eq!(collection("/core/pods/a/b"), "/core/pods/");
        assert_eq!(collection("/core/pods/"), "/core/pods/");
        let e = |k: &str| Entry {
            key: k.into(),
            value: Bytes::new(),
            revision: 1,
            attributes: Attributes::default(),
        };
        assert_eq!(
            (
                e("/core/pods/a/b").namespace().to_string(),
                e("/core/pods/a/b").name().to_string()
            ),
            ("a".into(), "b".into())
        );
        assert_eq!(
            (
                e("/core/nodes/n").namespace().to_string(),
                e("/core/nodes/n").name().to_string()
            ),
            (String::new(), "n".into())
        );
    }

    proptest::proptest! {
        #[test]
        fn splicing_twice_is_splicing_once_with_the_later_revision(
            name in "[a-z\"{}:,]{0,12}", a in proptest::num::u64::ANY, b in proptest::num::u64::ANY
        ) {
            let raw = serde_json::json!({"metadata": {"name": name}, "data": {"x": "y"}}).to_string();
            let twice = splice(&splice(raw.as_bytes(), None, a), Some(a), b);
            proptest::prop_assert_eq!(&twice, &splice(raw.as_bytes(), None, b));
            let v: serde_json::Value = serde_json::from_slice(&twice).expect("json");
            proptest::prop_assert_eq!(&v["metadata"]["resourceVersion"], &b.to_string());
        }

        #[test]
        fn attributes_come_back_as_they_were_given(labels in proptest::collection::vec(("[a-z./]{1,9}", "[^\0]{0,9}"), 0..5)) {
            let given = || labels.iter().map(|(k, v)| (k.as_str(), v.as_str()));
            let a = Attributes::new(given(), given());
            proptest::prop_assert!(a.labels().eq(given()) && a.fields().eq(given()));
        }
    }
}
