"""kv-hierarchy-lab's script: the plots of a results.json, drawn by `kvlab sim plots`. Simulated."""

from __future__ import annotations

import argparse

from kvlab.cli import main

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", required=True)
    parser.add_argument("--out-dir", required=True)
    given, more = parser.parse_known_args()
    # The command makes plots/ itself, beside its report.
    main(["sim", "plots", given.results, "--out", given.out_dir.removesuffix("/plots"), *more])
