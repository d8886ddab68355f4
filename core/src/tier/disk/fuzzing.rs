//! Entry points of the fuzz targets for what the disk tier parses.
#![allow(clippy::expect_used, reason = "a target that cannot work stops")]

use std::cell::RefCell;
use std::fs;
use std::sync::Arc;

use tempfile::TempDir;

use super::archive::Frame;
use super::bounce::BouncePool;
use super::files::{Files, OpenMode, SystemFiles};
use super::record::{FORMAT_VERSION, MAX_HEADER_BYTES, Record, seal};
use super::search::Depth;
use super::segment::{Contents, FIRST_RECORD, Segment, file_name};
use crate::memory::PAGE;

pub(crate) use super::index::fuzzing::index_rows;

/// Larger inputs take longer and find nothing more.
const MOST_PAGES: usize = 64;

fn pages(input: &[u8]) -> Vec<u8> {
    let mut bytes = input.to_vec();
    bytes.truncate(MOST_PAGES * PAGE);
    bytes.resize(bytes.len().next_multiple_of(PAGE).max(PAGE), 0);
    bytes
}

fn check_record(record: &Record) {
    record.header.validate().expect("a header that holds");
    assert!(record.header_bytes as usize <= MAX_HEADER_BYTES);
    assert!(record.bytes() >= u64::from(record.header_bytes) + PAGE as u64);
    // Headers of older versions are written anew in the present one, which takes more bytes.
    let again = Record::decode(&record.encode()).map(|again| Record {
        header_bytes: record.header_bytes,
        ..again
    });
    assert_eq!(again.as_ref(), Some(record));
}

pub(crate) fn record_header(input: &[u8]) {
    let mut bytes = pages(input);
    if let Some(record) = Record::decode(&bytes) {
        check_record(&record);
    }
    if let Some(header) = Record::peek(&bytes).and_then(|len| bytes.get_mut(..len)) {
        seal(header);
    }
    if let Some(record) = Record::decode(&bytes) {
        check_record(&record);
    }
}

pub(crate) fn export_frame(input: &[u8]) {
    let mut page = pages(input);
    page.truncate(PAGE);
    // It may be wrong, and then it says how.
    drop(Frame::decode(&page));
    seal(&mut page);
    if let Ok(frame) = Frame::decode(&page) {
        assert_eq!(Frame::decode(&frame.encode()), Ok(frame));
    }
}

/// Puts right the checksums of the header page, of the table of contents and of every page that may begin a header.
fn mend(bytes: &mut [u8]) {
    let size = bytes.len();
    let pointer = bytes
        .get(size - 16..size - 8)
        .and_then(|end| end.try_into().ok());
    let end = pointer.map_or(size, |end| u64::from_le_bytes(end) as usize);
    if end >= PAGE && end < size && end.is_multiple_of(PAGE) {
        seal(&mut bytes[end..]);
    }
    for at in (0..size).step_by(PAGE) {
        let len = match Record::peek(&bytes[at..at + PAGE]) {
            Some(len) => len,
            None if at == 0 => PAGE,
            None => continue,
        };
        if let Some(header) = bytes.get_mut(at..at + len) {
            seal(header);
        }
    }
}

pub(crate) fn segment(input: &[u8]) {
    thread_local! {
        static DIRECTORY: TempDir = tempfile::tempdir().expect("a directory");
    }
    const STORE: u64 = 0x1122_3344_5566_7788;
    const ID: u32 = 7;
    let mut bytes = pages(input);
    mend(&mut bytes);
    let size = bytes.len() as u64;
    DIRECTORY.with(|directory| {
        fs::write(directory.path().join(file_name(ID)), &bytes).expect("written");
        let files: Arc<dyn Files> = Arc::new(SystemFiles);
        let mode = OpenMode {
            create: false,
            direct: false,
            read_only: true,
        };
        let pool = BouncePool::default();
        let Ok(segment) = Segment::open(&files, directory.path(), STORE, ID, mode, &pool) else {
            return;
        };
        assert!(segment.version <= FORMAT_VERSION);
        let contents = segment.read_contents(&pool).expect("readable");
        if let Some(Contents { end, records, .. }) = &contents {
            assert!(*end < size && records.len() as u64 <= size / 16);
            assert!(
                records
                    .iter()
                    .all(|extent| extent.offset >= FIRST_RECORD && extent.end() <= *end)
            );
        }
        let Ok(search) = segment.scan(Depth::Headers, &pool) else {
            // A listed header may claim to be longer than the file.
            assert!(contents.is_some());
            return;
        };
        let mut before = FIRST_RECORD;
        for record in search.records {
            check_record(&record);
            // That all of it lies in the file is for whoever believes a table to check.
            if contents.is_none() {
                assert!(record.identity.offset >= before);
                before = record.identity.offset + record.bytes();
                assert!(before <= size);
                segment.is_whole(&record, &pool).expect("inside");
            }
        }
    });
}

thread_local! {
    /// A directory for an index that is made once.
    pub(super) static INDEX: RefCell<Option<(super::index::Index, TempDir)>> = const { RefCell::new(None) };
}
