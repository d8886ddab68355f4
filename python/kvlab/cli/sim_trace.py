"""`kvlab sim trace`: a page workload as a file."""

from __future__ import annotations

from pathlib import Path

import click

from kvlab.cli._common import json_option, print_json
from kvlab.cli._sim import read_numbers, writing

__all__ = ["sim_trace"]


@click.command("trace")
@click.option("--workload", required=True, help="A generator of page workloads.")
@click.option("--length", type=click.IntRange(min=1), help="Rows. [default: the workload's]")
@click.option("--num-pages", type=click.IntRange(min=1), help="Pages. [default: the workload's]")
@click.option(
    "--quant",
    default="fp16",
    show_default=True,
    help="How pages are stored: fp16, fp8, int4, int2, or fp16,layers:0-7=int4,heads:3=int2.",
)
@click.option("--seed", type=click.IntRange(min=0), help="[default: the workload's]")
@click.option("--option", "options", multiple=True, metavar="KEY=VALUE", help="Of the workload.")
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="[default: WORKLOAD.jsonl]"
)
@json_option
def sim_trace(
    *,
    workload: str,
    length: int | None,
    num_pages: int | None,
    quant: str,
    seed: int | None,
    options: tuple[str, ...],
    out: Path | None,
    as_json: bool,
) -> None:
    """Write a page workload as a trace: a header, the pages, and a row for each use, as JSON lines."""
    from kvlab.sim.page import WorkloadSpec, expand_workload
    from kvlab.sim.page_trace import write_page_trace
    from kvlab.sim.scenarios import Scenario, tiers
    from kvlab.sim.schemes import SchemePlan

    params = read_numbers(options)
    if length is not None:
        params["length"] = length
    if num_pages is not None:
        params["num_pages"] = num_pages
    scene = Scenario("trace", tiers(), scheme=SchemePlan.parse(quant))
    pages = expand_workload(WorkloadSpec(workload, params), scene, seed)
    path = out or Path(f"{workload}.jsonl")
    with writing("--out", path):
        write_page_trace(pages, path)
    sizes = sum(page.size_bytes for page in pages.pages)
    result = {
        "path": str(path),
        "workload": pages.name,
        "seed": pages.seed,
        "pages": len(pages.pages),
        "bytes": sizes,
        "rows": len(pages.trace),
        "quant": quant,
    }
    if as_json:
        print_json(result)
    else:
        click.echo(
            f"{path}: {len(pages.trace):,} rows over {len(pages.pages):,} pages of {sizes:,} bytes"
        )
