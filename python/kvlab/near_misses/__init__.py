"""Prompts that nearly hit: which cached ones share much with a prompt, where they part, and what to change.

A prefix cache reuses what is equal from the first token on. A date in the first line, or two documents in another
order, and thousands of equal tokens behind it are computed again. `PromptIndex` remembers prompts and finds
such cases. It only looks: keys and values are never served for tokens that are not equal. Nothing here imports torch.
"""

from kvlab.near_misses.index import IndexStats, PromptIndex
from kvlab.near_misses.overlap import Decoder, NearMiss

__all__ = ["Decoder", "IndexStats", "NearMiss", "PromptIndex"]
