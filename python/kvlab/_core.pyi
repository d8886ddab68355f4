"""The Rust core of kvlab. Private: use the names that `kvlab` exports."""

from typing import Final

__version__: Final[str]

def build_info() -> dict[str, str]:
    """What this extension was built as: `version`, `profile`, `os`, `arch`."""

def parse_size(size: int | str, /) -> int:
    """Reads a size in bytes: an int, or a string such as `"512MiB"` or `"1.5GB"`.

    Raises:
        InvalidArgumentError: the text is not a size, or the number is negative or too large.
        TypeError: neither an int nor a string.
    """
