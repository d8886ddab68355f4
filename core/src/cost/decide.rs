//! The break-even: how much of what was found to restore, and how much to compute again.

use crate::error::{Error, Result};
use crate::tier::TierId;

/// Whether a request restores what is found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum RestoreMode {
    /// All of it.
    Always,
    /// As much as is predicted to be worth it.
    #[default]
    Auto,
    /// Nothing, of any tier.
    Never,
}

impl RestoreMode {
    /// Parses `always`, `auto` or `never`.
    ///
    /// # Errors
    /// [`Error::Config`] that lists the known names.
    pub fn by_name(name: &str) -> Result<Self> {
        match name {
            "always" => Ok(Self::Always),
            "auto" => Ok(Self::Auto),
            "never" => Ok(Self::Never),
            _ => Err(Error::Config {
                name: "restore",
                value: name.to_owned(),
                remedy: "use always, auto or never".to_owned(),
            }),
        }
    }
}

/// One run that could be read, and what it would bring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Where it is read from.
    pub tier: TierId,
    /// Payload bytes that reading it moves: all of the run, however little of it is wanted.
    pub bytes: u64,
    /// Prompt tokens that it covers.
    pub tokens: usize,
}

/// A prompt, and what was found of it.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Tokens that are in L1: a copy in memory, never worth computing.
    pub l1: usize,
    /// What follows them, in order: only a prefix of it can be used.
    pub parts: &'a [Part],
    /// What hits are rounded down to, in tokens.
    pub grid: usize,
    /// Whether the rest is computed in forwards that end on the grid.
    pub chunked: bool,
}

/// Somewhere to stop restoring.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cut {
    /// Tokens restored, L1's included; on the grid.
    pub tokens: usize,
    /// Parts read.
    pub parts: usize,
    /// Predicted seconds to read them.
    pub restore: f64,
    /// Predicted seconds to compute the rest of the prompt.
    pub prefill: f64,
    /// Predicted seconds of both, as far as they do not overlap.
    pub total: f64,
}

/// What things are predicted to cost, in seconds.
pub trait Costs {
    /// Reading so many bytes from a tier, by one request.
    fn read(&mut self, tier: TierId, bytes: u64) -> f64;
    /// A forward over `tokens` tokens that follow `context` others.
    fn prefill(&mut self, tokens: usize, context: usize) -> f64;
    /// The share of the shorter of restore and first forward that runs beside the longer one, 0 to 1: 0 where the forward
    /// starts after the restore, near 1 where it starts with the first layer.
    fn overlap(&mut self) -> f64;
}

impl Question<'_> {
    /// Tokens of all that was found, on the grid.
    pub fn found(&self) -> usize {
        let found = self.l1 + self.parts.iter().map(|part| part.tokens).sum::<usize>();
        found / self.grid.max(1) * self.grid.max(1)
    }

    /// The tier of the first token that was found.
    pub fn first_tier(&self) -> Option<TierId> {
        let l1 = (self.l1 > 0).then_some(TierId::L1);
        l1.or_else(|| self.parts.first().map(|part| part.tier))
    }

    /// Every cut worth looking at, the shortest first. Runs are read whole, so within a run only the last usable token is one.
    /// O(parts).
    pub fn cuts(&self, costs: &mut impl Costs) -> Vec<Cut> {
        let grid = self.grid.max(1);
        let (mut reached, mut bytes) = (self.l1, Vec::<(TierId, u64)>::new());
        let mut cuts = vec![self.cut(self.l1 / grid * grid, 0, 0.0, costs)];
        for (index, part) in self.parts.iter().enumerate() {
            reached += part.tokens;
            match bytes.iter_mut().find(|(tier, _)| *tier == part.tier) {
                Some((_, sum)) => *sum += part.bytes,
                None => bytes.push((part.tier, part.bytes)),
            }
            let tokens = reached / grid * grid;
            if cuts.last().is_none_or(|last| last.tokens < tokens) {
                let restore = bytes.iter().map(|&(tier, sum)| costs.read(tier, sum)).sum();
                cuts.push(self.cut(tokens, index + 1, restore, costs));
            }
        }
        cuts
    }

    fn cut(&self, tokens: usize, parts: usize, restore: f64, costs: &mut impl Costs) -> Cut {
        let prefill = self.prefill(tokens, costs);
        // Layers are waited for in the first forward only. That one is taken at the same context for every cut: where a slower
        // disk cut less, the rule could swing.
        let first = if self.chunked {
            costs.prefill(self.grid.min(self.prompt - tokens), self.l1)
        } else {
            prefill
        };
        let hidden = costs.overlap() * restore.min(first).min(prefill);
        Cut {
            tokens,
            parts,
            restore,
            prefill,
            total: restore + prefill - hidden,
        }
    }

    /// Computing what follows `context`, chunk by chunk if it is done so.
    fn prefill(&self, context: usize, costs: &mut impl Costs) -> f64 {
        let rest = self.prompt - context;
        if !self.chunked || rest <= self.grid {
            return costs.prefill(rest, context);
        }
        // The sum of a cost that grows evenly with the context: chunks of the mean context.
        let chunks = rest / self.grid;
        let (whole, last) = (chunks * self.grid, rest % self.grid);
        let middle = context + (whole - self.grid) / 2;
        let tail = if last > 0 {
            costs.prefill(last, context + whole)
        } else {
            0.0
        };
        chunks as f64 * costs.prefill(self.grid, middle) + tail
    }
}

/// The cut of the least predicted total; of equals the longest, which spares the processor.
pub fn best(cuts: &[Cut]) -> Option<&Cut> {
    cuts.iter().rev().min_by(|a, b| a.total.total_cmp(&b.total))
}
