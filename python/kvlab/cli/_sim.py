"""What the sub-commands of `kvlab sim` share."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from kvlab._progress import ConsoleProgress
from kvlab.errors import ConfigError, InvalidArgumentError

if TYPE_CHECKING:
    from kvlab._progress import Update
    from kvlab.sim.cost_file import CostModel
    from kvlab.sim.experiments.artifacts import Artifacts
    from kvlab.sim.experiments.hierarchy import Below
    from kvlab.sim.formats import TraceInfo
    from kvlab.sim.request import Request
    from kvlab.sim.trace import Trace

__all__ = [
    "TraceArguments",
    "below_of",
    "check_policies",
    "counting",
    "finish",
    "items",
    "known",
    "load_costs",
    "load_source",
    "load_trace",
    "numbers",
    "one_of_your_own",
    "out_option",
    "print_table",
    "tier_options",
    "trace_options",
    "workers_option",
    "writing",
]

Command = TypeVar("Command", bound=Callable[..., Any])

out_option = click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Directory for config, results (JSON, CSV), plots and report.html.",
)
workers_option = click.option(
    "--workers", type=click.IntRange(min=1), help="Threads. [default: one a processor]"
)


def trace_options(command: Command) -> Command:
    """What is replayed: a trace in a file, or what a generator makes."""
    for option in (
        click.option(
            "--option",
            "options",
            multiple=True,
            metavar="KEY=VALUE",
            help="Of the format or the generator, such as block_tokens=512; may be repeated.",
        ),
        click.option("--workload", help="A generator of requests in place of a trace."),
        click.option("--format", "format_", help="What the trace is written in."),
        click.option(
            "--trace", help="A file, or a name to look for in the folder of KVLAB_TRACES."
        ),
    ):
        command = option(command)
    return command


def tier_options(command: Command) -> Command:
    """What is below L1, and what times are predicted by; mode prefix."""
    for option in (
        click.option(
            "--servers",
            type=click.IntRange(min=1),
            default=1,
            show_default=True,
            help="Requests that are computed at once.",
        ),
        click.option(
            "--costs",
            type=click.Path(path_type=Path),
            help="From `kvlab sim calibrate`, for predicted times; mode prefix. [default: assumed]",
        ),
        click.option("--l3-blocks", "l3", help="Blocks of a third tier, likewise; mode prefix."),
        click.option(
            "--l2-blocks",
            "l2",
            help="Blocks of a second tier, a share such as 5%, inf, or 0; mode prefix.",
        ),
    ):
        command = option(command)
    return command


def below_of(
    trace: Trace, l2: str | None, l3: str | None, costs: Path | None, servers: int
) -> Below:
    """What the options of `tier_options` say of a trace.

    Raises:
        ConfigError: the costs are none.
        InvalidArgumentError: a size that cannot be, or a file that cannot be read.
    """
    from kvlab.sim.cost_file import with_concurrency
    from kvlab.sim.experiments.hierarchy import Below
    from kvlab.sim.experiments.requests import sizes_of

    second, third = (
        0 if text in {None, "0"} else sizes_of(trace, [str(text)])[0] for text in (l2, l3)
    )
    return Below(second, third, with_concurrency(load_costs(costs), servers))


@dataclass(frozen=True, slots=True)
class TraceArguments:
    """What the options of `trace_options` were given.

    Raises:
        InvalidArgumentError: neither a trace with its format nor a workload was given, or both.
    """

    trace: str | None
    format: str | None
    workload: str | None
    options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (self.trace is None) == (self.workload is None):
            raise InvalidArgumentError(
                "nothing or too much to replay: give either --trace with --format, or --workload"
            )
        if self.trace is not None and self.format is None:
            from kvlab.sim.formats import names

            raise InvalidArgumentError(
                f"--trace {self.trace}: give its --format, one of: {', '.join(names())}"
            )

    @property
    def name(self) -> str:
        """What is replayed, without where it lies."""
        return Path(self.trace).name if self.trace is not None else str(self.workload)

    def config(self) -> dict[str, Any]:
        """What results depend on: the name of the file, not where it lies."""
        source = {"trace": self.name, "format": self.format}
        if self.trace is None:
            source = {"workload": self.name}
        # Of files that options name only the name is kept, too.
        options = {
            key: Path(value).name if Path(value).exists() else value
            for key, value in read_options(self.options).items()
        }
        return {**source, "options": options}


def read_options(texts: Sequence[str]) -> dict[str, str]:
    """`key=value` pairs.

    Raises:
        InvalidArgumentError: a text is no pair.
    """
    options: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise InvalidArgumentError(f"--option {text}: write it as key=value")
        options[key] = value
    return options


def read_numbers(texts: Sequence[str]) -> dict[str, int | float]:
    """`key=number` pairs.

    Raises:
        InvalidArgumentError: a text is none.
    """
    return {key: _number(key, value) for key, value in read_options(texts).items()}


def _number(key: str, text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise InvalidArgumentError(f"--option {key}={text}: give a number")
    return number


def _format_options(name: str, texts: Sequence[str]) -> dict[str, Any]:
    """Options of a format, read as what its importer takes."""
    from kvlab.sim.formats import importer

    parameters = inspect.signature(importer(name)).parameters
    options: dict[str, Any] = {}
    for key, text in read_options(texts).items():
        kind = str(parameters[key].annotation) if key in parameters else "str"
        if kind.startswith("bool"):
            if text not in {"true", "false"}:
                raise InvalidArgumentError(f"--option {key}={text}: give true or false")
            options[key] = text == "true"
        elif kind.startswith("int"):
            if not (text.isascii() and text.isdecimal() and int(text) > 0):
                raise InvalidArgumentError(f"--option {key}={text}: give a whole number above 0")
            options[key] = int(text)
        elif "Collection" in kind:
            options[key] = text.split(",")
        else:
            options[key] = Path(text) if kind.startswith("Path") else text
    return options


def load_trace(arguments: TraceArguments, seed: int | None = None) -> Trace:
    """Reads or makes what is replayed, with a line of progress.

    Raises:
        ConfigError: an unknown format, workload or option.
        TraceFormatError: a malformed row.
        InvalidArgumentError: the file cannot be read, or the trace is empty.
    """
    from kvlab.sim.trace import load

    if arguments.trace is None:
        from kvlab.sim.experiments.requests import generate

        return generate(arguments.name, seed=seed, **read_numbers(arguments.options))
    options = _format_options(str(arguments.format), arguments.options)
    with counting(f"reading {arguments.name}") as update:
        try:
            trace = load(arguments.trace, str(arguments.format), progress=update, **options)
        except OSError as error:
            message = f"--trace {arguments.trace}: {error.strerror or error}"
            raise InvalidArgumentError(message) from error
    if not len(trace):
        raise InvalidArgumentError(f"--trace {arguments.trace}: has no request")
    return trace


def load_source(arguments: TraceArguments) -> tuple[Iterable[Request], TraceInfo]:
    """The requests themselves, to be iterated once, and what is known of them.

    Raises:
        ConfigError: an unknown format, workload or option.
        InvalidArgumentError: there is no such file.
    """
    if arguments.trace is None:
        from kvlab.sim.experiments.requests import generated

        return generated(arguments.name, seed=None, **read_numbers(arguments.options))
    from kvlab.sim.formats import read
    from kvlab.sim.trace import find

    options = _format_options(str(arguments.format), arguments.options)
    source = read(find(arguments.trace), str(arguments.format), **options)
    return source, source.info


@contextmanager
def counting(text: str, total: int | None = None) -> Iterator[Update]:
    """A stage that counts pieces, on stderr."""
    with ConsoleProgress().stage(text, total, "pieces") as update:
        yield update


def items(texts: Sequence[str]) -> list[str]:
    """Names given in repeats of an option, or with commas between them; each once."""
    names = [name.strip() for text in texts for name in text.split(",")]
    return list(dict.fromkeys(name for name in names if name))


def numbers(option: str, texts: Sequence[str]) -> list[int]:
    """Whole numbers from 0 on, as `items`.

    Raises:
        InvalidArgumentError: one is none.
    """
    found = []
    for text in items(texts):
        if not (text.isascii() and text.isdecimal()):
            raise InvalidArgumentError(
                f"{option} {text}: give whole numbers from 0 on, such as 7,42,91"
            )
        found.append(int(text))
    return found


def known(option: str, names: Sequence[str], all_names: Sequence[str]) -> list[str]:
    """The names, all of them for `all`.

    Raises:
        ConfigError: one is unknown; lists the known ones.
    """
    if list(names) == ["all"]:
        return list(all_names)
    for name in names:
        if name not in all_names:
            raise ConfigError(f"{option} {name}: use one of: {', '.join(all_names)}")
    return list(names)


def check_policies(names: Sequence[str], mode: str) -> list[str]:
    """The policies of prefix or flat mode by their names; `live` stands for those that the tiers can use.

    Raises:
        ConfigError: one is unknown; lists the known ones.
    """
    from kvlab.sim.catalogue import live_policies, request_policies

    every = request_policies(mode)
    for name in names:
        one_of_your_own(name, mode)
    if list(names) == ["live"]:
        return live_policies()
    return known("--policies", names, every)


def one_of_your_own(policy: str, mode: str) -> None:
    """Refuses a policy in a Python file outside of page mode.

    Raises:
        ConfigError: it is one.
    """
    from kvlab.sim.policy_file import is_policy_file

    if mode != "page" and is_policy_file(policy):
        raise ConfigError(f"policy {policy}: a policy of your own runs in --mode page, not {mode}")


def load_costs(path: Path | None) -> CostModel:
    """The cost model in a file; what is assumed if none was given.

    Raises:
        ConfigError: it is none.
        InvalidArgumentError: it cannot be read.
    """
    from kvlab.sim import cost_file

    if path is None:
        return cost_file.ASSUMED
    try:
        return cost_file.load(path)
    except OSError as error:
        raise InvalidArgumentError(f"--costs {path}: {error.strerror or error}") from error


@contextmanager
def writing(option: str, path: Path) -> Iterator[None]:
    """Names the option where the operating system refuses a path."""
    try:
        yield
    except OSError as error:
        raise InvalidArgumentError(f"{option} {path}: {error.strerror or error}") from error


def finish(
    artifacts: Artifacts, out: Path | None, *, as_json: bool, columns: Sequence[str]
) -> None:
    """Writes what was asked for, and prints the summary or the results."""
    from kvlab.sim.experiments.artifacts import write

    files: list[str] = []
    if out is not None:
        with writing("--out", out):
            files = write(artifacts, out)
    results = artifacts.results()
    if as_json:
        from kvlab.sim.experiments.table import to_json

        click.echo(to_json(results), nl=False)
        return
    print_table(results["summary"], columns)
    for finding in artifacts.findings:
        click.echo(finding)
    if files:
        click.echo(f"wrote {len(files)} files to {out}: open report.html")
        if artifacts.figures and not any(name.startswith("plots/") for name in files):
            click.echo("no plots: matplotlib is missing; pip install 'kvlab[plot]'")


def print_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Prints some columns as text, with the spread where there is one, under a line that says: simulated."""
    from kvlab.sim.experiments.html import cell
    from kvlab.sim.experiments.table import SIMULATED, label

    shown = [name for name in columns if any(name in row for row in rows)]
    lines = [[label(name) for name in shown]]
    lines += [[cell(row, name) for name in shown] for row in rows]
    widths = [max(len(line[at]) for line in lines) for at in range(len(shown))]
    texts = [any(isinstance(row.get(name), str) for row in rows) for name in shown]
    click.echo(f"{SIMULATED}:")
    for line in lines:
        padded = (
            text.ljust(width) if left else text.rjust(width)
            for text, width, left in zip(line, widths, texts, strict=True)
        )
        click.echo("  " + "  ".join(padded).rstrip())
