//! What a capture is made of: what each structure was asked, in the order in which it was asked, and what it chose.
//!
//! A structure is the L1 of a cache, L2, or the directory of L3; it answers to one *order* of eviction, by whose number its records
//! name it. Each of them is written under the lock that guards the structure. What follows from the rest is not written: which nodes
//! split, what is a candidate, how many blocks an append lacks. What time alone decides is: when bytes on their way down had
//! arrived, when a lease ended, how many bytes L3 had too much.

use super::wire::{Cursor, Name, Wire, wire};
use crate::error::Result;
use crate::run::{MAX_RUN_SLICES, RunHeader, Terms};

wire! {
    /// One of them.
    enum Record {
        /// An order of eviction begins; its number is how many began before it.
        0 => Order {
            /// 1 to 3.
            tier: u32,
            /// Whose order it is; 0 for the tier's own.
            tenant: Name,
            capacity: u64,
            policy: String,
            /// Of L1; 0 below.
            block_tokens: u32,
        },
        /// The buffer was full: nothing was recorded from here on.
        1 => Overrun {},
        /// What an order chose.
        2 => Victim { order: u64, name: Name },
        /// A request comes.
        3 => Request {
            time_ms: u64,
            category: u32,
            block_tokens: u32,
            /// How many requests before it the one was that it begins like; 0 for none.
            back: u64,
            /// Blocks that they share.
            shared: u64,
            /// Names of the others.
            blocks: Vec<Name>,
            /// What L1 does for it; none where there is no L1.
            claim: Option<Claim>,
        },
        4 => L1 { order: u64, event: L1Event },
        5 => L2 { order: u64, event: L2Event },
        6 => L3 { order: u64, event: L3Event },
        /// It is so late, in unix seconds; for what has a time to live.
        7 => Time { seconds: u64 },
    }
}

wire! {
    /// A request is looked up in L1, and holds what is found.
    struct Claim {
        order: u64,
        namespace: Name,
        /// Leading blocks that may be found, if the time of the one behind them is over.
        live: Option<u64>,
    }
}

wire! {
    /// What an L1 was asked. Holds are numbered from 0 as they begin, by a request or a fork.
    enum L1Event {
        /// The commit of so many whole blocks begins: a hold takes over what the tree has of them.
        0 => Adopt {
            hold: u64,
            /// Leading blocks that are those of the hold's request, or its last commit.
            shared: u64,
            blocks: Vec<Name>,
            live: Option<u64>,
        },
        /// A hold wants to have so many tokens.
        1 => Append { hold: u64, tokens: u64 },
        2 => Publish { hold: u64 },
        3 => Retain { hold: u64 },
        4 => Release { hold: u64 },
        5 => SetIdle { hold: u64 },
        6 => StartCopy { hold: u64 },
        7 => EndCopy { hold: u64 },
        8 => Fork { hold: u64 },
        /// So many blocks are to go.
        9 => Evict { blocks: u64 },
        /// Evicted blocks arrived below.
        10 => Freed { blocks: Vec<u32> },
        /// The store below borrows the chain that ends with a block.
        11 => Lend { block: u32 },
        12 => TakeBack { blocks: Vec<u32> },
        /// A prefetch uses what there is of a prompt.
        13 => Use { namespace: Name, blocks: Vec<Name>, live: Option<u64> },
        14 => Clear { namespace: Option<Name> },
    }
}

wire! {
    /// A run, without its payload.
    struct Run {
        namespace: Name,
        parent: Name,
        keys: Vec<Name>,
        block_tokens: u32,
        slices: Vec<Slices>,
        /// Unix seconds.
        expires: Option<u64>,
    }
}

wire! {
    /// Slices of one length, in bytes.
    struct Slices {
        count: u32,
        len: u32,
    }
}

wire! {
    /// What L2 was asked. Runs are numbered from 0 as they get memory.
    enum L2Event {
        /// A run comes from above, of these blocks.
        0 => Offer { keys: Vec<Name> },
        /// So many pages are wanted.
        1 => MakeRoom { pages: u64 },
        /// A run gets its memory.
        2 => Take { run: Run },
        /// A run can be found from now on, if any of its blocks could not; it is held.
        3 => List { run: u64 },
        /// The memory of a run is free again.
        4 => Free { run: u64 },
        /// A block is looked for, and its run held.
        5 => Find { key: Name },
        /// Nobody holds a run for this reader any more.
        6 => Unpin { run: u64 },
        7 => EvictOne {},
        8 => Remove { keys: Vec<Name> },
        9 => RemoveCovered { keys: Vec<Name> },
        10 => Clear { namespace: Option<Name> },
    }
}

wire! {
    /// What the directory of L3 was asked. Runs are named by their places in it, which are reused.
    enum L3Event {
        /// What the runs of a tenant may take unless more is said.
        0 => Open { quota: Option<u64> },
        1 => Insert {
            run: Run,
            /// Whose it is; 0 for nobody's.
            tenant: Name,
            /// Bytes of its record.
            bytes: u64,
            serial: u64,
            last_use: u64,
            hits: u32,
        },
        2 => Touch { slot: u32, tick: u64 },
        3 => Pin { slot: u32 },
        4 => Unpin { serial: u64 },
        /// So many bytes are to go.
        5 => Evict { bytes: u64 },
        /// A run is deleted, expired or damaged.
        6 => Drop { slot: u32 },
        /// A tenant's runs are to be within its quota.
        7 => Trim { tenant: Name },
        /// A record of a tenant is going to be written, or was.
        8 => Begin { tenant: Name, bytes: u64 },
        9 => End { tenant: Name, bytes: u64 },
        10 => SetQuota { tenant: Name, quota: Option<u64> },
    }
}

impl Run {
    /// The header of a run that is as this one, and whose keys begin with its names.
    ///
    /// # Errors
    /// As [`RunHeader::validate`].
    pub(crate) fn header(&self, tenant: u64) -> Result<RunHeader> {
        let lengths = self.slices.iter().flat_map(|slices| {
            let count = (slices.count as usize).min(MAX_RUN_SLICES + 1);
            std::iter::repeat_n(slices.len, count)
        });
        let (ttl_seconds, born) = match self.expires {
            None => (0, 0),
            Some(second) => (1, second.saturating_sub(1)),
        };
        let header = RunHeader {
            namespace: self.namespace.key(),
            parent: self.parent.key(),
            keys: self.keys.iter().map(|name| name.key()).collect(),
            block_tokens: self.block_tokens,
            slices: lengths.take(MAX_RUN_SLICES + 1).collect(),
            terms: Terms {
                tenant,
                ttl_seconds,
                born,
                ..Terms::default()
            },
        };
        header.validate()?;
        Ok(header)
    }
}
