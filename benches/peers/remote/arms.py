"""The arms, in the order of the table."""

from __future__ import annotations

ARMS = (
    "remote.by_hand:Sockets",
    "remote.kvlab_l4:Runs",
    "remote.kvlab_l4:Blocks",
    "remote.kvlab_l4:Prefixes",
    "remote.kvlab_l4:CompressedPrefixes",
    "remote.kvlab_l4:Layers",
    "remote.by_hand:Gets",
    "remote.by_hand:Defaults",
    "remote.by_hand:Hiredis",
    "remote.by_hand:Pipelined",
    "remote.by_hand:PipelinedHiredis",
    "remote.by_hand:TorchSave",
    "remote.by_hand:TorchSaveGzip",
    "remote.lmcache_redis:Redis",
    "remote.lmcache_redis:Resp",
    "remote.lmcache_redis:RespAdapter",
    "remote.lmcache_redis:ValkeyAdapter",
    "remote.mooncake_store:Mooncake",
    "remote.here:Folder",
    "remote.here:ColdFolder",
    "remote.here:Memory",
)
"""`module:Class` below `peers`, as `peers.cycle.load` takes it."""
