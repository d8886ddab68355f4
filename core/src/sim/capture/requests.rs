//! The requests of a capture, for replays under other policies and sizes.

use std::collections::VecDeque;
use std::path::Path;

use super::format::Reader;
use super::record::Record;
use super::wire::Name;
use super::writer::remember;
use crate::error::Result;

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Milliseconds since the capture began.
    pub time_ms: u64,
    /// What kind of request it is; 0 where that is unknown.
    pub category: u32,
    /// Tokens in a block.
    pub block_tokens: u32,
    /// Its whole blocks, from the first token on; each id stands for the block and all before it.
    pub blocks: Vec<u64>,
}

/// Reads the requests of a capture in order.
#[derive(Debug)]
pub struct Requests {
    reader: Reader,
    recent: Recent,
}

/// The latest requests, which later ones go on from.
#[derive(Debug, Default)]
pub(super) struct Recent(VecDeque<Vec<Name>>);

impl Recent {
    /// The blocks of a request that begins as another one did, so many requests before it; none if there is no such one.
    pub(super) fn whole(&mut self, back: u64, shared: u64, rest: Vec<Name>) -> Option<Vec<Name>> {
        let mut blocks = match back {
            0 => Vec::new(),
            back => {
                let index = self.0.len().checked_sub(back as usize)?;
                self.0.get(index)?.get(..shared as usize)?.to_vec()
            }
        };
        blocks.extend(rest);
        remember(&mut self.0, blocks.clone());
        Some(blocks)
    }
}

/// The requests of a capture.
///
/// # Errors
/// [`Error::Io`](crate::Error::Io), [`Error::Format`](crate::Error::Format) for a file that is no capture. The iterator gives the same
/// for damage, with the offset, and ends there.
pub fn requests(path: &Path) -> Result<Requests> {
    Ok(Requests {
        reader: Reader::open(path)?,
        recent: Recent::default(),
    })
}

impl Requests {
    /// The file.
    pub fn path(&self) -> &Path {
        self.reader.path()
    }
}

impl Iterator for Requests {
    type Item = Result<Request>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.reader.next()? {
                Ok(Record::Request {
                    time_ms,
                    category,
                    block_tokens,
                    back,
                    shared,
                    blocks,
                    claim: _,
                }) => {
                    let Some(blocks) = self.recent.whole(back, shared, blocks) else {
                        return Some(Err(self.reader.damaged("a request that goes on from none")));
                    };
                    let blocks = blocks.into_iter().map(|Name(name)| name).collect();
                    return Some(Ok(Request {
                        time_ms,
                        category,
                        block_tokens,
                        blocks,
                    }));
                }
                Ok(_) => {}
                Err(error) => return Some(Err(error)),
            }
        }
    }
}
