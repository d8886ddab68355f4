//! Real servers for tests, each on a free port of its own and in a directory that goes away with it.
#![allow(dead_code, reason = "each test file uses its own part")]
#![allow(clippy::expect_used, reason = "a helper of tests")]

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use kvlab_core::clock::Clock;
use kvlab_core::key::BlockKey;
use kvlab_core::run::RunHeader;
use kvlab_core::tier::remote::{RemoteConfig, RemoteStats, RemoteTier};
use kvlab_core::tier::{PinnedRun, Put, ReadFailure, SharedTier};
use tempfile::TempDir;

use crate::disk_support::{Shape, check, source};

/// How long anything may take before a test fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A `redis-server`, killed when dropped.
pub(crate) struct RedisServer {
    pub(crate) port: u16,
    options: Vec<String>,
    child: Child,
    directory: TempDir,
}

/// A port that nobody listens on now.
pub(crate) fn free_port() -> u16 {
    // A cluster's bus takes the port 10,000 above.
    loop {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        if port < 50_000 && TcpListener::bind(("127.0.0.1", port + 10_000)).is_ok() {
            return port;
        }
    }
}

fn spawn(port: u16, options: &[String], directory: &TempDir) -> Child {
    let started = Command::new("redis-server")
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
        .args(["--save", "", "--appendonly", "no", "--daemonize", "no"])
        .arg("--dir")
        .arg(directory.path())
        .args(options)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    match started {
        Err(error) if error.kind() == ErrorKind::NotFound => panic!(
            "these tests need redis-server in PATH: apt-get install redis-server, or any Redis or Valkey 7 or later"
        ),
        started => started.expect("redis-server starts"),
    }
}

impl RedisServer {
    pub(crate) fn start(options: &[&str]) -> Self {
        Self::start_at(free_port(), options)
    }

    pub(crate) fn start_at(port: u16, options: &[&str]) -> Self {
        let options = options.iter().map(ToString::to_string).collect::<Vec<_>>();
        let directory = tempfile::tempdir().expect("a directory");
        let child = spawn(port, &options, &directory);
        let server = Self {
            port,
            options,
            child,
            directory,
        };
        server.await_answer();
        server
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ends");
    }

    /// Starts it again, empty, on the same port.
    pub(crate) fn restart(&mut self) {
        self.child = spawn(self.port, &self.options, &self.directory);
        self.await_answer();
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill")
            .args([name, &self.child.id().to_string()])
            .status();
        assert!(sent.expect("kill runs").success());
    }

    /// Lets it hang: connections are accepted by the system, and nothing is answered.
    pub(crate) fn hang(&self) {
        self.signal("-STOP");
    }

    pub(crate) fn go_on(&self) {
        self.signal("-CONT");
    }

    fn await_answer(&self) {
        eventually("the server answers", || {
            self.try_command(&["PING"]).is_some()
        });
    }

    fn try_command(&self, words: &[&str]) -> Option<Vec<u8>> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        let words = words
            .iter()
            .map(|word| word.as_bytes())
            .chain([&b"QUIT"[..]; 0]);
        let words = words.collect::<Vec<_>>();
        stream.write_all(&packed(&words)).ok()?;
        stream.write_all(&packed(&[b"QUIT"])).ok()?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).ok()?;
        (!answer.is_empty()).then_some(answer)
    }

    /// Sends a command; what it answered, as it came, and then `+OK`.
    pub(crate) fn command(&self, words: &[&[u8]]) -> Vec<u8> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        stream.write_all(&packed(words)).expect("sent");
        stream.write_all(&packed(&[b"QUIT"])).expect("sent");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("answered");
        answer
    }

    /// The names of all values.
    pub(crate) fn names(&self) -> Vec<String> {
        let answer = String::from_utf8(self.command(&[b"KEYS", b"*"])).expect("text");
        let mut names = answer
            .lines()
            .filter(|line| line.starts_with("kvlab"))
            .map(str::to_owned)
            .collect::<Vec<_>>();
        names.sort_unstable();
        names
    }

    /// Names of runs, or of entries.
    pub(crate) fn names_of(&self, kind: char) -> Vec<String> {
        let start = format!("kvlab:{kind}:");
        let names = self.names().into_iter();
        names.filter(|name| name.starts_with(&start)).collect()
    }

    /// A value; none if there is nothing under the name, or something else than bytes.
    pub(crate) fn value(&self, name: &str) -> Option<Vec<u8>> {
        let answer = self.command(&[b"GET", name.as_bytes()]);
        if !answer.starts_with(b"$") || answer.starts_with(b"$-1") {
            return None;
        }
        let start = answer.iter().position(|byte| *byte == b'\n')? + 1;
        let end = answer.len() - b"\r\n+OK\r\n".len();
        Some(answer[start..end].to_vec())
    }

    pub(crate) fn get(&self, name: &str) -> Vec<u8> {
        self.value(name).expect("a value")
    }

    pub(crate) fn set(&self, name: &str, value: &[u8]) {
        let answer = self.command(&[b"SET", name.as_bytes(), value]);
        assert!(
            answer.starts_with(b"+OK"),
            "{}",
            String::from_utf8_lossy(&answer)
        );
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        // It may have been killed by the test.
        if self.child.kill().is_ok() {
            self.child.wait().expect("it ends");
        }
    }
}

/// A command as it is sent.
pub(crate) fn packed(words: &[&[u8]]) -> Vec<u8> {
    let mut out = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        out.extend(format!("${}\r\n", word.len()).into_bytes());
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
    out
}

/// A server that answers each piece of bytes that it gets with what `answer` makes of it; on a port of its own.
pub(crate) fn strange_server(answer: impl Fn(&[u8]) -> Vec<u8> + Send + Sync + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("an address").port();
    let answer = Arc::new(answer);
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let answer = Arc::clone(&answer);
            thread::spawn(move || {
                let mut bytes = vec![0; 1 << 16];
                while let Ok(count @ 1..) = stream.read(&mut bytes) {
                    if stream.write_all(&answer(&bytes[..count])).is_err() {
                        break;
                    }
                }
            });
        }
    });
    port
}

/// Settings for tests: patient, since the machine may be busy.
pub(crate) fn remote(urls: &[String]) -> RemoteConfig {
    RemoteConfig {
        urls: urls.to_vec(),
        timeout: Duration::from_secs(5),
        ..RemoteConfig::new("")
    }
}

pub(crate) fn tier(config: &RemoteConfig) -> RemoteTier {
    RemoteTier::open(config, Clock::default()).expect("the tier opens")
}

/// Shares runs and waits until they are written or given up.
pub(crate) fn share(tier: &RemoteTier, headers: &[RunHeader]) -> Vec<Put> {
    let puts = headers.iter().map(|header| {
        let put = tier.share(header.clone(), source(header));
        put.expect("a valid header")
    });
    let puts = puts.collect();
    assert!(tier.flush(PATIENCE), "written in time");
    puts
}

/// Finds one block.
pub(crate) fn find(tier: &RemoteTier, key: &BlockKey) -> Option<(Arc<dyn PinnedRun>, usize)> {
    tier.find(&[*key]).pop().flatten()
}

/// Looks blocks up and checks every byte of the runs that are found; how many blocks were, and how many runs could not be read.
pub(crate) fn read_back(
    tier: &RemoteTier,
    keys: &[BlockKey],
    shape: Shape,
) -> (usize, Vec<ReadFailure>) {
    let found = tier.find(keys);
    assert_eq!(found.len(), keys.len());
    let mut failures = Vec::new();
    let mut read: Vec<Arc<dyn PinnedRun>> = Vec::new();
    let mut count = 0;
    for (key, found) in keys.iter().zip(found) {
        let Some((run, position)) = found else {
            continue;
        };
        assert_eq!(&run.header().keys[position], key);
        count += 1;
        if !read.iter().any(|other| Arc::ptr_eq(other, &run)) {
            failures.extend(check(&*run, shape).err());
            read.push(run);
        }
    }
    (count, failures)
}

/// All errors of servers.
pub(crate) fn errors(stats: &RemoteStats) -> u64 {
    let errors = stats.errors;
    errors.timeouts
        + errors.refused
        + errors.auth
        + errors.protocol
        + errors.wrong_type
        + errors.out_of_memory
        + errors.redirects
        + errors.other
}

/// Waits for something that is to come true.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(
            start.elapsed() < PATIENCE,
            "{what}: not within {PATIENCE:?}"
        );
        thread::sleep(Duration::from_millis(10));
    }
}
