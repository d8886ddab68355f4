//! L4 against the server itself: 47 MB of KV (2,048 tokens of SmolLM2-135M in bf16) read from the remote tier into a cache buffer, and
//! as many bytes of the same server read raw: pipelined commands over as many connections, answers straight into touched memory. All
//! arms take turns; a figure is the median of the rounds, and a ratio compares a read with the raw read over as many connections in
//! its own round. Starts a `redis-server` on a free port.
//! `cargo bench --bench remote_read -- [--rounds N] [--full] [--json]`; `--full` tries more connections and job sizes.
#![expect(clippy::print_stdout, reason = "it prints a table")]

mod support;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use kvlab_core::buffer::{BufferPool, CacheBuffer};
use kvlab_core::clock::Clock;
use kvlab_core::layout::Layout;
use kvlab_core::run::RunTarget;
use kvlab_core::tier::remote::{RemoteConfig, RemoteTier};
use kvlab_core::tier::{PinnedRun, SharedTier};
use support::{Arguments, Arms, LAYERS, Prompt, Result, fill, in_parallel, target};

/// Bytes of a raw value, as of a group of slices.
const RAW_VALUE: usize = 3 << 19;
const PATIENCE: Duration = Duration::from_secs(30);

struct Server {
    child: Child,
    port: u16,
    _directory: tempfile::TempDir,
}

impl Server {
    fn start() -> Result<Self> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let directory = tempfile::tempdir()?;
        let child = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--appendonly", "no", "--dir"])
            .arg(directory.path())
            .stdout(Stdio::null())
            .spawn()
            .map_err(|error| format!("redis-server does not start: {error}"))?;
        let server = Self {
            child,
            port,
            _directory: directory,
        };
        let start = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if start.elapsed() > PATIENCE {
                return Err("redis-server does not listen".into());
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }

    fn connect(&self) -> std::io::Result<TcpStream> {
        let stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.child.kill().is_ok() {
            let _ended = self.child.wait();
        }
    }
}

/// Runs in the tier, and where they go.
struct Restore {
    runs: Vec<(Arc<dyn PinnedRun>, RunTarget)>,
    bytes: u64,
}

fn main() -> Result<()> {
    let arguments = Arguments::read(15)?;
    let server = Server::start()?;
    let layout = support::layout_of(2)?;
    let buffer = BufferPool::new(1 << 30).lease(&layout, support::TOKENS)?;
    fill(buffer.region());
    let config = RemoteConfig {
        timeout: PATIENCE,
        ..RemoteConfig::new(format!("redis://127.0.0.1:{}", server.port))
    };
    let tier = RemoteTier::open(&config, Clock::default())?;
    let restore = Restore::new(&tier, &layout, &buffer)?;
    let (threads, jobs): (&[usize], &[usize]) = if arguments.full {
        (&[1, 2, 4], &[1, 3, 10, LAYERS])
    } else {
        (&[1, 2, 4], &[3, LAYERS])
    };
    let raw = Raw::new(&server, restore.bytes as usize, 4)?;
    let (mut speeds, mut ratios) = (Arms::default(), Arms::default());
    for round in 0..=arguments.rounds {
        let measure = |work: &dyn Fn() -> Result<()>| -> Result<f64> {
            let start = Instant::now();
            work()?;
            Ok(restore.bytes as f64 / start.elapsed().as_secs_f64() / 1e9)
        };
        for &threads in threads {
            let whole = measure(&|| raw.read(threads, false))?;
            let ranges = measure(&|| raw.read(threads, true))?;
            let tiers = jobs.iter().map(|&slices| {
                let speed = measure(&|| restore.read(threads, slices))?;
                Ok((slices, speed))
            });
            let tiers = tiers.collect::<Result<Vec<_>>>()?;
            // The first round warms up.
            if round == 0 {
                continue;
            }
            speeds.add(format!("raw GET, {threads} connections"), whole);
            speeds.add(format!("raw GETRANGE, {threads} connections"), ranges);
            for (slices, speed) in tiers {
                let name = format!("tier, {threads} connections, {slices:2} slices a job");
                ratios.add(&*name, whole / speed);
                speeds.add(name, speed);
            }
        }
    }
    let title = format!(
        "{:.1} MB in {} runs of {LAYERS} slices over loopback",
        restore.bytes as f64 / 1e6,
        restore.runs.len(),
    );
    println!("{}", speeds.show(&title, "GB/s", arguments.json));
    let title = "The raw GETs of the round over as many connections are 1";
    println!("{}", ratios.show(title, "times as long", arguments.json));
    Ok(())
}

impl Restore {
    /// Writes the buffer's tokens as runs, and plans how they come back to where they were.
    fn new(tier: &RemoteTier, layout: &Layout, buffer: &CacheBuffer) -> Result<Self> {
        let prompt = Prompt::new(layout, buffer, 0);
        for (header, pieces) in &prompt.runs {
            tier.share(header.clone(), support::source(buffer.region(), pieces))?;
        }
        if !tier.flush(PATIENCE) || tier.stats().writes != prompt.runs.len() as u64 {
            return Err(format!("the server did not take the runs: {:?}", tier.stats()).into());
        }
        let mut found = tier.find(&prompt.keys);
        let mut runs = Vec::new();
        let mut at = 0;
        for (header, pieces) in &prompt.runs {
            let (pinned, _) = found[at].take().ok_or("a run is not found")?;
            at += header.keys.len();
            runs.push((pinned, target(buffer.region(), pieces)));
        }
        Ok(Self {
            runs,
            bytes: prompt.bytes(),
        })
    }

    /// Reads everything with so many threads, each taking so many slices of a run at a time.
    fn read(&self, threads: usize, slices: usize) -> Result<()> {
        let jobs = (0..LAYERS)
            .step_by(slices)
            .flat_map(|first| self.runs.iter().map(move |run| (first, run)))
            .collect::<Vec<_>>();
        in_parallel(threads, jobs.len(), |index| {
            let (first, (pinned, target)) = &jobs[index];
            let range = *first..(first + slices).min(LAYERS);
            let read = pinned.read_slices(range, target);
            read.map_err(|failure| std::io::Error::other(format!("{failure:?}")))
        })
    }
}

/// As many bytes as plain values, and connections with memory of their own to read them over.
struct Raw {
    values: usize,
    connections: Vec<Mutex<(TcpStream, Vec<u8>)>>,
}

impl Raw {
    fn new(server: &Server, bytes: usize, connections: usize) -> Result<Self> {
        let values = bytes.div_ceil(RAW_VALUE);
        let noise = vec![0x5a; RAW_VALUE];
        let mut stream = server.connect()?;
        for value in 0..values {
            let len = RAW_VALUE.min(bytes - value * RAW_VALUE);
            let name = format!("raw:{value}");
            write!(
                stream,
                "*3\r\n$3\r\nSET\r\n${}\r\n{name}\r\n${len}\r\n",
                name.len()
            )?;
            stream.write_all(&noise[..len])?;
            stream.write_all(b"\r\n")?;
            stream.read_exact(&mut [0; 5])?;
        }
        let connections = (0..connections).map(|_| {
            // All answers, their lengths included; touched.
            let memory = vec![1; bytes + values * 32];
            Ok(Mutex::new((server.connect()?, memory)))
        });
        Ok(Self {
            values,
            connections: connections.collect::<Result<_>>()?,
        })
    }

    /// Asks for everything over so many connections, each for its part at once.
    fn read(&self, connections: usize, ranges: bool) -> Result<()> {
        let part = self.values.div_ceil(connections);
        in_parallel(connections, connections, |index| {
            let connection = self.connections[index].lock();
            let (stream, memory) = &mut *connection.unwrap_or_else(PoisonError::into_inner);
            let values = index * part..((index + 1) * part).min(self.values);
            Self::get(stream, memory, values, ranges)
        })
    }

    fn get(
        stream: &mut TcpStream,
        memory: &mut [u8],
        values: Range<usize>,
        ranges: bool,
    ) -> std::io::Result<()> {
        let mut commands = Vec::new();
        for value in values.clone() {
            let name = format!("raw:{value}");
            if ranges {
                let last = (RAW_VALUE - 1).to_string();
                let command = format!(
                    "*4\r\n$8\r\nGETRANGE\r\n${}\r\n{name}\r\n$1\r\n0\r\n${}\r\n{last}\r\n",
                    name.len(),
                    last.len()
                );
                commands.extend(command.into_bytes());
            } else {
                commands.extend(
                    format!("*2\r\n$3\r\nGET\r\n${}\r\n{name}\r\n", name.len()).into_bytes(),
                );
            }
        }
        stream.write_all(&commands)?;
        let mut filled = 0;
        let mut at = 0;
        for _ in values {
            let line = loop {
                let seen = &memory[at..filled];
                if let Some(end) = seen.iter().take(32).position(|byte| *byte == b'\n') {
                    break end;
                }
                filled += stream.read(&mut memory[filled..])?;
            };
            let digits = String::from_utf8_lossy(&memory[at + 1..at + line - 1]).into_owned();
            let len: usize = digits.parse().map_err(std::io::Error::other)?;
            at += line + 1 + len + 2;
            while filled < at {
                match stream.read(&mut memory[filled..])? {
                    0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                    count => filled += count,
                }
            }
        }
        Ok(())
    }
}
