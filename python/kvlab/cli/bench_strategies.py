"""`kvlab bench strategies`: what caching costs and saves, from none to machines that share."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from kvlab._progress import ConsoleProgress
from kvlab.cli._common import json_option, print_json
from kvlab.cli._sim import writing
from kvlab.cli.bench import config_option
from kvlab.errors import ConfigError, InvalidArgumentError
from kvlab.serve.options import DTYPES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvlab.bench.backend import Mode
    from kvlab.bench.outcome import Outcome
    from kvlab.bench.strategies import StrategiesBackend
    from kvlab.workload.schema import Workload

__all__ = ["bench_strategies"]

_DEFAULT_MODEL = "smollm2-135m"
_STEM = "strategies"


@dataclass(frozen=True)
class _Made:
    """A workload that a generator makes: options for a run, and for a quick one."""

    generator: str
    options: dict[str, int]
    quick: dict[str, int]


_WORKLOADS = {
    "agent": _Made(
        "planner",
        {"plans": 4, "steps": 3, "system_tokens": 250, "observation_tokens": 100},
        {"plans": 2, "steps": 2, "system_tokens": 150, "observation_tokens": 40},
    ),
    "chat": _Made(
        "session",
        {"sessions": 4, "turns": 3, "system_tokens": 300, "tool_tokens": 80},
        {"sessions": 2, "turns": 2, "system_tokens": 150},
    ),
    "unique": _Made(
        "unique", {"requests": 4, "prompt_tokens": 400}, {"requests": 4, "prompt_tokens": 150}
    ),
}
_QUICK_ANSWER = 4
_TABLE_WIDTH = 140


@click.command("strategies")
@config_option
@click.option(
    "--workload",
    "workloads",
    multiple=True,
    metavar="NAME|FILE",
    help=f"{', '.join(_WORKLOADS)}, or a file of `kvlab workload`; may be repeated. [default: all three]",
)
@click.option(
    "--strategies",
    help="Which, with commas between them; costs are compared with the first. [default: all]",
)
@click.option(
    "--rounds", type=click.IntRange(min=1), help="Interleaved. [default: 3; 1 with --quick]"
)
@click.option("--num-prompts", type=int, help="Only the first requests of each workload.")
@click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    help="Of an answer, at most. [default: 8; 4 with --quick]",
)
@click.option(
    "--concurrency",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Requests in flight, for each machine.",
)
@click.option(
    "--delay-scale",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="What gaps of tools and people are multiplied by; 0 leaves them out.",
)
@click.option(
    "--quick",
    is_flag=True,
    help="Small workloads and one round: what it looks like, not what it costs.",
)
@click.option(
    "--machine-price",
    type=float,
    help="Of a machine for an hour, in your money. [default: none; seconds]",
)
@click.option(
    "--remote",
    metavar="URL",
    help="The Redis or Valkey server of L4; it is not emptied, names of its own are used. [default: one is "
    "started for each round]",
)
@click.option("--model", default=_DEFAULT_MODEL, show_default=True, help="Name, path or hub id.")
@click.option("--dtype", type=click.Choice(list(DTYPES)), default="fp32", show_default=True)
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    help="Of torch on each machine. [default: the processors, divided by the machines]",
)
@click.option("--l1", default="1GiB", show_default=True, help="Size of L1.")
@click.option("--l2", default="1GiB", show_default=True, help="Size of L2.")
@click.option(
    "--restore",
    type=click.Choice(["always", "auto", "never"]),
    default="auto",
    show_default=True,
    help="How much of what is found is restored.",
)
@click.option(
    "--report",
    type=click.Path(path_type=Path, file_okay=False),
    help=f"A directory for {_STEM}_WORKLOAD.json, its reports, and {_STEM}.html of all that it has.",
)
@click.option(
    "--charts", type=click.Path(path_type=Path, file_okay=False), help=f"Where {_STEM}.svg goes."
)
@json_option
def bench_strategies(**asked: Any) -> None:
    """Compare strategies of caching on an agent, a chat and a unique-prompts workload: what a token costs.

    On the real model, each machine a process of its own. A machine's price is the reader's: without one, costs are
    seconds of machines.
    """
    names = _strategies(asked["strategies"])
    workloads = _workloads(asked)
    if asked["charts"] is not None and asked["report"] is None:
        raise InvalidArgumentError("--charts draws what is in --report: give both")
    price = asked["machine_price"]
    if price is not None and not 0 < price < float("inf"):
        raise InvalidArgumentError(f"--machine-price {price}: give the price of an hour, above 0")
    backend = _backend(asked, names)
    try:
        summaries = {
            name: _run(asked, backend, name, made, names) for name, made in workloads.items()
        }
    finally:
        backend.close()
    files = _write(asked["report"], asked["charts"], summaries)
    if asked["as_json"]:
        print_json({"workloads": summaries})
        return
    for name, summary in summaries.items():
        _show(name, summary)
    for path in files:
        click.echo(f"wrote {path}")


def _strategies(text: str | None) -> tuple[Mode, ...]:
    from kvlab.bench.strategies import STRATEGIES

    if text is None:
        return tuple(STRATEGIES)
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in STRATEGIES:
            raise ConfigError(f"--strategies {name}: use some of: {', '.join(STRATEGIES)}")
    if not names or len(set(names)) < len(names):
        raise InvalidArgumentError(f"--strategies {text}: name at least one, and each once")
    return cast("tuple[Mode, ...]", tuple(names))


def _workloads(asked: dict[str, Any]) -> dict[str, Workload]:
    """The workloads by the names that files have of them, with answers of a length that a run has time for."""
    from kvlab.bench.run import first
    from kvlab.workload.generators import generate
    from kvlab.workload.schema import Workload, load

    most = asked["max_tokens"] or (_QUICK_ANSWER if asked["quick"] else 8)
    found: dict[str, Workload] = {}
    for text in asked["workloads"] or tuple(_WORKLOADS):
        if made := _WORKLOADS.get(text):
            name = text
            options = made.quick if asked["quick"] else made.options
            workload = generate(made.generator, name=name, **options)
        else:
            path = Path(text)
            name = path.name.split(".")[0]
            if not path.exists():
                raise ConfigError(
                    f"--workload {text}: is no file, and none of {', '.join(_WORKLOADS)}"
                )
            with writing("--workload", path):
                workload = load(path)
        if name in found:
            raise InvalidArgumentError(f"--workload {text}: there is one of that name already")
        workload = first(workload, asked["num_prompts"])
        cut = tuple(
            replace(request, max_tokens=min(request.max_tokens, most))
            for request in workload.requests
        )
        found[name] = Workload(workload.header, cut)
    return found


def _backend(asked: dict[str, Any], names: Sequence[Mode]) -> StrategiesBackend:
    from kvlab import parse_size
    from kvlab.bench.local import LocalOptions
    from kvlab.bench.shared import check_server
    from kvlab.bench.strategies import STRATEGIES, StrategiesBackend
    from kvlab.serve.engine.modes import TierSizes

    for size in (asked["l1"], asked["l2"]):
        parse_size(size)  # before processes load a model to find out
    chosen = [STRATEGIES[name] for name in names]
    machines = max(each.machines for each in chosen)
    shared = any(each.shared for each in chosen)
    if asked["remote"] is not None and not shared:
        raise InvalidArgumentError(f"--remote: none of {', '.join(names)} has a shared tier")
    if shared:
        check_server(asked["remote"])
    options = LocalOptions(
        model=asked["model"],
        dtype=DTYPES[asked["dtype"]],
        sizes=TierSizes(asked["l1"], asked["l2"]),
        restore=asked["restore"],
        ignore_eos=True,
    )
    threads = asked["threads"] or max(1, (os.cpu_count() or 1) // machines)
    with ConsoleProgress().stage(f"loading {asked['model']} in {machines} processes"):
        return StrategiesBackend(
            options, threads=threads, machines=machines, remote=asked["remote"]
        )


def _run(
    asked: dict[str, Any],
    backend: StrategiesBackend,
    name: str,
    workload: Workload,
    names: tuple[Mode, ...],
) -> dict[str, Any]:
    """One workload under all strategies: its reports are written, its table is returned."""
    from kvlab.bench import report
    from kvlab.bench.run import RunOptions, ideal, run
    from kvlab.bench.schedule import Plan
    from kvlab.bench.strategies import STRATEGIES, WARM_UPS
    from kvlab.bench.summary import summarise
    from kvlab.workload.tokens import tokenizer

    folder: Path | None = asked["report"]
    options = RunOptions(
        modes=names,
        rounds=asked["rounds"] or (1 if asked["quick"] else 3),
        warmup=WARM_UPS,
        plan=Plan(concurrency=asked["concurrency"], delay_scale=asked["delay_scale"]),
        machines={each: STRATEGIES[each].machines for each in names},
    )
    total = len(workload.requests) * len(names) * options.rounds
    answers: dict[Mode, dict[str, str]] = {each: {} for each in names}
    count = 0
    with ExitStack() as stack:
        files = (
            {}
            if folder is None
            else {each: folder / f"{_STEM}_{name}-{each}.json" for each in names}
        )
        lines = {}
        for each, path in files.items():
            with writing("--report", path):
                path.parent.mkdir(parents=True, exist_ok=True)
                lines[each] = stack.enter_context(
                    report.paths(path)[0].open("w", encoding="utf-8", newline="\n", buffering=1)
                )
        update = stack.enter_context(
            ConsoleProgress().stage(f"{name}: {', '.join(names)}", total, "pieces")
        )

        def done(mode: Mode, outcome: Outcome) -> None:
            nonlocal count
            count += 1
            update(count)
            if outcome.answer is not None:
                digest = hashlib.sha256(outcome.answer.text.encode()).hexdigest()[:16]
                answers[mode][f"{outcome.round} {outcome.request}"] = digest
            if mode in lines:
                lines[mode].write(json.dumps(outcome.row(), ensure_ascii=False) + "\n")

        reports = run(backend, workload, options, done=done)
    block_tokens = backend.describe()["block_tokens"]
    ideal(workload, tokenizer(asked["model"]), block_tokens, list(reports.values()))
    for each in names:
        reports[each]["answers"] = answers[each]
    for each, path in files.items():
        with writing("--report", path):
            report.write(reports[each], path)
    return summarise(reports, asked["machine_price"])


def _write(
    folder: Path | None, charts: Path | None, summaries: dict[str, dict[str, Any]]
) -> list[Path]:
    """The tables, and the page and picture of all tables that are there."""
    if folder is None:
        return []
    from kvlab.bench.summary import draw, page, read

    written = []
    with writing("--report", folder):
        for name, summary in summaries.items():
            path = folder / f"{_STEM}_{name}.json"
            path.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8", newline="\n")
            written.append(path)
        there = [
            read(path)
            for path in sorted(folder.glob(f"{_STEM}_*.json"))
            if "-" not in path.name.removeprefix(f"{_STEM}_")
        ]
        svg = draw(there)
        files = {folder / f"{_STEM}.html": page(there, svg)}
        if charts is not None and svg is not None:
            files[charts / f"{_STEM}.svg"] = svg
        for path, text in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="\n")
            written.append(path)
    return written


def _show(name: str, summary: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from kvlab.bench.summary import HEADER, cells, cost_unit, sentences

    workload = summary["workload"]
    rounds = "one round" if summary["rounds"] == 1 else f"{summary['rounds']} rounds"
    table = Table(
        title=f"{name}: {workload['requests']} requests, {rounds}; cost: {cost_unit(summary)}"
    )
    for at, header in enumerate(HEADER):
        table.add_column(header, justify="right" if at else "left", no_wrap=True)
    for row in cells(summary):
        table.add_row(*row)
    # Where a terminal is narrower, or there is none, its lines are broken rather than its numbers cut.
    console = Console()
    if console.width < _TABLE_WIDTH:
        console = Console(width=_TABLE_WIDTH)
    console.print(table)
    for sentence in sentences(summary):
        click.echo(sentence)
