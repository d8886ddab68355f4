"""kv-hierarchy-lab's script: its ablation of regret. What else is given goes to `kvlab sim ablate`. Simulated."""

from __future__ import annotations

import argparse

from kvlab.cli import main

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output-dir", default="output/regret_ablation")
    given, more = parser.parse_known_args()
    main(["sim", "ablate", "--out", given.output_dir, *more])
