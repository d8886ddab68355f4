//! When things are done: a model of one server, whose costs are given.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::cost::Costs;
use crate::error::{Error, Result};
use crate::tier::TierId;

/// What reading from a tier costs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ReadCost {
    /// Seconds before the first byte.
    pub latency: f64,
    /// Bytes a second of one transfer.
    pub bandwidth: f64,
    /// Transfers at once; more of them wait.
    pub transfers: usize,
}

/// What a server's work costs. Times that come of it are predictions of this model, not measurements.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CostModel {
    /// Seconds of a forward: once, per token, and per token and token of its context.
    pub prefill: [f64; 3],
    /// Seconds per token of an answer.
    pub decode: f64,
    /// KV bytes of a token.
    pub token_bytes: u64,
    /// What reading from L1, L2 and L3 costs.
    pub read: [ReadCost; 3],
    /// The share of the shorter of restore and forward that runs beside the longer one, 0 to 1.
    pub overlap: f64,
    /// Requests that are computed at once; others wait in line.
    pub concurrency: usize,
}

impl CostModel {
    /// Checks that times come out of it.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] that names what is negative, no number, or 0 where nothing would ever end.
    pub fn validate(&self) -> Result<()> {
        let mut costs = vec![("prefill", self.prefill[0]), ("prefill", self.prefill[1])];
        costs.extend([("prefill", self.prefill[2]), ("decode", self.decode)]);
        costs.extend(self.read.iter().map(|read| ("latency", read.latency)));
        for (name, value) in costs {
            if !value.is_finite() || value < 0.0 {
                return Err(Error::invalid(format!(
                    "{name} = {value}: seconds from 0 on"
                )));
            }
        }
        for read in &self.read {
            if !read.bandwidth.is_finite() || read.bandwidth <= 0.0 {
                return Err(Error::invalid(format!(
                    "bandwidth = {}: bytes a second, more than 0",
                    read.bandwidth
                )));
            }
            if read.transfers == 0 {
                return Err(Error::invalid("transfers = 0: at least one at once"));
            }
        }
        if !(0.0..=1.0).contains(&self.overlap) {
            return Err(Error::invalid(format!(
                "overlap = {}: a share from 0 to 1",
                self.overlap
            )));
        }
        if self.concurrency == 0 {
            return Err(Error::invalid(
                "concurrency = 0: at least one request at once",
            ));
        }
        Ok(())
    }

    fn of(&self, tier: TierId) -> &ReadCost {
        &self.read[tier as usize]
    }
}

impl Costs for CostModel {
    fn read(&mut self, tier: TierId, bytes: u64) -> f64 {
        let cost = self.of(tier);
        cost.latency + bytes as f64 / cost.bandwidth
    }

    fn prefill(&mut self, tokens: usize, context: usize) -> f64 {
        let [once, token, attended] = self.prefill;
        let (tokens, context) = (tokens as f64, context as f64);
        once + token * tokens + attended * tokens * (context + tokens / 2.0)
    }

    fn overlap(&mut self) -> f64 {
        self.overlap
    }
}

/// Seconds, ordered; never NaN.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Seconds(f64);

impl Eq for Seconds {}

impl PartialOrd for Seconds {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Seconds {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

/// Some places, each busy until some time.
#[derive(Debug)]
struct Places(BinaryHeap<Reverse<Seconds>>);

impl Places {
    fn new(count: usize) -> Self {
        Self(vec![Reverse(Seconds(0.0)); count].into())
    }

    /// When the first of them is free for who comes at `at`.
    fn take(&mut self, at: f64) -> f64 {
        self.0
            .pop()
            .map_or(at, |Reverse(Seconds(free))| at.max(free))
    }

    fn give_back(&mut self, at: f64) {
        self.0.push(Reverse(Seconds(at)));
    }
}

/// What a request has to do.
#[derive(Clone, Copy, Debug)]
pub(super) struct Work {
    pub(super) at: f64,
    pub(super) prompt: usize,
    pub(super) restored: usize,
    pub(super) output: usize,
    /// Bytes to read from each tier.
    pub(super) bytes: [u64; 3],
}

/// How long a request took, in seconds from its arrival.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Times {
    pub(super) queued: f64,
    pub(super) first_token: f64,
    pub(super) done: f64,
}

/// The server: requests begin in the order of arrival, one as soon as a place is free.
#[derive(Debug)]
pub(super) struct Server {
    costs: CostModel,
    places: Places,
    channels: [Places; 3],
}

impl Server {
    pub(super) fn new(costs: CostModel) -> Self {
        Self {
            costs,
            places: Places::new(costs.concurrency),
            channels: costs.read.map(|read| Places::new(read.transfers)),
        }
    }

    pub(super) fn serve(&mut self, work: &Work) -> Times {
        let start = self.places.take(work.at);
        let mut restored = start;
        for (tier, &bytes) in [TierId::L1, TierId::L2, TierId::L3]
            .into_iter()
            .zip(&work.bytes)
        {
            if bytes > 0 {
                let channel = &mut self.channels[tier as usize];
                restored = channel.take(restored) + self.costs.read(tier, bytes);
                channel.give_back(restored);
            }
        }
        let restore = restored - start;
        let rest = work.prompt - work.restored;
        let prefill = self.costs.prefill(rest, work.restored);
        let hidden = self.costs.overlap * restore.min(prefill);
        let first = start + restore + prefill - hidden;
        let done = first + self.costs.decode * work.output as f64;
        self.places.give_back(done);
        Times {
            queued: start - work.at,
            first_token: first - work.at,
            done: done - work.at,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{CostModel, ReadCost, Server, Work};

    const READ: ReadCost = ReadCost {
        latency: 1.0,
        bandwidth: 10.0,
        transfers: 1,
    };
    const COSTS: CostModel = CostModel {
        prefill: [2.0, 1.0, 0.0],
        decode: 0.5,
        token_bytes: 1,
        read: [READ; 3],
        overlap: 0.5,
        concurrency: 1,
    };

    fn work(at: f64, l3: u64) -> Work {
        Work {
            at,
            prompt: 10,
            restored: 4,
            output: 2,
            bytes: [0, 0, l3],
        }
    }

    #[test]
    fn a_restore_hides_in_a_forward_as_far_as_they_overlap() {
        let times = Server::new(COSTS).serve(&work(3.0, 50));
        // 6 s of reading, 8 s of computing, half of the shorter one beside the longer.
        assert_eq!(
            (times.queued, times.first_token, times.done),
            (0.0, 11.0, 12.0)
        );
        let alone = Server::new(COSTS).serve(&work(3.0, 0));
        assert_eq!((alone.queued, alone.first_token), (0.0, 8.0));
    }

    #[test]
    fn who_finds_no_place_waits() {
        let mut server = Server::new(COSTS);
        server.serve(&work(0.0, 0));
        let times = server.serve(&work(4.0, 0));
        assert_eq!((times.queued, times.first_token), (5.0, 13.0));
        let mut two = Server::new(CostModel {
            concurrency: 2,
            ..COSTS
        });
        two.serve(&work(0.0, 50));
        // Its own place, but the one transfer that may run is the other's until 6 s.
        let times = two.serve(&work(4.0, 50));
        assert_eq!((times.queued, times.first_token), (0.0, 8.0 + 8.0 - 4.0));
    }

    #[test]
    fn costs_without_an_end_are_refused() {
        assert!(COSTS.validate().is_ok());
        for wrong in [
            CostModel {
                concurrency: 0,
                ..COSTS
            },
            CostModel {
                overlap: 1.5,
                ..COSTS
            },
            CostModel {
                decode: f64::NAN,
                ..COSTS
            },
            CostModel {
                read: [ReadCost {
                    bandwidth: 0.0,
                    ..READ
                }; 3],
                ..COSTS
            },
            CostModel {
                read: [ReadCost {
                    transfers: 0,
                    ..READ
                }; 3],
                ..COSTS
            },
        ] {
            assert!(wrong.validate().is_err(), "{wrong:?}");
        }
    }
}
