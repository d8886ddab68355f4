"""kvlab in transformers: a session's prefill restored from L3, and plain transformers on a live cache."""

from __future__ import annotations

import hashlib
import importlib.metadata
import time
from typing import TYPE_CHECKING, Any

import torch

import kvlab
import kvlab.hf
from kvlab.hf.cache import PreallocatedCache
from kvlab.hf.layout import read_layout
from peers import disk
from peers.ttft import THREADS
from peers.ttft.engine import Engine

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

MODEL = "smollm2-135m"
HEADROOM = 16
TIMEOUT = 300.0


class SessionFp32(Engine):
    """The converted weights in fp32, KV in fp32."""

    title = "kvlab in transformers, fp32 (weights and KV)"
    dtype = torch.float32

    def __init__(self, directory: Path, longest: int) -> None:
        super().__init__(directory, longest)
        torch.set_num_threads(THREADS)
        self.model = self.load()
        self.shapes = read_layout(self.model).layers
        # What goes on where nothing of kvlab is in the path, and what is computed from nothing.
        self.live = PreallocatedCache.allocate(self.shapes, self.room, self.dtype)
        self.scratch = PreallocatedCache.allocate(self.shapes, self.room, self.dtype)
        self.start()

    @classmethod
    def version(cls) -> str:
        """Of the extension, and of transformers."""
        transformers = importlib.metadata.version("transformers")
        return f"{kvlab.build_info()['version']}, transformers {transformers}"

    def load(self) -> Any:
        """The model."""
        return kvlab.hf.load(MODEL, dtype=self.dtype)[0]

    def start(self) -> None:
        """Opens the store."""
        self.store = kvlab.Store.open(self.directory, l1="768MiB", l2="512MiB", l3="4GiB")
        self.session = kvlab.hf.attach(self.model, self.store, restore="always")

    def forward(self, ids: list[int], cache: PreallocatedCache) -> str:
        """Plain transformers."""
        with torch.inference_mode():
            out = self.model(
                input_ids=torch.tensor([ids]),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
        return digest(out.logits)

    def keep(self, prefix: list[int]) -> int:
        """Through to L3; closing the store gives back what it had set aside on the disk."""
        before = disk.allocated(self.directory)
        self.session.prefill(torch.tensor([prefix]), headroom=HEADROOM)
        self.close()
        kept = disk.allocated(self.directory) - before
        self.start()
        self.live.reset()
        self.forward(prefix, self.live)
        return kept

    def computed(self, prefix: list[int], turn: list[int]) -> tuple[float, str]:
        """Plain transformers, one forward."""
        self.scratch.reset()
        start = time.perf_counter()
        first = self.forward(prefix + turn, self.scratch)
        return time.perf_counter() - start, first

    def restored(self, prefix: list[int], turn: list[int]) -> tuple[float, str]:
        """All of the prefix comes from L3."""
        hits, seconds, first = self.restore(prefix + turn)
        if hits != len(prefix):
            raise RuntimeError(f"{hits} of {len(prefix)} tokens came from L3")
        return seconds, first

    def restore(self, ids: list[int]) -> tuple[int, float, str]:
        """Tokens from L3, seconds, logits."""
        self.store.evict()
        if self.store.drop_page_cache():
            raise RuntimeError("pages of the segments stayed in the page cache")
        start = time.perf_counter()
        answer = self.session.prefill(torch.tensor([ids]), headroom=HEADROOM, keep=False)
        seconds = time.perf_counter() - start
        return answer.report.hit_tokens.l3, seconds, digest(answer.logits)

    def never_evicted(self, prefix: list[int], turn: list[int]) -> tuple[float, str]:
        """Plain transformers on a live cache of the same layer class."""
        start = time.perf_counter()
        first = self.forward(turn, self.live)
        seconds = time.perf_counter() - start
        self.live.crop(-len(turn))
        return seconds, first

    def damaged(self, prefix: list[int], turn: list[int]) -> str:
        """In the middle of the first segment, most of which is the last prefix, the longest."""
        _, computed = self.computed(prefix, turn)
        self.close()
        segments = [path for path in disk.files(self.directory) if path.suffix == ".seg"]
        disk.invert(segments[0], segments[0].stat().st_blocks * 512 // 2)
        disk.drop(self.directory)
        self.start()
        hits, _, first = self.restore(prefix + turn)
        if hits == len(prefix):
            return f"SERVED: {hits} tokens restored, no error"
        answer = "the same as" if first == computed else "close to"
        return f"noticed: {hits} tokens restored, the rest computed, logits {answer} computed ones"

    def close(self) -> None:
        """Closes the store."""
        self.session.close()
        self.store.close(TIMEOUT)


class SessionBf16(SessionFp32):
    """The same in bf16: as many bytes a token as llama.cpp's f16."""

    title = "kvlab in transformers, bf16 (weights and KV)"
    dtype = torch.bfloat16


def digest(logits: Tensor) -> str:
    """Of the last token's logits, bit for bit."""
    last = logits.reshape(-1, logits.shape[-1])[-1].float().contiguous()
    return hashlib.sha256(last.numpy().tobytes()).hexdigest()
