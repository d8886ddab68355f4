"""kv-agent-lab's name for `kvlab compare`: --baseline A.json --candidate B.json."""

from __future__ import annotations

import sys

from kvlab.cli import main

if __name__ == "__main__":
    main(["compare", *sys.argv[1:]])
