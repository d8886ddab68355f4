"""kv-agent-lab's name for `kvlab bench`: --endpoint URL/v1 --model NAME --workload X.jsonl --report R.json."""

from __future__ import annotations

import sys

from kvlab.cli import main

if __name__ == "__main__":
    main(["bench", "--backend", "live", *sys.argv[1:]])
