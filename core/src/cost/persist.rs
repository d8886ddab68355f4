//! The costs on disk: one small text file beside the store, replaced as a whole.
//!
//! ```text
//! kvlab-costs 1 <XXH3 of all that follows, 16 hex digits>
//! read <setting, 16 hex digits> <tier> <bytes> <seconds>
//! prefill <setting> <model, 64 hex digits> <tokens> <context> <seconds>
//! overlap <setting> <share>
//! ```
//!
//! One observation a line, oldest first. The setting is a digest of what else the time depends on: the machine and, for reads,
//! how the disk is used, or which server is read. Lines of another setting are left out.

use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::str::{FromStr, SplitAsciiWhitespace};

use super::Book;
use crate::key::BlockKey;
use crate::memory::Checksum;
use crate::tier::TierId;

const MAGIC: &str = "kvlab-costs 1";
/// Larger than what `Book` can remember; a larger file is not one of ours.
const MAX_BYTES: u64 = 4 << 20;

/// Where a book is kept.
#[derive(Debug)]
pub(super) struct CostFile {
    path: PathBuf,
    /// What forwards depend on.
    machine: u64,
    /// What reads depend on.
    disk: u64,
    /// What reads of L4 depend on.
    server: u64,
}

impl CostFile {
    pub(super) fn new(path: PathBuf, disk: &str, server: &str) -> Self {
        let machine = machine();
        Self {
            path,
            machine: Checksum::of(machine.as_bytes()),
            disk: Checksum::of(format!("{machine}\n{disk}").as_bytes()),
            server: Checksum::of(format!("{machine}\n\n{server}").as_bytes()),
        }
    }

    /// Reads what was saved into an empty book; nothing, with a word in the log, if it cannot be used.
    pub(super) fn load(&self, book: &mut Book) {
        let text = match self.read() {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(error) => {
                let path = self.path.display();
                log::warn!("{path}: the learnt costs cannot be read and are learnt anew: {error}");
                return;
            }
        };
        let Some(lines) = checked(&text) else {
            log::warn!(
                "{}: damaged or of another version; the costs are learnt anew",
                self.path.display()
            );
            return;
        };
        let mut others = 0;
        for line in lines.lines() {
            if self.take(line, book).is_none() {
                others += 1;
            }
        }
        if others > 0 {
            log::info!(
                "{}: {others} observations are of another machine, setting or tier and are left out",
                self.path.display()
            );
        }
        book.changed = false;
    }

    fn read(&self) -> io::Result<String> {
        if fs::metadata(&self.path)?.len() > MAX_BYTES {
            return Err(io::Error::other("it is too large to be ours"));
        }
        fs::read_to_string(&self.path)
    }

    /// Notes one line's observation; none if it is not for this book.
    fn take(&self, line: &str, book: &mut Book) -> Option<()> {
        let mut words = line.split_ascii_whitespace();
        let kind = words.next()?;
        let setting = u64::from_str_radix(words.next()?, 16).ok()?;
        match kind {
            "read" => {
                let tier =
                    tier_by_name(words.next()?).filter(|tier| setting == self.reads(*tier))?;
                book.observe_read(tier, next(&mut words)?, next(&mut words)?);
            }
            "prefill" if setting == self.machine => {
                let model = key(words.next()?)?;
                let (tokens, context) = (next(&mut words)?, next(&mut words)?);
                book.observe_prefill(model, tokens, context, next(&mut words)?);
            }
            "overlap" if setting == self.disk => {
                let share = next(&mut words).filter(|share: &f64| share.is_finite());
                book.observe_overlap(share?);
            }
            _ => return None,
        }
        Some(())
    }

    /// What reads of a tier depend on.
    fn reads(&self, tier: TierId) -> u64 {
        match tier {
            TierId::L4 => self.server,
            TierId::L1 | TierId::L2 | TierId::L3 => self.disk,
        }
    }

    /// What the file is to say.
    pub(super) fn text(&self, book: &Book) -> String {
        let mut lines = String::new();
        for (tier, cost) in &book.reads {
            let setting = self.reads(*tier);
            for seen in cost.history() {
                let ([_, bytes], seconds) = (seen.features, seen.seconds);
                // Writing to a string cannot fail.
                let _ = writeln!(lines, "read {setting:016x} {tier} {bytes} {seconds:e}");
            }
        }
        for (model, cost) in &book.prefills {
            for seen in cost.history() {
                let ([_, tokens, attended], seconds) = (seen.features, seen.seconds);
                // Below zero by what rounding loses, at most.
                let context = (attended / tokens - tokens / 2.0).round() as u64;
                let _ = writeln!(
                    lines,
                    "prefill {:016x} {model} {tokens} {context} {seconds:e}",
                    self.machine
                );
            }
        }
        for share in &book.overlaps {
            let _ = writeln!(lines, "overlap {:016x} {share:e}", self.disk);
        }
        format!("{MAGIC} {:016x}\n{lines}", Checksum::of(lines.as_bytes()))
    }

    /// Replaces the file.
    pub(super) fn write(&self, text: &str) -> io::Result<()> {
        let draft = self.path.with_extension("new");
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&draft)?;
        file.write_all(text.as_bytes())?;
        // Its name must not come to stand before its bytes.
        file.sync_data()?;
        fs::rename(&draft, &self.path)
    }
}

/// Entry point of the fuzz target: lines of a sealed file, with `@` in place of a setting that is this one's.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn fuzz_costs(input: &[u8]) {
    use super::Estimator;

    let file = CostFile {
        path: PathBuf::new(),
        machine: 1,
        disk: 1,
        server: 1,
    };
    let lines = String::from_utf8_lossy(input).replace('@', "1");
    let mut book = Book::default();
    for line in lines.lines() {
        file.take(line, &mut book);
    }
    let text = file.text(&book);
    assert!(text.len() as u64 <= MAX_BYTES);
    assert!((0.0..=1.0).contains(&book.overlap()), "{}", book.overlap());
    let saved = checked(&text);
    assert!(saved.is_some());
    let mut again = Book::default();
    for line in saved.into_iter().flat_map(str::lines) {
        assert!(file.take(line, &mut again).is_some(), "{line}");
    }
    let reads = |book: &Book| -> usize { book.reads.values().map(Estimator::observations).sum() };
    assert_eq!(reads(&again), reads(&book));
    assert_eq!(again.overlaps, book.overlaps);
}

/// The lines behind a header that fits them.
fn checked(text: &str) -> Option<&str> {
    let (header, lines) = text.split_once('\n')?;
    let sum = header.strip_prefix(MAGIC)?.trim();
    let sum = u64::from_str_radix(sum, 16).ok()?;
    (sum == Checksum::of(lines.as_bytes())).then_some(lines)
}

fn next<T: FromStr>(words: &mut SplitAsciiWhitespace<'_>) -> Option<T> {
    words.next()?.parse().ok()
}

fn tier_by_name(name: &str) -> Option<TierId> {
    [TierId::L1, TierId::L2, TierId::L3, TierId::L4]
        .into_iter()
        .find(|tier| tier.to_string() == name)
}

fn key(hex: &str) -> Option<BlockKey> {
    let mut key = BlockKey::default();
    if hex.len() != 2 * key.0.len() || !hex.is_ascii() {
        return None;
    }
    for (index, byte) in key.0.iter_mut().enumerate() {
        *byte = u8::from_str_radix(hex.get(2 * index..2 * index + 2)?, 16).ok()?;
    }
    Some(key)
}

/// What tells this machine's speed from another's: its processor's model and how many of them there are.
fn machine() -> String {
    let count = std::thread::available_parallelism().map_or(0, usize::from);
    let info = fs::read_to_string(Path::new("/proc/cpuinfo")).unwrap_or_default();
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .unwrap_or_default();
    format!("{}\n{model}\n{count}", std::env::consts::ARCH)
}
