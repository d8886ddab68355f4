"""kv-hierarchy-lab's script: its default sweep. What else is given goes to `kvlab sim sweep`. Simulated."""

from __future__ import annotations

import argparse

from kvlab.cli import main

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output-dir", default="output")
    given, more = parser.parse_known_args()
    main(["sim", "sweep", "--mode", "page", "--out", given.output_dir, *more])
