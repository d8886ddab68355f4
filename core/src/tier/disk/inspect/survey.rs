//! What lies in a store's directory: its segments with their records, and its rows, read without touching either.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::tier::disk::bounce::BouncePool;
use crate::tier::disk::files::{Files, OpenMode, SystemFiles};
use crate::tier::disk::index::{Index, Meta, Row};
use crate::tier::disk::lock::read_format;
use crate::tier::disk::record::Record;
use crate::tier::disk::recovery::INDEX_DIRECTORY;
use crate::tier::disk::search::Depth;
use crate::tier::disk::segment::{Segment, parse_file_name};

/// Through the page cache: another process may be appending, and that is where its bytes are.
const LOOK: OpenMode = OpenMode {
    create: false,
    direct: false,
    read_only: true,
};

/// A segment file whose header page is sound.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) segment: Segment,
    pub(super) sealed: bool,
    pub(super) records: Vec<Record>,
}

/// A file with a segment's name that is none of this store's, or cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnreadableSegment {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: String,
}

/// The index, as far as it can be read.
#[derive(Debug)]
pub(super) struct Rows {
    pub(super) by_serial: HashMap<u64, Row>,
    /// Runs whose rows make no sense.
    pub(super) damaged: usize,
    /// Whether the last process closed the store cleanly.
    pub(super) clean: bool,
}

/// A store's directory.
#[derive(Debug)]
pub(super) struct Survey {
    pub(super) version: u32,
    pub(super) store: u64,
    /// Oldest first.
    pub(super) segments: Vec<Found>,
    pub(super) unreadable: Vec<UnreadableSegment>,
    pub(super) rows: std::result::Result<Rows, String>,
    pub(super) index_bytes: u64,
    pub(super) moved_indexes: Vec<PathBuf>,
    pub(super) pool: BouncePool,
}

impl Survey {
    /// Reads what is there.
    ///
    /// # Errors
    /// [`Error::Format`] for what is not a kvlab store or of an unknown version, [`Error::Io`] if the directory cannot be read.
    pub(super) fn of(path: &Path) -> Result<Self> {
        let Some((version, store)) = read_format(path)? else {
            return Err(Error::Format {
                path: path.to_owned(),
                reason: "not a kvlab store: it has no FORMAT file".to_owned(),
            });
        };
        let pool = BouncePool::default();
        let files: Arc<dyn Files> = Arc::new(SystemFiles);
        let context = |error| Error::io(format!("{}: reading it", path.display()), error);
        let (mut segments, mut unreadable, mut moved_indexes) =
            (Vec::new(), Vec::new(), Vec::new());
        for name in files.list(path).map_err(context)? {
            let Some(name) = name.to_str() else {
                continue;
            };
            if name.starts_with("index.corrupt-") {
                moved_indexes.push(path.join(name));
            }
            let Some(id) = parse_file_name(name) else {
                continue;
            };
            let opened = Segment::open(&files, path, store, id, LOOK, &pool).and_then(|segment| {
                Ok(Found {
                    sealed: segment.read_contents(&pool)?.is_some(),
                    records: segment.scan(Depth::Headers, &pool)?.records,
                    segment,
                })
            });
            match opened {
                Ok(found) => segments.push(found),
                Err(error) => unreadable.push(UnreadableSegment {
                    path: path.join(name),
                    reason: error.to_string(),
                }),
            }
        }
        segments.sort_by_key(|found| found.segment.id);
        unreadable.sort_by(|a, b| a.path.cmp(&b.path));
        moved_indexes.sort();
        let index = path.join(INDEX_DIRECTORY);
        Ok(Self {
            version,
            store,
            segments,
            unreadable,
            rows: read_rows(&index),
            index_bytes: disk_bytes(&index),
            moved_indexes,
            pool,
        })
    }
}

/// Reads the rows out of a copy of the index: sled repairs what it opens, and a store that is only looked at stays as it is.
fn read_rows(index: &Path) -> std::result::Result<Rows, String> {
    let copy = tempfile::tempdir().map_err(|error| error.to_string())?;
    let files = fs::read_dir(index).map_err(|error| error.to_string())?;
    for entry in files {
        let path = entry.map_err(|error| error.to_string())?.path();
        if let (true, Some(name)) = (path.is_file(), path.file_name()) {
            fs::copy(&path, copy.path().join(name)).map_err(|error| error.to_string())?;
        }
    }
    let index = Index::open(copy.path())?;
    let loaded = index.load()?;
    let clean = index.meta(Meta::Clean).map_err(|error| error.to_string())?;
    Ok(Rows {
        by_serial: loaded
            .rows
            .into_iter()
            .map(|row| (row.serial, row))
            .collect(),
        damaged: loaded.damaged.len(),
        clean: clean == Some(1),
    })
}

/// Bytes that a file, or the files of a directory, take on disk; 0 for what cannot be looked at.
pub(super) fn disk_bytes(path: &Path) -> u64 {
    if let Ok(entries) = fs::read_dir(path) {
        return entries
            .flatten()
            .map(|entry| disk_bytes(&entry.path()))
            .sum();
    }
    fs::symlink_metadata(path).map_or(0, |status| status.blocks() * 512)
}
