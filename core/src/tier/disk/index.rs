//! The durable copy of the directory: small rows in sled, one tree of rows and one of store-wide values.
//!
//! Rows are keyed by the run's number, which is never given out twice, so writing one run and deleting another never meet.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sled::{Batch, Db, Tree};

use super::record::stored_payload_bytes;
use super::record::{Fields, MAX_HEADER_BYTES, codec_fields, header_bytes_1, parse_codec};
use super::run::{Run, Uses};
use super::segment::Extent;
use super::shapes::Shapes;
use crate::error::{Error, Result};
use crate::key::BlockKey;
use crate::memory::PAGE;
use crate::run::{MAX_RUN_BLOCKS, MAX_RUN_SLICES, RunHeader, Terms};

/// Part of the row that says where a run lies.
const PART_RUN: u16 = 0;
/// Part of the first row of names: parent, namespace and block keys, one after the other.
const PART_NAMES: u16 = 1;
/// Part of the row of the first slice lengths, where they differ.
const PART_SLICES: u16 = 0x8000;
/// Bytes of the row of part 0.
const RUN_BYTES: usize = 64;
/// The same in version 1.
const RUN_BYTES_1: usize = 36;
/// Bytes of names, or of slice lengths, in a row at most. A row costs time at open, but a leaf of sled holds 16 rows however long
/// they are, and is written as a whole.
const LIST_BYTES: usize = 1024;
/// Bytes of a row of slice lengths in version 1.
const SLICES_BYTES_1: usize = 64;
/// Bytes of the first row of names in version 1: parent and namespace. Each block key had a row of its own.
const CHAIN_BYTES_1: usize = 64;

/// What sled keeps of its pages, as it counts. Rows are read at open only, and written at the end of the tree.
const CACHE_BYTES: u64 = 8 << 20;
const FLUSH_EVERY_MS: u64 = 500;
/// What sled says of a file that is held.
pub(super) const HELD: &str = "could not acquire lock";
/// How long a closed index may take to let go of its file.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(10);

/// A run as its rows describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) serial: u64,
    pub(super) last_use: u64,
    /// How often it was used.
    pub(super) hits: u32,
    pub(super) segment: u32,
    pub(super) offset: u64,
    pub(super) header: RunHeader,
    /// Bytes of the record's header.
    pub(super) header_bytes: u32,
    /// When the run was stored, in unix seconds; 0 where it is not known.
    pub(super) created: u64,
}

impl Row {
    /// Where the record lies in its segment.
    pub(super) fn extent(&self) -> Extent {
        Extent {
            offset: self.offset,
            len: u64::from(self.header_bytes) + stored_payload_bytes(&self.header),
        }
    }
}

/// All that the index holds.
#[derive(Debug, Default)]
pub(super) struct Loaded {
    pub(super) rows: Vec<Row>,
    /// Numbers of runs whose rows make no sense.
    pub(super) damaged: Vec<u64>,
    /// Numbers of runs whose rows are of version 1.
    pub(super) outdated: Vec<u64>,
}

/// A store-wide value.
#[derive(Clone, Copy, Debug)]
pub(super) enum Meta {
    /// 1 after a clean close.
    Clean,
    /// Segments below this id hold nothing that the rows do not say.
    Checkpoint,
    /// The id that the next segment gets.
    NextSegment,
    /// The next tick of the clock that numbers runs and uses.
    Clock,
    /// The latest time of day that was seen, in unix seconds.
    Time,
}

impl Meta {
    fn name(self) -> &'static str {
        match self {
            Self::Clean => "clean",
            Self::Checkpoint => "checkpoint",
            Self::NextSegment => "next_segment",
            Self::Clock => "clock",
            Self::Time => "time",
        }
    }
}

/// The open index.
#[derive(Debug)]
pub(super) struct Index {
    path: PathBuf,
    db: Db,
    rows: Tree,
    meta: Tree,
}

impl Index {
    /// Opens or makes the index. sled panics on some kinds of damage, which counts as any other failure here.
    pub(super) fn open(path: &Path) -> Result<Self, String> {
        let open = || -> sled::Result<Self> {
            let db = open_db(path)?;
            Ok(Self {
                path: path.to_owned(),
                rows: db.open_tree("rows")?,
                meta: db.open_tree("meta")?,
                db,
            })
        };
        guarded(open)
    }

    /// Reads all rows.
    pub(super) fn load(&self) -> Result<Loaded, String> {
        guarded(|| self.read_rows())
    }

    fn read_rows(&self) -> sled::Result<Loaded> {
        let mut loaded = Loaded::default();
        let mut shapes = Shapes::default();
        let mut serial = None;
        let mut parts: Vec<(u16, sled::IVec)> = Vec::new();
        let mut finish = |serial: Option<u64>, parts: &mut Vec<(u16, sled::IVec)>| {
            if let Some(serial) = serial {
                match parse_row(serial, parts, &mut shapes) {
                    Some(row) => {
                        if is_outdated(parts) {
                            loaded.outdated.push(serial);
                        }
                        loaded.rows.push(row);
                    }
                    None => loaded.damaged.push(serial),
                }
            }
            parts.clear();
        };
        for entry in &self.rows {
            let (key, value) = entry?;
            let mut fields = Fields(&key);
            let (Some(of), Some(part)) = (fields.take(), fields.take()) else {
                continue;
            };
            let of = Some(u64::from_be_bytes(of));
            if of != serial {
                finish(serial, &mut parts);
                serial = of;
            }
            parts.push((u16::from_be_bytes(part), value));
        }
        finish(serial, &mut parts);
        Ok(loaded)
    }

    /// Adds the rows of a run.
    pub(super) fn insert(&self, row: &Row) -> sled::Result<()> {
        let mut batch = Batch::default();
        fill_batch(&mut batch, row);
        self.rows.apply_batch(batch)
    }

    /// Replaces whatever rows there are of a run.
    pub(super) fn replace(&self, row: &Row) -> sled::Result<()> {
        let mut batch = Batch::default();
        for key in self.rows.scan_prefix(row.serial.to_be_bytes()).keys() {
            batch.remove(key?);
        }
        fill_batch(&mut batch, row);
        self.rows.apply_batch(batch)
    }

    /// Deletes the rows of runs.
    pub(super) fn remove<'a>(&self, runs: impl IntoIterator<Item = &'a Run>) -> sled::Result<()> {
        let mut batch = Batch::default();
        for run in runs {
            for part in parts_of(&run.header) {
                batch.remove(&row_key(run.serial, part));
            }
        }
        self.rows.apply_batch(batch)
    }

    /// Deletes whatever rows there are of runs whose shape is not known.
    pub(super) fn remove_unread(&self, serials: &[u64]) -> sled::Result<()> {
        let mut batch = Batch::default();
        for serial in serials {
            for key in self.rows.scan_prefix(serial.to_be_bytes()).keys() {
                batch.remove(key?);
            }
        }
        self.rows.apply_batch(batch)
    }

    /// Saves when runs were last used, and how often.
    pub(super) fn save_uses<'a>(
        &self,
        runs: impl IntoIterator<Item = (&'a Run, Uses)>,
    ) -> sled::Result<()> {
        let mut batch = Batch::default();
        for (run, uses) in runs {
            let row = run.row(uses);
            batch.insert(&row_key(run.serial, PART_RUN), run_value(&row));
        }
        self.rows.apply_batch(batch)
    }

    /// A store-wide value, if it was ever set.
    pub(super) fn meta(&self, meta: Meta) -> sled::Result<Option<u64>> {
        let value = self.meta.get(meta.name())?;
        Ok(value.and_then(|value| Fields(&value).u64()))
    }

    /// Sets a store-wide value.
    pub(super) fn set_meta(&self, meta: Meta, value: u64) -> sled::Result<()> {
        self.meta.insert(meta.name(), &value.to_le_bytes())?;
        Ok(())
    }

    /// Hands everything written so far to the system: it then outlives this process.
    pub(super) fn flush(&self) -> sled::Result<()> {
        self.db.flush().map(|_| ())
    }

    /// Everything written so far is on stable storage afterwards: sled's own flush leaves it in the system's memory.
    pub(super) fn sync(&self) -> Result<()> {
        let context =
            |error| Error::io(format!("{}: saving the index", self.path.display()), error);
        self.flush().map_err(|error| context(error.into()))?;
        for entry in fs::read_dir(&self.path).map_err(context)? {
            let path = entry.map_err(context)?.path();
            // sled may have replaced a snapshot meanwhile; what it removed needs no sync.
            if let Ok(file) = File::open(&path)
                && path.is_file()
            {
                file.sync_data().map_err(context)?;
            }
        }
        Ok(())
    }

    /// Bytes on disk.
    pub(super) fn bytes(&self) -> u64 {
        self.db.size_on_disk().unwrap_or(0)
    }
}

/// Opens sled. Its threads hold its file for a while after it was dropped: a held file is waited for, not taken for damage.
/// Nobody else can hold it, because the directory is locked.
fn open_db(path: &Path) -> sled::Result<Db> {
    let deadline = Instant::now() + RELEASE_TIMEOUT;
    loop {
        let opened = sled::Config::new()
            .path(path)
            .cache_capacity(CACHE_BYTES)
            .flush_every_ms(Some(FLUSH_EVERY_MS))
            .open();
        match opened {
            Err(sled::Error::Io(error))
                if error.to_string().contains(HELD) && Instant::now() < deadline =>
            {
                std::thread::sleep(Duration::from_millis(5));
            }
            other => return other,
        }
    }
}

/// Runs `work`, with a panic inside turned into an error.
fn guarded<T>(work: impl FnOnce() -> sled::Result<T>) -> Result<T, String> {
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)) {
        Ok(done) => done.map_err(|error| error.to_string()),
        Err(_) => Err("the index is damaged".to_owned()),
    }
}

fn row_key(serial: u64, part: u16) -> [u8; 10] {
    let mut key = [0; 10];
    let (head, tail) = key.split_at_mut(8);
    head.copy_from_slice(&serial.to_be_bytes());
    tail.copy_from_slice(&part.to_be_bytes());
    key
}

fn parts_of(header: &RunHeader) -> impl Iterator<Item = u16> {
    let names = (32 * (2 + header.keys.len())).div_ceil(LIST_BYTES);
    let slices = match uniform(&header.slices) {
        Some(_) => 0,
        None => (4 * header.slices.len()).div_ceil(LIST_BYTES),
    };
    std::iter::once(PART_RUN)
        .chain((0..names).map(|position| PART_NAMES + position as u16))
        .chain((0..slices).map(|position| PART_SLICES + position as u16))
}

fn fill_batch(batch: &mut Batch, row: &Row) {
    let header = &row.header;
    batch.insert(&row_key(row.serial, PART_RUN), run_value(row));
    let mut insert = |first: u16, list: &[u8]| {
        for (position, value) in list.chunks(LIST_BYTES).enumerate() {
            batch.insert(&row_key(row.serial, first + position as u16), value);
        }
    };
    let names = [&header.parent, &header.namespace];
    let names = names.into_iter().chain(&header.keys);
    let names = names.flat_map(|key| key.0).collect::<Vec<_>>();
    insert(PART_NAMES, &names);
    if uniform(&header.slices).is_none() {
        let lengths = header.slices.iter();
        let lengths = lengths.flat_map(|len| len.to_le_bytes());
        insert(PART_SLICES, &lengths.collect::<Vec<_>>());
    }
}

/// Whether these are the rows of a run as version 1 wrote them, later uses aside.
fn is_outdated(parts: &[(u16, sled::IVec)]) -> bool {
    let names = parts.iter().find(|(part, _)| *part == PART_NAMES);
    names.is_some_and(|(_, value)| value.len() == CHAIN_BYTES_1)
}

/// The length of every slice, if they are all the same.
fn uniform(slices: &[u32]) -> Option<u32> {
    let first = *slices.first()?;
    slices.iter().all(|&len| len == first).then_some(first)
}

fn run_value(row: &Row) -> Vec<u8> {
    let header = &row.header;
    let terms = &header.terms;
    let (codec, parameters) = codec_fields(terms.codec);
    let mut value = Vec::with_capacity(RUN_BYTES);
    for field in [row.last_use, row.offset, row.created, terms.tenant] {
        value.extend_from_slice(&field.to_le_bytes());
    }
    let uniform = uniform(&header.slices).unwrap_or(0);
    for field in [row.segment, terms.ttl_seconds, header.block_tokens, uniform] {
        value.extend_from_slice(&field.to_le_bytes());
    }
    let pages = row.header_bytes as usize / PAGE;
    for field in [header.keys.len(), header.slices.len(), pages] {
        value.extend_from_slice(&(field as u16).to_le_bytes());
    }
    value.extend_from_slice(&codec.to_le_bytes());
    value.extend_from_slice(&parameters.to_le_bytes());
    value.extend_from_slice(&row.hits.to_le_bytes());
    value
}

/// What the row of part 0 says.
struct RunFields {
    last_use: u64,
    hits: u32,
    offset: u64,
    created: u64,
    segment: u32,
    block_tokens: u32,
    /// The length of every slice; 0 if they differ.
    uniform: u32,
    blocks: usize,
    slices: usize,
    header_bytes: usize,
    terms: Terms,
}

fn parse_run(value: &[u8]) -> Option<RunFields> {
    let mut fields = Fields(value);
    let (last_use, offset) = (fields.u64()?, fields.u64()?);
    if value.len() == RUN_BYTES_1 {
        let (segment, block_tokens) = (fields.u32()?, fields.u32()?);
        let (blocks, slices) = (fields.u32()? as usize, fields.u32()? as usize);
        let uniform = fields.u32()?;
        return Some(RunFields {
            last_use,
            hits: 0,
            offset,
            created: 0,
            segment,
            block_tokens,
            uniform,
            blocks,
            slices,
            header_bytes: header_bytes_1(blocks, slices),
            terms: Terms::default(),
        });
    }
    let (created, tenant) = (fields.u64()?, fields.u64()?);
    let (segment, ttl_seconds) = (fields.u32()?, fields.u32()?);
    let (block_tokens, uniform) = (fields.u32()?, fields.u32()?);
    let (blocks, slices) = (fields.u16()?.into(), fields.u16()?.into());
    let header_bytes = usize::from(fields.u16()?) * PAGE;
    let codec = parse_codec(fields.u16()?, fields.u32()?)?;
    Some(RunFields {
        last_use,
        hits: fields.u32()?,
        offset,
        created,
        segment,
        block_tokens,
        uniform,
        blocks,
        slices,
        header_bytes,
        terms: Terms {
            codec,
            tenant,
            ttl_seconds,
            persist: true,
            born: 0,
            decoded: false,
        }
        .stamped(created),
    })
}

fn parse_row(serial: u64, parts: &[(u16, sled::IVec)], shapes: &mut Shapes) -> Option<Row> {
    let list_bytes = if is_outdated(parts) {
        (CHAIN_BYTES_1, 32, SLICES_BYTES_1)
    } else {
        (LIST_BYTES, LIST_BYTES, LIST_BYTES)
    };
    let mut parts = parts.iter();
    let mut next = |expected: u16| {
        let (part, value) = parts.next()?;
        (*part == expected).then_some(&**value)
    };
    let run = parse_run(next(PART_RUN)?)?;
    if run.blocks > MAX_RUN_BLOCKS || run.slices > MAX_RUN_SLICES {
        return None;
    }
    if run.header_bytes == 0 || run.header_bytes > MAX_HEADER_BYTES {
        return None;
    }
    let mut list = |first: u16, bytes: usize, mut row_bytes: usize, others: usize| {
        let mut whole = Vec::with_capacity(bytes);
        let mut part = first;
        while whole.len() < bytes {
            let value = next(part)?;
            if value.len() != row_bytes.min(bytes - whole.len()) {
                return None;
            }
            whole.extend_from_slice(value);
            (part, row_bytes) = (part + 1, others);
        }
        Some(whole)
    };
    let (chain_bytes, key_bytes, slices_bytes) = list_bytes;
    let names = list(PART_NAMES, 32 * (2 + run.blocks), chain_bytes, key_bytes)?;
    let mut names = Fields(&names);
    let (parent, namespace) = (BlockKey(names.take()?), BlockKey(names.take()?));
    let keys = (0..run.blocks).map(|_| names.take().map(BlockKey));
    let keys = keys.collect::<Option<Box<[_]>>>()?;
    let mut slices = vec![run.uniform; run.slices];
    if run.uniform == 0 {
        let lengths = list(PART_SLICES, 4 * run.slices, slices_bytes, slices_bytes)?;
        let mut fields = Fields(&lengths);
        for len in &mut slices {
            *len = fields.u32()?;
        }
    }
    let header = RunHeader {
        namespace,
        parent,
        keys,
        block_tokens: run.block_tokens,
        slices: shapes.share(&slices),
        terms: run.terms,
    };
    header.validate().ok()?;
    Some(Row {
        serial,
        last_use: run.last_use,
        hits: run.hits,
        segment: run.segment,
        offset: run.offset,
        header,
        header_bytes: run.header_bytes as u32,
        created: run.created,
    })
}

#[cfg(any(test, feature = "fuzzing"))]
#[path = "fuzz_rows.rs"]
pub(super) mod fuzzing;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Index, Row, parse_run, run_value};
    use crate::codec::{Codec, Element};
    use crate::key::BlockKey;
    use crate::run::{RunHeader, Terms};

    #[test]
    fn golden_run_row() {
        let row = Row {
            serial: 9,
            last_use: 0x0102_0304_0506_0708,
            hits: 0x0403_0201,
            segment: 0x0a0b_0c0d,
            offset: 0x1122_3344_5566_7000,
            header: RunHeader {
                namespace: BlockKey([1; 32]),
                parent: BlockKey([2; 32]),
                keys: [BlockKey([3; 32]); 5].into(),
                block_tokens: 16,
                slices: [512; 7].into(),
                terms: Terms {
                    codec: Codec::Int8 {
                        element: Element::Bf16,
                        group: 64,
                    },
                    tenant: 0x0908_0706_0504_0302,
                    ttl_seconds: 86_400,
                    persist: true,
                    born: 0x6553_f100,
                    decoded: false,
                },
            },
            header_bytes: 8192,
            created: 0x6553_f100,
        };
        let value = run_value(&row);
        let expected = [
            &[8, 7, 6, 5, 4, 3, 2, 1][..],
            &[0, 0x70, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11],
            &[0, 0xf1, 0x53, 0x65, 0, 0, 0, 0],
            &[2, 3, 4, 5, 6, 7, 8, 9],
            &[0x0d, 0x0c, 0x0b, 0x0a],
            &[0x80, 0x51, 1, 0],
            &[16, 0, 0, 0],
            &[0, 2, 0, 0],
            &[5, 0, 7, 0, 2, 0, 1, 0],
            &[2, 0, 64, 0],
            &[1, 2, 3, 4],
        ]
        .concat();
        assert_eq!(value, expected);
        let fields = parse_run(&value).expect("sound");
        assert_eq!(fields.terms, row.header.terms);
        assert_eq!((fields.created, fields.header_bytes), (row.created, 8192));
        assert_eq!((fields.last_use, fields.hits), (row.last_use, row.hits));
        assert_eq!((fields.blocks, fields.slices, fields.uniform), (5, 7, 512));
    }

    fn row(serial: u64, blocks: usize, slices: usize, even: bool) -> Row {
        let key = |number: usize| BlockKey(std::array::from_fn(|at| (number * 7 + at) as u8));
        let slices = (0..slices).map(|slice| if even { 7 } else { 100 + slice as u32 });
        Row {
            serial,
            last_use: serial + 1,
            hits: 3,
            segment: 4,
            offset: 8192,
            header: RunHeader {
                namespace: key(1),
                parent: key(2),
                keys: (3..3 + blocks).map(key).collect(),
                block_tokens: 16,
                slices: slices.collect(),
                terms: Terms::default(),
            },
            header_bytes: 4096,
            created: 5,
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

        #[test]
        fn rows_of_any_length_come_back_and_go(
            shapes in prop::collection::vec((1..200_usize, 1..600_usize, any::<bool>()), 1..6),
        ) {
            let directory = tempfile::tempdir().expect("a directory");
            let index = Index::open(directory.path()).expect("opens");
            let rows = shapes.into_iter().enumerate();
            let rows = rows.map(|(serial, (n, m, even))| row(serial as u64, n, m, even));
            let rows = rows.collect::<Vec<_>>();
            for row in &rows {
                index.insert(row).expect("written");
                index.replace(row).expect("written");
            }
            let loaded = index.load().expect("readable");
            prop_assert!(loaded.damaged.is_empty() && loaded.outdated.is_empty());
            prop_assert_eq!(&loaded.rows, &rows);
            let serials = rows.iter().map(|row| row.serial).collect::<Vec<_>>();
            index.remove_unread(&serials).expect("deleted");
            prop_assert!(index.rows.is_empty());
        }
    }
}
