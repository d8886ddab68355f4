//! The store's directory: who may use it, and whether it is one of ours.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::platform;
use super::record::{FORMAT_VERSION, OLDEST_VERSION, is_readable};
use crate::error::{Error, Result};
use crate::memory::Checksum;

const LOCK_FILE: &str = "LOCK";
const FORMAT_FILE: &str = "FORMAT";
const FORMAT_DRAFT: &str = "FORMAT.new";
const FORMAT_MAGIC: &str = "kvlab-l3";

/// A directory that this process alone uses, until dropped.
#[derive(Debug)]
pub(super) struct StoreDirectory {
    /// Where it is.
    pub(super) path: PathBuf,
    /// The store's id, drawn when it was made.
    pub(super) store: u64,
    /// None where there is no lock file and none can be made.
    _lock: Option<File>,
}

impl StoreDirectory {
    /// Checks the directory and takes its lock together with others that only read. Nothing is written.
    pub(super) fn open_read_only(path: &Path, allow_unsafe: bool) -> Result<Self> {
        check_safe(path, allow_unsafe)?;
        let Some((_, store)) = read_format(path)? else {
            return Err(Error::Format {
                path: path.to_owned(),
                reason: "not a kvlab store: nothing to read; open it without read_only to make one"
                    .to_owned(),
            });
        };
        let lock = match File::open(path.join(LOCK_FILE)) {
            Ok(file) => Some(lock(path, file, true)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(unusable(path, error)),
        };
        Ok(Self {
            path: path.to_owned(),
            store,
            _lock: lock,
        })
    }

    /// Makes or checks the directory and takes its lock. What is not ours stays untouched.
    pub(super) fn open(path: &Path, allow_unsafe: bool) -> Result<Self> {
        check_safe(path, allow_unsafe)?;
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|error| unusable(path, error))?;
        let known = read_format(path)?;
        if known.is_none() {
            refuse_foreign(path)?;
        }
        let lock = take_lock(path)?;
        // Whoever held the lock before may have made the store in between.
        let (version, store) = match read_format(path)? {
            Some(found) => found,
            None => (0, draw_id()),
        };
        // Before anything of this version is written: whatever happens next, only those who know this version look at it.
        if version < FORMAT_VERSION {
            write_format(path, store)?;
        }
        fs::set_permissions(path, fs::Permissions::from_mode(0o700))
            .map_err(|error| unusable(path, error))?;
        Ok(Self {
            path: path.to_owned(),
            store,
            _lock: Some(lock),
        })
    }
}

/// Refuses a directory that others can put files into.
fn check_safe(path: &Path, allow_unsafe: bool) -> Result<()> {
    // Without a slash at the end, which would follow a link.
    let bare = path.components().collect::<PathBuf>();
    let status = match fs::symlink_metadata(&bare) {
        Ok(status) if !allow_unsafe => status,
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(unusable(path, error));
        }
        Ok(_) | Err(_) => return Ok(()),
    };
    let owner = status.uid();
    let reason = if status.is_symlink() {
        "is a symbolic link".to_owned()
    } else if status.mode() & 0o002 != 0 {
        "may be written by everybody".to_owned()
    } else if owner != rustix::process::geteuid().as_raw() {
        format!("belongs to user {owner}")
    } else {
        return Ok(());
    };
    Err(Error::UnsafeDirectory {
        path: path.to_owned(),
        reason,
    })
}

fn unusable(path: &Path, error: io::Error) -> Error {
    Error::io(
        format!(
            "{}: the cache directory cannot be made or written; choose a directory that you own",
            path.display()
        ),
        error,
    )
}

/// The format version and the store's id, if the directory has a format file.
pub(super) fn read_format(path: &Path) -> Result<Option<(u32, u64)>> {
    let file = path.join(FORMAT_FILE);
    let text = match fs::read(&file) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unusable(path, error)),
    };
    let refuse = |reason: String| Error::Format {
        path: file.clone(),
        reason,
    };
    let mut words = text.split_whitespace();
    let (magic, version, store) = (words.next(), words.next(), words.next());
    if magic != Some(FORMAT_MAGIC) {
        return Err(refuse(
            "not a kvlab store; choose another directory".to_owned(),
        ));
    }
    // Another id would make every segment foreign. Stores made before there was a checksum have none.
    let line = words
        .next()
        .and_then(|sum| Some((sum, text.trim_end().strip_suffix(sum)?)));
    let intact = line.is_none_or(|(sum, line)| {
        format!("{:016x}", Checksum::of(line.trim_end().as_bytes())) == sum
    });
    let version = version.and_then(|word| word.parse::<u32>().ok());
    match (
        version,
        store
            .filter(|word| word.len() == 16)
            .and_then(|word| u64::from_str_radix(word, 16).ok()),
    ) {
        (Some(version), Some(store)) if is_readable(version) && intact => {
            Ok(Some((version, store)))
        }
        (Some(version), _) if !is_readable(version) => Err(refuse(format!(
            "format version {version}, this kvlab reads versions {OLDEST_VERSION} to {FORMAT_VERSION}; use the kvlab that \
             wrote it, or another directory"
        ))),
        _ => Err(refuse(
            "the format file is damaged; delete the directory to start anew".to_owned(),
        )),
    }
}

/// The process that has the store open, as the system's table of locks and the lock file tell; none where they do not. Asking by
/// trying the lock would make a store that is opened just then fail.
pub(super) fn holder(path: &Path) -> Option<String> {
    use std::os::unix::fs::MetadataExt;

    let status = fs::metadata(path.join(LOCK_FILE)).ok()?;
    let (device, inode) = (status.dev(), status.ino());
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let file = format!("{major:02x}:{minor:02x}:{inode}");
    let locks = fs::read_to_string("/proc/locks").ok()?;
    let held = locks.lines().any(|line| {
        let mut fields = line.split_whitespace().skip(1);
        fields.next() == Some("FLOCK") && fields.nth(3) == Some(&file)
    });
    let says = fs::read_to_string(path.join(LOCK_FILE)).unwrap_or_default();
    held.then(|| says.trim().to_owned())
}

/// A directory without a format file must be empty.
fn refuse_foreign(path: &Path) -> Result<()> {
    for entry in fs::read_dir(path).map_err(|error| unusable(path, error))? {
        let name = entry.map_err(|error| unusable(path, error))?.file_name();
        if name != LOCK_FILE && name != FORMAT_DRAFT {
            return Err(Error::Format {
                path: path.to_owned(),
                reason: format!(
                    "not a kvlab store: it holds {}; choose an empty directory",
                    name.display()
                ),
            });
        }
    }
    Ok(())
}

fn draw_id() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id())
}

/// Makes or replaces the format file, durably and in one step.
fn write_format(path: &Path, store: u64) -> Result<()> {
    let temporary = path.join(FORMAT_DRAFT);
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        let line = format!("{FORMAT_MAGIC} {FORMAT_VERSION} {store:016x}");
        writeln!(file, "{line} {:016x}", Checksum::of(line.as_bytes()))?;
        file.sync_all()?;
        fs::rename(&temporary, path.join(FORMAT_FILE))?;
        File::open(path)?.sync_all()
    };
    write().map_err(|error| unusable(path, error))
}

/// Takes the lock of an open lock file.
fn lock(path: &Path, mut file: File, shared: bool) -> Result<File> {
    if platform::try_lock(&file, shared).map_err(|error| unusable(path, error))? {
        return Ok(file);
    }
    let mut holder = String::new();
    // A holder that cannot be read is still a holder.
    let _ = file.read_to_string(&mut holder);
    let holder = holder.trim();
    Err(Error::Locked {
        path: path.to_owned(),
        holder: if holder.is_empty() {
            "(unknown)".to_owned()
        } else {
            holder.to_owned()
        },
    })
}

fn take_lock(path: &Path) -> Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path.join(LOCK_FILE))
        .map_err(|error| unusable(path, error))?;
    let mut file = lock(path, file, false)?;
    let program = std::env::current_exe()
        .ok()
        .and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
        .unwrap_or_else(|| "unknown program".to_owned());
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |age| age.as_secs());
    let mut write = || -> io::Result<()> {
        file.set_len(0)?;
        file.rewind()?;
        writeln!(
            file,
            "{} ({program}, since unix time {since})",
            std::process::id()
        )
    };
    write().map_err(|error| unusable(path, error))?;
    Ok(file)
}
