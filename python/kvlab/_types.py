"""What the dictionaries that `kvlab` hands out hold: plain types, for annotations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypedDict

if TYPE_CHECKING:
    from pathlib import Path

Tier = Literal["l2", "l3", "pending"]
RestoreMode = Literal["always", "auto", "never"]


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


class Restored(TypedDict):
    """What a restore brought.

    Attributes:
        tokens: Tokens that stand in the buffer now, as `(l1, l2, l3)`; the tiers' parts need not be
            in that order below L1.
        l2_bytes: Payload bytes read from L2.
        l3_bytes: Payload bytes read from L3.
        l1_ms: Milliseconds until the L1 blocks were copied.
        below_ms: Milliseconds until the last byte from L2 or L3 was there and verified.
        ms: Milliseconds until all was there; what the caller computed meanwhile lies inside.
        failure: Why fewer tokens came than were found; None if all came.
    """

    tokens: tuple[int, int, int]
    l2_bytes: int
    l3_bytes: int
    l1_ms: float
    below_ms: float
    ms: float
    failure: str | None


class Cut(TypedDict):
    """What is predicted for restoring a part of what was found.

    Attributes:
        tokens: Tokens restored.
        restore_ms: Milliseconds to read them.
        prefill_ms: Milliseconds to compute the rest of the prompt.
        ms: Milliseconds of both, as far as they do not overlap.
    """

    tokens: int
    restore_ms: float
    prefill_ms: float
    ms: float


class Choice(TypedDict):
    """How much of a found prefix is restored, and why.

    Attributes:
        tokens: Tokens to restore.
        reason: `"asked"` (always or never), `"not_measured"` (everything, until enough was),
            `"cheapest"`, or `"trial"` (a run more than that, to see whether its tier became faster).
        predicted: What is predicted for that; None where it was not measured or not needed.
        all: The same for restoring everything.
        none: The same for restoring nothing below L1.
        left: The tier of the first token that is left alone; None if all are restored.
    """

    tokens: int
    reason: Literal["asked", "not_measured", "cheapest", "trial"]
    predicted: Cut | None
    all: Cut | None
    none: Cut | None
    left: str | None


class ReadCost(TypedDict):
    """What reading from a tier takes: latency and bytes over rate.

    Attributes:
        observations: Reads remembered.
        learnt: Whether these are enough; until then the figures are what is assumed.
        latency_us: Microseconds of a read, whatever its size.
        gb_per_s: 10^9 bytes a second; None where size makes no difference.
    """

    observations: int
    learnt: bool
    latency_us: float
    gb_per_s: float | None


class PrefillCost(TypedDict):
    """What a model's forward takes.

    Attributes:
        observations: Forwards remembered.
        learnt: Whether these are enough; until then the figures are what is assumed.
        fixed_ms: Milliseconds of a forward, whatever its size.
        tokens_per_s: Tokens a second beyond that, without context; None where number makes no
            difference.
        us_per_1k_context: Microseconds that a token takes more for each 1,000 tokens before it.
    """

    observations: int
    learnt: bool
    fixed_ms: float
    tokens_per_s: float | None
    us_per_1k_context: float


class ChoiceCounts(TypedDict):
    """What `restore="auto"` came to, since the store was opened.

    Attributes:
        all: Requests that restored everything found, being cheapest or near to it.
        part: Requests that restored a part.
        none: Requests that restored nothing below L1, though something was found.
        trials: Requests that restored a run more than was cheapest, to see whether its tier became
            faster.
        not_measured: Requests that restored everything because too little was measured.
        asked: Requests that were told what to do.
        recomputed_tokens: Found tokens that were computed again, all requests together.
    """

    all: int
    part: int
    none: int
    trials: int
    not_measured: int
    asked: int
    recomputed_tokens: int


class CostStats(TypedDict):
    """What was learnt at run time, now and in earlier runs of the store.

    Attributes:
        read: By tier.
        prefill: By a digest of model, dtype, attention, threads and library versions.
        overlap: The share of the shorter of restore and forward that the other one hides, 0 to 1.
        choices: What was decided by it.
    """

    read: dict[str, ReadCost]
    prefill: dict[str, PrefillCost]
    overlap: float
    choices: ChoiceCounts


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
        dropped_victims: Runs that L2 evicted and L3 neither had nor took.
        write_queue_bytes: Payload bytes accepted for L3 and not written yet.
        write_queue_runs: Runs accepted for L3 and not written yet.
        l2: Host memory; all zero without L2.
        l3: Local disk; all zero without L3.
        refusals: Runs that were not kept.
        prefetch: Prefetched runs.
    """

    demotions: int
    dropped_victims: int
    write_queue_bytes: int
    write_queue_runs: int
    l2: TierStats
    l3: TierStats
    refusals: Refusals
    prefetch: PrefetchStats


class StoreStats(BlockStoreStats):
    """A whole store.

    Attributes:
        caches: Its prefix caches, in the order in which they were made.
    """

    caches: list[CacheStats]


class RowsDropped(TypedDict):
    """Index rows that were dropped at opening.

    Attributes:
        damaged: The rows made no sense.
        no_segment: The segment file was missing, foreign or too short.
        no_record: The segment had no such record.
        overlapping: The record lay over another one.
        expired: Their time to live was over.
    """

    damaged: int
    no_segment: int
    no_record: int
    overlapping: int
    expired: int


class RecoveryReport(TypedDict):
    """What opening L3 found and repaired.

    Attributes:
        clean: The store was closed cleanly, or is new.
        runs: Runs that can be found now.
        blocks: Blocks that can be found now.
        bytes: Bytes of their records.
        segments: Segment files.
        segments_scanned: Segment files that were searched for records.
        foreign_segments: Files with a segment's name that are not this store's; they are left alone.
        rows_rebuilt: Runs that were found in segments only.
        index_rebuilt: The index was rebuilt from the segments alone.
        index_moved: Where an index that could not be opened was moved; None if it could.
        rows_dropped: Rows that were dropped.
    """

    clean: bool
    runs: int
    blocks: int
    bytes: int
    segments: int
    segments_scanned: int
    foreign_segments: int
    rows_rebuilt: int
    index_rebuilt: bool
    index_moved: str | None
    rows_dropped: RowsDropped


class TreeDivergence(TypedDict):
    """How far L1's tree knows a prompt, in tokens.

    Attributes:
        matched: Leading tokens in whole blocks.
        common: Leading tokens that the closest cached sequence shares.
        cached: The token that it has where the prompt goes another way; None if it ends there.
    """

    matched: int
    common: int
    cached: int | None


class PromptExplanation(TypedDict):
    """What the tiers know of a prompt.

    Attributes:
        l1: How far L1 knows it.
        below: Where each usable whole block is below L1, from the first block on.
        elsewhere: Other namespaces that have the prompt's first block, and how many of its leading blocks.
        choice: What a request with `restore="auto"` would restore of it, to the block, trials aside.
    """

    l1: TreeDivergence
    below: list[Tier | None]
    elsewhere: list[tuple[bytes, int]]
    choice: Choice


class UnreadableFile(TypedDict):
    """A file with a segment's name that is none of the store's, or cannot be read.

    Attributes:
        file: Where it is.
        reason: What is wrong with it.
    """

    file: Path
    reason: str


class IndexReport(TypedDict):
    """What the index says, compared with the segments.

    Attributes:
        rows: Runs that have rows.
        damaged_rows: Runs whose rows make no sense.
        rows_without_record: Rows whose record is not there.
        records_without_row: Records without rows: written just now, or found again by the next open.
        clean: The store was closed cleanly.
    """

    rows: int
    damaged_rows: int
    rows_without_record: int
    records_without_row: int
    clean: bool


class NamespaceReport(TypedDict):
    """The runs of one namespace.

    Attributes:
        namespace: 32 bytes.
        tenant: A digest of the cache salt, in hexadecimal digits.
        codec: How the payload is stored: `"exact"` or `"int8"`.
        ttl_seconds: How long a run of it lives; 0 for no limit.
        block_tokens: Tokens in a block; 0 for opaque blocks.
        layers: Slices of a run.
        runs: Runs.
        blocks: Blocks in them.
        payload_bytes: Payload bytes as they were given.
        stored_bytes: Bytes of the records on disk.
        hits: Uses of its runs since they were stored, as far as they were saved.
        oldest: When its oldest run was stored, in unix seconds; 0 where that is not known.
        newest: When its newest run was stored.
        expired_runs: Runs past their time to live that wait to be reclaimed.
    """

    namespace: bytes
    tenant: str
    codec: str
    ttl_seconds: int
    block_tokens: int
    layers: int
    runs: int
    blocks: int
    payload_bytes: int
    stored_bytes: int
    hits: int
    oldest: int
    newest: int
    expired_runs: int


class SegmentReport(TypedDict):
    """One segment file.

    Attributes:
        file: Where it is.
        id: Its number, never given out twice.
        sealed: It ends with a table of contents.
        bytes: Its length.
        disk_bytes: What it takes on disk, holes left out.
        records: Records with a sound header.
        record_bytes: Bytes of them.
    """

    file: Path
    id: int
    sealed: bool
    bytes: int
    disk_bytes: int
    records: int
    record_bytes: int


class Inspection(TypedDict):
    """What is in a store.

    Attributes:
        format: The format version that it is marked with.
        store: Its id, in hexadecimal digits.
        holder: The process that has it open, as far as the system tells.
        index: What the index says; None if it cannot be read.
        index_error: Why it cannot be read.
        index_bytes: What the index takes on disk.
        namespaces: By namespace.
        segments: Oldest first.
        unreadable: Files that could not be used.
        moved_indexes: Indexes that did not open once and were set aside; they may be deleted.
    """

    format: int
    store: str
    holder: str | None
    index: IndexReport | None
    index_error: str | None
    index_bytes: int
    namespaces: list[NamespaceReport]
    segments: list[SegmentReport]
    unreadable: list[UnreadableFile]
    moved_indexes: list[Path]


class Damage(TypedDict):
    """A record whose bytes are not what was written.

    Attributes:
        file: The segment file.
        offset: Where the record starts in it, in bytes.
        slice: The first slice (layer) that is wrong.
        blocks: Blocks of the record.
        namespace: 32 bytes.
        reason: What is wrong.
    """

    file: Path
    offset: int
    slice: int
    blocks: int
    namespace: bytes
    reason: str


class Verification(TypedDict):
    """What a check of everything found.

    Attributes:
        sound: Everything is as it was written.
        records: Records read.
        blocks: Blocks in them.
        bytes: Bytes read.
        damaged: Records that are not what was written.
        unreadable: Files that could not be used.
        index: What the index says of the records; None if it cannot be read.
        index_error: Why it cannot be read.
    """

    sound: bool
    records: int
    blocks: int
    bytes: int
    damaged: list[Damage]
    unreadable: list[UnreadableFile]
    index: IndexReport | None
    index_error: str | None


class Scrubbed(TypedDict):
    """What reading everything of an open store found.

    Attributes:
        runs: Runs read.
        bytes: Their payload bytes, as they were given.
        dropped: Runs that could not be used, and are gone.
    """

    runs: int
    bytes: int
    dropped: int


class Exported(TypedDict):
    """What an export holds.

    Attributes:
        runs: Runs in the file.
        blocks: Blocks in them.
        bytes: Length of the file.
        damaged: Runs left out because their bytes are not what was written.
        unreachable: Runs left out because what comes before them is not there.
    """

    runs: int
    blocks: int
    bytes: int
    damaged: int
    unreachable: int


class Imported(TypedDict):
    """What became of an export.

    Attributes:
        namespace: 32 bytes.
        runs: Runs that are here now and were not before.
        present: Runs that were here.
        expired: Runs past their time to live.
        refused: Runs that were not taken: no room, or what comes before them is missing.
        damaged: Runs whose bytes are not what was exported.
        complete: The file was whole.
    """

    namespace: bytes
    runs: int
    present: int
    expired: int
    refused: int
    damaged: int
    complete: bool
