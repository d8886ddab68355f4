"""The arms, in the order of the table."""

from __future__ import annotations

ARMS = (
    "files:DirectFile",
    "files:BufferedFile",
    "kvlab_store:Runs",
    "kvlab_store:DurableRuns",
    "kvlab_store:Blocks",
    "files:Safetensors",
    "files:TorchSave",
    "embedded:Sled",
    "embedded:Redb",
    "embedded:Fjall",
    "embedded:Foyer",
    "lmcache_l2:FsNative",
    "lmcache_l2:Fs",
    "lmcache_l2:RawBlock",
    "vllm_fs:FsTier",
)
"""`module:Class`, as `peers.cycle.load` takes it."""
