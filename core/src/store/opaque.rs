//! Single opaque blocks, for engines that bring their own keys: runs of one block and one slice.

use std::sync::Arc;

use super::core::Core;
use super::plan::Step;
use super::read::{ReadRequest, ReadTicket, Transfer};
use crate::error::{Error, Result};
use crate::key::BlockKey;
use crate::memory::{Piece, Region};
use crate::run::{RunHeader, RunSource, RunTarget, Terms};
use crate::tier::{Put, TierId};

/// The namespace of all opaque blocks; as a parent it stands for none.
const NAMESPACE: BlockKey = BlockKey([0; 32]);

pub(super) fn put(
    core: &Core,
    key: BlockKey,
    parent: Option<BlockKey>,
    bytes: &[u8],
    terms: Terms,
) -> Result<Put> {
    let len = match u32::try_from(bytes.len()) {
        Ok(len) if len > 0 => len,
        _ => {
            return Err(Error::invalid(format!(
                "a block holds 1 byte to 4 GiB, got {} bytes",
                bytes.len()
            )));
        }
    };
    let header = RunHeader {
        namespace: NAMESPACE,
        parent: parent.unwrap_or(NAMESPACE),
        keys: [key].into(),
        block_tokens: 0,
        slices: [len].into(),
        terms: terms.stamped(core.clock.now()),
    };
    let region = Arc::new(Region::new(bytes.len())?);
    region.write(0, bytes);
    let source = RunSource {
        region,
        lease: None,
        slices: vec![whole(bytes.len())],
    };
    if core.due_for_l3(&[key], 0) == 0 {
        return core.take_in(header, source);
    }
    let below = core.queue_write(header.clone(), source.clone());
    match core.take_into_l2(&header, &source)? {
        Put::Refused(_) => Ok(below),
        put => Ok(put),
    }
}

fn whole(len: usize) -> Vec<Piece> {
    vec![Piece {
        spare: false,
        offset: 0,
        len,
    }]
}

pub(super) fn get(core: &Core, key: &BlockKey) -> Result<Option<Vec<u8>>> {
    let born = core.moves.born();
    let mut plan = core.plan(std::slice::from_ref(key));
    let Some(step) = plan.steps.pop() else {
        return Ok(None);
    };
    let header = step.run.header();
    if header.block_tokens != 0 || header.keys.len() != 1 || header.slices.len() != 1 {
        return Err(Error::invalid(format!(
            "block {key} is part of a model's run, not an opaque block"
        )));
    }
    let (header, tier) = (header.clone(), step.tier);
    let len = header.payload_bytes() as usize;
    let room = match (&core.l2, step.tier) {
        (Some(l2), TierId::L3) => core.reserve(l2, &header).ok().map(|room| (l2, room)),
        _ => None,
    };
    let target = match &room {
        Some((_, room)) => room.target(),
        None => RunTarget {
            region: Arc::new(Region::new(len)?),
            lease: None,
            slices: vec![whole(len)],
        },
    };
    if !read(core, step, target.clone())? {
        return Ok(None);
    }
    let mut bytes = vec![0; len];
    let mut at = 0;
    for piece in target.slices.iter().flatten() {
        target
            .region
            .read(piece.offset, &mut bytes[at..at + piece.len]);
        at += piece.len;
    }
    if let Some((l2, room)) = room {
        drop(core.commit(l2, room, born));
    }
    if tier == TierId::L2 && core.is_due_after_use(key) {
        let source = RunSource {
            region: target.region,
            lease: None,
            slices: target.slices,
        };
        // A refusal is counted; the caller has its bytes.
        core.send_down(header, source, born, None);
    }
    Ok(Some(bytes))
}

/// Reads one step on the workers, in turn with everybody else.
fn read(core: &Core, step: Step, target: RunTarget) -> Result<bool> {
    core.claim_steps(std::iter::once(&step));
    let transfer = Arc::new(Transfer::new(vec![ReadRequest { step, target }])?);
    core.scheduler.read(&transfer);
    Ok(ReadTicket::new(transfer, Arc::clone(&core.costs))
        .wait()
        .steps_ok
        == 1)
}
