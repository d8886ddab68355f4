"""The first process of test_hf_restart.py: prefills, writes through, then ends as it is told."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from hf_support import open_store
from kvlab.hf import attach
from tiny_models import build, prompt


def main() -> None:
    path, end = Path(sys.argv[1]), sys.argv[2]
    store = open_store(path)
    session = attach(build("llama"), store)
    session.prefill(prompt(100))
    session.flush()
    print(json.dumps({"pid": os.getpid()}), flush=True)
    if end == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    store.close()


if __name__ == "__main__":
    main()
