use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;

use super::decide::{Costs, Cut, Part, Question, best};
use super::estimate::{Estimator, Observation};
use super::rule::TRIAL_REQUESTS;
use super::{CostBook, DISK, FORWARD, Reason, RestoreMode, forward_features};
use crate::key::BlockKey;
use crate::tier::TierId;

const MODEL: BlockKey = BlockKey([7; 32]);

/// Reads of latency and rate, forwards of three parts, known exactly.
#[derive(Clone, Copy, Debug)]
struct World {
    l2: [f64; 2],
    l3: [f64; 2],
    forward: [f64; 3],
    overlap: f64,
}

impl Costs for World {
    fn read(&mut self, tier: TierId, bytes: u64) -> f64 {
        let [latency, per_byte] = if tier == TierId::L3 { self.l3 } else { self.l2 };
        latency + per_byte * bytes as f64
    }

    fn prefill(&mut self, tokens: usize, context: usize) -> f64 {
        let features = forward_features(tokens, context);
        features.iter().zip(self.forward).map(|(a, b)| a * b).sum()
    }

    fn overlap(&mut self) -> f64 {
        self.overlap
    }
}

impl World {
    fn slower_disk(mut self, factor: f64) -> Self {
        self.l3 = self.l3.map(|cost| cost * factor);
        self
    }

    /// Teaches a book what this world costs.
    fn teach(&mut self, book: &CostBook) {
        for _ in 0..3 {
            book.note_overlap(seconds(2.0), seconds(1.0), seconds(2.0 - self.overlap));
        }
        for bytes in [1 << 18, 1 << 21, 1 << 24, 1 << 26] {
            for tier in [TierId::L2, TierId::L3] {
                for _ in 0..3 {
                    book.note_read(&[(tier, bytes, seconds(self.read(tier, bytes)))]);
                }
            }
        }
        for (tokens, context) in [(16, 0), (64, 1024), (512, 0), (512, 2048), (2048, 0)] {
            for _ in 0..3 {
                let time = seconds(self.prefill(tokens, context));
                book.note_prefill(&MODEL, tokens, context, time);
            }
        }
    }
}

fn seconds(value: f64) -> Duration {
    Duration::from_secs_f64(value)
}

fn world() -> impl Strategy<Value = World> {
    (
        (1e-6..1e-3, 1e-10..1e-9),
        (1e-5..1e-2, 1e-10..1e-6),
        (1e-4..1e-1, 1e-5..1e-2, 1e-9..1e-5),
        0.0..=1.0,
    )
        .prop_map(|(l2, l3, forward, overlap)| World {
            l2: l2.into(),
            l3: l3.into(),
            forward: forward.into(),
            overlap,
        })
}

/// A prompt with runs below L1, as a lookup finds them.
#[derive(Clone, Debug)]
struct Found {
    prompt: usize,
    l1: usize,
    parts: Vec<Part>,
    grid: usize,
    chunked: bool,
}

impl Found {
    fn question(&self) -> Question<'_> {
        Question {
            prompt: self.prompt,
            l1: self.l1,
            parts: &self.parts,
            grid: self.grid,
            chunked: self.chunked,
        }
    }
}

fn found() -> impl Strategy<Value = Found> {
    let part = (any::<bool>(), 1_usize..30, 1_u64..40_000, 0_u64..4).prop_map(
        |(disk, blocks, token_bytes, beyond)| Part {
            tier: if disk { TierId::L3 } else { TierId::L2 },
            bytes: token_bytes * 16 * (blocks as u64 + beyond),
            tokens: blocks * 16,
        },
    );
    let grid = prop::sample::select(vec![16, 64, 256]);
    (
        0_usize..20,
        vec(part, 0..8),
        grid,
        any::<bool>(),
        1_usize..200,
    )
        .prop_map(|(l1, parts, grid, chunked, rest)| {
            let found = l1 * 16 + parts.iter().map(|part| part.tokens).sum::<usize>();
            Found {
                prompt: found + rest,
                l1: l1 * 16,
                parts,
                grid,
                chunked,
            }
        })
}

/// What restoring the first `tokens` tokens takes, worked out by itself: reads of whole runs, then one forward or one a chunk.
fn total(found: &Found, tokens: usize, mut world: World) -> f64 {
    let mut before = found.l1;
    let (mut l2, mut l3) = (0, 0);
    for part in &found.parts {
        if before < tokens {
            match part.tier {
                TierId::L3 => l3 += part.bytes,
                _ => l2 += part.bytes,
            }
        }
        before += part.tokens;
    }
    let mut time = 0.0;
    for (tier, bytes) in [(TierId::L2, l2), (TierId::L3, l3)] {
        if bytes > 0 {
            time += world.read(tier, bytes);
        }
    }
    let (mut at, mut prefill) = (tokens, 0.0);
    while at < found.prompt {
        let rest = found.prompt - at;
        let forward = if found.chunked {
            rest.min(found.grid)
        } else {
            rest
        };
        prefill += world.prefill(forward, at);
        at += forward;
    }
    let first = if found.chunked {
        world.prefill(found.grid.min(found.prompt - tokens), found.l1)
    } else {
        prefill
    };
    time + prefill - world.overlap * time.min(first).min(prefill)
}

fn chosen(found: &Found, mut world: World) -> Cut {
    let cuts = found.question().cuts(&mut world);
    *best(&cuts).expect("there is always a cut")
}

proptest! {
    #[test]
    fn the_chosen_cut_is_the_best_of_all(found in found(), world in world()) {
        let most = found.question().found();
        let choice = chosen(&found, world);
        let least = (found.l1 / found.grid..=most / found.grid)
            .map(|cell| total(&found, cell * found.grid, world))
            .fold(f64::INFINITY, f64::min);
        prop_assert!(choice.tokens.is_multiple_of(found.grid) && choice.tokens <= most);
        let own = total(&found, choice.tokens, world);
        prop_assert!((own - choice.total).abs() <= 1e-9 * own, "{} is not {}", choice.total, own);
        prop_assert!(own <= least * (1.0 + 1e-9), "{own} against {least}");
    }

    #[test]
    fn a_slower_disk_never_restores_more(found in found(), world in world(), factor in 1.0..1e3) {
        let (fast, slow) = (chosen(&found, world), chosen(&found, world.slower_disk(factor)));
        prop_assert!(slow.tokens <= fast.tokens, "{} after {}", slow.tokens, fast.tokens);
    }

    #[test]
    fn a_learnt_book_departs_from_restoring_all_only_for_less_time(
        found in found(), mut world in world(),
    ) {
        let book = CostBook::in_memory();
        world.teach(&book);
        let choice = book.choose(RestoreMode::Auto, &MODEL, &found.question());
        let all = total(&found, found.question().found(), world);
        let own = total(&found, choice.tokens, world);
        // The book's costs are those of the world up to the clock's nanoseconds.
        prop_assert!(own <= all * 1.001, "{own} against {all}");
        let least = chosen(&found, world).total;
        prop_assert!(own <= least + 0.0021_f64.max(0.051 * all), "{own} against {least}");
    }

    /// In each size, fewer than half of the remembered observations are spikes.
    #[test]
    fn spikes_move_the_estimate_by_little(
        latency in 1e-5..1e-2,
        per_byte in 1e-10..1e-7,
        sizes in vec(16_u32..28, 2..6),
        seen in vec((0.9..1.1, any::<bool>(), 30.0..1000.0), 9 * 6),
        count in 3_usize..=9,
    ) {
        let mut estimator = Estimator::new(DISK);
        let mut noise = seen.into_iter();
        let mut sizes = sizes;
        sizes.sort_unstable();
        sizes.dedup();
        for &size in &sizes {
            let mut spikes = (count - 1) / 2;
            for _ in 0..count {
                let (jitter, spiked, factor) = noise.next().expect("enough");
                let spiked = spiked && spikes > 0;
                spikes -= usize::from(spiked);
                let bytes = f64::from(1_u32 << size);
                estimator.observe(Observation {
                    cell: size,
                    features: [1.0, bytes],
                    seconds: (latency + per_byte * bytes) * jitter * if spiked { factor } else { 1.0 },
                });
            }
        }
        for size in sizes {
            let bytes = f64::from(1_u32 << size);
            let (told, truth) = (estimator.predict(&[1.0, bytes]), latency + per_byte * bytes);
            prop_assert!((0.5..2.0).contains(&(told / truth)), "{told} against {truth}");
        }
    }

    #[test]
    fn what_was_observed_without_noise_is_predicted_exactly(mut world in world()) {
        let mut estimator = Estimator::new(FORWARD);
        let places = [(16, 0), (64, 1024), (512, 0), (512, 2048), (2048, 0)];
        for (cell, &(tokens, context)) in places.iter().enumerate() {
            estimator.observe(Observation {
                cell: cell as u32,
                features: forward_features(tokens, context),
                seconds: world.prefill(tokens, context),
            });
        }
        for (tokens, context) in [(1, 0), (50, 4096), (1024, 0), (4096, 0), (300, 700)] {
            let told = estimator.predict(&forward_features(tokens, context));
            let truth = world.prefill(tokens, context);
            prop_assert!((told / truth - 1.0).abs() < 1e-3, "{told} against {truth}");
        }
    }

    #[test]
    fn any_observation_is_taken(values in vec((any::<u32>(), any::<f64>(), any::<f64>(), any::<f64>()), 0..40)) {
        let mut estimator = Estimator::new(DISK);
        for (cell, once, bytes, seconds) in values {
            estimator.observe(Observation { cell, features: [once, bytes], seconds });
            let costs = estimator.costs();
            prop_assert!(costs.iter().all(|cost| cost.is_finite() && *cost >= 0.0), "{costs:?}");
        }
    }
}

/// 64 runs of 16 blocks on a disk; computing a token takes 1 ms.
fn on_disk(runs: usize) -> Found {
    let part = Part {
        tier: TierId::L3,
        bytes: 256 * 46_080,
        tokens: 256,
    };
    Found {
        prompt: runs * 256 + 50,
        l1: 0,
        parts: vec![part; runs],
        grid: 16,
        chunked: false,
    }
}

fn disk(rate: f64) -> World {
    World {
        l2: [1e-5, 2e-10],
        l3: [1e-4, 1.0 / rate],
        forward: [2e-2, 1e-3, 1e-7],
        overlap: 0.9,
    }
}

#[test]
fn everything_is_restored_until_both_sides_are_measured() {
    let book = CostBook::in_memory();
    let found = on_disk(4);
    let ask = || book.choose(RestoreMode::Auto, &MODEL, &found.question());
    for _ in 0..3 {
        assert_eq!((ask().reason, ask().tokens), (Reason::NotMeasured, 1024));
        book.note_prefill(&MODEL, 512, 0, seconds(0.5));
    }
    // One spike, or two, decide nothing.
    for _ in 0..2 {
        assert_eq!((ask().reason, ask().tokens), (Reason::NotMeasured, 1024));
        book.note_read(&[(TierId::L3, 1 << 24, seconds(100.0))]);
    }
    book.note_read(&[(TierId::L3, 1 << 24, seconds(100.0))]);
    assert_eq!((ask().reason, ask().tokens), (Reason::Cheapest, 0));
    assert_eq!(ask().left, Some(TierId::L3));
    let counts = book.stats().choices;
    assert_eq!((counts.not_measured, counts.none), (10, 3));
    assert_eq!(counts.recomputed_tokens, 3 * 1024);
}

#[test]
fn always_and_never_do_not_ask_what_it_costs() {
    let book = CostBook::in_memory();
    disk(1e6).teach(&book);
    let found = on_disk(4);
    let ask = |mode| book.choose(mode, &MODEL, &found.question());
    assert_eq!(ask(RestoreMode::Always).tokens, 1024);
    assert_eq!(ask(RestoreMode::Auto).tokens, 0);
    disk(1e10).teach(&book);
    assert_eq!(ask(RestoreMode::Never).tokens, 0);
    assert_eq!(book.stats().choices.asked, 2);
    assert!(RestoreMode::by_name("sometimes").is_err());
}

#[test]
fn a_disk_that_recovered_is_found_out_by_trials_that_cost_little() {
    let book = CostBook::in_memory();
    let found = on_disk(4);
    let (mut slow, mut fast) = (disk(5e6), disk(2e9));
    slow.teach(&book);
    let ask = |disk: &mut World| {
        let choice = book.choose(RestoreMode::Auto, &MODEL, &found.question());
        let bytes = found.parts[..choice.tokens / 256]
            .iter()
            .map(|part| part.bytes)
            .sum();
        if bytes > 0 {
            book.note_read(&[(TierId::L3, bytes, seconds(disk.read(TierId::L3, bytes)))]);
        }
        let spent = total(&found, choice.tokens, *disk);
        (choice.reason, choice.tokens, spent)
    };
    let (mut spent, mut trials) = (0.0, 0);
    for _ in 0..400 {
        let (reason, tokens, time) = ask(&mut slow);
        // A trial is one run, and everything else is computed.
        assert_eq!(tokens, if reason == Reason::Trial { 256 } else { 0 });
        trials += u32::from(reason == Reason::Trial);
        spent += time;
    }
    assert!(
        (1..=400 / TRIAL_REQUESTS).contains(&trials),
        "{trials} trials"
    );
    let least = 400.0 * total(&found, 0, slow);
    assert!(spent <= 1.06 * least, "{spent} s, {least} s without trials");
    let back = (0..200).position(|_| ask(&mut fast).1 == 1024);
    assert!(back.is_some(), "the disk is never used again");
}

#[test]
fn a_read_from_several_tiers_teaches_about_the_one_that_was_waited_for() {
    let book = CostBook::in_memory();
    for _ in 0..3 {
        let (memory, disk) = (
            (TierId::L2, 1 << 20, seconds(0.1)),
            (TierId::L3, 1 << 26, seconds(0.1)),
        );
        book.note_read(&[memory, disk]);
    }
    let reads = book.stats().reads;
    let learnt = reads
        .iter()
        .filter(|read| read.learnt)
        .map(|read| read.tier);
    assert_eq!(learnt.collect::<Vec<_>>(), [TierId::L3]);
}

#[test]
fn models_that_were_not_seen_for_long_are_forgotten() {
    let book = CostBook::in_memory();
    for model in 0..100 {
        book.note_prefill(&BlockKey([model; 32]), 512, 0, seconds(0.5));
    }
    let models = book.stats().prefills;
    assert_eq!(models.len(), super::MAX_MODELS);
    assert!(models.iter().any(|each| each.model == BlockKey([99; 32])));
}

#[test]
fn a_saved_book_is_the_same_when_opened_again() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("COSTS");
    let book = CostBook::open(path.clone(), "4 workers", "");
    disk(3e8).teach(&book);
    let before = book.stats();
    book.save();
    let after = CostBook::open(path.clone(), "4 workers", "").stats();
    assert_eq!(
        (after.reads, after.prefills),
        (before.reads, before.prefills.clone())
    );
    // Reads depend on how the disk is used, forwards do not.
    let other = CostBook::open(path, "1 worker", "").stats();
    assert!(other.reads.is_empty());
    assert_eq!(other.prefills, before.prefills);
}

#[test]
fn a_file_that_cannot_be_used_is_learnt_anew_and_replaced() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("COSTS");
    let book = CostBook::open(path.clone(), "", "");
    disk(3e8).teach(&book);
    book.save();
    let sound = std::fs::read_to_string(&path).expect("saved");
    let newer = sound.replacen("kvlab-costs 1", "kvlab-costs 2", 1);
    let cut_short = sound[..sound.len() / 2].to_owned();
    let altered = sound.replacen("e-", "e+", 1);
    let larger = "x".repeat(5 << 20);
    let foreign = "a shopping list\n".to_owned();
    let texts = [newer, cut_short, altered, larger, foreign, String::new()];
    let files = texts.into_iter().map(String::into_bytes);
    for bytes in files.chain([vec![0xff; 100]]) {
        std::fs::write(&path, bytes).expect("written");
        let book = CostBook::open(path.clone(), "", "");
        assert!(book.stats().reads.is_empty() && book.stats().prefills.is_empty());
        disk(3e8).teach(&book);
        book.save();
        assert!(std::fs::read_to_string(&path).is_ok_and(|text| text == sound));
    }
}

#[test]
fn a_book_that_learnt_nothing_writes_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("COSTS");
    let book = CostBook::open(path.clone(), "", "");
    book.save();
    assert!(!path.exists());
    disk(3e8).teach(&book);
    book.save();
    std::fs::remove_file(&path).expect("saved");
    book.save();
    assert!(!path.exists());
    assert!(!path.with_extension("new").exists());
}
