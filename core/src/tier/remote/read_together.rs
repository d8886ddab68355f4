//! Several small runs of a server by one pipelined request: a round trip for all of them.

use std::any::Any;
use std::sync::Arc;
use std::time::Instant;

use super::read::RemoteRun;
use crate::run::RunTarget;
use crate::tier::{PinnedRun, ReadFailure, WholeRead};

type Outcome = Result<(), ReadFailure>;

/// Reads runs whole; those that follow one another and are on the same server at once. Each is verified for itself.
pub(super) fn read_together(reads: &[WholeRead<'_>]) -> Vec<Outcome> {
    let own = reads.iter().map(|(run, target)| {
        let run: &dyn Any = &***run;
        run.downcast_ref::<RemoteRun>().map(|run| (run, *target))
    });
    let Some(own) = own.collect::<Option<Vec<_>>>() else {
        log::error!("runs of another tier were to be read together with this one's");
        return vec![Err(ReadFailure::Io); reads.len()];
    };
    let alike = |(a, _): &(&RemoteRun, &RunTarget), (b, _): &(&RemoteRun, &RunTarget)| {
        a.server == b.server && Arc::ptr_eq(&a.tier, &b.tier)
    };
    own.chunk_by(alike).flat_map(read_at_once).collect()
}

fn read_at_once(runs: &[(&RemoteRun, &RunTarget)]) -> Vec<Outcome> {
    let all = |run: &RemoteRun| 0..run.header().slices.len();
    let fitting = runs
        .iter()
        .all(|(run, target)| target.fits(run.header(), &all(run)));
    let (Some((first, _)), true) = (runs.first(), fitting) else {
        let each = |(run, target): &(&RemoteRun, &RunTarget)| run.read_slices(all(run), target);
        return runs.iter().map(each).collect();
    };
    let mut readings = runs
        .iter()
        .map(|(run, target)| run.reading(all(run), target))
        .collect::<Vec<_>>();
    // For each answer the run that it belongs to, and its number there.
    let (mut asked, mut owners) = (Vec::new(), Vec::new());
    for (place, reading) in readings.iter_mut().enumerate() {
        owners.extend((0..reading.asked.len()).map(|index| (place, index)));
        asked.append(&mut reading.asked);
    }
    let (start, shards) = (Instant::now(), &first.tier.shards);
    let mut came = 0;
    // They may have been found by several lookups; these are of one restore.
    let mut waiting = first.patience.wait();
    let answer = shards.get(first.server, &asked, waiting.by, &mut |index, got| {
        waiting.came += got.bytes();
        let (place, part) = owners[index];
        readings[place].take(part, got);
        came = index + 1;
    });
    drop(waiting);
    shards.counters.read_micros.took(start.elapsed());
    if let Err(error) = &answer {
        log::debug!("{} runs were to be read at once: {error}", runs.len());
    }
    // What was whole before it failed is good.
    let mut ends = 0;
    let outcomes = runs.iter().zip(readings).enumerate();
    let outcomes = outcomes.map(|(place, ((run, _), reading))| {
        ends += owners[ends..]
            .iter()
            .take_while(|(owner, _)| *owner == place)
            .count();
        let outcome = reading.outcome.and({
            if ends <= came {
                Ok(reading.bytes)
            } else {
                Err(ReadFailure::Io)
            }
        });
        run.settle(outcome)
    });
    outcomes.collect()
}
