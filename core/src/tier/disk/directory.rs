//! The directory in memory: which run holds a block, what may be evicted, who reads what.
//!
//! A row is 8 bytes in an open-addressed table beside the 32-byte key in its run: under 60 bytes a block in all. A key has one row
//! however many runs hold it; the others are remembered as *shadows* and take over when the owner goes.

use std::collections::{BTreeSet, HashMap};
use std::hash::BuildHasher;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

use foldhash::fast::RandomState;
use hashbrown::HashTable;

use super::index;
use super::run::{Place, Run, Uses};
use super::shapes::Shapes;
use super::tenants::{Cause, Rank, Tenants};
use crate::clock::Clock;
use crate::key::BlockKey;
use crate::policy::{EntryMeta, EvictionPolicy, Slot, recompute_cost};
use crate::run::{NEVER, RunHeader};
use crate::sim::capture::{L3Event, Tap};
use crate::tier::{Put, Refusal};

/// The most earlier uses of a run that a policy is told of when it first hears of it: enough to tell what was used from what was
/// not, at a cost that does not depend on how often.
const TOLD_USES: u32 = 3;

/// Where a block is: in which run, at which position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) slot: Slot,
    pub(super) position: u32,
}

#[derive(Debug)]
struct Entry {
    run: Arc<Run>,
    pins: u32,
    /// Runs whose parent is a block that this run owns.
    children: u32,
    /// Blocks before this run's first one, as far as they are known.
    depth: u32,
    uses: Uses,
    /// Its place in its tenant's order of eviction.
    rank: Rank,
    /// Whether `uses` is newer than what the index holds.
    unsaved: bool,
}

/// What the directory holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    /// Runs.
    pub(super) runs: usize,
    /// Blocks that can be found.
    pub(super) blocks: usize,
    /// Bytes of the runs' records on disk.
    pub(super) live_bytes: u64,
    /// Runs that someone reads, gone ones included.
    pub(super) pinned: usize,
}

/// A run that was taken out.
#[derive(Debug)]
pub(super) struct Gone {
    pub(super) run: Arc<Run>,
    /// Someone reads it: its bytes must wait for the last [`Directory::unpin`].
    pub(super) pinned: bool,
    /// It was evicted because its time was over.
    pub(super) expired: bool,
}

/// All runs of the tier.
#[derive(Debug)]
pub(super) struct Directory {
    rows: HashTable<Row>,
    entries: Vec<Option<Entry>>,
    free: Vec<Slot>,
    /// Further places of keys that have a row already.
    shadows: HashMap<BlockKey, Vec<Row>, RandomState>,
    /// How many runs name a key as their parent.
    child_counts: HashMap<BlockKey, u32, RandomState>,
    shapes: Shapes,
    policy: Box<dyn EvictionPolicy>,
    hasher: RandomState,
    /// Runs used since their last use was saved.
    touched: Vec<Slot>,
    /// Pins of runs that are gone already, by the run's number.
    doomed: HashMap<u64, u32, RandomState>,
    /// Runs with a time to live, by the second at which it is over.
    expiries: BTreeSet<(u64, Slot)>,
    /// Who has how much.
    pub(super) tenants: Tenants,
    /// The time of day, for expiry.
    time: Clock,
    pinned: usize,
    live_bytes: u64,
    clock: u64,
    /// Of the request under way; 0 where nobody tells.
    category: u32,
    /// Where what is asked is written down, while it is captured.
    tap: Option<Tap>,
}

impl Directory {
    pub(super) fn new(
        policy: Box<dyn EvictionPolicy>,
        tenants: Tenants,
        time: Clock,
        tap: Option<Tap>,
    ) -> Self {
        Self {
            rows: HashTable::new(),
            entries: Vec::new(),
            free: Vec::new(),
            shadows: HashMap::default(),
            child_counts: HashMap::default(),
            shapes: Shapes::default(),
            policy,
            hasher: RandomState::default(),
            touched: Vec::new(),
            doomed: HashMap::default(),
            expiries: BTreeSet::new(),
            tenants,
            time,
            pinned: 0,
            live_bytes: 0,
            clock: 1,
            category: 0,
            tap,
        }
    }

    fn note(&self, event: impl FnOnce(&Tap) -> L3Event) {
        if let Some(tap) = &self.tap {
            tap.l3(event(tap));
        }
    }

    /// The next tick: numbers runs and orders uses.
    pub(super) fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// Goes on after `clock`.
    pub(super) fn resume_clock(&mut self, clock: u64) {
        self.clock = self.clock.max(clock);
    }

    fn entry(&self, slot: Slot) -> Option<&Entry> {
        self.entries.get(slot as usize)?.as_ref()
    }

    fn entry_mut(&mut self, slot: Slot) -> Option<&mut Entry> {
        self.entries.get_mut(slot as usize)?.as_mut()
    }

    fn key_at(entries: &[Option<Entry>], row: Row) -> Option<&BlockKey> {
        let entry = entries.get(row.slot as usize)?.as_ref()?;
        entry.run.header.keys.get(row.position as usize)
    }

    /// Where a block is that can still be read: its time is not over.
    pub(super) fn live(&self, key: &BlockKey) -> Option<Row> {
        let row = self.locate(key)?;
        let expires = self.entry(row.slot)?.run.header.terms.expires();
        (expires == NEVER || self.time.now() < expires).then_some(row)
    }

    /// The run that expired first, if one did.
    pub(super) fn expired(&self) -> Option<Slot> {
        self.expired_by(self.time.now())
    }

    fn expired_by(&self, now: u64) -> Option<Slot> {
        let (expires, slot) = self.expiries.first()?;
        (*expires <= now).then_some(*slot)
    }

    /// Slots of expired runs that hold any of these blocks.
    pub(super) fn expired_holders(&self, keys: &[BlockKey]) -> Vec<Slot> {
        if self.expiries.is_empty() {
            return Vec::new();
        }
        let now = self.time.now();
        let over = |slot: &Slot| {
            let entry = self.entry(*slot);
            entry.is_some_and(|entry| entry.run.header.terms.expires() <= now)
        };
        let holders = keys.iter().flat_map(|key| self.holders(key));
        let mut slots = holders.filter(over).collect::<Vec<_>>();
        slots.sort_unstable();
        slots.dedup();
        slots
    }

    /// Where a block is, be its time over or not.
    pub(super) fn locate(&self, key: &BlockKey) -> Option<Row> {
        let found = self.rows.find(self.hasher.hash_one(key), |row| {
            Self::key_at(&self.entries, *row) == Some(key)
        });
        found.copied()
    }

    /// Slots of all runs that hold a block.
    pub(super) fn holders(&self, key: &BlockKey) -> Vec<Slot> {
        let shadows = self.shadows.get(key).into_iter().flatten().copied();
        let rows = self.locate(key).into_iter().chain(shadows);
        rows.map(|row| row.slot).collect()
    }

    /// Slots of all runs of a namespace, or of all.
    pub(super) fn of_namespace(&self, namespace: Option<&BlockKey>) -> Vec<Slot> {
        let runs = self.entries.iter().flatten().map(|entry| &entry.run);
        runs.filter(|run| namespace.is_none_or(|wanted| run.header.namespace == *wanted))
            .map(|run| run.slot)
            .collect()
    }

    /// Makes room for so many runs and blocks: tables that grow leave holes in memory behind.
    pub(super) fn reserve(&mut self, runs: usize, blocks: usize) {
        self.entries.reserve(runs);
        let (entries, hasher) = (&self.entries, &self.hasher);
        self.rows.reserve(blocks, |row| {
            Self::key_at(entries, *row).map_or(0, |key| hasher.hash_one(key))
        });
    }

    /// Adds a run, whose row in the index this is, under all its keys.
    pub(super) fn insert(&mut self, row: index::Row, place: Place) -> Arc<Run> {
        let index::Row {
            serial,
            last_use,
            hits,
            mut header,
            header_bytes,
            created,
            ..
        } = row;
        self.note(|tap| L3Event::Insert {
            run: tap.run(&header),
            tenant: tap.tenant(header.terms.tenant),
            bytes: place.extent.len,
            serial,
            last_use,
            hits,
        });
        header.slices = self.shapes.share(&header.slices);
        let slot = self.free.pop().unwrap_or_else(|| {
            self.entries.push(None);
            (self.entries.len() - 1) as Slot
        });
        let depth = self.locate(&header.parent).map_or(0, |row| {
            self.entry(row.slot)
                .map_or(0, |parent| parent.depth.saturating_add(row.position + 1))
        });
        self.live_bytes += place.extent.len;
        let run = Arc::new(Run {
            slot,
            serial,
            header,
            header_bytes,
            created,
            place,
            sums: OnceLock::new(),
            deleted: AtomicBool::new(false),
        });
        let (meta, ghost) = (self.meta(&run, depth), Self::ghost(&run));
        self.policy.insert(slot, ghost, meta);
        let terms = &run.header.terms;
        let rank = self.tenants.insert(terms.tenant, slot, ghost, meta);
        // What comes back from disk is as used as it was.
        for _ in 0..hits.min(TOLD_USES) {
            self.policy.touch(slot);
            self.tenants.touch(terms.tenant, rank);
        }
        if terms.expires() != NEVER {
            self.expiries.insert((terms.expires(), slot));
        }
        if let Some(place) = self.entries.get_mut(slot as usize) {
            *place = Some(Entry {
                run: Arc::clone(&run),
                pins: 0,
                children: 0,
                depth,
                uses: Uses {
                    last: last_use,
                    hits,
                },
                rank,
                unsaved: false,
            });
        }
        for position in 0..run.header.keys.len() {
            self.claim(
                &run,
                Row {
                    slot,
                    position: position as u32,
                },
            );
        }
        let parent = run.header.parent;
        *self.child_counts.entry(parent).or_default() += 1;
        self.count_child(&parent, true);
        self.refresh_candidate(slot);
        run
    }

    /// Gives a key's row to a run, or notes the run as a shadow of its owner.
    fn claim(&mut self, run: &Run, row: Row) {
        let Some(key) = run.header.keys.get(row.position as usize) else {
            return;
        };
        if self.locate(key).is_some() {
            self.shadows.entry(*key).or_default().push(row);
            return;
        }
        let children = self.child_counts.get(key).copied().unwrap_or(0);
        if let Some(entry) = self.entry_mut(row.slot) {
            entry.children += children;
        }
        let (entries, hasher) = (&self.entries, &self.hasher);
        self.rows.insert_unique(hasher.hash_one(key), row, |row| {
            Self::key_at(entries, *row).map_or(0, |key| hasher.hash_one(key))
        });
    }

    /// Tells the owner of `parent` that it has a child more or less.
    fn count_child(&mut self, parent: &BlockKey, more: bool) {
        let Some(row) = self.locate(parent) else {
            return;
        };
        if let Some(entry) = self.entry_mut(row.slot) {
            entry.children = if more {
                entry.children + 1
            } else {
                entry.children.saturating_sub(1)
            };
        }
        self.refresh_candidate(row.slot);
    }

    /// Only an unpinned leaf may be evicted.
    fn refresh_candidate(&mut self, slot: Slot) {
        if let Some(entry) = self.entry(slot) {
            let candidate = entry.pins == 0 && entry.children == 0;
            let (tenant, rank) = (entry.run.header.terms.tenant, entry.rank);
            self.policy.set_candidate(slot, candidate);
            self.tenants.set_candidate(tenant, rank, candidate);
        }
    }

    /// Says of a run of so many bytes on disk whether it is to be stored: where the run is that it hangs from, if that is here, or what
    /// becomes of it instead. `fits` says whether the tier could ever hold it, `parent_comes` whether what it hangs from is being
    /// written.
    pub(super) fn judge(
        &mut self,
        header: &RunHeader,
        bytes: u64,
        fits: bool,
        parent_comes: bool,
    ) -> Result<Option<Row>, Put> {
        if header.keys.iter().all(|key| self.live(key).is_some()) {
            return Err(Put::Present);
        }
        let parent = self.live(&header.parent);
        let hangs = parent.is_some() || parent_comes || header.parent == header.namespace;
        let refusal = if header.terms.decoded {
            Refusal::Decoded
        } else if !header.terms.persist {
            Refusal::NotPersisted
        } else if header.terms.expires() <= self.time.now() {
            Refusal::Expired
        } else if !hangs {
            Refusal::ParentMissing
        } else if !fits {
            Refusal::TooLarge
        } else if !self.tenants.fits(header.terms.tenant, bytes) {
            Refusal::OverQuota
        } else {
            return Ok(parent);
        };
        Err(Put::Refused(refusal))
    }

    /// Tells the policy that a request comes, and takes out what it says the time of is over.
    pub(super) fn request(&mut self, now_ms: u64, category: u32) -> Vec<Gone> {
        self.category = category;
        self.policy.request(now_ms, category);
        let mut gone = Vec::new();
        while let Some(slot) = self.policy.expired() {
            gone.extend(self.take_out(slot, Cause::Dropped));
        }
        gone
    }

    /// Evicts leaves of `bytes` bytes or more, if there are as many.
    pub(super) fn evict(&mut self, bytes: u64) -> Vec<Gone> {
        let now = self.time.now();
        if let Some(tap) = &self.tap {
            if !self.expiries.is_empty() {
                tap.time(now);
            }
            tap.l3(L3Event::Evict { bytes });
        }
        let mut gone = Vec::new();
        let mut freed = 0;
        while freed < bytes {
            // What nobody can read any more goes before what somebody may.
            let expired = self.expired_by(now);
            let taken = if let Some(slot) = expired {
                self.take_out(slot, Cause::Dropped)
            } else {
                let victim = self.policy.victim();
                victim.and_then(|slot| self.take_out(slot, Cause::NoRoom))
            };
            let Some(run) = taken else { break };
            freed += run.run.place.extent.len;
            gone.push(Gone {
                expired: expired.is_some(),
                ..run
            });
        }
        gone
    }

    /// Evicts leaves of a tenant until it is within its quota; false if it is not and nothing of it can go.
    pub(super) fn trim(&mut self, tenant: u64) -> (Vec<Gone>, bool) {
        self.note(|tap| L3Event::Trim {
            tenant: tap.tenant(tenant),
        });
        let mut gone = Vec::new();
        while self.tenants.is_over(tenant) {
            let victim = self.tenants.victim(tenant);
            let Some(run) = victim.and_then(|slot| self.take_out(slot, Cause::NoRoom)) else {
                return (gone, false);
            };
            gone.push(run);
        }
        (gone, true)
    }

    /// Takes a run out that is deleted, expired or damaged.
    pub(super) fn remove(&mut self, slot: Slot) -> Option<Gone> {
        self.note(|_| L3Event::Drop { slot });
        self.take_out(slot, Cause::Dropped)
    }

    /// Takes a run out: its blocks are no longer found, unless another run holds them too.
    fn take_out(&mut self, slot: Slot, cause: Cause) -> Option<Gone> {
        let run = Arc::clone(&self.entry(slot)?.run);
        let mut heirs = Vec::new();
        for (position, key) in run.header.keys.iter().enumerate() {
            let row = Row {
                slot,
                position: position as u32,
            };
            let found = self
                .rows
                .find_entry(self.hasher.hash_one(key), |found| *found == row);
            if let Ok(owned) = found {
                owned.remove();
                heirs.extend(self.shadows.get(key).and_then(|rows| rows.first()).copied());
            } else if let Some(rows) = self.shadows.get_mut(key) {
                rows.retain(|shadow| *shadow != row);
                if rows.is_empty() {
                    self.shadows.remove(key);
                }
            }
        }
        let parent = run.header.parent;
        if let Some(count) = self.child_counts.get_mut(&parent) {
            *count -= 1;
            if *count == 0 {
                self.child_counts.remove(&parent);
            }
        }
        let entry = self.entries.get_mut(slot as usize)?.take()?;
        cause.tell(self.policy.as_mut(), slot);
        let terms = &run.header.terms;
        self.expiries.remove(&(terms.expires(), slot));
        self.tenants
            .remove(terms.tenant, entry.rank, run.place.extent.len, cause);
        self.free.push(slot);
        self.live_bytes -= run.place.extent.len;
        if entry.pins > 0 {
            self.doomed.insert(run.serial, entry.pins);
        }
        self.count_child(&parent, false);
        for heir in heirs {
            self.promote_shadow(heir);
        }
        Some(Gone {
            run,
            pinned: entry.pins > 0,
            expired: false,
        })
    }

    /// Makes a shadow the owner of its key, which has no row any more.
    fn promote_shadow(&mut self, heir: Row) {
        let Some(run) = self.entry(heir.slot).map(|entry| Arc::clone(&entry.run)) else {
            return;
        };
        let Some(key) = run.header.keys.get(heir.position as usize) else {
            return;
        };
        if let Some(rows) = self.shadows.get_mut(key) {
            rows.retain(|row| *row != heir);
            if rows.is_empty() {
                self.shadows.remove(key);
            }
        }
        self.claim(&run, heir);
        self.refresh_candidate(heir.slot);
    }

    /// Whether this very run is still in the directory.
    pub(super) fn holds(&self, run: &Run) -> bool {
        self.entry(run.slot)
            .is_some_and(|entry| entry.run.serial == run.serial)
    }

    /// Keeps a run from being evicted or reclaimed until [`Self::unpin`].
    pub(super) fn pin(&mut self, slot: Slot) -> Option<Arc<Run>> {
        self.note(|_| L3Event::Pin { slot });
        let entry = self.entry_mut(slot)?;
        entry.pins += 1;
        let (run, first) = (Arc::clone(&entry.run), entry.pins == 1);
        if first {
            self.pinned += 1;
            self.refresh_candidate(slot);
        }
        Some(run)
    }

    /// Ends one pin. True if the run is gone and this was the last pin: its bytes can be reclaimed now.
    pub(super) fn unpin(&mut self, run: &Run) -> bool {
        self.note(|_| L3Event::Unpin { serial: run.serial });
        if self.holds(run) {
            let Some(entry) = self.entry_mut(run.slot) else {
                return false;
            };
            entry.pins = entry.pins.saturating_sub(1);
            if entry.pins == 0 {
                self.pinned -= 1;
                self.refresh_candidate(run.slot);
            }
            return false;
        }
        let Some(pins) = self.doomed.get_mut(&run.serial) else {
            return false;
        };
        *pins -= 1;
        if *pins > 0 {
            return false;
        }
        self.doomed.remove(&run.serial);
        self.pinned -= 1;
        true
    }

    /// Notes a use.
    pub(super) fn touch(&mut self, slot: Slot) {
        let now = self.tick();
        self.note(|_| L3Event::Touch { slot, tick: now });
        self.policy.touch(slot);
        let Some(entry) = self.entry_mut(slot) else {
            return;
        };
        entry.uses.last = now;
        entry.uses.hits = entry.uses.hits.saturating_add(1);
        let (tenant, rank) = (entry.run.header.terms.tenant, entry.rank);
        if !std::mem::replace(&mut entry.unsaved, true) {
            self.touched.push(slot);
        }
        self.tenants.touch(tenant, rank);
    }

    /// Sets what the runs of a tenant may take, in bytes. Looks at all runs, once.
    pub(super) fn set_quota(&mut self, tenant: u64, quota: Option<u64>) {
        self.note(|tap| L3Event::SetQuota {
            tenant: tap.tenant(tenant),
            quota,
        });
        self.tenants.set_quota(tenant, quota);
        let entries = self.entries.iter().flatten();
        let mut own = entries
            .filter(|entry| entry.run.header.terms.tenant == tenant)
            .map(|entry| (entry.uses.last, entry.run.slot))
            .collect::<Vec<_>>();
        own.sort_unstable();
        for (_, slot) in own {
            let Some(entry) = self.entry(slot) else {
                continue;
            };
            let (meta, ghost) = (self.meta(&entry.run, entry.depth), Self::ghost(&entry.run));
            let told = entry.uses.hits.min(TOLD_USES);
            let rank = self.tenants.insert(tenant, slot, ghost, meta);
            for _ in 0..told {
                self.tenants.touch(tenant, rank);
            }
            if let Some(entry) = self.entry_mut(slot) {
                entry.rank = rank;
            }
            self.refresh_candidate(slot);
        }
    }

    fn meta(&self, run: &Run, depth: u32) -> EntryMeta {
        let block_tokens = run.header.block_tokens;
        let tokens = (run.header.keys.len() as u32).saturating_mul(block_tokens);
        EntryMeta {
            bytes: run.place.extent.len,
            tokens,
            depth,
            cost: recompute_cost(tokens, u64::from(depth) * u64::from(block_tokens)),
            category: self.category,
        }
    }

    /// What stands for a run in a policy that remembers evicted ones.
    fn ghost(run: &Run) -> u64 {
        run.header.keys.first().map_or(0, BlockKey::short)
    }

    /// How many uses wait to be saved.
    pub(super) fn unsaved_uses(&self) -> usize {
        self.touched.len()
    }

    /// Runs used since the last call.
    pub(super) fn take_uses(&mut self) -> Vec<(Arc<Run>, Uses)> {
        let slots = std::mem::take(&mut self.touched);
        let mut uses = Vec::with_capacity(slots.len());
        for slot in slots {
            if let Some(entry) = self.entry_mut(slot)
                && std::mem::take(&mut entry.unsaved)
            {
                uses.push((Arc::clone(&entry.run), entry.uses));
            }
        }
        uses
    }

    /// How many leaves could go.
    pub(super) fn evictable(&self) -> usize {
        self.policy.candidates()
    }

    /// What is held.
    pub(super) fn totals(&self) -> Totals {
        Totals {
            runs: self.entries.len() - self.free.len(),
            blocks: self.rows.len(),
            live_bytes: self.live_bytes,
            pinned: self.pinned,
        }
    }

    /// All runs.
    pub(super) fn runs(&self) -> impl Iterator<Item = &Arc<Run>> {
        self.entries.iter().flatten().map(|entry| &entry.run)
    }

    /// Checks every count against what it counts.
    pub(super) fn validate(&self) -> Result<(), String> {
        let mut places = 0;
        let mut candidates = 0;
        let mut pinned = self.doomed.len();
        let (mut live_bytes, mut mortal) = (0, 0);
        let mut tenants: HashMap<u64, (u64, usize)> = HashMap::new();
        let mut child_counts: HashMap<BlockKey, u32> = HashMap::new();
        for entry in self.entries.iter().flatten() {
            *child_counts.entry(entry.run.header.parent).or_default() += 1;
        }
        for (slot, entry) in self.entries.iter().enumerate() {
            let Some(entry) = entry else { continue };
            let run = &entry.run;
            if run.slot as usize != slot {
                return Err(format!("run {} thinks it is in slot {}", slot, run.slot));
            }
            let mut children = 0;
            for (position, key) in run.header.keys.iter().enumerate() {
                let row = Row {
                    slot: slot as Slot,
                    position: position as u32,
                };
                places += 1;
                if self.locate(key) == Some(row) {
                    children += child_counts.get(key).copied().unwrap_or(0);
                } else if !self
                    .shadows
                    .get(key)
                    .is_some_and(|rows| rows.contains(&row))
                {
                    return Err(format!("block {key} of run {slot} has no row"));
                }
            }
            if children != entry.children {
                return Err(format!(
                    "run {slot} counts {} children, it has {children}",
                    entry.children
                ));
            }
            let leaf = children == 0 && entry.pins == 0;
            candidates += usize::from(leaf);
            let terms = &run.header.terms;
            if terms.tenant != 0 {
                let (bytes, leaves) = tenants.entry(terms.tenant).or_default();
                *bytes += run.place.extent.len;
                *leaves += usize::from(leaf);
            }
            if terms.expires() != NEVER {
                mortal += 1;
                if !self.expiries.contains(&(terms.expires(), slot as Slot)) {
                    return Err(format!("run {slot} is not listed for its expiry"));
                }
            }
            pinned += usize::from(entry.pins > 0);
            live_bytes += run.place.extent.len;
        }
        let shadows = self.shadows.values().map(Vec::len).sum::<usize>();
        for (what, counted, found) in [
            ("rows and shadows", self.rows.len() + shadows, places),
            ("candidates", self.policy.candidates(), candidates),
            ("pinned runs", self.pinned, pinned),
            ("runs that expire", self.expiries.len(), mortal),
            ("parents", self.child_counts.len(), child_counts.len()),
        ] {
            if counted != found {
                return Err(format!("{counted} {what} are counted, there are {found}"));
            }
        }
        if live_bytes != self.live_bytes {
            return Err(format!(
                "{} live bytes are counted, there are {live_bytes}",
                self.live_bytes
            ));
        }
        self.tenants.validate(&tenants)?;
        self.policy.validate()
    }
}
