"""The Rust core of kvlab. Private: use the names that `kvlab` exports.

Every argument that can never be right raises `InvalidArgumentError` or `ConfigError` with its name,
its value and what to give instead; a value of another type raises `TypeError`. What raises changes
nothing, unless its docstring says so.
"""

from collections.abc import Callable, Iterable, Sequence
from os import PathLike
from typing import Any, Final, Literal, Protocol, Self, TypeAlias, final

from typing_extensions import Buffer

from kvlab._types import (
    BlockStoreStats,
    CacheStats,
    Choice,
    CostStats,
    Exported,
    Imported,
    Inspection,
    PoolStats,
    PrefetchProgress,
    PromptExplanation,
    RadixStats,
    RecoveryReport,
    RemoteHealth,
    Restored,
    RestoreMode,
    Scrubbed,
    StoreStats,
    Tier,
    Verification,
)
from kvlab.sim.policy import PolicyBase
from kvlab.sim.workloads.pages import Page
from kvlab.tier import Tier as SharedTier

__version__: Final[str]

class _Tensor(Protocol):
    """Anything with a `numpy()`, such as a CPU tensor of torch."""

    def numpy(self) -> Any: ...

_Tokens: TypeAlias = Buffer | _Tensor | Iterable[int]
"""Token ids, `[tokens]`.

A contiguous numpy array or `array.array` of int64, int32, uint32 or uint16, a CPU tensor of such a dtype
(read at once, whatever its length), or any iterable of ints (read item by item). Each id is 0 to
2**32 - 1."""

def build_info() -> dict[str, str]:
    """What this extension was built as: `version`, `profile`, `os`, `arch`."""

def parse_size(size: int | str, /) -> int:
    """Reads a size in bytes: an int, or a string such as `"512MiB"` or `"1.5GB"`.

    Raises:
        InvalidArgumentError: the text is not a size, or the number is negative or too large.
        TypeError: neither an int nor a string.
    """

def parse_ttl(ttl: int | str, /) -> int:
    """Seconds of a time to live: an int of seconds, or e.g. `"90s"`, `"15min"`, `"12h"`, `"7d"`, `"2w"`.

    Raises:
        InvalidArgumentError: it is not understood, or not 1 to 4294967295 s.
        TypeError: neither an int nor a string.
    """

def inspect_store(path: str | PathLike[str]) -> Inspection:
    """What is in the store of a directory, without opening it; damage is reported, not raised.

    Reads headers, and a copy of the index; nothing is locked or changed. The GIL is released.

    Raises:
        FormatError: the directory is not a kvlab store, or one of an unknown version.
        StoreIOError: it cannot be read.
    """

def verify_store(
    path: str | PathLike[str], progress: Callable[[int, int], object] | None = None
) -> Verification:
    """Reads and checks everything in the store of a directory, without opening it. The GIL is released.

    Args:
        path: The directory.
        progress: Called with the bytes done and the bytes in all, now and then. What it raises is
            raised at the end.

    Raises:
        FormatError: the directory is not a kvlab store, or one of an unknown version.
        StoreIOError: it cannot be read.
    """

def export_namespace(
    path: str | PathLike[str],
    namespace: bytes,
    file: str | PathLike[str],
    progress: Callable[[int, int], object] | None = None,
) -> Exported:
    """Writes a namespace of a directory's store to one file, without opening the store.

    Every byte is checked on the way; what is damaged, and what hangs from it, is left out. The file
    is replaced at the end or not at all. The GIL is released.

    Args:
        path: The directory.
        namespace: 32 bytes.
        file: Where to.
        progress: As for `verify_store`.

    Raises:
        FormatError: the directory is not a kvlab store, or one of an unknown version.
        StoreIOError: it cannot be read, or the file cannot be written.
    """

def kv_size(
    *,
    layers: int,
    kv_heads: int,
    head_dim: int,
    dtype: str,
    batch: int,
    seq_len: int,
    params: int | None,
    latent: tuple[int, int] | None = None,
    memory: int | None = None,
) -> dict[str, Any]:
    """The fields of `kvlab.sizing.KvSize`; those that need `params` or `memory` may be None.

    Raises:
        InvalidArgumentError: a size of 0 or below, an unknown dtype, or a result beyond 64 bits.
    """

def kv_presets() -> dict[str, dict[str, Any]]:
    """The fields of `kvlab.sizing.ModelShape` of each published model, by name."""

def sim_schemes() -> list[tuple[str, float, float]]:
    """The schemes of page mode: `(name, bytes_per_scalar, decode_ms)`."""

def sim_tier_presets() -> list[tuple[str, str]]:
    """The sets of tiers that are known by name, with what they are."""

def sim_tier_preset(name: str, /) -> list[tuple[str, int, float, float, float, int | None]]:
    """The tiers of a set: the fields of `kvlab.sim.scenarios.TierSpec`, in order.

    Raises:
        ConfigError: the name is not known.
    """

def sim_page_policies() -> list[tuple[str, str, list[str], bool]]:
    """The policies of page mode: `(name, what it does, parameters, whether there is one a tier)`."""

def simulate_pages(
    *,
    tier_fields: list[tuple[str, int, float, float, float, int | None]],
    sizes: list[int],
    decode_ms: list[float],
    starts: list[tuple[int, int]],
    trace: _Tokens,
    steps: list[int] | None,
    hints: list[int],
    policy: str | PolicyBase,
    params: list[tuple[str, float]],
    pages: list[Page],
    prefetch: bool,
    max_prefetches: int,
    compat: bool,
    compute_ms: float | None,
) -> dict[str, Any]:
    """Replays a page trace; `kvlab.sim.page.simulate` says with what.

    The GIL is released, but for a policy of the caller's.

    Args:
        tier_fields: The fields of each tier, the fastest first.
        sizes: Bytes of each page.
        decode_ms: Each page's decode penalty, in milliseconds.
        starts: Pages that start in a tier, each with the tier's place.
        trace: The page of each row.
        steps: The step of each row; None for its place.
        hints: The rows that are hints.
        policy: A policy's name, or a policy.
        params: Parameters of a policy by name.
        pages: The pages as a policy of the caller's is to see them.
        prefetch: Whether pages are fetched ahead.
        max_prefetches: How many of a policy's proposals are followed.
        compat: Whether the rules are kv-hierarchy-lab's.
        compute_ms: Milliseconds of compute behind each access; None without overlap.

    Raises:
        ConfigError: an unknown policy or parameter.
        InvalidArgumentError: a tier, page or row that cannot be; a page larger than a tier.
        Exception: what a policy of the caller's raised.
    """

@final
class PolicyContext:
    """What a policy of one's own may look at: what is so during the call that it is given to."""

    @property
    def step(self) -> int:
        """The step of the access that is being served."""

    @property
    def tiers(self) -> tuple[str, ...]:
        """The tiers' names, the fastest first."""

    def tier_of(self, page: int) -> str | None:
        """The fastest tier that the page of that number is in; None if it is in none.

        Raises:
            InvalidArgumentError: there is no such page.
        """

    def free_bytes(self, tier: str) -> int:
        """Bytes that are free in the tier.

        Raises:
            InvalidArgumentError: there is no such tier.
        """

@final
class PagedAllocator:
    """A fixed pool of blocks, and sequences over it as tables of blocks, with fork and copy-on-write.

    The idea is PagedAttention's (Kwon et al., 2023, "Efficient Memory Management for Large Language
    Model Serving with PagedAttention", section 4): a sequence takes blocks as it grows instead of
    its maximum length at once, sequences share blocks by counting references, and a write to a
    shared block copies it first. The code is this project's own.

    Memory is reserved when it is made and committed page by page when it is first written. Safe
    from many threads; each call is atomic.

    Args:
        num_blocks: Blocks, 1 to 2**32 - 1.
        block_tokens: Tokens in a block, 1 to 2**32 - 1.
        block_bytes: Bytes of a block, a multiple of `block_tokens`; 0 for an allocator that only counts.

    Raises:
        InvalidArgumentError: a size that cannot be.
        StoreIOError: the operating system refuses the memory.
    """

    def __new__(cls, num_blocks: int, *, block_tokens: int = 16, block_bytes: int = 0) -> Self: ...
    def allocate_sequence(self, tokens: int = 0) -> int:
        """A new sequence with room for `tokens` tokens, their bytes unspecified.

        Returns:
            Its id, never given out twice by this allocator.

        Raises:
            CapacityError: too few blocks are free.
            InvalidArgumentError: a negative number, or one beyond 64 bits.
        """

    def append_tokens(self, sequence: int, tokens: int) -> int:
        """Makes room for more tokens; a partial last block that is shared is copied first.

        Returns:
            How many blocks were added; the copy is not counted.

        Raises:
            CapacityError: too few blocks are free.
            NotFoundError: no such sequence.
            InvalidArgumentError: a number that cannot be.
        """

    def free_sequence(self, sequence: int) -> int:
        """Ends a sequence.

        Returns:
            How many blocks became free; the others are held by forks or a `RadixCache`.

        Raises:
            NotFoundError: no such sequence, or it was freed already.
        """

    def fork(self, sequence: int) -> int:
        """A new sequence that shares every block until one of the two writes to it; copies nothing.

        Returns:
            Its id.

        Raises:
            NotFoundError: no such sequence.
        """

    def truncate(self, sequence: int, tokens: int) -> int:
        """Cuts a sequence to its first `tokens` tokens.

        Returns:
            How many blocks became free.

        Raises:
            NotFoundError: no such sequence.
            InvalidArgumentError: it is shorter than that.
        """

    def write(self, sequence: int, position: int, data: Buffer) -> int:
        """Writes whole tokens; shared blocks in the way are copied first.

        Args:
            sequence: Which one.
            position: The first token to write.
            data: uint8, contiguous, a multiple of `block_bytes / block_tokens` bytes.

        Returns:
            How many blocks were copied.

        Raises:
            NotFoundError: no such sequence.
            InvalidArgumentError: not whole tokens, or beyond the sequence's end.
            CapacityError: too few blocks are free for the copies.
        """

    def read(self, sequence: int, position: int, tokens: int) -> bytes:
        """The bytes of `tokens` tokens from token `position` on.

        Raises:
            NotFoundError: no such sequence.
            InvalidArgumentError: beyond the sequence's end.
        """

    def block_table(self, sequence: int) -> list[int]:
        """The block ids of a sequence, in token order.

        Raises:
            NotFoundError: no such sequence.
        """

    def tokens(self, sequence: int) -> int:
        """Tokens of a sequence.

        Raises:
            NotFoundError: no such sequence.
        """

    def stats(self) -> PoolStats:
        """What is held; taken in O(1)."""

    def validate(self) -> None:
        """Checks pool and sequences against each other, in O(blocks).

        Raises:
            AssertionError: with what is wrong.
        """

@final
class RadixCache:
    """The longest cached prefix of token sequences, over the blocks of one allocator.

    A radix tree as in SGLang's RadixAttention (Zheng et al., 2024, "SGLang: Efficient Execution of
    Structured Language Model Programs", section 3), with nodes that begin and end on block borders.
    Eviction gives up leaves first, in O(log n) each; `toys/radix_cache.py` is the same cache in
    plain Python. Namespaces are separate roots: 32 bytes each, None for the default one. The cache
    holds one reference to each of its blocks. Safe from many threads.

    Args:
        allocator: Whose blocks are kept.
        policy: The order in which leaves go: `"lru"`, `"slru"`, `"lfu"` (with ageing), `"s3-fifo"`, `"sieve"`,
            `"w-tinylfu"` or `"gdsf"`.

    Raises:
        ConfigError: an unknown policy.
        InvalidArgumentError: blocks of more than 65,536 tokens.
    """

    def __new__(cls, allocator: PagedAllocator, *, policy: str = "lru") -> Self: ...
    def match_prefix(
        self, tokens: _Tokens, namespace: bytes | None = None, *, lock: bool = False
    ) -> PrefixMatch:
        """The longest cached prefix, in whole blocks. Counts as a use of its path.

        Args:
            tokens: `[tokens]`; may be empty.
            namespace: 32 bytes.
            lock: Lock the match at once, so that no other thread can evict it in between.

        Returns:
            A place in the tree; lock it to keep it. As a context manager it is locked inside.

        Raises:
            InvalidArgumentError: a wrong dtype, shape or token id, or a namespace that is not 32 bytes.
            TypeError: neither a buffer nor ints.
        """

    def match_partial(
        self, tokens: _Tokens, namespace: bytes | None = None
    ) -> tuple[PrefixMatch, int | None, int]:
        """As `match_prefix`, and the block that shares the most tokens beyond it.

        Returns:
            The match, the id of a block to copy from (None if there is none), and how many of its tokens fit.

        Raises:
            InvalidArgumentError: as for `match_prefix`.
        """

    def request(self, tokens: _Tokens, namespace: bytes | None = None) -> tuple[list[int], int]:
        """What a request can reuse and what it has to compute; the last token is always computed.

        Returns:
            The ids of the blocks to share, and the number of tokens to compute.

        Raises:
            InvalidArgumentError: as for `match_prefix`.
        """

    def insert(self, tokens: _Tokens, blocks: _Tokens, namespace: bytes | None = None) -> int:
        """Keeps a prompt whose KV stands in `blocks`, by reference. Counts as a use of its path.

        Args:
            tokens: `[tokens]`, at least one.
            blocks: `[ceil(tokens / block_tokens)]`, ids of allocated blocks in token order; the
                last one may be partial.
            namespace: 32 bytes.

        Returns:
            How many of the tokens were there already; their blocks were not taken.

        Raises:
            InvalidArgumentError: no tokens, another number of blocks, or as for `match_prefix`.
            NotFoundError: a block that is not allocated.
        """

    def evict(self, blocks: int) -> int:
        """Gives up blocks, the least recently used leaves first; of the last leaf only its tail.

        Returns:
            How many went: `blocks`, or all that are not locked.

        Raises:
            InvalidArgumentError: a negative number.
        """

    def clear(self, namespace: bytes | None = None) -> int:
        """Drops what a namespace holds; locked prefixes stay.

        Returns:
            How many blocks went.

        Raises:
            InvalidArgumentError: a namespace that is not 32 bytes.
        """

    def stats(self) -> RadixStats:
        """Nodes, leaves and blocks; kept incrementally."""

    def validate(self) -> None:
        """Checks tree and allocator, in O(blocks).

        Raises:
            AssertionError: with what is wrong.
        """

@final
class PrefixMatch:
    """A matched prefix: a place in the tree. As a context manager it is locked inside the block."""

    @property
    def tokens(self) -> int:
        """Tokens that matched, in whole blocks."""

    def __len__(self) -> int:
        """As `tokens`."""

    def blocks(self) -> list[int]:
        """The matched blocks' ids, in order.

        Raises:
            InvalidArgumentError: some of them were evicted since.
        """

    def lock(self) -> None:
        """Protects the matched path from eviction until `unlock`, or until this object is gone.

        Raises:
            InvalidArgumentError: it is locked already, or some of its blocks were evicted since.
        """

    def unlock(self) -> None:
        """Gives the lock back.

        Raises:
            StateError: it is not locked.
        """

    def __enter__(self) -> Self: ...
    def __exit__(self, *_error: object) -> None: ...

@final
class KvLayout:
    """What a model's KV cache looks like. Equal layouts of one store share a prefix cache.

    Args:
        layers: For each layer `(k_heads, k_dim, v_heads, v_dim)`; K and V may differ.
        element_bytes: Bytes of one element, such as 4 for float32.
        block_tokens: Tokens in a block.

    Raises:
        InvalidArgumentError: no layers, a size of 0 or below, or a block of more than 1 GiB.
    """

    def __new__(
        cls,
        layers: Sequence[tuple[int, int, int, int]],
        *,
        element_bytes: int,
        block_tokens: int = 16,
    ) -> Self: ...
    @property
    def token_bytes(self) -> int:
        """KV bytes of one token over all layers."""

    @property
    def block_tokens(self) -> int:
        """Tokens in a block."""

    @property
    def block_bytes(self) -> int:
        """KV bytes of one block."""

    def describe(self) -> bytes:
        """The bytes that tell this layout from any other: a field of the namespace."""

    def __eq__(self, other: object, /) -> bool: ...
    def __ne__(self, other: object, /) -> bool: ...
    __hash__: None  # type: ignore[assignment]

@final
class CacheBuffer(Buffer):
    """The contiguous per-layer memory that a model computes from: page-aligned, pooled, writable.

    The buffer protocol gives its `nbytes` bytes; `numpy.frombuffer` and `torch.frombuffer` make
    arrays over them without a copy. For each layer K is `[k_heads, capacity, k_dim]` and V
    `[v_heads, capacity, v_dim]`, each from its own offset on. The memory goes back to its pool when
    the last array over it is gone.
    """

    @property
    def capacity(self) -> int:
        """Tokens that fit: at least what was asked for, in whole blocks."""

    @property
    def nbytes(self) -> int:
        """Bytes in all, the padding between tensors included."""

    def offsets(self) -> list[tuple[int, int]]:
        """For each layer the byte offsets of K and of V; each is on a page."""

    def forget(self) -> None:
        """Says that committed rows will be overwritten: the buffer does not become resident for them."""

    def __buffer__(self, flags: int, /) -> memoryview: ...

@final
class KvCodec:
    """How L3 stores the KV of a layout.

    `exact` stores the bytes as they are. `int8` stores symmetric 8-bit integers and one scale for each
    token and head, in the format of the elements: 64 elements of float32 take 68 bytes instead of 256, of
    the 16-bit dtypes 66 instead of 128. An element comes back within half a scale, which is the largest
    magnitude of its head and token divided by 127; a head and token with an infinity or a NaN comes back
    as NaN.

    Args:
        name: `exact` or `int8`.
        layout: What is stored.
        dtype: Of the elements: `float32`, `float16` or `bfloat16`.

    Raises:
        ConfigError: another name; for int8 another dtype, one of another length than the layout's, or head
            dimensions without a common divisor of 16 or more.
    """

    def __new__(cls, name: str, layout: KvLayout, *, dtype: str) -> Self: ...
    def stored_bytes(self, raw: int) -> int:
        """Bytes that `raw` bytes of a layer take on L3, padding excluded."""

    def measure(self, payload: bytes, rounds: int = 5) -> tuple[float, float]:
        """Seconds that encoding and decoding take, by one thread in memory; the best of `rounds`.

        For `exact` both are a copy. The GIL is released.

        Args:
            payload: Elements, whole heads of tokens.
            rounds: How often.

        Raises:
            InvalidArgumentError: no bytes, or no whole number of heads and tokens.
        """

@final
class PrefixCache:
    """The prefix cache of one KV layout: token ids to the longest cached prefix, in all tiers.

    `Store.prefix_cache` makes it.

    The way of a request: `begin`, `lease` a buffer, `Request.restore` into it, compute the rest
    there, `Request.commit`, `Request.close`. A worker then fills L1 and writes through. Blocks
    below L1 are found by key, the chain `SHA-256(parent || token ids as uint32 little-endian)` of
    SGLang's storage keys, whose first parent is the namespace. Safe from many threads.
    """

    @property
    def layout(self) -> KvLayout:
        """The layout of its blocks and buffers."""

    def set_terms(
        self,
        namespace: bytes,
        *,
        salt: str = "",
        ttl: int | str | None = None,
        quota: int | str | None = None,
        persist: bool = True,
        codec: KvCodec | None = None,
    ) -> None:
        """Says what is asked of the tiers for the blocks of a namespace that are stored from now on.

        Args:
            namespace: 32 bytes.
            salt: Whose blocks they are, for the quota; empty for nobody's.
            ttl: Seconds, or e.g. `"7d"`, after which a block is a miss in every tier, counted from when it was
                first stored; None for no limit.
            quota: Bytes of L3 for all namespaces of the salt; what is over evicts their own leaves. None leaves
                it as it is.
            persist: Whether they may be written to disk.
            codec: How L3 stores them, made for the layout of this cache; None for as they are. It should be part of
                what the namespace is a digest of, so that no name stands for two sets of bytes. What was stored
                before is read as it was stored.

        Raises:
            InvalidArgumentError: a namespace of another length, a time or size that cannot be, a quota without a salt.
            ReadOnlyStoreError: a quota for a store that is only read.
            StoreClosedError: the store is closed.
        """

    def begin(
        self,
        tokens: _Tokens,
        namespace: bytes,
        *,
        grid: int = 0,
        category: int = 0,
        inquiry: Inquiry | None = None,
    ) -> Request:
        """Starts a request: finds the longest cached prefix and locks what L1 has of it.

        A hit is whole blocks, ends before the last token (whose logits the caller is after), and is
        rounded down to `grid`.

        Args:
            tokens: `[tokens]`, the whole prompt, at least one.
            namespace: 32 bytes that stand for everything that the KV bytes depend on.
            grid: A multiple of the block's tokens; 0 for the block.
            category: What kind of request it is, 0 to 4294967295: your own number, 0 where that is
                unknown. A capture records it, and policies of the simulator read it.
            inquiry: What L4 said of this prompt (`inquire`), which is then not asked. Without it, what is not
                on this machine is asked for now, for at most the time-out of L4; the GIL is released.

        Returns:
            The request; close it.

        Raises:
            InvalidArgumentError: an empty prompt, a wrong dtype, shape or token id, another
                namespace, grid or category.
            StoreClosedError: the store is closed.
            ForkedProcessError: the store is a parent process's.
        """

    def inquire(self, tokens: _Tokens, namespace: bytes, *, grid: int = 0) -> Inquiry:
        """Asks L4 for what of a prompt is not on this machine, ahead of its request. The GIL is released.

        Waits for at most the time-out of L4; counts as no use. It is not asked where requests of the namespace left
        it alone a short while ago because computing was quicker, nor without L4.

        Args:
            tokens: As for `begin`.
            namespace: As for `begin`.
            grid: As for `begin`.

        Returns:
            The answer, for `begin`. It holds nothing: what vanishes there meanwhile is a miss.

        Raises:
            InvalidArgumentError: as for `begin`.
            StoreClosedError: the store is closed.
            ForkedProcessError: the store is a parent process's.
        """

    def lease(self, tokens: int, *, spare: int = 0) -> CacheBuffer:
        """A cache buffer. The GIL is released.

        If no memory is left, resident sequences make way, then commits and writes that hold some
        are waited for.

        Args:
            tokens: How many are to fit, prompt and what is generated, at least 1.
            spare: Room for so many more where that costs nothing: memory that is there already, or
                the free half of the budget; at most as many as `tokens`.

        Raises:
            InvalidArgumentError: 0 or a negative number.
            CapacityError: buffers in use leave too little, or the budget is too small for it.
            StoreClosedError: the store is closed.
        """

    def prefetch(
        self, tokens: _Tokens, namespace: bytes, *, stop: str | None = None
    ) -> PrefetchTicket:
        """Starts to pull what L3 has of the prompt beyond L1 into L2, as far as there is room; at most half is held.

        Args:
            tokens: The prompt, as for `begin`.
            namespace: 32 bytes.
            stop: `"best_effort"`, `"timeout"` or `"wait_complete"`, as the `prefetch_policy` of
                `Store.open`, which is the default.

        Raises:
            InvalidArgumentError: as for `begin`.
            ConfigError: an unknown `stop`.
            StoreClosedError: the store is closed.
        """

    def explain(
        self, tokens: _Tokens, namespace: bytes, model: bytes, *, grid: int = 0
    ) -> PromptExplanation:
        """What the tiers know of a prompt, under this namespace and others; counts as no use.

        What is nowhere on this machine is asked for in L4. The GIL is released.

        Args:
            tokens: As for `begin`.
            namespace: As for `begin`.
            model: As for `Request.choose`: for the costs of computing.
            grid: As for `begin`.

        Raises:
            InvalidArgumentError: as for `begin`.
            StoreClosedError: the store is closed.
        """

    def evict(self, blocks: int | None = None) -> int:
        """Gives up L1 blocks to the tiers below; all that are not locked by default. The GIL is released.

        Returns:
            How many went.

        Raises:
            InvalidArgumentError: a negative number.
            StoreClosedError: the store is closed.
            StoreTimeoutError: commits under way did not end.
        """

    def flush(self, timeout: float = 60.0) -> None:
        """Waits until every commit is in L1 and every accepted write in L3. The GIL is released.

        Args:
            timeout: Seconds.

        Raises:
            StoreTimeoutError: it took longer.
            InvalidArgumentError: a negative timeout.
            StoreClosedError: the store is closed.
        """

    def stats(self) -> CacheStats:
        """What L1 and the cache buffers hold; answers after a close, too."""

    def validate(self) -> None:
        """Checks pool, sequences, tree and counters against each other.

        Raises:
            AssertionError: with what is wrong.
        """

@final
class Inquiry:
    """What L4 has of a prompt that is not on this machine. `PrefixCache.inquire` makes it."""

    @property
    def blocks(self) -> int:
        """How many blocks."""

@final
class Request:
    """A request: what L1 has of its prompt stays locked, shared by reference, until it is closed.

    Once committed or forked its blocks may be given up under memory pressure; it then restores
    nothing and forks to None.
    """

    @property
    def prompt_tokens(self) -> int:
        """The prompt's length in tokens."""

    @property
    def found(self) -> tuple[int, int, int, int]:
        """Tokens found, as `(l1, l2, l3, l4)`."""

    def choose(self, restore: RestoreMode, model: bytes) -> Choice:
        """Decides how much of what was found a restore brings; without this call, all of it.

        The cut with the least predicted time of reading and computing, from what the store has
        learnt (`Store.costs`). Cuts lie on the grid and at the ends of runs, which are read whole.

        Args:
            restore: `"always"`, `"auto"` or `"never"`.
            model: 32 bytes that stand for all that the time of a forward depends on.

        Raises:
            ConfigError: another mode.
            InvalidArgumentError: a model that is not 32 bytes.
            StoreClosedError: the request is closed.
        """

    def computed(self, model: bytes, tokens: int, context: int, seconds: float) -> None:
        """Notes how long a forward of this request took; `choose` learns from it.

        Args:
            model: As for `choose`.
            tokens: How many it computed.
            context: How many were before them.
            seconds: Wall time, waits for a restore not counted.

        Raises:
            InvalidArgumentError: a number that cannot be.
            StoreClosedError: the request is closed.
        """

    def overlapped(self, read: float, computed: float, waited: float) -> None:
        """Notes how a restore went on beside a forward; `choose` learns from it.

        Args:
            read: Seconds until the last byte from L2 or L3 was there.
            computed: Seconds that the forward computed.
            waited: Seconds that it waited for layers on top.

        Raises:
            InvalidArgumentError: a number that cannot be.
            StoreClosedError: the request is closed.
        """

    def start_restore(self, buffer: CacheBuffer) -> Restore:
        """Begins to bring what was found into the buffer, from its first token on, the first layers first.

        What the tiers below gave is read once: a second call brings L1's part only. The GIL is released.

        Args:
            buffer: Leased from the same cache, with room for the prompt.

        Raises:
            InvalidArgumentError: too small, or of another layout.
            StoreClosedError: the request or the store is closed.
        """

    def restore(self, buffer: CacheBuffer) -> Restored:
        """Brings what was found into the buffer, from its first token on; waits until it is there and verified.

        Damaged bytes below shorten the prefix; that is no exception but `failure` and a counter.
        What the tiers below gave is read once: a second call brings L1's part only. The GIL is released.

        Args:
            buffer: Leased from the same cache, with room for the prompt.

        Raises:
            InvalidArgumentError: too small, or of another layout.
            StoreClosedError: the request or the store is closed.
        """

    def take_resident(self, capacity: int, *, cut: bool = True) -> tuple[CacheBuffer, int] | None:
        """Takes over the buffer of a resident sequence that has no fewer of the prompt's tokens than were found.

        Nothing needs to be restored then: the tokens stand in the buffer as L1 has them.

        Args:
            capacity: Tokens that the buffer must have room for.
            cut: Whether the resident may lose what it had behind those tokens (only ever less than
                what is reused).

        Returns:
            The buffer and how many leading tokens stand in it, or None.

        Raises:
            InvalidArgumentError: a negative capacity.
            StoreClosedError: the request or the store is closed.
        """

    def commit(self, tokens: _Tokens, buffer: CacheBuffer, *, resident: bool = False) -> None:
        """Hands over tokens whose KV stands in the buffer: a worker puts them into L1 and the tiers below.

        The rows of these tokens must not change until `wait_committed`; rows behind them may.
        Writes to L3 hold the buffer until they are done.

        Args:
            tokens: `[tokens]`, from the first token of the prompt on; they begin with what was
                found in L1, restored or committed.
            buffer: Leased from the same cache.
            resident: The rows stay as they are even longer: until `CacheBuffer.forget`, or until
                the last array over the buffer is gone. It is then kept for a while for a request
                that goes on from these tokens (`take_resident`).

        Raises:
            InvalidArgumentError: tokens that do not go on from there or do not fit; a buffer of
                another layout.
            StoreClosedError: the request or the store is closed.
        """

    def wait_committed(self, timeout: float = 60.0) -> bool:
        """Waits until the last commit is in L1 and the buffer's rows are no longer read for it. The GIL is released.

        Args:
            timeout: Seconds.

        Returns:
            False if the time ran out.

        Raises:
            InvalidArgumentError: a negative timeout.
            StoreClosedError: the request is closed.
        """

    def fork(self, timeout: float = 60.0) -> Request | None:
        """A second request on the same blocks; the two go on without touching each other.

        It finds in L1 what this one holds, commits included, which are waited for.

        Args:
            timeout: Seconds.

        Returns:
            None if the blocks were given up under memory pressure: begin again instead.

        Raises:
            StoreTimeoutError: the last commit did not end in time.
            InvalidArgumentError: a negative timeout.
            StoreClosedError: the request or the store is closed.
        """

    def sequence(self) -> tuple[list[int], int]:
        """The block ids of this request's sequence now, and its tokens; empty once given up.

        Raises:
            StoreClosedError: the request is closed.
        """

    def close(self) -> None:
        """Gives up the lock and the sequence; a second call does nothing. Commits under way go on."""

@final
class Restore:
    """A restore under way.

    When it is dropped, what has not begun is given up and what has is waited for: the buffer is
    written to no more then.
    """

    @property
    def tokens(self) -> tuple[int, int, int, int]:
        """Tokens that will stand in the buffer if nothing fails, as `(l1, l2, l3, l4)`."""

    @property
    def under_way(self) -> bool:
        """Whether any of it is still on its way from the tiers below; never waits. False once it is finished."""

    def wait_layer(self, layer: int, timeout: float = 60.0) -> bool:
        """Waits until a layer of all tokens stands in the buffer, verified. The GIL is released.

        Args:
            layer: Its index; one that the model does not have is there.
            timeout: Seconds.

        Returns:
            False if it will not come whole, because of this layer or of another one; `finish` says
            how many leading tokens did.

        Raises:
            StoreTimeoutError: it did not come in time; the restore goes on.
            InvalidArgumentError: a negative layer or timeout.
            StoreClosedError: the restore is finished.
        """

    def finish(self) -> Restored:
        """Waits until nothing is under way any more; says what stands in the buffer. The GIL is released.

        Damaged bytes below shorten the prefix; that is no exception but `failure` and a counter.

        Raises:
            StoreClosedError: the restore was finished before.
        """

@final
class PrefetchTicket:
    """A prefetch under way. Dropping it changes nothing: what it asked for is still loaded and held for its time."""

    def progress(self) -> PrefetchProgress:
        """Blocks wanted and loaded, and bytes loaded, so far."""

    def wait(self, timeout: float = 60.0) -> bool:
        """Waits until all is loaded or given up. The GIL is released.

        Args:
            timeout: Seconds.

        Returns:
            False if the time ran out.

        Raises:
            InvalidArgumentError: a negative timeout.
        """

    def cancel(self) -> None:
        """Stops it; what was loaded loses its pin."""

@final
class Store:
    """A hierarchical store: prefix caches that share an L1 budget, over L2 in memory, L3 on disk and L4 on servers.

    A context manager; leaving it closes the store. A store that is still open when the interpreter
    ends is closed then, within 10 seconds.
    """

    @classmethod
    def open(
        cls,
        path: str | PathLike[str] | None = None,
        *,
        l1: int | str = "512MiB",
        l2: int | str = "2GiB",
        l3: int | str = "20GiB",
        policy: str = "lru",
        write_policy: str = "write_through",
        durable: bool = False,
        direct: bool = True,
        free_reserve: int | str = "1GiB",
        l3_read_limit: int | str | None = None,
        l3_write_limit: int | str | None = None,
        io_workers: int = 4,
        prefetch_timeout: float = 30.0,
        prefetch_policy: str = "best_effort",
        l3_quota_per_salt: int | str | None = None,
        read_only: bool = False,
        allow_unsafe_directory: bool = False,
        capture: str | PathLike[str] | None = None,
        remote: str | Sequence[str] | SharedTier | None = None,
        remote_ttl: int | str = "1d",
        remote_timeout: float = 0.25,
        remote_prefix: str = "kvlab",
        remote_cluster: bool = False,
        remote_ca_file: str | PathLike[str] | None = None,
        remote_certificate_file: str | PathLike[str] | None = None,
        remote_private_key_file: str | PathLike[str] | None = None,
        remote_key_file: str | PathLike[str] | None = None,
    ) -> Store:
        """Opens a store. The directory is this process's alone until it is closed.

        Args:
            path: The cache directory, made (0700) if missing, `~` expanded; None for a store in memory only.
            l1: Bytes of L1: blocks and cache buffers of all prefix caches.
            l2: Bytes of L2; 0 for none.
            l3: Bytes of L3 on disk; 0 for none, 1 MiB at least.
            policy: Which runs and blocks go first, in every tier: `"lru"`, `"slru"`, `"lfu"` (with ageing),
                `"s3-fifo"`, `"sieve"`, `"w-tinylfu"` or `"gdsf"`.
            write_policy: `"write_through"` writes to L3 at once, in the background;
                `"write_through_selective"` at the second use, and never what was used once;
                `"write_back"` when L2 gives a run up, and at the close what is still above L3.
                The names are those of SGLang's HiCache.
            durable: Wait for stable storage before a write counts as done.
            direct: Bypass the page cache where the file system allows it.
            free_reserve: Bytes of the file system to leave free.
            l3_read_limit: Bytes of L3 that may be read in a second, for a disk that is shared; None for no limit.
            l3_write_limit: The same for writes.
            io_workers: Threads that read, 1 to 64.
            l3_quota_per_salt: Bytes of L3 that the blocks of one salt may take, unless `attach` says otherwise; None
                for no limit. What is over evicts that salt's own least recently used leaves.
            read_only: Serve what is there, change nothing: for a directory on a read-only disk or of somebody else.
                Several processes may do so at once, while none has it open to write. Opening reads the header of
                every run; puts are refused.
            allow_unsafe_directory: Use a directory that is a symbolic link, that everybody may write, or that belongs
                to another user.
            capture: A new file that records every request and every eviction while the store is open, for
                `kvlab.sim.capture`: names are keyed hashes, never tokens or text.
            remote: L4, which other machines share: the URL of a Redis or Valkey server, `redis://`, `rediss://` (TLS)
                or `redis+unix://`, or of several independent ones, which divide the blocks among them; or an object of
                `kvlab.Tier`. What this
                store writes through or gives up is shared, and what it lacks is asked for there. That no server
                answers is no error: the store does without until one does.
            remote_ttl: Seconds, or e.g. `"7d"`, after which the servers forget what no namespace set a time for.
            remote_timeout: Seconds for a look-up and the reads of what it found, and 20 ns for each byte that came;
                then the server is left alone for a while.
            remote_prefix: What all names on the servers begin with. Stores of one prefix share their blocks.
            remote_cluster: The URLs are nodes of one Redis cluster.
            remote_ca_file: For `rediss://`, a PEM file of the authorities that may sign the servers' certificates;
                None for those that the system trusts.
            remote_certificate_file: For `rediss://`, a PEM file of the certificate to show to the servers, which ask
                for one unless they are told not to.
            remote_private_key_file: A PEM file of its private key.
            remote_key_file: A file of 64 hexadecimal digits: payload is encrypted with keys made from it (AES-256-GCM,
                one for each namespace). Without a file the environment variable `KVLAB_REMOTE_KEY` is looked at.
            prefetch_timeout: Seconds that a prefetched run is held for.
            prefetch_policy: What a request does that meets a prefetch of its prompt under way.
                `"best_effort"` takes what has arrived, waits for the runs that are being read at
                that moment and reads the others itself; `"wait_complete"` waits for all of it;
                `"timeout"` waits at most 1 s and 0.25 s for each 1,024 tokens, then goes on like
                `"best_effort"`. The names and times are SGLang's.

        Raises:
            ConfigError: an unknown policy, or a setting or URL that cannot be used.
            InvalidArgumentError: a size or time that cannot be.
            StoreLockedError: another process has the directory open; the message names it.
            FormatError: a directory that is not a store, or one of a newer format; it is left as it is.
            UnsafeDirectoryError: a directory that others can put files into; see `allow_unsafe_directory`.
            StoreIOError: the directory cannot be made or written, memory cannot be had, or the file of the
                capture exists.
        """

    def prefix_cache(
        self, layout: KvLayout, *, l1: int | str | None = None, residents: int = 4
    ) -> PrefixCache:
        """The prefix cache of a layout: the one that exists, or a new one.

        Args:
            layout: Of its blocks.
            l1: Bytes of L1 for a new one, half for blocks and half for cache buffers; default: all
                that is left.
            residents: The most sequences that stay in their cache buffers for a request that goes
                on from them; 0 for none.

        Raises:
            CapacityError: other layouts have taken L1.
            ConfigError: L1 is too small for one block.
            StoreClosedError: the store is closed.
        """

    @property
    def blocks(self) -> BlockStore:
        """L2 and L3, without L1."""

    def evict(self, tier: Literal["l1", "l2"] = "l2", *, timeout: float = 60.0) -> None:
        """Pushes what L1 holds (`"l1"`), or L1 and L2 (`"l2"`), to the tiers below, and waits. The GIL is released.

        Raises:
            InvalidArgumentError: another tier, or a negative timeout in seconds.
            StoreTimeoutError: it took longer.
            StoreClosedError: the store is closed.
        """

    def drop_page_cache(self) -> int:
        """Drops what the operating system caches of L3's files: for measuring cold reads.

        Returns:
            Bytes that stayed in the cache all the same.

        Raises:
            StoreClosedError: the store is closed.
            StoreIOError: the operating system refused.
        """

    def flush(self, timeout: float = 60.0) -> None:
        """Waits until every commit is in L1, every accepted write in L3, and in L4 or given up. The GIL is released.

        Args:
            timeout: Seconds.

        Raises:
            StoreTimeoutError: it took longer.
            InvalidArgumentError: a negative timeout.
            StoreClosedError: the store is closed.
        """

    def clear(self) -> None:
        """Forgets everything in every tier of this machine, for good.

        What open requests have locked in L1 stays until they close. L4 keeps what it has: it is not
        this store's alone.

        Raises:
            StoreClosedError: the store is closed.
            StoreIOError: L3 could not write it down.
        """

    def close(self, timeout: float = 60.0) -> None:
        """Finishes accepted writes and closes; a second call does nothing. The GIL is released.

        Args:
            timeout: Seconds.

        Raises:
            StoreTimeoutError: writes were still under way then; they are lost, nothing is damaged.
            InvalidArgumentError: a negative timeout.
            ForkedProcessError: the store is a parent process's.
        """

    def stats(self) -> StoreStats:
        """What each cache and tier holds and has done.

        Raises:
            StoreClosedError: the store is closed.
        """

    def remote_health(self) -> RemoteHealth | None:
        """Asks the servers of L4 for a sign of life, for at most `remote_timeout`; None without L4.

        The GIL is released.

        Raises:
            StoreClosedError: the store is closed.
            ForkedProcessError: the store is a parent process's.
        """

    def costs(self) -> CostStats:
        """What reads and forwards were learnt to cost. Kept in the store's directory by `flush` and `close`.

        Raises:
            ForkedProcessError: the store is a parent process's.
        """

    def recovery(self) -> RecoveryReport | None:
        """What opening found on disk; None without L3."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *_error: object) -> None: ...

@final
class BlockStore:
    """Block key to bytes over L2, L3 and L4, for engines that bring their own keys of 32 bytes.

    A context manager; leaving it closes the store, as the end of the interpreter does, within 10
    seconds. Safe from many threads.
    """

    @classmethod
    def open(
        cls,
        path: str | PathLike[str] | None = None,
        *,
        l2: int | str = "2GiB",
        l3: int | str = "20GiB",
        policy: str = "lru",
        write_policy: str = "write_through",
        durable: bool = False,
        direct: bool = True,
        free_reserve: int | str = "1GiB",
        l3_read_limit: int | str | None = None,
        l3_write_limit: int | str | None = None,
        io_workers: int = 4,
        prefetch_timeout: float = 30.0,
        prefetch_policy: str = "best_effort",
        l3_quota_per_salt: int | str | None = None,
        read_only: bool = False,
        allow_unsafe_directory: bool = False,
        capture: str | PathLike[str] | None = None,
        remote: str | Sequence[str] | SharedTier | None = None,
        remote_ttl: int | str = "1d",
        remote_timeout: float = 0.25,
        remote_prefix: str = "kvlab",
        remote_cluster: bool = False,
        remote_ca_file: str | PathLike[str] | None = None,
        remote_certificate_file: str | PathLike[str] | None = None,
        remote_private_key_file: str | PathLike[str] | None = None,
        remote_key_file: str | PathLike[str] | None = None,
    ) -> BlockStore:
        """Opens a block store; arguments and errors are those of `Store.open`.

        A capture of it has each call that gets blocks as a request of them.
        """

    def put(
        self,
        key: bytes,
        data: Buffer,
        *,
        parent: bytes | None = None,
        ttl: int | str | None = None,
        persist: bool = True,
    ) -> bool:
        """Keeps a block: in L2 at once, in L3 and L4 as the write policy says. A key that is there keeps its bytes.

        Args:
            key: 32 bytes.
            data: uint8, contiguous, 1 byte to 4 GiB.
            parent: The key of the block before it: it is evicted after this one, and L3 takes this
                one only with it.
            ttl: Seconds, or e.g. `"7d"`, after which it is a miss in every tier; None for no limit.
            persist: Whether it may be written to disk or shared.

        Returns:
            Whether it is kept, or was there. `stats()["refusals"]` counts why it is not.

        Raises:
            InvalidArgumentError: a key of another length, or no bytes.
            StoreClosedError: the store is closed.
            ForkedProcessError: the store is a parent process's.
        """

    def get(self, key: bytes) -> bytes | None:
        """The bytes of a key; None for a miss. Damaged bytes are a miss and a counter. The GIL is released.

        Raises:
            InvalidArgumentError: a key of another length, or of a model's run.
            StoreClosedError: the store is closed.
        """

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The bytes of many keys, in their order; each is a miss (None) or damaged for itself. The GIL is released.

        Blocks that lie near each other in L3, as those that were put one after the other do, are
        read by one operation.

        Raises:
            InvalidArgumentError: a key of another length, or of a model's run; nothing was read.
            StoreClosedError: the store is closed.
        """

    def get_into(self, keys: Sequence[bytes], buffers: Sequence[Buffer]) -> list[int | None]:
        """As `get_many`, each block into the head of the buffer at its place. The GIL is released.

        From L3 a block is read straight into a buffer whose address and length are multiples of
        4,096; into others it is copied once. L2 does not keep it.

        Args:
            keys: 32 bytes each.
            buffers: As many, uint8, contiguous, writable, each at least as long as its block. They
                must not be used by others until the call ends.

        Returns:
            The bytes of each block; None for a miss: what its buffer holds is unspecified then.

        Raises:
            InvalidArgumentError: more or fewer buffers than keys, a buffer that is too short,
                read-only or not contiguous, a key of another length, or of a model's run; nothing
                was read.
            StoreClosedError: the store is closed.
        """

    def lookup(self, keys: Sequence[bytes]) -> list[Tier | None]:
        """Where each key is: `"l2"`, `"l3"`, `"pending"` (accepted, not written yet) or None. L4 is not asked.

        Raises:
            InvalidArgumentError: a key of another length.
            StoreClosedError: the store is closed.
        """

    def __contains__(self, key: bytes, /) -> bool:
        """Whether a key can be read, or will be once it is written. L4 is not asked.

        Raises:
            InvalidArgumentError: a key of another length.
            StoreClosedError: the store is closed.
        """

    def remove(self, keys: Sequence[bytes]) -> int:
        """Drops blocks from every tier, for good, and from L4 for everybody.

        Returns:
            How many of the keys were there.

        Raises:
            RemoteError: a server of L4 did not do it; the tiers of this machine did.
            InvalidArgumentError: a key of another length.
            StoreClosedError: the store is closed.
        """

    def clear(self, namespace: bytes | None = None) -> int:
        """Forgets a namespace, or everything, in every tier of this machine, for good. The GIL is released.

        Returns:
            How many runs went, each tier counted.

        Raises:
            InvalidArgumentError: a namespace that is not 32 bytes.
            StoreClosedError: the store is closed.
            StoreIOError: L3 could not write it down.
        """

    def scrub(self, progress: Callable[[int, int], object] | None = None) -> Scrubbed:
        """Reads everything in L3 and drops what is damaged. Counts as no use. The GIL is released.

        Args:
            progress: Called with the bytes done and the bytes in all, now and then. What it raises
                is raised at the end.

        Raises:
            StoreClosedError: the store is closed.
        """

    def import_namespace(
        self, file: str | PathLike[str], progress: Callable[[int, int], object] | None = None
    ) -> Imported:
        """Stores the runs of an export that L3 does not have. Every byte is checked. The GIL is released.

        Nothing is decoded or encoded again, and a time to live goes on from when it began. A file
        that was cut gives what it has.

        Args:
            file: Made by `export_namespace`.
            progress: As for `verify_store`.

        Raises:
            ConfigError: the store has no directory.
            FormatError: the file is no export, or one of an unknown version.
            StoreIOError: it cannot be read.
            StoreClosedError: the store is closed.
        """

    def prefetch(self, keys: Sequence[bytes]) -> PrefetchTicket:
        """Starts to pull the leading keys that can be found from L3 into L2, best effort; at most half of L2 is held.

        Raises:
            InvalidArgumentError: a key of another length.
            StoreClosedError: the store is closed.
        """

    def flush(self, timeout: float = 60.0) -> None:
        """Waits until every accepted write is in L3, and in L4 or given up. The GIL is released.

        Args:
            timeout: Seconds.

        Raises:
            StoreTimeoutError: it took longer.
            InvalidArgumentError: a negative timeout.
            StoreClosedError: the store is closed.
        """

    def close(self, timeout: float = 60.0) -> None:
        """Finishes accepted writes and closes; a second call does nothing. The GIL is released.

        Args:
            timeout: Seconds.

        Raises:
            StoreTimeoutError: writes were still under way then; they are lost, nothing is damaged.
            InvalidArgumentError: a negative timeout.
            ForkedProcessError: the store is a parent process's.
        """

    def stats(self) -> BlockStoreStats:
        """What each tier holds and has done; answers after a close, too."""

    def remote_health(self) -> RemoteHealth | None:
        """As `Store.remote_health`."""

    def recovery(self) -> RecoveryReport | None:
        """What opening found on disk; None without L3."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *_error: object) -> None: ...

_Floats: TypeAlias = Buffer
"""A contiguous row of float64, such as `array("d")`."""
_Words: TypeAlias = Buffer
"""A contiguous row of uint32, such as `array("I")`."""
_Ids: TypeAlias = Buffer
"""A contiguous row of uint64, such as `array("Q")`."""

@final
class SimTrace:
    """A trace of requests in columns, with block ids numbered densely in the order of their appearance."""

    @property
    def requests(self) -> int:
        """Requests."""

    @property
    def block_refs(self) -> int:
        """Blocks of all requests."""

    @property
    def unique_blocks(self) -> int:
        """Distinct blocks."""

    @property
    def tokens(self) -> int:
        """Prompt tokens of all requests."""

    def blocks(self, request: int) -> list[int]:
        """Dense ids of the blocks of a request, numbered from 0.

        Raises:
            InvalidArgumentError: there is no such request.
        """

    def tokens_of(self, request: int) -> int:
        """Prompt tokens of a request, numbered from 0.

        Raises:
            InvalidArgumentError: there is no such request.
        """

    def prefix_ids(self) -> Self:
        """The same trace with an id for each node of its prefix tree: a block and all before it."""

    def sampled(self, rate: float, *, seed: int = 0) -> Self:
        """The trace with a part `rate` of its blocks, each with all of its uses.

        Raises:
            InvalidArgumentError: `rate` is not above 0 and at most 1.
        """

@final
class SimTraceBuilder:
    """Collects requests, chunk by chunk, into a `SimTrace`."""

    def __new__(cls) -> Self: ...
    def push(
        self,
        at_ms: _Floats,
        counts: _Words,
        ids: _Ids,
        tokens: _Words,
        output_tokens: _Words,
        sessions: _Words,
        categories: _Words,
        *,
        runs: bool = False,
    ) -> None:
        """Appends requests.

        Args:
            at_ms: Arrivals in milliseconds, ascending from 0, `[requests]`.
            counts: How many of `ids` belong to each, `[requests]`.
            ids: Block ids of all, one request after the other; with `runs`, start, count, start, count
                and so on of consecutive ids.
            tokens: Of the prompts, `[requests]`.
            output_tokens: Of the answers, `[requests]`.
            sessions: From 1, 0 for none, `[requests]`.
            categories: From 1, 0 for none, `[requests]`.
            runs: How `ids` are written.

        Raises:
            InvalidArgumentError: the columns do not fit, or a time goes back; nothing is taken then.
            BufferError: a column is of another type.
        """

    def finish(self, block_tokens: int) -> SimTrace:
        """The trace, of blocks of `block_tokens` tokens; 0 if that is not known.

        Raises:
            InvalidArgumentError: it was finished already.
        """

    def finish_with_lengths(self, ids: _Ids, lengths: _Words) -> SimTrace:
        """The trace, with a number of tokens for each block id; what is not named has 0.

        Raises:
            InvalidArgumentError: as many lengths as ids are needed; or it was finished already.
        """

def sim_policies(mode: str) -> list[str]:
    """The names of the policies that `sim_replay` knows in mode "prefix" or "flat".

    Raises:
        ConfigError: the mode is unknown.
    """

def sim_replay(
    trace: SimTrace,
    *,
    mode: str,
    policy: str,
    capacity_blocks: int | None,
    progress: Callable[[int, int], object] | None = None,
) -> dict[str, Any]:
    """Replays a trace without the GIL; see `kvlab.sim.prefix.run`.

    Raises:
        ConfigError: an unknown mode or policy.
        InvalidArgumentError: a capacity of 0.
    """

def sim_replay_tiers(
    trace: SimTrace,
    *,
    capacities: Sequence[int | None],
    policies: Sequence[str],
    write_policy: str,
    restore: str,
    costs: dict[str, Any],
    progress: Callable[[int, int], object] | None = None,
) -> dict[str, Any]:
    """Replays a trace over three tiers without the GIL; see `kvlab.sim.tiers.run`.

    Raises:
        ConfigError: an unknown policy, write policy or way to restore.
        InvalidArgumentError: an L1 of 0 blocks, or costs that cannot be.
    """

def sim_lru_curve(trace: SimTrace, *, mode: str, capacities: Sequence[int]) -> list[int]:
    """Hits of LRU at each of these capacities, exactly.

    Raises:
        ConfigError: the mode is unknown.
    """

def sim_live_policies() -> list[str]:
    """The names of the policies that the tiers can use."""

def sim_columns(trace: SimTrace) -> tuple[bytes, bytes]:
    """Prompt tokens, and sessions (from 1, 0 for none): a native uint32 a request each."""

@final
class CaptureRequests:
    """The requests of a capture, one after the other; see `kvlab.sim.capture.requests`."""

    def __iter__(self) -> Self: ...
    def __next__(self) -> tuple[int, int, int, list[int]]:
        """Milliseconds, category, tokens in a block, block ids.

        Raises:
            FormatError: damage; the message says where.
            StoreIOError: the file cannot be read.
        """

def capture_requests(path: str | PathLike[str]) -> CaptureRequests:
    """Opens a capture to read its requests; see `kvlab.sim.capture.requests`.

    Raises:
        FormatError: the file is no capture.
        StoreIOError: it cannot be read.
    """

def capture_replay(path: str | PathLike[str]) -> list[dict[str, Any]]:
    """Drives L1, L2 and the directory of L3 with a capture, without the GIL; see `kvlab.sim.capture.replay`.

    Raises:
        ConfigError: the capture names a policy that is not known.
        FormatError: the file is no capture, or is damaged; the message says where.
        StoreIOError: it cannot be read.
    """

def capture_rerun(
    path: str | PathLike[str],
    *,
    policy: str | None,
    l1_blocks: int | None,
    l2_blocks: int | None,
    l3_blocks: int | None,
    write_policy: str,
    run_blocks: int | None,
) -> list[dict[str, Any]]:
    """Drives the L1 of each cache of a capture, and tiers below, without the GIL; see `kvlab.sim.capture.rerun`.

    Raises:
        ConfigError: a policy or write policy that is not known.
        InvalidArgumentError: 0 blocks.
        FormatError: the file is no capture, or is damaged; the message says where.
        StoreIOError: it cannot be read.
    """
