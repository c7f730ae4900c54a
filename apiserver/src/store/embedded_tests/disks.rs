//! A disk in memory with the faults that disks have: what was not synced is lost in any part, a sync fails once and what it
//! was to write is lost although it can still be read, there is no space.

use super::super::disk::{Disk, Opened, Reserve, Witness, database};
use super::super::space::Room;
use parking_lot::Mutex;
use rand::Rng;
use rand::rngs::StdRng;
use redb::{DatabaseError, StorageBackend};
use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The disk. `seen` is what the system's page cache shows, `durable` what the disk holds.
#[derive(Default)]
pub struct Flaky {
    pub seen: Mutex<Vec<u8>>,
    pub durable: Mutex<Vec<u8>>,
    unsynced: Mutex<Vec<Op>>,
    /// How many bytes fit, the reserve included; none for no end.
    pub room: Mutex<Option<u64>>,
    /// Every operation fails from now on: the machine is off.
    off: AtomicBool,
    /// How many syncs until it goes off; 0 for never.
    pub fuse: AtomicU64,
    /// How many syncs until one fails, once; 0 for never.
    pub bad_sync: AtomicU64,
    /// Operations that came after the sync that failed.
    pub after_failure: AtomicU64,
    failed: AtomicBool,
    pub witness: Mutex<Option<Witness>>,
    reserve: Mutex<Option<Arc<Reserve>>>,
    reserved: Arc<AtomicU64>,
    /// Blocks that were written: the others are holes.
    blocks: Mutex<BTreeSet<u64>>,
}

const BLOCK: u64 = 4096;

#[derive(Debug, Clone)]
enum Op {
    Write(u64, Vec<u8>),
    Len(u64),
}

fn apply(data: &mut Vec<u8>, op: &Op) {
    match op {
        Op::Write(at, b) => {
            let (at, end) = (*at as usize, *at as usize + b.len());
            if data.len() < end {
                data.resize(end, 0);
            }
            data[at..end].copy_from_slice(b);
        }
        Op::Len(n) => data.resize(*n as usize, 0),
    }
}

#[derive(Clone)]
struct Handle(Arc<Flaky>);

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Handle")
    }
}

impl Handle {
    fn on(&self) -> io::Result<()> {
        if self.0.failed.load(Ordering::Relaxed) {
            self.0.after_failure.fetch_add(1, Ordering::Relaxed);
        }
        if self.0.off.load(Ordering::Relaxed) {
            Err(io::Error::other("the power is off"))
        } else {
            Ok(())
        }
    }
}

/// Counts down to one moment.
fn strikes(counter: &AtomicU64) -> bool {
    counter.load(Ordering::Relaxed) > 0 && counter.fetch_sub(1, Ordering::Relaxed) == 1
}

impl StorageBackend for Handle {
    fn len(&self) -> io::Result<u64> {
        self.on()?;
        Ok(self.0.seen.lock().len() as u64)
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.on()?;
        let seen = self.0.seen.lock();
        let from = offset as usize;
        out.copy_from_slice(
            seen.get(from..from + out.len())
                .ok_or(io::ErrorKind::UnexpectedEof)?,
        );
        Ok(())
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.on()?;
        self.0.seen.lock().resize(len as usize, 0);
        self.0.blocks.lock().split_off(&len.div_ceil(BLOCK));
        self.0.unsynced.lock().push(Op::Len(len));
        Ok(())
    }
    fn sync_data(&self) -> io::Result<()> {
        self.on()?;
        if strikes(&self.0.fuse) {
            self.0.off.store(true, Ordering::Relaxed);
            return self.on();
        }
        if strikes(&self.0.bad_sync) {
            // What Linux does: the pages stay readable and count as written.
            self.0.unsynced.lock().clear();
            self.0.failed.store(true, Ordering::Relaxed);
            return Err(io::Error::from_raw_os_error(5));
        }
        self.0.flush();
        Ok(())
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.on()?;
        {
            let mut blocks = self.0.blocks.lock();
            let touched = offset / BLOCK..(offset + data.len() as u64).div_ceil(BLOCK);
            let new = touched.clone().filter(|b| !blocks.contains(b)).count() as u64;
            let used =
                (blocks.len() as u64 + new) * BLOCK + self.0.reserved.load(Ordering::Relaxed);
            if new > 0 && used > self.0.room.lock().unwrap_or(u64::MAX) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            blocks.extend(touched);
        }
        let op = Op::Write(offset, data.to_vec());
        apply(&mut self.0.seen.lock(), &op);
        self.0.unsynced.lock().push(op);
        Ok(())
    }
}

pub struct FlakyDisk(pub Arc<Flaky>);

impl Disk for FlakyDisk {
    fn open(&self) -> Result<Opened, DatabaseError> {
        let reserve = self.0.reserve.lock().clone();
        database(Handle(self.0.clone()), reserve)
    }
    fn name(&self) -> String {
        "flaky.redb".into()
    }
    fn witness(&self) -> Option<Witness> {
        *self.0.witness.lock()
    }
    fn testify(&self, witness: Witness) -> io::Result<()> {
        *self.0.witness.lock() = Some(witness);
        Ok(())
    }
    fn settle(&self) -> io::Result<()> {
        self.0.flush();
        *self.0.seen.lock() = self.0.durable.lock().clone();
        Ok(())
    }
    fn room(&self) -> Room {
        let reserve = self.0.reserve.lock().clone();
        Room {
            used: self.0.blocks.lock().len() as u64 * BLOCK,
            tight: reserve.as_ref().is_some_and(|r| r.touched()),
            spent: reserve.is_some_and(|r| r.kept() < RESERVE / 2),
        }
    }
    fn refill(&self) -> bool {
        let reserve = self.0.reserve.lock().clone();
        reserve.is_none_or(|r| r.refill())
    }
}

const RESERVE: u64 = 4 << 20;

impl Flaky {
    /// A disk with so many bytes, and a reserve.
    pub fn with_room(room: u64) -> Arc<Self> {
        let disk = Arc::new(Self::default());
        *disk.room.lock() = Some(room);
        let (weak, reserved) = (Arc::downgrade(&disk), disk.reserved.clone());
        let reserve = Reserve::new(
            RESERVE,
            Box::new(move |bytes| {
                let disk = weak.upgrade().ok_or(io::ErrorKind::NotFound)?;
                let others = disk.blocks.lock().len() as u64 * BLOCK;
                if bytes > reserved.load(Ordering::Relaxed)
                    && others + bytes > disk.room.lock().unwrap_or(u64::MAX)
                {
                    return Err(io::ErrorKind::StorageFull.into());
                }
                reserved.store(bytes, Ordering::Relaxed);
                Ok(())
            }),
        );
        assert!(reserve.refill());
        *disk.reserve.lock() = Some(Arc::new(reserve));
        disk
    }

    fn flush(&self) {
        let mut durable = self.durable.lock();
        for op in self.unsynced.lock().drain(..) {
            apply(&mut durable, &op);
        }
    }

    /// The same disk under a new process: nothing fails any more.
    pub fn restart(&self) -> Arc<Self> {
        Arc::new(Self {
            seen: Mutex::new(self.seen.lock().clone()),
            durable: Mutex::new(self.durable.lock().clone()),
            unsynced: Mutex::new(self.unsynced.lock().clone()),
            witness: Mutex::new(*self.witness.lock()),
            ..Self::default()
        })
    }

    /// A disk with these bytes.
    pub fn holding(bytes: Vec<u8>, witness: Option<Witness>) -> Arc<Self> {
        Arc::new(Self {
            seen: Mutex::new(bytes.clone()),
            durable: Mutex::new(bytes),
            witness: Mutex::new(witness),
            ..Self::default()
        })
    }

    /// The disk as it is found after a power cut: of what was not synced any sectors of any write may be there. The witness,
    /// which is never synced, may be there or not.
    pub fn crash(&self, random: &mut StdRng) -> Arc<Self> {
        let mut data = self.durable.lock().clone();
        // Each cut loses in its own way.
        let way = random.random_range(0..5);
        for op in self.unsynced.lock().iter() {
            let Op::Write(at, bytes) = op else {
                if random.random_range(0..2) == 0 {
                    apply(&mut data, op);
                }
                continue;
            };
            let sectors = bytes.len().div_ceil(512);
            let (from, to) = match way {
                0 => (0, 0),
                1 => (0, random.random_range(0..=sectors)),
                2 => (random.random_range(0..=sectors), sectors),
                _ => (0, sectors),
            };
            for (i, sector) in bytes.chunks(512).enumerate() {
                let there = (from..to).contains(&i) && (way != 3 || random.random_range(0..2) == 0);
                if there {
                    apply(&mut data, &Op::Write(at + i as u64 * 512, sector.to_vec()));
                }
            }
            if way == 4 && random.random_range(0..3) == 0 {
                break;
            }
        }
        let witness = *self.witness.lock();
        Self::holding(data, witness.filter(|_| random.random_range(0..2) == 0))
    }
}
