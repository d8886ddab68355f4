//! Finding runs on the servers, and reading them.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use super::Inner;
use super::cipher::Cipher;
use super::names::{ENTRY_BYTES, Entry, RunName, entry_name};
use super::patience::Patience;
use super::read_together::read_together;
use super::shards::{Shards, Share};
use super::value::{Header, Payload, judge};
use super::values::{Asked, Failure, Got};
use crate::key::BlockKey;
use crate::run::{RunHeader, RunTarget};
use crate::tier::record::Record;
use crate::tier::{PinnedRun, ReadFailure, Span, WholeRead};

/// Bytes of slices that are asked for by one command.
const GROUP_BYTES: u64 = 3 << 19;

/// Where each block that was asked for can be read.
pub(super) type Found = Vec<Option<(Arc<dyn PinnedRun>, usize)>>;

/// A run on a server. Nothing holds it there: it may vanish before it is read.
pub(super) struct RemoteRun {
    pub(super) tier: Arc<Inner>,
    pub(super) server: usize,
    name: RunName,
    record: Record,
    cipher: Option<Cipher>,
    /// The time that it has, with all that was found with it.
    pub(super) patience: Arc<Patience>,
    /// Its place among what was found on the server.
    pub(super) span: Span,
}

impl fmt::Debug for RemoteRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteRun")
            .field("name", &self.name)
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}

impl Inner {
    /// Two round trips, whatever the number of blocks: their entries, then the headers of the runs that these lead to.
    pub(super) fn find(self: &Arc<Self>, keys: &[BlockKey]) -> Found {
        if keys.is_empty() {
            return Vec::new();
        }
        let start = Instant::now();
        let found = self.look_up(keys);
        let part = |held: bool| {
            let all = keys.iter().zip(&found);
            all.filter_map(move |(key, found)| (found.is_some() == held).then_some(key))
        };
        self.shards.known.forget(part(false));
        self.shards.known.add(part(true));
        let counters = &self.shards.counters;
        counters.lookups.add(1);
        counters.lookup_micros.took(start.elapsed());
        counters.missed_blocks.add(part(false).count() as u64);
        counters.found_blocks.add(part(true).count() as u64);
        found
    }

    /// Whether a reader would find all of these blocks now.
    pub(super) fn holds(self: &Arc<Self>, keys: &[BlockKey]) -> bool {
        self.look_up(keys).iter().all(Option::is_some)
    }

    fn look_up(self: &Arc<Self>, keys: &[BlockKey]) -> Found {
        let patience = Arc::new(self.shards.patience());
        let waiting = patience.wait();
        let entries = self.entries(keys, waiting.by);
        let runs = self.runs(keys, &entries, waiting.by, &patience);
        let found = keys.iter().zip(&entries).map(|(key, entry)| {
            let entry = (*entry)?;
            let run = runs.get(&entry.run)?;
            // The entry of this block may be another than the one that the header was held against.
            let position = entry.position as usize;
            let holds = run.record.header.keys.get(position) == Some(key);
            holds.then(|| (Arc::clone(run) as Arc<dyn PinnedRun>, position))
        });
        found.collect()
    }

    /// The entries of blocks, as far as there are any.
    pub(super) fn entries(&self, keys: &[BlockKey], by: Instant) -> Vec<Option<Entry>> {
        let read = Shards::each(self.shards.split(keys), |share| {
            // A byte more, so that what is longer is seen to be none.
            let asked = share.items.iter().map(|&item| Asked {
                name: entry_name(&self.prefix, &keys[item]),
                range: 0..ENTRY_BYTES as u64 + 1,
            });
            let mut entries = Vec::new();
            let answer = self.shards.get(
                share.server,
                &asked.collect::<Vec<_>>(),
                by,
                &mut |index, got| match got {
                    Got::Bytes(bytes) => match Entry::decode(bytes) {
                        Some(entry) => entries.push((share.items[index], entry)),
                        None => self.shards.counters.corrupt.add(1),
                    },
                    Got::Missing | Got::WrongType => {}
                },
            );
            // What came before it failed is good: it is held against a header.
            if let Err(error) = answer {
                log::debug!("looking up {} blocks: {error}", share.items.len());
            }
            entries
        });
        let mut entries = vec![None; keys.len()];
        for (item, entry) in read.into_iter().flatten() {
            entries[item] = Some(entry);
        }
        entries
    }

    /// The runs that entries lead to, their headers verified.
    fn runs(
        self: &Arc<Self>,
        keys: &[BlockKey],
        entries: &[Option<Entry>],
        by: Instant,
        patience: &Arc<Patience>,
    ) -> BTreeMap<RunName, Arc<RemoteRun>> {
        // Each with a block that it should hold.
        let mut wanted: BTreeMap<RunName, (BlockKey, Entry)> = BTreeMap::new();
        for (key, entry) in keys.iter().zip(entries) {
            if let Some(entry) = entry {
                wanted.entry(entry.run).or_insert((*key, *entry));
            }
        }
        let wanted = wanted.into_iter().collect::<Vec<_>>();
        let shares = self.shards.split(wanted.iter().map(|(name, _)| &name.last));
        let read = Shards::each(shares, |share| self.headers(&wanted, &share, by, patience));
        read.into_iter().flatten().collect()
    }

    fn headers(
        self: &Arc<Self>,
        wanted: &[(RunName, (BlockKey, Entry))],
        share: &Share,
        by: Instant,
        patience: &Arc<Patience>,
    ) -> Vec<(RunName, Arc<RemoteRun>)> {
        let asked = share.items.iter().map(|&item| {
            let (name, (_, entry)) = &wanted[item];
            Asked {
                name: name.value(&self.prefix),
                range: 0..u64::from(entry.header_bytes),
            }
        });
        let mut headers = Vec::new();
        let answer = self.shards.get(
            share.server,
            &asked.collect::<Vec<_>>(),
            by,
            &mut |index, got| {
                if let Got::Bytes(bytes) = got {
                    headers.push((share.items[index], bytes.to_vec()));
                }
            },
        );
        if let Err(error) = answer {
            log::debug!("looking up {} runs: {error}", share.items.len());
        }
        let (counters, now) = (&self.shards.counters, self.clock.now());
        let runs = headers.into_iter().filter_map(|(item, bytes)| {
            let (name, (block, entry)) = &wanted[item];
            let cipher = self.cipher_of_header(&bytes);
            match judge(&bytes, block, entry, cipher.as_ref()) {
                Header::Own(record) if record.header.terms.expires() <= now => {
                    counters.expired.add(1);
                    None
                }
                Header::Own(record) => {
                    let span = self
                        .shards
                        .place(share.server, record.header.payload_bytes());
                    let run = RemoteRun {
                        span,
                        patience: Arc::clone(patience),
                        tier: Arc::clone(self),
                        server: share.server,
                        name: *name,
                        record: *record,
                        cipher,
                    };
                    Some((*name, Arc::new(run)))
                }
                Header::Damaged => {
                    counters.corrupt.add(1);
                    self.drop_value(share.server, name, by);
                    None
                }
                Header::Foreign => {
                    counters.corrupt.add(1);
                    None
                }
            }
        });
        runs.collect()
    }

    /// What decrypts a run, by the namespace that its header says it is of.
    fn cipher_of_header(&self, bytes: &[u8]) -> Option<Cipher> {
        self.key.as_ref()?;
        let record = Record::decode(bytes)?;
        self.cipher(&record.header.namespace)
    }

    /// Deletes a value that is not what was written, so that it is written again. If that fails, it stays one that cannot be read.
    fn drop_value(&self, server: usize, name: &RunName, by: Instant) {
        let value = name.value(&self.prefix);
        if let Err(error) = self.shards.remove(server, &[value], by) {
            log::debug!("deleting a damaged run: {error}");
        }
    }
}

/// Slices of a run that are read, and what is asked for them.
pub(super) struct Reading<'a> {
    payload: Payload<'a>,
    groups: Vec<(Range<usize>, Range<u64>)>,
    target: &'a RunTarget,
    pub(super) asked: Vec<Asked>,
    pub(super) bytes: u64,
    /// Of what came so far.
    pub(super) outcome: Result<(), ReadFailure>,
}

impl Reading<'_> {
    /// Takes one of its answers.
    pub(super) fn take(&mut self, index: usize, got: Got<'_>) {
        // After the first that is bad the others are only taken off the connection.
        if self.outcome.is_ok() {
            self.outcome = match got {
                Got::Bytes(bytes) => {
                    let (slices, _) = &self.groups[index];
                    let good = self.payload.bring(slices.clone(), bytes, self.target);
                    good.then_some(()).ok_or(ReadFailure::Corrupt)
                }
                Got::Missing | Got::WrongType => Err(ReadFailure::Gone),
            };
        }
    }
}

impl RemoteRun {
    pub(super) fn reading<'a>(
        &'a self,
        slices: Range<usize>,
        target: &'a RunTarget,
    ) -> Reading<'a> {
        let payload = Payload::of(&self.record, self.cipher.as_ref());
        let groups = payload.groups(slices, GROUP_BYTES);
        let name = self.name.value(&self.tier.prefix);
        let asked = groups.iter().map(|(_, range)| Asked {
            name: name.clone(),
            range: range.clone(),
        });
        let bytes = groups.iter().map(|(_, range)| range.end - range.start);
        Reading {
            asked: asked.collect(),
            bytes: bytes.sum(),
            payload,
            groups,
            target,
            outcome: Ok(()),
        }
    }

    fn read(&self, slices: Range<usize>, target: &RunTarget) -> Result<u64, ReadFailure> {
        let mut reading = self.reading(slices, target);
        let asked = std::mem::take(&mut reading.asked);
        let shards = &self.tier.shards;
        let mut waiting = self.patience.wait();
        let answer = shards.get(self.server, &asked, waiting.by, &mut |index, got| {
            waiting.came += got.bytes();
            reading.take(index, got);
        });
        drop(waiting);
        reading.outcome?;
        match answer {
            Ok(()) => Ok(reading.bytes),
            Err(error) => {
                let quiet = error.failure == Failure::Refused;
                log::log!(
                    if quiet {
                        log::Level::Debug
                    } else {
                        log::Level::Warn
                    },
                    "a run could not be read: {error}"
                );
                Err(ReadFailure::Io)
            }
        }
    }
}

impl PinnedRun for RemoteRun {
    fn header(&self) -> &RunHeader {
        &self.record.header
    }

    fn read_slices(&self, range: Range<usize>, target: &RunTarget) -> Result<(), ReadFailure> {
        if !target.fits(&self.record.header, &range) {
            log::error!("a read of slices {range:?} does not fit its target; nothing was read");
            return Err(ReadFailure::Io);
        }
        if range.is_empty() {
            return Ok(());
        }
        let start = Instant::now();
        let outcome = self.read(range, target);
        let counters = &self.tier.shards.counters;
        counters.read_micros.took(start.elapsed());
        self.settle(outcome)
    }

    fn span(&self) -> Option<Span> {
        Some(self.span)
    }

    fn read_together(&self, reads: &[WholeRead<'_>]) -> Vec<Result<(), ReadFailure>> {
        read_together(reads)
    }
}

impl RemoteRun {
    /// Counts a read, and deletes the run if its bytes are not what was written.
    pub(super) fn settle(&self, outcome: Result<u64, ReadFailure>) -> Result<(), ReadFailure> {
        let shards = &self.tier.shards;
        let counters = &shards.counters;
        match outcome {
            Ok(bytes) => {
                counters.reads.add(1);
                counters.read_bytes.add(bytes);
            }
            Err(ReadFailure::Gone) => {
                counters.gone.add(1);
                // It may only have been cut off behind its header, by which a writer would take it for whole.
                self.drop_value();
            }
            Err(ReadFailure::Corrupt) => {
                counters.corrupt.add(1);
                log::warn!("run {:?} is not what was written; it is deleted", self.name);
                self.drop_value();
            }
            // Counted with the server's errors.
            Err(ReadFailure::Io) => {}
        }
        if outcome.is_err() {
            shards.known.forget(&self.record.header.keys);
        }
        outcome.map(|_| ())
    }

    fn drop_value(&self) {
        let waiting = self.patience.wait();
        self.tier.drop_value(self.server, &self.name, waiting.by);
    }
}
