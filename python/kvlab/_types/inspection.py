"""What opening, inspecting and checking a store found."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from pathlib import Path

    from kvlab._types import Tier
    from kvlab._types.costs import Choice


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
        payloads_unread: Runs that were kept though the system could not read their bytes.
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
    payloads_unread: int
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
