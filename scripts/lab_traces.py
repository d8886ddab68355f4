"""The findings on real traces: `KVLAB_TRACES=FOLDER python scripts/lab_traces.py` writes artifacts/real_traces.

The folder holds Mooncake's conversation and synthetic traces, RAGPulse and Claude Code sessions (WEKA); of
the last, five mixes of 20 sessions are drawn, and all are taken; they are merged as if all had begun at once.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence

from lab_artifacts import chosen, legend, number, panels, write

from kvlab.sim import prefix
from kvlab.sim.experiments import requests
from kvlab.sim.experiments.plots import COLOURS, ORACLE
from kvlab.sim.experiments.table import Row, summarise
from kvlab.sim.formats.rows import json_rows
from kvlab.sim.trace import Trace, find, load

CAPACITIES = ("1%", "5%", "10%", "25%", "50%")
SESSIONS = "claude_code_sessions.jsonl.gz"
MIXES, MIX = (1, 2, 3, 4, 5), 20
CONVERSATION = "Mooncake conversation"
CLAUDE = "Claude Code, 20 sessions"
WHOLE = "Claude Code, 535 sessions"
FILES = {
    CONVERSATION: ("mooncake_conversation.jsonl.gz", "mooncake"),
    "Mooncake synthetic": ("mooncake_synthetic.jsonl.gz", "mooncake"),
    "RAGPulse": ("ragpulse_trace.jsonl.gz", "ragpulse"),
}
COLUMNS = (
    "mode", "trace", "capacity", "policy", "seed", "capacity_blocks", "hit_ratio", "token_hit_ratio",
    "percent_of_oracle", "percent_of_oracle_cost", "misses", "evictions",
)  # fmt: skip
FLAT = ("lru", "lfu", "lfu-plain", "sieve", "s3-fifo", "w-tinylfu", "arc", "belady")
OPPOSITE = ("lru", "lru_root_first", "lfu", "heavy_hitter", "sieve", "s3-fifo", "lfu-plain")
CONTROL = ("trace_0002", "trace_0700")


def replayed(
    trace: Trace, name: str, mode: prefix.Mode, policies: Sequence[str], seed: int | None
) -> list[Row]:
    """Every policy at every share of the distinct blocks."""
    sizes = requests.sizes_of(trace, CAPACITIES)
    shares = dict(zip(sizes, CAPACITIES, strict=True))
    rows = requests.sweep(trace, policies=policies, capacities=sizes, mode=mode)
    return [
        {
            **row,
            "trace": name,
            "seed": seed,
            "capacity": shares[size if isinstance(size, int) else None],
        }
        for row in rows
        for size in (row["capacity_blocks"],)
    ]


def mix(ids: Sequence[str], seed: int) -> list[str]:
    """Sessions drawn by a seed."""
    return sorted(random.Random(seed).sample(list(ids), MIX))  # noqa: S311 - a draw, not a secret


def control() -> list[Row]:
    """Two sessions, 2,081 blocks: tokens recomputed over those that are cold whatever the cache."""
    trace = load(SESSIONS, "weka", sessions=CONTROL)
    cold = prefix.run(trace, capacity_blocks=None).recomputed_tokens
    rows: list[Row] = []
    for name in prefix.policies():
        replay = prefix.run(trace, policy=name, capacity_blocks=2081)
        over = replay.recomputed_tokens - cold
        rows.append({"policy": name, "hit_ratio": replay.hit_ratio, "recomputed_over_cold": over})
    return sorted(rows, key=lambda row: (number(row, "recomputed_over_cold"), str(row["policy"])))


def conversation_5000(trace: Trace) -> list[Row]:
    """Mooncake's conversation at 5,000 blocks, where others have published figures."""
    rows: list[Row] = []
    modes: tuple[prefix.Mode, ...] = ("flat", "prefix")
    for mode in modes:
        for name in FLAT:
            replay = prefix.run(trace, policy=name, capacity_blocks=5000, mode=mode)
            rows.append({"mode": mode, "policy": name, "hit_ratio": replay.hit_ratio})
    bypass = prefix.run(trace, policy="belady_bypass", capacity_blocks=5000)
    rows.append({"mode": "prefix", "policy": bypass.policy, "hit_ratio": bypass.hit_ratio})
    return rows


def best_and_worst(summary: Sequence[Row]) -> list[Row]:
    """At each size: lru, the policy that knows no future and finds most, and how they stand."""
    cells: dict[tuple[str, str], list[Row]] = {}
    for row in summary:
        if row["mode"] == "prefix":
            cells.setdefault((str(row["trace"]), str(row["capacity"])), []).append(row)
    table: list[Row] = []
    for (trace, capacity), group in cells.items():
        real = [row for row in group if row["policy"] not in requests.FORESEEING]
        ranking = sorted(real, key=lambda row: -number(row, "hit_ratio"))
        by_name = {str(row["policy"]): row for row in group}
        oracle = max(number(by_name[name], "hit_ratio") for name in requests.ORACLES)
        lru = by_name["lru"]
        table.append(
            {
                "trace": trace, "capacity": capacity, "capacity_blocks": lru["capacity_blocks"],
                "lru": lru["hit_ratio"], "lru_percent_of_oracle": lru["percent_of_oracle"],
                "best": ranking[0]["policy"], "best_hit_ratio": ranking[0]["hit_ratio"],
                "better_than_lru": sum(number(row, "hit_ratio") > number(lru, "hit_ratio") for row in real),
                "of": len(real) - 1, "worst": ranking[-1]["policy"],
                "worst_hit_ratio": ranking[-1]["hit_ratio"], "oracle": oracle,
            }
        )  # fmt: skip
    return table


def by_cost(summary: Sequence[Row]) -> list[Row]:
    """At each size: how near to the cheapest replay that knows the future others come, in recomputed cost."""
    cells: dict[tuple[str, str], dict[str, float]] = {}
    for row in summary:
        if row["mode"] == "prefix":
            cell = cells.setdefault((str(row["trace"]), str(row["capacity"])), {})
            cell[str(row["policy"])] = number(row, "percent_of_oracle_cost")
    table: list[Row] = []
    for (trace, capacity), parts in cells.items():
        real = [name for name in parts if name not in requests.FORESEEING]
        best = max(real, key=lambda name: parts[name])
        table.append(
            {
                "trace": trace, "capacity": capacity, "lru": parts["lru"], "best": best,
                "best_percent": parts[best], **{name: parts[name] for name in requests.FORESEEING},
            }
        )  # fmt: skip
    return table


def standing(summary: Sequence[Row]) -> list[Row]:
    """Each policy's part of the oracle's hits over the five sizes, by trace, and its least."""
    parts: dict[str, dict[str, list[float]]] = {}
    for row in summary:
        if row["mode"] == "prefix" and row["policy"] not in requests.FORESEEING:
            by_trace = parts.setdefault(str(row["policy"]), {})
            by_trace.setdefault(str(row["trace"]), []).append(number(row, "percent_of_oracle"))
    table: list[Row] = []
    for policy, by_trace in parts.items():
        means = {trace: statistics.fmean(values) for trace, values in by_trace.items()}
        # The sessions of the whole are those of the mixes: they count once.
        four = [mean for trace, mean in means.items() if trace != WHOLE]
        least = min(min(values) for values in by_trace.values())
        table.append(
            {
                "policy": policy,
                **means,
                "mean": statistics.fmean(four),
                "least_cell": least,
            }
        )
    return sorted(table, key=lambda row: -number(row, "mean"))


def main() -> None:
    """Replays everything and writes the directory."""
    every = prefix.policies()
    rows: list[Row] = []
    ideals: list[Row] = []
    loaded: dict[str, Trace] = {}

    def one(trace: Trace, name: str, seed: int | None) -> None:
        ideal = prefix.run(trace, capacity_blocks=None)
        counted = ("requests", "block_refs", "unique_blocks", "hit_ratio", "token_hit_ratio")
        ideals.append(
            {"trace": name, "seed": seed, **{key: ideal.as_dict()[key] for key in counted}}
        )
        rows.extend(replayed(trace, name, "prefix", every, seed))
        if name != WHOLE:  # belady takes minutes there
            rows.extend(replayed(trace, name, "flat", FLAT, seed))
        print(f"{name} {seed if seed is not None else ''}: {len(rows)} rows", flush=True)

    for name, (file, kind) in FILES.items():
        loaded[name] = load(file, kind)
        one(loaded[name], name, None)
    ids = [row.text("id") for row in json_rows(find(SESSIONS))]
    for seed in MIXES:
        trace = load(SESSIONS, "weka", sessions=mix(ids, seed))
        loaded.setdefault(CLAUDE, trace)
        one(trace, CLAUDE, seed)

    one(load(SESSIONS, "weka"), WHOLE, None)

    kept = chosen(rows, COLUMNS)
    # Of five mixes a share is five sizes: their mean stands in the column.
    summary = summarise(kept, ("seed", "capacity_blocks"))
    figure, axes = panels(
        "Two real traces, opposite advice: share of the oracle's hits, prefix mode", 3, width=4.4
    )
    for axis, name in zip(axes, (CONVERSATION, CLAUDE, WHOLE), strict=True):
        for at, policy in enumerate(OPPOSITE):
            line = [
                row
                for row in summary
                if (row["mode"], row["trace"], row["policy"]) == ("prefix", name, policy)
            ]
            axis.errorbar(
                range(len(CAPACITIES)),
                [number(row, "percent_of_oracle") for row in line],
                yerr=[number(row, "percent_of_oracle_sd") for row in line],
                label=policy, color=COLOURS[at], marker="o", markersize=3, capsize=2,
            )  # fmt: skip
        flat = [
            row
            for row in summary
            if (row["mode"], row["trace"], row["policy"]) == ("flat", name, "sieve")
        ]
        if flat:
            axis.plot(
                range(len(CAPACITIES)), [number(row, "percent_of_oracle") for row in flat],
                label="sieve = plain lfu, flat mode", color=ORACLE, linestyle=":",
            )  # fmt: skip
        axis.set_xticks(range(len(CAPACITIES)), CAPACITIES)
        axis.set_ylim(0, 102)
        axis.set_title(name + (": mean and sd of 5 mixes" if name == CLAUDE else ""), fontsize=9)
        axis.set_xlabel("capacity, % of the distinct blocks", fontsize=9)
        axis.set_ylabel("% of oracle", fontsize=9)
    legend(figure, axes[1])

    curves, places = panels(
        "Miss ratio by size, prefix mode; lru exact, others replayed at each size", 4, width=3.9
    )
    for axis, (name, trace) in zip(places, loaded.items(), strict=True):
        sizes = requests.spaced(trace.unique_blocks, 10)
        exact = prefix.lru_curve(trace, sizes)
        axis.plot(
            sizes, [1 - hits / trace.block_refs for hits in exact], label="lru", color=COLOURS[0]
        )
        for at, policy in enumerate(
            ("lru_root_first", "lfu", "sieve", "s3-fifo", "belady_bypass"), 1
        ):
            ratios = [
                prefix.run(trace, policy=policy, capacity_blocks=size).hit_ratio for size in sizes
            ]
            oracle = policy == "belady_bypass"
            axis.plot(
                sizes, [1 - ratio for ratio in ratios], label=policy,
                color=ORACLE if oracle else COLOURS[at], linestyle="--" if oracle else "-",
            )  # fmt: skip
        axis.set_xscale("log")
        axis.set_ylim(0, 1)
        axis.set_title(name + (", mix 1" if name == CLAUDE else ""), fontsize=9)
        axis.set_xlabel("capacity, blocks", fontsize=9)
        axis.set_ylabel("block miss ratio", fontsize=9)
    legend(curves, places[0])

    write(
        "real_traces",
        title="All policies on real traces",
        config={
            "traces": {name: file for name, (file, _) in FILES.items()} | {CLAUDE: SESSIONS, WHOLE: SESSIONS},
            "mixes": {str(seed): mix(ids, seed) for seed in MIXES}, "control": CONTROL,
            "capacities": CAPACITIES, "policies": {"prefix": every, "flat": FLAT},
        },
        rows=kept,
        over=("seed", "capacity_blocks"),
        tables={
            "ideals": ideals, "by_size": best_and_worst(summary), "standing": standing(summary),
            "by_cost": by_cost(summary),
            "control_2081_blocks": control(),
            "conversation_5000_blocks": conversation_5000(loaded[CONVERSATION]),
        },
        spreads=("hit_ratio", "percent_of_oracle", "percent_of_oracle_cost"),
        pictures={"opposite_directions": figure, "miss_ratio_curves": curves},
    )  # fmt: skip


if __name__ == "__main__":
    main()
