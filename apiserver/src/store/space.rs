//! How much the store may take: a quota of bytes on disk, one of memory, and a disk that is full. Pure: sizes come in,
//! refusals go out; the writer asks before each write and after each commit.
//!
//! redb gives freed pages to later writes but the file seldom shrinks, so the bytes of the file alone would refuse writes for
//! ever. What deletes freed is known from the sizes of the records: half of it (pages are not filled to the brim) counts as
//! free.

use super::Error;

/// Bounds of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// Bytes of the database on disk; etcd's default upstream.
    pub bytes: u64,
    /// Bytes of objects and history in memory; none for no bound.
    pub memory: Option<u64>,
}

/// What sets [`Quota::bytes`].
pub const BYTES_FLAG: &str = "--datastore-quota-bytes";
/// What sets [`Quota::memory`].
pub const MEMORY_FLAG: &str = "--datastore-memory-quota-bytes";

impl Default for Quota {
    fn default() -> Self {
        Self {
            bytes: 2 << 30,
            memory: None,
        }
    }
}

/// What the disk says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Room {
    /// Bytes that the database has on the disk.
    pub used: u64,
    /// The disk is full: some of the reserve was given up.
    pub tight: bool,
    /// Most of the reserve was given up: what is left is for deletes.
    pub spent: bool,
}

/// Changes of at most so many bytes pass on a full store, up to a bound of their own: objects cannot be deleted without
/// them (deletion timestamps, finalizers).
const SMALL: u64 = 1024;

/// The bytes that a record takes in the file: large ones have pages of their own.
pub fn pages(bytes: usize) -> u64 {
    let bytes = bytes as u64 + 16;
    if bytes <= 2048 {
        bytes
    } else {
        bytes.div_ceil(4096).next_power_of_two() * 4096
    }
}

/// The account.
#[derive(Debug)]
pub struct Space {
    quota: Quota,
    name: String,
    /// Bytes of all records and the history, as [`pages`] counts them.
    live: u64,
    /// What they were at most since the file became as large as it is.
    mark: u64,
    room: Room,
    memory: u64,
    alarm: Option<Error>,
}

impl Space {
    /// The account of a store that was opened. `memory`: bytes that its objects and history take there.
    pub fn new(quota: Quota, name: String, live: u64, memory: u64, room: Room) -> Self {
        let mut this = Self {
            quota,
            name,
            live,
            // What an earlier run left free in the file is not known: records fill pages to two thirds on average.
            mark: live.max(room.used.saturating_sub(1 << 20) / 3 * 2),
            room,
            memory,
            alarm: None,
        };
        this.judge();
        this
    }

    /// Bytes of all records.
    pub fn live(&self) -> u64 {
        self.live
    }

    /// Bytes that later writes find free inside of the file.
    fn inside(&self) -> u64 {
        self.mark.saturating_sub(self.live) / 2
    }

    /// Bytes of the file that are in use. What is free inside of it is an estimate, so it is not believed without end.
    fn used(&self) -> u64 {
        let quota = self.quota.bytes;
        if self.room.used > quota + quota / 8 {
            return self.room.used;
        }
        self.room.used.saturating_sub(self.inside())
    }

    /// May a record of `old` bytes (0: none) become one of `new` bytes? `batch` is what the writes before it in the same
    /// transaction add. `urgent`: it passes as small changes do.
    ///
    /// # Errors
    /// [`Error::Full`], [`Error::Quota`]; the alarm is on then.
    pub fn admit(&mut self, old: u64, new: u64, batch: u64, urgent: bool) -> Result<(), Error> {
        let growth = new.saturating_sub(old);
        if new == 0 || growth == 0 && !self.room.tight {
            return Ok(());
        }
        let small = urgent || old > 0 && growth <= SMALL;
        let more = growth + batch;
        if self.room.tight && self.inside() < more && !(small && !self.room.spent) {
            return Err(self.refuse(Error::Full(self.name.clone())));
        }
        let allow = |quota: u64| if small { quota + quota / 16 } else { quota };
        if self.used() + more > allow(self.quota.bytes) {
            return Err(self.refuse(Error::Quota {
                used: self.used(),
                quota: self.quota.bytes,
                flag: BYTES_FLAG,
            }));
        }
        if let Some(quota) = self.quota.memory
            && self.memory + more > allow(quota)
        {
            return Err(self.refuse(Error::Quota {
                used: self.memory,
                quota,
                flag: MEMORY_FLAG,
            }));
        }
        Ok(())
    }

    fn refuse(&mut self, e: Error) -> Error {
        if self.alarm.is_none() {
            tracing::warn!("{e}");
        }
        self.alarm = Some(e.clone());
        e
    }

    /// The disk had no space for a write, not even with the reserve.
    pub fn full(&mut self, room: Room) -> Error {
        self.room = Room {
            tight: true,
            spent: true,
            ..room
        };
        self.mark = self.live;
        self.refuse(Error::Full(self.name.clone()))
    }

    /// A transaction was committed: what is there now.
    pub fn committed(&mut self, live: u64, memory: u64, room: Room) {
        self.live = live;
        self.memory = memory;
        // A file that became smaller has less free inside.
        let shrunk = self.room.used.saturating_sub(room.used);
        self.mark = live.max(self.mark.saturating_sub(shrunk * 2));
        self.room = room;
        self.judge();
    }

    /// The disk was looked at again.
    pub fn looked(&mut self, room: Room) {
        self.room = room;
        self.judge();
    }

    fn judge(&mut self) {
        let below = |used: u64, quota: u64| used <= quota - quota / 16;
        let over = match &self.alarm {
            None => {
                if self.room.tight {
                    self.refuse(Error::Full(self.name.clone()));
                }
                return;
            }
            Some(Error::Full(_)) => !self.room.tight,
            Some(_) => {
                !self.room.tight
                    && below(self.used(), self.quota.bytes)
                    && self.quota.memory.is_none_or(|q| below(self.memory, q))
            }
        };
        if over {
            tracing::info!(store = self.name, "there is space for writes again");
            self.alarm = None;
        }
    }

    /// The disk is full: the reserve is to be filled as soon as there is space.
    pub fn tight(&self) -> bool {
        self.room.tight
    }

    /// Why writes are refused.
    pub fn alarm(&self) -> Option<&Error> {
        self.alarm.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1 << 20;

    fn space(live: u64, used: u64) -> Space {
        let quota = Quota {
            bytes: 100 * MB,
            memory: Some(50 * MB),
        };
        Space::new(quota, "x".into(), live, 0, room(used))
    }
    fn room(used: u64) -> Room {
        Room {
            used,
            ..Room::default()
        }
    }

    #[test]
    fn a_full_quota_refuses_growth_lets_deletes_pass_and_ends_when_enough_was_deleted() {
        let mut s = space(70 * MB, 100 * MB - 10);
        let e = s.admit(0, 2000, 0, false).unwrap_err();
        assert!(
            e.to_string()
                .starts_with("etcdserver: mvcc: database space exceeded: "),
            "{e}"
        );
        assert!(s.alarm().is_some());
        assert!(s.admit(2000, 0, 0, false).is_ok(), "a delete");
        assert!(s.admit(2000, 1500, 0, false).is_ok(), "less than before");
        assert!(s.admit(2000, 2060, 0, false).is_ok(), "a finalizer goes");
        assert!(s.admit(2000, 6000, 0, false).is_err(), "an object grows");
        s.committed(65 * MB, 0, room(100 * MB - 10));
        assert!(s.alarm().is_some(), "a little was deleted");
        assert!(
            s.admit(0, 2000, 0, false).is_ok(),
            "but there is room for a little"
        );
        s.committed(50 * MB, 0, room(100 * MB - 10));
        assert!(s.alarm().is_none() && s.admit(0, 2000, 0, false).is_ok());
        assert!(
            s.admit(0, 2000, 90 * MB, false).is_err(),
            "what the batch adds counts"
        );
    }

    #[test]
    fn small_changes_have_a_bound_too() {
        let mut s = space(100 * MB, 107 * MB);
        assert!(s.admit(2000, 2060, 0, false).is_err());
        assert!(s.admit(2000, 0, 0, false).is_ok());
    }

    #[test]
    fn memory_is_bounded_by_its_own_quota() {
        let mut s = space(10, 10);
        s.committed(10, 50 * MB - 10, room(10));
        let e = s.admit(0, 100, 0, false).unwrap_err();
        assert!(
            matches!(
                e,
                Error::Quota {
                    flag: MEMORY_FLAG,
                    ..
                }
            ),
            "{e}"
        );
        s.committed(10, 40 * MB, room(10));
        assert!(s.alarm().is_none() && s.admit(0, 100, 0, false).is_ok());
    }

    #[test]
    fn a_full_disk_keeps_its_reserve_for_deletes() {
        let mut s = space(10 * MB, 15 * MB);
        let tight = Room {
            used: 15 * MB,
            tight: true,
            spent: false,
        };
        s.committed(10 * MB, 0, tight);
        assert!(matches!(s.alarm(), Some(Error::Full(_))), "told at once");
        assert!(matches!(s.admit(0, 100, 0, false), Err(Error::Full(_))));
        assert!(s.admit(100, 160, 0, false).is_ok() && s.admit(100, 0, 0, false).is_ok());
        s.committed(
            10 * MB,
            0,
            Room {
                spent: true,
                ..tight
            },
        );
        assert!(s.admit(100, 160, 0, false).is_err() && s.admit(100, 0, 0, false).is_ok());
        s.committed(
            6 * MB,
            0,
            Room {
                spent: true,
                ..tight
            },
        );
        assert!(
            s.admit(0, 100_000, 0, false).is_ok(),
            "deletes made room inside"
        );
        s.looked(room(15 * MB));
        assert!(s.alarm().is_none());
    }

    #[test]
    fn what_an_earlier_run_left_free_is_free() {
        let mut s = space(10 * MB, 101 * MB);
        assert!(s.admit(0, 100, 0, false).is_ok());
    }

    #[test]
    fn large_records_count_as_the_pages_that_they_take() {
        assert_eq!((pages(100), pages(4090), pages(9000)), (116, 8192, 16384));
    }
}
