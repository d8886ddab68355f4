"""Fleets that share a tier: `KVLAB_TRACES=FOLDER python scripts/lab_fleet.py` writes artifacts/fleet. Simulated.

The folder holds Mooncake's conversation trace and Claude Code sessions (WEKA). What this machine has to say of itself
stands in artifacts/fleet/measured.json (`python benches/python/fleet_costs.py`) and is not made anew here.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import lab_artifacts
from lab_artifacts import bars, legend, number, panels, write

from kvlab._progress import ConsoleProgress
from kvlab.sim.experiments.plots import COLOURS
from kvlab.sim.experiments.table import SIMULATED
from kvlab.sim.fleet.load import Recorded, record
from kvlab.sim.fleet.machines import Machine, machine_of
from kvlab.sim.fleet.network import Network
from kvlab.sim.fleet.study import Study, run_study
from kvlab.sim.formats import read
from kvlab.sim.trace import find

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from kvlab.sim.experiments.table import Row

GIB = 1 << 30
EIGHT = machine_of("llama-3.1-8b")
SEVENTY = machine_of("llama-3.1-70b", count=4)
MACHINES = {"8B": EIGHT, "70B": SEVENTY}
CHAT = Study(
    machines=(1, 10, 100, 1000),
    gigabits=(1, 10, 25, 40, 100),
    l1_bytes=48 * GIB,
    l2_bytes=256 * GIB,
    write_queue=16 * GIB,
    window=600,
)
LARGE = (140 * GIB, 512 * GIB)
"""L1 and L2 of 70B: what four accelerators of 80 GB leave beside the weights, and twice the host memory."""
AGENTS = replace(
    CHAT,
    machines=(10, 100),
    gigabits=(10, 25, 100),
    routings=("round-robin", "sticky"),
    window=1800,
    load=1.0,
)
HUNDRED = replace(CHAT, machines=(100,), gigabits=(100,))


def traces() -> dict[str, Recorded]:
    """Both, the agents' with blocks of 512 tokens as the chats' have."""
    chat = read(find("mooncake_conversation"), "mooncake")
    agents = read(find("claude_code_sessions"), "weka")
    return {"chat": record(chat, chat.info), "agents": record(agents, agents.info, merge=8)}


def measured() -> dict[str, Any]:
    """What this machine says of itself."""
    content: dict[str, Any] = json.loads(
        (lab_artifacts.ROOT / "fleet" / "measured.json").read_text(encoding="utf-8")
    )
    return content


def variants() -> dict[str, tuple[Machine, Study]]:
    """One hundred machines, and one thing at a time that is otherwise."""
    rate = measured()["ingredients"]["read_bytes_per_second"]
    half = machine_of("llama-3.1-8b", token_bytes=EIGHT.costs.token_bytes // 2)
    slow = Network(client_rate=rate, server_rate=rate)
    return {
        "as above": (EIGHT, HUNDRED),
        "512 GiB a server": (EIGHT, replace(HUNDRED, server_bytes=512 * GIB)),
        "2 TiB a server": (EIGHT, replace(HUNDRED, server_bytes=2048 * GIB)),
        "write queue of 256 MiB": (EIGHT, replace(HUNDRED, write_queue=GIB // 4)),
        "software as measured here": (EIGHT, replace(HUNDRED, network=slow)),
        "8-bit KV": (half, HUNDRED),
        "8-bit KV, 10 Gb/s": (half, replace(HUNDRED, gigabits=(10,))),
        "one server": (EIGHT, replace(HUNDRED, servers=1)),
        "sticky": (EIGHT, replace(HUNDRED, routings=("sticky",))),
        "least-loaded": (EIGHT, replace(HUNDRED, routings=("least-loaded",))),
        "random": (EIGHT, replace(HUNDRED, routings=("random",))),
        "load 0.25": (EIGHT, replace(HUNDRED, load=0.25)),
    }


def rows_of(recorded: dict[str, Recorded]) -> tuple[list[Row], dict[str, list[str]]]:
    """All fleets."""
    rows: list[Row] = []
    notes: dict[str, list[str]] = {}

    def take(trace: str, name: str, variant: str, machine: Machine, study: Study) -> None:
        with ConsoleProgress().stage(
            f"{trace}, {name}, {variant}", study.cells, "pieces"
        ) as update:
            found, said = run_study(recorded[trace], machine, study, progress=update)
        rows.extend({"trace": trace, "model": name, "variant": variant, **row} for row in found)
        notes[f"{trace}, {name}, {variant}"] = said

    for name, machine in MACHINES.items():
        l1, l2 = LARGE if name == "70B" else (CHAT.l1_bytes, CHAT.l2_bytes)
        for trace, study in (("chat", CHAT), ("agents", AGENTS)):
            take(trace, name, "sizes", machine, replace(study, l1_bytes=l1, l2_bytes=l2))
    for variant, (machine, study) in variants().items():
        take("chat", "8B", variant, machine, study)
    return rows, notes


def break_even() -> list[dict[str, Any]]:
    """Gb/s of a link from which fetching pays, for models and accelerators."""
    share = Network().wire_share
    found = []
    for model, accelerator, count, bytes_ in (
        ("llama-3.1-8b", "l40s", 1, 1.0),
        ("llama-3.1-8b", "a100", 1, 1.0),
        ("llama-3.1-8b", "h100", 1, 1.0),
        ("llama-3.1-8b", "h100", 1, 0.5),
        ("llama-3.1-70b", "a100", 4, 1.0),
        ("llama-3.1-70b", "h100", 4, 1.0),
        ("llama-3.1-70b", "h100", 4, 0.5),
    ):
        machine = machine_of(model, accelerator=accelerator, count=count)
        costs = replace(machine.costs, token_bytes=round(machine.costs.token_bytes * bytes_))
        machine = replace(machine, costs=costs)
        found.append(
            {
                "model": model,
                "accelerator": accelerator,
                "count": count,
                "bits": round(16 * bytes_),
                "token_bytes": costs.token_bytes,
                "tokens_per_second": 2048 / machine.prefill(2048, 0),
                **{
                    f"gigabits_{tokens}": machine.break_even_gigabits(tokens) / share
                    for tokens in (2048, 32_768, 131_072)
                },
            }
        )
    return found


def _lines(axis: Axes, rows: list[Row], y: str, label: str) -> None:
    for at, machines in enumerate(sorted({int(number(row, "machines")) for row in rows})):
        own = [row for row in rows if row["machines"] == machines]
        axis.plot(
            [number(row, "gigabits") for row in own],
            [number(row, y) for row in own],
            "os^v"[at % 4] + "-",
            ms=4,
            color=COLOURS[at],
            label=f"{machines:,} machines",
        )
    axis.set_xscale("log")
    axis.set_xticks([1, 10, 25, 40, 100], ["1", "10", "25", "40", "100"], fontsize=8)
    axis.minorticks_off()
    axis.set_xlabel("Gb/s of every link", fontsize=9)
    axis.set_ylabel(label, fontsize=9)


def pictures(rows: list[Row]) -> dict[str, Figure]:
    """First tokens by network, servers by machines, and where blocks come from."""
    sizes = [row for row in rows if row["variant"] == "sizes" and row["trace"] == "chat"]
    first, axes = panels("First token, median: times sooner with a shared tier", 2)
    for axis, name in zip(axes, MACHINES, strict=True):
        _lines(axis, [row for row in sizes if row["model"] == name], "faster_p50", "times sooner")
        axis.axhline(1, color="black", linewidth=0.8)
        axis.set_title(MACHINES[name].name, fontsize=9)
    legend(first, axes[0])
    needed, axes = panels("Servers that keep their links below 70 %", 2)
    for axis, name in zip(axes, MACHINES, strict=True):
        _lines(
            axis, [row for row in sizes if row["model"] == name], "servers_needed", "servers needed"
        )
        axis.set_yscale("log")
        axis.set_title(MACHINES[name].name, fontsize=9)
    legend(needed, axes[0])
    tiers, (axis,) = panels("8B, 100 Gb/s: where blocks come from", 1, width=6.4)
    own = [row for row in sizes if row["model"] == "8B" and row["gigabits"] == 100]
    series = {
        name: [(number(row, f"tier_hit_rates.{tier}"), 0.0) for row in own]
        for name, tier in (("own L1", "l1"), ("own L2", "l2"), ("L4", "l4"))
    }
    bars(axis, [f"{int(number(row, 'machines')):,}" for row in own], series, "share of blocks")
    axis.set_xlabel("machines", fontsize=9)
    legend(tiers, axis)
    return {"first_token": first, "servers": needed, "tiers": tiers}


def kept(row: Row) -> Row:
    """A row as it is kept: 6 digits, whole numbers as such."""
    (short,) = lab_artifacts.shortened([row], 6)
    return {
        name: int(value) if isinstance(value, float) and value == int(value) else value
        for name, value in short.items()
    }


def quotable(row: Row) -> Row:
    """A row whose names have no dots: what marks in the docs are found by."""
    return {name.removeprefix("tier_hit_rates."): value for name, value in row.items()}


def main() -> None:
    """Simulates, and writes what comes of it."""
    write_all(*rows_of(traces()))


def write_all(rows: list[Row], notes: dict[str, list[str]]) -> None:
    """Writes tables, pictures and what the docs quote."""
    rows, even = [kept(row) for row in rows], [kept(row) for row in break_even()]
    config = {
        "machines": {name: machine.source for name, machine in MACHINES.items()},
        "chat": asdict(CHAT),
        "agents": asdict(AGENTS),
        "l1_and_l2_of_70B": LARGE,
        "notes": notes,
    }
    config = json.loads(json.dumps(config).replace("Infinity", '"inf"'))
    write(
        "fleet",
        title="Fleets that share a tier",
        config=config,
        rows=rows,
        tables={"break_even": even},
        spreads=(
            "tier_hit_rates.l1", "tier_hit_rates.l2", "tier_hit_rates.l4", "computed_share",
            "computed_share_without", "predicted_ttft_p50_ms", "predicted_ttft_p50_ms_without",
            "predicted_ttft_p95_ms", "predicted_ttft_p95_ms_without", "servers_needed", "server_out", "server_in",
        ),
        over=(),
        pictures=pictures(rows),
    )  # fmt: skip
    quoted = {
        "kind": SIMULATED,
        "rows": [quotable(row) for row in rows],
        "break_even": even,
    }
    (lab_artifacts.ROOT / "fleet" / "quoted.json").write_text(
        json.dumps(quoted, indent=1) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
