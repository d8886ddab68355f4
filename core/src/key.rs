//! Block keys: the SHA-256 chain that names a block by everything before it.
//!
//! `key = SHA-256(parent || token ids of the block as u32 little-endian)`, the chain of SGLang's storage keys; the first
//! parent is the namespace digest, so nothing of one namespace is ever found from another, in any tier.

use std::fmt;

use sha2::block_api::compress256;
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
        u64::from_le_bytes(self.0.as_chunks().0[0])
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

/// The state that SHA-256 starts from.
const INITIAL: [u32; 8] = [
    0x6a09_e667,
    0xbb67_ae85,
    0x3c6e_f372,
    0xa54f_f53a,
    0x510e_527f,
    0x9b05_688c,
    0x1f83_d9ab,
    0x5be0_cd19,
];

/// Hashes blocks of one size: the padded message is laid out once, each key only writes its parent and tokens into it and
/// runs the compression function. At 16 tokens a block those are two compressions, with nothing around them.
struct BlockHasher {
    message: Vec<[u8; 64]>,
}

impl BlockHasher {
    fn new(block_tokens: usize) -> Self {
        let len = size_of::<BlockKey>() + block_tokens * size_of::<u32>();
        let mut message = vec![[0; 64]; (len + 9).div_ceil(64)];
        let bytes = message.as_flattened_mut();
        bytes[len] = 0x80;
        let length_at = bytes.len() - 8;
        bytes[length_at..].copy_from_slice(&(len as u64 * 8).to_be_bytes());
        Self { message }
    }

    /// `tokens` is as long as the block size given to [`BlockHasher::new`].
    fn key(&mut self, parent: &BlockKey, tokens: &[u32]) -> BlockKey {
        let (first, rest) = self.message.as_flattened_mut().split_at_mut(parent.0.len());
        first.copy_from_slice(&parent.0);
        for (bytes, token) in rest.as_chunks_mut::<4>().0.iter_mut().zip(tokens) {
            *bytes = token.to_le_bytes();
        }
        let mut state = INITIAL;
        compress256(&mut state, &self.message);
        let mut key = BlockKey::default();
        for (bytes, word) in key.0.as_chunks_mut::<4>().0.iter_mut().zip(state) {
            *bytes = word.to_be_bytes();
        }
        key
    }
}

/// The key of the block that holds `tokens` and follows `parent`.
pub fn chain_key(parent: &BlockKey, tokens: &[u32]) -> BlockKey {
    BlockHasher::new(tokens.len()).key(parent, tokens)
}

/// The key of the last whole block of `tokens` that follow `parent`; `parent` itself if there is none. No more than two
/// compressions and no allocation a block of 16 tokens.
pub fn chain_end(parent: BlockKey, tokens: &[u32], block_tokens: usize) -> BlockKey {
    let mut hasher = BlockHasher::new(block_tokens);
    let blocks = tokens.chunks_exact(block_tokens);
    blocks.fold(parent, |parent, block| hasher.key(&parent, block))
}

/// Appends the keys of all whole blocks of `tokens` to `keys`.
pub fn chain_keys(parent: BlockKey, tokens: &[u32], block_tokens: usize, keys: &mut Vec<BlockKey>) {
    let mut hasher = BlockHasher::new(block_tokens);
    let mut parent = parent;
    keys.extend(tokens.chunks_exact(block_tokens).map(|block| {
        parent = hasher.key(&parent, block);
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

/// Whose blocks those of a cache salt are, for quotas: a digest of it. No salt is nobody, 0.
pub fn tenant_of(salt: &str) -> u64 {
    if salt.is_empty() {
        return 0;
    }
    namespace_digest([("salt", salt.as_bytes())]).short().max(1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sha2::{Digest, Sha256};

    use super::{BlockKey, chain_end, chain_key, chain_keys, namespace_digest};

    fn parent() -> BlockKey {
        BlockKey(std::array::from_fn(|index| index as u8))
    }

    fn tokens(count: u32) -> Vec<u32> {
        (0..count)
            .map(|index| index.wrapping_mul(2_654_435_761))
            .collect()
    }

    /// Values of Python's hashlib: `sha256(parent + struct.pack("<16I", *block)).digest()`, each the parent of the next, with
    /// `parent = bytes(range(32))` and tokens `i * 2654435761 % 2**32`.
    #[test]
    fn keys_are_those_of_hashlib() {
        let mut keys = Vec::new();
        chain_keys(parent(), &tokens(50), 16, &mut keys);
        let keys: Vec<String> = keys.iter().map(ToString::to_string).collect();
        assert_eq!(
            keys,
            [
                "667bbeabed6ae3423baf72bf2bb5a419a0d9a1d83ba7ecc61770171abe990fbf",
                "f5e7e053fddd78c8d5950a167a1076d3ee374f1542c840b857c9a48ead0c2768",
                "a214c0f3f43050a0e1e1f2a33576d28cff430d193749ce0bfa76d5a630a48e6f",
            ]
        );
    }

    /// Block sizes whose padding falls before, at and behind the end of a 64-byte compression.
    #[test]
    fn every_block_size_pads_as_hashlib_does() {
        for (size, key) in [
            (
                1,
                "70f4003d52b6eb03da852e93256b5986b5d4883098bb7973bc5318cc66637a84",
            ),
            (
                5,
                "9c20792b6372684cc65e241c99e64514b3ba56a4f226f39acaadfd04cdad3414",
            ),
            (
                6,
                "add8ee5d923c7a044d5c7d2affaa519c5d9369474d434694f94588026786252d",
            ),
            (
                7,
                "f72be0999e40b64c8e8b4881d17e2346d93805ba4244b3d29aecd55b3618dbf2",
            ),
            (
                8,
                "805189d1f67053767e89cc49188ce20e5105539fd7ba12c22790860e1ba34acf",
            ),
            (
                64,
                "18df3bc59a917c12577139167bc87a744f4706d592c14f56f1d1b3de0fb38c09",
            ),
        ] {
            assert_eq!(
                chain_key(&parent(), &tokens(size)).to_string(),
                key,
                "{size}"
            );
        }
    }

    /// `sha256(b"kvlab namespace v1" + ...)` with every tag and value after its length as `<Q`.
    #[test]
    fn the_namespace_digest_is_that_of_hashlib() {
        assert_eq!(
            namespace_digest([("model", b"m".as_slice()), ("salt", b"")]).to_string(),
            "25c02d393a80d4e83fb415617290fb41561513937c9e47e95659610bd5c5e3c5"
        );
    }

    proptest! {
        #[test]
        fn the_chain_is_plain_sha256(
            tokens in prop::collection::vec(any::<u32>(), 0..200),
            block_tokens in 1..40_usize,
        ) {
            let mut digest = parent();
            let expected: Vec<BlockKey> = tokens
                .chunks_exact(block_tokens)
                .map(|block| {
                    let mut hasher = Sha256::new();
                    hasher.update(digest.0);
                    for token in block {
                        hasher.update(token.to_le_bytes());
                    }
                    digest = BlockKey(hasher.finalize().into());
                    digest
                })
                .collect();
            let mut keys = Vec::new();
            chain_keys(parent(), &tokens, block_tokens, &mut keys);
            prop_assert_eq!(keys, expected);
            prop_assert_eq!(chain_end(parent(), &tokens, block_tokens), digest);
        }
    }
}
