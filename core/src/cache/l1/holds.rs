//! Claims of requests: a sequence of blocks, and the lock on the path that it was forked from.

use crate::block::{BlockId, SequenceId};
use crate::error::{Error, Result};
use crate::key::BlockKey;
use crate::radix::Match;
use crate::sim::capture::L1Event;

use super::{Appended, Claim, Grown, Hold, HoldId, Keyed, L1};

impl L1 {
    /// Matches whole blocks of `tokens`, locks the path and forks a sequence from it. Gives back the hold and the tokens that matched.
    pub(in crate::cache) fn begin(
        &mut self,
        namespace: BlockKey,
        tokens: &[u32],
        category: u32,
    ) -> Result<(HoldId, usize)> {
        let live = self.live_tokens(&namespace, tokens)?;
        self.note_request(category, &namespace, tokens, live);
        let (claim, blocks) = self.claim(&namespace, &tokens[..live])?;
        self.tree.use_locked(claim.lock)?;
        self.reused_blocks += blocks.len() as u64;
        let id = self.insert_hold(Hold {
            namespace,
            claim: Some(claim),
            users: 1,
            idle: None,
            copies: 0,
        });
        Ok((id, blocks.len() * self.block_tokens))
    }

    fn insert_hold(&mut self, hold: Hold) -> HoldId {
        let id = self.next_hold;
        self.next_hold += 1;
        self.holds.insert(id, hold);
        id
    }

    /// Locks the longest prefix in the tree and forks a sequence from it. Counts as no use: that is the request's, once.
    fn claim(&mut self, namespace: &BlockKey, tokens: &[u32]) -> Result<(Claim, Vec<BlockId>)> {
        let (lock, _) = self.tree.claim(namespace, tokens);
        let path = self.tree.locked(lock)?;
        match self.sequence_over(&path) {
            Ok((sequence, blocks)) => Ok((
                Claim {
                    sequence,
                    path,
                    lock,
                },
                blocks,
            )),
            Err(error) => {
                self.tree.unlock(lock)?;
                Err(error)
            }
        }
    }

    /// How many of these tokens may be looked for: those before the first block in the tree whose time is over. What is over stays
    /// until it is evicted or stored again.
    pub(super) fn live_tokens(&self, namespace: &BlockKey, tokens: &[u32]) -> Result<usize> {
        if !self.mortal {
            return Ok(tokens.len());
        }
        let found = self.tree.peek_prefix(namespace, tokens);
        let mut blocks = Vec::with_capacity(found.blocks());
        self.tree.blocks_of(&found, &mut blocks)?;
        let now = self.clock.now();
        let over = |block: &u32| self.expiry(*block) <= now;
        let first = blocks.iter().position(over);
        Ok(first.map_or(tokens.len(), |live| live * self.block_tokens))
    }

    fn sequence_over(&mut self, path: &Match) -> Result<(SequenceId, Vec<BlockId>)> {
        let mut ids = Vec::with_capacity(path.blocks());
        self.tree.blocks_of(path, &mut ids)?;
        let blocks = ids.into_iter().map(BlockId).collect::<Vec<_>>();
        let sequence = self
            .sequences
            .from_blocks(&mut self.pool, &blocks, path.tokens())?;
        Ok((sequence, blocks))
    }

    fn give_up(&mut self, claim: Claim) -> Result<()> {
        self.tree.unlock(claim.lock)?;
        self.sequences.free(&mut self.pool, claim.sequence)?;
        Ok(())
    }

    /// Whether a hold has not ended.
    pub(super) fn has_hold(&self, id: HoldId) -> bool {
        self.holds.contains_key(&id)
    }

    /// Tells the policy that a request comes, and gives up what it says the time of is over; the blocks that went.
    pub(super) fn tell_request(&mut self, now_ms: u64, category: u32) -> Result<Vec<BlockId>> {
        self.tree.request(now_ms, category);
        let mut gone = Vec::new();
        self.tree
            .discard_expired(|blocks| gone.extend(blocks.iter().copied().map(BlockId)));
        for block in &gone {
            self.index.remove(*block);
            self.pool.release(*block)?;
        }
        Ok(gone)
    }

    /// One more user of a hold.
    pub(in crate::cache) fn retain(&mut self, id: HoldId) {
        self.note(|| L1Event::Retain { hold: id });
        if let Some(hold) = self.holds.get_mut(&id) {
            hold.users += 1;
            if let Some(place) = hold.idle.take() {
                self.idle.remove(&place);
            }
        }
    }

    /// One user fewer; the last one frees sequence and lock.
    pub(in crate::cache) fn release(&mut self, id: HoldId) -> Result<()> {
        self.note(|| L1Event::Release { hold: id });
        self.end_use(id)
    }

    fn end_use(&mut self, id: HoldId) -> Result<()> {
        let Some(hold) = self.holds.get_mut(&id) else {
            return Ok(());
        };
        hold.users -= 1;
        if hold.users > 0 {
            return Ok(());
        }
        let Some(hold) = self.holds.remove(&id) else {
            return Ok(());
        };
        self.forget_names(id);
        if let Some(place) = hold.idle {
            self.idle.remove(&place);
        }
        hold.claim.map_or(Ok(()), |claim| self.give_up(claim))
    }

    /// From now on the hold may be given up under pressure, oldest first.
    pub(in crate::cache) fn set_idle(&mut self, id: HoldId) {
        self.note(|| L1Event::SetIdle { hold: id });
        self.rest(id);
    }

    fn rest(&mut self, id: HoldId) {
        if let Some(hold) = self.holds.get_mut(&id)
            && hold.idle.is_none()
        {
            hold.idle = Some(self.next_idle);
            self.idle.insert(self.next_idle, id);
            self.next_idle += 1;
        }
    }

    /// The blocks of a hold's sequence, which stay as they are until [`Self::end_copy`], even if the hold's request is dropped.
    /// None if they were given up.
    pub(in crate::cache) fn start_copy(&mut self, id: HoldId) -> Option<Vec<BlockId>> {
        self.note(|| L1Event::StartCopy { hold: id });
        let blocks = self.sequence(id)?.0.to_vec();
        let hold = self.holds.get_mut(&id)?;
        hold.copies += 1;
        hold.users += 1;
        Some(blocks)
    }

    pub(in crate::cache) fn end_copy(&mut self, id: HoldId) -> Result<()> {
        self.note(|| L1Event::EndCopy { hold: id });
        if let Some(hold) = self.holds.get_mut(&id) {
            hold.copies -= 1;
        }
        self.end_use(id)
    }

    /// Gives up the hold that has been idle longest.
    pub(super) fn reclaim_idle(&mut self) -> Result<bool> {
        let free = |id: &HoldId| self.holds.get(id).is_some_and(|hold| hold.copies == 0);
        let Some(place) = self
            .idle
            .iter()
            .find(|(_, id)| free(id))
            .map(|(place, _)| *place)
        else {
            return Ok(false);
        };
        let hold = self
            .idle
            .remove(&place)
            .and_then(|id| self.holds.get_mut(&id));
        let Some(claim) = hold.and_then(|hold| {
            hold.idle = None;
            hold.claim.take()
        }) else {
            return Ok(false);
        };
        self.give_up(claim)?;
        Ok(true)
    }

    /// A second hold on the same blocks, and its tokens. None if the first was given up under pressure.
    pub(in crate::cache) fn fork(&mut self, id: HoldId) -> Result<Option<(HoldId, usize)>> {
        self.note_fork(id);
        let Some(hold) = self.holds.get(&id) else {
            return Ok(None);
        };
        let (namespace, Some(claim)) = (hold.namespace, hold.claim.as_ref()) else {
            return Ok(None);
        };
        let path = claim.path;
        let sequence = self.sequences.fork(&mut self.pool, claim.sequence)?;
        let lock = self.tree.lock(&path)?;
        let tokens = self.sequences.tokens(sequence)?;
        self.reused_blocks += self.sequences.blocks(sequence)?.len() as u64;
        let claim = Some(Claim {
            sequence,
            path,
            lock,
        });
        let id = self.insert_hold(Hold {
            namespace,
            claim,
            users: 1,
            idle: None,
            copies: 0,
        });
        self.rest(id);
        Ok(Some((id, tokens)))
    }

    /// Blocks and tokens of a hold's sequence.
    pub(in crate::cache) fn sequence(&self, id: HoldId) -> Option<(&[BlockId], usize)> {
        let claim = self.holds.get(&id)?.claim.as_ref()?;
        let blocks = self.sequences.blocks(claim.sequence).ok()?;
        Some((blocks, self.sequences.tokens(claim.sequence).ok()?))
    }

    /// Takes over by reference what the tree has of `tokens` beyond the hold's sequence.
    pub(in crate::cache) fn adopt(&mut self, id: HoldId, tokens: &[u32]) -> Result<()> {
        let Some(hold) = self.holds.get(&id) else {
            return Ok(());
        };
        let namespace = hold.namespace;
        let live = self.live_tokens(&namespace, tokens)?;
        self.note_adopt(id, &namespace, tokens, live);
        let before = self.sequence(id).map(|(_, tokens)| tokens);
        if before.is_some_and(|before| before % self.block_tokens != 0) {
            return Ok(());
        }
        let (claim, blocks) = self.claim(&namespace, &tokens[..live])?;
        if before.is_some_and(|before| before >= blocks.len() * self.block_tokens) {
            return self.give_up(claim);
        }
        let before = self
            .holds
            .get_mut(&id)
            .and_then(|hold| hold.claim.replace(claim));
        before.map_or(Ok(()), |claim| self.give_up(claim))
    }

    /// Lengthens the hold's sequence to `tokens` tokens, evicting for it; what does not fit even so is left out.
    pub(in crate::cache) fn grow(&mut self, id: HoldId, tokens: usize) -> Result<Grown> {
        self.note(|| L1Event::Append {
            hold: id,
            tokens: tokens as u64,
        });
        loop {
            let (requested, free) = match self.append(id, tokens) {
                Err(Error::OutOfBlocks { requested, free }) => (requested, free),
                other => return other.map(Grown::Appended),
            };
            let evicted = self.start_eviction(requested.saturating_sub(free));
            if !evicted.is_empty() {
                return Ok(Grown::Evicted(evicted));
            }
            if self.is_draining() {
                return Ok(Grown::Draining);
            }
            if !self.reclaim_idle()? {
                let room = self.room(id).min(tokens);
                self.refused_blocks += (tokens - room).div_ceil(self.block_tokens) as u64;
                return self.append(id, room).map(Grown::Appended);
            }
        }
    }

    /// Lengthens the hold's sequence to `tokens` tokens.
    fn append(&mut self, id: HoldId, tokens: usize) -> Result<Appended> {
        let Some(claim) = self.holds.get(&id).and_then(|hold| hold.claim.as_ref()) else {
            return Ok(Appended {
                from: tokens,
                to: tokens,
                blocks: Vec::new(),
            });
        };
        let from = self.sequences.tokens(claim.sequence)?;
        if tokens > from {
            self.sequences
                .append(&mut self.pool, claim.sequence, tokens - from)?;
        }
        Ok(Appended {
            from,
            to: tokens.max(from),
            blocks: self.sequences.blocks(claim.sequence)?.to_vec(),
        })
    }

    /// How many tokens the hold's sequence could have with the blocks that are free.
    fn room(&self, id: HoldId) -> usize {
        let Some((blocks, tokens)) = self.sequence(id) else {
            return 0;
        };
        // A shared partial tail would be copied first: one block of the free ones goes there.
        let copied = usize::from(
            tokens % self.block_tokens != 0
                && blocks
                    .last()
                    .is_some_and(|block| self.pool.ref_count(*block) > 1),
        );
        match self.pool.free().checked_sub(copied) {
            Some(free) => (blocks.len() + free) * self.block_tokens,
            None => tokens,
        }
    }

    /// Puts the hold's whole blocks into the tree, now that their bytes are there, and locks that path instead. `keys` are
    /// the keys of the blocks of `tokens`, and `expiries` says when the time of each is over. Gives back how many leading tokens
    /// the tree has of it now, and how many it had before.
    pub(in crate::cache) fn publish(
        &mut self,
        id: HoldId,
        tokens: &[u32],
        keys: &[BlockKey],
        expiries: &[u64],
    ) -> Result<(usize, usize)> {
        self.note(|| L1Event::Publish { hold: id });
        let Some(hold) = self.holds.get(&id) else {
            return Ok((0, 0));
        };
        let (namespace, Some(claim)) = (hold.namespace, hold.claim.as_ref()) else {
            return Ok((0, 0));
        };
        let whole = self.sequences.tokens(claim.sequence)?.min(tokens.len()) / self.block_tokens;
        if whole == 0 {
            return Ok((0, 0));
        }
        let tokens = &tokens[..whole * self.block_tokens];
        let blocks = &self.sequences.blocks(claim.sequence)?[..whole];
        let ids = blocks.iter().map(|block| block.0).collect::<Vec<_>>();
        let inserted = self.tree.insert(&namespace, tokens, &ids)?;
        for (at, block) in blocks.iter().enumerate().skip(inserted.duplicates) {
            self.pool.retain(*block)?;
            self.index.insert(Keyed {
                namespace,
                parent: at.checked_sub(1).map_or(namespace, |before| keys[before]),
                key: keys[at],
                block: *block,
            });
        }
        if let Some(displaced) = inserted.displaced {
            self.pool.release(BlockId(displaced))?;
        }
        self.set_expiries(&inserted.path, inserted.duplicates, expiries)?;
        let lock = self.tree.lock(&inserted.path)?;
        let path = self.tree.locked(lock)?;
        let Some(claim) = self.holds.get_mut(&id).and_then(|hold| hold.claim.as_mut()) else {
            self.tree.unlock(lock)?;
            return Ok((0, 0));
        };
        claim.path = path;
        let before = std::mem::replace(&mut claim.lock, lock);
        self.tree.unlock(before)?;
        let block = self.block_tokens;
        Ok((whole * block, inserted.duplicates * block))
    }

    /// The key of the last block of the path that a hold locks; the namespace if that has none.
    ///
    /// # Errors
    /// [`Error::UnknownSequence`] if the hold was given up: any key would be a guess.
    pub(in crate::cache) fn path_key(&mut self, id: HoldId) -> Result<BlockKey> {
        let hold = self.holds.get(&id).ok_or(Error::UnknownSequence(id))?;
        let claim = hold.claim.as_ref().ok_or(Error::UnknownSequence(id))?;
        if claim.path.blocks() == 0 {
            return Ok(hold.namespace);
        }
        self.tree.path_key(&claim.path)
    }

    /// Has the tree remember what `keys` says of the path that a hold locks, so that it is not hashed again.
    pub(in crate::cache) fn remember_key(&mut self, id: HoldId, keys: &[BlockKey]) -> Result<()> {
        let claim = self.holds.get(&id).and_then(|hold| hold.claim.as_ref());
        match claim.map(|claim| (claim.path, claim.path.blocks().checked_sub(1))) {
            Some((path, Some(last))) if last < keys.len() => {
                self.tree.remember_key(&path, keys[last])
            }
            _ => Ok(()),
        }
    }
}
