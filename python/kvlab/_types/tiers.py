"""What `stats()` of stores, caches and pools hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from kvlab._types.remote import RemoteStats


class PoolStats(TypedDict):
    """A block pool and its sequences.

    Attributes:
        blocks: Blocks in all.
        block_tokens: Tokens in a block.
        block_bytes: Bytes of a block.
        used: Blocks with at least one reference.
        free: Blocks with none.
        shared: Blocks with more than one.
        saved: References beyond the first of each block: blocks needed on top if nothing were shared.
        sequences: Live sequences.
        tokens: Tokens of all sequences, shared ones counted for each.
        filled: Token slots in use, a shared block counted once.
        utilisation: `filled` over the token slots of used blocks, 0 to 1; 0 if none is used.
        wasted_bytes: Bytes of the token slots of used blocks that hold no token.
        copies: Blocks copied on write so far.
    """

    blocks: int
    block_tokens: int
    block_bytes: int
    used: int
    free: int
    shared: int
    saved: int
    sequences: int
    tokens: int
    filled: int
    utilisation: float
    wasted_bytes: int
    copies: int


class L1Stats(PoolStats):
    """L1: `free + evictable + protected + private + in_flight == blocks`.

    Attributes:
        evictable: Blocks in the tree that may go.
        protected: Blocks in the tree that are locked.
        private: Blocks that only sequences hold, such as partial tails.
        in_flight: Blocks on their way to the tiers below.
        nodes: Nodes of the tree.
        reused_blocks: Blocks that requests took by reference instead of computing them, so far.
        saved_blocks: Blocks that sequences hold now beyond the distinct ones.
        evicted_blocks: Blocks that left for the tiers below or were dropped, so far.
        refused_blocks: Blocks that could not be kept for want of room, so far.
    """

    evictable: int
    protected: int
    private: int
    in_flight: int
    nodes: int
    reused_blocks: int
    saved_blocks: int
    evicted_blocks: int
    refused_blocks: int


class BufferStats(TypedDict):
    """Cache buffers, in bytes.

    Attributes:
        budget: The most that may be mapped.
        mapped: Mapped now, in use or idle.
        idle: Mapped and idle.
    """

    budget: int
    mapped: int
    idle: int


class ResidentStats(TypedDict):
    """Sequences that stay in their cache buffers until a request goes on from them.

    Attributes:
        sequences: How many there are.
        bytes: Bytes of their buffers.
        taken: Requests that went on in place, so far.
        displaced: Given up because there were more than the limit, so far.
        reclaimed: Given up because a lease needed their memory, so far.
        evicted: Given up by an eviction or clear that was asked for, so far.
    """

    sequences: int
    bytes: int
    taken: int
    displaced: int
    reclaimed: int
    evicted: int


class CacheStats(TypedDict):
    """A prefix cache.

    Attributes:
        l1: The block arena and what is in it.
        buffers: The cache buffers.
        residents: Sequences that stay in their buffers.
        pending_commits: Commits that wait or are under way.
    """

    l1: L1Stats
    buffers: BufferStats
    residents: ResidentStats
    pending_commits: int


class RadixStats(TypedDict):
    """A radix cache.

    Attributes:
        nodes: Nodes that hold blocks.
        leaves: Nodes without children.
        total_blocks: Blocks held: `evictable_blocks + protected_blocks`.
        evictable_blocks: Blocks that eviction can free.
        protected_blocks: Blocks of locked nodes.
    """

    nodes: int
    leaves: int
    total_blocks: int
    evictable_blocks: int
    protected_blocks: int


class PrefetchProgress(TypedDict):
    """What a prefetch has done so far.

    Attributes:
        wanted: Blocks that were found below L1 and fit into what prefetch may hold.
        loaded: Of them: in L2 now, or read from there since.
        bytes: Payload bytes of the runs that were loaded.
    """

    wanted: int
    loaded: int
    bytes: int


class TierStats(TypedDict):
    """One tier below L1; counts since the store was opened.

    Attributes:
        capacity: Bytes that it may take.
        used: Bytes that it takes.
        runs: Runs that can be read.
        blocks: Blocks that can be read.
        hit_blocks: Blocks that lookups for reading found here.
        reads: Reads, each of a run or a slice of one.
        read_bytes: Payload bytes read.
        read_micros: Microseconds that threads spent on that.
        shared_reads: Reads that another reader's read of the same bytes served; not among `reads`.
        joined_reads: Runs that were read by one operation together with neighbours.
        memory_waits: Transfers that waited for working memory.
        writes: Runs written.
        write_bytes: Payload bytes written.
        write_micros: Microseconds that threads spent on that.
        evictions: Runs given up for others.
        corrupt: Reads that found damaged bytes; their runs were dropped.
        io_errors: Reads that the operating system failed.
        gone: Reads of runs that were deleted meanwhile.
    """

    capacity: int
    used: int
    runs: int
    blocks: int
    hit_blocks: int
    reads: int
    read_bytes: int
    read_micros: int
    shared_reads: int
    joined_reads: int
    memory_waits: int
    writes: int
    write_bytes: int
    write_micros: int
    evictions: int
    corrupt: int
    io_errors: int
    gone: int


class Refusals(TypedDict):
    """Runs that a tier did not keep, by reason.

    Attributes:
        too_large: Larger than the whole tier.
        nothing_to_evict: Everything that could go was pinned.
        no_space: The disk was full or at its reserve.
        write_failed: The operating system refused the write.
        queue_full: The write queue was at its bound.
        parent_missing: The block before it was not there, so nothing could find it.
        too_few_uses: Not used often enough to be worth a write (`write_through_selective`).
        decoded: Its bytes came out of a lossy codec, and are never encoded again.
        unavailable: There is no such tier, or it was read-only, closing or being cleared.
        expired: Its time to live was over.
        not_persisted: It must not be on disk.
        over_quota: Its salt's quota was taken, and nothing of the salt's could go.
    """

    too_large: int
    nothing_to_evict: int
    no_space: int
    write_failed: int
    queue_full: int
    parent_missing: int
    too_few_uses: int
    decoded: int
    unavailable: int
    expired: int
    not_persisted: int
    over_quota: int


class PrefetchStats(TypedDict):
    """Prefetched runs, by what became of them.

    Attributes:
        issued: Asked for.
        loaded: Read into L2.
        claimed: Taken by a request.
        stolen: Read by a request before the prefetch had begun.
        cancelled: Cancelled.
        timed_out: Loaded, but claimed by nobody in time.
        failed: Not readable.
        refused: Not loaded because L2 had no room.
        waits: Requests that waited for a prefetch, as its stop policy asks.
        expired_waits: Requests whose time to wait was over first (`timeout`).
        held_bytes: Bytes held in L2 for prefetches now.
    """

    issued: int
    loaded: int
    claimed: int
    stolen: int
    cancelled: int
    timed_out: int
    failed: int
    refused: int
    waits: int
    expired_waits: int
    held_bytes: int


class BlockStoreStats(TypedDict):
    """The tiers below L1.

    Attributes:
        demotions: Runs that L1 gave up and these tiers kept.
        dropped_victims: Runs that L2 evicted and no tier below had or took.
        write_queue_bytes: Payload bytes accepted for L3 and not written yet.
        write_queue_runs: Runs accepted for L3 and not written yet.
        l2: Host memory; all zero without L2.
        l3: Local disk; all zero without L3.
        l4: What was read from the shared tier and written to it; all zero without it. What it holds
            in all, only its servers know.
        remote: The shared tier's own account; None without it.
        refusals: Runs that L2 and L3 did not keep.
        prefetch: Prefetched runs.
    """

    demotions: int
    dropped_victims: int
    write_queue_bytes: int
    write_queue_runs: int
    l2: TierStats
    l3: TierStats
    l4: TierStats
    remote: RemoteStats | None
    refusals: Refusals
    prefetch: PrefetchStats


class StoreStats(BlockStoreStats):
    """A whole store.

    Attributes:
        caches: Its prefix caches, in the order in which they were made.
    """

    caches: list[CacheStats]
