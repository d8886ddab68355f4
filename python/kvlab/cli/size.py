"""`kvlab size`: how large a KV cache is, and where it outgrows the weights."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import click

from kvlab import parse_size
from kvlab.cli._common import json_option, print_json
from kvlab.errors import InvalidArgumentError
from kvlab.sizing import DTYPES, ModelShape, kv_size, presets, read_dtype, shape_of

if TYPE_CHECKING:
    from kvlab.sizing import KvSize

__all__ = ["read_params", "resolve_shape", "size"]

SCALES = {"k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}


def read_params(text: str) -> int:
    """A number of parameters: `8030261248`, `8B` or `135M`.

    Raises:
        InvalidArgumentError: it is no such number, or below 1.
    """
    digits, scale = text, 1
    if text and text[-1].lower() in SCALES:
        digits, scale = text[:-1], SCALES[text[-1].lower()]
    whole, _, fraction = digits.partition(".")
    count = 0
    if f"{whole}{fraction}".isdecimal() and f"{whole}{fraction}".isascii():
        count = int(f"{whole}{fraction}") * scale // 10 ** len(fraction)
    if count < 1:
        message = f"--params {text}: give a number above zero, such as 8030261248, 8B or 135M"
        raise InvalidArgumentError(message)
    return count


def resolve_shape(
    model: str | None,
    *,
    layers: int | None,
    kv_heads: int | None,
    head_dim: int | None,
    dtype: str | None,
    params: int | None,
) -> ModelShape:
    """The shape of `model` with what else was given in its place, or a shape from that alone.

    Raises:
        InvalidArgumentError: an unknown model or dtype, or neither a model nor a whole shape.
    """
    if model is not None:
        shape = shape_of(model)
        if (kv_heads is not None or head_dim is not None) and shape.latent is not None:
            message = f"model {model} caches a latent: leave out --kv-heads and --head-dim"
            raise InvalidArgumentError(message)
        shape = replace(
            shape,
            layers=shape.layers if layers is None else layers,
            kv_heads=shape.kv_heads if kv_heads is None else kv_heads,
            head_dim=shape.head_dim if head_dim is None else head_dim,
        )
    elif layers is not None and kv_heads is not None and head_dim is not None:
        shape = ModelShape(layers=layers, kv_heads=kv_heads, head_dim=head_dim)
    else:
        message = (
            "no model: give --model with a directory or one of "
            f"{', '.join(presets())}, or give --layers, --kv-heads and --head-dim"
        )
        raise InvalidArgumentError(message)
    return replace(
        shape,
        dtype=shape.dtype if dtype is None else read_dtype(dtype),
        params=shape.params if params is None else params,
    )


@click.command
@click.option("--model", help="A preset's name, or a directory with a config.json.")
@click.option("--layers", "--n-layers", "layers", type=int, help="Layers with a KV cache.")
@click.option("--kv-heads", "--n-kv-heads", "kv_heads", type=int, help="KV heads of a layer.")
@click.option("--head-dim", type=int, help="Elements of one head.")
@click.option("--dtype", help=f"Of weights and cache: {', '.join(DTYPES)}. [default: the model's]")
@click.option("--batch", "--batch-size", "batch", type=int, default=1, show_default=True)
@click.option("--seq-len", type=int, default=4096, show_default=True, help="Tokens of a sequence.")
@click.option("--params", help="Parameters, such as 8B or 8030261248.")
@click.option("--memory", help="Bytes for weights and cache, such as 24GiB.")
@json_option
def size(
    *,
    model: str | None,
    layers: int | None,
    kv_heads: int | None,
    head_dim: int | None,
    dtype: str | None,
    batch: int,
    seq_len: int,
    params: str | None,
    memory: str | None,
    as_json: bool,
) -> None:
    """How large a KV cache is, and where it outgrows the weights."""
    shape = resolve_shape(
        model,
        layers=layers,
        kv_heads=kv_heads,
        head_dim=head_dim,
        dtype=dtype,
        params=None if params is None else read_params(params),
    )
    budget = None if memory is None else parse_size(memory)
    sizes = kv_size(shape, batch=batch, seq_len=seq_len, memory=budget)
    if as_json:
        print_json(
            {
                "model": model,
                **asdict(shape),
                "batch": batch,
                "seq_len": seq_len,
                "memory": budget,
                **asdict(sizes),
            }
        )
    else:
        _print_table(model, shape, sizes, batch=batch, seq_len=seq_len, memory=budget)


def _print_table(
    model: str | None,
    shape: ModelShape,
    sizes: KvSize,
    *,
    batch: int,
    seq_len: int,
    memory: int | None,
) -> None:
    cached = (
        f"{shape.kv_heads} KV heads of {shape.head_dim}"
        if shape.latent is None
        else f"a latent of {shape.latent[0]} + {shape.latent[1]}"
    )
    rows: list[tuple[str, str, str]] = []

    def add(label: str, count: int | None, unit: str = "") -> None:
        if count is None:
            rows.append((label, "unknown", "give --params"))
        elif unit:
            rows.append((label, f"{count:,}", unit))
        else:
            rows.append((label, f"{count:,} bytes", _human(count)))

    add("KV cache of one token", sizes.kv_bytes_per_token)
    add(f"KV cache of {batch:,} x {seq_len:,} tokens", sizes.kv_bytes)
    add("Weights", sizes.weight_bytes)
    add("Cache exceeds weights from", sizes.crossover_tokens, "tokens in all")
    add(f"... at a batch of {batch:,} from", sizes.crossover_seq_len, "tokens each")
    if memory is not None:
        add(f"Sequences of {seq_len:,} in {_human(memory)}", sizes.sequences, "beside the weights")
    click.echo(f"{model or 'model'}: {shape.layers} layers, {cached}, {shape.dtype}\n")
    # Plain text: importing rich would take as long as all the rest of the command.
    first, second = (max(len(row[column]) for row in rows) for column in (0, 1))
    for label, number, unit in rows:
        click.echo(f"  {label:<{first}}   {number:>{second}}   {unit}")


def _human(count: int) -> str:
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:,.4g} {unit}"
        value /= 1024
    return f"{value:,.4g} TiB"
