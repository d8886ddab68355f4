"""What learners hand in: a right answer and wrong ones for each function that `kvlab course check --mine` looks for."""

from __future__ import annotations

RIGHT: dict[str, str] = {
    "attention": """
import torch

def attention(q, k, v):
    tokens = q.shape[1]
    scores = torch.einsum("hqd,hkd->hqk", q, k) * q.shape[2] ** -0.5
    scores = scores + torch.full((tokens, tokens), float("-inf")).triu(1)
    return torch.einsum("hqk,hkd->hqd", torch.softmax(scores, -1), v)
""",
    "multi_head": """
import torch

def multi_head(x, w_in, w_out, heads):
    outs = []
    for q, k, v in zip(*[(x @ w.T).chunk(heads, 1) for w in w_in.chunk(3)]):
        scores = q @ k.T / q.shape[1] ** 0.5 + torch.full((len(x), len(x)), float("-inf")).triu(1)
        outs.append(scores.softmax(1) @ v)
    return torch.cat(outs, 1) @ w_out.T
""",
    "generate": """
import torch

@torch.inference_mode()
def generate(model, ids, new_tokens):
    from transformers import DynamicCache
    cache, tokens = DynamicCache(config=model.config), []
    while len(tokens) < new_tokens:
        logits = model(input_ids=ids, past_key_values=cache).logits
        tokens.append(logits[0, -1].argmax().item())
        ids = torch.tensor([[tokens[-1]]])
    return tokens
""",
    "positions": """
def positions(prompt, new, cached):
    return sum((1 if step else prompt) if cached else prompt + step for step in range(new))
""",
    "kv_bytes_per_token": """
def kv_bytes_per_token(layers, kv_heads, head_dim, element_bytes):
    return layers * kv_heads * head_dim * element_bytes * 2
""",
    "crossover_tokens": """
def crossover_tokens(weight_bytes, token_bytes):
    return -(-(weight_bytes + 1) // token_bytes)
""",
    "paged": """
def paged(lengths, block_tokens):
    blocks = 0
    wasted = 0
    for length in lengths:
        wasted += -length % block_tokens
        blocks += (length + block_tokens - 1) // block_tokens
    return blocks, wasted
""",
    "grouped_attention": """
import torch

def grouped_attention(q, k, v):
    heads, tokens, dim = q.shape
    groups = q.view(k.shape[0], -1, tokens, dim)
    scores = groups @ k[:, None].transpose(-1, -2) / dim ** 0.5
    scores = scores + torch.full((tokens, tokens), float("-inf")).triu(1)
    return (scores.softmax(-1) @ v[:, None]).reshape(heads, tokens, dim)
""",
    "latent_attention": """
import numpy as np

def latent_attention(q, latent, w_uk, w_uv):
    out = []
    for head in range(len(q)):
        scores = latent @ (w_uk[head] @ q[head]) / np.sqrt(q.shape[1])
        weights = np.exp(scores - scores.max())
        out.append((weights / weights.sum() @ latent) @ w_uv[head])
    return np.array(out)
""",
    "keep": """
def keep(length, sinks, window):
    return [p for p in range(length) if p < sinks or p >= length - window]
""",
    "RadixCache": """
class RadixCache:
    # A trie of whole blocks: children by block, and when each was used last.
    def __init__(self, block_tokens):
        self.block_tokens, self.root, self.clock = block_tokens, {}, 0
        self.used = {}

    def _path(self, tokens):
        size = self.block_tokens
        return [tuple(tokens[: end]) for end in range(size, len(tokens) + 1, size)]

    def insert(self, tokens):
        self._use(self._path(tokens))

    def match(self, tokens):
        found = []
        for prefix in self._path(tokens):
            if prefix not in self.used:
                break
            found.append(prefix)
        self._use(found)
        return len(found) * self.block_tokens

    def _use(self, path):
        for prefix in reversed(path):
            self.clock += 1
            self.used[prefix] = self.clock

    def evict(self, blocks):
        gone = 0
        while gone < blocks and self.used:
            parents = {prefix[: -self.block_tokens] for prefix in self.used}
            leaf = min((p for p in self.used if p not in parents), key=self.used.get)
            del self.used[leaf]
            gone += 1
        return gone
""",
    "block_keys": """
import hashlib
import struct

def block_keys(tokens, block_tokens, root):
    keys = []
    for block in range(len(tokens) // block_tokens):
        ids = tokens[block * block_tokens : (block + 1) * block_tokens]
        root = hashlib.sha256(root + struct.pack(f"<{block_tokens}I", *ids)).digest()
        keys.append(root)
    return keys
""",
    "round_trip": """
import numpy as np

def round_trip(rows, bits):
    low = rows.min(1, keepdims=True)
    step = (rows.max(1, keepdims=True) - low) / (2**bits - 1)
    step[step == 0] = 1
    return np.round((rows - low) / step) * step + low
""",
    "move_keys": """
import numpy as np

def move_keys(keys, delta, base):
    half = keys.shape[1] // 2
    turn = np.exp(1j * delta * base ** (-2 * np.arange(half) / keys.shape[1]))
    turned = (keys[:, :half] + 1j * keys[:, half:]) * turn
    return np.concatenate([turned.real, turned.imag], 1)
""",
}
"""By function: code that passes all of its checkpoints."""

WRONG: list[tuple[str, str, str]] = [
    ("attention", "off by", RIGHT["attention"].replace(".triu(1)", ".triu(2)")),
    ("attention", "is the mask there", RIGHT["attention"].replace('float("-inf")', "0.0")),
    ("attention", "off by", RIGHT["attention"].replace(" * q.shape[2] ** -0.5", "")),
    ("attention", "not a torch tensor", "def attention(q, k, v):\n    return 'torch'\n"),
    (
        "attention",
        r"IndexError: .* \(line 3\)",
        "import torch\ndef attention(q, k, v):\n    return q[..., 10_000]\n",
    ),
    ("attention", "the shape", "import torch\ndef attention(q, k, v):\n    return v[:1, :1]\n"),
    (
        "attention",
        "off by nan",
        "import torch\ndef attention(q, k, v):\n    return v * torch.nan\n",
    ),
    ("multi_head", "off by", RIGHT["multi_head"].replace("q.shape[1] ** 0.5", "x.shape[1] ** 0.5")),
    ("multi_head", "off by", RIGHT["multi_head"].replace("@ w_out.T", "@ w_out")),
    ("generate", "gave", RIGHT["generate"].replace(".argmax()", ".argmin()")),
    (
        "generate",
        "positions went through the model in",
        """
def generate(model, ids, new_tokens):
    from kvlab.course.checks.generation import naive
    return naive(model, ids, new_tokens)
""",
    ),
    ("positions", "counted", RIGHT["positions"].replace("range(new)", "range(new + 1)")),
    ("kv_bytes_per_token", "kvlab size says", RIGHT["kv_bytes_per_token"].replace(" * 2", "")),
    (
        "crossover_tokens",
        "fewest",
        RIGHT["crossover_tokens"].replace("(weight_bytes + 1)", "weight_bytes"),
    ),
    (
        "paged",
        "the pool counts",
        RIGHT["paged"].replace("-length % block_tokens", "block_tokens - length % block_tokens"),
    ),
    (
        "grouped_attention",
        "off by",
        RIGHT["grouped_attention"]
        .replace("q.view(k.shape[0], -1,", "q.view(-1, k.shape[0],")
        .replace("k[:, None]", "k")
        .replace("v[:, None]", "v"),
    ),
    (
        "latent_attention",
        "off by",
        RIGHT["latent_attention"].replace("q.shape[1]", "latent.shape[1]"),
    ),
    ("keep", "may be|missing", RIGHT["keep"].replace(">= length - window", "> length - window")),
    ("keep", "may be", "def keep(length, sinks, window):\n    return list(range(length))\n"),
    (
        "keep",
        "is missing",
        "def keep(length, sinks, window):\n    return list(range(sinks + window))[-length:]\n",
    ),
    (
        "keep",
        "had gone",
        """
def keep(length, sinks, window):
    kept = {p for p in range(length) if p < sinks or p >= length - window}
    return sorted(kept | ({20} if length == 40 else set()))
""",
    ),
    (
        "RadixCache",
        "brute force finds",
        RIGHT["RadixCache"].replace("len(tokens) + 1, size", "len(tokens), size"),
    ),
    (
        "RadixCache",
        "before those that follow",
        RIGHT["RadixCache"]
        .replace("if p not in parents", "if p")
        .replace("reversed(path)", "path"),
    ),
    ("RadixCache", "used last went", RIGHT["RadixCache"].replace("        self._use(found)\n", "")),
    ("RadixCache", "said that", RIGHT["RadixCache"].replace("return gone", "return blocks + 1")),
    (
        "RadixCache",
        "still found",
        RIGHT["RadixCache"].replace("del self.used[leaf]\n            gone += 1", "gone += 1"),
    ),
    ("RadixCache", "AttributeError", RIGHT["RadixCache"].replace("def evict", "def evicts")),
    (
        "block_keys",
        "the key of block",
        RIGHT["block_keys"].replace('"<', '">').replace('f"<', 'f">'),
    ),
    (
        "block_keys",
        "keys, not",
        RIGHT["block_keys"]
        .replace("range(len(tokens) // block_tokens)", "range(-(-len(tokens) // block_tokens))")
        .replace('struct.pack(f"<{block_tokens}I", *ids)', 'struct.pack(f"<{len(ids)}I", *ids)'),
    ),
    ("round_trip", "half a step", RIGHT["round_trip"].replace("np.round", "np.floor")),
    ("round_trip", "fit", "def round_trip(rows, bits):\n    return rows\n"),
    (
        "round_trip",
        "not finite",
        RIGHT["round_trip"].replace("    step[step == 0] = 1\n", "    np.seterr(all='ignore')\n"),
    ),
    ("move_keys", "off by", RIGHT["move_keys"].replace("1j * delta", "-1j * delta")),
    ("move_keys", "off by", RIGHT["move_keys"].replace("-2 * np.arange", "-1 * np.arange")),
]
"""Function, what is said of it, and code that fails one of its checkpoints."""
