//! The disk tier against a plain list of runs: any order of puts, reads, deletes, evictions, reopenings and kills, and many threads.
#![expect(clippy::expect_used, reason = "helpers of tests")]

mod disk_support;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use disk_support::{Shape, check, config, crash_image, header, namespace, source};
use kvlab_core::config::DiskConfig;
use kvlab_core::key::BlockKey;
use kvlab_core::policy::live_names;
use kvlab_core::run::RunHeader;
use kvlab_core::tier::disk::{DiskTier, DroppedCounts};
use kvlab_core::tier::{PinnedRun, Put, Refusal, Tier};
use proptest::prelude::*;
use tempfile::TempDir;

#[derive(Clone, Debug)]
enum Step {
    /// A run after block `parent` of all blocks ever seen (none: at the root).
    Put {
        parent: Option<prop::sample::Index>,
        names: usize,
        seed: u32,
        blocks: usize,
        shape: usize,
    },
    Find(prop::sample::Index, usize),
    Pin(prop::sample::Index),
    Unpin,
    Remove(prop::sample::Index),
    Clear(usize),
    Evict(u64),
    Flush,
    Reopen,
    Kill,
}

fn step() -> impl Strategy<Value = Step> {
    let block = any::<prop::sample::Index>;
    prop_oneof![
        8 => (prop::option::weighted(0.7, block()), 0..2_usize, 0..4_u32, 1..5_usize, 0..5_usize).prop_map(
            |(parent, names, seed, blocks, shape)| Step::Put { parent, names, seed, blocks, shape }
        ),
        4 => (block(), 0..3_usize).prop_map(|(block, shape)| Step::Find(block, shape)),
        2 => block().prop_map(Step::Pin),
        2 => Just(Step::Unpin),
        1 => block().prop_map(Step::Remove),
        1 => (0..2_usize).prop_map(Step::Clear),
        1 => (1..200_000_u64).prop_map(Step::Evict),
        1 => Just(Step::Flush),
        1 => Just(Step::Reopen),
        1 => Just(Step::Kill),
    ]
}

const SHAPES: [&[u32]; 5] = [
    &[1],
    &[4096, 8192],
    &[777, 5000, 3],
    &[70_000, 4096],
    &[130_000],
];

struct Machine {
    directory: TempDir,
    path: PathBuf,
    config: DiskConfig,
    tier: DiskTier,
    /// Runs that were stored and not deleted; eviction may have taken leaves.
    runs: Vec<RunHeader>,
    /// Blocks ever seen, with their namespace.
    blocks: Vec<(usize, BlockKey)>,
    pinned: Vec<Arc<dyn PinnedRun>>,
    names: [BlockKey; 2],
    images: usize,
    /// Whether something may be missing because it was evicted.
    evicted: bool,
    /// Whether something was deleted from under its children.
    deleted: bool,
}

impl Machine {
    fn new(capacity: u64, direct: bool, policy: &str) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("store");
        let config = DiskConfig {
            capacity,
            segment_bytes: 256 << 10,
            direct,
            policy: policy.to_owned(),
            ..config(&path)
        };
        let (tier, _) = disk_support::open(&config);
        Self {
            directory,
            path,
            config,
            tier,
            runs: Vec::new(),
            blocks: Vec::new(),
            pinned: Vec::new(),
            names: [namespace("one"), namespace("two")],
            images: 0,
            evicted: false,
            deleted: false,
        }
    }

    fn holds(&self, key: &BlockKey) -> bool {
        self.runs.iter().any(|run| run.keys.contains(key))
    }

    fn forget(&mut self, gone: impl Fn(&RunHeader) -> bool) -> usize {
        let before = self.runs.len();
        self.runs.retain(|run| !gone(run));
        self.deleted |= self.runs.len() < before;
        before - self.runs.len()
    }

    fn apply(&mut self, step: &Step) {
        match step {
            Step::Put {
                parent,
                names,
                seed,
                blocks,
                shape,
            } => {
                let (names, parent) = match parent {
                    Some(index) if !self.blocks.is_empty() => *index.get(&self.blocks),
                    _ => (*names, self.names[*names]),
                };
                let run = header(self.names[names], parent, *seed, *blocks, SHAPES[*shape]);
                self.put(names, run);
            }
            Step::Find(block, shape) => {
                let Some((_, key)) = self.block(*block) else {
                    return;
                };
                let shape = [Shape::Pages, Shape::Odd, Shape::HalfSpare][*shape];
                if let Some((pinned, position)) = self.tier.find(&key) {
                    assert_eq!(pinned.header().keys[position], key);
                    check(&*pinned, shape).expect("sound bytes");
                }
            }
            Step::Pin(block) => {
                let found = self.block(*block).and_then(|(_, key)| self.tier.find(&key));
                self.pinned.extend(found.map(|(pinned, _)| pinned));
            }
            Step::Unpin => {
                if let Some(pinned) = self.pinned.pop() {
                    // A pinned run is readable until it is deleted, and even then it gives no wrong bytes.
                    let result = check(&*pinned, Shape::Pages);
                    let present = self.runs.contains(pinned.header());
                    assert!(result.is_ok() || !present, "{result:?}");
                }
            }
            Step::Remove(block) => {
                let Some((_, key)) = self.block(*block) else {
                    return;
                };
                let removed = self.tier.remove(&[key]);
                let expected = self.forget(|run| run.keys.contains(&key));
                assert!(removed == expected || self.evicted && removed < expected);
            }
            Step::Clear(names) => {
                let names = self.names[*names];
                let removed = self.tier.clear(Some(&names)).expect("cleared");
                let expected = self.forget(|run| run.namespace == names);
                assert!(removed == expected || self.evicted && removed < expected);
            }
            Step::Evict(bytes) => {
                self.evicted |= self.tier.evict(*bytes) > 0;
            }
            Step::Flush => self.tier.flush().expect("flushed"),
            Step::Reopen => {
                self.pinned.clear();
                self.tier.close().expect("closed");
                self.reopen(true);
            }
            Step::Kill => {
                self.images += 1;
                let image = self
                    .directory
                    .path()
                    .join(format!("killed-{}", self.images));
                self.pinned.clear();
                crash_image(&self.path, &image);
                self.path = image;
                self.config.path.clone_from(&self.path);
                self.reopen(false);
            }
        }
    }

    fn block(&self, index: prop::sample::Index) -> Option<(usize, BlockKey)> {
        (!self.blocks.is_empty()).then(|| *index.get(&self.blocks))
    }

    fn put(&mut self, names: usize, run: RunHeader) {
        let present = run.keys.iter().all(|key| self.tier.contains(key));
        let orphan = run.parent != run.namespace && !self.tier.contains(&run.parent);
        let put = self.tier.put(&run, &source(&run)).expect("valid");
        self.evicted |= self.tier.stats().evictions > 0;
        match put {
            Put::Present => assert!(present),
            Put::Refused(Refusal::ParentMissing) => assert!(orphan && !present),
            // Pins and chains may hold a small store full.
            Put::Refused(Refusal::NothingToEvict) => assert!(self.config.capacity < 32 << 20),
            Put::Stored => {
                assert!(!present && !orphan);
                assert!(run.keys.iter().all(|key| self.tier.contains(key)));
                self.blocks.extend(run.keys.iter().map(|key| (names, *key)));
                self.runs.push(run);
            }
            other => panic!("{other:?}"),
        }
    }

    fn reopen(&mut self, clean: bool) {
        let (tier, report) = disk_support::open(&self.config);
        assert_eq!(report.clean, clean, "{report:?}");
        assert_eq!(
            report.rows_dropped,
            kvlab_core::tier::disk::RowsDropped::default()
        );
        // Files copied while sled writes them may not fit together; then the segments alone must do.
        assert!(!(clean && report.index_rebuilt));
        self.evicted |= tier.stats().evictions > 0;
        self.tier = tier;
    }

    fn compare(&self) {
        self.tier.validate().expect("sound");
        for (_, key) in &self.blocks {
            let (stored, found) = (self.holds(key), self.tier.contains(key));
            assert!(stored || !found, "{key} came back");
            assert!(found || !stored || self.evicted, "{key} is lost");
        }
        let stats = self.tier.stats();
        assert_eq!(stats.dropped, DroppedCounts::default());
        assert_eq!(stats.pinned > 0, !self.pinned.is_empty());
        if !self.evicted {
            assert_eq!(stats.runs, self.runs.len());
        }
        // Eviction takes leaves only: what is found can be reached from its root.
        if !self.deleted {
            for run in self
                .runs
                .iter()
                .filter(|run| run.keys.iter().all(|key| self.tier.contains(key)))
            {
                assert!(run.parent == run.namespace || self.tier.contains(&run.parent));
            }
        }
    }
}

proptest! {
    #![proptest_config(disk_support::cases(48))]

    #[test]
    fn a_store_is_a_list_of_runs(
        steps in prop::collection::vec(step(), 1..60),
        small in any::<bool>(),
        direct in any::<bool>(),
        policy in prop::sample::select(live_names().collect::<Vec<_>>()),
    ) {
        let mut machine = Machine::new(if small { 2 << 20 } else { 64 << 20 }, direct, policy);
        for step in &steps {
            machine.apply(step);
            machine.compare();
        }
        machine.pinned.clear();
        machine.compare();
        machine.apply(&Step::Reopen);
        machine.compare();
    }
}

#[test]
fn threads_that_put_the_same_runs_store_each_once() {
    let directory = tempfile::tempdir().expect("a directory");
    let config = DiskConfig {
        segment_bytes: 256 << 10,
        ..config(directory.path())
    };
    let (tier, _) = disk_support::open(&config);
    let names = namespace("one");
    let runs: Vec<_> = (0..40)
        .map(|seed| header(names, names, seed, 2, SHAPES[seed as usize % 4]))
        .collect();
    let stored = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (tier, runs, stored) = (&tier, &runs, &stored);
            scope.spawn(move || {
                for step in 0..runs.len() {
                    let run = &runs[(step + thread) % runs.len()];
                    match tier.put(run, &source(run)).expect("valid") {
                        Put::Stored => stored.fetch_add(1, Ordering::Relaxed),
                        put => {
                            assert_eq!(put, Put::Present);
                            0
                        }
                    };
                    let (pinned, _) = tier.find(&run.keys[1]).expect("stored");
                    check(&*pinned, Shape::Pages).expect("sound bytes");
                }
            });
        }
    });
    assert_eq!(stored.into_inner(), runs.len());
    assert_eq!(tier.stats().writes, runs.len() as u64);
    tier.validate().expect("sound");
}

#[test]
fn threads_that_put_read_evict_and_delete_never_see_wrong_bytes() {
    let directory = tempfile::tempdir().expect("a directory");
    let config = DiskConfig {
        capacity: 4 << 20,
        segment_bytes: 256 << 10,
        ..config(directory.path())
    };
    let (tier, _) = disk_support::open(&config);
    let names = [namespace("one"), namespace("two")];
    let runs: Vec<_> = (0..120_u32)
        .map(|seed| {
            let names = names[seed as usize % 2];
            header(names, names, seed, 2, SHAPES[seed as usize % 5])
        })
        .collect();
    let reads = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for thread in 0..4_usize {
            let (tier, runs, reads) = (&tier, &runs, &reads);
            scope.spawn(move || {
                for step in 0..200_usize {
                    let run = &runs[(step * 7 + thread * 31) % runs.len()];
                    let _ = tier.put(run, &source(run)).expect("valid");
                    let other = &runs[(step * 11 + thread) % runs.len()];
                    if let Some((pinned, _)) = tier.find(&other.keys[0])
                        && check(&*pinned, Shape::HalfSpare).is_ok()
                    {
                        reads.fetch_add(1, Ordering::Relaxed);
                    }
                    match step % 40 {
                        13 => drop(tier.remove(&run.keys)),
                        27 => drop(tier.evict(100_000)),
                        39 if thread == 0 => drop(tier.clear(Some(&names[1]))),
                        _ => {}
                    }
                }
            });
        }
    });
    assert!(reads.into_inner() > 0);
    tier.validate().expect("sound");
    let stats = tier.stats();
    assert_eq!((stats.dropped, stats.pinned), (DroppedCounts::default(), 0));
    tier.close().expect("closed");
    let (tier, report) = disk_support::open(&config);
    assert!(report.clean);
    assert_eq!((report.runs, report.bytes), (stats.runs, stats.live_bytes));
    tier.validate().expect("sound");
}
