"""The process of test_memory.py: more data than fits through Store and PrefixCache, without torch."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from kvlab import KvLayout, Store

L1, L2 = 96 << 20, 64 << 20
PROMPTS, TOKENS = 60, 512
NAMESPACE = bytes(32)


def main() -> None:
    layout = KvLayout([(4, 64, 4, 64)] * 8, element_bytes=4)  # 16 KiB a token, 8 MiB a prompt
    rng = np.random.default_rng(0)
    prompts = rng.integers(0, 50_000, (PROMPTS, TOKENS))
    restored = 0
    with Store.open(Path(sys.argv[1]), l1=L1, l2=L2, l3="2GiB", free_reserve="1MiB") as store:
        cache = store.prefix_cache(layout)
        for round_ in range(2):
            for number, ids in enumerate(prompts):
                request = cache.begin(ids, NAMESPACE)
                buffer = cache.lease(TOKENS)
                tokens = request.restore(buffer)["tokens"]
                memory = np.frombuffer(memoryview(buffer), dtype=np.uint8)
                if round_ == 0:
                    memory[:] = number
                    request.commit(ids, buffer)
                elif sum(tokens) == TOKENS - layout.block_tokens:
                    restored += 1
                    rows = memory.reshape(16, 4, TOKENS, 256)[:, :, : TOKENS - 16]
                    assert (rows == number).all(), f"prompt {number} came back with other bytes"
                del memory, buffer
                request.close()
        store.flush()
        cache.validate()
        written = store.stats()["l3"]["write_bytes"]
    status = Path("/proc/self/status").read_text(encoding="ascii")
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    print(
        json.dumps(
            {
                "peak": int(peak.split()[1]) << 10,
                "configured": L1 + L2,
                "written": written,
                "restored": restored,
                "prompts": PROMPTS,
                "torch": "torch" in sys.modules,
            }
        )
    )


if __name__ == "__main__":
    main()
