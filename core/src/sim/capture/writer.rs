//! The recording side: a buffer that calls append to, and the thread that writes it.

use std::collections::VecDeque;
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::{Condvar, Mutex};

use super::format;
use super::record::{Claim, Record};
use super::wire::{Name, Wire};
use crate::error::{Error, Result};

/// Bytes that may wait to be written.
pub const BUFFER_LIMIT: usize = 16 << 20;
/// The writer is woken when so many wait.
const WAKE_AT: usize = 64 << 10;
/// It writes what there is at least so often.
const FLUSH_EVERY: Duration = Duration::from_millis(200);
/// Requests that a new one is compared with: it is written down as the continuation of one of them.
const RECENT: usize = 16;

#[derive(Debug, Default)]
struct State {
    buffer: Vec<u8>,
    orders: u64,
    recent: VecDeque<Vec<Name>>,
    /// The last time that was written down.
    seconds: u64,
    closed: bool,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    secret: RandomState,
    start: Instant,
    state: Mutex<State>,
    wake: Condvar,
    /// Its thread is in this process only.
    owner: u32,
}

/// A recording that goes on. Clones record to the same file; it ends with [`finish`](Self::finish), or when the last one is dropped.
#[derive(Clone, Debug)]
pub struct Capture {
    shared: Arc<Shared>,
    thread: Arc<Thread>,
}

#[derive(Debug)]
struct Thread {
    shared: Arc<Shared>,
    handle: Mutex<Option<std::thread::JoinHandle<io::Result<()>>>>,
}

impl Capture {
    /// Begins to record to a new file.
    ///
    /// # Errors
    /// [`Error::Io`] if the file exists or cannot be made.
    pub fn start(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let context = || format!("{}: starting a capture", path.display());
        let unix = SystemTime::now().duration_since(UNIX_EPOCH);
        let unix_ms = unix.map_or(0, |since| since.as_millis() as u64);
        let mut file = File::create_new(&path).map_err(|error| Error::io(context(), error))?;
        file.write_all(&format::header(unix_ms))
            .map_err(|error| Error::io(context(), error))?;
        let shared = Arc::new(Shared {
            secret: RandomState::new(),
            start: Instant::now(),
            state: Mutex::default(),
            wake: Condvar::new(),
            owner: std::process::id(),
            path: path.clone(),
        });
        let writing = Arc::clone(&shared);
        let handle = std::thread::Builder::new()
            .name("kvlab-capture".to_owned())
            .spawn(move || writing.write(file))
            .map_err(|error| Error::io(context(), error))?;
        Ok(Self {
            thread: Arc::new(Thread {
                shared: Arc::clone(&shared),
                handle: Mutex::new(Some(handle)),
            }),
            shared,
        })
    }

    /// Where it is written to.
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// A name as the capture has it.
    pub(crate) fn name(&self, name: u64) -> Name {
        Name(self.shared.secret.hash_one(name))
    }

    /// A tenant as the capture has it; nobody is 0.
    pub(super) fn tenant(&self, tenant: u64) -> Name {
        match tenant {
            0 => Name(0),
            tenant => self.name(tenant),
        }
    }

    /// Begins an order of eviction; its number.
    pub(super) fn order(&self, begins: &Record) -> u64 {
        let mut state = self.shared.state.lock();
        let number = state.orders;
        state.orders += 1;
        self.shared.append(&mut state, begins);
        number
    }

    pub(super) fn append(&self, record: &Record) {
        self.shared.append(&mut self.shared.state.lock(), record);
    }

    pub(super) fn time(&self, seconds: u64) {
        let mut state = self.shared.state.lock();
        if state.seconds != seconds {
            state.seconds = seconds;
            self.shared.append(&mut state, &Record::Time { seconds });
        }
    }

    /// A request for these blocks of so many tokens, named by all before them; called before it uses any.
    pub(crate) fn request(
        &self,
        category: u32,
        block_tokens: usize,
        blocks: Vec<Name>,
        claim: Option<Claim>,
    ) {
        let time_ms = self.shared.start.elapsed().as_millis() as u64;
        let mut state = self.shared.state.lock();
        let recent = state.recent.iter().map(|other| {
            let pairs = other.iter().zip(&blocks);
            pairs.take_while(|(one, other)| one == other).count()
        });
        let best = recent.enumerate().max_by_key(|(_, shared)| *shared);
        let (back, shared) = match best {
            Some((index, shared)) if shared > 0 => (state.recent.len() - index, shared),
            _ => (0, 0),
        };
        self.shared.append(
            &mut state,
            &Record::Request {
                time_ms,
                category,
                block_tokens: block_tokens as u32,
                back: back as u64,
                shared: shared as u64,
                blocks: blocks[shared..].to_vec(),
                claim,
            },
        );
        remember(&mut state.recent, blocks);
    }

    /// Ends the recording and waits until it is written; what happens later is not recorded.
    ///
    /// # Errors
    /// [`Error::Io`] if it could not be written in full.
    pub fn finish(&self) -> Result<()> {
        self.thread.end().map_err(|error| {
            Error::io(
                format!("{}: writing the capture", self.path().display()),
                error,
            )
        })
    }
}

/// Keeps a request for those that go on from it; reader and writer do this alike.
pub(super) fn remember(recent: &mut VecDeque<Vec<Name>>, blocks: Vec<Name>) {
    if recent.len() == RECENT {
        recent.pop_front();
    }
    recent.push_back(blocks);
}

impl Shared {
    fn append(&self, state: &mut State, record: &Record) {
        if state.closed {
            return;
        }
        record.write(&mut state.buffer);
        if state.buffer.len() > BUFFER_LIMIT {
            (Record::Overrun {}).write(&mut state.buffer);
            state.closed = true;
        }
        if state.buffer.len() >= WAKE_AT {
            self.wake.notify_one();
        }
    }

    /// The thread.
    fn write(&self, mut file: File) -> io::Result<()> {
        loop {
            let (records, closed) = {
                let mut state = self.state.lock();
                if state.buffer.len() < WAKE_AT && !state.closed {
                    self.wake.wait_for(&mut state, FLUSH_EVERY);
                }
                (std::mem::take(&mut state.buffer), state.closed)
            };
            if !records.is_empty()
                && let Err(error) = file.write_all(&format::frame(&records))
            {
                self.state.lock().closed = true;
                log::warn!("{}: the capture ends here: {error}", self.path.display());
                return Err(error);
            }
            if closed {
                if records.len() > BUFFER_LIMIT {
                    let path = self.path.display();
                    log::warn!("{path}: the capture ends here: the disk fell behind");
                }
                return Ok(());
            }
        }
    }
}

impl Thread {
    fn end(&self) -> io::Result<()> {
        // A forked child has no such thread, and the file is its parent's.
        if std::process::id() != self.shared.owner {
            return Ok(());
        }
        self.shared.state.lock().closed = true;
        self.shared.wake.notify_one();
        let handle = self.handle.lock().take();
        let joined = handle.map_or(Ok(Ok(())), std::thread::JoinHandle::join);
        joined.unwrap_or_else(|_| Err(io::Error::other("its thread panicked")))
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            let path = self.shared.path.display();
            log::warn!("{path}: the capture is not complete: {error}");
        }
    }
}
