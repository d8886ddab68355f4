"""The policies of page mode on a workload that punishes some and rewards others. Everything here is simulated.

Arguments are further policies, such as `regret_aware:weight=0` or `crossroads.py:Crossroads`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from kvlab.sim.experiments.pages import read_policy
from kvlab.sim.page import sweep


def main(more: Sequence[str]) -> None:
    """Runs them and prints a table."""
    rows = sweep(
        policies=[
            "lru",
            "windowed_recency",
            "heavy_hitter",
            "cost_aware",
            "predictive",
            "regret_aware",
            "sieve",
            "s3-fifo",
            *map(read_policy, more),
        ],
        scenarios=["small_fp16_prefetch"],
        workloads=["prefetch_friendly"],
    )
    print(f"{rows[0].workload} on {rows[0].scenario} (simulated)")
    print(
        f"{'policy':18} {'hit rate':>8} {'misses':>7} {'mean ms':>8} {'bytes moved':>12} {'useful':>7}"
    )
    for row in rows:
        useful = f"{row.useful_prefetch_ratio:.3f}" if row.prefetches else "-"
        print(
            f"{row.policy:18} {row.hit_rate:8.3f} {row.misses:7d} {row.mean_latency_ms:8.3f} "
            f"{row.bytes_moved:12,d} {useful:>7}"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
