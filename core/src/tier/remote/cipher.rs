//! Encryption of payload: AES-256-GCM, with a key of its own for each namespace, and so for each salt.

use std::path::Path;
use std::{fmt, fs, io};

use aes_gcm::aead::common::Generate;
use aes_gcm::{AeadInOut, Aes256Gcm, KeyInit, Nonce, Tag};
use hkdf::Hkdf;
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::key::BlockKey;
use crate::tier::record::Record;

/// Bytes of a key.
const KEY_BYTES: usize = 32;
const NONCE_BYTES: usize = 12;
const TAG_BYTES: usize = 16;
/// Bytes that a slice grows by: nonce before it, tag behind it.
pub(super) const SEALED_BYTES: usize = NONCE_BYTES + TAG_BYTES;

/// The secret that the keys of all namespaces are made from.
#[derive(Clone, PartialEq, Eq)]
pub struct EncryptionKey([u8; KEY_BYTES]);

impl EncryptionKey {
    /// Reads 64 hexadecimal digits, white space around them allowed.
    ///
    /// # Errors
    /// [`Error::Config`] for anything else. The value is not repeated.
    pub fn parse(text: &str) -> Result<Self> {
        let digits = text.trim().as_bytes();
        let mut key = [0; KEY_BYTES];
        let pairs = digits.as_chunks::<2>();
        let nibble = |digit: u8| char::from(digit).to_digit(16);
        let read = key
            .iter_mut()
            .zip(pairs.0)
            .try_fold(0, |read, (byte, [high, low])| {
                *byte = (nibble(*high)? << 4 | nibble(*low)?) as u8;
                Some(read + 1)
            });
        if read == Some(KEY_BYTES) && digits.len() == 2 * KEY_BYTES {
            return Ok(Self(key));
        }
        Err(Error::Config {
            name: "remote_key",
            value: format!("{} characters", text.trim().chars().count()),
            remedy: "give 64 hexadecimal digits, as `openssl rand -hex 32` makes them".to_owned(),
        })
    }

    /// Reads it from a file, as [`Self::parse`].
    ///
    /// # Errors
    /// [`Error::Io`] if there is no such file, and those of [`Self::parse`].
    pub fn from_file(path: &Path) -> Result<Self> {
        let reading = || format!("reading the encryption key {}", path.display());
        let text = fs::read(path).map_err(|error| Error::io(reading(), error))?;
        let text = String::from_utf8(text).map_err(|_| {
            Error::io(
                reading(),
                io::Error::new(io::ErrorKind::InvalidData, "not text"),
            )
        })?;
        Self::parse(&text)
    }
}

impl fmt::Debug for EncryptionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EncryptionKey(..)")
    }
}

/// What encrypts the runs of one namespace.
pub(super) struct Cipher {
    aead: Aes256Gcm,
    /// Says which key it is, and nothing of what it is. Never 0.
    id: u64,
}

impl Cipher {
    pub(super) fn new(master: &EncryptionKey, namespace: &BlockKey) -> Result<Self> {
        let derive = Hkdf::<Sha256>::new(Some(b"kvlab remote tier v1"), &master.0);
        let mut key = [0; KEY_BYTES];
        let mut id = [0; 8];
        derive
            .expand_multi_info(&[b"payload", &namespace.0], &mut key)
            .and_then(|()| derive.expand_multi_info(&[b"key id", &namespace.0], &mut id))
            .map_err(|_| Error::invalid("a key of 32 bytes cannot be derived"))?;
        Ok(Self {
            aead: Aes256Gcm::new(&key.into()),
            id: u64::from_le_bytes(id).max(1),
        })
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// Encrypts what stands behind `from`, and puts nonce and tag around it: [`SEALED_BYTES`] more. Room for the nonce was left.
    pub(super) fn seal(
        &self,
        bytes: &mut Vec<u8>,
        from: usize,
        bound: &Bound,
        slice: usize,
    ) -> Result<()> {
        let refuse = || Error::invalid("a slice cannot be encrypted");
        let nonce = Nonce::try_generate()
            .map_err(|error| Error::io("drawing a nonce", io::Error::other(error.to_string())))?;
        let (head, payload) = bytes[from..]
            .split_first_chunk_mut::<NONCE_BYTES>()
            .ok_or_else(refuse)?;
        head.copy_from_slice(&nonce);
        let tag = self
            .aead
            .encrypt_inout_detached(&nonce, &bound.of(slice), payload.into())
            .map_err(|_| refuse())?;
        bytes.extend_from_slice(&tag);
        Ok(())
    }

    /// Leaves room for a nonce.
    pub(super) fn begin(bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(&[0; NONCE_BYTES]);
    }

    /// Decrypts in place; none if this is not what was encrypted for that slice of that run.
    pub(super) fn open<'a>(
        &self,
        sealed: &'a mut [u8],
        bound: &Bound,
        slice: usize,
    ) -> Option<&'a [u8]> {
        let (nonce, rest) = sealed.split_first_chunk_mut::<NONCE_BYTES>()?;
        let (payload, tag) = rest.split_last_chunk_mut::<TAG_BYTES>()?;
        let (nonce, tag): (Nonce<_>, Tag) = ((*nonce).into(), (*tag).into());
        let aead = &self.aead;
        aead.decrypt_inout_detached(&nonce, &bound.of(slice), (&mut *payload).into(), &tag)
            .ok()?;
        Some(payload)
    }
}

/// What a slice is bound to: all that the header says, but for checksums.
pub(super) struct Bound([u8; 32]);

impl Bound {
    pub(super) fn to(record: &Record) -> Self {
        let plain = Record {
            sums: vec![0; record.sums.len()].into(),
            ..record.clone()
        };
        Self(Sha256::digest(plain.encode()).into())
    }

    fn of(&self, slice: usize) -> [u8; 40] {
        let mut out = [0; 40];
        let (run, number) = out.split_at_mut(32);
        run.copy_from_slice(&self.0);
        number.copy_from_slice(&(slice as u64).to_le_bytes());
        out
    }
}
