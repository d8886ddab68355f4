//! What reading and computing cost, learnt at run time, and the rule that weighs one against the other.
//!
//! [`CostBook`] takes in how long reads of each tier and forwards of each model took, answers how much of a found prefix is worth
//! restoring ([`CostBook::choose`]), and is kept beside the store, so that a restart does not begin anew.
//!
//! The rule is optimistic: until both sides are measured it restores, and where it has left a tier alone for a while it
//! tries one run of it again, for at most a small share of the time that requests take anyway. So a tier that was slow once is
//! used again when it has recovered.

mod decide;
mod estimate;
mod persist;
mod rule;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::key::BlockKey;
use crate::sync::Mutex;
use crate::tier::TierId;
use estimate::{Estimator, Observation, Prior};

pub use decide::{Costs, Cut, Part, Question, RestoreMode, best};
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use persist::fuzz_costs;
use rule::Weighed;
pub(crate) use rule::{Trials, weigh};

/// Restores beside forwards that are remembered; their median counts.
const OVERLAPS: usize = 9;
/// Models whose costs are remembered.
const MAX_MODELS: usize = 32;

/// Seconds of a read: once, and per byte.
type ReadCost = Estimator<2>;
/// Seconds of a forward: once, per token, and per token and token of its context.
type PrefillCost = Estimator<3>;

/// Memory: 20 us and 5 GB/s.
const MEMORY: Prior<2> = Prior {
    costs: [2e-5, 2e-10],
    anchors: READ_ANCHORS,
};
/// A local disk: 200 us and 1 GB/s.
const DISK: Prior<2> = Prior {
    costs: [2e-4, 1e-9],
    anchors: READ_ANCHORS,
};
/// A server on the local network: 1 ms and 1 GB/s.
const SERVER: Prior<2> = Prior {
    costs: [1e-3, 1e-9],
    anchors: READ_ANCHORS,
};
const READ_ANCHORS: &[[f64; 2]] = &[[1.0, (1 << 18) as f64], [1.0, (1 << 26) as f64]];
/// The proportions of SmolLM2-135M in fp32 on two x86-64 cores; only they matter, until observations tell the parts apart.
const FORWARD: Prior<3> = Prior {
    costs: [2e-2, 1.2e-3, 4e-7],
    anchors: &[
        forward_features(16, 0),
        forward_features(16, 4096),
        forward_features(4096, 0),
    ],
};

/// Each token attends to the context and to the tokens before it.
const fn forward_features(tokens: usize, context: usize) -> [f64; 3] {
    let tokens = tokens as f64;
    [1.0, tokens, tokens * (context as f64 + tokens / 2.0)]
}

/// Why a request restores what it restores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// [`RestoreMode::Always`] or [`RestoreMode::Never`].
    Asked,
    /// Reading or computing was not measured often enough: everything is restored.
    NotMeasured,
    /// The least predicted time, or so near to it that everything is restored.
    Cheapest,
    /// A little more than that, to see whether a tier has become faster.
    Trial,
}

/// How much of a found prefix to restore.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// Why.
    pub reason: Reason,
    /// Tokens to restore, L1's included.
    pub tokens: usize,
    /// What is predicted for that; none where it was not measured.
    pub predicted: Option<Cut>,
    /// What is predicted for restoring everything; as above.
    pub all: Option<Cut>,
    /// What is predicted for restoring nothing below L1; as above.
    pub none: Option<Cut>,
    /// Where the first run that is left alone lies.
    pub left: Option<TierId>,
}

impl Choice {
    fn everything(reason: Reason, question: &Question<'_>) -> Self {
        Self {
            reason,
            tokens: question.found(),
            predicted: None,
            all: None,
            none: None,
            left: None,
        }
    }
}

/// What choices were made since the store was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChoiceCounts {
    /// Everything found was restored, being cheapest or near to it.
    pub all: u64,
    /// A part of what was found was restored.
    pub part: u64,
    /// Nothing below L1 was restored, though something was found.
    pub none: u64,
    /// A run was restored to see whether its tier has become faster.
    pub trials: u64,
    /// Everything was restored because too little was measured.
    pub not_measured: u64,
    /// The request said what to do.
    pub asked: u64,
    /// Found tokens that were left to be computed again, all choices together.
    pub recomputed_tokens: u64,
}

/// What reading from a tier was learnt to cost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ReadEstimate {
    /// The tier.
    pub tier: TierId,
    /// Observations remembered.
    pub observations: usize,
    /// Whether these are enough to decide by; until then this is what is assumed.
    pub learnt: bool,
    /// Seconds of a read, whatever its size.
    pub latency: f64,
    /// Seconds per byte.
    pub per_byte: f64,
}

/// What forwards of a model were learnt to cost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PrefillEstimate {
    /// Which model, as its requests name it.
    pub model: BlockKey,
    /// Observations remembered.
    pub observations: usize,
    /// Whether these are enough to decide by; until then this is what is assumed.
    pub learnt: bool,
    /// Seconds of a forward, whatever its size.
    pub fixed: f64,
    /// Seconds per token.
    pub per_token: f64,
    /// Seconds per token and token before it.
    pub per_token_and_context: f64,
}

/// What a [`CostBook`] knows.
#[derive(Clone, Debug, Default)]
pub struct CostStats {
    /// Reading, by tier.
    pub reads: Vec<ReadEstimate>,
    /// Computing, by model.
    pub prefills: Vec<PrefillEstimate>,
    /// The share of the shorter of restore and forward that the other one hides, 0 to 1.
    pub overlap: f64,
    /// What was decided by it.
    pub choices: ChoiceCounts,
}

#[derive(Debug, Default)]
struct Book {
    reads: BTreeMap<TierId, ReadCost>,
    /// In the order of their last use, the latest last.
    prefills: Vec<(BlockKey, PrefillCost)>,
    trials: Trials,
    /// The latest shares of restore or forward, whichever was shorter, that the other one hid.
    overlaps: VecDeque<f64>,
    choices: ChoiceCounts,
    changed: bool,
}

/// What reads and forwards cost here. Safe from many threads; nothing waits in it.
pub struct CostBook {
    book: Mutex<Book>,
    file: Option<persist::CostFile>,
}

impl fmt::Debug for CostBook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CostBook({} tiers)", self.book.lock().reads.len())
    }
}

impl CostBook {
    /// A book that ends with the process.
    pub fn in_memory() -> Self {
        Self {
            book: Mutex::default(),
            file: None,
        }
    }

    /// The book kept in a file. What cannot be used of it (damaged, of another version or machine, of another setting of the
    /// disk or server) is logged and learnt anew. `disk` says how the disk is used, as far as it makes reads cost something else, and
    /// `server` which servers L4 is on; empty without L4.
    pub fn open(path: PathBuf, disk: &str, server: &str) -> Self {
        let file = persist::CostFile::new(path, disk, server);
        let mut book = Book::default();
        file.load(&mut book);
        Self {
            book: Mutex::new(book),
            file: Some(file),
        }
    }

    /// [`Self::open`] for a directory that is only read: what is learnt from now on ends with the process.
    pub fn open_read_only(path: PathBuf, disk: &str, server: &str) -> Self {
        Self {
            file: None,
            ..Self::open(path, disk, server)
        }
    }

    /// Writes the book down, if it has a file and anything was learnt since. A failure is logged: the costs are then learnt
    /// again.
    pub fn save(&self) {
        let Some(file) = &self.file else { return };
        let text = {
            let mut book = self.book.lock();
            if !std::mem::take(&mut book.changed) {
                return;
            }
            file.text(&book)
        };
        if let Err(error) = file.write(&text) {
            log::warn!("the learnt costs could not be saved: {error}");
            self.book.lock().changed = true;
        }
    }

    /// Learns from one read: for each tier that took part its payload bytes and the time between its first and its last piece
    /// of work. Where several took part their times overlap, and only the one that was waited for is learnt from.
    pub fn note_read(&self, read: &[(TierId, u64, Duration)]) {
        let mut guard = self.book.lock();
        let book = &mut *guard;
        let used = read.iter().filter(|(_, bytes, _)| *bytes > 0);
        let slowest = used
            .map(|&(tier, bytes, time)| (tier, bytes, time, book.read(tier, bytes)))
            .max_by(|a, b| a.3.total_cmp(&b.3));
        let Some((tier, bytes, time, predicted)) = slowest else {
            return;
        };
        let seconds = time.as_secs_f64();
        book.trials.read(tier, predicted, seconds);
        book.observe_read(tier, bytes, seconds);
    }

    /// Learns from one forward of `tokens` tokens that followed `context` others and waited for nothing.
    pub fn note_prefill(&self, model: &BlockKey, tokens: usize, context: usize, time: Duration) {
        let mut book = self.book.lock();
        book.observe_prefill(*model, tokens, context, time.as_secs_f64());
    }

    /// Learns from a restore that took `read` beside a forward, which computed for `computed` and waited for `waited` on top.
    pub fn note_overlap(&self, read: Duration, computed: Duration, waited: Duration) {
        let shorter = read.min(computed).as_secs_f64();
        if shorter > 0.0 {
            let hidden = read.saturating_sub(waited).as_secs_f64();
            self.book.lock().observe_overlap(hidden / shorter);
        }
    }

    /// Decides how much of what was found is restored, and counts it; where nothing was found, there is nothing to count.
    pub fn choose(&self, mode: RestoreMode, model: &BlockKey, question: &Question<'_>) -> Choice {
        let mut guard = self.book.lock();
        let choice = guard.choose(mode, model, question);
        let found = question.found();
        if found == 0 {
            return choice;
        }
        let counts = &mut guard.choices;
        counts.recomputed_tokens += found.saturating_sub(choice.tokens) as u64;
        let counter = match choice.reason {
            Reason::Asked => &mut counts.asked,
            Reason::NotMeasured => &mut counts.not_measured,
            Reason::Trial => &mut counts.trials,
            Reason::Cheapest if choice.left.is_none() => &mut counts.all,
            Reason::Cheapest if choice.predicted.is_some_and(|cut| cut.parts > 0) => {
                &mut counts.part
            }
            Reason::Cheapest => &mut counts.none,
        };
        *counter += 1;
        choice
    }

    /// A request did not ask a tier, because others left it alone a short while ago: it is one more that did.
    pub fn pass_over(&self, tier: TierId) {
        self.book.lock().trials.pass_over(tier);
    }

    /// What [`RestoreMode::Auto`] would choose, trials aside. Nothing is counted.
    pub fn foresee(&self, model: &BlockKey, question: &Question<'_>) -> Choice {
        self.book.lock().weigh(model, question).0
    }

    /// What was learnt.
    pub fn stats(&self) -> CostStats {
        let mut guard = self.book.lock();
        let book = &mut *guard;
        let overlap = book.overlap();
        let reads = book.reads.iter_mut().map(|(&tier, cost)| {
            let [latency, per_byte] = cost.costs();
            ReadEstimate {
                tier,
                observations: cost.observations(),
                learnt: cost.is_learnt(),
                latency,
                per_byte,
            }
        });
        let prefills = book.prefills.iter_mut().map(|(model, cost)| {
            let [fixed, per_token, per_token_and_context] = cost.costs();
            PrefillEstimate {
                model: *model,
                observations: cost.observations(),
                learnt: cost.is_learnt(),
                fixed,
                per_token,
                per_token_and_context,
            }
        });
        CostStats {
            reads: reads.collect(),
            prefills: prefills.collect(),
            overlap,
            choices: book.choices,
        }
    }
}

impl Book {
    fn read_cost(&mut self, tier: TierId) -> &mut ReadCost {
        self.reads.entry(tier).or_insert_with(|| {
            Estimator::new(match tier {
                TierId::L1 | TierId::L2 => MEMORY,
                TierId::L3 => DISK,
                TierId::L4 => SERVER,
            })
        })
    }

    fn observe_read(&mut self, tier: TierId, bytes: u64, seconds: f64) {
        self.changed = true;
        self.read_cost(tier).observe(Observation {
            cell: bytes.max(1).ilog2(),
            features: [1.0, bytes as f64],
            seconds,
        });
    }

    fn prefill_cost(&mut self, model: BlockKey) -> &mut PrefillCost {
        let known = self.prefills.iter().position(|(each, _)| *each == model);
        let entry = match known {
            Some(index) => self.prefills.remove(index),
            None => (model, Estimator::new(FORWARD)),
        };
        if self.prefills.len() == MAX_MODELS {
            self.prefills.remove(0);
        }
        let last = self.prefills.len();
        self.prefills.push(entry);
        &mut self.prefills[last].1
    }

    fn observe_prefill(&mut self, model: BlockKey, tokens: usize, context: usize, seconds: f64) {
        self.changed = true;
        // Contexts need telling apart less finely: attention is a small part of the time until they are long.
        let context_class = context.saturating_add(1).ilog2() / 2;
        self.prefill_cost(model).observe(Observation {
            cell: tokens.max(1).ilog2() << 8 | context_class,
            features: forward_features(tokens, context),
            seconds,
        });
    }

    fn observe_overlap(&mut self, share: f64) {
        self.changed = true;
        if self.overlaps.len() == OVERLAPS {
            self.overlaps.pop_front();
        }
        self.overlaps.push_back(share.clamp(0.0, 1.0));
    }

    /// None hidden, until something else was seen: the sum of both is never too little.
    fn overlap(&self) -> f64 {
        let mut shares = self.overlaps.iter().copied().collect::<Vec<_>>();
        shares.sort_by(f64::total_cmp);
        shares.get(shares.len() / 2).copied().unwrap_or(0.0)
    }

    fn choose(&mut self, mode: RestoreMode, model: &BlockKey, question: &Question<'_>) -> Choice {
        match mode {
            RestoreMode::Always => Choice::everything(Reason::Asked, question),
            RestoreMode::Never => Choice {
                tokens: 0,
                left: question.first_tier(),
                ..Choice::everything(Reason::Asked, question)
            },
            RestoreMode::Auto => {
                let (mut choice, next) = self.weigh(model, question);
                if let (Some(cheapest), Some(next), Some(tier)) =
                    (choice.predicted, next, choice.left)
                    && self.trials.tries(tier, &cheapest, &next)
                {
                    choice.reason = Reason::Trial;
                    choice.tokens = next.tokens;
                    choice.predicted = Some(next);
                    choice.left = question.parts.get(next.parts).map(|part| part.tier);
                }
                choice
            }
        }
    }

    /// The cut of the least predicted time, and the next one: it reads one run more, or as many as it takes to get to the grid.
    fn weigh(&mut self, model: &BlockKey, question: &Question<'_>) -> (Choice, Option<Cut>) {
        let mut prefills = self.prefills.iter();
        let measured = prefills.any(|(each, cost)| each == model && cost.is_learnt())
            && question.parts.iter().all(|part| {
                let cost = self.reads.get(&part.tier);
                cost.is_some_and(ReadCost::is_learnt)
            });
        if !measured {
            return (Choice::everything(Reason::NotMeasured, question), None);
        }
        let cuts = question.cuts(&mut Predictions {
            book: self,
            model: *model,
        });
        let Some(Weighed {
            chosen,
            next,
            all,
            none,
        }) = weigh(&cuts)
        else {
            return (Choice::everything(Reason::NotMeasured, question), None);
        };
        let mut choice = Choice {
            predicted: Some(chosen),
            all: Some(all),
            none: Some(none),
            ..Choice::everything(Reason::Cheapest, question)
        };
        if next.is_some() {
            choice.tokens = chosen.tokens;
            choice.left = question.parts.get(chosen.parts).map(|part| part.tier);
        }
        (choice, next)
    }
}

/// A book's predictions for one model.
struct Predictions<'a> {
    book: &'a mut Book,
    model: BlockKey,
}

impl Costs for Predictions<'_> {
    fn read(&mut self, tier: TierId, bytes: u64) -> f64 {
        self.book.read(tier, bytes)
    }

    fn prefill(&mut self, tokens: usize, context: usize) -> f64 {
        let features = forward_features(tokens, context);
        self.book.prefill_cost(self.model).predict(&features)
    }

    fn overlap(&mut self) -> f64 {
        self.book.overlap()
    }
}

impl Book {
    fn read(&mut self, tier: TierId, bytes: u64) -> f64 {
        self.read_cost(tier).predict(&[1.0, bytes as f64])
    }
}
