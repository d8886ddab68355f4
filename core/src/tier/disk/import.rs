//! Taking over what another store exported.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

use super::DiskTier;
use super::archive::{Frame, end_page};
use super::payload::Form;
use super::record::{Record, padded};
use crate::error::{Error, Result};
use crate::key::BlockKey;
use crate::memory::{PAGE, Piece, Region};
use crate::run::{RunHeader, RunSource};
use crate::tier::Put;

/// What became of an export.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// The namespace that it holds.
    pub namespace: BlockKey,
    /// Runs that are here now and were not before.
    pub runs: usize,
    /// Runs that were here.
    pub present: usize,
    /// Runs past their time to live.
    pub expired: usize,
    /// Runs that were not taken: no room, or what comes before them is missing.
    pub refused: usize,
    /// Runs whose bytes are not what was exported.
    pub damaged: usize,
    /// Whether the file was whole.
    pub complete: bool,
}

impl DiskTier {
    /// Stores the runs of an export that are not here yet, as they are: nothing is decoded, and a time to live goes on from when it began. Every byte
    /// is checked. `progress` hears the bytes done and in all.
    ///
    /// # Errors
    /// [`Error::Format`] for what is no export or one of an unknown version, [`Error::Io`] if it cannot be read,
    /// [`Error::Closed`], [`Error::Forked`]. Runs stored before an error stay.
    pub fn import(&self, path: &Path, mut progress: impl FnMut(u64, u64)) -> Result<Imported> {
        self.inner.check_owner()?;
        let context = |error| Error::io(format!("{}: importing", path.display()), error);
        let mut file = File::open(path).map_err(context)?;
        let size = file.metadata().map_err(context)?.len();
        let mut page = vec![0; PAGE];
        let frame = if read_whole(&mut file, &mut page).map_err(context)? {
            Frame::decode(&page)
        } else {
            Err("not an export of kvlab".to_owned())
        };
        let frame = frame.map_err(|reason| Error::Format {
            path: path.to_owned(),
            reason,
        })?;
        let mut found = Imported {
            namespace: frame.namespace,
            ..Imported::default()
        };
        let mut done = PAGE as u64;
        for _ in 0..frame.records {
            let Some(record) = read_header(&mut file).map_err(context)? else {
                return Ok(found);
            };
            let payload = record.bytes() - u64::from(record.header_bytes);
            done += u64::from(record.header_bytes);
            if done + payload > size || record.header.namespace != frame.namespace {
                return Ok(found);
            }
            let region = Arc::new(Region::new(payload as usize)?);
            if !fill(&mut file, &region, payload as usize).map_err(context)? {
                return Ok(found);
            }
            done += payload;
            self.take(&record, region, &mut found)?;
            progress(done, size);
        }
        found.complete = read_whole(&mut file, &mut page).map_err(context)? && page == end_page();
        Ok(found)
    }

    fn take(&self, record: &Record, region: Arc<Region>, found: &mut Imported) -> Result<()> {
        let header = &record.header;
        let source = source(header, region);
        if !source.checksums().eq(record.sums.iter().copied()) {
            found.damaged += 1;
            return Ok(());
        }
        if header.terms.expires() <= self.inner.clock.now() {
            found.expired += 1;
            return Ok(());
        }
        match self.inner.put(header, &source, &|| (), Form::Stored)? {
            Put::Stored | Put::Queued => found.runs += 1,
            Put::Present => found.present += 1,
            Put::Refused(_) => found.refused += 1,
        }
        Ok(())
    }
}

/// The payload as it lies in the file: every slice on whole pages.
fn source(header: &RunHeader, region: Arc<Region>) -> RunSource {
    let mut offset = 0;
    let slices = header.slices.iter().map(|&len| {
        let stored = header.terms.codec.stored_bytes(len);
        let piece = Piece {
            spare: false,
            offset,
            len: stored as usize,
        };
        offset += padded(stored) as usize;
        vec![piece]
    });
    RunSource {
        slices: slices.collect(),
        region,
        lease: None,
    }
}

/// The header that the file goes on with; none if it is damaged or cut, and nothing behind it can be found.
fn read_header(file: &mut File) -> io::Result<Option<Record>> {
    let mut bytes = vec![0; PAGE];
    if !read_whole(file, &mut bytes)? {
        return Ok(None);
    }
    let Some(len) = Record::peek(&bytes) else {
        return Ok(None);
    };
    bytes.resize(len, 0);
    if !read_whole(file, bytes.get_mut(PAGE..).unwrap_or_default())? {
        return Ok(None);
    }
    Ok(Record::decode(&bytes))
}

fn fill(file: &mut File, region: &Region, len: usize) -> io::Result<bool> {
    let mut buffer = vec![0; (1 << 20).min(len)];
    let mut at = 0;
    while at < len {
        let part = buffer.len().min(len - at);
        let Some(part) = buffer.get_mut(..part) else {
            return Ok(false);
        };
        if !read_whole(file, part)? {
            return Ok(false);
        }
        region.write(at, part);
        at += part.len();
    }
    Ok(true)
}

/// Fills the bytes; false if the file ends first.
fn read_whole(file: &mut File, bytes: &mut [u8]) -> io::Result<bool> {
    match file.read_exact(bytes) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}
