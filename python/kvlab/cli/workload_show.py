"""`kvlab workload show`: what is in a workload."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from kvlab.cli._common import json_option, print_json
from kvlab.cli._sim import counting, writing
from kvlab.cli._workload import file_argument, load_tokenizer, load_workload, tokenizer_option
from kvlab.errors import ConfigError

__all__ = ["workload_show"]


@click.command("show")
@file_argument
@tokenizer_option
@click.option("--block-tokens", type=click.IntRange(min=1), default=16, show_default=True)
@click.option(
    "--plot", type=click.Path(path_type=Path, dir_okay=False), help="Draw it, as SVG, to this file."
)
@json_option
def workload_show(
    *,
    file: Path,
    tokenizer_name: str,
    block_tokens: int,
    plot: Path | None,
    as_json: bool,
) -> None:
    """What is in a workload: classes, lengths, gaps, and what an ideal cache reuses.

    The ideal cache has no end and reuses whole blocks from the first token on, never the last token.
    """
    from kvlab.workload import ideal_reuse
    from kvlab.workload.summary import draw, summary

    workload = load_workload(file)
    tokenizer = load_tokenizer(tokenizer_name)
    with counting(f"reading prompts of {file.name}", len(workload.requests)) as update:
        reuse = ideal_reuse(workload, tokenizer, block_tokens=block_tokens, progress=update)
    shown = summary(workload, reuse)
    if plot is not None:
        try:
            picture = draw(workload, reuse)
        except ImportError as error:
            message = "--plot: matplotlib is missing; pip install 'kvlab[plot]'"
            raise ConfigError(message) from error
        with writing("--plot", plot):
            plot.write_text(picture, encoding="utf-8")
    if as_json:
        print_json(shown)
    else:
        _print(shown)


def _print(shown: dict[str, Any]) -> None:
    seed = "" if shown["seed"] is None else f", seed {shown['seed']}"
    made = f" ({shown['generator']}{seed})" if shown["generator"] else ""
    total = shown["total"]
    click.echo(
        f"{shown['name']}{made}: {total['requests']:,} requests of {shown['sessions']:,} sessions, "
        f"{shown['forks']:,} of them forks"
    )
    click.echo(
        f"tokens by {shown['tokenizer']}; reuse by an ideal cache in blocks of "
        f"{shown['block_tokens']} tokens\n"
    )
    lines = [["class", "requests", "prompt min / median / max", "answers at most", "gap p10/50/90"]]
    lines[0].append("reused")
    for name, figures in {**shown["classes"], "all": total}.items():
        lengths = (figures[f"prompt_tokens_{which}"] for which in ("min", "median", "max"))
        lines.append(
            [
                name,
                f"{figures['requests']:,}",
                " / ".join(f"{length:,.0f}" for length in lengths),
                f"{figures['max_tokens']:,}",
                _gap(figures["gap_ms"]),
                f"{figures['ideal_reuse']:.1%}",
            ]
        )
    widths = [max(len(line[at]) for line in lines) for at in range(len(lines[0]))]
    for line in lines:
        first = line[0].ljust(widths[0])
        rest = (text.rjust(width) for text, width in zip(line[1:], widths[1:], strict=True))
        click.echo("  ".join(("", first, *rest)))
    for note in shown["notes"]:
        click.echo(f"  note: {note}")
    if shown["assumed_answers"]:
        click.echo(
            f"  note: {shown['assumed_answers']} answers are in later prompts and were not recorded: "
            f"a text of the longest length, of 1,024 tokens at most, stands for each"
        )


def _gap(gap: dict[str, float] | None) -> str:
    if gap is None:
        return "-"
    return " / ".join(f"{gap[each] / 1000:,.1f}" for each in ("p10", "p50", "p90")) + " s"
