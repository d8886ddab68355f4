"""The Rust core of kvlab. Private: use the names that `kvlab` exports."""

from typing import Any, Final

__version__: Final[str]

def build_info() -> dict[str, str]:
    """What this extension was built as: `version`, `profile`, `os`, `arch`."""

def parse_size(size: int | str, /) -> int:
    """Reads a size in bytes: an int, or a string such as `"512MiB"` or `"1.5GB"`.

    Raises:
        InvalidArgumentError: the text is not a size, or the number is negative or too large.
        TypeError: neither an int nor a string.
    """

def kv_size(
    *,
    layers: int,
    kv_heads: int,
    head_dim: int,
    dtype: str,
    batch: int,
    seq_len: int,
    params: int | None,
    latent: tuple[int, int] | None = None,
    memory: int | None = None,
) -> dict[str, Any]:
    """The fields of `kvlab.sizing.KvSize`; those that need `params` or `memory` may be None.

    Raises:
        InvalidArgumentError: a size of 0, an unknown dtype, or a result beyond 64 bits.
    """

def kv_presets() -> dict[str, dict[str, Any]]:
    """The fields of `kvlab.sizing.ModelShape` of each published model, by name."""
