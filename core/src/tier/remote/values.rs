//! What a server is to this tier: named values that can be read by ranges, and that vanish when they please.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Why a server did not do what it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Failure {
    /// It did not answer in time.
    Timeout,
    /// Nobody listens there, or the connection broke.
    Refused,
    /// It does not know the user or the password, does not allow the command, or one side does not trust the other's certificate.
    Auth,
    /// What it answered is not the protocol.
    Protocol,
    /// Something of another kind stands under a name.
    WrongType,
    /// It has no memory left for values.
    OutOfMemory,
    /// The name lies on another node: this is a cluster.
    Redirect,
    /// Anything else that it said.
    Other,
}

/// What a server did not do, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ValuesError {
    /// The kind of failure.
    pub failure: Failure,
    /// What is known of it, without password.
    pub message: String,
}

impl ValuesError {
    /// An error of a kind.
    pub fn new(failure: Failure, message: impl Into<String>) -> Self {
        Self {
            failure,
            message: message.into(),
        }
    }
}

/// The result of asking a server.
pub type Answer<T> = Result<T, ValuesError>;

/// A part of a value that is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Its name.
    pub name: Vec<u8>,
    /// Which bytes of it.
    pub range: Range<u64>,
}

/// What a server has under a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Got<'a> {
    /// The bytes that were asked for; fewer, if the value is shorter.
    Bytes(&'a [u8]),
    /// Nothing.
    Missing,
    /// Something of another kind.
    WrongType,
}

impl Got<'_> {
    /// How many bytes came.
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Missing | Self::WrongType => 0,
        }
    }
}

/// Memory of a server, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerMemory {
    /// What it uses.
    pub used: u64,
    /// What it may use; 0 for no limit of its own.
    pub limit: u64,
}

/// What each byte of payload may take beside the time-out: a network of 50 MB/s is slow, but not dead.
const NANOS_PER_BYTE: u64 = 20;

/// How long so many bytes of payload may take, beside the time-out.
pub(super) fn time_of(bytes: u64) -> Duration {
    Duration::from_nanos(bytes.saturating_mul(NANOS_PER_BYTE))
}

/// A server of values. Calls come from many threads; each is over `by` the time that it was given. Bytes of an answer put that off
/// by 20 ns each as they come, so that who promises many and sends none is waited for no longer than others.
pub trait Values: Send + Sync + fmt::Debug {
    /// Which server, without password: its name among several.
    fn address(&self) -> &str;

    /// Hands out what it has, in the order of `asked`, each while the next is still under way.
    ///
    /// # Errors
    /// [`ValuesError`]; some may have been handed out before.
    fn get(&self, asked: &[Asked], by: Instant, take: &mut dyn FnMut(usize, Got<'_>))
    -> Answer<()>;

    /// Sets values, in this order, which vanish after `ttl`.
    ///
    /// # Errors
    /// [`ValuesError`]; those before may be set.
    fn put(&self, entries: &[(&[u8], &[u8])], ttl: Duration, by: Instant) -> Answer<()>;

    /// Deletes values; which of them there were.
    ///
    /// # Errors
    /// [`ValuesError`]; some may be deleted.
    fn remove(&self, names: &[Vec<u8>], by: Instant) -> Answer<Vec<bool>>;

    /// Asks for a sign of life.
    ///
    /// # Errors
    /// [`ValuesError`].
    fn ping(&self, by: Instant) -> Answer<()>;

    /// How much memory it has; none if it does not say.
    ///
    /// # Errors
    /// [`ValuesError`].
    fn memory(&self, by: Instant) -> Answer<Option<ServerMemory>>;
}

impl Values for Arc<dyn Values> {
    fn address(&self) -> &str {
        (**self).address()
    }

    fn get(
        &self,
        asked: &[Asked],
        by: Instant,
        take: &mut dyn FnMut(usize, Got<'_>),
    ) -> Answer<()> {
        (**self).get(asked, by, take)
    }

    fn put(&self, entries: &[(&[u8], &[u8])], ttl: Duration, by: Instant) -> Answer<()> {
        (**self).put(entries, ttl, by)
    }

    fn remove(&self, names: &[Vec<u8>], by: Instant) -> Answer<Vec<bool>> {
        (**self).remove(names, by)
    }

    fn ping(&self, by: Instant) -> Answer<()> {
        (**self).ping(by)
    }

    fn memory(&self, by: Instant) -> Answer<Option<ServerMemory>> {
        (**self).memory(by)
    }
}
