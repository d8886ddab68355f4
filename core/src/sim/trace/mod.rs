//! A trace: which blocks each request of a run was made of, in columns.
//!
//! Block ids of a source are 64 bits wide and sparse; here they are numbered densely in the order of their first appearance,
//! so that a reference costs 4 bytes and a table by block is an array.

mod build;
mod chain;
mod sample;

pub use build::{Requests, TraceBuilder};

/// How many tokens a block stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BlockTokens {
    /// The same number in every block, but for the last one of a request.
    Fixed(u32),
    /// A number for each block, by its dense id (pieces of prompts rather than blocks).
    Each(Vec<u32>),
    /// Not known: a request's tokens are shared out evenly over its blocks.
    Even,
}

/// One request of a trace.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Request<'a> {
    /// Arrival, milliseconds from the start of the trace.
    pub at_ms: f64,
    /// Its blocks, by dense id, from the first on.
    pub blocks: &'a [u32],
    /// Tokens of the prompt.
    pub tokens: u32,
    /// Tokens of the answer.
    pub output_tokens: u32,
    /// Which session it belongs to; 0 for none.
    pub session: u32,
    /// Its category, 0 if it has none.
    pub category: u32,
}

/// Requests in the order in which they arrived. Costs 4 bytes a block reference and 32 bytes a request.
#[derive(Clone, Debug)]
pub struct Trace {
    block_tokens: BlockTokens,
    blocks: Vec<u32>,
    /// Where each request's blocks end.
    ends: Vec<u64>,
    at_ms: Vec<f64>,
    tokens: Vec<u32>,
    output_tokens: Vec<u32>,
    sessions: Vec<u32>,
    categories: Vec<u32>,
    unique_blocks: usize,
}

impl Trace {
    /// Requests.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is no request.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The lengths of all requests' lists of blocks, summed.
    pub fn block_refs(&self) -> u64 {
        self.blocks.len() as u64
    }

    /// Distinct block ids.
    pub fn unique_blocks(&self) -> usize {
        self.unique_blocks
    }

    /// Prompt tokens of all requests.
    pub fn total_tokens(&self) -> u64 {
        self.tokens.iter().map(|&tokens| u64::from(tokens)).sum()
    }

    /// What a block stands for.
    pub fn block_tokens(&self) -> &BlockTokens {
        &self.block_tokens
    }

    /// The blocks of one request after the other.
    pub fn blocks(&self) -> &[u32] {
        &self.blocks
    }

    /// Request number `index`, which is below [`len`](Self::len).
    pub fn request(&self, index: usize) -> Request<'_> {
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]) as usize;
        Request {
            at_ms: self.at_ms[index],
            blocks: &self.blocks[start..self.ends[index] as usize],
            tokens: self.tokens[index],
            output_tokens: self.output_tokens[index],
            session: self.sessions[index],
            category: self.categories[index],
        }
    }

    /// All requests.
    pub fn requests(&self) -> impl Iterator<Item = Request<'_>> {
        (0..self.len()).map(|index| self.request(index))
    }

    /// Tokens of the first `hits` blocks of a request, no more than it has.
    pub fn tokens_of(&self, request: &Request<'_>, hits: usize) -> u64 {
        let tokens = u64::from(request.tokens);
        match &self.block_tokens {
            BlockTokens::Fixed(each) => tokens.min(hits as u64 * u64::from(*each)),
            BlockTokens::Each(lengths) => {
                let own = request.blocks[..hits].iter();
                tokens.min(own.map(|&id| u64::from(lengths[id as usize])).sum())
            }
            BlockTokens::Even => match request.blocks.len() as u64 {
                0 => 0,
                blocks => tokens * hits as u64 / blocks,
            },
        }
    }

    /// Checks that the columns fit one another.
    ///
    /// # Errors
    /// A description of the first thing that is wrong.
    pub fn validate(&self) -> Result<(), String> {
        let columns = [
            self.at_ms.len(),
            self.tokens.len(),
            self.output_tokens.len(),
            self.sessions.len(),
            self.categories.len(),
        ];
        if columns.iter().any(|&len| len != self.len()) {
            return Err(format!(
                "{} requests, but columns of {columns:?}",
                self.len()
            ));
        }
        if !self.ends.is_sorted() || self.ends.last().copied().unwrap_or(0) != self.block_refs() {
            return Err("the requests' ends are not those of the blocks".to_owned());
        }
        let mut next = 0;
        for &id in &self.blocks {
            if id > next {
                return Err(format!("block {id} comes before block {next}"));
            }
            next += u32::from(id == next);
        }
        if next as usize != self.unique_blocks {
            return Err(format!("{next} blocks, {} are claimed", self.unique_blocks));
        }
        match &self.block_tokens {
            BlockTokens::Each(lengths) if lengths.len() != self.unique_blocks => {
                Err(format!("{} lengths of {next} blocks", lengths.len()))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use proptest::prelude::*;

    use super::{BlockTokens, Requests, Trace, TraceBuilder};

    /// A trace of these requests, of blocks of 10 tokens, the last of which is partial; one request a second.
    pub(crate) fn trace(requests: &[Vec<u64>]) -> Trace {
        let mut builder = TraceBuilder::new();
        for (at, blocks) in requests.iter().enumerate() {
            let tokens = (blocks.len() * 10).saturating_sub(3) as u32;
            builder
                .push(&Requests {
                    at_ms: &[at as f64 * 1000.0],
                    counts: &[blocks.len() as u32],
                    ids: blocks,
                    tokens: &[tokens],
                    output_tokens: &[7],
                    sessions: &[0],
                    categories: &[at as u32 % 3],
                })
                .unwrap();
        }
        builder.finish(BlockTokens::Fixed(10)).unwrap()
    }

    /// Prompts that share prefixes: each goes on from a prefix of an earlier one, and ids name a block and all before it.
    pub(crate) fn prefixes(requests: usize) -> impl Strategy<Value = Vec<Vec<u64>>> {
        let turn = (
            any::<prop::sample::Index>(),
            any::<prop::sample::Index>(),
            0..7_usize,
        );
        prop::collection::vec(turn, 1..requests).prop_map(|turns| {
            let mut next = 0;
            let mut prompts: Vec<Vec<u64>> = vec![Vec::new()];
            for (earlier, keep, more) in turns {
                let before = &prompts[earlier.index(prompts.len())];
                let mut prompt = before[..keep.index(before.len() + 1)].to_vec();
                prompt.extend(next..next + more as u64);
                next += more as u64;
                prompts.push(prompt);
            }
            prompts
        })
    }
}
