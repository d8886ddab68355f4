//! Random steps that a policy and a plain model of it take together. A model is what the paper says, over a list that is searched in
//! full; how entries come, split, shrink and go is the same for all and is done here.

use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;

use super::{EntryMeta, EvictionPolicy, Slot};

/// What a tier of the tests holds, in bytes.
pub(super) const CAPACITY: u64 = 24;

/// All that a model may know of an entry.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) slot: Slot,
    pub(super) ghost: u64,
    pub(super) meta: EntryMeta,
    pub(super) candidate: bool,
    /// When it came or moved last, by the model's choice.
    pub(super) stamp: u64,
    pub(super) uses: u64,
    /// Which queue it is in, where there are several.
    pub(super) queue: usize,
    /// The age of the cache when it was last used, where that counts.
    pub(super) age: f64,
}

/// What the paper says.
pub(super) trait Rules {
    /// `new` comes in; it has its stamp, no uses, is in queue 0 and not among `rows` yet.
    fn inserted(&mut self, _new: &mut Row, _rows: &mut [Row], _now: &mut u64) {}
    fn touched(&mut self, row: usize, rows: &mut [Row], now: &mut u64);
    /// As if newly come, but not used.
    fn renewed(&mut self, _row: usize, _rows: &mut [Row], _now: &mut u64) {}
    /// `row` was split; the later piece has a new name.
    fn split(&mut self, _head: &Row, _tail: &Row) {}
    /// An entry, or the end of one that stays, was evicted.
    fn evicted(&mut self, _gone: &Row, _whole: bool, _rows: &mut [Row], _now: &mut u64) {}
    /// The index of the row that goes next.
    fn victim(&mut self, rows: &mut [Row], now: &mut u64) -> Option<usize>;
}

/// The candidate of `rows` that comes first by `key`, then by slot.
pub(super) fn first<K: PartialOrd>(rows: &[Row], key: impl Fn(&Row) -> Option<K>) -> Option<usize> {
    let mut best: Option<(K, Slot, usize)> = None;
    for (index, row) in rows.iter().enumerate() {
        let Some(key) = key(row).filter(|_| row.candidate) else {
            continue;
        };
        let before = best
            .as_ref()
            .is_none_or(|(least, slot, _)| key < *least || (key == *least && row.slot < *slot));
        if before {
            best = Some((key, row.slot, index));
        }
    }
    best.map(|(_, _, index)| index)
}

#[derive(Clone, Debug)]
pub(super) enum Step {
    Insert(Slot, u64, EntryMeta),
    Touch(Slot),
    Renew(Slot),
    Split(Slot, Slot, u64),
    Candidate(Slot, bool),
    Remove(Slot),
    Evict,
    /// Evicted on another's account: of two orders of the same entries, the other one chose it.
    EvictOther(Slot),
    /// The victim gives up its end, of this name.
    Trim(u64),
}

pub(super) fn steps() -> impl Strategy<Value = Vec<Step>> {
    let slot = 0..24_u32;
    let ghost = 0..40_u64;
    let meta = (1..5_u64, 0..9_u8).prop_map(|(bytes, cost)| EntryMeta {
        bytes,
        cost: f32::from(cost),
        ..EntryMeta::default()
    });
    let step = prop_oneof![
        6 => (slot.clone(), ghost.clone(), meta).prop_map(|(slot, ghost, meta)| Step::Insert(slot, ghost, meta)),
        8 => slot.clone().prop_map(Step::Touch),
        2 => slot.clone().prop_map(Step::Renew),
        2 => (slot.clone(), slot.clone(), ghost.clone()).prop_map(|(head, tail, ghost)| Step::Split(head, tail, ghost)),
        // Mostly evictable, as in a tree of many leaves.
        6 => (slot.clone(), prop::bool::weighted(0.7)).prop_map(|(slot, on)| Step::Candidate(slot, on)),
        1 => slot.clone().prop_map(Step::Remove),
        5 => Just(Step::Evict),
        1 => slot.prop_map(Step::EvictOther),
        2 => ghost.prop_map(Step::Trim),
    ];
    prop::collection::vec(step, 1..300)
}

struct Model<R> {
    rules: R,
    rows: Vec<Row>,
    now: u64,
}

impl<R: Rules> Model<R> {
    fn find(&self, slot: Slot) -> Option<usize> {
        self.rows.iter().position(|row| row.slot == slot)
    }

    fn insert(&mut self, slot: Slot, ghost: u64, meta: EntryMeta) {
        self.now += 1;
        let mut new = Row {
            slot,
            ghost,
            meta,
            candidate: false,
            stamp: self.now,
            uses: 0,
            queue: 0,
            age: 0.0,
        };
        self.rules.inserted(&mut new, &mut self.rows, &mut self.now);
        self.rows.push(new);
    }

    fn split(&mut self, head: Slot, index: usize, ghost: u64) -> (EntryMeta, EntryMeta) {
        let tail = &mut self.rows[index];
        let mut above = tail.clone();
        above.slot = head;
        above.candidate = false;
        above.meta.bytes = 1;
        tail.meta.bytes -= 1;
        tail.meta.cost += 1.0;
        tail.ghost = ghost;
        let metas = (above.meta, tail.meta);
        self.rules.split(&above, &tail.clone());
        self.rows.push(above);
        metas
    }

    fn evict(&mut self, index: usize) {
        let gone = self.rows.remove(index);
        self.rules
            .evicted(&gone, true, &mut self.rows, &mut self.now);
    }
}

/// Takes all steps with both; they agree on every victim.
pub(super) fn agree(
    policy: &mut dyn EvictionPolicy,
    rules: impl Rules,
    steps: Vec<Step>,
) -> TestCaseResult {
    let mut model = Model {
        rules,
        rows: Vec::new(),
        now: 0,
    };
    for step in steps {
        match step {
            Step::Insert(slot, ghost, meta) if model.find(slot).is_none() => {
                policy.insert(slot, ghost, meta);
                model.insert(slot, ghost, meta);
            }
            Step::Touch(slot) => {
                if let Some(index) = model.find(slot) {
                    policy.touch(slot);
                    model.now += 1;
                    model.rules.touched(index, &mut model.rows, &mut model.now);
                }
            }
            Step::Renew(slot) => {
                if let Some(index) = model.find(slot) {
                    policy.renew(slot);
                    model.now += 1;
                    model.rules.renewed(index, &mut model.rows, &mut model.now);
                }
            }
            Step::Split(head, tail, ghost) if model.find(head).is_none() => {
                if let Some(index) = model.find(tail)
                    && model.rows[index].meta.bytes > 1
                {
                    let (above, below) = model.split(head, index, ghost);
                    policy.split(head, above, tail, ghost, below);
                    // The order of head and tail is of no account: while the tail is there the head is no candidate.
                    policy.renew(head);
                    model.now += 1;
                    let head = model.rows.len() - 1;
                    model.rules.renewed(head, &mut model.rows, &mut model.now);
                }
            }
            Step::Candidate(slot, on) => {
                if let Some(index) = model.find(slot) {
                    policy.set_candidate(slot, on);
                    model.rows[index].candidate = on;
                }
            }
            Step::Remove(slot) => {
                if let Some(index) = model.find(slot) {
                    policy.remove(slot);
                    model.rows.remove(index);
                }
            }
            Step::Evict => {
                if let Some(slot) = victim(policy, &mut model)? {
                    policy.evicted(slot);
                    let index = model.find(slot);
                    model.evict(index.unwrap_or_default());
                }
            }
            Step::EvictOther(slot) => {
                if let Some(index) = model.find(slot) {
                    policy.evicted(slot);
                    model.evict(index);
                }
            }
            Step::Trim(ghost) => {
                if let Some(slot) = victim(policy, &mut model)?
                    && let Some(index) = model.find(slot)
                    && model.rows[index].meta.bytes > 1
                {
                    let mut cut = model.rows[index].clone();
                    cut.ghost = ghost;
                    cut.meta.bytes = 1;
                    model.rows[index].meta.bytes -= 1;
                    policy.trim(slot, ghost, model.rows[index].meta);
                    model
                        .rules
                        .evicted(&cut, false, &mut model.rows, &mut model.now);
                }
            }
            Step::Insert(..) | Step::Split(..) => {}
        }
        prop_assert_eq!(policy.validate(), Ok(()));
        let candidates = model.rows.iter().filter(|row| row.candidate).count();
        prop_assert_eq!(policy.candidates(), candidates);
    }
    while let Some(slot) = victim(policy, &mut model)? {
        policy.evicted(slot);
        let index = model.find(slot);
        model.evict(index.unwrap_or_default());
    }
    Ok(())
}

/// The victim that both choose.
fn victim<R: Rules>(
    policy: &mut dyn EvictionPolicy,
    model: &mut Model<R>,
) -> Result<Option<Slot>, TestCaseError> {
    let expected = model.rules.victim(&mut model.rows, &mut model.now);
    let expected = expected.map(|index| model.rows[index].slot);
    let chosen = policy.victim();
    prop_assert_eq!(chosen, expected);
    prop_assert_eq!(policy.victim(), chosen, "asked again");
    Ok(chosen)
}
