//! What a caller showed, and for how long it is good: a certificate or token that expires, the objects a token rests on.
//! Owns the live connections that have to end with their credential ([`Sessions`]); decides nothing about rights.

use super::{Auth, UserInfo};
use crate::App;
use crate::store::{Error, Event};
use parking_lot::Mutex;
use serde::Deserialize;
use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tokio::sync::watch;

/// An object that a token rests on: it dies with it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Rest {
    /// The store's key, e.g. `/core/serviceaccounts/default/default`.
    pub key: Box<str>,
    /// Of the object that was meant, not of one that took its name.
    pub uid: Box<str>,
}

/// How somebody proved who they are. Made once a request (certificates: once a connection).
#[derive(Debug, Clone)]
pub struct Credential {
    /// Who it shows; not whom they impersonate.
    pub user: Arc<UserInfo>,
    /// Seconds since the epoch after which it is worth nothing; none when it does not expire (components of this process,
    /// the server's own token, anonymous).
    pub expires: Option<i64>,
    /// What must be there for it to be good.
    pub rests_on: Vec<Rest>,
}

impl Credential {
    /// One that neither expires nor can be revoked.
    pub fn lasting(user: Arc<UserInfo>) -> Arc<Self> {
        Arc::new(Self {
            user,
            expires: None,
            rests_on: Vec::new(),
        })
    }

    /// Can it end while a connection lives?
    pub fn ends(&self) -> bool {
        self.expires.is_some() || !self.rests_on.is_empty()
    }

    /// The moment after which it is not good, as far as is known now; None when something it rests on is gone.
    fn deadline(&self, app: &App) -> Option<i64> {
        let mut until = self.expires.unwrap_or(i64::MAX);
        for rest in &self.rests_on {
            let entry = app.store.get(&rest.key)?;
            until = until.min(Standing::of(&entry.value)?.until(&rest.uid)?);
        }
        Some(until)
    }
}

/// The part of an object's metadata that tokens rest on.
#[derive(Debug, Deserialize)]
pub struct Standing<'a> {
    /// Its uid.
    #[serde(borrow, default)]
    pub uid: Cow<'a, str>,
    #[serde(borrow, default, rename = "deletionTimestamp")]
    deletion: Option<Cow<'a, str>>,
}

impl<'a> Standing<'a> {
    /// Of a stored object; nothing behind its metadata, which come first, is looked at.
    pub fn of(stored: &'a [u8]) -> Option<Self> {
        let metadata = stored.strip_prefix(b"{\"metadata\":")?;
        let mut values = serde_json::Deserializer::from_slice(metadata).into_iter();
        values.next()?.ok()
    }

    /// Until when an object of that uid counts: for ever, or for a while after its deletion began. None: it is another
    /// one.
    pub fn until(&self, uid: &str) -> Option<i64> {
        if self.uid != uid {
            return None;
        }
        Some(match &self.deletion {
            None => i64::MAX,
            Some(at) => {
                at.parse::<jiff::Timestamp>().ok()?.as_second() + super::tokens::DELETION_LEEWAY
            }
        })
    }
}

impl Auth {
    /// Is this credential still good? A few look-ups and no decoding: cheap enough for every message of a stream.
    pub fn still_valid(&self, app: &App, credential: &Credential) -> bool {
        credential
            .deadline(app)
            .is_some_and(|d| jiff::Timestamp::now().as_second() <= d)
    }

    /// Follows a connection that lives on after its request was authorized (watch, exec, attach, port-forward, proxied
    /// upgrades): [`Session::ended`] comes back when the credential has expired or was revoked. None when it never ends.
    pub fn session(&self, app: &App, credential: &Arc<Credential>) -> Option<Session> {
        credential
            .ends()
            .then(|| self.sessions.open(app, credential.clone()))
    }
}

/// A deadline that has passed.
const OVER: i64 = i64::MIN;

struct Live {
    credential: Arc<Credential>,
    deadline: watch::Sender<i64>,
}

#[derive(Default)]
struct Table {
    live: HashMap<u64, Live>,
    /// By the key of what they rest on.
    by_key: HashMap<Box<str>, Vec<u64>>,
}

/// The connections whose credentials can end. One task follows the objects for all of them.
#[derive(Default)]
pub struct Sessions {
    table: Arc<Mutex<Table>>,
    next: AtomicU64,
}

/// One connection; forgotten when dropped.
pub struct Session {
    id: u64,
    deadline: watch::Receiver<i64>,
    table: Arc<Mutex<Table>>,
}

impl Session {
    /// False from the moment on at which the connection has to end.
    pub fn is_valid(&self) -> bool {
        jiff::Timestamp::now().as_second() <= *self.deadline.borrow()
    }

    /// Waits until the credential is no longer good. Safe to drop and call again; costs nothing meanwhile.
    pub async fn ended(&mut self) {
        loop {
            let deadline = *self.deadline.borrow_and_update();
            let left = deadline.saturating_sub(jiff::Timestamp::now().as_second());
            if left < 0 {
                return;
            }
            // The moment itself still counts. A day at most: the clock may be set.
            let left = Duration::from_secs(left.saturating_add(1).clamp(1, 86_400).unsigned_abs());
            tokio::select! {
                changed = self.deadline.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                () = tokio::time::sleep(left) => {}
            }
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let mut table = self.table.lock();
        let Some(live) = table.live.remove(&self.id) else {
            return;
        };
        for rest in &live.credential.rests_on {
            if let Some(ids) = table.by_key.get_mut(&rest.key) {
                ids.retain(|i| *i != self.id);
                if ids.is_empty() {
                    table.by_key.remove(&rest.key);
                }
            }
        }
    }
}

/// What tokens can rest on.
const FOLLOWED: [&str; 4] = [
    "/core/serviceaccounts/",
    "/core/pods/",
    "/core/secrets/",
    "/core/nodes/",
];

impl Sessions {
    fn open(&self, app: &App, credential: Arc<Credential>) -> Session {
        let id = self.next.fetch_add(1, Relaxed);
        let (tx, rx) = watch::channel(i64::MAX);
        {
            let mut table = self.table.lock();
            for rest in &credential.rests_on {
                table.by_key.entry(rest.key.clone()).or_default().push(id);
            }
            let live = Live {
                credential,
                deadline: tx,
            };
            table.live.insert(id, live);
        }
        // Only now: what went away before it was followed is seen here, what goes later is told by its event.
        self.look(app, &[id]);
        Session {
            id,
            deadline: rx,
            table: self.table.clone(),
        }
    }

    fn look(&self, app: &App, ids: &[u64]) {
        let table = self.table.lock();
        for live in ids.iter().filter_map(|i| table.live.get(i)) {
            let deadline = live.credential.deadline(app).unwrap_or(OVER);
            live.deadline.send_if_modified(|d| {
                let changed = *d != deadline;
                *d = deadline;
                changed
            });
        }
    }

    fn event(&self, app: &App, event: &Event) {
        let ids = self.table.lock().by_key.get(&event.entry.key).cloned();
        if let Some(ids) = ids {
            self.look(app, &ids);
        }
    }

    fn look_at_all(&self, app: &App) {
        let ids: Vec<u64> = self.table.lock().live.keys().copied().collect();
        self.look(app, &ids);
    }

    /// Follows the objects until the store closes. One task for all connections.
    ///
    /// # Errors
    /// When events were missed; to be called again.
    pub async fn follow(app: Arc<App>) -> Result<(), Error> {
        let follow = |prefix| follow_one(&app, prefix);
        let [accounts, pods, secrets, nodes] = FOLLOWED;
        tokio::try_join!(
            follow(accounts),
            follow(pods),
            follow(secrets),
            follow(nodes)
        )
        .map(drop)
    }

    /// How many connections are followed.
    pub fn len(&self) -> usize {
        self.table.lock().live.len()
    }

    /// No connection is followed.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

async fn follow_one(app: &App, prefix: &str) -> Result<(), Error> {
    let mut watch = app.store.watch(prefix, app.store.revision())?;
    // What happened before it was watched.
    app.auth.sessions.look_at_all(app);
    loop {
        match watch.next().await {
            Ok(events) => events.iter().for_each(|e| app.auth.sessions.event(app, e)),
            Err(Error::Compacted { .. }) => {
                watch = app.store.watch(prefix, app.store.revision())?;
                app.auth.sessions.look_at_all(app);
            }
            Err(Error::Closed) => return Ok(()),
            Err(e) => return Err(e),
        }
    }
}
