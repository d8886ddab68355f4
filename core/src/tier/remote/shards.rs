//! Several independent servers as one: which of them a name belongs to, and which of them are asked at all.
//!
//! Rendezvous hashing: each server draws a number for a key, and the highest wins. If a server is passed over, only its own keys go
//! elsewhere, and they spread over all the others.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::breaker::{Breaker, BreakerState};
use super::known::Known;
use super::patience::Patience;
use super::stats::{Counters, ServerHealth, ServerStats};
use super::values::{Answer, Asked, Failure, Got, Values, ValuesError, time_of};
use super::write::Queue;
use crate::error::Error;
use crate::key::BlockKey;
use crate::memory::Checksum;
use crate::tier::Span;

/// A server, and how it has been lately.
#[derive(Debug)]
pub(super) struct Server {
    values: Box<dyn Values>,
    /// Its part in the draw.
    lot: u64,
    /// Bytes of all runs that were found there.
    found: AtomicU64,
    asking: Breaker,
    /// Opens while it takes no values: it has no memory for them, or this user may only read.
    writing: Breaker,
    /// What went wrong last.
    trouble: Mutex<Option<String>>,
}

/// All servers of a tier.
#[derive(Debug)]
pub(super) struct Shards {
    servers: Vec<Server>,
    timeout: Duration,
    /// Its thread looks after servers that are left alone.
    queue: Arc<Queue>,
    pub(super) counters: Counters,
    pub(super) known: Known,
}

/// Things to be asked of one server: their numbers in what the caller has.
pub(super) struct Share {
    pub(super) server: usize,
    pub(super) items: Vec<usize>,
}

/// What a server is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asking {
    Read,
    Change,
    /// A sign of life: a single failure is enough to leave it alone.
    Sign,
}

/// Whether a server that so fails a change may be one that can be read: it is full, a replica, or has users that may only read.
fn turns_down(failure: Failure) -> bool {
    matches!(
        failure,
        Failure::OutOfMemory | Failure::Auth | Failure::Other
    )
}

impl Server {
    fn new(values: Box<dyn Values>) -> Self {
        Self {
            lot: Checksum::of(values.address().as_bytes()),
            values,
            found: AtomicU64::new(0),
            asking: Breaker::default(),
            writing: Breaker::default(),
            trouble: Mutex::default(),
        }
    }

    /// The number that it draws for a key.
    fn draw(&self, key: &BlockKey) -> u64 {
        let mut ticket = [0; 40];
        let (name, rest) = ticket.split_at_mut(8);
        name.copy_from_slice(&self.lot.to_le_bytes());
        rest.copy_from_slice(&key.0);
        Checksum::of(&ticket)
    }

    /// Whether it would be given a value now.
    fn takes(&self) -> bool {
        let due = self.writing.due();
        let again = due.is_some_and(|due| due <= Instant::now());
        self.asking.is_closed() && (self.writing.is_closed() || again)
    }

    fn stats(&self) -> ServerStats {
        let (state, opened) = self.asking.state();
        let (writing, _) = self.writing.state();
        let well = state == BreakerState::Closed && writing == BreakerState::Closed;
        let trouble = if well {
            None
        } else {
            self.trouble.lock().clone()
        };
        ServerStats {
            address: self.values.address().to_owned(),
            state,
            writing,
            opened,
            trouble,
        }
    }
}

impl Shards {
    pub(super) fn new(
        servers: Vec<Box<dyn Values>>,
        timeout: Duration,
        ttl: Duration,
        queue: Arc<Queue>,
    ) -> Self {
        Self {
            queue,
            servers: servers.into_iter().map(Server::new).collect(),
            timeout,
            counters: Counters::default(),
            known: Known::new(ttl),
        }
    }

    pub(super) fn stats(&self) -> Vec<ServerStats> {
        self.servers.iter().map(Server::stats).collect()
    }

    /// When an answer of so many payload bytes has to be there.
    pub(super) fn deadline(&self, bytes: u64) -> Instant {
        Instant::now() + self.timeout + time_of(bytes)
    }

    /// The time of one lookup and its reads.
    pub(super) fn patience(&self) -> Patience {
        Patience::new(self.timeout)
    }

    /// The server that a key belongs to, of those that are asked now.
    pub(super) fn home(&self, key: &BlockKey) -> Option<usize> {
        self.best(key, |server| server.asking.is_closed())
    }

    /// The server that a value would be written to now.
    pub(super) fn home_to_write(&self, key: &BlockKey) -> Option<usize> {
        self.home(key).filter(|&home| self.servers[home].takes())
    }

    fn best(&self, key: &BlockKey, may: impl Fn(&Server) -> bool) -> Option<usize> {
        let all = self.servers.iter().enumerate();
        let best = all
            .filter(|(_, server)| may(server))
            .max_by_key(|(_, server)| server.draw(key));
        best.map(|(index, _)| index)
    }

    /// Which server is asked for which of these keys; keys without a server are left out.
    pub(super) fn split<'a>(&self, keys: impl IntoIterator<Item = &'a BlockKey>) -> Vec<Share> {
        let mut shares = self.all();
        for (item, key) in keys.into_iter().enumerate() {
            if let Some(home) = self.home(key) {
                shares[home].items.push(item);
            }
        }
        shares.retain(|share| !share.items.is_empty());
        shares
    }

    /// Does something with each share, several at the same time; the outcomes, in order.
    pub(super) fn each<T: Send>(shares: Vec<Share>, work: impl Fn(Share) -> T + Sync) -> Vec<T> {
        if shares.len() < 2 {
            return shares.into_iter().map(work).collect();
        }
        thread::scope(|scope| {
            let work = &work;
            let threads = shares
                .into_iter()
                .map(|share| scope.spawn(move || work(share)))
                .collect::<Vec<_>>();
            let outcomes = threads.into_iter().map(|thread| match thread.join() {
                Ok(outcome) => outcome,
                Err(panic) => std::panic::resume_unwind(panic),
            });
            outcomes.collect()
        })
    }

    /// A place for a run that was found on a server: one behind the other, so that those of a lookup are neighbours.
    pub(super) fn place(&self, server: usize, bytes: u64) -> Span {
        let start = self.servers[server]
            .found
            .fetch_add(bytes, Ordering::Relaxed);
        Span {
            // The numbers of segments of L3 are smaller.
            medium: 1 << 32 | server as u64,
            start,
            end: start + bytes,
        }
    }

    /// Hands out values, as [`Values::get`].
    pub(super) fn get(
        &self,
        server: usize,
        asked: &[Asked],
        by: Instant,
        take: &mut dyn FnMut(usize, Got<'_>),
    ) -> Answer<()> {
        self.ask(server, Asking::Read, |values| {
            values.get(asked, by, &mut |index, got| {
                if got == Got::WrongType {
                    self.counters.failed(Failure::WrongType);
                }
                take(index, got);
            })
        })
    }

    pub(super) fn remove(
        &self,
        server: usize,
        names: &[Vec<u8>],
        by: Instant,
    ) -> Answer<Vec<bool>> {
        self.ask(server, Asking::Change, |values| values.remove(names, by))
    }

    /// Sets values, unless the server would not take others a moment ago.
    pub(super) fn put(
        &self,
        server: usize,
        entries: &[(&[u8], &[u8])],
        ttl: Duration,
        by: Instant,
    ) -> Answer<()> {
        let Server {
            writing, values, ..
        } = &self.servers[server];
        if !writing.is_closed() && !writing.probes(Instant::now()) {
            let message = format!("{}: it took no values a moment ago", values.address());
            return Err(ValuesError::new(Failure::Other, message));
        }
        let answer = self.ask(server, Asking::Change, |values| {
            values.put(entries, ttl, by)
        });
        match &answer {
            Ok(()) => {
                if writing.succeeded() {
                    log::info!("{}: it takes values again", values.address());
                }
            }
            Err(error) if turns_down(error.failure) || !writing.is_closed() => {
                if writing.failed(true) {
                    log::warn!("{error}; nothing is written there for a while");
                }
            }
            Err(_) => {}
        }
        answer
    }

    /// Asks a server, if it is asked at all, and notes how that went.
    fn ask<T>(
        &self,
        server: usize,
        asking: Asking,
        work: impl FnOnce(&dyn Values) -> Answer<T>,
    ) -> Answer<T> {
        let server = &self.servers[server];
        if !server.asking.is_closed() {
            let address = server.values.address();
            let message = format!("{address}: it did not answer lately and is left alone for now");
            return Err(ValuesError::new(Failure::Refused, message));
        }
        self.settle(server, work(&*server.values), asking)
    }

    /// Notes how it went.
    fn settle<T>(&self, server: &Server, answer: Answer<T>, asking: Asking) -> Answer<T> {
        let error = match answer {
            Ok(answer) => {
                if server.asking.succeeded() {
                    log::info!("{}: it answers again", server.values.address());
                }
                return Ok(answer);
            }
            Err(error) => error,
        };
        self.counters.failed(error.failure);
        *server.trouble.lock() = Some(error.message.clone());
        let at_once = match error.failure {
            // It answered, and did what it could.
            Failure::WrongType => return Err(error),
            other if asking == Asking::Change && turns_down(other) => return Err(error),
            Failure::Timeout | Failure::Auth | Failure::Protocol | Failure::Redirect => true,
            Failure::OutOfMemory | Failure::Refused | Failure::Other => asking == Asking::Sign,
        };
        if server.asking.failed(at_once) {
            log::warn!("{error}; it is left alone until it answers");
            // It may come back empty.
            self.known.clear();
            self.queue.look();
        }
        Err(error)
    }

    /// Looks whether the servers whose pauses are over are well again. When the next pause ends.
    pub(super) fn probe(&self) -> Option<Instant> {
        let now = Instant::now();
        for server in &self.servers {
            if server.asking.probes(now) {
                let answer = server.values.ping(self.deadline(0));
                if let Err(error) = self.settle(server, answer, Asking::Sign) {
                    log::debug!("{error}");
                }
            }
        }
        self.servers
            .iter()
            .filter_map(|server| server.asking.due())
            .min()
    }

    /// Asks all servers how they are, breakers or not.
    pub(super) fn health(&self) -> Vec<ServerHealth> {
        Self::each(self.all(), |share| {
            let server = &self.servers[share.server];
            // If it is open, this is its probe.
            server.asking.probes_now();
            let (start, by) = (Instant::now(), self.deadline(0));
            let answer = server.values.ping(by);
            let latency = answer.is_ok().then(|| start.elapsed());
            // Who may not ask for the memory does not know it, and can do without.
            let memory = latency.and_then(|_| server.values.memory(by).ok().flatten());
            let error = self.settle(server, answer, Asking::Sign).err();
            ServerHealth {
                address: server.values.address().to_owned(),
                state: server.asking.state().0,
                latency,
                memory,
                error: error.map(|error| error.message),
            }
        })
    }

    /// A share of each server.
    pub(super) fn all(&self) -> Vec<Share> {
        let share = |server| Share {
            server,
            items: Vec::new(),
        };
        (0..self.servers.len()).map(share).collect()
    }

    /// An error for who asked something of a server itself.
    pub(super) fn error(&self, server: usize, error: &ValuesError) -> Error {
        let address = self.servers[server].values.address().to_owned();
        let named = format!("{address}: ");
        let reason = error.message.strip_prefix(&named).unwrap_or(&error.message);
        Error::Remote {
            reason: reason.to_owned(),
            address,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use super::{Queue, Shards, Share};
    use crate::key::{BlockKey, chain_key};
    use crate::tier::remote::values::{
        Answer, Asked, Failure, Got, ServerMemory, Values, ValuesError,
    };

    /// A server that always fails.
    #[derive(Debug)]
    struct Down(String);

    impl Down {
        fn fail<T>(&self) -> Answer<T> {
            Err(ValuesError::new(
                Failure::Timeout,
                format!("{}: down", self.0),
            ))
        }
    }

    impl Values for Down {
        fn address(&self) -> &str {
            &self.0
        }

        fn get(&self, _: &[Asked], _: Instant, _: &mut dyn FnMut(usize, Got<'_>)) -> Answer<()> {
            self.fail()
        }

        fn put(&self, _: &[(&[u8], &[u8])], _: Duration, _: Instant) -> Answer<()> {
            self.fail()
        }

        fn remove(&self, _: &[Vec<u8>], _: Instant) -> Answer<Vec<bool>> {
            self.fail()
        }

        fn ping(&self, _: Instant) -> Answer<()> {
            self.fail()
        }

        fn memory(&self, _: Instant) -> Answer<Option<ServerMemory>> {
            self.fail()
        }
    }

    fn shards(count: usize) -> Shards {
        let server = |index| Box::new(Down(format!("server-{index}:6379"))) as Box<dyn Values>;
        let second = Duration::from_secs(1);
        Shards::new(
            (0..count).map(server).collect(),
            second,
            second,
            Arc::new(Queue::new(0)),
        )
    }

    fn keys() -> Vec<BlockKey> {
        let key = |index| chain_key(&BlockKey([7; 32]), &[index]);
        (0..4000).map(key).collect()
    }

    #[test]
    fn keys_spread_evenly_and_only_those_of_a_lost_server_move() {
        let (shards, keys) = (shards(4), keys());
        let before = keys
            .iter()
            .map(|key| shards.home(key).expect("all are asked"));
        let before = before.collect::<Vec<_>>();
        let mut count = [0; 4];
        for home in &before {
            count[*home] += 1;
        }
        assert!(
            count.iter().all(|count| (850..1150).contains(count)),
            "{count:?}"
        );
        let answer = shards.get(2, &[], Instant::now(), &mut |_, _| {});
        assert_eq!(answer.map_err(|error| error.failure), Err(Failure::Timeout));
        let mut moved = [0; 4];
        for (key, before) in keys.iter().zip(before) {
            let home = shards.home(key).expect("three are asked");
            assert!(home == before || before == 2);
            assert_ne!(home, 2);
            moved[home] += usize::from(before == 2);
        }
        assert_eq!(moved.iter().sum::<usize>(), count[2]);
        assert!(
            moved
                .iter()
                .enumerate()
                .all(|(home, moved)| home == 2 || *moved > 250)
        );
        let shares = shards.split(&keys);
        let mut items = shares
            .iter()
            .flat_map(|share| share.items.clone())
            .collect::<Vec<_>>();
        items.sort_unstable();
        assert_eq!(items, (0..keys.len()).collect::<Vec<_>>());
        assert!(shares.iter().all(|Share { server, .. }| *server != 2));
    }
}
