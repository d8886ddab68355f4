"""The headline demo: a prompt prefilled once is restored from NVMe by a new process.

Run it as `make demo`, `kvlab demo` or `python toys/capstone.py`; all three do the same. The four
beats (cold prefill, eviction down to NVMe, restore in a new process, recompute for comparison) are
in `kvlab/demo/run.py`.
"""

from __future__ import annotations

import sys

from kvlab.cli import main

if __name__ == "__main__":
    main(["demo", *sys.argv[1:]])
