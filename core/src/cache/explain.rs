//! Why a prompt hits or misses, without changing anything: no lock, no pin, no use is counted here. The servers of L4 are asked.

use super::PrefixCache;
use crate::cost::{Choice, Part, Question};
use crate::error::{Error, Result};
use crate::key::{BlockKey, chain_keys};
use crate::radix::Divergence;
use crate::store::Lookup;
use crate::tier::TierId;

/// What the tiers know of a prompt.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// How far L1's tree knows the prompt, to the token.
    pub l1: Divergence,
    /// Where each usable whole block is below L1, from the first one on: whether L1 has it or not.
    pub below: Vec<Lookup>,
    /// Namespaces beside the asked one that have the prompt's first block in L1 or on disk, and how many of its leading
    /// blocks they have: the same text under another model, dtype, setting or salt.
    pub elsewhere: Vec<(BlockKey, usize)>,
}

impl PrefixCache {
    /// Looks a prompt up in every tier, and in those of this machine under every namespace. Costs O(tokens) for each namespace that knows its beginning.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for an empty prompt, [`Error::Closed`].
    pub fn explain(&self, namespace: BlockKey, tokens: &[u32]) -> Result<Explanation> {
        self.check_open()?;
        if tokens.is_empty() {
            return Err(Error::invalid(
                "the prompt is empty; there is nothing to explain",
            ));
        }
        let block_tokens = self.shared.layout.block_tokens();
        let usable = &tokens[..(tokens.len() - 1) / block_tokens * block_tokens];
        let (l1, mut others) = {
            let l1 = self.shared.l1.lock();
            (l1.divergence(&namespace, tokens), l1.namespaces())
        };
        let store = &self.shared.store;
        others.extend(store.namespaces()?.iter().map(|usage| usage.namespace));
        others.sort_unstable();
        others.dedup();
        let below = store.locate(&self.shared.keys(namespace, usable))?;
        let mut elsewhere = Vec::new();
        for other in others.into_iter().filter(|other| *other != namespace) {
            let here = self.shared.l1.lock().divergence(&other, usable).matched / block_tokens;
            let mut keys = Vec::new();
            chain_keys(
                other,
                usable.get(..block_tokens).unwrap_or_default(),
                block_tokens,
                &mut keys,
            );
            let begins = store
                .lookup(&keys)?
                .iter()
                .any(|found| *found != Lookup::Miss);
            let stored = if begins {
                let all = store.lookup(&self.shared.keys(other, usable))?;
                all.iter()
                    .take_while(|found| **found != Lookup::Miss)
                    .count()
            } else {
                0
            };
            if here.max(stored) > 0 {
                elsewhere.push((other, here.max(stored)));
            }
        }
        Ok(Explanation {
            l1,
            below,
            elsewhere,
        })
    }

    /// What a request of a prompt of `tokens` tokens would restore of what was found, with the costs learnt so far;
    /// `model` and `grid` as for the request. To the block: that runs are read whole is left out.
    pub fn foresee(
        &self,
        found: &Explanation,
        tokens: usize,
        model: &BlockKey,
        grid: usize,
    ) -> Choice {
        let layout = &self.shared.layout;
        let in_l1 = found.l1.matched / layout.block_tokens();
        let below = found.below.iter().skip(in_l1).map_while(|block| {
            let tier = match block {
                Lookup::Hit(tier) => *tier,
                // Read where it waits, in memory.
                Lookup::Pending => TierId::L2,
                Lookup::Miss => return None,
            };
            Some(Part {
                tier,
                bytes: layout.block_bytes() as u64,
                tokens: layout.block_tokens(),
            })
        });
        let question = Question {
            prompt: tokens,
            l1: in_l1.min(found.below.len()) * layout.block_tokens(),
            parts: &below.collect::<Vec<_>>(),
            grid: grid.max(layout.block_tokens()),
            chunked: grid > 1,
        };
        self.shared.store.costs().foresee(model, &question)
    }
}
