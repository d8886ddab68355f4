//! The store against a set of what may be in it: bytes equal or miss, sound after every step.

use std::collections::HashSet;
use std::sync::Arc;

use proptest::prelude::*;

use super::{LONG, config, demote, open, read, write};
use crate::config::{StoreConfig, WritePolicy};
use crate::key::BlockKey;
use crate::store::{BlockStore, Lookup};
use crate::tier::testing::{FakeDisk, chain, header, namespace};
use crate::tier::{Put, Refusal};

const BLOCKS: usize = 8;
const OPAQUE: u8 = 12;

#[derive(Clone, Debug)]
enum Op {
    Write {
        chain: usize,
        start: usize,
        blocks: usize,
    },
    Demote {
        chain: usize,
        start: usize,
        blocks: usize,
    },
    Read {
        chain: usize,
        start: usize,
    },
    Prefetch {
        chain: usize,
        start: usize,
        cancel: bool,
        wait: bool,
    },
    PutBytes {
        key: u8,
        parent: Option<u8>,
    },
    GetBytes {
        key: u8,
    },
    RemoveBytes {
        key: u8,
    },
    Remove {
        chain: usize,
        block: usize,
    },
    Forget {
        chain: usize,
        blocks: usize,
    },
    Clear {
        space: u8,
    },
    Evict,
    Flush,
    Reopen,
}

fn ops() -> impl Strategy<Value = Op> {
    let run = (0..4_usize, 0..6_usize, 1..3_usize);
    prop_oneof![
        6 => run.clone().prop_map(|(chain, start, blocks)| Op::Write { chain, start, blocks }),
        6 => run.prop_map(|(chain, start, blocks)| Op::Demote { chain, start, blocks }),
        5 => (0..4_usize, 0..4_usize).prop_map(|(chain, start)| Op::Read { chain, start }),
        3 => (0..4_usize, 0..4_usize, any::<bool>(), any::<bool>())
            .prop_map(|(chain, start, cancel, wait)| Op::Prefetch { chain, start, cancel, wait }),
        4 => (0..OPAQUE, prop::option::of(0..OPAQUE)).prop_map(|(key, parent)| Op::PutBytes { key, parent }),
        4 => (0..OPAQUE).prop_map(|key| Op::GetBytes { key }),
        1 => (0..OPAQUE).prop_map(|key| Op::RemoveBytes { key }),
        1 => (0..4_usize, 0..BLOCKS).prop_map(|(chain, block)| Op::Remove { chain, block }),
        2 => (0..4_usize, 1..BLOCKS).prop_map(|(chain, blocks)| Op::Forget { chain, blocks }),
        1 => (0..2_u8).prop_map(|space| Op::Clear { space }),
        1 => Just(Op::Evict),
        2 => Just(Op::Flush),
        1 => Just(Op::Reopen),
    ]
}

fn opaque_key(key: u8) -> BlockKey {
    BlockKey([100 + key; 32])
}

fn opaque_bytes(key: u8) -> Vec<u8> {
    (0..700 * (usize::from(key) + 1))
        .map(|at| (at as u8).wrapping_mul(key | 1) ^ key)
        .collect()
}

struct Model {
    config: StoreConfig,
    disk: Arc<FakeDisk>,
    store: BlockStore,
    chains: Vec<(BlockKey, Vec<BlockKey>)>,
    /// Keys that were put and not removed since: all that may be found.
    allowed: HashSet<BlockKey>,
}

impl Model {
    fn new(write_policy: WritePolicy, policy: &str) -> Self {
        let config = StoreConfig {
            write_policy,
            policy: policy.to_owned(),
            write_queue_bytes: 40_000,
            ..config(5)
        };
        let disk = FakeDisk::new(60_000);
        let store = open(&config, &disk);
        // Two namespaces; in each, two chains that part after three blocks.
        let chains = (0..4_u8)
            .map(|index| {
                let space = namespace(index / 2);
                (space, chain(&space, 1 + u32::from(index), 3, BLOCKS))
            })
            .collect();
        Self {
            config,
            disk,
            store,
            chains,
            allowed: HashSet::new(),
        }
    }

    fn run(&self, chain: usize, start: usize, blocks: usize) -> crate::run::RunHeader {
        let (space, keys) = &self.chains[chain];
        let len = blocks as u32 * 2000;
        header(space, keys, start..start + blocks, &[len, len + 5000, 7])
    }

    #[expect(clippy::too_many_lines, reason = "one arm for each operation")]
    fn step(&mut self, op: &Op) {
        match *op {
            Op::Write {
                chain,
                start,
                blocks,
            } => {
                let run = self.run(chain, start, blocks);
                let put = write(&self.store, &run);
                if put == Put::Queued {
                    self.allowed.extend(&run.keys);
                    let seen = self.store.lookup(&run.keys).expect("lookup");
                    // The writer may have been refused by now; what is there is no surprise either way.
                    assert_eq!(seen.len(), run.keys.len());
                } else if put == Put::Refused(Refusal::ParentMissing) {
                    assert_ne!(run.parent, run.namespace);
                }
            }
            Op::Demote {
                chain,
                start,
                blocks,
            } => {
                let run = self.run(chain, start, blocks);
                let put = demote(&self.store, &run);
                assert!(
                    matches!(put, Put::Stored | Put::Present | Put::Queued),
                    "{put:?}"
                );
                self.allowed.extend(&run.keys);
            }
            Op::Read { chain, start } => {
                let keys = self.chains[chain].1[start..].to_vec();
                let (plan, outcome) = read(&self.store, &keys);
                assert_eq!(
                    outcome.steps_ok,
                    plan.steps.len(),
                    "nothing is damaged: {outcome:?}"
                );
                assert_eq!(outcome.l2.blocks + outcome.l3.blocks, plan.blocks());
                assert_eq!(outcome.l2.bytes + outcome.l3.bytes, plan.bytes());
                let planned = plan.steps.iter().flat_map(|step| {
                    step.run.header().keys[step.first..step.first + step.blocks].to_vec()
                });
                assert!(planned.eq(keys[..plan.blocks()].iter().copied()));
            }
            Op::Prefetch {
                chain,
                start,
                cancel,
                wait,
            } => {
                let keys = self.chains[chain].1[start..].to_vec();
                let ticket = self.store.prefetch(&keys).expect("prefetch");
                if wait {
                    assert!(ticket.wait(LONG));
                }
                if cancel {
                    ticket.cancel();
                }
                let progress = ticket.progress();
                assert!(progress.loaded <= progress.wanted && progress.wanted <= keys.len());
            }
            Op::PutBytes { key, parent } => {
                let parent = parent.map(opaque_key);
                self.store
                    .put_bytes(opaque_key(key), parent, &opaque_bytes(key))
                    .expect("put_bytes");
                self.allowed.insert(opaque_key(key));
            }
            Op::GetBytes { key } => {
                let before = self.store.contains(&opaque_key(key)).expect("contains");
                if let Some(bytes) = self.store.get_bytes(&opaque_key(key)).expect("get_bytes") {
                    assert_eq!(bytes, opaque_bytes(key));
                    assert!(before);
                }
            }
            Op::RemoveBytes { key } => self.remove(opaque_key(key)),
            Op::Remove { chain, block } => self.remove(self.chains[chain].1[block]),
            Op::Forget { chain, blocks } => {
                self.store
                    .forget_l2(&self.chains[chain].1[..blocks])
                    .expect("forget");
            }
            Op::Clear { space } => {
                let space = namespace(space);
                self.store.clear(Some(&space)).expect("clear");
                for (_, keys) in self.chains.iter().filter(|(other, _)| *other == space) {
                    for key in keys {
                        self.allowed.remove(key);
                    }
                }
            }
            Op::Evict => {
                // Until no prefetch and no write holds anything, then nothing may stay.
                self.store
                    .claim(&self.allowed.iter().copied().collect::<Vec<_>>())
                    .expect("claim");
                self.store.evict_l2(LONG).expect("evict");
            }
            Op::Flush => {
                self.store.flush(LONG).expect("flush");
                assert_eq!(self.store.stats().expect("stats").write_queue_bytes, 0);
            }
            Op::Reopen => {
                self.store.close(LONG).expect("close");
                self.disk = self.disk.reopened();
                self.store = open(&self.config, &self.disk);
            }
        }
    }

    fn remove(&mut self, key: BlockKey) {
        self.store.remove(&[key]).expect("remove");
        self.allowed.remove(&key);
    }

    fn check(&self) {
        self.store.validate().expect("sound");
        let keys = self
            .chains
            .iter()
            .flat_map(|(_, keys)| keys.iter().copied());
        for key in keys.chain((0..OPAQUE).map(opaque_key)) {
            let found = self.store.lookup(&[key]).expect("lookup")[0];
            assert!(
                found == Lookup::Miss || self.allowed.contains(&key),
                "{key} is {found:?}, though it was never put or was removed"
            );
        }
    }
}

fn policy() -> impl Strategy<Value = &'static str> {
    prop::sample::select(crate::policy::live_names().collect::<Vec<_>>())
}

fn play(write_policy: WritePolicy, policy: &str, script: &[Op]) {
    let mut model = Model::new(write_policy, policy);
    for op in script {
        model.step(op);
        model.check();
    }
    for chain in 0..4 {
        model.step(&Op::Read { chain, start: 0 });
    }
    for key in 0..OPAQUE {
        model.step(&Op::GetBytes { key });
    }
    model.store.close(LONG).expect("close");
    model.store.validate().expect("sound");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn write_through(policy in policy(), script in prop::collection::vec(ops(), 1..50)) {
        play(WritePolicy::WriteThrough, policy, &script);
    }

    #[test]
    fn write_back(policy in policy(), script in prop::collection::vec(ops(), 1..50)) {
        play(WritePolicy::WriteBack, policy, &script);
    }
}
