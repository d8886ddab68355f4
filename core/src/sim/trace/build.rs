//! Building a trace from chunks of requests.

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use super::{BlockTokens, Trace};
use crate::error::{Error, Result};

/// Some requests, one after the other. The columns have an item a request, but for `ids`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Requests<'a> {
    /// Arrivals, milliseconds from the start of the trace.
    pub at_ms: &'a [f64],
    /// How many of `ids` belong to each.
    pub counts: &'a [u32],
    /// Block ids as the source has them.
    pub ids: &'a [u64],
    /// Tokens of the prompts.
    pub tokens: &'a [u32],
    /// Tokens of the answers.
    pub output_tokens: &'a [u32],
    /// Sessions, from 1; 0 for none.
    pub sessions: &'a [u32],
    /// Categories, from 1; 0 for none.
    pub categories: &'a [u32],
}

/// Numbers block ids densely and collects requests.
#[derive(Debug, Default)]
pub struct TraceBuilder {
    /// Dense ids by the source's ids; the hash is the same at every run, as all of a simulation is.
    known: HashMap<u64, u32, FixedState>,
    /// The source's ids by dense ids.
    ids: Vec<u64>,
    /// The dense id that was given last.
    last: u32,
    blocks: Vec<u32>,
    ends: Vec<u64>,
    at_ms: Vec<f64>,
    tokens: Vec<u32>,
    output_tokens: Vec<u32>,
    sessions: Vec<u32>,
    categories: Vec<u32>,
}

impl TraceBuilder {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends requests whose blocks are listed one by one.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the columns are not of one length or the counts do not add up to the ids, for a time that is
    /// no number or goes back, and for more than 2^32 - 1 distinct blocks. Nothing is taken then, but for the last.
    pub fn push(&mut self, requests: &Requests<'_>) -> Result<()> {
        self.check(requests)?;
        let listed: u64 = requests.counts.iter().map(|&count| u64::from(count)).sum();
        if listed != requests.ids.len() as u64 {
            return Err(Error::invalid(format!(
                "the requests have {listed} blocks in all, got {} ids",
                requests.ids.len()
            )));
        }
        self.blocks.reserve(requests.ids.len());
        for &id in requests.ids {
            let dense = self.number(id)?;
            self.blocks.push(dense);
        }
        let mut end = self.ends.last().copied().unwrap_or(0);
        self.ends.extend(requests.counts.iter().map(|&count| {
            end += u64::from(count);
            end
        }));
        self.take_columns(requests);
        Ok(())
    }

    /// As [`push`](Self::push), of requests whose ids are written as stretches of consecutive ones: `ids` is start, count,
    /// start, count and so on, and `counts` says how many of these numbers, always pairs, belong to each request.
    ///
    /// # Errors
    /// As [`push`](Self::push); also for an odd number, and for a stretch that goes beyond 2^64.
    pub fn push_runs(&mut self, requests: &Requests<'_>) -> Result<()> {
        self.check(requests)?;
        let listed: u64 = requests.counts.iter().map(|&count| u64::from(count)).sum();
        if listed != requests.ids.len() as u64 || requests.counts.iter().any(|count| count % 2 != 0)
        {
            return Err(Error::invalid(format!(
                "the requests have {listed} numbers in all, got {}; stretches are pairs of start and count",
                requests.ids.len()
            )));
        }
        let (runs, _) = requests.ids.as_chunks::<2>();
        if let Some([start, count]) = runs
            .iter()
            .find(|[start, count]| start.checked_add(*count).is_none())
        {
            return Err(Error::invalid(format!(
                "a stretch of {count} block ids from {start} on goes beyond 64 bits"
            )));
        }
        let mut runs = runs.iter();
        for &count in requests.counts {
            for &[start, count] in runs.by_ref().take(count as usize / 2) {
                for id in start..start + count {
                    let dense = self.number(id)?;
                    self.blocks.push(dense);
                }
            }
            self.ends.push(self.blocks.len() as u64);
        }
        self.take_columns(requests);
        Ok(())
    }

    fn check(&self, requests: &Requests<'_>) -> Result<()> {
        let columns = [
            requests.at_ms.len(),
            requests.counts.len(),
            requests.tokens.len(),
            requests.output_tokens.len(),
            requests.sessions.len(),
            requests.categories.len(),
        ];
        if columns.iter().any(|&len| len != columns[0]) {
            return Err(Error::invalid(format!(
                "the columns of requests are of different lengths: {columns:?}"
            )));
        }
        let mut before = self.at_ms.last().copied().unwrap_or(0.0);
        for &at in requests.at_ms {
            if !at.is_finite() || at < before {
                return Err(Error::invalid(format!(
                    "a request at {at} ms follows one at {before} ms: sort them by time, from 0 on"
                )));
            }
            before = at;
        }
        Ok(())
    }

    fn number(&mut self, id: u64) -> Result<u32> {
        // Prompts come again in the order in which they came first: mostly it is the next one.
        let next = self.last.wrapping_add(1);
        if self.ids.get(next as usize) == Some(&id) {
            self.last = next;
            return Ok(next);
        }
        let new = self.ids.len() as u32;
        if new == u32::MAX {
            return Err(Error::invalid(
                "a trace has at most 4294967295 distinct blocks; take a part of it",
            ));
        }
        self.last = *self.known.entry(id).or_insert(new);
        if self.last == new {
            self.ids.push(id);
        }
        Ok(self.last)
    }

    fn take_columns(&mut self, requests: &Requests<'_>) {
        self.at_ms.extend_from_slice(requests.at_ms);
        self.tokens.extend_from_slice(requests.tokens);
        self.output_tokens.extend_from_slice(requests.output_tokens);
        self.sessions.extend_from_slice(requests.sessions);
        self.categories.extend_from_slice(requests.categories);
    }

    /// Distinct block ids so far.
    pub fn unique_blocks(&self) -> usize {
        self.known.len()
    }

    /// The dense id of a source's id, if any request has it.
    pub fn dense(&self, id: u64) -> Option<u32> {
        self.known.get(&id).copied()
    }

    /// The trace. With [`BlockTokens::Each`] there is a length for each block, by dense id.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for blocks of 0 tokens, or another number of lengths than there are blocks.
    pub fn finish(mut self, block_tokens: BlockTokens) -> Result<Trace> {
        match &block_tokens {
            BlockTokens::Fixed(0) => {
                return Err(Error::invalid("a block has at least 1 token, got 0"));
            }
            BlockTokens::Each(lengths) if lengths.len() != self.known.len() => {
                return Err(Error::invalid(format!(
                    "{} lengths are given for {} blocks",
                    lengths.len(),
                    self.known.len()
                )));
            }
            _ => {}
        }
        self.blocks.shrink_to_fit();
        Ok(Trace {
            block_tokens,
            unique_blocks: self.known.len(),
            blocks: self.blocks,
            ends: self.ends,
            at_ms: self.at_ms,
            tokens: self.tokens,
            output_tokens: self.output_tokens,
            sessions: self.sessions,
            categories: self.categories,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::{Requests, TraceBuilder};
    use crate::sim::trace::BlockTokens;
    use crate::sim::trace::testing::trace;

    const ONE: Requests<'_> = Requests {
        at_ms: &[5.0],
        counts: &[2],
        ids: &[9, 4],
        tokens: &[20],
        output_tokens: &[1],
        sessions: &[0],
        categories: &[0],
    };

    #[test]
    fn ids_are_numbered_in_the_order_of_their_first_appearance() {
        let trace = trace(&[vec![9, 4], vec![], vec![9, u64::MAX, 4]]);
        assert_eq!(trace.blocks(), [0, 1, 0, 2, 1]);
        assert_eq!(trace.request(1).blocks, []);
        assert_eq!(trace.request(2).blocks, [0, 2, 1]);
        assert_eq!((trace.len(), trace.unique_blocks()), (3, 3));
        assert_eq!(trace.validate(), Ok(()));
    }

    #[test]
    fn stretches_are_what_they_stand_for() {
        let mut builder = TraceBuilder::new();
        builder
            .push_runs(&Requests {
                at_ms: &[0.0, 1.0],
                counts: &[4, 2],
                ids: &[3, 2, 8, 1, 4, 2],
                tokens: &[1, 2],
                output_tokens: &[0, 0],
                sessions: &[1, 1],
                categories: &[0, 0],
            })
            .unwrap();
        let runs = builder.finish(BlockTokens::Even).unwrap();
        let plain = trace(&[vec![3, 4, 8], vec![4, 5]]);
        assert_eq!(runs.blocks(), plain.blocks());
        assert_eq!(runs.request(1).blocks, plain.request(1).blocks);
        assert_eq!(runs.validate(), Ok(()));
    }

    #[test]
    fn what_does_not_fit_is_refused_and_nothing_is_taken() {
        let mut builder = TraceBuilder::new();
        builder.push(&ONE).unwrap();
        for (wrong, word) in [
            (Requests { tokens: &[], ..ONE }, "lengths"),
            (
                Requests {
                    counts: &[3],
                    ..ONE
                },
                "3 blocks",
            ),
            (
                Requests {
                    at_ms: &[4.0],
                    ..ONE
                },
                "4 ms",
            ),
            (
                Requests {
                    at_ms: &[f64::NAN],
                    ..ONE
                },
                "NaN",
            ),
        ] {
            let error = builder.push(&wrong).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
        for wrong in [&[1_u64, 2, 3][..], &[u64::MAX, 2]] {
            let wrong = Requests {
                counts: &[wrong.len() as u32],
                ids: wrong,
                ..ONE
            };
            assert!(builder.push_runs(&wrong).is_err());
        }
        let trace = builder.finish(BlockTokens::Fixed(16)).unwrap();
        assert_eq!((trace.len(), trace.block_refs()), (1, 2));
        assert!(TraceBuilder::new().finish(BlockTokens::Fixed(0)).is_err());
        let lengths = BlockTokens::Each(vec![1]);
        assert!(TraceBuilder::new().finish(lengths).is_err());
    }

    proptest! {
        #[test]
        fn equal_ids_are_equal_blocks(requests in prop::collection::vec(prop::collection::vec(0..30_u64, 0..9), 1..20)) {
            let trace = trace(&requests);
            prop_assert_eq!(trace.validate(), Ok(()));
            let mut known = HashMap::new();
            for (&id, &dense) in requests.iter().flatten().zip(trace.blocks()) {
                prop_assert_eq!(*known.entry(id).or_insert(dense), dense);
            }
            prop_assert_eq!(known.len(), trace.unique_blocks());
        }
    }
}
