//! Redis and Valkey as servers of values. To single servers the connections are our own: commands are sent at once, and each value is
//! handed out where it was read to. Clusters, and the reading of URLs, are the crate's.

mod cluster;
mod connection;
mod failure;
mod protocol;
mod stream;
mod tls;
mod url;

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use redis::ConnectionAddr;

use self::cluster::Cluster;
use self::connection::Single;
use self::failure::{failed, said};
use self::protocol::{Command, Reply};
use self::tls::Tls;
use super::config::RemoteConfig;
use super::values::{Answer, Asked, Failure, Got, ServerMemory, Values, ValuesError};
use crate::error::{Error, Result};

/// The longest text that INFO answers.
const LONGEST_INFO: usize = 64 << 10;

/// What becomes of each answer, in the order of the commands.
type Take<'a> = dyn FnMut(usize, Reply<'_>) -> Answer<()> + 'a;

/// What connections lead to.
trait Target: Send + Sync {
    fn connect(&self, by: Instant) -> Answer<Box<dyn Link>>;
}

/// A connection, which is of no use any more after an error.
trait Link: Send {
    /// Sends commands and hands out their answers.
    fn talk(&mut self, commands: &[Command<'_>], by: Instant, take: &mut Take<'_>) -> Answer<()>;
}

/// A server, or a cluster, and the connections to it that nobody uses.
pub struct RedisValues {
    address: String,
    target: Box<dyn Target>,
    idle: Mutex<Vec<Box<dyn Link>>>,
    /// How many are kept.
    connections: usize,
    /// A name that nothing has, of those that this tier may read.
    nothing: Vec<u8>,
}

impl fmt::Debug for RedisValues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisValues")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl RedisValues {
    /// The servers that a configuration names, or its cluster. Connects to none of them.
    ///
    /// # Errors
    /// [`Error::Config`] for a URL or a file for TLS that cannot be used, or two URLs of the same server.
    pub fn all(config: &RemoteConfig) -> Result<Vec<Self>> {
        let infos = config.urls.iter().map(|url| url::parse(url));
        let infos = infos.collect::<Result<Vec<_>>>()?;
        let mut addresses = infos.iter().map(url::address).collect::<Vec<_>>();
        let of = |address: String, target| Self {
            address,
            target,
            idle: Mutex::default(),
            connections: config.connections,
            nothing: format!("{}:ping", config.prefix).into_bytes(),
        };
        let secret = |addr: &ConnectionAddr| matches!(addr, ConnectionAddr::TcpTls { .. });
        let tls = if infos.iter().any(|info| secret(info.addr())) {
            Some(Tls::of(config)?)
        } else {
            config.refuse_files_for_tls()?;
            None
        };
        if config.cluster {
            let address = addresses.join(",");
            let cluster = Cluster::new(config, infos, tls).map_err(|error| Error::Config {
                name: "remote",
                value: address.clone(),
                remedy: error.to_string(),
            })?;
            return Ok(vec![of(address, Box::new(cluster))]);
        }
        let servers = infos.into_iter().zip(&addresses).map(|(info, address)| {
            let tls = tls.as_ref().map(|tls| Arc::clone(&tls.client));
            let tls = tls.filter(|_| secret(info.addr()));
            of(address.clone(), Box::new(Single { info, tls }))
        });
        let servers = servers.collect();
        addresses.sort_unstable();
        match addresses.windows(2).find(|two| two[0] == two[1]) {
            Some(two) => Err(Error::Config {
                name: "remote",
                value: two[0].clone(),
                remedy: "name each server once".to_owned(),
            }),
            None => Ok(servers),
        }
    }

    /// Sends commands and hands out their answers. A connection that turns out to have been closed while nobody used it is replaced
    /// once.
    fn talk(&self, commands: &[Command<'_>], by: Instant, take: &mut Take<'_>) -> Answer<()> {
        if commands.is_empty() {
            return Ok(());
        }
        let idle = self.idle.lock().pop();
        if let Some(mut link) = idle {
            let mut answered = false;
            let outcome = link.talk(commands, by, &mut |index, reply| {
                answered = true;
                take(index, reply)
            });
            match outcome {
                Err(error) if error.failure == Failure::Refused && !answered => {
                    // The others are as old.
                    let stale = std::mem::take(&mut *self.idle.lock());
                    drop(stale);
                }
                outcome => return self.settle(link, outcome),
            }
        }
        let link = self.target.connect(by).and_then(|mut link| {
            link.talk(commands, by, take)?;
            Ok(link)
        });
        match link {
            Ok(link) => self.settle(link, Ok(())),
            Err(error) => Err(self.named(&error)),
        }
    }

    /// Keeps a connection on which all was answered.
    fn settle(&self, link: Box<dyn Link>, outcome: Answer<()>) -> Answer<()> {
        outcome.map_err(|error| self.named(&error))?;
        let mut idle = self.idle.lock();
        if idle.len() < self.connections {
            idle.push(link);
        }
        Ok(())
    }

    fn named(&self, error: &ValuesError) -> ValuesError {
        ValuesError::new(
            error.failure,
            format!("{}: {}", self.address, error.message),
        )
    }
}

/// An answer to a command that it does not belong to.
fn strange(command: &str) -> ValuesError {
    failed(Failure::Protocol, format!("a strange answer to {command}"))
}

impl Values for RedisValues {
    fn address(&self) -> &str {
        &self.address
    }

    fn get(
        &self,
        asked: &[Asked],
        by: Instant,
        take: &mut dyn FnMut(usize, Got<'_>),
    ) -> Answer<()> {
        let commands = asked.iter().map(|Asked { name, range }| {
            // Both ends are included.
            let ends = [range.start, range.end.saturating_sub(1)];
            let [first, last] = ends.map(|at| at.to_string().into_bytes());
            let words: [Cow<'_, [u8]>; 4] =
                [b"GETRANGE".into(), name.into(), first.into(), last.into()];
            Command {
                words: words.into(),
                most: range.end.saturating_sub(range.start) as usize,
            }
        });
        self.talk(&commands.collect::<Vec<_>>(), by, &mut |index, reply| {
            match reply {
                Reply::Bytes([]) | Reply::Nil => take(index, Got::Missing),
                Reply::Bytes(bytes) => take(index, Got::Bytes(bytes)),
                Reply::Error(line) => match said(line) {
                    error if error.failure == Failure::WrongType => take(index, Got::WrongType),
                    error => return Err(error),
                },
                _ => return Err(strange("GETRANGE")),
            }
            Ok(())
        })
    }

    fn put(&self, entries: &[(&[u8], &[u8])], ttl: Duration, by: Instant) -> Answer<()> {
        let ttl = ttl.as_millis().max(1).to_string().into_bytes();
        let commands = entries
            .iter()
            .map(|(name, value)| Command::new([b"SET", name, value, b"PX", &ttl], 0));
        self.talk(
            &commands.collect::<Vec<_>>(),
            by,
            &mut |_, reply| match reply {
                Reply::Status(b"OK") => Ok(()),
                Reply::Error(line) => Err(said(line)),
                _ => Err(strange("SET")),
            },
        )
    }

    fn remove(&self, names: &[Vec<u8>], by: Instant) -> Answer<Vec<bool>> {
        let commands = names.iter().map(|name| Command::new([b"UNLINK", name], 0));
        let mut there = Vec::with_capacity(names.len());
        self.talk(&commands.collect::<Vec<_>>(), by, &mut |_, reply| {
            match reply {
                Reply::Number(count) => there.push(count > 0),
                Reply::Error(line) => return Err(said(line)),
                _ => return Err(strange("UNLINK")),
            }
            Ok(())
        })?;
        Ok(there)
    }

    fn ping(&self, by: Instant) -> Answer<()> {
        // A read, which a user that may not read is refused, and a cluster redirects.
        let asked = Asked {
            name: self.nothing.clone(),
            range: 0..1,
        };
        self.get(&[asked], by, &mut |_, _| {})
    }

    fn memory(&self, by: Instant) -> Answer<Option<ServerMemory>> {
        let info = Command::new([b"INFO", b"memory"], LONGEST_INFO);
        let mut memory = None;
        self.talk(&[info], by, &mut |_, reply| {
            match reply {
                Reply::Bytes(text) => memory = memory_of(&String::from_utf8_lossy(text)),
                Reply::Error(line) => return Err(said(line)),
                _ => return Err(strange("INFO")),
            }
            Ok(())
        })?;
        Ok(memory)
    }
}

/// What INFO says, of a cluster what all of its nodes say. If one has no limit the cluster has none.
fn memory_of(text: &str) -> Option<ServerMemory> {
    let numbers = |name: &str| {
        let lines = text.lines().filter_map(|line| line.strip_prefix(name));
        lines
            .filter_map(|number| number.trim().parse::<u64>().ok())
            .collect::<Vec<_>>()
    };
    let (used, limits) = (numbers("used_memory:"), numbers("maxmemory:"));
    let sum = |numbers: &[u64]| {
        numbers
            .iter()
            .fold(0, |sum: u64, number| sum.saturating_add(*number))
    };
    (!used.is_empty()).then(|| ServerMemory {
        used: sum(&used),
        limit: if limits.contains(&0) { 0 } else { sum(&limits) },
    })
}
