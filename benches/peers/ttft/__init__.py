"""Time to the first token: kvlab in transformers beside the saved slots of llama.cpp's server, one model, in turns.

A prompt is a prefix and 32 tokens of a user's turn. Each engine brings it to its first token three ways: computed cold,
restored from its file with the page cache dropped, and going on from a prefix that never left its memory. The engines
have nothing in common but the model: other kernels, other weights (4 bits a weight in the GGUF), another process for
the server. So each is compared with itself, and only the ratios stand side by side.
"""

from __future__ import annotations

TURN = 32
"""Tokens behind the prefix, which are always computed."""
WAYS = ("never_evicted", "computed", "restored")
"""In the order of a round: in the first one the prefix has really never left the memory."""
THREADS = 2
