//! Blocks as objects of their own, as simulators of web caches see them.

use super::{Cache, Served};
use crate::error::{Error, Result};
use crate::policy::{EntryMeta, EvictionPolicy};
use crate::sim::trace::Request;

/// A set of blocks: each use is looked up and taken in by itself, in the order of the trace, so that a block which a request has
/// twice hits the second time. A block's id is its slot. Nothing is pinned; the victim goes before the new block is in.
#[derive(Debug)]
pub(super) struct Flat {
    policy: Box<dyn EvictionPolicy>,
    resident: Vec<bool>,
    held: usize,
    capacity: usize,
}

impl Flat {
    pub(super) fn new(policy: Box<dyn EvictionPolicy>, capacity: usize) -> Self {
        Self {
            policy,
            resident: Vec::new(),
            held: 0,
            capacity,
        }
    }

    fn evict(&mut self) -> Result<()> {
        let victim = self
            .policy
            .victim()
            .ok_or_else(|| Error::invalid("the policy has no victim although the cache is full"))?;
        self.policy.evicted(victim);
        self.resident[victim as usize] = false;
        self.held -= 1;
        Ok(())
    }
}

impl Cache for Flat {
    fn serve(&mut self, request: &Request<'_>) -> Result<Served> {
        self.policy.request(request.at_ms as u64, request.category);
        let meta = EntryMeta {
            bytes: 1,
            tokens: 1,
            depth: 0,
            cost: 1.0,
            category: request.category,
        };
        let mut served = Served::default();
        while let Some(expired) = self.policy.expired() {
            self.policy.remove(expired);
            self.resident[expired as usize] = false;
            self.held -= 1;
            served.evicted += 1;
        }
        for &block in request.blocks {
            if block as usize >= self.resident.len() {
                self.resident.resize(block as usize + 1, false);
            }
            if self.resident[block as usize] {
                self.policy.touch(block);
                served.hits += 1;
                continue;
            }
            if self.held == self.capacity {
                self.evict()?;
                served.evicted += 1;
            }
            self.resident[block as usize] = true;
            self.held += 1;
            self.policy.insert(block, u64::from(block), meta);
            self.policy.set_candidate(block, true);
        }
        Ok(served)
    }

    fn held(&self) -> usize {
        self.held
    }
}
