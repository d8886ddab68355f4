"""2.2: what comes back from disk is what went there, in a new process; damage is a miss; keys chain.

Run as a program it is the new process: `python -m kvlab.course.checks.hierarchy DIRECTORY`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvlab import BlockStore, Store
from kvlab.course.checks import Mine, claim

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["damage_is_a_miss", "keys_chain", "restored_equals_recomputed"]

_PREFIX, _TURN, _BLOCK = 100, 30, 16


def restored_equals_recomputed(mine: Mine) -> str:
    """This process writes a prompt through to disk; a new one restores it for another turn and compares."""
    del mine
    with tempfile.TemporaryDirectory(prefix="kvlab-course-") as directory:
        with _open(Path(directory)) as store, _session(store) as session:
            session.prefill(_prompts()[0])
            session.flush()
        command = [sys.executable, "-m", "kvlab.course.checks.hierarchy", directory]
        # Found as this one found it, wherever kvlab lies.
        path = os.pathsep.join(filter(None, sys.path))
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"PYTHONPATH": path},
        )
        claim(done.returncode == 0, f"the new process failed: {done.stderr.strip()[-400:]}")
        found: dict[str, Any] = json.loads(done.stdout)
    claim(
        found["process"] != os.getpid() and found["from_disk"] == _PREFIX // _BLOCK * _BLOCK,
        f"the new process restored {found['from_disk']} of {_PREFIX} tokens from disk",
    )
    claim(found["same_bits"], "the restored logits differ from those that never left memory")
    claim(
        found["restored"] == found["recomputed"],
        f"the restored prompt goes on with {found['restored']}, the recomputed one with {found['recomputed']}",
    )
    return (
        f"{found['from_disk']} of {_PREFIX} tokens from disk in a new process: the logits equal to the bit, and "
        f"{len(found['restored'])} tokens as computed again"
    )


def _restore(directory: Path) -> dict[str, Any]:
    """What the new process finds."""
    import torch

    from kvlab.course.checks.generation import naive, tiny_model
    from kvlab.hf.cache import PreallocatedCache
    from kvlab.hf.layout import read_layout

    prefix, turn = _prompts()
    prompt = torch.cat([prefix, turn], 1)
    whole = _PREFIX // _BLOCK * _BLOCK
    model = tiny_model(0)
    # Plain transformers on a cache of the layer class that a session restores into: sums depend on where rows lie.
    layout = read_layout(model)
    live = PreallocatedCache.allocate(layout.layers, 256, layout.dtype)
    with torch.inference_mode():
        model(input_ids=prefix, past_key_values=live)
        live.crop(whole - _PREFIX)
        rest = prompt[:, whole:]
        never_left = model(input_ids=rest, past_key_values=live, logits_to_keep=1).logits[:, -1]
    with _open(directory) as store, _session(store) as session:
        restored = session.prefill(prompt, keep=False)
        answer = session.generate(prompt, max_new_tokens=8, do_sample=False)
        return {
            "process": os.getpid(),
            "from_disk": restored.report.hit_tokens.l3,
            "same_bits": torch.equal(restored.logits, never_left),
            "restored": answer.sequences[0, prompt.shape[1] :].tolist(),
            "recomputed": naive(model, prompt, 8),
        }


def _open(directory: Path) -> Store:
    return Store.open(directory, l1="16MiB", l2="8MiB", l3="64MiB", free_reserve=0)


def _session(store: Store) -> Any:
    from kvlab import hf
    from kvlab.course.checks.generation import tiny_model

    return hf.attach(tiny_model(0), store, restore="always")


def _prompts() -> tuple[Tensor, Tensor]:
    """A prefix and another turn, the same in every process."""
    import torch

    generator = torch.Generator().manual_seed(14)
    prefix = torch.randint(3, 256, (1, _PREFIX), generator=generator)
    return prefix, torch.randint(3, 256, (1, _TURN), generator=generator)


def damage_is_a_miss(mine: Mine) -> str:
    """Blocks on disk, one of them with a flipped bit; all the others come back as they were."""
    del mine
    blocks = {
        hashlib.sha256(b"%d" % name).digest(): hashlib.shake_256(b"%d" % name).digest(9000)
        for name in range(8)
    }
    hurt, content = list(blocks.items())[3]
    with tempfile.TemporaryDirectory(prefix="kvlab-course-") as directory:
        with _blocks(directory) as store:
            for key, data in blocks.items():
                claim(store.put(key, data), "the store did not take a block")
        with _blocks(directory) as store:
            claim(
                store.get_many(list(blocks)) == list(blocks.values()),
                "a block came back from disk otherwise than it went there",
            )
        _flip_a_bit(Path(directory), content)
        # The core warns of the damage. It is no news here; who listens to its log hears it all the same.
        unheard = logging.NullHandler()
        logging.getLogger("kvlab_core").addHandler(unheard)
        with _blocks(directory) as store:
            found = dict(zip(blocks, store.get_many(list(blocks)), strict=True))
            counted = store.stats()["l3"]["corrupt"]
        logging.getLogger("kvlab_core").removeHandler(unheard)
    claim(found.pop(hurt) is None, "damaged bytes were served")
    claim(counted == 1, f"one block was damaged, {counted} were counted")
    claim(
        all(found[key] == blocks[key] for key in found), "a block beside the damaged one was lost"
    )
    return f"1 bit flipped: that block was a miss and was counted, the other {len(found)} came back as they were"


def _blocks(directory: str) -> BlockStore:
    return BlockStore.open(directory, l2="64KiB", l3="16MiB", free_reserve=0)


def _flip_a_bit(directory: Path, content: bytes) -> None:
    for path in directory.rglob("*.seg"):
        stored = bytearray(path.read_bytes())
        place = stored.find(content)
        if place >= 0:
            stored[place + len(content) // 2] ^= 1
            path.write_bytes(stored)
            return
    raise AssertionError("the block's bytes are in no segment")


def keys_chain(mine: Mine) -> str:
    """Keys of random prompts, and of prompts that differ in one token."""
    rng = random.Random(15)
    own = mine or _keys
    for _ in range(50):
        block_tokens, root = rng.choice((1, 4, 16)), rng.randbytes(32)
        tokens = [rng.randrange(1 << 17) for _ in range(rng.randint(0, 70))]
        expected = _keys(tokens, block_tokens, root)
        result = list(own(list(tokens), block_tokens, root))
        where = f"{len(tokens)} tokens in blocks of {block_tokens}"
        claim(
            len(result) == len(expected), f"{where}: gave {len(result)} keys, not {len(expected)}"
        )
        wrong = [place for place, key in enumerate(result) if bytes(key) != expected[place]]
        claim(not wrong, f"{where}: the key of block {wrong[:1]} is another")
        if not expected:
            continue
        place = rng.randrange(len(expected) * block_tokens)
        tokens[place] ^= 1
        changed = list(own(list(tokens), block_tokens, root))
        same = [one == other for one, other in zip(result, changed, strict=True)]
        claim(
            same == [block < place // block_tokens for block in range(len(same))],
            f"{where}: token {place} changed, and keys changed otherwise than from its block on",
        )
    return "50 random prompts; a changed token changes the key of its block and of all behind it"


def _keys(tokens: list[int], block_tokens: int, root: bytes) -> list[bytes]:
    keys = []
    for start in range(0, len(tokens) - block_tokens + 1, block_tokens):
        block = tokens[start : start + block_tokens]
        root = hashlib.sha256(
            root + b"".join(token.to_bytes(4, "little") for token in block)
        ).digest()
        keys.append(root)
    return keys


if __name__ == "__main__":
    print(json.dumps(_restore(Path(sys.argv[1]))))
