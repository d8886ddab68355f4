//! The file: a header, then frames of whole records, each with its checksum.
//!
//! Header: `KVLABCAP`, version (u32), unix milliseconds of the start (u64). Frame: length (u32), its complement (u32), XXH3-64 of the
//! bytes (u64), the bytes. All little-endian; numbers inside of records are LEB128, names 8 bytes.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::memory::Checksum;
use crate::policy::{EntryMeta, Slot};

const MAGIC: &[u8; 8] = b"KVLABCAP";
const VERSION: u32 = 1;
const HEADER: usize = 20;
const FRAME_HEADER: usize = 16;

/// What is written down.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Record {
    /// An order of eviction begins; its number is how many began before it.
    Order {
        tier: u8,
        tenant: u64,
        capacity: u64,
        policy: String,
    },
    Request {
        time_ms: u64,
        category: u32,
        block_tokens: u32,
        /// How many requests before it the one was that it begins like; 0 for none.
        back: u64,
        /// Blocks that they share.
        shared: u64,
        /// Names of the others.
        blocks: Vec<u64>,
    },
    Call {
        order: u64,
        call: Call,
    },
    /// The buffer was full: nothing was recorded from here on.
    Overrun,
}

/// A call that an order of eviction got.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Call {
    Insert(Slot, u64, EntryMeta),
    Touch(Slot),
    Renew(Slot),
    Split {
        head: Slot,
        head_meta: EntryMeta,
        tail: Slot,
        tail_ghost: u64,
        tail_meta: EntryMeta,
    },
    Trim(Slot, u64, EntryMeta),
    Candidate(Slot, bool),
    Evicted(Slot),
    Removed(Slot),
    Victim(Option<Slot>),
}

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

fn put(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn put_meta(out: &mut Vec<u8>, meta: EntryMeta) {
    put(out, meta.bytes);
    put(out, u64::from(meta.tokens));
    put(out, u64::from(meta.depth));
    put(out, u64::from(meta.category));
    out.extend(meta.cost.to_le_bytes());
}

impl Record {
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Order {
                tier,
                tenant,
                capacity,
                policy,
            } => {
                out.extend([0, *tier]);
                out.extend(tenant.to_le_bytes());
                put(out, *capacity);
                put(out, policy.len() as u64);
                out.extend(policy.as_bytes());
            }
            Self::Request {
                time_ms,
                category,
                block_tokens,
                back,
                shared,
                blocks,
            } => {
                out.push(1);
                let (category, block_tokens) = (u64::from(*category), u64::from(*block_tokens));
                for number in [
                    *time_ms,
                    category,
                    block_tokens,
                    *back,
                    *shared,
                    blocks.len() as u64,
                ] {
                    put(out, number);
                }
                out.extend(blocks.iter().flat_map(|block| block.to_le_bytes()));
            }
            Self::Overrun => out.push(2),
            Self::Call { order, call } => call.write(*order, out),
        }
    }
}

impl Call {
    fn write(&self, order: u64, out: &mut Vec<u8>) {
        let mut begin = |code: u8, slot: Slot| {
            out.push(code);
            put(out, order);
            put(out, u64::from(slot));
        };
        match *self {
            Self::Touch(slot) => begin(16, slot),
            Self::Renew(slot) => begin(17, slot),
            Self::Candidate(slot, false) => begin(18, slot),
            Self::Candidate(slot, true) => begin(19, slot),
            Self::Evicted(slot) => begin(20, slot),
            Self::Removed(slot) => begin(21, slot),
            Self::Victim(None) => begin(22, 0),
            Self::Victim(Some(slot)) => begin(23, slot),
            Self::Insert(slot, ghost, meta) => {
                begin(24, slot);
                out.extend(ghost.to_le_bytes());
                put_meta(out, meta);
            }
            Self::Trim(slot, ghost, meta) => {
                begin(25, slot);
                out.extend(ghost.to_le_bytes());
                put_meta(out, meta);
            }
            Self::Split {
                head,
                head_meta,
                tail,
                tail_ghost,
                tail_meta,
            } => {
                begin(26, head);
                put_meta(out, head_meta);
                put(out, u64::from(tail));
                out.extend(tail_ghost.to_le_bytes());
                put_meta(out, tail_meta);
            }
        }
    }
}

/// Takes records out of a frame; `None` where the bytes make no sense.
struct Cursor<'a>(&'a [u8]);

impl Cursor<'_> {
    fn bytes<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*first)
    }

    fn name(&mut self) -> Option<u64> {
        self.bytes().map(u64::from_le_bytes)
    }

    fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let [byte] = self.bytes()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(number);
            }
        }
        None
    }

    fn short(&mut self) -> Option<u32> {
        self.number()?.try_into().ok()
    }

    fn meta(&mut self) -> Option<EntryMeta> {
        Some(EntryMeta {
            bytes: self.number()?,
            tokens: self.short()?,
            depth: self.short()?,
            category: self.short()?,
            cost: self.bytes().map(f32::from_le_bytes)?,
        })
    }

    fn record(&mut self) -> Option<Record> {
        let [code] = self.bytes()?;
        match code {
            0 => {
                let [tier] = self.bytes()?;
                let (tenant, capacity) = (self.name()?, self.number()?);
                let length = self.number()? as usize;
                let (policy, rest) = self.0.split_at_checked(length)?;
                self.0 = rest;
                Some(Record::Order {
                    tier,
                    tenant,
                    capacity,
                    policy: String::from_utf8(policy.to_vec()).ok()?,
                })
            }
            1 => {
                let (time_ms, category, block_tokens) =
                    (self.number()?, self.short()?, self.short()?);
                let (back, shared, count) = (self.number()?, self.number()?, self.number()?);
                let names = (0..count).map(|_| self.name());
                Some(Record::Request {
                    time_ms,
                    category,
                    block_tokens,
                    back,
                    shared,
                    blocks: names.collect::<Option<Vec<_>>>()?,
                })
            }
            2 => Some(Record::Overrun),
            _ => {
                let (order, slot) = (self.number()?, self.short()?);
                let call = self.call(code, slot)?;
                Some(Record::Call { order, call })
            }
        }
    }

    fn call(&mut self, code: u8, slot: Slot) -> Option<Call> {
        Some(match code {
            16 => Call::Touch(slot),
            17 => Call::Renew(slot),
            18 => Call::Candidate(slot, false),
            19 => Call::Candidate(slot, true),
            20 => Call::Evicted(slot),
            21 => Call::Removed(slot),
            22 => Call::Victim(None),
            23 => Call::Victim(Some(slot)),
            24 => Call::Insert(slot, self.name()?, self.meta()?),
            25 => Call::Trim(slot, self.name()?, self.meta()?),
            26 => Call::Split {
                head: slot,
                head_meta: self.meta()?,
                tail: self.short()?,
                tail_ghost: self.name()?,
                tail_meta: self.meta()?,
            },
            _ => return None,
        })
    }
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
        let (Some(len), Some(check), Some(sum)) =
            (len, check.map(u32::from_le_bytes), fields.name())
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
        let record = cursor.record();
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
