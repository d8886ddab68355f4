//! Block keys: the SHA-256 chain that names a block by everything before it.
//!
//! `key = SHA-256(parent || token ids of the block as u32 little-endian)`, the chain of SGLang's storage keys; the first
//! parent is the namespace digest, so nothing of one namespace is ever found from another, in any tier.

use std::fmt;

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

/// A map by block key. Callers may bring their own keys, so the hash is seeded.
pub(crate) type KeyMap<V> = hashbrown::HashMap<BlockKey, V, foldhash::fast::RandomState>;

/// The 32-byte name of a block, or of a namespace (the first parent of a chain).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct BlockKey(pub [u8; 32]);

impl BlockKey {
    /// Reads a key from exactly 32 bytes.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for any other length.
    pub fn from_slice(bytes: &[u8]) -> Result<Self> {
        bytes
            .try_into()
            .map(Self)
            .map_err(|_| Error::invalid(format!("a block key is 32 bytes, got {}", bytes.len())))
    }

    /// The first 8 bytes as a number: a ready hash for maps and ghost entries, since keys are digests already.
    pub fn short(&self) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        u64::from_le_bytes([a, b, c, d, e, f, g, h])
    }
}

impl fmt::Debug for BlockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for BlockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The key of the block that holds `tokens` and follows `parent`.
pub fn chain_key(parent: &BlockKey, tokens: &[u32]) -> BlockKey {
    let mut hasher = Sha256::new();
    hasher.update(parent.0);
    for token in tokens {
        hasher.update(token.to_le_bytes());
    }
    BlockKey(hasher.finalize().into())
}

/// Appends the keys of all whole blocks of `tokens` to `keys`.
pub fn chain_keys(parent: BlockKey, tokens: &[u32], block_tokens: usize, keys: &mut Vec<BlockKey>) {
    let mut parent = parent;
    keys.extend(tokens.chunks_exact(block_tokens).map(|block| {
        parent = chain_key(&parent, block);
        parent
    }));
}

/// The digest of a list of tagged fields, each length-prefixed so that no two lists collide by concatenation.
pub fn namespace_digest<'a>(fields: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> BlockKey {
    let mut hasher = Sha256::new();
    hasher.update(b"kvlab namespace v1");
    for (tag, value) in fields {
        for part in [tag.as_bytes(), value] {
            hasher.update((part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
    }
    BlockKey(hasher.finalize().into())
}
