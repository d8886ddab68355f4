//! What L2 holds: a row per block, an entry per run, and the child counts that make leaves go first.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Weak};

use hashbrown::hash_map::Entry as MapEntry;

use super::arena::Record;
use crate::clock::Clock;
use crate::key::{BlockKey, KeyMap};
use crate::policy::{EntryMeta, EvictionPolicy, Slot, recompute_cost};
use crate::run::{NEVER, RunHeader};

/// The most expired runs that one put takes out.
const SWEPT_AT_ONCE: usize = 16;

#[derive(Clone, Copy, Debug)]
struct Row {
    slot: Slot,
    position: u32,
}

#[derive(Debug)]
struct Entry {
    record: Arc<Record>,
    /// The key that this run hangs from: the one before the first block that has its row here.
    parent: BlockKey,
    /// False for a parent that would have closed a ring; such a run counts as a root.
    linked: bool,
    /// Blocks whose row points here.
    rows: u32,
    /// Other runs that hang from one of those rows.
    children: u32,
    pins: u32,
    depth: u32,
}

/// Rows, runs and their order of eviction. Knows no memory and does no I/O; its owner locks it for microseconds.
#[derive(Debug)]
pub(super) struct Directory {
    rows: KeyMap<Row>,
    /// Runs that hold a block whose row points to another run: a block that is deleted must go from them, too.
    shadows: KeyMap<Vec<Slot>>,
    entries: Vec<Option<Entry>>,
    vacant: Vec<Slot>,
    /// How many runs hang from a key, whether or not the key itself is here.
    children: KeyMap<u32>,
    policy: Box<dyn EvictionPolicy>,
    /// Pages of runs that nobody has pinned: the most that eviction could free.
    unpinned_pages: usize,
    payload_bytes: u64,
    /// What was evicted and may still be on its way to another tier.
    leaving: VecDeque<Weak<Record>>,
    /// From how many of them on the dead ones are looked for.
    prune_at: usize,
    clock: Clock,
    /// Runs with a time to live, by the second at which it is over.
    expiries: BTreeSet<(u64, Slot)>,
    /// Of the request under way; 0 where nobody tells.
    category: u32,
}

/// How much a directory lists.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Listed {
    pub(super) runs: usize,
    pub(super) blocks: usize,
    pub(super) payload_bytes: u64,
    pub(super) unpinned_pages: usize,
}

impl Directory {
    pub(super) fn new(policy: Box<dyn EvictionPolicy>, clock: Clock) -> Self {
        Self {
            rows: KeyMap::default(),
            shadows: KeyMap::default(),
            entries: Vec::new(),
            vacant: Vec::new(),
            children: KeyMap::default(),
            policy,
            unpinned_pages: 0,
            payload_bytes: 0,
            leaving: VecDeque::new(),
            prune_at: 0,
            clock,
            expiries: BTreeSet::new(),
            category: 0,
        }
    }

    pub(super) fn listed(&self) -> Listed {
        Listed {
            runs: self.entries.len() - self.vacant.len(),
            blocks: self.rows.len(),
            payload_bytes: self.payload_bytes,
            unpinned_pages: self.unpinned_pages,
        }
    }

    fn entry(&self, slot: Slot) -> Option<&Entry> {
        self.entries.get(slot as usize)?.as_ref()
    }

    fn entry_mut(&mut self, slot: Slot) -> Option<&mut Entry> {
        self.entries.get_mut(slot as usize)?.as_mut()
    }

    /// Whether a block can be read.
    pub(super) fn contains(&self, key: &BlockKey) -> bool {
        self.live(key, self.time()).is_some()
    }

    /// The row of a block whose time is not over.
    fn live(&self, key: &BlockKey, now: u64) -> Option<Row> {
        let row = *self.rows.get(key)?;
        let expires = self.entry(row.slot)?.record.header().terms.expires();
        (expires == NEVER || now < expires).then_some(row)
    }

    /// What time it is, if that matters: if any run has a limit. Else 0.
    pub(super) fn time(&self) -> u64 {
        if self.expiries.is_empty() {
            0
        } else {
            self.clock.now()
        }
    }

    /// Takes out expired runs: those that hold any of these blocks, and a few others.
    pub(super) fn drop_expired(&mut self, keys: &[BlockKey], now: u64) {
        if self.expiries.is_empty() {
            return;
        }
        for key in keys {
            if self.rows.contains_key(key) && self.live(key, now).is_none() {
                self.remove(std::slice::from_ref(key));
            }
        }
        for _ in 0..SWEPT_AT_ONCE {
            let Some(slot) = self.expired(now) else {
                return;
            };
            self.unlink(slot);
        }
    }

    /// The run that expired first.
    fn expired(&self, now: u64) -> Option<Slot> {
        let (expires, slot) = self.expiries.first()?;
        (*expires <= now).then_some(*slot)
    }

    /// Whether every block of a run has a row; if so its runs are as if they came in now.
    pub(super) fn renew_if_all_present(&mut self, keys: &[BlockKey], now: u64) -> bool {
        if !keys.iter().all(|key| self.live(key, now).is_some()) {
            return false;
        }
        let mut last = None;
        for key in keys {
            let slot = self.rows.get(key).map(|row| row.slot);
            if let Some(slot) = slot.filter(|_| slot != last) {
                self.policy.renew(slot);
            }
            last = slot;
        }
        true
    }

    /// Pins the run that holds a block and counts a use of it.
    pub(super) fn pin(&mut self, key: &BlockKey) -> Option<(Slot, Arc<Record>, usize)> {
        let Row { slot, position } = self.live(key, self.time())?;
        let entry = self.entry_mut(slot)?;
        entry.pins += 1;
        let (record, first) = (Arc::clone(&entry.record), entry.pins == 1);
        self.policy.touch(slot);
        if first {
            self.unpinned_pages -= record.pages();
            self.policy.set_candidate(slot, false);
        }
        Some((slot, record, position as usize))
    }

    /// Ends a pin; nothing to do if the run has been unlinked since and its slot is another's.
    pub(super) fn unpin(&mut self, slot: Slot, record: &Arc<Record>) {
        let Some(entry) = self.entry_mut(slot) else {
            return;
        };
        if !Arc::ptr_eq(&entry.record, record) {
            return;
        }
        entry.pins -= 1;
        if entry.pins == 0 {
            self.unpinned_pages += record.pages();
            self.offer(slot);
        }
    }

    /// Makes a run a candidate if it is an unpinned leaf.
    fn offer(&mut self, slot: Slot) {
        let free = self
            .entry(slot)
            .is_some_and(|entry| entry.pins == 0 && entry.children == 0);
        self.policy.set_candidate(slot, free);
    }

    /// Lists a record under those of its keys that have no row yet, pinned once; none if all have one.
    pub(super) fn insert(&mut self, record: &Arc<Record>) -> Option<Slot> {
        let header = record.header();
        let first = header
            .keys
            .iter()
            .position(|key| !self.rows.contains_key(key))?;
        let parent = match first.checked_sub(1) {
            None => header.parent,
            Some(before) => header.keys[before],
        };
        let slot = self.vacant.pop().unwrap_or(self.entries.len() as Slot);
        let (mut rows, mut children) = (0, 0);
        for (position, key) in header.keys.iter().enumerate() {
            match self.rows.entry(*key) {
                MapEntry::Vacant(vacant) => {
                    vacant.insert(Row {
                        slot,
                        position: position as u32,
                    });
                    rows += 1;
                    children += self.children.get(key).copied().unwrap_or(0);
                }
                MapEntry::Occupied(_) => self.shadows.entry(*key).or_default().push(slot),
            }
        }
        let above = self.rows.get(&parent).copied();
        // Runs hang below one another by the caller's word. Keys of a chain cannot form a ring, opaque ones can, and
        // a ring would never be evicted; one can only be closed by a run that has both a parent and children here.
        let linked = above.is_none_or(|row| row.slot != slot)
            && !(children > 0 && self.is_below(above.map(|row| row.slot), slot));
        let depth = match (above, linked) {
            (Some(row), true) => self
                .entry(row.slot)
                .map_or(0, |entry| entry.depth.saturating_add(row.position + 1)),
            _ => 0,
        };
        let entry = Entry {
            record: Arc::clone(record),
            parent,
            linked,
            rows,
            children,
            pins: 1,
            depth,
        };
        match self.entries.get_mut(slot as usize) {
            Some(place) => *place = Some(entry),
            None => self.entries.push(Some(entry)),
        }
        let expires = header.terms.expires();
        if expires != NEVER {
            self.expiries.insert((expires, slot));
        }
        let bytes = header.payload_bytes();
        self.payload_bytes += bytes;
        let tokens = header.block_tokens.saturating_mul(rows);
        let meta = EntryMeta {
            bytes,
            tokens,
            depth,
            cost: recompute_cost(tokens, u64::from(depth) * u64::from(header.block_tokens)),
            category: self.category,
        };
        self.policy.insert(slot, header.keys[first].short(), meta);
        if linked {
            *self.children.entry(parent).or_insert(0) += 1;
            if let Some(row) = above {
                if let Some(above) = self.entry_mut(row.slot) {
                    above.children += 1;
                }
                self.offer(row.slot);
            }
        }
        Some(slot)
    }

    /// Whether the run at `from` hangs, over any number of runs, from a key of the run at `slot`. The walk is as long as
    /// the chain above, and taken only when a run comes back above runs that outlived it.
    fn is_below(&self, from: Option<Slot>, slot: Slot) -> bool {
        let mut at = from;
        while let Some(current) = at {
            if current == slot {
                return true;
            }
            at = self
                .entry(current)
                .filter(|entry| entry.linked)
                .and_then(|entry| self.rows.get(&entry.parent))
                .map(|row| row.slot);
        }
        false
    }

    /// Takes a run out that is deleted, expired or displaced. Its pages are free once nobody reads it any more.
    fn unlink(&mut self, slot: Slot) -> Option<Arc<Record>> {
        self.entry(slot)?;
        self.policy.remove(slot);
        self.unlist(slot)
    }

    /// Takes a run out of all lists but the policy's.
    fn unlist(&mut self, slot: Slot) -> Option<Arc<Record>> {
        let entry = self.entries.get_mut(slot as usize)?.take()?;
        self.vacant.push(slot);
        self.expiries
            .remove(&(entry.record.header().terms.expires(), slot));
        for key in &entry.record.header().keys {
            if self.rows.get(key).is_some_and(|row| row.slot == slot) {
                self.rows.remove(key);
            }
            if let Some(slots) = self.shadows.get_mut(key) {
                slots.retain(|other| *other != slot);
                if slots.is_empty() {
                    self.shadows.remove(key);
                }
            }
        }
        if entry.pins == 0 {
            self.unpinned_pages -= entry.record.pages();
        }
        self.payload_bytes -= entry.record.header().payload_bytes();
        if entry.linked {
            if let MapEntry::Occupied(mut count) = self.children.entry(entry.parent) {
                *count.get_mut() -= 1;
                if *count.get() == 0 {
                    count.remove();
                }
            }
            if let Some(row) = self.rows.get(&entry.parent).copied() {
                if let Some(above) = self.entry_mut(row.slot) {
                    above.children -= 1;
                }
                self.offer(row.slot);
            }
        }
        entry.record.mark_draining();
        Some(entry.record)
    }

    /// Tells the policy that a request comes, and takes out what it says the time of is over.
    pub(super) fn request(&mut self, now_ms: u64, category: u32) -> Vec<Arc<Record>> {
        self.category = category;
        self.policy.request(now_ms, category);
        let mut gone = Vec::new();
        while let Some(slot) = self.policy.expired() {
            gone.extend(self.unlink(slot));
        }
        gone
    }

    /// Takes out the leaf that goes next.
    pub(super) fn evict(&mut self) -> Option<Arc<Record>> {
        let slot = self.policy.victim()?;
        self.policy.evicted(slot);
        let record = self.unlist(slot)?;
        if self.leaving.len() >= self.prune_at {
            self.leaving.retain(|record| record.strong_count() > 0);
            self.prune_at = 2 * self.leaving.len() + 16;
        }
        self.leaving.push_back(Arc::downgrade(&record));
        Some(record)
    }

    /// The evicted run that held a block, while its payload is there.
    pub(super) fn leaving(&self, key: &BlockKey) -> Option<Arc<Record>> {
        let latest = self.leaving.iter().rev().filter_map(Weak::upgrade);
        let mut with_key = latest.filter(|record| record.header().keys.contains(key));
        with_key.next()
    }

    fn forget_leaving(&mut self, gone: impl Fn(&RunHeader) -> bool) {
        self.leaving.retain(|record| {
            let record = record.upgrade();
            record.is_some_and(|record| !gone(record.header()))
        });
    }

    /// Takes out the runs that hold any of these blocks, pinned or not.
    pub(super) fn remove(&mut self, keys: &[BlockKey]) -> Vec<Arc<Record>> {
        self.forget_leaving(|header| header.keys.iter().any(|key| keys.contains(key)));
        let mut removed = Vec::new();
        for key in keys {
            let mut slots = self.shadows.get(key).cloned().unwrap_or_default();
            slots.extend(self.rows.get(key).map(|row| row.slot));
            removed.extend(slots.into_iter().filter_map(|slot| self.unlink(slot)));
        }
        removed
    }

    /// Takes out the runs of which these blocks are all that is listed.
    pub(super) fn remove_covered(&mut self, keys: &[BlockKey]) -> Vec<Arc<Record>> {
        let mut counted: hashbrown::HashMap<Slot, u32, foldhash::fast::FixedState> =
            hashbrown::HashMap::default();
        for key in keys {
            if let Some(row) = self.rows.get(key) {
                *counted.entry(row.slot).or_insert(0) += 1;
            }
        }
        counted
            .into_iter()
            .filter(|(slot, count)| self.entry(*slot).is_some_and(|entry| entry.rows <= *count))
            .collect::<Vec<_>>()
            .into_iter()
            .filter_map(|(slot, _)| self.unlink(slot))
            .collect()
    }

    /// Takes out the runs of a namespace, or all.
    pub(super) fn clear(&mut self, namespace: Option<&BlockKey>) -> Vec<Arc<Record>> {
        self.forget_leaving(|header| namespace.is_none_or(|wanted| *wanted == header.namespace));
        (0..self.entries.len() as Slot)
            .filter(|&slot| {
                self.entry(slot).is_some_and(|entry| {
                    namespace.is_none_or(|wanted| *wanted == entry.record.header().namespace)
                })
            })
            .collect::<Vec<_>>()
            .into_iter()
            .filter_map(|slot| self.unlink(slot))
            .collect()
    }

    /// Every listed record.
    pub(super) fn records(&self) -> impl Iterator<Item = &Arc<Record>> {
        self.entries.iter().flatten().map(|entry| &entry.record)
    }

    /// Counts everything anew and compares.
    pub(super) fn validate(&self) -> Result<(), String> {
        self.policy.validate()?;
        let (mut rows, mut shadowed, mut candidates, mut unpinned, mut bytes) = (0, 0, 0, 0, 0);
        let mut children: KeyMap<u32> = KeyMap::default();
        for entry in self.entries.iter().flatten() {
            if entry.linked {
                *children.entry(entry.parent).or_insert(0) += 1;
            }
        }
        if children != self.children {
            return Err("child counts by key differ from the runs".to_owned());
        }
        for (slot, entry) in self.entries.iter().enumerate() {
            let Some(entry) = entry else { continue };
            let header = entry.record.header();
            let (mut own, mut below) = (0, 0);
            for (position, key) in header.keys.iter().enumerate() {
                let shadow = self.shadows.get(key).into_iter().flatten();
                let shadows = shadow.filter(|other| **other as usize == slot).count();
                let own_row = self.rows.get(key).filter(|row| row.slot as usize == slot);
                if shadows != usize::from(own_row.is_none()) {
                    return Err(format!("run {slot} is {shadows} times a shadow for {key}"));
                }
                shadowed += shadows;
                if let Some(row) = own_row {
                    if row.position as usize != position {
                        return Err(format!("the row of {key} points to block {}", row.position));
                    }
                    own += 1;
                    below += children.get(key).copied().unwrap_or(0);
                }
            }
            if own == 0 || own != entry.rows || below != entry.children {
                return Err(format!(
                    "run {slot} has {own} rows and {below} children, it says {} and {}",
                    entry.rows, entry.children
                ));
            }
            rows += own as usize;
            bytes += header.payload_bytes();
            candidates += usize::from(entry.pins == 0 && entry.children == 0);
            unpinned += if entry.pins == 0 {
                entry.record.pages()
            } else {
                0
            };
        }
        let expected = (
            self.rows.len(),
            self.policy.candidates(),
            self.unpinned_pages,
        );
        if (rows, candidates, unpinned) != expected || bytes != self.payload_bytes {
            return Err(format!(
                "counted {rows} rows, {candidates} candidates, {unpinned} unpinned pages, {bytes} bytes; listed are \
                 {expected:?}, {} bytes",
                self.payload_bytes
            ));
        }
        if shadowed != self.shadows.values().map(Vec::len).sum::<usize>() {
            return Err("there are shadows of runs that are gone".to_owned());
        }
        if self.vacant.len() + self.entries.iter().flatten().count() != self.entries.len() {
            return Err("vacant slots are lost".to_owned());
        }
        Ok(())
    }
}
