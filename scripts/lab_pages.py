"""The findings of page mode: `python scripts/lab_pages.py` writes five directories of artifacts/.

kv-hierarchy-lab's default sweep and ablation of regret again, under its rules and exact ones, and what
they leave open: more seeds, weight 0, quantisation by layer and head group, prefetch on and off, CXL.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

from lab_artifacts import bars, change, chosen, legend, number, panels, write

from kvlab.sim.experiments import pages
from kvlab.sim.experiments.plots import COLOURS
from kvlab.sim.experiments.studies import DEFAULT_SWEEP
from kvlab.sim.experiments.table import Row, summarise
from kvlab.sim.page import WorkloadSpec, expand_workload
from kvlab.sim.scenarios import Engine, PolicySpec, Scenario, scenario, tiers
from kvlab.sim.schemes import SchemePlan

SEEDS = (1, 2, 3, 4, 5)
MODERN = ("s3-fifo", "sieve")
WORKLOADS = (*DEFAULT_SWEEP.workloads, "adversarial_prefetch")
COLUMNS = (
    "engine", "seeds", "scenario", "workload", "policy", "seed", "misses", "hit_rate",
    "percent_of_oracle", "mean_latency_ms", "bytes_moved", "prefetches", "useful_prefetch_ratio",
)  # fmt: skip
SPREADS = ("misses", "mean_latency_ms")
BOUND = "belady (bound)"


def bound_rows(rows: Sequence[Row]) -> list[Row]:
    """A row a cell for the bound on hits that no policy without prefetch exceeds."""
    out: dict[tuple[object, ...], Row] = {}
    for row in rows:
        key = tuple(row.get(name) for name in ("engine", "seeds", "scenario", "workload", "seed"))
        accesses, best = number(row, "accesses"), number(row, "oracle_hits")
        kept = ("engine", "seeds", "scenario", "workload", "scheme", "prefetch", "seed", "accesses")
        out[key] = {
            **{name: row[name] for name in kept if name in row},
            "policy": BOUND,
            "misses": int(accesses - best),
            "hit_rate": best / accesses,
            "percent_of_oracle": 100.0,
        }
    return list(out.values())


def swept(
    scenes: Sequence[Scenario],
    workloads: Sequence[str | WorkloadSpec],
    policies: Sequence[str | PolicySpec],
    seeds: Sequence[int | None],
    label: str,
) -> list[Row]:
    """`pages.sweep`, told which seeds these are."""
    rows = pages.sweep(policies=policies, scenarios=scenes, workloads=workloads, seeds=seeds)
    return [{"seeds": label, **row} for row in rows]


def by_engine(engine: Engine, names: Sequence[str]) -> list[Scenario]:
    """Scenarios under one engine."""
    return [scenario(name).with_engine(engine) for name in names]


class Cells:
    """Means by engine, seeds, scenario, workload and policy."""

    def __init__(self, rows: Sequence[Row]) -> None:
        names = ("engine", "seeds", "scenario", "workload", "policy")
        self.rows = {tuple(row.get(name) for name in names): row for row in summarise(rows)}

    def get(self, engine: str, seeds: str, scene: str, workload: str, policy: str) -> Row:
        """One of them."""
        return self.rows[engine, seeds, scene, workload, policy]


Pair = Callable[[str, str], tuple[float, float]]


def differing(compat: Sequence[Row], exact: Sequence[Row]) -> list[Row]:
    """The runs, usual seeds, in which the exact engine counts other than compat does."""
    names = ("scenario", "workload", "policy")
    others = {tuple(row[name] for name in names): row for row in exact}
    table: list[Row] = []
    for row in compat:
        other = others[tuple(row[name] for name in names)]
        metrics = ("misses", "mean_latency_ms", "bytes_moved")
        if any(row[metric] != other[metric] for metric in metrics):
            cell: Row = {name: row[name] for name in names}
            for metric in metrics:
                cell |= {f"{metric}_compat": row[metric], f"{metric}_exact": other[metric]}
            table.append(cell | {"double_residencies": row["double_residencies"]})
    return table


def headlines(cells: Cells) -> list[Row]:
    """What kv-hierarchy-lab's README says, beside what comes out here."""

    def pair(scene: str, workload: str, policies: tuple[str, str], metric: str) -> Pair:
        def of(engine: str, seeds: str) -> tuple[float, float]:
            first, second = (
                number(cells.get(engine, seeds, scene, workload, name), metric) for name in policies
            )
            return first, second

        return of

    def quant(workload: str, metric: str) -> Pair:
        def of(engine: str, seeds: str) -> tuple[float, float]:
            before, after = (
                statistics.fmean(
                    number(cells.get(engine, seeds, scene, workload, name), metric)
                    for name in DEFAULT_SWEEP.policies
                )
                for scene in ("small_fp16_no_prefetch", "small_int4_no_prefetch")
            )
            return before, after

        return of

    small, tight = "small_fp16_prefetch", "constrained_fp16_prefetch"
    regret, ahead = ("lru", "regret_aware"), ("cost_aware", "predictive")
    claims: list[tuple[str, str, Pair]] = [
        ("rag_burst: misses, lru to regret_aware", "212 to 152", pair(small, "rag_burst", regret, "misses")),
        ("rag_burst: bytes moved, lru to regret_aware", "-26.3 %", pair(small, "rag_burst", regret, "bytes_moved")),
        ("constrained adversarial_burst: ms, lru to regret_aware", "3.664 to 3.365",
         pair(tight, "adversarial_burst", regret, "mean_latency_ms")),
        ("constrained adversarial_burst: bytes moved, lru to regret_aware", "-9.5 %",
         pair(tight, "adversarial_burst", regret, "bytes_moved")),
        ("rag_burst, mean of six policies: hit rate, fp16 to int4", "0.459 to 0.771",
         quant("rag_burst", "hit_rate")),
        ("rag_burst, mean of six policies: bytes moved, fp16 to int4", "-93.9 %",
         quant("rag_burst", "bytes_moved")),
        ("prefetch_friendly: misses, cost_aware to predictive", "-59.6 %",
         pair(small, "prefetch_friendly", ahead, "misses")),
        ("prefetch_friendly: ms, cost_aware to predictive", "+29.2 %",
         pair(small, "prefetch_friendly", ahead, "mean_latency_ms")),
    ]  # fmt: skip
    table: list[Row] = []
    for text, published, of in claims:
        row: Row = {"finding": text, "published": published}
        for key, engine, seeds in (
            ("compat", "compat", "usual"),
            ("exact", "exact", "usual"),
            ("exact_seeds", "exact", "1-5"),
        ):
            before, after = of(engine, seeds)
            row |= {
                f"{key}_from": before,
                f"{key}_to": after,
                f"{key}_percent": change(before, after),
            }
        table.append(row)
    return table


def default_sweep() -> None:
    """The default sweep under both engines, and with five seeds and more policies under the exact one."""
    six = DEFAULT_SWEEP.policies
    rows = swept(by_engine("compat", DEFAULT_SWEEP.scenarios), WORKLOADS, six, [None], "usual")
    exact = by_engine("exact", DEFAULT_SWEEP.scenarios)
    same = swept(exact, WORKLOADS, [*six, *MODERN], [None], "usual")
    wide = swept(exact, WORKLOADS, [*six, *MODERN], SEEDS, "1-5")
    cells = Cells([*rows, *same, *wide])
    kept = chosen([*rows, *wide, *bound_rows(wide)], COLUMNS)

    shown = ("regret_aware", "predictive", *MODERN)
    figure, axes = panels("Mean latency against lru = 1, five seeds, exact engine", 2, width=6.2)
    for axis, scene in zip(axes, ("small_fp16_prefetch", "constrained_fp16_prefetch"), strict=True):
        series: dict[str, list[tuple[float, float]]] = {}
        for policy in shown:
            series[policy] = []
            for workload in WORKLOADS:
                base = number(cells.get("exact", "1-5", scene, workload, "lru"), "mean_latency_ms")
                row = cells.get("exact", "1-5", scene, workload, policy)
                spread = number(row, "mean_latency_ms_sd") / base
                series[policy].append((number(row, "mean_latency_ms") / base, spread))
        bars(axis, WORKLOADS, series, "mean latency / that of lru")
        axis.axhline(1.0, color="black", linewidth=0.8)
        axis.set_title(scene, fontsize=9)
    legend(figure, axes[0])

    failure, (left, right) = panels(
        "The failure case: prefetch_friendly, small_fp16_prefetch, usual seed", 2
    )
    names = [*six, *MODERN]
    for axis, metric in ((left, "misses"), (right, "mean_latency_ms")):
        heights = [
            number(
                cells.get("exact", "usual", "small_fp16_prefetch", "prefetch_friendly", name),
                metric,
            )
            for name in names
        ]
        colours = ["#c44e52" if name == "predictive" else "#4c72b0" for name in names]
        axis.bar(range(len(names)), heights, color=colours)
        axis.set_xticks(range(len(names)), names, rotation=35, ha="right", fontsize=8)
        axis.set_ylabel(metric.replace("_", " "), fontsize=9)
    left.set_title("fewest misses with prefetch ...", fontsize=9)
    right.set_title("... and the highest latency", fontsize=9)

    write(
        "default_sweep",
        title="kv-hierarchy-lab's default sweep again",
        config={
            "scenarios": DEFAULT_SWEEP.scenarios, "workloads": WORKLOADS, "policies": [*six, *MODERN],
            "engines": ["compat", "exact"], "seeds": {"usual": "each workload's own", "1-5": SEEDS},
            "compat": "the six policies of kv-hierarchy-lab, usual seeds",
        },
        rows=kept,
        tables={"headlines": headlines(cells), "engines_differ": differing(rows, same)},
        spreads=SPREADS,
        pictures={"latency_against_lru": figure, "failure_case": failure},
    )  # fmt: skip


ABLATION = (
    WorkloadSpec("chat_continuation", {"num_pages": 80, "length": 512}),
    WorkloadSpec("periodic_reuse", {"num_pages": 96, "length": 640, "period": 11}),
    WorkloadSpec("adversarial_burst", {"num_pages": 112, "length": 640, "burst_size": 14}),
)
WEIGHTS, HORIZONS = (1, 6, 12), (8, 24, 64)
MORE_SEEDS = tuple(range(1, 21))


def arms(weights: Sequence[int], horizons: Sequence[int]) -> list[PolicySpec]:
    """Every combination."""
    return [
        PolicySpec("regret_aware", {"weight": w, "horizon": h}, f"regret_aware w={w} h={h}")
        for w in weights
        for h in horizons
    ]


def regret_ablation() -> None:
    """Weight and horizon of regret, with the score that is left at weight 0."""
    names = ("medium", "tight")
    base = ["lru", "cost_aware"]
    none = PolicySpec("regret_aware", {"weight": 0}, "regret_aware w=0")
    specs = [none, *arms((*WEIGHTS, 48), HORIZONS)]
    seeds = (7, 42, 91)
    published: list[str | PolicySpec] = [*base, *arms(WEIGHTS, HORIZONS)]
    rows = swept(by_engine("compat", names), ABLATION, published, seeds, "7,42,91")
    exact = by_engine("exact", names)
    rows += swept(exact, ABLATION, [*base, *specs], seeds, "7,42,91")
    wide = swept(exact, ABLATION, [*base, *specs], MORE_SEEDS, "1-20")
    params = {spec.label: spec.params for spec in specs}
    for row in [*rows, *wide]:
        row.update(params.get(str(row["policy"]), {}))

    # Seed by seed against weight 0: what regret itself adds.
    latency = {
        (row["scenario"], row["workload"], row["policy"], row["seed"]): number(
            row, "mean_latency_ms"
        )
        for row in wide
    }
    paired: list[Row] = []
    for scene in names:
        for workload in ABLATION:
            for name in [*base, *(spec.label for spec in specs[1:])]:
                gains = [
                    change(
                        latency[scene, workload.name, none.label, seed],
                        latency[scene, workload.name, name, seed],
                    )
                    for seed in MORE_SEEDS
                ]
                paired.append(
                    {
                        "scenario": scene, "workload": workload.name, "policy": name, "n": len(gains),
                        "percent_against_w0": statistics.fmean(gains), "sd": statistics.stdev(gains),
                        "seeds_faster": sum(gain < -1e-9 for gain in gains),
                        "seeds_slower": sum(gain > 1e-9 for gain in gains),
                    }
                )  # fmt: skip

    figure, axes = panels(
        "Regret by weight and horizon, adversarial_burst, seeds 1-20, mean and sd, exact engine", 2
    )
    summary = summarise(wide)
    for axis, scene in zip(axes, names, strict=True):
        cell = [
            row
            for row in summary
            if (row["scenario"], row["workload"]) == (scene, "adversarial_burst")
        ]
        zero = next(row for row in cell if row["policy"] == none.label)
        for at, horizon in enumerate(HORIZONS):
            line = [zero, *(row for row in cell if row.get("horizon") == horizon)]
            axis.errorbar(
                [number(row, "weight") for row in line],
                [number(row, "mean_latency_ms") for row in line],
                yerr=[number(row, "mean_latency_ms_sd") for row in line],
                label=f"horizon {horizon}", color=COLOURS[at], marker="o", markersize=3, capsize=2,
            )  # fmt: skip
        for style, name in (("--", "lru"), (":", "cost_aware")):
            height = number(next(row for row in cell if row["policy"] == name), "mean_latency_ms")
            axis.axhline(height, color="black", linestyle=style, linewidth=0.9, label=name)
        axis.set_title(scene, fontsize=9)
        axis.set_xlabel("weight; 0 = no regret, its frequency score alone", fontsize=9)
        axis.set_ylabel("mean latency, ms", fontsize=9)
    legend(figure, axes[0])

    write(
        "regret_ablation",
        title="Regret, and its frequency score alone",
        config={
            "scenarios": names, "workloads": [{"name": each.name, **each.params} for each in ABLATION],
            "weights": [0, *WEIGHTS, 48], "horizons": HORIZONS, "baselines": base,
            "seeds": {"compat and exact": seeds, "exact": MORE_SEEDS},
        },
        rows=chosen([*rows, *wide], (*COLUMNS[:11], "weight", "horizon")),
        tables={"against_weight_0": paired},
        spreads=SPREADS,
        pictures={"weight_and_horizon": figure},
    )  # fmt: skip


PLANS = (
    "fp16", "fp8", "int4", "int2",
    "fp16,layers:0-7=int4", "fp16,layers:8-15=int4", "fp16,layers:4-15=int4",
    "fp16,heads:0-3=int4", "fp16,heads:0-3=fp8,heads:4-7=int4",
)  # fmt: skip


def quantisation() -> None:
    """Whole, by layer and by head group: what fewer bytes bring, and what decoding takes."""
    workloads = ("rag_burst", "long_tail_mix", "adversarial_burst", "mixed_locality")
    policies = ("lru", "regret_aware", "s3-fifo")
    rows: list[Row] = []
    for plan in PLANS:
        scenes = [
            Scenario(f"{name}, {plan}", tiers(name), SchemePlan.parse(plan))
            for name in ("small", "constrained")
        ]
        for row in swept(scenes, workloads, policies, SEEDS, "1-5"):
            row["scenario"], row["scheme"] = str(row["scenario"]).split(",", maxsplit=1)[0], plan
            rows.append(row)
    size = {
        plan: statistics.fmean(
            page.size_bytes
            for page in expand_workload(
                "rag_burst", Scenario("", tiers("small"), SchemePlan.parse(plan)), 1
            ).pages
        )
        for plan in PLANS
    }
    summary = summarise(rows)
    table: list[Row] = []
    for scene in ("small", "constrained"):
        for plan in PLANS:
            cell = [row for row in summary if (row["scenario"], row["scheme"]) == (scene, plan)]
            means = {
                metric: statistics.fmean(number(row, metric) for row in cell)
                for metric in ("hit_rate", "mean_latency_ms", "bytes_moved")
            }
            table.append({"tiers": scene, "scheme": plan, "mean_page_bytes": size[plan], **means})
    figure, axes = panels(
        "Bytes of a page against latency: four workloads, three policies, seeds 1-5", 2
    )
    for axis, scene in zip(axes, ("small", "constrained"), strict=True):
        for at, row in enumerate(row for row in table if row["tiers"] == scene):
            axis.scatter(
                number(row, "mean_page_bytes"), number(row, "mean_latency_ms"),
                color=COLOURS[at % 10], label=str(row["scheme"]),
            )  # fmt: skip
        axis.set_title(f"{scene} tiers", fontsize=9)
        axis.set_xlabel("mean bytes of a page", fontsize=9)
        axis.set_ylabel("mean latency, ms", fontsize=9)
    legend(figure, axes[1])
    write(
        "quantisation",
        title="Quantisation, whole, by layer and by head group",
        config={
            "tiers": ["small", "constrained"], "schemes": PLANS, "workloads": workloads,
            "policies": policies, "seeds": SEEDS, "prefetch": False, "engine": "exact",
        },
        rows=chosen(rows, ("scheme", *COLUMNS[2:11])),
        tables={"by_scheme": table},
        spreads=SPREADS,
        pictures={"bytes_against_latency": figure},
    )  # fmt: skip


def prefetch() -> None:
    """One policy with prefetch and without, with transfers one by one and beside compute."""
    rows: list[Row] = []
    for compute in (None, 0.1, 1.0):
        scenes = [
            replace(
                scenario("small_fp16_prefetch"),
                prefetch=on,
                compute_ms=compute,
                name=f"small_fp16 {on}",
            )
            for on in (False, True)
        ]
        for row in swept(scenes, WORKLOADS, ["predictive"], SEEDS, "1-5"):
            row["scenario"], row["compute_ms"] = "small_fp16", compute or 0.0
            rows.append(row)
    # In a column that tells cells apart only where there is compute at all.
    summary = summarise(rows)
    table: list[Row] = []
    for compute in (0.0, 0.1, 1.0):
        for workload in WORKLOADS:
            off, on = (
                next(
                    row
                    for row in summary
                    if (row["workload"], row["compute_ms"], row["prefetch"])
                    == (workload, compute, fetch)
                )
                for fetch in (False, True)
            )
            table.append(
                {
                    "workload": workload, "compute_ms": compute,
                    "misses_off": number(off, "misses"), "misses_on": number(on, "misses"),
                    "ms_off": number(off, "mean_latency_ms"), "ms_on": number(on, "mean_latency_ms"),
                    "ms_percent": change(number(off, "mean_latency_ms"), number(on, "mean_latency_ms")),
                    "bytes_percent": change(number(off, "bytes_moved"), number(on, "bytes_moved")),
                    "useful_prefetch_ratio": number(on, "useful_prefetch_ratio"),
                    "prefetches": number(on, "prefetches"),
                }
            )  # fmt: skip
    figure, (axis,) = panels("Prefetch on against off: small tiers, fp16, seeds 1-5", 1, width=8.0)
    bars(
        axis,
        WORKLOADS,
        {
            text: [(number(row, "ms_percent"), 0.0) for row in table if row["compute_ms"] == compute]
            for compute, text in (
                (0.0, "transfers one by one"), (0.1, "beside 0.1 ms of compute"), (1.0, "beside 1 ms of compute"),
            )
        },
        "mean latency with prefetch, % of change",
    )  # fmt: skip
    axis.axhline(0.0, color="black", linewidth=0.8)
    legend(figure, axis)
    write(
        "prefetch",
        title="Which workloads punish prefetch",
        config={
            "tiers": "small", "scheme": "fp16", "policy": "predictive", "workloads": WORKLOADS,
            "compute_ms": [0.0, 0.1, 1.0], "seeds": SEEDS, "engine": "exact",
        },
        rows=chosen(rows, ("prefetch", "compute_ms", *COLUMNS[3:])),
        tables={"on_against_off": table},
        spreads=SPREADS,
        pictures={"latency": figure},
    )  # fmt: skip


def cxl_like() -> None:
    """Much slow memory: the preset, the same without CXL, and the same with RAM in its place."""
    preset = tiers("cxl_like")
    fast, ram, cxl, nvme = preset
    more = replace(ram, capacity_bytes=ram.capacity_bytes + cxl.capacity_bytes)
    scenes = [
        Scenario("cxl_like", preset),
        Scenario("no CXL", (fast, ram, nvme)),
        Scenario("RAM instead", (fast, more, nvme)),
    ]
    policies = (*DEFAULT_SWEEP.policies, *MODERN)
    rows = swept(scenes, DEFAULT_SWEEP.workloads, policies, SEEDS, "1-5")
    summary = summarise(rows)
    table: list[Row] = []
    for workload in DEFAULT_SWEEP.workloads:
        row: Row = {"workload": workload}
        for scene in scenes:
            cell = [
                each
                for each in summary
                if (each["scenario"], each["workload"]) == (scene.name, workload)
            ]
            latencies = {str(each["policy"]): number(each, "mean_latency_ms") for each in cell}
            best = min(latencies, key=lambda name: latencies[name])
            key = scene.name.replace(" ", "_")
            row |= {
                f"{key}_lru_ms": latencies["lru"],
                f"{key}_best_ms": latencies[best],
                f"{key}_best": best,
            }
        table.append(row)
    figure, (axis,) = panels(
        "CXL-like memory: mean latency, lru, fp16, no prefetch, seeds 1-5", 1, width=8.0
    )
    spread = {
        (row["scenario"], row["workload"]): (
            number(row, "mean_latency_ms"),
            number(row, "mean_latency_ms_sd"),
        )
        for row in summary
        if row["policy"] == "lru"
    }
    bars(
        axis,
        DEFAULT_SWEEP.workloads,
        {
            scene.name: [spread[scene.name, name] for name in DEFAULT_SWEEP.workloads]
            for scene in scenes
        },
        "mean latency, ms",
    )
    legend(figure, axis)
    write(
        "cxl_like",
        title="Much slow memory in place of little fast memory",
        config={
            "tiers": {scene.name: [asdict(tier) for tier in scene.tiers] for scene in scenes},
            "scheme": "fp16", "prefetch": False, "workloads": DEFAULT_SWEEP.workloads, "policies": policies,
            "seeds": SEEDS, "engine": "exact",
        },
        rows=chosen(rows, COLUMNS[2:11]),
        tables={"by_workload": table},
        spreads=SPREADS,
        pictures={"latency": figure},
    )  # fmt: skip


if __name__ == "__main__":
    default_sweep()
    regret_ablation()
    quantisation()
    prefetch()
    cxl_like()
