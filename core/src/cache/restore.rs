//! A restore under way: what a request found comes into a cache buffer layer by layer, while the caller already computes on the
//! layers that are there.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::Shared;
use super::copy::layer_to_buffer;
use super::l1::HoldId;
use super::request::{Found, HitTokens};
use parking_lot::Mutex;

use crate::buffer::CacheBuffer;
use crate::store::{ReadFailed, ReadTicket};

/// What a restore brought.
#[derive(Clone, Debug, Default)]
pub struct Restored {
    /// Tokens that stand in the buffer now, by where they came from.
    pub tokens: HitTokens,
    /// Payload bytes read from L2.
    pub l2_bytes: u64,
    /// Payload bytes read from L3.
    pub l3_bytes: u64,
    /// Payload bytes read from L4.
    pub l4_bytes: u64,
    /// Copying L1 blocks.
    pub l1_time: Duration,
    /// From asking the tiers below until the last byte was verified.
    pub below_time: Duration,
    /// From the start until all was there. Work that the caller did on early layers meanwhile lies inside.
    pub time: Duration,
    /// Why fewer tokens came than were found.
    pub failure: Option<String>,
}

/// A restore under way. Dropping it gives up what has not begun and waits for what has: the buffer is written to no more then.
///
/// L1's part of a layer is copied by whoever first waits for that layer: right before its use it is the warmest in the
/// processor's caches, and no second thread competes with the computation.
pub struct Restore {
    shared: Arc<Shared>,
    buffer: Arc<CacheBuffer>,
    found: Found,
    /// Told in the end how many tokens stand in the buffer.
    standing: Arc<AtomicUsize>,
    start: Instant,
    hold: HoldId,
    /// Byte offsets of the L1 blocks to copy, which stay as they are until [`Self::end_copy`]; none once that is over.
    blocks: Option<Vec<usize>>,
    /// False if L1's part was given up before it could be copied.
    there: bool,
    copied_layers: usize,
    copied_at: Option<Instant>,
    l1_time: Duration,
    ticket: Option<ReadTicket>,
    /// Which of the leading blocks came or will come out of a lossy codec.
    decoded: Arc<Mutex<Vec<bool>>>,
}

impl Restore {
    /// Pins L1's part, if it is still there. The tiers' part is read by `ticket`.
    pub(super) fn start(
        shared: &Arc<Shared>,
        hold: HoldId,
        buffer: &Arc<CacheBuffer>,
        found: Found,
        standing: Arc<AtomicUsize>,
        start: Instant,
    ) -> Self {
        let wanted = found.tokens.l1 / shared.layout.block_tokens();
        let mut restore = Self {
            shared: Arc::clone(shared),
            buffer: Arc::clone(buffer),
            found,
            standing,
            start,
            hold,
            blocks: None,
            there: true,
            copied_layers: 0,
            copied_at: None,
            l1_time: Duration::ZERO,
            ticket: None,
            decoded: Arc::default(),
        };
        let mut decoded = Vec::new();
        if wanted > 0 {
            let mut l1 = shared.l1.lock();
            let blocks = l1.start_copy(hold);
            decoded = l1.decoded(blocks.iter().flatten().take(wanted));
            drop(l1);
            restore.there = blocks.as_ref().is_some_and(|ids| ids.len() >= wanted);
            restore.blocks = blocks.map(|ids| {
                let wanted = ids.iter().take(wanted);
                wanted.map(|block| shared.offset(*block)).collect()
            });
        }
        for step in &restore.found.steps {
            decoded.extend(std::iter::repeat_n(step.is_decoded(), step.blocks));
        }
        *restore.decoded.lock() = decoded;
        restore
    }

    /// Which of the leading blocks came or will come out of a lossy codec; cut short if fewer arrive.
    pub(super) fn decoded(&self) -> Arc<Mutex<Vec<bool>>> {
        Arc::clone(&self.decoded)
    }

    /// Whether L1's part is there; without it what lies below is of no use.
    pub(super) fn is_there(&self) -> bool {
        self.there
    }

    pub(super) fn reads(&mut self, ticket: ReadTicket) {
        self.ticket = Some(ticket);
    }

    /// Tokens that will stand in the buffer if nothing fails, by where they come from.
    pub fn tokens(&self) -> HitTokens {
        if self.there {
            self.found.tokens
        } else {
            HitTokens::default()
        }
    }

    /// Whether any of it is still on its way from the tiers below; never waits.
    pub fn is_under_way(&self) -> bool {
        self.ticket.as_ref().is_some_and(|ticket| !ticket.is_over())
    }

    /// Waits until layer `layer` of all tokens stands in the buffer, verified.
    ///
    /// # Errors
    /// [`ReadFailed`] if it will not, because of this layer or of another one: [`Self::finish`] says how many leading tokens did
    /// arrive whole. [`ReadFailed::Timeout`] leaves the restore as it is. A layer that the model does not have is there.
    pub fn wait_layer(&mut self, layer: usize, timeout: Duration) -> Result<(), ReadFailed> {
        if self.there {
            self.copy_layers((layer + 1).min(self.shared.layout.layers().len()));
        }
        match &self.ticket {
            Some(ticket) => ticket.wait_slice(layer, timeout),
            None => Ok(()),
        }
    }

    /// Waits until nothing is under way any more, and says what stands in the buffer. Damaged runs cut the prefix short,
    /// which is no error.
    pub fn finish(mut self) -> Restored {
        let block_tokens = self.shared.layout.block_tokens();
        if self.there {
            self.copy_layers(self.shared.layout.layers().len());
        }
        let mut restored = Restored {
            l1_time: self.l1_time,
            ..Restored::default()
        };
        if !self.there {
            restored.failure = Some("its L1 blocks were given up under memory pressure".to_owned());
        }
        let mut end = self.copied_at.unwrap_or(self.start);
        let mut arrived = self.found.tokens.l1;
        if let Some(ticket) = &self.ticket {
            let outcome = ticket.wait();
            let whole = self.found.steps[..outcome.steps_ok].iter();
            arrived += whole.map(|step| step.blocks * block_tokens).sum::<usize>();
            restored.l2_bytes = outcome.l2.bytes;
            restored.l3_bytes = outcome.l3.bytes;
            restored.l4_bytes = outcome.l4.bytes;
            let failure = outcome.failure.map(|failure| failure.to_string());
            restored.failure = restored.failure.or(failure);
            let read = outcome.end.unwrap_or(self.start);
            restored.below_time = read - self.start;
            end = end.max(read);
        }
        if self.there {
            restored.tokens = self.found.part(arrived, block_tokens);
        }
        let tokens = restored.tokens.total();
        self.standing.store(tokens, Ordering::Release);
        self.decoded.lock().truncate(tokens / block_tokens);
        restored.time = end - self.start;
        restored
    }

    /// Copies what the first `layers` layers lack of L1's part.
    fn copy_layers(&mut self, layers: usize) {
        let Some(blocks) = &self.blocks else { return };
        let start = Instant::now();
        let shared = &self.shared;
        for layer in self.copied_layers..layers {
            layer_to_buffer(&shared.layout, &shared.arena, blocks, layer, &self.buffer);
        }
        self.copied_layers = self.copied_layers.max(layers);
        let now = Instant::now();
        self.l1_time += now - start;
        self.copied_at = Some(now);
        if self.copied_layers >= shared.layout.layers().len() {
            self.end_copy();
        }
    }

    fn end_copy(&mut self) {
        if self.blocks.take().is_some() {
            let ended = self.shared.l1.lock().end_copy(self.hold);
            if let Err(error) = ended {
                log::error!("a restore's hold could not be released: {error}");
            }
        }
    }
}

impl Drop for Restore {
    fn drop(&mut self) {
        if self.shared.store.check_process().is_err() {
            // The threads that read live in the parent, and so does whoever may hold a lock: a forked child leaves both alone.
            std::mem::forget(self.ticket.take());
            return;
        }
        self.ticket = None;
        self.end_copy();
        // The bytes are copied: whoever needs the blocks may have them.
        self.shared.l1.lock().set_idle(self.hold);
    }
}

impl fmt::Debug for Restore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Restore({:?}, {:?})", self.tokens(), self.ticket)
    }
}
