//! Token ids at the border: what a tokenizer hands over as 64-bit integers becomes `u32`.

use std::cell::Cell;

use crate::error::{Error, Result};
use crate::memory::prefetch;

/// Tokens that are compared at once.
const CHUNK: usize = 64;
/// How far ahead of a comparison memory is asked for, in tokens.
const AHEAD: usize = 256;

/// A token id in the form in which a caller has it.
pub trait TokenId: Sized {
    /// The id; of one out of range, its low bits.
    fn id(&self) -> u32;

    /// Whether `given` are the ids that `stored` holds, of the same length; false for any id out of range.
    fn all_equal(given: &[Self], stored: &[u32]) -> bool;
}

impl TokenId for u32 {
    fn id(&self) -> u32 {
        *self
    }

    fn all_equal(given: &[Self], stored: &[u32]) -> bool {
        given == stored
    }
}

/// In foreign memory, which its owner may write to at any time: hence the cell.
impl TokenId for Cell<i64> {
    fn id(&self) -> u32 {
        self.get() as u32
    }

    fn all_equal(given: &[Self], stored: &[u32]) -> bool {
        let (chunks, rest) = given.as_chunks::<CHUNK>();
        let (stored_chunks, stored_rest) = stored.as_chunks::<CHUNK>();
        let mut chunks = chunks.iter().zip(stored_chunks);
        given.len() == stored.len()
            && chunks.all(|(given, stored)| {
                // Both come from far memory as a rule, and a page's end stops what the processor fetches by itself.
                prefetch(given, AHEAD);
                prefetch(stored, AHEAD);
                differing_bits(given, stored) == 0
            })
            && differing_bits(rest, stored_rest) == 0
    }
}

fn differing_bits(given: &[Cell<i64>], stored: &[u32]) -> i64 {
    let pairs = given.iter().zip(stored);
    pairs.fold(0, |bits, (given, &stored)| {
        bits | (given.get() ^ i64::from(stored))
    })
}

/// Checks the ids from index `from` on.
///
/// # Errors
/// [`Error::InvalidArgument`] that names the first value outside of 0..=4294967295 and its index.
pub(crate) fn check_range(tokens: &[Cell<i64>], from: usize) -> Result<()> {
    let rest = tokens.get(from..).unwrap_or_default();
    let bits = rest.iter().fold(0, |bits, token| bits | token.get());
    if u32::try_from(bits).is_ok() {
        return Ok(());
    }
    let mut tokens = tokens.iter().map(Cell::get).enumerate().skip(from);
    let bad = tokens.find(|&(_, token)| u32::try_from(token).is_err());
    let (index, token) = bad.unwrap_or((from, bits));
    Err(Error::invalid(format!(
        "token {index} is {token}: token ids are between 0 and {}",
        u32::MAX
    )))
}
