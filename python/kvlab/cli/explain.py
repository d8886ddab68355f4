"""`kvlab explain`: why a prompt hits or misses a store."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kvlab.cli._common import json_option, print_json
from kvlab.cli._store import size_text
from kvlab.errors import InvalidArgumentError

if TYPE_CHECKING:
    from kvlab.hf.explain import Explanation

__all__ = ["explain"]

TORCH_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
TEXT_OF = {
    "l1": "L1",
    "l2": "L2",
    "l3": "L3",
    "l4": "L4",
    "pending": "on its way to L3",
    None: "nowhere",
}


def read_prompt(prompt: str | None, prompt_file: Path | None) -> str:
    """The prompt's text, given in one of two ways.

    Raises:
        InvalidArgumentError: not exactly one was given, or the file cannot be read as UTF-8.
    """
    if prompt is not None and prompt_file is None:
        return prompt
    if prompt_file is not None and prompt is None:
        return read_text(prompt_file)
    message = "give the prompt either with --prompt TEXT or with --prompt-file FILE (- is stdin)"
    raise InvalidArgumentError(message)


def read_text(path: Path) -> str:
    """A file's text; stdin's for `-`.

    Raises:
        InvalidArgumentError: it cannot be read as UTF-8.
    """
    try:
        return sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgumentError(f"{path}: {error}") from error


def cost_line(found: Explanation) -> str:
    """What a restore would bring and take, and what a session would do."""
    forecast = found.forecast
    line = f"restore='auto': {forecast.decision}"
    if forecast.restore_ms is None or forecast.compute_ms is None:
        return line
    return (
        f"{line} (predicted: {forecast.restore_ms:.1f} ms to restore what is below L1, "
        f"{forecast.compute_ms:.1f} ms to compute it)"
    )


def render(found: Explanation) -> str:
    """The explanation as lines for a terminal."""
    lines = [found.reason, cost_line(found), ""]
    for span in found.spans:
        size = f"{size_text(span.bytes):>12}" if span.tier else ""
        where = f"tokens {span.start:>6} to {span.end - 1:>6}"
        lines.append(f"  {where}  {TEXT_OF[span.tier]:<17}{size}".rstrip())
    lines.append(f"  tokens {found.reusable_tokens:>6} to {found.prompt_tokens - 1:>6}  computed")
    lines.extend(
        f"  namespace {other.namespace[:12]} has the first {other.tokens} tokens"
        for other in found.elsewhere
    )
    return "\n".join(lines)


@click.command
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--model", default="smollm2-135m", show_default=True, help="Name, path or hub id.")
@click.option("--dtype", type=click.Choice(sorted(TORCH_NAMES)), default="fp32", show_default=True)
@click.option("--prompt", help="The prompt's text.")
@click.option("--prompt-file", type=click.Path(path_type=Path), help="Its file; - is stdin.")
@click.option("--chat", is_flag=True, help="Put the text into the model's chat template.")
@click.option("--against", type=click.Path(path_type=Path), help="An earlier prompt's file.")
@click.option("--salt", default="", help="The cache salt of the session that is asked about.")
@click.option("--block-tokens", type=click.IntRange(min=1), default=16, show_default=True)
@click.option("--chunk-tokens", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), help="torch threads: they are in the key.")
@json_option
def explain(
    *,
    directory: Path,
    model: str,
    dtype: str,
    prompt: str | None,
    prompt_file: Path | None,
    chat: bool,
    against: Path | None,
    salt: str,
    block_tokens: int,
    chunk_tokens: int,
    threads: int | None,
    as_json: bool,
) -> None:
    """Why a prompt hits or misses the store in DIRECTORY, and where it leaves what is cached.

    The store is only read; no other process may have it open to write. On disk only
    keys are kept, no tokens: the first token that differs is known to its block, or to the token
    with --against.
    """
    text = read_prompt(prompt, prompt_file)
    other = None if against is None else read_text(against)
    # Imported after the arguments were read: it brings torch, which takes seconds.
    import torch

    from kvlab import Store
    from kvlab.hf import attach, load

    if threads is not None:
        torch.set_num_threads(threads)
    loaded, tokenizer = load(model, dtype=TORCH_NAMES[dtype])

    encode: Any = tokenizer

    def tokens(text: str) -> torch.Tensor:
        if chat:
            turns = [{"role": "user", "content": text}]
            encoded = encode.apply_chat_template(
                turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
        else:
            encoded = encode(text, return_tensors="pt")
        ids: torch.Tensor = encoded["input_ids"]
        return ids

    with (
        Store.open(directory, l1="256MiB", l2=0, read_only=True) as store,
        attach(
            loaded, store, salt=salt, block_tokens=block_tokens, chunk_tokens=chunk_tokens
        ) as session,
    ):
        found = session.explain(
            tokens(text), tokenizer=tokenizer, against=None if other is None else tokens(other)
        )
        namespace = session.namespace.hex()
    if as_json:
        print_json({"namespace": namespace, **found.as_dict()})
    else:
        click.echo(render(found))
