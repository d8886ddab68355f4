"""The JSON of `/live` and `/live/snapshot`: what a server does now and did lately.

`version` changes when a field goes or means something else, not when one is added. Nothing of a prompt's or an
answer's text is in it, nor keys, salts or API keys.
"""

from __future__ import annotations

from typing import Literal

# Pydantic, with which a client can check what it got, reads no others below Python 3.12.
from typing_extensions import TypedDict

__all__ = [
    "SOURCES",
    "VERSION",
    "Eviction",
    "Failure",
    "Recent",
    "Refusal",
    "RequestView",
    "Series",
    "Server",
    "Snapshot",
    "Span",
    "TierView",
    "TokenCounts",
    "Totals",
]

VERSION = 1

SOURCES = ("l1", "l2", "l3", "remote", "compute")
"""Where prompt tokens come from: the tiers, another machine, or a forward of the model."""


class Server(TypedDict):
    """What serves.

    Attributes:
        model: Its name, as requests name it.
        mode: `baseline`, `prefix_reuse`, `cpu_offload` or `nvme`.
        kvlab: The version.
        started: When, in unix seconds.
        uptime_s: Seconds since.
        now: Of the snapshot, in unix seconds.
        store: `open`, `closed`, or `none` in a mode without a cache.
    """

    model: str
    mode: str
    kvlab: str
    started: float
    uptime_s: float
    now: float
    store: Literal["open", "closed", "none"]


class TokenCounts(TypedDict):
    """Prompt tokens by source, counted once, when a request is admitted."""

    l1: int
    l2: int
    l3: int
    remote: int
    compute: int


class Totals(TypedDict):
    """Counts since the start.

    Attributes:
        admitted: Requests whose look-up is done.
        finished: Requests that ended with `stop` or `length`.
        cancelled: Requests that their client gave up.
        failed: Requests that ended with an error.
        rejected: Requests that were not taken.
        prompt_tokens: Prompt tokens of admitted requests, by source.
        generated_tokens: Tokens that were generated.
    """

    admitted: int
    finished: int
    cancelled: int
    failed: int
    rejected: int
    prompt_tokens: TokenCounts
    generated_tokens: int


class Recent(TypedDict):
    """The same over the last seconds.

    Attributes:
        seconds: How many.
        prompt_tokens: By source.
        generated_tokens: In all.
    """

    seconds: int
    prompt_tokens: TokenCounts
    generated_tokens: int


class TierView(TypedDict):
    """A tier: L1 (with its cache buffers), L2 or L3.

    Attributes:
        tier: Its name.
        capacity_bytes: Bytes that it may take.
        used_bytes: Bytes that it takes.
        held_bytes: Of them, bytes that cannot be evicted now: requests or prefetches hold them.
        blocks: Blocks that can be read.
        read_bytes: Payload bytes read since the start. L1: bytes of the blocks taken by reference.
        write_bytes: Payload bytes written since the start; null where the tier does not count them.
        read_bytes_recent: The same over `Snapshot.recent.seconds`.
        write_bytes_recent: Likewise.
        corrupt: Reads that found damaged bytes; null where nothing is checked.
        hit_tokens: Prompt tokens that it gave, as in `Totals.prompt_tokens`.
    """

    tier: str
    capacity_bytes: int
    used_bytes: int
    held_bytes: int
    blocks: int
    read_bytes: int
    write_bytes: int | None
    read_bytes_recent: int
    write_bytes_recent: int | None
    corrupt: int | None
    hit_tokens: int


class Span(TypedDict):
    """A part of a prompt.

    Attributes:
        start: Its first token.
        end: The token behind its last one.
        source: Where its KV came from: one of `SOURCES`.
    """

    start: int
    end: int
    source: str


class RequestView(TypedDict):
    """A request.

    Attributes:
        id: As the answer has it.
        phase: `waiting`, `shared` (waiting for a prefix that another request computes), `prefill`,
            `decode`; then `stop`, `length`, `cancelled` or `failed`.
        prompt_tokens: Tokens of the prompt; null of one that failed before the look-up.
        computed_tokens: Of them, those whose KV is there, restored ones included.
        generated_tokens: Tokens generated so far.
        max_tokens: At most so many; null before the look-up.
        spans: The prompt by source, from its first token on; empty before the look-up.
        queued_s: Seconds between submission and look-up; null before.
        first_token_s: Seconds from submission to the first token; null before.
        age_s: Seconds since the submission; of one that ended, all that it took; null if it ended before the look-up.
        ended: When it ended, in unix seconds; null before.
    """

    id: str
    phase: str
    prompt_tokens: int | None
    computed_tokens: int
    generated_tokens: int
    max_tokens: int | None
    spans: list[Span]
    queued_s: float | None
    first_token_s: float | None
    age_s: float | None
    ended: float | None


class Eviction(TypedDict):
    """What left a tier, for one reason.

    Attributes:
        tier: `l1`, `l2`, `l3`, or `buffers` for resident sequences in L1's cache buffers.
        reason: See `kvlab:evictions_total` in docs/metrics.md.
        unit: What is counted: `blocks`, `runs` or `sequences`.
        total: Since the start.
        recent: In the seconds of `series`.
        series: By second, the running one last.
    """

    tier: str
    reason: str
    unit: str
    total: int
    recent: int
    series: list[int]


class Refusal(TypedDict):
    """What a tier did not keep, for one reason.

    Attributes:
        reason: See `kvlab:refusals_total` in docs/metrics.md.
        total: Since the start.
        recent: In the seconds of `series`.
    """

    reason: str
    total: int
    recent: int


class Failure(TypedDict):
    """A request that failed or was not taken.

    Attributes:
        at: When, in unix seconds.
        kind: The error's type, or `rejected`.
        request: The request's id; null where it had none yet.
        message: What was said; at most 500 characters.
    """

    at: float
    kind: str
    request: str | None
    message: str


class Series(TypedDict):
    """Numbers by second, the oldest first and the running second last.

    Attributes:
        seconds: How many numbers each row has.
        prompt_tokens: For each source the prompt tokens of requests admitted in that second.
        generated_tokens: Tokens generated in that second.
    """

    seconds: int
    prompt_tokens: dict[str, list[int]]
    generated_tokens: list[int]


class Snapshot(TypedDict):
    """All of it.

    Attributes:
        version: Of this shape.
        server: What serves.
        totals: Counts since the start.
        recent: Counts over the last seconds.
        tiers: From L1 down; empty without a store.
        series: Counts by second.
        running: Requests under way, in the order of their admission.
        waiting: Those that wait, the oldest first; those that wait longest if they are many.
        waiting_count: How many wait in all.
        ended: Requests that ended, the last one first; a bounded number.
        evictions: What left the tiers, where there was any.
        refusals: What they did not keep, where there was any.
        errors: The last ones first; a bounded number.
    """

    version: int
    server: Server
    totals: Totals
    recent: Recent
    tiers: list[TierView]
    series: Series
    running: list[RequestView]
    waiting: list[RequestView]
    waiting_count: int
    ended: list[RequestView]
    evictions: list[Eviction]
    refusals: list[Refusal]
    errors: list[Failure]
