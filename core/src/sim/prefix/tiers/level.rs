//! A tier below L1 without payload: which blocks it has, and which goes next.

use crate::policy::{EntryMeta, EvictionPolicy, recompute_cost};

/// Before the first block of a prompt.
pub(super) const ROOT: u32 = u32::MAX;

/// What a put came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Put {
    Stored,
    Present,
    /// All that is held is pinned, or hangs above something that is.
    NothingToEvict,
}

/// Blocks of a prefix tree, by prefix id, of which those without a child in this tier go first: L2 and L3 as they are, but that
/// a block goes by itself where they evict a run.
#[derive(Debug)]
pub(super) struct Level {
    policy: Box<dyn EvictionPolicy>,
    resident: Vec<bool>,
    /// By block: those in this tier that hang from it, whether or not it is here itself.
    children: Vec<u32>,
    pinned: Vec<bool>,
    held: usize,
    capacity: usize,
    pub(super) peak: usize,
}

impl Level {
    pub(super) fn new(
        policy: Box<dyn EvictionPolicy>,
        capacity: usize,
        unique_blocks: usize,
    ) -> Self {
        Self {
            policy,
            resident: vec![false; unique_blocks],
            children: vec![0; unique_blocks],
            pinned: vec![false; unique_blocks],
            held: 0,
            capacity,
            peak: 0,
        }
    }

    pub(super) fn contains(&self, block: u32) -> bool {
        self.resident[block as usize]
    }

    /// A request begins.
    pub(super) fn request(&mut self, now_ms: u64, category: u32) {
        self.policy.request(now_ms, category);
    }

    /// A block that is here was read.
    pub(super) fn touch(&mut self, block: u32) {
        self.policy.touch(block);
    }

    /// Keeps a block that is here from going, or no longer.
    pub(super) fn pin(&mut self, block: u32, pinned: bool) {
        self.pinned[block as usize] = pinned;
        self.offer(block);
    }

    fn offer(&mut self, block: u32) {
        let at = block as usize;
        if self.resident[at] {
            let free = self.children[at] == 0 && !self.pinned[at];
            self.policy.set_candidate(block, free);
        }
    }

    /// Takes a block in that hangs from `parent`, `depth` blocks behind the root, and tells `gone` what had to go.
    pub(super) fn put(
        &mut self,
        block: u32,
        parents: &[u32],
        depth: usize,
        tokens: u32,
        category: u32,
        gone: &mut Vec<u32>,
    ) -> Put {
        if self.contains(block) {
            self.policy.renew(block);
            return Put::Present;
        }
        let parent = parents[block as usize];
        // Not what it hangs from, for its sake.
        let guarded = parent != ROOT && self.contains(parent) && !self.pinned[parent as usize];
        if guarded {
            self.pin(parent, true);
        }
        let room = self.make_room(parents, gone);
        if guarded {
            self.pin(parent, false);
        }
        if !room {
            return Put::NothingToEvict;
        }
        self.resident[block as usize] = true;
        self.held += 1;
        self.peak = self.peak.max(self.held);
        let meta = EntryMeta {
            bytes: 1,
            tokens,
            depth: depth as u32,
            cost: recompute_cost(tokens, depth as u64 * u64::from(tokens)),
            category,
        };
        // Prefix ids are names already: equal ones are equal prefixes.
        self.policy.insert(block, u64::from(block), meta);
        if parent != ROOT {
            self.children[parent as usize] += 1;
            self.offer(parent);
        }
        self.offer(block);
        Put::Stored
    }

    fn make_room(&mut self, parents: &[u32], gone: &mut Vec<u32>) -> bool {
        while self.held >= self.capacity {
            let Some(victim) = self.policy.victim() else {
                return false;
            };
            self.policy.evicted(victim);
            self.resident[victim as usize] = false;
            self.held -= 1;
            let parent = parents[victim as usize];
            if parent != ROOT {
                self.children[parent as usize] -= 1;
                self.offer(parent);
            }
            gone.push(victim);
        }
        true
    }

    /// Counts everything anew and compares.
    #[cfg(test)]
    pub(super) fn validate(&self, parents: &[u32]) -> Result<(), String> {
        self.policy.validate()?;
        let mut children = vec![0; parents.len()];
        let here = (0..parents.len() as u32).filter(|&block| self.contains(block));
        let here: Vec<u32> = here.collect();
        for &block in &here {
            if parents[block as usize] != ROOT {
                children[parents[block as usize] as usize] += 1;
            }
        }
        let leaf = |&&block: &&u32| children[block as usize] == 0 && !self.pinned[block as usize];
        let candidates = here.iter().filter(leaf).count();
        if children != self.children
            || here.len() != self.held
            || candidates != self.policy.candidates()
            || self.held > self.capacity
        {
            return Err(format!(
                "{} blocks with {candidates} leaves in a tier of {} that says {} and {}",
                here.len(),
                self.capacity,
                self.held,
                self.policy.candidates()
            ));
        }
        Ok(())
    }
}
