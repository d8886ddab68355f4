"""Silence transformers while it does something the user did not ask to hear about."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Errors only and no progress bars inside the block; what was set before comes back."""
    from transformers import modeling_gguf_pytorch_utils
    from transformers.utils import logging as transformers_logging

    gguf_reader: Any = modeling_gguf_pytorch_utils
    logging: Any = transformers_logging
    verbosity = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    # The GGUF reader takes its bar from tqdm directly, where the switch below does not reach.
    gguf_bar = getattr(gguf_reader, "tqdm", None)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if gguf_bar is not None:
        gguf_reader.tqdm = functools.partial(gguf_bar, disable=True)
    try:
        yield
    finally:
        if gguf_bar is not None:
            gguf_reader.tqdm = gguf_bar
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
