//! What the tests of tiers and store share: runs whose bytes follow from their keys, and an L3 and an L4 that can be slow or broken.
#![expect(clippy::similar_names, reason = "runs and rows are what this is about")]

mod servers;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::sync::{Condvar, Mutex};

use std::collections::{BTreeMap, HashMap, HashSet};

pub(crate) use servers::{FakeServers, Lie};

use super::{
    DurableTier, NamespaceUsage, PinnedRun, Put, ReadFailure, Refusal, Span, Tier, TierId,
    TierUsage,
};
use crate::error::Result;
use crate::key::{BlockKey, chain_key};
use crate::memory::{Piece, Region};
use crate::run::{RunHeader, RunSource, RunTarget, Terms};

pub(crate) fn namespace(index: u8) -> BlockKey {
    BlockKey([index + 1; 32])
}

/// The keys of a chain that is told by its branch: chains of one namespace share their blocks up to `fork`.
pub(crate) fn chain(
    namespace: &BlockKey,
    branch: u32,
    fork: usize,
    blocks: usize,
) -> Vec<BlockKey> {
    let mut parent = *namespace;
    (0..blocks)
        .map(|block| {
            let token = if block < fork { 0 } else { branch };
            parent = chain_key(&parent, &[block as u32, token]);
            parent
        })
        .collect()
}

/// The run of blocks `range` of a chain.
pub(crate) fn header(
    namespace: &BlockKey,
    keys: &[BlockKey],
    range: Range<usize>,
    slices: &[u32],
) -> RunHeader {
    RunHeader {
        namespace: *namespace,
        parent: range
            .start
            .checked_sub(1)
            .map_or(*namespace, |before| keys[before]),
        keys: keys[range].into(),
        block_tokens: 16,
        slices: slices.into(),
        terms: Terms::default(),
    }
}

/// The bytes that a slice of a run must have.
pub(crate) fn slice_bytes(header: &RunHeader, slice: usize) -> Vec<u8> {
    let seed = header.keys[0].short() ^ header.keys[header.keys.len() - 1].short().rotate_left(17);
    (0..u64::from(header.slices[slice]))
        .map(|at| {
            let mixed =
                (seed ^ at.wrapping_add((slice as u64) << 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            (mixed >> 32) as u8
        })
        .collect()
}

/// Pieces of odd lengths that cover `start..start + len`.
fn odd_pieces(start: usize, len: usize) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut at = 0;
    while at < len {
        let piece = (1000 + 37 * pieces.len()).min(len - at);
        pieces.push(Piece {
            spare: false,
            offset: start + at,
            len: piece,
        });
        at += piece;
    }
    pieces
}

fn spread(header: &RunHeader) -> (Arc<Region>, Vec<Vec<Piece>>) {
    let mut end = 0;
    let slices = header
        .slices
        .iter()
        .map(|&len| {
            let start = end;
            end += len as usize + 13;
            odd_pieces(start, len as usize)
        })
        .collect();
    (Arc::new(Region::new(end).expect("test memory")), slices)
}

/// A source with the run's own bytes.
pub(crate) fn source(header: &RunHeader) -> RunSource {
    let (region, slices) = spread(header);
    for (index, pieces) in slices.iter().enumerate() {
        let bytes = slice_bytes(header, index);
        let mut at = 0;
        for piece in pieces {
            region.write(piece.offset, &bytes[at..at + piece.len]);
            at += piece.len;
        }
    }
    RunSource {
        region,
        lease: None,
        slices,
    }
}

/// An empty target for a whole run.
pub(crate) fn target(header: &RunHeader) -> RunTarget {
    let (region, slices) = spread(header);
    RunTarget {
        region,
        lease: None,
        slices,
    }
}

fn gather(region: &Region, pieces: &[Piece]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for piece in pieces {
        let start = bytes.len();
        bytes.resize(start + piece.len, 0);
        region.read(piece.offset, &mut bytes[start..]);
    }
    bytes
}

/// Whether slice `slice` of a target holds the run's bytes.
pub(crate) fn slice_arrived(header: &RunHeader, target: &RunTarget, slice: usize) -> bool {
    gather(&target.region, &target.slices[slice]) == slice_bytes(header, slice)
}

/// Whether all of a target holds the run's bytes.
pub(crate) fn arrived(header: &RunHeader, target: &RunTarget) -> bool {
    (0..header.slices.len()).all(|slice| slice_arrived(header, target, slice))
}

/// A gate that work passes only while it is open.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    shut: Mutex<bool>,
    opened: Condvar,
    waiting: AtomicUsize,
}

impl Gate {
    pub(crate) fn shut(&self) {
        *self.shut.lock() = true;
    }

    pub(crate) fn open(&self) {
        *self.shut.lock() = false;
        self.opened.notify_all();
    }

    /// How many wait in front of it.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    fn pass(&self) {
        let mut shut = self.shut.lock();
        self.waiting.fetch_add(1, Ordering::SeqCst);
        while *shut {
            self.opened.wait(&mut shut);
        }
        self.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Reads, as (first key of the run, slices), in order.
type Journal = Arc<Mutex<Vec<(BlockKey, Range<usize>)>>>;

#[derive(Debug)]
struct Stored {
    header: RunHeader,
    slices: Vec<Vec<u8>>,
    broken: AtomicBool,
}

#[derive(Debug, Default)]
struct Shelf {
    rows: HashMap<BlockKey, Arc<Stored>>,
    /// In the order of storing.
    runs: Vec<Arc<Stored>>,
    evictions: u64,
}

/// An L3 in memory for tests: bounded, leaves first, wants parents, and slow or broken on demand.
#[derive(Debug)]
pub(crate) struct FakeDisk {
    capacity: u64,
    shelf: Arc<Mutex<Shelf>>,
    /// Reads wait here.
    pub(crate) reads: Arc<Gate>,
    /// Writes wait here.
    pub(crate) writes: Gate,
    /// Puts and reads panic.
    pub(crate) panics: Arc<AtomicBool>,
    /// So many reads to come fail, and the runs stay.
    pub(crate) failing: Arc<AtomicUsize>,
    pub(crate) flushes: AtomicUsize,
    pub(crate) closed: AtomicBool,
    /// What was read, as (first key, slices), in order.
    pub(crate) journal: Journal,
}

impl FakeDisk {
    pub(crate) fn new(capacity: u64) -> Arc<Self> {
        Arc::new(Self {
            capacity,
            shelf: Arc::default(),
            reads: Arc::default(),
            writes: Gate::default(),
            panics: Arc::default(),
            failing: Arc::default(),
            flushes: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            journal: Arc::default(),
        })
    }

    /// The same contents as after a restart.
    pub(crate) fn reopened(&self) -> Arc<Self> {
        let new = Self::new(self.capacity);
        {
            let (old, mut fresh) = (self.shelf.lock(), new.shelf.lock());
            fresh.rows.clone_from(&old.rows);
            fresh.runs.clone_from(&old.runs);
        }
        new
    }

    /// Makes the run that holds a block unreadable.
    pub(crate) fn damage(&self, key: &BlockKey) {
        let shelf = self.shelf.lock();
        shelf.rows[key].broken.store(true, Ordering::SeqCst);
    }

    /// The first keys of all runs, in the order of storing.
    pub(crate) fn stored(&self) -> Vec<BlockKey> {
        let shelf = self.shelf.lock();
        shelf.runs.iter().map(|run| run.header.keys[0]).collect()
    }

    pub(crate) fn keys(&self) -> HashSet<BlockKey> {
        self.shelf.lock().rows.keys().copied().collect()
    }
}

impl Shelf {
    fn bytes(&self) -> u64 {
        self.runs.iter().map(|run| run.header.payload_bytes()).sum()
    }

    fn drop_run(&mut self, run: &Arc<Stored>) {
        self.runs.retain(|other| !Arc::ptr_eq(other, run));
        self.rows.retain(|_, other| !Arc::ptr_eq(other, run));
    }

    /// Removes the oldest run that is no parent and read by nobody.
    fn evict(&mut self) -> bool {
        let parents = self.runs.iter().map(|run| run.header.parent);
        let parents = parents.collect::<HashSet<_>>();
        let victim = self.runs.iter().find(|run| {
            let rows = run
                .header
                .keys
                .iter()
                .filter(|key| self.rows.contains_key(*key));
            let own = rows.clone().count();
            !run.header.keys.iter().any(|key| parents.contains(key))
                && Arc::strong_count(run) <= 1 + own
        });
        match victim.cloned() {
            Some(run) => {
                self.drop_run(&run);
                self.evictions += 1;
                true
            }
            None => false,
        }
    }
}

#[derive(Debug)]
struct FakeRun {
    run: Arc<Stored>,
    shelf: Arc<Mutex<Shelf>>,
    gate: Arc<Gate>,
    panics: Arc<AtomicBool>,
    failing: Arc<AtomicUsize>,
    journal: Journal,
}

impl PinnedRun for FakeRun {
    fn header(&self) -> &RunHeader {
        &self.run.header
    }

    /// A place of its own for each run, so that they are told apart and none is near another.
    fn span(&self) -> Option<Span> {
        Some(Span {
            medium: Arc::as_ptr(&self.run) as u64,
            start: 0,
            end: self.run.header.payload_bytes(),
        })
    }

    fn read_slices(&self, range: Range<usize>, target: &RunTarget) -> Result<(), ReadFailure> {
        self.journal
            .lock()
            .push((self.run.header.keys[0], range.clone()));
        self.gate.pass();
        assert!(!self.panics.load(Ordering::SeqCst), "the fake disk panics");
        let failing = self
            .failing
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
                left.checked_sub(1)
            });
        if failing.is_ok() {
            return Err(ReadFailure::Io);
        }
        if self.run.broken.load(Ordering::SeqCst) {
            self.shelf.lock().drop_run(&self.run);
            return Err(ReadFailure::Corrupt);
        }
        for slice in range {
            let mut at = 0;
            for piece in &target.slices[slice] {
                let bytes = &self.run.slices[slice][at..at + piece.len];
                if !piece.spare {
                    target.region.write(piece.offset, bytes);
                }
                at += piece.len;
            }
        }
        Ok(())
    }
}

impl Tier for FakeDisk {
    fn id(&self) -> TierId {
        TierId::L3
    }

    fn contains(&self, key: &BlockKey) -> bool {
        self.shelf.lock().rows.contains_key(key)
    }

    fn find(&self, key: &BlockKey) -> Option<(Arc<dyn PinnedRun>, usize)> {
        let run = Arc::clone(self.shelf.lock().rows.get(key)?);
        let position = run.header.keys.iter().position(|stored| stored == key)?;
        let run = FakeRun {
            run,
            shelf: Arc::clone(&self.shelf),
            gate: Arc::clone(&self.reads),
            panics: Arc::clone(&self.panics),
            failing: Arc::clone(&self.failing),
            journal: Arc::clone(&self.journal),
        };
        Some((Arc::new(run), position))
    }

    fn put(&self, header: &RunHeader, source: &RunSource) -> Result<Put> {
        self.writes.pass();
        assert!(!self.panics.load(Ordering::SeqCst), "the fake disk panics");
        let slices = source
            .slices
            .iter()
            .map(|pieces| gather(&source.region, pieces))
            .collect();
        let mut shelf = self.shelf.lock();
        if header.keys.iter().all(|key| shelf.rows.contains_key(key)) {
            return Ok(Put::Present);
        }
        let bytes = header.payload_bytes();
        if bytes > self.capacity {
            return Ok(Put::Refused(Refusal::TooLarge));
        }
        while shelf.bytes() + bytes > self.capacity {
            if !shelf.evict() {
                return Ok(Put::Refused(Refusal::NothingToEvict));
            }
        }
        if header.parent != header.namespace && !shelf.rows.contains_key(&header.parent) {
            return Ok(Put::Refused(Refusal::ParentMissing));
        }
        let run = Arc::new(Stored {
            header: header.clone(),
            slices,
            broken: AtomicBool::new(false),
        });
        for key in &header.keys {
            shelf.rows.entry(*key).or_insert_with(|| Arc::clone(&run));
        }
        shelf.runs.push(run);
        Ok(Put::Stored)
    }

    fn remove(&self, keys: &[BlockKey]) -> usize {
        let mut shelf = self.shelf.lock();
        let mut removed = 0;
        for key in keys {
            let runs = shelf.runs.clone();
            for run in runs.iter().filter(|run| run.header.keys.contains(key)) {
                shelf.drop_run(run);
                removed += 1;
            }
        }
        removed
    }
}

impl DurableTier for FakeDisk {
    fn clear(&self, namespace: Option<&BlockKey>) -> Result<usize> {
        let mut shelf = self.shelf.lock();
        let runs = shelf.runs.clone();
        let gone = runs
            .iter()
            .filter(|run| namespace.is_none_or(|wanted| *wanted == run.header.namespace));
        Ok(gone.map(|run| shelf.drop_run(run)).count())
    }

    fn flush(&self) -> Result<()> {
        self.flushes.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn close(&self) -> Result<()> {
        self.closed.store(true, Ordering::SeqCst);
        Ok(())
    }

    fn usage(&self) -> TierUsage {
        let shelf = self.shelf.lock();
        TierUsage {
            capacity: self.capacity,
            used: shelf.bytes(),
            runs: shelf.runs.len(),
            blocks: shelf.rows.len(),
            evictions: shelf.evictions,
            ..TierUsage::default()
        }
    }

    fn namespaces(&self) -> Vec<NamespaceUsage> {
        let shelf = self.shelf.lock();
        let mut all = BTreeMap::new();
        for run in &shelf.runs {
            let usage = all.entry(run.header.namespace).or_insert(NamespaceUsage {
                namespace: run.header.namespace,
                runs: 0,
                blocks: 0,
                payload_bytes: 0,
            });
            usage.runs += 1;
            usage.blocks += run.header.keys.len();
            usage.payload_bytes += run.header.payload_bytes();
        }
        all.into_values().collect()
    }
}
