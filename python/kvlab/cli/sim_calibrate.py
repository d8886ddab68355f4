"""`kvlab sim calibrate`: measure what reads and forwards cost here."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from kvlab.cli._common import json_option, print_json
from kvlab.cli._sim import counting, writing

__all__ = ["sim_calibrate"]

_TORCH_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


@click.command("calibrate")
@click.option("--model", default="smollm2-135m", show_default=True, help="Name, path or hub id.")
@click.option("--dtype", type=click.Choice(sorted(_TORCH_NAMES)), default="fp32", show_default=True)
@click.option("--tokens", type=click.IntRange(min=64), default=1024, show_default=True)
@click.option("--rounds", type=click.IntRange(min=3), default=5, show_default=True)
@click.option(
    "--cache-dir",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="A directory on the disk that is to be measured. [default: the temporary one]",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("kvlab-costs.json"),
    show_default=True,
    help="The file for --costs of the other commands.",
)
@json_option
def sim_calibrate(
    *,
    model: str,
    dtype: str,
    tokens: int,
    rounds: int,
    cache_dir: Path | None,
    out: Path,
    as_json: bool,
) -> None:
    """Measure forwards of a model and reads of L2 and L3 on this machine, for predicted times."""
    # Imported here: it brings torch, which takes seconds.
    from kvlab import hf
    from kvlab.sim import cost_file
    from kvlab.sim.calibrate import calibrate, steps

    loaded, _ = hf.load(model, dtype=_TORCH_NAMES[dtype])
    name = Path(model).name
    with (
        tempfile.TemporaryDirectory(prefix="kvlab-calibrate-", dir=cache_dir) as directory,
        counting(f"measuring {name}", steps(rounds)) as update,
    ):
        found = calibrate(
            loaded,
            Path(directory) / "store",
            source=f"{name} in {dtype}, prompts up to {tokens} tokens",
            tokens=tokens,
            rounds=rounds,
            progress=update,
        )
    with writing("--out", out):
        cost_file.save(found, out)
    if as_json:
        print_json(cost_file.as_dict(found))
        return
    costs = found.costs
    fixed, each, context = costs.prefill
    click.echo(f"measured: {found.source}, {costs.token_bytes:,} KV bytes a token")
    click.echo(
        f"  forward   {1e3 * fixed:.2f} ms, {1e3 * each:.4f} ms a token, "
        f"{1e6 * 1e3 * context:.3f} us more a token for each 1,000 before it"
    )
    click.echo(f"  answer    {1e3 * costs.decode:.2f} ms a token")
    for tier, read in (("L2", costs.l2), ("L3", costs.l3)):
        click.echo(f"  read {tier}   {1e6 * read.latency:.0f} us, {read.bandwidth / 1e9:.2f} GB/s")
    click.echo(f"  overlap   {costs.overlap:.2f}")
    click.echo(f"wrote {out}: give it to --costs")
