"""The policies of page mode on a workload that punishes some and rewards others. Everything here is simulated.

Arguments are further policies, such as `regret_aware:weight=0` or `crossroads.py:Crossroads`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from kvlab.sim.experiments.pages import read_policy, sweep
from kvlab.sim.scenarios import scenario

POLICIES = (
    "lru",
    "windowed_recency",
    "heavy_hitter",
    "cost_aware",
    "predictive",
    "regret_aware",
    "sieve",
    "s3-fifo",
)


def main(more: Sequence[str]) -> None:
    """Runs them and prints a table."""
    rows = sweep(
        policies=[read_policy(name) for name in (*POLICIES, *more)],
        scenarios=[scenario("small_fp16_prefetch")],
        workloads=["prefetch_friendly"],
    )
    print(f"{rows[0]['workload']} on {rows[0]['scenario']} (simulated)")
    print("The oracle is a bound for runs without prefetch; one that prefetches can exceed it.")
    print(
        f"{'policy':22} {'hit rate':>8} {'% of oracle':>11} {'misses':>7} {'mean ms':>8} "
        f"{'bytes moved':>12} {'useful':>7}"
    )
    for row in rows:
        useful = f"{row['useful_prefetch_ratio']:.3f}" if row["prefetches"] else "-"
        print(
            f"{row['policy']:22} {row['hit_rate']:8.3f} {row['percent_of_oracle']:11.1f} {row['misses']:7d} "
            f"{row['mean_latency_ms']:8.3f} {row['bytes_moved']:12,d} {useful:>7}"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
