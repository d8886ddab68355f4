//! The requests of a capture, for replays under other policies and sizes.

use std::collections::VecDeque;
use std::path::Path;

use super::format::{Reader, Record};
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
    recent: VecDeque<Vec<u64>>,
}

/// The requests of a capture.
///
/// # Errors
/// [`Error::Io`](crate::Error::Io), [`Error::Format`](crate::Error::Format) for a file that is no capture. The iterator gives the same
/// for damage, with the offset, and ends there.
pub fn requests(path: &Path) -> Result<Requests> {
    Ok(Requests {
        reader: Reader::open(path)?,
        recent: VecDeque::new(),
    })
}

impl Requests {
    /// The file.
    pub fn path(&self) -> &Path {
        self.reader.path()
    }

    /// The blocks that a request shares with one of those before it; none if there is no such request.
    fn shared(&self, back: u64, shared: u64) -> Option<Vec<u64>> {
        if back == 0 {
            return Some(Vec::new());
        }
        let index = self.recent.len().checked_sub(back as usize)?;
        let blocks = self.recent.get(index)?.get(..shared as usize)?;
        Some(blocks.to_vec())
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
                    blocks: rest,
                }) => {
                    let Some(mut blocks) = self.shared(back, shared) else {
                        return Some(Err(self.reader.damaged("a request that goes on from none")));
                    };
                    blocks.extend(rest);
                    remember(&mut self.recent, blocks.clone());
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
