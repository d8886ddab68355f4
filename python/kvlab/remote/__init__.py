"""One cache for many machines: keys and values of prompts by prefix and layer, over a store with a remote tier.

This package imports torch; ``import kvlab`` does not.
"""

from kvlab.remote.cache import DistributedKVCache
from kvlab.remote.serialise import Encoding, decode, decode_all, encode, encode_all
from kvlab.remote.stats import DistributedStats, Latency

__all__ = [
    "DistributedKVCache",
    "DistributedStats",
    "Encoding",
    "Latency",
    "decode",
    "decode_all",
    "encode",
    "encode_all",
]
