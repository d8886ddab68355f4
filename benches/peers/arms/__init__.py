"""The arms, in the order of the table."""

from __future__ import annotations

ARMS = (
    "arms.files:DirectFile",
    "arms.files:BufferedFile",
    "arms.kvlab_store:Runs",
    "arms.kvlab_store:DurableRuns",
    "arms.kvlab_store:Blocks",
    "arms.files:Safetensors",
    "arms.files:TorchSave",
    "arms.embedded:Sled",
    "arms.embedded:Redb",
    "arms.embedded:Fjall",
    "arms.embedded:Foyer",
    "arms.lmcache_l2:FsNative",
    "arms.lmcache_l2:Fs",
    "arms.lmcache_l2:RawBlock",
    "arms.vllm_fs:FsTier",
)
"""`module:Class` below `peers`, as `peers.cycle.load` takes it."""
