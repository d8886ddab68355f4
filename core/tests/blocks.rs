//! The block pool and its sequences against models that are too simple to be wrong.
#![expect(clippy::expect_used, reason = "helpers of tests may panic like tests")]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;

use kvlab_core::Error;
use kvlab_core::block::{BlockId, BlockPool, PagedAllocator, PoolStats, SequenceId, SequenceTable};
use proptest::collection::vec;
use proptest::prelude::*;

const BLOCKS: usize = 12;
const BLOCK_TOKENS: usize = 4;
const TOKEN_BYTES: usize = 3;

/// A block is an `Rc`, so that sharing counts itself; a token is the byte that fills its row, or none before it was written.
#[derive(Clone, Default)]
struct ModelSequence {
    blocks: Vec<Rc<()>>,
    tokens: Vec<Option<u8>>,
}

#[derive(Default)]
struct Model {
    sequences: BTreeMap<SequenceId, ModelSequence>,
    freed: Vec<SequenceId>,
    copies: u64,
    truncated: bool,
}

impl Model {
    /// Token slots in use: for each block the most that any of its holders uses.
    fn filled(&self) -> u64 {
        let mut most: BTreeMap<*const (), usize> = BTreeMap::new();
        for sequence in self.sequences.values() {
            for (index, block) in sequence.blocks.iter().enumerate() {
                let used = (sequence.tokens.len() - index * BLOCK_TOKENS).min(BLOCK_TOKENS);
                let entry = most.entry(Rc::as_ptr(block)).or_default();
                *entry = used.max(*entry);
            }
        }
        most.values().sum::<usize>() as u64
    }

    fn distinct(&self) -> BTreeMap<*const (), usize> {
        self.sequences
            .values()
            .flat_map(|sequence| &sequence.blocks)
            .map(|block| (Rc::as_ptr(block), Rc::strong_count(block)))
            .collect()
    }

    fn free(&self) -> usize {
        BLOCKS - self.distinct().len()
    }

    fn pick(&self, choice: usize) -> Option<SequenceId> {
        let at = choice.checked_rem(self.sequences.len())?;
        self.sequences.keys().nth(at).copied()
    }

    fn get(&mut self, id: SequenceId) -> &mut ModelSequence {
        self.sequences.get_mut(&id).expect("a live sequence")
    }

    /// Appends, or says how many blocks it would take and leaves everything as it is.
    fn append(&mut self, id: SequenceId, count: usize) -> Result<(), usize> {
        let free = self.free();
        let sequence = self.get(id);
        let held = sequence.tokens.len();
        let partial = !held.is_multiple_of(BLOCK_TOKENS);
        let added = (held + count).div_ceil(BLOCK_TOKENS) - sequence.blocks.len();
        let copy = count > 0
            && partial
            && sequence
                .blocks
                .last()
                .is_some_and(|block| Rc::strong_count(block) > 1);
        let needed = added + usize::from(copy);
        if needed > free {
            return Err(needed);
        }
        if copy {
            sequence.blocks.pop();
            sequence.blocks.push(Rc::new(()));
        }
        sequence.blocks.extend((0..added).map(|_| Rc::new(())));
        sequence.tokens.resize(held + count, None);
        self.copies += u64::from(copy);
        Ok(())
    }

    fn write(&mut self, id: SequenceId, position: usize, values: &[u8]) -> Result<(), usize> {
        let free = self.free();
        let sequence = self.get(id);
        let touched: BTreeSet<usize> = (position..position + values.len())
            .map(|token| token / BLOCK_TOKENS)
            .collect();
        let shared: Vec<usize> = touched
            .into_iter()
            .filter(|index| Rc::strong_count(&sequence.blocks[*index]) > 1)
            .collect();
        if shared.len() > free {
            return Err(shared.len());
        }
        for index in &shared {
            sequence.blocks[*index] = Rc::new(());
        }
        for (token, value) in values.iter().enumerate() {
            sequence.tokens[position + token] = Some(*value);
        }
        self.copies += shared.len() as u64;
        Ok(())
    }
}

#[derive(Clone, Debug)]
enum Step {
    Allocate(usize),
    Append(usize, usize),
    Free(usize),
    Fork(usize),
    Truncate(usize, usize),
    Write(usize, usize, Vec<u8>),
    WritePastEnd(usize),
    UseFreed(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let which = 0..64_usize;
    vec(
        prop_oneof![
            2 => (0..20_usize).prop_map(Step::Allocate),
            4 => (which.clone(), 0..14_usize).prop_map(|(at, count)| Step::Append(at, count)),
            2 => which.clone().prop_map(Step::Free),
            3 => which.clone().prop_map(Step::Fork),
            1 => (which.clone(), which.clone()).prop_map(|(at, to)| Step::Truncate(at, to)),
            5 => (which.clone(), which.clone(), vec(any::<u8>(), 0..12))
                .prop_map(|(at, position, values)| Step::Write(at, position, values)),
            1 => which.clone().prop_map(Step::WritePastEnd),
            1 => which.prop_map(Step::UseFreed),
        ],
        1..80,
    )
}

type Snapshot = (PoolStats, Vec<Vec<BlockId>>);

fn snapshot(allocator: &PagedAllocator, model: &Model) -> Snapshot {
    let tables = model
        .sequences
        .keys()
        .map(|id| allocator.block_table(*id).expect("live").to_vec())
        .collect();
    (allocator.stats(), tables)
}

fn rows(values: &[u8]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| [*value; TOKEN_BYTES])
        .collect()
}

/// Both sides agree: success on success, and out of blocks for the same number of them.
fn agree<T>(real: Result<T, Error>, model: Result<(), usize>) -> Result<Option<T>, TestCaseError> {
    match (real, model) {
        (Ok(value), Ok(())) => Ok(Some(value)),
        (Err(Error::OutOfBlocks { requested, .. }), Err(needed)) => {
            prop_assert_eq!(requested, needed);
            Ok(None)
        }
        (real, model) => Err(TestCaseError::fail(format!(
            "allocator: {:?}, model: {model:?}",
            real.err()
        ))),
    }
}

/// Returns whether anything may have changed.
fn apply(
    step: &Step,
    allocator: &mut PagedAllocator,
    model: &mut Model,
) -> Result<bool, TestCaseError> {
    match step {
        Step::Allocate(count) => {
            let needed = count.div_ceil(BLOCK_TOKENS);
            let expected = if needed > model.free() {
                Err(needed)
            } else {
                Ok(())
            };
            let Some(id) = agree(allocator.allocate_sequence(*count), expected)? else {
                return Ok(false);
            };
            prop_assert!(
                !model.sequences.contains_key(&id) && !model.freed.contains(&id),
                "sequence {} was given out twice",
                id
            );
            model.sequences.insert(id, ModelSequence::default());
            prop_assert_eq!(model.append(id, *count), Ok(()));
        }
        Step::Append(at, count) => {
            let Some(id) = model.pick(*at) else {
                return Ok(false);
            };
            let expected = model.append(id, *count);
            return Ok(agree(allocator.append_tokens(id, *count), expected)?.is_some());
        }
        Step::Free(at) => {
            let Some(id) = model.pick(*at) else {
                return Ok(false);
            };
            let before = model.free();
            model.sequences.remove(&id);
            model.freed.push(id);
            let freed = allocator.free_sequence(id).expect("a live sequence");
            prop_assert_eq!(freed, model.free() - before);
        }
        Step::Fork(at) => {
            let Some(id) = model.pick(*at) else {
                return Ok(false);
            };
            let child = allocator.fork(id).expect("a live sequence");
            let copy = model.get(id).clone();
            model.sequences.insert(child, copy);
        }
        Step::Truncate(at, to) => {
            let Some(id) = model.pick(*at) else {
                return Ok(false);
            };
            let sequence = model.get(id);
            if *to > sequence.tokens.len() {
                let refused = allocator.truncate(id, *to);
                prop_assert!(matches!(refused, Err(Error::InvalidArgument(_))));
                return Ok(false);
            }
            sequence.tokens.truncate(*to);
            sequence.blocks.truncate(to.div_ceil(BLOCK_TOKENS));
            model.truncated = true;
            allocator.truncate(id, *to).expect("shorter than before");
        }
        Step::Write(at, position, values) => {
            let Some(id) = model.pick(*at) else {
                return Ok(false);
            };
            let held = model.get(id).tokens.len();
            let position = position % (held + 1);
            let values = &values[..values.len().min(held - position)];
            let expected = model.write(id, position, values);
            return Ok(agree(allocator.write(id, position, &rows(values)), expected)?.is_some());
        }
        Step::WritePastEnd(at) => {
            if let Some(id) = model.pick(*at) {
                reach_past_the_end(allocator, id, model.get(id).tokens.len())?;
            }
            return Ok(false);
        }
        Step::UseFreed(at) => {
            let unknown = match at.checked_rem(model.freed.len()) {
                Some(index) => model.freed[index],
                None => SequenceId(u64::MAX),
            };
            use_unknown(allocator, unknown)?;
            return Ok(false);
        }
    }
    Ok(true)
}

fn reach_past_the_end(
    allocator: &mut PagedAllocator,
    id: SequenceId,
    end: usize,
) -> Result<(), TestCaseError> {
    for (position, bytes) in [
        (end, TOKEN_BYTES),
        (usize::MAX, TOKEN_BYTES),
        (0, TOKEN_BYTES * (end + 1)),
        (0, 1),
    ] {
        let refused = allocator.write(id, position, &vec![0; bytes]);
        prop_assert!(matches!(refused, Err(Error::InvalidArgument(_))));
    }
    for (position, tokens, bytes) in [
        (end, 1, TOKEN_BYTES),
        (usize::MAX, 2, 2 * TOKEN_BYTES),
        (0, end, end * TOKEN_BYTES + 1),
    ] {
        let refused = allocator.read(id, position, tokens, &mut vec![0; bytes]);
        prop_assert!(matches!(refused, Err(Error::InvalidArgument(_))));
    }
    let refused = allocator.append_tokens(id, usize::MAX - end);
    let out_of_blocks = matches!(refused, Err(Error::OutOfBlocks { .. }));
    prop_assert!(out_of_blocks);
    Ok(())
}

fn use_unknown(allocator: &mut PagedAllocator, unknown: SequenceId) -> Result<(), TestCaseError> {
    let refused = [
        allocator.append_tokens(unknown, 1).err(),
        allocator.free_sequence(unknown).err(),
        allocator.fork(unknown).err(),
        allocator.truncate(unknown, 0).err(),
        allocator.write(unknown, 0, &[]).err(),
        allocator.read(unknown, 0, 0, &mut []).err(),
        allocator.block_table(unknown).err(),
        allocator.tokens(unknown).err(),
    ];
    for error in refused {
        prop_assert!(matches!(error, Some(Error::UnknownSequence(id)) if id == unknown.0));
    }
    Ok(())
}

fn compare(allocator: &PagedAllocator, model: &Model) -> Result<(), TestCaseError> {
    if let Err(reason) = allocator.validate() {
        return Err(TestCaseError::fail(reason));
    }
    let distinct = model.distinct();
    let stats = allocator.stats();
    prop_assert_eq!(stats.used, distinct.len());
    prop_assert_eq!(stats.free, model.free());
    prop_assert_eq!(
        stats.shared,
        distinct.values().filter(|count| **count > 1).count()
    );
    prop_assert_eq!(
        stats.saved as usize,
        distinct.values().map(|count| count - 1).sum::<usize>()
    );
    prop_assert_eq!(stats.copies, model.copies);
    prop_assert_eq!(stats.sequences, model.sequences.len());
    prop_assert!((0.0..=1.0).contains(&stats.utilisation));
    // What one holder of a shared block cut off may still count.
    prop_assert!(stats.filled >= model.filled());
    prop_assert!(model.truncated || stats.filled == model.filled());
    let mut block_of: HashMap<*const (), BlockId> = HashMap::new();
    for (id, expected) in &model.sequences {
        let table = allocator.block_table(*id).expect("live");
        prop_assert_eq!(table.len(), expected.blocks.len());
        prop_assert_eq!(allocator.tokens(*id).expect("live"), expected.tokens.len());
        for (block, model_block) in table.iter().zip(&expected.blocks) {
            // The same sharing, not only the same counts.
            let same = block_of.entry(Rc::as_ptr(model_block)).or_insert(*block);
            prop_assert_eq!(same, block);
            prop_assert_eq!(
                allocator.ref_count(*block) as usize,
                Rc::strong_count(model_block)
            );
        }
        let mut bytes = vec![0; expected.tokens.len() * TOKEN_BYTES];
        allocator
            .read(*id, 0, expected.tokens.len(), &mut bytes)
            .expect("the whole sequence");
        for (token, row) in expected.tokens.iter().zip(bytes.chunks(TOKEN_BYTES)) {
            if let Some(value) = token {
                prop_assert_eq!(row, [*value; TOKEN_BYTES]);
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn sequences_behave_like_the_model(steps in steps()) {
        let mut allocator = PagedAllocator::new(BLOCKS, BLOCK_TOKENS, BLOCK_TOKENS * TOKEN_BYTES)
            .expect("a small pool");
        let mut model = Model::default();
        for step in &steps {
            let before = snapshot(&allocator, &model);
            if !apply(step, &mut allocator, &mut model)? {
                prop_assert_eq!(before, snapshot(&allocator, &model), "{:?} changed something", step);
            }
            compare(&allocator, &model)?;
        }
        for id in model.sequences.into_keys() {
            allocator.free_sequence(id).expect("a live sequence");
        }
        prop_assert_eq!(allocator.stats().free, BLOCKS);
        prop_assert_eq!(allocator.validate(), Ok(()));
    }

    #[test]
    fn the_pool_counts_references(steps in vec((0..5_u8, 0..10_u32), 1..120)) {
        let mut pool = BlockPool::new(8, 0).expect("a small pool");
        let mut counts: HashMap<BlockId, u32> = HashMap::new();
        for (kind, argument) in steps {
            let id = BlockId(argument);
            let free = 8 - counts.len();
            match kind {
                0 => match pool.allocate() {
                    Ok(id) => prop_assert_eq!(counts.insert(id, 1), None, "block given out twice"),
                    Err(error) => {
                        let full = matches!(error, Error::OutOfBlocks { requested: 1, free: 0 });
                        prop_assert!(full && free == 0);
                    }
                },
                1 => {
                    let mut out = Vec::new();
                    let enough = argument as usize <= free;
                    prop_assert_eq!(pool.allocate_many(argument as usize, &mut out).is_ok(), enough);
                    prop_assert_eq!(out.len(), if enough { argument as usize } else { 0 });
                    for id in out {
                        prop_assert_eq!(counts.insert(id, 1), None, "block given out twice");
                    }
                }
                2 => match counts.get_mut(&id) {
                    Some(count) => {
                        *count += 1;
                        prop_assert!(pool.retain(id).is_ok());
                    }
                    None => prop_assert!(matches!(pool.retain(id), Err(Error::UnknownBlock(block)) if block == argument)),
                },
                3 => match counts.get_mut(&id) {
                    Some(count) => {
                        *count -= 1;
                        let last = *count == 0;
                        prop_assert_eq!(pool.release(id).ok(), Some(last));
                        counts.retain(|_, count| *count > 0);
                    }
                    None => prop_assert!(matches!(pool.release(id), Err(Error::UnknownBlock(block)) if block == argument)),
                },
                _ => {
                    let ids: Vec<BlockId> = (argument..10).map(BlockId).collect();
                    let known = ids.iter().all(|id| counts.contains_key(id));
                    prop_assert_eq!(pool.retain_all(&ids).is_ok(), known);
                    if known {
                        counts.iter_mut().filter(|(id, _)| ids.contains(id)).for_each(|(_, count)| *count += 1);
                    }
                }
            }
            prop_assert_eq!(pool.validate(), Ok(()));
            prop_assert_eq!((pool.used(), pool.free()), (counts.len(), 8 - counts.len()));
            prop_assert_eq!(pool.shared(), counts.values().filter(|count| **count > 1).count());
            for block in (0..10).map(BlockId) {
                prop_assert_eq!(pool.ref_count(block), counts.get(&block).copied().unwrap_or(0));
            }
        }
    }
}

#[test]
fn impossible_pools_are_refused() {
    for (blocks, bytes) in [
        (0, 16),
        (usize::MAX, 0),
        (u32::MAX as usize + 1, 0),
        (1 << 30, usize::MAX >> 20),
        (2, usize::MAX / 2 - 8),
    ] {
        assert!(
            matches!(
                BlockPool::new(blocks, bytes),
                Err(Error::InvalidArgument(_))
            ),
            "{blocks} blocks of {bytes} bytes"
        );
    }
    assert!(matches!(
        PagedAllocator::new(4, 0, 64),
        Err(Error::InvalidArgument(_))
    ));
    assert!(matches!(
        PagedAllocator::new(4, 16, 100),
        Err(Error::InvalidArgument(_))
    ));
}

#[test]
fn freed_blocks_are_reused_last_in_first_out() {
    let mut pool = BlockPool::new(4, 64).expect("a small pool");
    let first = pool.allocate().expect("room");
    let second = pool.allocate().expect("room");
    pool.release(first).expect("held");
    assert_eq!(
        pool.allocate().expect("room"),
        first,
        "before untouched ones"
    );
    assert_eq!(pool.offset(second), 64);
    assert_eq!(pool.region().address() % 4096, 0);
}

#[test]
fn a_sequence_forked_from_held_blocks_copies_before_it_appends() {
    let mut pool = BlockPool::new(4, 8).expect("a small pool");
    let mut table = SequenceTable::new(&pool, 4).expect("4 tokens of 2 bytes");
    let mut path = Vec::new();
    pool.allocate_many(2, &mut path).expect("room");
    pool.region().write(pool.offset(path[1]), b"aabb\0\0\0\0");
    let held = path.clone();
    let external = |id: BlockId| u32::from(held.contains(&id));

    for tokens in [4, 9] {
        let refused = table.from_blocks(&mut pool, &path, tokens);
        assert!(
            matches!(refused, Err(Error::InvalidArgument(_))),
            "{tokens}"
        );
    }
    let refused = table.from_blocks(&mut pool, &[path[0], BlockId(3)], 6);
    assert!(matches!(refused, Err(Error::UnknownBlock(3))));
    assert_eq!(pool.ref_count(path[0]), 1, "the reference was given back");

    let id = table
        .from_blocks(&mut pool, &path, 6)
        .expect("a matched path");
    assert_eq!(table.validate(&pool, external), Ok(()));
    let appended = table.append(&mut pool, id, 1).expect("room");
    let copy = table.blocks(id).expect("live")[1];
    assert_eq!(
        (appended.added, appended.copied),
        (0, Some((path[1], copy)))
    );
    table.write(&mut pool, id, 6, b"cc").expect("its own block");
    let mut bytes = [0; 6];
    table.read(&pool, id, 4, 3, &mut bytes).expect("in range");
    assert_eq!(&bytes, b"aabbcc");
    let mut original = [0; 8];
    pool.region().read(pool.offset(path[1]), &mut original);
    assert_eq!(&original, b"aabb\0\0\0\0");

    assert_eq!(table.make_writable(&mut pool, id, 1).expect("live"), copy);
    let own = table.make_writable(&mut pool, id, 0).expect("room");
    assert_ne!(own, path[0]);
    assert!(matches!(
        table.make_writable(&mut pool, id, 2),
        Err(Error::InvalidArgument(_))
    ));
    assert_eq!(table.validate(&pool, external), Ok(()));
    assert!(
        table.validate(&pool, |_| 0).is_err(),
        "the path's holder is missed"
    );

    table.free(&mut pool, id).expect("live");
    assert_eq!((pool.used(), pool.shared()), (2, 0));
    assert_eq!(table.validate(&pool, external), Ok(()));
}

/// Log-uniform between 64 and 2,048 tokens, by a seeded splitmix64: mean 570 over many, as short chats and long prompts mix.
fn lengths(count: usize, mut seed: u64) -> Vec<usize> {
    (0..count)
        .map(|_| {
            seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut mixed = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            let unit = ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1_u64 << 53) as f64;
            (64.0 * 32_f64.powf(unit)) as usize
        })
        .collect()
}

#[test]
fn paging_wastes_little_where_reservation_wastes_nearly_all() {
    let lengths = lengths(50, 7);
    let tokens: usize = lengths.iter().sum();
    let mean = tokens / lengths.len();
    assert!((400..800).contains(&mean), "mean length {mean}");
    // SmolLM2 takes 8,192 tokens, Llama 3.1 131,072.
    for (maximum, least) in [(8_192, 0.90), (131_072, 0.99)] {
        let waste = 1.0 - tokens as f64 / (lengths.len() * maximum) as f64;
        assert!(waste > least, "reserving {maximum} wastes {waste:.3}");
    }
    let mut before = 0.0;
    for block_tokens in [8, 16, 32, 64] {
        let blocks = lengths
            .iter()
            .map(|length| length.div_ceil(block_tokens))
            .sum();
        let mut allocator =
            PagedAllocator::new(blocks, block_tokens, block_tokens * 2).expect("a pool");
        // Grown token by token, as decoding does.
        let ids: Vec<SequenceId> = lengths
            .iter()
            .map(|_| allocator.allocate_sequence(0).expect("empty"))
            .collect();
        for step in 0..2_048 {
            for (id, length) in ids.iter().zip(&lengths) {
                if step < *length {
                    allocator
                        .append_tokens(*id, 1)
                        .expect("the pool fits exactly");
                }
            }
        }
        let stats = allocator.stats();
        assert_eq!(
            (stats.free, stats.tokens, stats.filled),
            (0, tokens as u64, tokens as u64)
        );
        assert_eq!(
            stats.wasted_bytes,
            ((blocks * block_tokens - tokens) * 2) as u64
        );
        let waste = 1.0 - stats.utilisation;
        assert!(waste > before, "larger blocks waste more");
        assert!(
            block_tokens != 16 || waste < 0.05,
            "K = 16 wastes {waste:.3}"
        );
        before = waste;
        assert_eq!(allocator.validate(), Ok(()));
    }
}

#[test]
fn a_fork_shares_every_block_until_the_first_write() {
    let mut allocator = PagedAllocator::new(64, 16, 16 * 4).expect("a pool");
    let parent = allocator.allocate_sequence(500).expect("room");
    allocator.write(parent, 0, &[7; 500 * 4]).expect("in range");
    let child = allocator.fork(parent).expect("live");
    let stats = allocator.stats();
    assert_eq!(
        (stats.used, stats.shared, stats.saved, stats.copies),
        (32, 32, 32, 0)
    );

    assert_eq!(allocator.write(child, 100, &[8; 4]).expect("room"), 1);
    assert_eq!(
        allocator.write(child, 101, &[8; 4]).expect("its own block"),
        0
    );
    let stats = allocator.stats();
    assert_eq!((stats.used, stats.shared, stats.copies), (33, 31, 1));
    let mut row = [0; 4];
    allocator.read(parent, 100, 1, &mut row).expect("in range");
    assert_eq!(row, [7; 4]);
}
