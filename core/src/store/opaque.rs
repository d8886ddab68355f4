//! Single opaque blocks, for engines that bring their own keys: runs of one block and one slice.

use std::sync::Arc;

use super::core::Core;
use super::moves::Born;
use super::plan::Step;
use super::read::ReadRequest;
use super::transfer::Steps;
use crate::error::{Error, Result};
use crate::key::BlockKey;
use crate::memory::{Piece, Region, page_align};
use crate::run::{RunHeader, RunSource, RunTarget, Terms};
use crate::tier::memory::Reservation;
use crate::tier::{Put, Refusal, TierId};

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
        slices: vec![vec![piece(bytes.len())]],
    };
    if core.due_below(&[key], 0) == 0 {
        return core.take_in(header, source);
    }
    let born = core.moves.born();
    let mut below = Put::Refused(Refusal::Unavailable);
    if core.l3.is_some() {
        below = core.queue_write(header.clone(), source.clone());
    }
    if core.l4.is_some() && !core.reaches_l4(&key) {
        let shared = core.share(header.clone(), source.clone(), born)?;
        if matches!(below, Put::Refused(_)) {
            below = shared;
        }
    }
    match core.take_into_l2(&header, &source)? {
        Put::Refused(_) => Ok(below),
        put => Ok(put),
    }
}

fn piece(len: usize) -> Piece {
    Piece {
        spare: false,
        offset: 0,
        len,
    }
}

/// A block that was found, and where it goes.
struct Wanted {
    /// Its place in the list of keys.
    place: usize,
    header: RunHeader,
    tier: TierId,
    target: RunTarget,
    /// Room in L2, if it comes from further away and is kept there.
    room: Option<Reservation>,
}

pub(super) fn get(core: &Core, key: &BlockKey) -> Result<Option<Vec<u8>>> {
    Ok(get_many(core, std::slice::from_ref(key))?.pop().flatten())
}

pub(super) fn get_many(core: &Core, keys: &[BlockKey]) -> Result<Vec<Option<Vec<u8>>>> {
    let born = core.moves.born();
    let found = find(core, keys)?;
    let mut full = false;
    let mut rooms = Vec::with_capacity(found.len());
    // What has no room in L2 goes by way of one region.
    let mut bytes = 0;
    for (_, step) in &found {
        let header = step.run.header();
        let room = match &core.l2 {
            // Where one finds no room the others will not either.
            Some(l2) if step.tier != TierId::L2 && !full => core.reserve(l2, header).ok(),
            _ => None,
        };
        full |= room.is_none() && step.tier != TierId::L2;
        if room.is_none() {
            bytes += page_align(header.payload_bytes() as usize);
        }
        rooms.push(room);
    }
    let region = Arc::new(Region::new(bytes.max(1))?);
    let mut at = 0;
    let wanted = found.into_iter().zip(rooms).map(|((place, step), room)| {
        let header = step.run.header().clone();
        let len = header.payload_bytes() as usize;
        let target = room.as_ref().map_or_else(
            || {
                let piece = Piece {
                    offset: at,
                    ..piece(len)
                };
                at += page_align(len);
                RunTarget {
                    region: Arc::clone(&region),
                    lease: None,
                    slices: vec![vec![piece]],
                }
            },
            Reservation::target,
        );
        let tier = step.tier;
        let wanted = Wanted {
            place,
            header,
            tier,
            target,
            room,
        };
        (step, wanted)
    });
    let (steps, wanted): (Vec<_>, Vec<_>) = wanted.unzip();
    let arrived = read(
        core,
        steps,
        wanted.iter().map(|wanted| wanted.target.clone()),
    )?;
    let mut all = vec![None; keys.len()];
    for (wanted, arrived) in wanted.into_iter().zip(arrived) {
        if arrived {
            all[wanted.place] = Some(wanted.target.bytes());
            settle(core, wanted, born);
        }
    }
    Ok(all)
}

/// What becomes of a block in the tiers once it was read.
fn settle(core: &Core, wanted: Wanted, born: Born) {
    if let (Some(l2), Some(room)) = (&core.l2, wanted.room) {
        drop(core.commit(l2, room, born));
    }
    let keys = &wanted.header.keys;
    let due = match wanted.tier {
        TierId::L2 => keys.iter().all(|key| core.is_due_after_use(key)),
        // What others shared is kept on this machine as what is put here is.
        TierId::L4 => core.l3.is_some() && core.due_below(keys, 0) == keys.len(),
        TierId::L1 | TierId::L3 => false,
    };
    if due {
        let source = RunSource {
            region: wanted.target.region,
            lease: wanted.target.lease,
            slices: wanted.target.slices,
        };
        // A refusal is counted; the caller has its bytes.
        core.send_down(wanted.header, source, born, None);
    }
}

pub(super) fn get_into(
    core: &Core,
    keys: &[BlockKey],
    regions: &[Arc<Region>],
) -> Result<Vec<Option<usize>>> {
    if keys.len() != regions.len() {
        return Err(Error::invalid(format!(
            "{} keys and {} buffers were given; give one buffer a key",
            keys.len(),
            regions.len()
        )));
    }
    let found = find(core, keys)?;
    let mut lengths = Vec::with_capacity(found.len());
    let mut targets = Vec::with_capacity(found.len());
    for (place, step) in &found {
        let len = step.run.header().payload_bytes() as usize;
        let region = &regions[*place];
        if region.len() < len {
            return Err(Error::invalid(format!(
                "the buffer for block {} has {} bytes, the block {len}; give it as many",
                keys[*place],
                region.len()
            )));
        }
        lengths.push((*place, len));
        targets.push(RunTarget {
            region: Arc::clone(region),
            lease: None,
            slices: vec![vec![piece(len)]],
        });
    }
    let steps = found.into_iter().map(|(_, step)| step).collect();
    let arrived = read(core, steps, targets.into_iter())?;
    let mut all = vec![None; keys.len()];
    for ((place, len), arrived) in lengths.into_iter().zip(arrived) {
        all[place] = arrived.then_some(len);
    }
    Ok(all)
}

fn is_opaque(header: &RunHeader) -> bool {
    header.block_tokens == 0 && header.keys.len() == 1 && header.slices.len() == 1
}

/// Those of the blocks that are there, pinned, each with its place in `keys`.
fn find(core: &Core, keys: &[BlockKey]) -> Result<Vec<(usize, Step)>> {
    // L4 is not ours alone: what is no opaque block there is a miss.
    let steps = core.plan_each(keys, &is_opaque).into_iter().enumerate();
    let found = steps.filter_map(|(place, step)| Some((place, step?)));
    let found = found.collect::<Vec<_>>();
    for (place, step) in &found {
        if !is_opaque(step.run.header()) {
            return Err(Error::invalid(format!(
                "block {} is part of a model's run, not an opaque block",
                keys[*place]
            )));
        }
    }
    Ok(found)
}

/// Reads steps on the workers, in turn with everybody else; which of them arrived.
fn read(
    core: &Core,
    steps: Vec<Step>,
    targets: impl Iterator<Item = RunTarget>,
) -> Result<Vec<bool>> {
    if steps.is_empty() {
        return Ok(Vec::new());
    }
    let requests = steps.into_iter().zip(targets);
    let requests = requests.map(|(step, target)| ReadRequest { step, target });
    Ok(core.submit(requests.collect(), Steps::Single)?.arrived())
}
