"""`kvlab bench`: runs a workload and reports times and reuse."""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import click

from kvlab._progress import ConsoleProgress
from kvlab.cli import LazyGroup
from kvlab.cli._common import json_option, print_json
from kvlab.cli._sim import load_costs, writing
from kvlab.errors import ConfigError, InvalidArgumentError
from kvlab.serve.options import DTYPES

if TYPE_CHECKING:
    from kvlab.bench.backend import Backend, Mode
    from kvlab.bench.outcome import Outcome
    from kvlab.bench.report import Report
    from kvlab.bench.run import RunOptions
    from kvlab.workload.schema import Workload

__all__ = ["bench", "config_option"]

_MODES = ("baseline", "prefix_reuse", "cpu_offload", "nvme", "remote", "generate")
_DEFAULT_MODEL = "smollm2-135m"


def _config(ctx: click.Context, _parameter: click.Parameter, path: Path | None) -> None:
    """Options from a file stand where the command line has none.

    Raises:
        ConfigError: the file is no TOML, or has an option that there is not.
    """
    if path is None:
        return
    with writing("--config", path):
        text = path.read_text(encoding="utf-8")
    try:
        asked = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"--config {path}: is no TOML: {error}") from None
    names = {
        option.removeprefix("--").replace("-", "_"): parameter.name
        for parameter in ctx.command.params
        for option in parameter.opts
    }
    defaults: dict[str, Any] = {}
    for key, value in asked.items():
        name = names.get(key.replace("-", "_"))
        if name is None or name == "config":
            known = ", ".join(sorted(names.keys() - {"config"}))
            raise ConfigError(f"--config {path}, {key}: is no option; there are {known}")
        defaults[name] = value
    ctx.default_map = {**(ctx.default_map or {}), **defaults}


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    groups = (_what, _when, _figures, _local, _live)
    for group in reversed(groups):
        for option in reversed(group):
            command = option(command)
    return command


_file = click.Path(path_type=Path, dir_okay=False)
config_option = click.option(
    "--config",
    type=_file,
    is_eager=True,
    expose_value=False,
    callback=_config,
    help="A TOML file of these options; what the command line says goes first.",
)
"""`--config`, which the commands of this group have."""
_what = (
    config_option,
    click.option("--workload", type=_file, help="The requests; see `kvlab workload`."),
    click.option("--mode", "--modes", "modes", default="baseline", show_default=True,
                 help=f"One mode, or several that are run in turn: {', '.join(_MODES)}."),
    click.option("--report", type=_file,
                 help="Where the report goes (JSON; its requests and a CSV beside it); modes append their names."),
    click.option("--page", type=_file, help="Where a page with charts goes (HTML); see `kvlab report`."),
    click.option("--charts", type=click.Path(path_type=Path, file_okay=False), help="Where its charts go (SVG)."),
    click.option("--backend", type=click.Choice(["synthetic", "local", "live"]),
                 help="Estimates, the real model in this process, or a server. [default: live with --endpoint, else "
                 "synthetic]"),
    click.option("--rounds", type=click.IntRange(min=1), default=1, show_default=True,
                 help="How often each mode is run, interleaved."),
)  # fmt: skip
_when = (
    click.option("--concurrency", "--max-concurrency", type=click.IntRange(min=1),
                 help="The most requests in flight. [default: 1; no limit with --rate or --recorded-arrivals]"),
    click.option("--rate", "--request-rate", type=float, help="Arrivals a second (open loop)."),
    click.option("--burstiness", type=float, default=1.0, show_default=True,
                 help="Of the arrivals: 1 is a Poisson process, less comes in bursts."),
    click.option("--recorded-arrivals", is_flag=True, help="Arrivals as the workload has them."),
    click.option("--delay-scale", type=click.FloatRange(min=0), default=0.0, show_default=True,
                 help="What gaps of tools and people are multiplied by; 0 leaves them out."),
    click.option("--replies", type=click.Choice(["recorded", "model"]), default="recorded", show_default=True,
                 help="What later turns have for earlier answers."),
    click.option("--restart-at", type=click.IntRange(min=0),
                 help="Requests before the restart of modes nvme and remote. [default: half]"),
    click.option("--num-prompts", type=int, help="Only the first requests."),
    click.option("--warmup", "--num-warmups", type=click.IntRange(min=0), default=1, show_default=True,
                 help="Requests before each round of a mode that are not counted."),
    click.option("--seed", type=int, default=0, show_default=True, help="Of arrivals and sampling."),
)  # fmt: skip
_figures = (
    click.option("--percentiles", "--metric-percentiles", default="50,95,99", show_default=True, help="Of all times."),
    click.option("--goodput", multiple=True, metavar="NAME:MS",
                 help="A limit of ttft, tpot or e2el, such as ttft:500; may be repeated."),
    click.option("--formulas", is_flag=True, help="Print how each figure is made, and run nothing."),
)  # fmt: skip
_local = (
    click.option("--model", help=f"A model (local: [default: {_DEFAULT_MODEL}]), or its name on the server."),
    click.option("--dtype", type=click.Choice(list(DTYPES)), default="fp32", show_default=True),
    click.option("--l1", default="1GiB", show_default=True, help="Size of L1."),
    click.option("--l2", default="2GiB", show_default=True, help="Size of L2."),
    click.option("--l3", default="20GiB", show_default=True, help="Size of L3."),
    click.option("--max-active", type=click.IntRange(min=1), default=4, show_default=True,
                 help="Requests that the local engine computes side by side."),
    click.option("--store-folder", type=click.Path(path_type=Path, file_okay=False, exists=True),
                 help="Where stores on disk are made. [default: the temporary directory]"),
    click.option("--remote", metavar="URL",
                 help="The Redis or Valkey server of mode remote; it is not emptied, names of its own are used. "
                 "[default: one is started for each round]"),
    click.option("--costs", type=_file, help="Cost model of the estimates, from `kvlab sim calibrate`."),
    click.option("--tokenizer", default="chars", show_default=True, help="Of the estimates: chars, or a model."),
)  # fmt: skip
_live = (
    click.option("--endpoint", help="A server's base URL, such as http://127.0.0.1:8000/v1."),
    click.option("--serve", help="Start this command as the server; {mode} and {store} stand for mode and directory."),
    click.option("--restart-command", help="What restarts the server in the middle of mode nvme."),
    click.option("--api", type=click.Choice(["chat", "completions"]), default="chat", show_default=True),
    click.option("--api-key", envvar="OPENAI_API_KEY", default="", help="Of the server; from OPENAI_API_KEY, too."),
    click.option("--timeout", type=float, default=600.0, show_default=True, help="Seconds that a request may take."),
    click.option("--ignore-eos", is_flag=True, help="Answers of full length."),
    click.option("--extra-body", default="{}", help="Further fields of each request, as JSON."),
    click.option("--kv-bytes-per-token", type=click.IntRange(min=1), help="Of the server's model, for charts."),
)  # fmt: skip


@click.group(
    "bench",
    cls=LazyGroup,
    lazy={"strategies": "What caching costs and saves, from none to machines that share."},
    invoke_without_command=True,
)
@_options
@json_option
@click.pass_context
def bench(context: click.Context, /, **asked: Any) -> None:
    """Run a workload, and report TTFT, TPOT, ITL, throughput and reuse as `vllm bench serve` does.

    Estimates unless --backend local (the real model here) or --endpoint (a server) is given.
    """
    from kvlab.bench import metrics, report
    from kvlab.bench.run import run

    if context.invoked_subcommand is not None:
        return
    as_json = asked["as_json"]
    if asked["formulas"]:
        _formulas(metrics.FORMULAS, as_json=as_json)
        return
    if asked["workload"] is None:
        raise InvalidArgumentError("bench needs a --workload; `kvlab workload generate` makes one")
    workload = _load(asked["workload"], asked["num_prompts"])
    options = _run_options(asked)
    backend = _backend(asked, options.modes)
    files = _files(asked["report"], options.modes)
    notes = _notes(asked, workload, options)
    for note in () if as_json else notes:
        click.echo(note)
    total = len(workload.requests) * len(options.modes) * options.rounds
    count = 0
    with ExitStack() as stack:
        lines = {mode: stack.enter_context(_opened(path)) for mode, path in files.items()}
        update = stack.enter_context(
            ConsoleProgress().stage(f"{backend.name}: {', '.join(options.modes)}", total, "pieces")
        )
        stack.callback(backend.close)

        def done(mode: Mode, outcome: Outcome) -> None:
            nonlocal count
            count += 1
            update(count)
            if mode in lines:
                lines[mode].write(json.dumps(outcome.row(), ensure_ascii=False) + "\n")

        reports = run(backend, workload, options, done=done)
    _add_ideal(backend, workload, asked["replies"], reports)
    for mode, path in files.items():
        with writing("--report", path):
            report.write(reports[mode], path)
    named = [report.Report(mode, content) for mode, content in reports.items()]
    pages = _pages(named, asked["page"], asked["charts"])
    if as_json:
        print_json(reports[options.modes[0]] if len(reports) == 1 else {"reports": reports})
        return
    from kvlab.bench.show import show

    show(named, options.percentiles)
    for path in files.values():
        click.echo(f"wrote {path}, and its requests and figures beside it")
    for path in pages:
        click.echo(f"wrote {path}")


def _formulas(formulas: Any, *, as_json: bool) -> None:
    if as_json:
        print_json({"formulas": dict(formulas)})
        return
    for name, text in formulas.items():
        click.echo(f"  {name:<22} {text}")


def _load(path: Path, count: int | None) -> Workload:
    from kvlab.bench.run import first
    from kvlab.workload.schema import load

    with writing("--workload", path):
        return first(load(path), count)


def _run_options(asked: dict[str, Any]) -> RunOptions:
    from kvlab.bench.metrics import parse_goodput, parse_percentiles
    from kvlab.bench.run import RunOptions
    from kvlab.bench.schedule import Plan

    modes = tuple(
        name.strip().replace("-", "_") for name in asked["modes"].split(",") if name.strip()
    )
    for mode in modes:
        if mode not in _MODES:
            raise ConfigError(f"--mode {mode}: use one of: {', '.join(_MODES)}")
    if asked["remote"] is not None and "remote" not in modes:
        raise InvalidArgumentError(
            "--remote: only mode remote has a shared tier; add it to --modes"
        )
    concurrency = asked["concurrency"]
    if concurrency is None and asked["rate"] is None and not asked["recorded_arrivals"]:
        concurrency = 1
    return RunOptions(
        modes=cast("tuple[Mode, ...]", modes),
        rounds=asked["rounds"],
        warmup=asked["warmup"],
        plan=Plan(
            concurrency=concurrency,
            rate=asked["rate"],
            burstiness=asked["burstiness"],
            recorded_arrivals=asked["recorded_arrivals"],
            delay_scale=asked["delay_scale"],
            seed=asked["seed"],
            replies=asked["replies"],
            restart_at=asked["restart_at"],
        ),
        percentiles=parse_percentiles(asked["percentiles"]),
        goodput=parse_goodput(asked["goodput"]),
    )


def _backend(asked: dict[str, Any], modes: tuple[Mode, ...]) -> Backend:
    kind = asked["backend"]
    live = asked["endpoint"] is not None or asked["serve"] is not None
    kind = kind or ("live" if live else "synthetic")
    if kind == "live":
        return _live_backend(asked, modes)
    if live:
        raise InvalidArgumentError(
            f"--backend {kind} beside --endpoint or --serve: a server is asked with --backend live"
        )
    if kind == "synthetic":
        from kvlab import parse_size
        from kvlab.bench.synthetic import Sizes, SyntheticBackend

        sizes = Sizes(*(parse_size(asked[tier]) for tier in ("l1", "l2", "l3")))
        return SyntheticBackend(load_costs(asked["costs"]), sizes, tokens=asked["tokenizer"])
    if "remote" in modes:
        _check_server(asked["remote"])
    return _local_backend(asked)


def _check_server(url: str | None) -> None:
    from kvlab.bench.shared import check_server

    with ConsoleProgress().stage("asking the server of the shared tier"):
        check_server(url)


def _local_backend(asked: dict[str, Any]) -> Backend:
    from kvlab.bench.local import LocalBackend, LocalOptions
    from kvlab.serve.engine.modes import TierSizes

    with ConsoleProgress().stage(f"loading {asked['model'] or _DEFAULT_MODEL}"):
        return LocalBackend(
            LocalOptions(
                model=asked["model"] or _DEFAULT_MODEL,
                dtype=DTYPES[asked["dtype"]],
                sizes=TierSizes(asked["l1"], asked["l2"], asked["l3"]),
                max_active=asked["max_active"],
                seed=asked["seed"],
                ignore_eos=asked["ignore_eos"],
                folder=asked["store_folder"],
                remote=asked["remote"],
            )
        )


def _live_backend(asked: dict[str, Any], modes: tuple[Mode, ...]) -> Backend:
    from kvlab.bench.live import LiveBackend, LiveOptions
    from kvlab.bench.server import RestartCommand, StartedServer, split

    if asked["endpoint"] is None:
        raise InvalidArgumentError("--backend live: give the server's --endpoint")
    if "generate" in modes and asked["serve"] is None:
        raise InvalidArgumentError(
            "mode generate runs in this process: use --backend local, or --serve to have both"
        )
    if len(modes) > 1 and asked["serve"] is None:
        raise InvalidArgumentError(
            f"--modes {','.join(modes)}: a server that runs already has one mode; name that one, or "
            "give --serve to have it started in each"
        )
    command = asked["restart_command"]
    if "nvme" in modes and asked["serve"] is None and command is None:
        raise InvalidArgumentError(
            "mode nvme restarts the server in the middle: give --restart-command, or --serve"
        )
    if "remote" in modes:
        if asked["serve"] is None:
            raise InvalidArgumentError(
                "mode remote has another machine go on in the middle: give --serve, with the word {remote} in it"
            )
        _check_server(asked["remote"])
    try:
        extra = json.loads(asked["extra_body"])
    except ValueError:
        extra = None
    if not isinstance(extra, dict):
        raise InvalidArgumentError(f"--extra-body {asked['extra_body']}: is no JSON object")
    restarter: Any = None
    if asked["serve"] is not None:
        words = split(asked["serve"], "--serve")
        said = {"started_as": Path(words[0]).name}
        if words[0] == "kvlab":
            words = [sys.executable, "-m", *words]
        restarter = StartedServer(words, said, asked["remote"])
    elif command is not None:
        restarter = RestartCommand(command)
    server = LiveBackend(
        LiveOptions(
            endpoint=asked["endpoint"],
            model=asked["model"],
            api=asked["api"],
            api_key=asked["api_key"],
            timeout=asked["timeout"],
            seed=asked["seed"],
            ignore_eos=asked["ignore_eos"],
            extra=extra,
        ),
        token_bytes=asked["kv_bytes_per_token"],
        restarter=restarter,
    )
    if "generate" not in modes:
        return server
    from kvlab.bench.mixed import MixedBackend

    return MixedBackend(server, _local_backend(asked))


def _files(report: Path | None, modes: tuple[Mode, ...]) -> dict[Mode, Path]:
    if report is None:
        return {}
    if len(modes) == 1:
        return {modes[0]: report}
    stem = report.name.removesuffix(".json")
    return {mode: report.with_name(f"{stem}-{mode}.json") for mode in modes}


def _pages(reports: Sequence[Report], page: Path | None, charts: Path | None) -> list[Path]:
    if page is None and charts is None:
        return []
    from kvlab.bench.page import write

    with writing("--page or --charts", page or charts or Path()):
        return write(reports, page, charts)


def _opened(report: Path) -> IO[str]:
    from kvlab.bench.report import paths

    with writing("--report", report):
        report.parent.mkdir(parents=True, exist_ok=True)
        return paths(report)[0].open("w", encoding="utf-8", newline="\n", buffering=1)


def _notes(asked: dict[str, Any], workload: Workload, options: RunOptions) -> list[str]:
    notes = []
    gaps = sum(request.delay_ms > 0 for request in workload.requests)
    if gaps and options.plan.delay_scale == 0:
        notes.append(
            f"{gaps} gaps of tools and people between turns are left out; --delay-scale 1 keeps them"
        )
    if asked["num_prompts"] and asked["num_prompts"] > len(workload.requests):
        notes.append(f"the workload has {len(workload.requests)} requests: all are sent")
    return notes


def _add_ideal(
    backend: Backend, workload: Workload, replies: str, reports: dict[Mode, dict[str, Any]]
) -> None:
    """Beside what was reused, what a cache without limits would: where the model's tokens are known."""
    if backend.name != "local" or replies != "recorded":
        return
    from kvlab.bench.local import LocalBackend
    from kvlab.bench.run import ideal

    if isinstance(backend, LocalBackend):
        ideal(workload, backend.chat, backend.block_tokens, list(reports.values()))
