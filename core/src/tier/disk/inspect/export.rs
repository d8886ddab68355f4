//! Writing a namespace to one file, out of a store that is not opened for it.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::survey::Survey;
use super::verify::check;
use crate::error::{Error, Result};
use crate::key::BlockKey;
use crate::memory::PAGE;
use crate::tier::disk::archive::{Frame, end_page};
use crate::tier::disk::bounce::{BOUNCE_BYTES, BouncePool};
use crate::tier::disk::record::Record;
use crate::tier::disk::segment::Segment;

/// What was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exported {
    /// Runs in the file.
    pub runs: usize,
    /// Blocks in them.
    pub blocks: usize,
    /// Length of the file in bytes.
    pub bytes: u64,
    /// Runs left out because their bytes are not what was written.
    pub damaged: usize,
    /// Runs left out because what comes before them is not there.
    pub unreachable: usize,
}

/// Writes the runs of `namespace` in the store at `path` to `file`, which is replaced at the end or not at all. Every byte is
/// checked on the way. `progress` hears the bytes done and in all.
///
/// # Errors
/// As for [`super::inspect`]; [`Error::Io`] if the file cannot be written.
pub fn export(
    path: &Path,
    namespace: &BlockKey,
    file: &Path,
    mut progress: impl FnMut(u64, u64),
) -> Result<Exported> {
    let survey = Survey::of(path)?;
    let mut found = Exported::default();
    let mut runs = Vec::new();
    for segment in &survey.segments {
        let own = segment.records.iter();
        for record in own.filter(|record| record.header.namespace == *namespace) {
            runs.push((&segment.segment, record));
        }
    }
    let total = 2 * runs.iter().map(|(_, record)| record.bytes()).sum::<u64>();
    let mut done = 0;
    // Checked before anything is written: the first page says how many there are.
    runs.retain(|(segment, record)| {
        let sound = check(segment, record, &survey.pool).is_ok();
        found.damaged += usize::from(!sound);
        done += record.bytes();
        progress(done, total);
        sound
    });
    let sound = runs.len();
    let runs = parents_first(runs, namespace);
    found.unreachable = sound - runs.len();
    let write = |out: &mut File| -> io::Result<()> {
        let frame = Frame {
            namespace: *namespace,
            records: runs.len() as u64,
            bytes: runs.iter().map(|(_, record)| record.bytes()).sum(),
        };
        out.write_all(&frame.encode())?;
        for (segment, record) in &runs {
            copy(segment, record, &survey.pool, out)?;
            done += record.bytes();
            found.runs += 1;
            found.blocks += record.header.keys.len();
            progress(done, total);
        }
        out.write_all(&end_page())?;
        found.bytes = frame.bytes + 2 * PAGE as u64;
        out.sync_all()
    };
    replace(file, write)
        .map_err(|error| Error::io(format!("{}: exporting", file.display()), error))?;
    Ok(found)
}

/// Writes a file beside `file` and puts it in its place.
fn replace(file: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    let mut draft = file.as_os_str().to_owned();
    draft.push(".partial");
    let draft = PathBuf::from(draft);
    let written = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&draft)
        .and_then(|mut out| write(&mut out))
        .and_then(|()| fs::rename(&draft, file));
    if written.is_err() {
        // The error that counts is the first one.
        let _ = fs::remove_file(&draft);
    }
    written
}

fn copy(segment: &Segment, record: &Record, pool: &BouncePool, out: &mut File) -> io::Result<()> {
    let (mut offset, mut left) = (record.identity.offset, record.bytes());
    while left > 0 {
        let part = left.min(BOUNCE_BYTES as u64);
        out.write_all(&segment.read_at(offset, part as usize, pool)?)?;
        offset += part;
        left -= part;
    }
    Ok(())
}

type Run<'a> = (&'a Segment, &'a Record);

/// Those that hang from the namespace, each behind the one that holds its parent.
fn parents_first<'a>(runs: Vec<Run<'a>>, namespace: &BlockKey) -> Vec<Run<'a>> {
    let mut waiting: HashMap<BlockKey, Vec<Run<'a>>> = HashMap::new();
    for run in runs {
        waiting.entry(run.1.header.parent).or_default().push(run);
    }
    let mut known = HashSet::new();
    let mut next = vec![*namespace];
    let mut ordered = Vec::new();
    while let Some(parent) = next.pop() {
        if !known.insert(parent) {
            continue;
        }
        for run in waiting.remove(&parent).unwrap_or_default() {
            next.extend(run.1.header.keys.iter().copied());
            ordered.push(run);
        }
    }
    ordered
}
