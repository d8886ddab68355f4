//! The file: a header, then frames of whole records, each with its checksum.
//!
//! Header: `KVLABCAP`, version (u32), unix milliseconds of the start (u64). Frame: length (u32), its complement (u32), XXH3-64 of the
//! bytes (u64), the bytes. All little-endian. What records there are says [`super::record`].

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use super::record::Record;
use super::wire::{Cursor, Name, Wire};
use crate::error::{Error, Result};
use crate::memory::Checksum;

const MAGIC: &[u8; 8] = b"KVLABCAP";
const VERSION: u32 = 2;
const HEADER: usize = 20;
const FRAME_HEADER: usize = 16;

pub(super) fn header(unix_ms: u64) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend(unix_ms.to_le_bytes());
    bytes
}

/// Puts a frame around records.
pub(super) fn frame(records: &[u8]) -> Vec<u8> {
    let len = records.len() as u32;
    let mut frame = Vec::with_capacity(FRAME_HEADER + records.len());
    frame.extend(len.to_le_bytes());
    frame.extend((!len).to_le_bytes());
    frame.extend(Checksum::of(records).to_le_bytes());
    frame.extend(records);
    frame
}

/// Reads a capture record by record, up to the end of the last frame that is whole: what a killed process had not written is not
/// there.
#[derive(Debug)]
pub(super) struct Reader {
    path: PathBuf,
    file: BufReader<File>,
    size: u64,
    /// Where the next frame begins.
    offset: u64,
    frame: Vec<u8>,
    /// How much of the frame was read.
    read: usize,
    failed: bool,
}

impl Reader {
    /// # Errors
    /// [`Error::Io`], or [`Error::Format`] for a file that is no capture or one of another version.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let io = |error| Error::io(format!("{}: opening the capture", path.display()), error);
        let file = File::open(path).map_err(io)?;
        let size = file.metadata().map_err(io)?.len();
        let mut reader = Self {
            path: path.to_owned(),
            file: BufReader::new(file),
            size,
            offset: HEADER as u64,
            frame: Vec::new(),
            read: 0,
            failed: false,
        };
        let mut header = [0; HEADER];
        let version = u32::to_le_bytes(VERSION);
        let whole = size >= HEADER as u64;
        if whole {
            reader.file.read_exact(&mut header).map_err(io)?;
        }
        if !whole || header[..8] != *MAGIC || header[8..12] != version {
            return Err(Error::Format {
                path: path.to_owned(),
                reason: format!(
                    "no capture of version {VERSION}; record one with Store.open(capture=)"
                ),
            });
        }
        Ok(reader)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// An error about the frame that was read last, or is read now.
    pub(super) fn damaged(&mut self, what: &str) -> Error {
        self.failed = true;
        Error::Format {
            path: self.path.clone(),
            reason: format!(
                "{what} at offset {}; what comes before it is right, record anew",
                self.offset
            ),
        }
    }

    /// Reads the next frame; false at the end.
    fn next_frame(&mut self) -> Result<bool> {
        self.offset += if self.frame.is_empty() {
            0
        } else {
            (FRAME_HEADER + self.frame.len()) as u64
        };
        self.frame.clear();
        self.read = 0;
        let left = self.size.saturating_sub(self.offset);
        if left < FRAME_HEADER as u64 {
            return Ok(false);
        }
        let context = format!("{}: reading at offset {}", self.path.display(), self.offset);
        let io = |error| Error::io(context.clone(), error);
        let mut header = [0; FRAME_HEADER];
        self.file.read_exact(&mut header).map_err(io)?;
        let mut fields = Cursor(&header);
        let (len, check) = (fields.bytes().map(u32::from_le_bytes), fields.bytes());
        let (Some(len), Some(check), Some(Name(sum))) =
            (len, check.map(u32::from_le_bytes), Name::read(&mut fields))
        else {
            return Ok(false);
        };
        if len != !check || len == 0 {
            return Err(self.damaged("a frame with a damaged length"));
        }
        if left < FRAME_HEADER as u64 + u64::from(len) {
            return Ok(false);
        }
        self.frame.resize(len as usize, 0);
        self.file.read_exact(&mut self.frame).map_err(io)?;
        if Checksum::of(&self.frame) != sum {
            return Err(self.damaged("a frame with a wrong checksum"));
        }
        Ok(true)
    }

    fn next_record(&mut self) -> Result<Option<Record>> {
        if self.read == self.frame.len() && !self.next_frame()? {
            self.failed = true;
            return Ok(None);
        }
        let mut cursor = Cursor(&self.frame[self.read..]);
        let record = Record::read(&mut cursor);
        let left = cursor.0.len();
        match record {
            Some(record) => {
                self.read = self.frame.len() - left;
                Ok(Some(record))
            }
            None => Err(self.damaged("a frame with an unknown record")),
        }
    }
}

impl Iterator for Reader {
    type Item = Result<Record>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let record = self.next_record();
        self.failed |= record.is_err();
        record.transpose()
    }
}
