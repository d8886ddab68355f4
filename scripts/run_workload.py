"""kv-agent-lab's name for `kvlab bench`: --workload X.jsonl --mode M --report R.json."""

from __future__ import annotations

import sys

from kvlab.cli import main

if __name__ == "__main__":
    main(["bench", *sys.argv[1:]])
