"""What a shared tier (L4) has done, and how its servers are."""

from __future__ import annotations

from typing import Literal, TypedDict

BreakerState = Literal["closed", "open", "half_open"]


class RemoteErrors(TypedDict):
    """What went wrong with servers, by kind.

    Attributes:
        timeouts: No answer in time.
        refused: Nobody listens there, or the connection broke.
        auth: User or password unknown, the command not allowed, or a certificate not trusted.
        protocol: What was answered is not the protocol.
        wrong_type: Something of another kind stood under a name.
        out_of_memory: The server had no memory left for values.
        redirects: The name lies on another node of a cluster.
        other: Anything else.
    """

    timeouts: int
    refused: int
    auth: int
    protocol: int
    wrong_type: int
    out_of_memory: int
    redirects: int
    other: int


class RemoteRefusals(TypedDict):
    """Runs that the shared tier did not keep, by reason.

    Attributes:
        too_large: Larger than a value can be, or than the queue.
        no_space: The server had no memory left.
        write_failed: The server did not take it.
        queue_full: The queue of writes was at its bound.
        decoded: Its bytes came out of a lossy codec, and are never encoded again.
        unavailable: No server answered lately, or it was removed or the store closed while it waited.
        expired: Its time to live was over.
        not_persisted: It must not leave this machine's memory.
    """

    too_large: int
    no_space: int
    write_failed: int
    queue_full: int
    decoded: int
    unavailable: int
    expired: int
    not_persisted: int


class ServerStats(TypedDict):
    """One server.

    Attributes:
        address: Which one, without password.
        state: `"closed"`: it is asked; `"open"`: it is left alone for a while after failures;
            `"half_open"`: it is tried.
        writing: The same for writes; open for a while after it took none: no memory left, or a user that may only read.
        opened: How often it stopped being asked.
        trouble: The last thing that went wrong, if it is not asked now or takes no values.
    """

    address: str
    state: BreakerState
    writing: BreakerState
    opened: int
    trouble: str | None


class RemoteStats(TypedDict):
    """The shared tier's own account; counts since the store was opened.

    Attributes:
        found_blocks: Blocks that lookups found.
        missed_blocks: Blocks that they did not find.
        lookups: Lookups, each of any number of blocks.
        lookup_micros: Microseconds of them.
        reads: Reads that gave verified bytes.
        read_bytes: Bytes of them as they came over the network.
        read_micros: Microseconds of reads, failed ones included.
        writes: Runs written.
        write_bytes: Bytes of their records.
        write_micros: Microseconds of writing.
        present: Runs that were not written because all of their blocks were there.
        errors: What went wrong with servers.
        corrupt: Values that were not what was written: misses.
        gone: Values that vanished between lookup and read: misses.
        expired: Runs whose time was over though the server had them: misses.
        queue_bytes: Payload bytes that wait to be written.
        queue_runs: Runs that wait or are being written.
        refusals: Runs that were not kept.
        servers: Each server; one row for a cluster.
    """

    found_blocks: int
    missed_blocks: int
    lookups: int
    lookup_micros: int
    reads: int
    read_bytes: int
    read_micros: int
    writes: int
    write_bytes: int
    write_micros: int
    present: int
    errors: RemoteErrors
    corrupt: int
    gone: int
    expired: int
    queue_bytes: int
    queue_runs: int
    refusals: RemoteRefusals
    servers: list[ServerStats]


class ServerHealth(TypedDict):
    """How one server answers now.

    Attributes:
        address: Which one, without password.
        state: As in `ServerStats`.
        latency_ms: Milliseconds of a ping; None if it did not answer.
        used_memory: Bytes that it uses; None if it does not say.
        max_memory: Bytes that it may use, 0 for no limit; None if it does not say.
        error: Why it did not answer; None if it did.
    """

    address: str
    state: BreakerState
    latency_ms: float | None
    used_memory: int | None
    max_memory: int | None
    error: str | None


class RemoteHealth(TypedDict):
    """How the servers of the shared tier are now.

    Attributes:
        healthy: Whether all answered.
        servers: Each of them.
    """

    healthy: bool
    servers: list[ServerHealth]
