//! The one error type of the crate.

use std::io;
use std::path::PathBuf;

/// What can go wrong. Messages are lower case and name the offending value and the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument that can never be right: wrong size, empty, out of range.
    #[error("{0}")]
    InvalidArgument(String),
    /// A configuration value that cannot be used.
    #[error("{name} = {value}: {remedy}")]
    Config {
        /// The setting.
        name: &'static str,
        /// The value that was given.
        value: String,
        /// What to do instead.
        remedy: String,
    },
    /// The pool has fewer free blocks than were asked for; nothing was changed.
    #[error(
        "{requested} blocks were asked for, {free} are free; free sequences, evict, or make the pool larger"
    )]
    OutOfBlocks {
        /// Blocks that were asked for.
        requested: usize,
        /// Blocks that were free.
        free: usize,
    },
    /// Memory of a fixed budget has run out.
    #[error("{what}: {requested} bytes were asked for, {available} of {budget} are left; {remedy}")]
    OutOfMemory {
        /// Which budget.
        what: &'static str,
        /// Bytes asked for.
        requested: u64,
        /// Bytes left.
        available: u64,
        /// Bytes configured.
        budget: u64,
        /// What to do about it.
        remedy: &'static str,
    },
    /// A sequence id that is not live: never given out, or freed already.
    #[error("sequence {0} is unknown: it was freed or never allocated")]
    UnknownSequence(u64),
    /// A block id that is not allocated.
    #[error("block {0} is not allocated: it was freed or never handed out")]
    UnknownBlock(u32),
    /// A lock handle that does not hold a lock (unlocked twice).
    #[error("the match is not locked: it was unlocked or closed already")]
    NotLocked,
    /// The store was closed.
    #[error("the store is closed; open it again")]
    Closed,
    /// A forked child used a store that its parent opened.
    #[error(
        "the store was opened by process {owner} and cannot be used in its forked child {child}; open it in the child"
    )]
    Forked {
        /// The process that opened it.
        owner: u32,
        /// The process that used it.
        child: u32,
    },
    /// Another process holds the cache directory.
    #[error("{path} is in use by process {holder}; close it there or choose another directory", path = path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
        /// What the lock file says of the holder.
        holder: String,
    },
    /// A directory that is not a kvlab store, or one of a format this version does not read.
    #[error("{path}: {reason}", path = path.display())]
    Format {
        /// The directory or file.
        path: PathBuf,
        /// What was found and what to do.
        reason: String,
    },
    /// A change to a store that was opened only to be read.
    #[error("{path} was opened with read_only; open it without to change it", path = .0.display())]
    ReadOnly(PathBuf),
    /// A directory that others can put files into.
    #[error(
        "{path} {reason}, so others could put files into it; choose a directory of your own, or open it with allow_unsafe_directory",
        path = path.display()
    )]
    UnsafeDirectory {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// An operating-system error that the caller must know of (open, create, lock).
    #[error("{context}: {source}")]
    Io {
        /// What was being done, with the path.
        context: String,
        /// The error.
        #[source]
        source: io::Error,
    },
    /// A server that holds a shared tier did not do what it was asked.
    #[error("{address}: {reason}")]
    Remote {
        /// Which server, without password.
        address: String,
        /// What it answered or did not, and what to do.
        reason: String,
    },
    /// A wait that ended before what it waited for.
    #[error("{what} did not finish within {seconds} s")]
    Timeout {
        /// What was waited for.
        what: &'static str,
        /// The limit.
        seconds: f64,
    },
}

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An I/O error with what was being done.
    pub fn io(context: impl Into<String>, source: io::Error) -> Self {
        Self::Io {
            context: context.into(),
            source,
        }
    }

    /// An argument error.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::InvalidArgument(message.into())
    }
}
