"""One workload, one policy, one set of tiers: what page mode counts. Everything here is simulated."""

from __future__ import annotations

from kvlab.sim.page import expand_workload, simulate
from kvlab.sim.scenarios import scenario


def main() -> None:
    """Runs it and prints the counts."""
    scene = scenario("small_fp16_prefetch")
    workload = expand_workload("chat_continuation", scene)
    row = simulate(workload, scene, "lru")
    print(f"{row.workload} on {row.scenario} under {row.policy} (simulated)")
    print(f"  accesses {row.accesses}, hit rate {row.hit_rate:.3f}, misses {row.misses}")
    print(f"  mean latency {row.mean_latency_ms:.3f} ms, {row.bytes_moved:,} bytes moved")
    for tier in scene.tiers:
        rate, peak = row.tier_hit_rates[tier.name], row.peak_bytes[tier.name]
        print(
            f"  {tier.name:13} found here {rate:.3f}, peak {peak:,} of {tier.capacity_bytes:,} bytes"
        )


if __name__ == "__main__":
    main()
