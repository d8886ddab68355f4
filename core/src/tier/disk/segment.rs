//! One segment file: a header page, records, and once it is sealed a table of contents.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::bounce::{BOUNCE_BYTES, BouncePool};
use super::files::{Files, IoMode, OpenFile, OpenMode};
use super::record::{FORMAT_VERSION, Fields, Identity, Record};
use super::record::{is_readable, is_sealed, seal};
use super::sync::Syncs;
use crate::memory::{PAGE, Piece, Region, Regions, page_align, read_ranges, write_pieces};

const MAGIC: [u8; 8] = *b"KVLABSEG";
const CONTENTS_MAGIC: [u8; 8] = *b"KVLABTOC";
/// Bytes before the entries of a table of contents.
const CONTENTS_FIXED_BYTES: usize = 64;
const CONTENTS_ENTRY_BYTES: usize = 16;
/// Bytes of the pointer that ends a sealed file: the table's offset and its complement.
const POINTER_BYTES: usize = 16;

/// Where the first record of a segment starts, in bytes.
pub(super) const FIRST_RECORD: u64 = PAGE as u64;

/// A record's place in its segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Extent {
    /// Where it starts, in bytes.
    pub(super) offset: u64,
    /// How long it is, in bytes.
    pub(super) len: u64,
}

impl Extent {
    /// The first byte after it.
    pub(super) fn end(&self) -> u64 {
        self.offset.saturating_add(self.len)
    }
}

impl Record {
    /// Where it lies in its segment.
    pub(super) fn extent(&self) -> Extent {
        Extent {
            offset: self.identity.offset,
            len: self.bytes(),
        }
    }
}

/// An open segment file.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) store: u64,
    pub(super) id: u32,
    /// The format version that its header page says.
    pub(super) version: u32,
    pub(super) file: OpenFile,
    files: Arc<dyn Files>,
    syncs: Syncs,
    /// A range was given back since the file was last saved.
    punched: AtomicBool,
}

/// What a table of contents says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Contents {
    /// Where the table starts, in bytes.
    pub(super) end: u64,
    /// Every record ever written to the segment.
    pub(super) records: Vec<Extent>,
    /// Segments below this id were on stable storage when the table was written; 0 where that is not known.
    pub(super) saved_below: u32,
}

/// Bytes of a table of contents of so many records.
pub(super) fn contents_bytes(records: usize) -> u64 {
    page_align(CONTENTS_FIXED_BYTES + records * CONTENTS_ENTRY_BYTES + POINTER_BYTES) as u64
}

/// The name of a segment file.
pub(super) fn file_name(id: u32) -> String {
    format!("{id:08x}.seg")
}

/// The id in the name of a segment file.
pub(super) fn parse_file_name(name: &str) -> Option<u32> {
    let id = u32::from_str_radix(name.strip_suffix(".seg")?, 16).ok()?;
    (file_name(id) == name).then_some(id)
}

fn damaged(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl Segment {
    /// Makes a segment file of `size` bytes with its header page. A file that was only half made is removed.
    pub(super) fn create(
        files: &Arc<dyn Files>,
        directory: &Path,
        store: u64,
        id: u32,
        size: u64,
        direct: bool,
        pool: &BouncePool,
    ) -> io::Result<Self> {
        let mode = OpenMode {
            create: true,
            direct,
            read_only: false,
        };
        let segment = Self {
            store,
            id,
            version: FORMAT_VERSION,
            file: files.open(&directory.join(file_name(id)), mode)?,
            files: Arc::clone(files),
            syncs: Syncs::default(),
            punched: AtomicBool::new(false),
        };
        let outcome = segment
            .preallocate(size)
            .and_then(|()| segment.write_at(0, &segment.header_page(), pool));
        if let Err(error) = outcome {
            // The error that counts is the first one.
            let _ = segment.remove();
            return Err(error);
        }
        Ok(segment)
    }

    /// Opens a segment file and checks its header page; `InvalidData` if it is not what its name says.
    pub(super) fn open(
        files: &Arc<dyn Files>,
        directory: &Path,
        store: u64,
        id: u32,
        mode: OpenMode,
        pool: &BouncePool,
    ) -> io::Result<Self> {
        let mut segment = Self {
            store,
            id,
            version: FORMAT_VERSION,
            file: files.open(&directory.join(file_name(id)), mode)?,
            files: Arc::clone(files),
            syncs: Syncs::default(),
            punched: AtomicBool::new(false),
        };
        let page = segment.read_at(0, PAGE, pool)?;
        let mut fields = Fields(page.get(16..).unwrap_or_default());
        segment.version = fields.u32().unwrap_or_default();
        if !is_readable(segment.version) || page != segment.header_page() {
            return Err(damaged("the header page is not that of this segment"));
        }
        Ok(segment)
    }

    /// A segment for runs without bytes: nothing may be written to it or read from it.
    pub(super) fn nowhere(files: Arc<dyn Files>) -> io::Result<Self> {
        let path = Path::new("/dev/null");
        let file = OpenFile {
            path: path.to_owned(),
            file: std::fs::File::open(path)?,
            mode: IoMode::Buffered,
        };
        Ok(Self {
            store: 0,
            id: 0,
            version: FORMAT_VERSION,
            file,
            files,
            syncs: Syncs::default(),
            punched: AtomicBool::new(false),
        })
    }

    /// Whether a file with a segment's name holds nothing at all: its making was interrupted.
    pub(super) fn is_blank(
        files: &Arc<dyn Files>,
        path: &Path,
        mode: OpenMode,
        pool: &BouncePool,
    ) -> io::Result<bool> {
        let mode = OpenMode {
            direct: false,
            ..mode
        };
        let segment = Self {
            store: 0,
            id: 0,
            version: FORMAT_VERSION,
            file: files.open(path, mode)?,
            files: Arc::clone(files),
            syncs: Syncs::default(),
            punched: AtomicBool::new(false),
        };
        let size = segment.size()?;
        let mut at = 0;
        while at < size {
            let len = (size - at).min(BOUNCE_BYTES as u64) as usize;
            if segment
                .read_at(at, len, pool)?
                .iter()
                .any(|byte| *byte != 0)
            {
                return Ok(false);
            }
            at += len as u64;
        }
        Ok(true)
    }

    fn header_page(&self) -> Vec<u8> {
        let mut page = Vec::with_capacity(PAGE);
        page.extend_from_slice(&MAGIC);
        page.extend_from_slice(&[0; 8]);
        page.extend_from_slice(&self.version.to_le_bytes());
        page.extend_from_slice(&self.id.to_le_bytes());
        page.extend_from_slice(&self.store.to_le_bytes());
        page.resize(PAGE, 0);
        seal(&mut page);
        page
    }

    /// Reads whole pages into a vector, for headers and tables.
    pub(super) fn read_at(
        &self,
        offset: u64,
        len: usize,
        pool: &BouncePool,
    ) -> io::Result<Vec<u8>> {
        let bounce = pool.take(len).map_err(io::Error::other)?;
        self.read_region(offset, &bounce.region, 0, len)?;
        let mut bytes = vec![0; len];
        bounce.region.read(0, &mut bytes);
        Ok(bytes)
    }

    /// Writes whole pages, for headers and tables.
    pub(super) fn write_at(&self, offset: u64, bytes: &[u8], pool: &BouncePool) -> io::Result<()> {
        let bounce = pool.take(bytes.len()).map_err(io::Error::other)?;
        bounce.region.write(0, bytes);
        self.write_region(offset, &bounce.region, bytes.len())
    }

    /// Reads whole pages into a region from byte `at` on.
    pub(super) fn read_region(
        &self,
        offset: u64,
        region: &Region,
        at: usize,
        len: usize,
    ) -> io::Result<()> {
        self.read_ranges(offset, &[(region, at, len)])
    }

    /// Writes the first `len` bytes of a region, whole pages.
    pub(super) fn write_region(&self, offset: u64, region: &Region, len: usize) -> io::Result<()> {
        let regions = Regions {
            main: region,
            spare: region,
        };
        let piece = Piece {
            spare: false,
            offset: 0,
            len,
        };
        self.write_pieces(offset, regions, &[piece])
    }

    /// Writes pieces of regions.
    pub(super) fn write_pieces(
        &self,
        offset: u64,
        regions: Regions<'_>,
        pieces: &[Piece],
    ) -> io::Result<()> {
        write_pieces(offset, regions, pieces, |vectors, offset| {
            self.files.write(&self.file, offset, vectors)
        })
    }

    /// Reads into ranges (offset, length) of regions.
    pub(super) fn read_ranges(
        &self,
        offset: u64,
        ranges: &[(&Region, usize, usize)],
    ) -> io::Result<()> {
        read_ranges(offset, ranges, |vectors, offset| {
            self.files.read(&self.file, offset, vectors)
        })
    }

    /// The record that starts at `offset`; none if there is no sound header or it belongs elsewhere.
    pub(super) fn read_record(&self, offset: u64, pool: &BouncePool) -> io::Result<Option<Record>> {
        let mut bytes = self.read_at(offset, PAGE, pool)?;
        let Some(len) = Record::peek(&bytes) else {
            return Ok(None);
        };
        if len > PAGE {
            bytes.extend(self.read_at(offset + PAGE as u64, len - PAGE, pool)?);
        }
        Ok(self.parse_record(offset, &bytes))
    }

    /// The record whose header these bytes of the file are, from `offset` on; none if it is not sound or belongs elsewhere.
    pub(super) fn parse_record(&self, offset: u64, bytes: &[u8]) -> Option<Record> {
        Record::decode(bytes).filter(|record| {
            record.identity
                == Identity {
                    store: self.store,
                    segment: self.id,
                    offset,
                    serial: record.identity.serial,
                }
        })
    }

    /// Overwrites a record's header with zeroes, durably.
    pub(super) fn erase_header(
        &self,
        offset: u64,
        len: usize,
        pool: &BouncePool,
    ) -> io::Result<()> {
        self.write_at(offset, &vec![0; len], pool)?;
        self.sync()
    }

    /// Ends the file with a table of contents and gives back what lies behind; the new size of the file. It is on
    /// stable storage after the next [`Segment::sync`].
    pub(super) fn seal(&self, contents: &Contents, pool: &BouncePool) -> io::Result<u64> {
        let Contents {
            end,
            records,
            saved_below,
        } = contents;
        let len = contents_bytes(records.len());
        let mut table = Vec::with_capacity(len as usize);
        table.extend_from_slice(&CONTENTS_MAGIC);
        table.extend_from_slice(&[0; 8]);
        table.extend_from_slice(&self.version.to_le_bytes());
        table.extend_from_slice(&self.id.to_le_bytes());
        table.extend_from_slice(&self.store.to_le_bytes());
        table.extend_from_slice(&(records.len() as u64).to_le_bytes());
        table.extend_from_slice(&saved_below.to_le_bytes());
        table.resize(CONTENTS_FIXED_BYTES, 0);
        for record in records {
            table.extend_from_slice(&record.offset.to_le_bytes());
            table.extend_from_slice(&record.len.to_le_bytes());
        }
        table.resize(len as usize - POINTER_BYTES, 0);
        table.extend_from_slice(&end.to_le_bytes());
        table.extend_from_slice(&(!end).to_le_bytes());
        seal(&mut table);
        self.write_at(*end, &table, pool)?;
        self.files.set_size(&self.file, end + len)?;
        Ok(end + len)
    }

    /// The table of contents of a sealed file; none if there is no sound one.
    pub(super) fn read_contents(&self, pool: &BouncePool) -> io::Result<Option<Contents>> {
        let size = self.size()?;
        if size < 2 * PAGE as u64 || !size.is_multiple_of(PAGE as u64) {
            return Ok(None);
        }
        let last = self.read_at(size - PAGE as u64, PAGE, pool)?;
        let mut pointer = Fields(last.get(PAGE - POINTER_BYTES..).unwrap_or_default());
        let (Some(end), Some(complement)) = (pointer.u64(), pointer.u64()) else {
            return Ok(None);
        };
        // The longest possible table: a record takes two pages at least.
        let longest = contents_bytes((size / (2 * PAGE as u64)) as usize);
        if end != !complement
            || end < FIRST_RECORD
            || end >= size
            || !end.is_multiple_of(PAGE as u64)
            || size - end > longest
        {
            return Ok(None);
        }
        let table = self.read_at(end, (size - end) as usize, pool)?;
        Ok(self.parse_contents(end, &table))
    }

    fn parse_contents(&self, end: u64, table: &[u8]) -> Option<Contents> {
        if !is_sealed(table) {
            return None;
        }
        let mut fields = Fields(table);
        if fields.take::<8>()? != CONTENTS_MAGIC {
            return None;
        }
        fields.u64()?;
        if (fields.u32()?, fields.u32()?, fields.u64()?) != (self.version, self.id, self.store) {
            return None;
        }
        let count = usize::try_from(fields.u64()?).ok()?;
        let saved_below = fields.u32()?;
        if count > table.len() / CONTENTS_ENTRY_BYTES {
            return None;
        }
        let mut fields = Fields(table.get(CONTENTS_FIXED_BYTES..)?);
        let mut records = Vec::with_capacity(count);
        for _ in 0..count {
            let extent = Extent {
                offset: fields.u64()?,
                len: fields.u64()?,
            };
            let sound = extent.offset >= FIRST_RECORD
                && extent.offset.is_multiple_of(PAGE as u64)
                && extent.end() <= end;
            records.push(sound.then_some(extent)?);
        }
        Some(Contents {
            end,
            records,
            saved_below,
        })
    }

    /// Size of the file in bytes.
    pub(super) fn size(&self) -> io::Result<u64> {
        self.files.size(&self.file)
    }

    /// Where the file is.
    pub(super) fn path(&self) -> &Path {
        &self.file.path
    }

    /// How its bytes are moved.
    pub(super) fn mode(&self) -> IoMode {
        self.file.mode
    }

    /// Puts what was written on stable storage. Once that has failed it always does.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.punched.store(false, Ordering::Release);
        self.syncs.sync(|| self.files.sync(&self.file))
    }

    /// Makes the file `size` bytes long.
    pub(super) fn preallocate(&self, size: u64) -> io::Result<()> {
        self.files.preallocate(&self.file, size)
    }

    /// Gives a range back to the file system. False where that is not supported.
    pub(super) fn punch(&self, extent: Extent) -> io::Result<bool> {
        let punched = self.files.punch(&self.file, extent.offset, extent.len)?;
        self.punched.store(true, Ordering::Release);
        Ok(punched)
    }

    /// The ranges of the file that have no bytes on disk, in order.
    pub(super) fn holes(&self) -> io::Result<Vec<Range<u64>>> {
        self.files.holes(&self.file)
    }

    /// Whether what a power failure might bring back was given up here.
    pub(super) fn has_unsaved_holes(&self) -> bool {
        self.punched.load(Ordering::Acquire)
    }

    /// Removes the file; whoever has the segment can still read it.
    pub(super) fn remove(&self) -> io::Result<()> {
        self.files.remove(self.path())
    }
}

#[cfg(test)]
mod tests {
    use super::super::bounce::BouncePool;
    use std::sync::Arc;

    use super::super::files::{Files, SystemFiles};
    use super::super::record::is_sealed;
    use super::{Contents, Extent, Segment, contents_bytes, file_name, parse_file_name};

    #[test]
    fn golden_segment_header_and_contents() {
        let directory = tempfile::tempdir().expect("a directory");
        let pool = BouncePool::default();
        let store = 0x1122_3344_5566_7788;
        let files: Arc<dyn Files> = Arc::new(SystemFiles);
        let segment = Segment::create(&files, directory.path(), store, 7, 1 << 20, false, &pool);
        let segment = segment.expect("made");
        let records = [(4096, 8192), (12288, 4096)].map(|(offset, len)| Extent { offset, len });
        let contents = Contents {
            end: 16384,
            records: records.to_vec(),
            saved_below: 0x0a0b_0c0d,
        };
        let size = segment.seal(&contents, &pool).expect("sealed");
        let bytes = std::fs::read(directory.path().join("00000007.seg")).expect("there");
        assert_eq!((bytes.len() as u64, size), (5 * 4096, 5 * 4096));
        let tail = |magic: &[u8]| {
            let mut fixed = magic.to_vec();
            fixed.extend([2, 0, 0, 0, 7, 0, 0, 0]);
            fixed.extend([0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11]);
            fixed
        };
        let mut header = tail(b"KVLABSEG");
        header.resize(4096 - 8, 0);
        assert_eq!([&bytes[..8], &bytes[16..4096]].concat(), header);
        let table = &bytes[16384..];
        let mut expected = tail(b"KVLABTOC");
        expected.extend([2, 0, 0, 0, 0, 0, 0, 0, 0x0d, 0x0c, 0x0b, 0x0a]);
        expected.resize(64 - 8, 0);
        for field in [4096_u64, 8192, 12288, 4096] {
            expected.extend(field.to_le_bytes());
        }
        expected.resize(4096 - 8 - 16, 0);
        expected.extend(16384_u64.to_le_bytes());
        expected.extend((!16384_u64).to_le_bytes());
        assert_eq!([&table[..8], &table[16..]].concat(), expected);
        assert!(is_sealed(&bytes[..4096]) && is_sealed(table));
        let found = segment.read_contents(&pool).expect("readable");
        assert_eq!(found, Some(contents));
    }

    #[test]
    fn names_and_sizes() {
        assert_eq!(file_name(0xab), "000000ab.seg");
        assert_eq!(parse_file_name("000000ab.seg"), Some(0xab));
        for name in [
            "ab.seg",
            "000000AB.seg",
            "000000ab.sst",
            "+00000ab.seg",
            "x",
        ] {
            assert_eq!(parse_file_name(name), None, "{name}");
        }
        assert_eq!([1, 251, 252].map(contents_bytes), [4096, 4096, 8192]);
    }
}
