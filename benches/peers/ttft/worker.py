"""The process of one engine: a call a line, an answer a line, both JSON. `python -m peers.ttft.worker ENGINE ...`."""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from peers.ttft.engine import Engine


def load(name: str) -> type[Engine]:
    """The class of an engine, from `module:Class` below `peers.ttft`."""
    module, _, attribute = name.partition(":")
    found: type[Engine] = getattr(importlib.import_module(f"peers.ttft.{module}"), attribute)
    return found


def main(name: str, directory: str, longest: str) -> None:
    """Answers until the input ends."""
    # The engine may print; only answers go where the answers are read.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def tell(**answer: object) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    try:
        kind = load(name)
        version = kind.version()
        engine = kind(Path(directory), int(longest))
        tell(value=version)
        for line in sys.stdin:
            method, arguments = json.loads(line)
            tell(value=getattr(engine, method)(*arguments))
    except Exception as error:  # noqa: BLE001 - it is sent to the other process, which reports it
        tell(error=f"{type(error).__name__}: {error}")
    # Threads that an engine left behind must not keep the process.
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
