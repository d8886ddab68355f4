"""kv-hierarchy-lab's script: a page workload as a file, by `kvlab sim trace`, with its usual sizes."""

from __future__ import annotations

import sys

from kvlab.cli import main

USUAL = {"--workload": "chat_continuation", "--length": "128", "--num-pages": "64"}

if __name__ == "__main__":
    # Of an option that is given twice the later one counts.
    main(["sim", "trace", *(text for pair in USUAL.items() for text in pair), *sys.argv[1:]])
