//! Settings of a store, each with its default.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::sim::capture::Capture;
use crate::tier::disk::{Files, SystemFiles};
use crate::tier::remote::RemoteConfig;

/// When a run that L1 took in is written to L3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum WritePolicy {
    /// At once, off the caller's path.
    #[default]
    WriteThrough,
    /// When it was used [`StoreConfig::selective_uses`] times, off the caller's path; what never was stays in memory, and is
    /// dropped when L2 gives it up. As SGLang's HiCache.
    WriteThroughSelective,
    /// Only when L1 and then L2 give it up.
    WriteBack,
}

impl WritePolicy {
    /// Parses `write_through`, `write_through_selective` or `write_back`.
    ///
    /// # Errors
    /// [`Error::Config`] that lists the known names.
    pub fn by_name(name: &str) -> Result<Self> {
        match name {
            "write_through" => Ok(Self::WriteThrough),
            "write_through_selective" => Ok(Self::WriteThroughSelective),
            "write_back" => Ok(Self::WriteBack),
            _ => Err(Error::Config {
                name: "write_policy",
                value: name.to_owned(),
                remedy: "use write_through, write_through_selective or write_back".to_owned(),
            }),
        }
    }
}

/// What a request does when a prefetch of its prefix is still under way. The names are SGLang's; there the rest is computed,
/// here the request reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
#[non_exhaustive]
pub enum StopPolicy {
    /// It takes what has arrived, waits for the runs that are being read at that moment, and reads the others itself.
    #[default]
    BestEffort,
    /// It waits for the prefetch, at most [`StoreConfig::prefetch_wait`] and [`StoreConfig::prefetch_wait_per_token`], then
    /// goes on like `best_effort`.
    Timeout,
    /// It waits until the prefetch is done.
    WaitComplete,
}

impl StopPolicy {
    /// Parses `best_effort`, `timeout` or `wait_complete`.
    ///
    /// # Errors
    /// [`Error::Config`] that lists the known names.
    pub fn by_name(name: &str) -> Result<Self> {
        match name {
            "best_effort" => Ok(Self::BestEffort),
            "timeout" => Ok(Self::Timeout),
            "wait_complete" => Ok(Self::WaitComplete),
            _ => Err(Error::Config {
                name: "prefetch_policy",
                value: name.to_owned(),
                remedy: "use best_effort, timeout or wait_complete".to_owned(),
            }),
        }
    }
}

/// Settings of the disk tier.
#[derive(Clone, Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "switches that have nothing to do with each other"
)]
pub struct DiskConfig {
    /// The cache directory; made if missing.
    pub path: PathBuf,
    /// Bytes that segments and index may take. Default: 20 GiB.
    pub capacity: u64,
    /// Bytes of the file system that are left free for others. Default: 1 GiB.
    pub free_reserve: u64,
    /// Size of a segment file in bytes, at least 64 MiB unless tests ask for less. Default: 64 MiB.
    pub segment_bytes: u64,
    /// Bypass the page cache where the file system allows it. Default: true.
    pub direct: bool,
    /// Wait for stable storage before a run is acknowledged. Default: false.
    pub durable: bool,
    /// Eviction policy. Default: `lru`.
    pub policy: String,
    /// Bytes of segments that may be read in a second; none for no limit. Default: none.
    pub read_limit: Option<u64>,
    /// Bytes of segments that may be written in a second; none for no limit. Default: none.
    pub write_limit: Option<u64>,
    /// Who does the file operations. Default: the system.
    pub files: Arc<dyn Files>,
    /// Bytes that the runs of one tenant may take; none for no limit. Default: none.
    pub quota_per_tenant: Option<u64>,
    /// Only read: nothing in the directory is changed, and puts are refused. Default: false.
    pub read_only: bool,
    /// Use a directory that others can put files into: a symbolic link, one that everybody may write, or one of another user.
    /// Default: false.
    pub allow_unsafe_directory: bool,
    /// What records the order of eviction. Default: none; the [`StoreConfig`]'s, in a store.
    pub capture: Option<Capture>,
}

impl DiskConfig {
    /// The defaults for a directory.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            capacity: 20 << 30,
            free_reserve: 1 << 30,
            segment_bytes: 64 << 20,
            direct: true,
            durable: false,
            policy: "lru".to_owned(),
            read_limit: None,
            write_limit: None,
            files: Arc::new(SystemFiles),
            quota_per_tenant: None,
            read_only: false,
            allow_unsafe_directory: false,
            capture: None,
        }
    }
}

/// Settings of a block store: L2 in memory and, if there is one, L3 on disk.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// Bytes of L2; 0 for none. Default: 2 GiB.
    pub l2_bytes: u64,
    /// L3; none for a store that lives in memory only.
    pub disk: Option<DiskConfig>,
    /// L4; none for a store that shares nothing.
    pub remote: Option<RemoteConfig>,
    /// Default: write-through.
    pub write_policy: WritePolicy,
    /// With `write_through_selective`: how often a block was used, the time it was made included, when it is written to L3.
    /// Default: 2.
    pub selective_uses: u32,
    /// Eviction policy of L2. Default: `lru`.
    pub policy: String,
    /// Threads that do the reading. Default: 4. Writes have a thread of their own.
    pub io_workers: usize,
    /// Payload bytes that may wait to be written before further runs are refused. Default: 1 GiB.
    pub write_queue_bytes: u64,
    /// How long a prefetched run waits to be claimed before its pin ends. Default: 30 s.
    pub prefetch_timeout: Duration,
    /// What a plan does that meets a prefetch of its blocks. Default: best effort.
    pub prefetch_policy: StopPolicy,
    /// With `timeout`: how long a plan waits for a prefetch in any case. Default: 1 s, as SGLang.
    pub prefetch_wait: Duration,
    /// With `timeout`: how much longer for each token of the runs that it waits for. Default: 0.25 s for 1,024 tokens, as
    /// SGLang.
    pub prefetch_wait_per_token: Duration,
    /// What records the requests and the orders of eviction of all tiers; the store ends it when it closes. Default: none.
    pub capture: Option<Capture>,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            l2_bytes: 2 << 30,
            disk: None,
            remote: None,
            write_policy: WritePolicy::default(),
            selective_uses: 2,
            policy: "lru".to_owned(),
            io_workers: 4,
            write_queue_bytes: 1 << 30,
            prefetch_timeout: Duration::from_secs(30),
            prefetch_policy: StopPolicy::default(),
            prefetch_wait: Duration::from_secs(1),
            prefetch_wait_per_token: Duration::from_micros(244),
            capture: None,
        }
    }
}

/// Reads a human size: `"512MiB"`, `"2 GiB"`, `"1.5GB"`, `"4096"`. KiB, MiB, GiB, TiB are powers of 1024, KB, MB, GB, TB of 1000.
///
/// # Errors
/// [`Error::InvalidArgument`] naming what was given and what is understood.
pub fn parse_size(text: &str) -> Result<u64> {
    let trimmed = text.trim();
    let split = trimmed
        .find(|c: char| !(c.is_ascii_digit() || c == '.'))
        .unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(split);
    let factor = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1_u64,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return Err(unreadable(text)),
    };
    let value = number.parse::<f64>().map_err(|_| unreadable(text))? * factor as f64;
    if !value.is_finite() || value >= 2_f64.powi(63) {
        return Err(unreadable(text));
    }
    Ok(value.round() as u64)
}

/// Reads a human duration in whole seconds: `"90"`, `"90s"`, `"15 min"`, `"12h"`, `"7d"`, `"2w"`, `"1.5h"`.
///
/// # Errors
/// [`Error::InvalidArgument`] naming what was given and what is understood: 1 second to some 136 years.
pub fn parse_seconds(text: &str) -> Result<u32> {
    let refuse = || {
        Error::invalid(format!(
            "{text:?} is not a time to live; write seconds or a number with s, min, h, d or w, from 1 s to {} s",
            u32::MAX
        ))
    };
    let trimmed = text.trim();
    let split = trimmed
        .find(|c: char| !(c.is_ascii_digit() || c == '.'))
        .unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(split);
    let factor = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        "d" => 86_400.0,
        "w" => 604_800.0,
        _ => return Err(refuse()),
    };
    let seconds = (number.parse::<f64>().map_err(|_| refuse())? * factor).round();
    if !(1.0..=f64::from(u32::MAX)).contains(&seconds) {
        return Err(refuse());
    }
    Ok(seconds as u32)
}

fn unreadable(text: &str) -> Error {
    Error::invalid(format!(
        "{text:?} is not a size; write bytes or a number with KiB, MiB, GiB, TiB (or KB, MB, GB, TB)"
    ))
}

#[cfg(test)]
mod tests {
    use super::{parse_seconds, parse_size};

    #[test]
    fn sizes_are_read() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("512MiB", 512 << 20),
            ("2 GiB", 2 << 30),
            ("1.5GB", 1_500_000_000),
        ] {
            assert_eq!(parse_size(text).ok(), Some(bytes), "{text}");
        }
    }

    #[test]
    fn durations_are_read() {
        for (text, seconds) in [
            ("1", 1),
            ("90s", 90),
            ("15 min", 900),
            ("1.5h", 5400),
            ("7d", 604_800),
            (" 2 W ", 1_209_600),
            ("4294967295", u32::MAX),
        ] {
            assert_eq!(parse_seconds(text).ok(), Some(seconds), "{text}");
        }
        for text in [
            "",
            "0",
            "0.2s",
            "-1",
            "d",
            "7 days and more",
            "1e9",
            "4294967296",
            "9999w",
        ] {
            let refused = parse_seconds(text).expect_err(text).to_string();
            assert!(refused.contains(&format!("{text:?}")), "{refused}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            "GiB",
            "-1",
            "1e3",
            "12 parsecs",
            "1.2.3MiB",
            "99999999999TiB",
        ] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }
}
