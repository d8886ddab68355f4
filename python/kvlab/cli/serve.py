"""`kvlab serve`: an OpenAI-compatible server with the cache in it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kvlab import parse_size
from kvlab._core import parse_ttl
from kvlab.cli._store import size_text
from kvlab.serve.engine.modes import MODES, TIERS, TierSizes
from kvlab.serve.engine.request import EngineOptions
from kvlab.serve.options import DTYPES, ServeOptions

if TYPE_CHECKING:
    from kvlab._types import RecoveryReport
    from kvlab.serve.run import Started

__all__ = ["serve"]


def recovery_text(found: RecoveryReport) -> str:
    """What opening the store found, in a sentence."""
    held = f"{found['runs']} runs of {found['blocks']} blocks, {size_text(found['bytes'])}"
    if found["clean"]:
        return f"found {held}" if found["runs"] else "nothing is stored yet"
    text = (
        f"recovered {held}: the last process did not close the store; {found['segments_scanned']} of "
        f"{found['segments']} segments searched, {found['rows_rebuilt']} runs found that the index lacked"
    )
    return f"{text}, the index was built anew" if found["index_rebuilt"] else text


def described(options: ServeOptions, started: Started) -> dict[str, Any]:
    """What `--json` prints."""
    sizes = asdict(options.sizes)
    return {
        "url": started.url,
        "pid": started.pid,
        "model": options.served_name,
        "dtype": options.dtype,
        "context_tokens": started.context_tokens,
        "mode": options.mode,
        "store": None if options.directory is None else str(options.directory),
        "capacity": {tier: parse_size(sizes[tier]) for tier in TIERS[options.mode]},
        "recovery": started.recovery,
        "remote": list(started.remote),
        "api_keys": started.api_keys,
        "engine": asdict(options.engine),
        "load_s": started.load_s,
    }


def render(options: ServeOptions, started: Started) -> str:
    """The same for people."""
    sizes = asdict(options.sizes)
    tiers = [f"{tier.upper()} {size_text(parse_size(sizes[tier]))}" for tier in TIERS[options.mode]]
    lines = [
        f"{options.served_name} ({options.dtype}) is served at {started.url}/v1",
        f"  mode {options.mode}: {', '.join(tiers) or 'nothing is kept'}",
    ]
    if options.directory is not None:
        lines.append(f"  store {options.directory}")
    elif options.store is not None:
        lines.append(f"  store {options.store} is not used: the mode has no L3")
    if started.recovery is not None:
        lines.append(f"  {recovery_text(started.recovery)}")
    lines.extend(f"  shared with {address}" for address in started.remote)
    if started.api_keys:
        lines.append(f"  {started.api_keys} API keys")
    elif not options.on_loopback:
        lines.append("  no API keys: everybody who can reach this address may use it (--api-keys)")
    lines.append(f"  live page {started.url}/   metrics {started.url}/metrics   end with Ctrl-C")
    return "\n".join(lines)


@click.command
@click.option("--model", default="smollm2-135m", show_default=True, help="Name, path or hub id.")
@click.option("--name", help="What requests call the model; by default as --model.")
@click.option("--dtype", type=click.Choice(list(DTYPES)), default="fp32", show_default=True)
@click.option("--threads", type=click.IntRange(min=1), help="torch threads: they are in the key.")
@click.option("--mode", type=click.Choice(MODES), default="nvme", show_default=True)
@click.option(
    "--store",
    type=click.Path(path_type=Path),
    help="L3's directory; by default `store` in kvlab's cache directory. Only mode nvme uses it.",
)
@click.option("--l1", default="1GiB", show_default=True, help="Blocks and cache buffers.")
@click.option("--l2", default="2GiB", show_default=True, help="Host memory.")
@click.option("--l3", default="20GiB", show_default=True, help="Local disk.")
@click.option("--policy", default="lru", show_default=True, help="Which blocks go first.")
@click.option(
    "--write-policy",
    type=click.Choice(["write_through", "write_through_selective", "write_back"]),
    default="write_through",
    show_default=True,
    help="When L3 is written.",
)
@click.option(
    "--remote",
    multiple=True,
    metavar="URL",
    help="L4: a Redis or Valkey server that machines share, e.g. redis://host:6379; several divide the blocks.",
)
@click.option(
    "--remote-ttl", default="1d", show_default=True, help="When it forgets what has no --ttl."
)
@click.option(
    "--remote-timeout",
    type=click.FloatRange(min=0.001, max=60),
    default=0.25,
    show_default=True,
    help="Seconds that it has for an answer.",
)
@click.option("--remote-prefix", default="kvlab", show_default=True, help="Of all names there.")
@click.option("--remote-cluster", is_flag=True, help="The URLs are nodes of one Redis cluster.")
@click.option(
    "--remote-ca-file",
    type=click.Path(path_type=Path),
    help="PEM, for rediss://: who may sign its certificate; by default those that the system trusts.",
)
@click.option(
    "--remote-certificate-file",
    type=click.Path(path_type=Path),
    help="PEM, for rediss://: the certificate to show there.",
)
@click.option(
    "--remote-private-key-file",
    type=click.Path(path_type=Path),
    help="PEM: the private key of that certificate.",
)
@click.option(
    "--remote-key-file",
    type=click.Path(path_type=Path),
    help="64 hexadecimal digits: encrypt what is sent there (or KVLAB_REMOTE_KEY).",
)
@click.option("--codec", type=click.Choice(["exact", "int8"]), default="exact", show_default=True)
@click.option("--ttl", help="Forget what was stored after e.g. 12h or 7d; by default never.")
@click.option("--quota", help="Bytes of L3 for each cache salt, e.g. 2GiB; by default no limit.")
@click.option("--block-tokens", type=click.IntRange(min=1), default=16, show_default=True)
@click.option(
    "--chunk-tokens",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Prefill on a fixed grid: the same bits cold and warm, in every dtype.",
)
@click.option(
    "--prefill-chunk",
    type=click.IntRange(min=1),
    default=512,
    show_default=True,
    help="The most prompt tokens in one forward.",
)
@click.option(
    "--restore",
    type=click.Choice(["always", "auto", "never"]),
    default="auto",
    show_default=True,
    help="How much of what is found is restored.",
)
@click.option("--max-active", type=click.IntRange(min=1), default=4, show_default=True)
@click.option("--max-queue", type=click.IntRange(min=0), default=64, show_default=True)
@click.option("--context-tokens", type=click.IntRange(min=2), help="By default the model's own.")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True)
@click.option(
    "--api-keys",
    type=click.Path(path_type=Path),
    help="A file of keys: lines of KEY SALT. Different salts share no cache.",
)
@click.option("--max-body", default="8MiB", show_default=True, help="The largest request.")
@click.option(
    "--drain",
    type=click.FloatRange(min=0),
    default=10.0,
    show_default=True,
    help="Seconds that requests have to finish when the server ends.",
)
@click.option("--vllm-metric-names", is_flag=True, help="Show metrics under vLLM's names, too.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object when it is ready.")
def serve(
    *,
    l1: str,
    l2: str,
    l3: str,
    block_tokens: int,
    chunk_tokens: int,
    prefill_chunk: int,
    restore: Any,
    codec: Any,
    ttl: str | None,
    max_active: int,
    max_queue: int,
    context_tokens: int | None,
    max_body: str,
    drain: float,
    as_json: bool,
    **plain: Any,
) -> None:
    """Serve a model over HTTP as OpenAI does, with its prompts answered from the cache.

    Prompts are kept in memory and, in mode nvme, on disk: a server that is started again on the same
    store answers from it. Ends at SIGTERM or Ctrl-C.
    """
    options = ServeOptions(
        sizes=TierSizes(l1, l2, l3),
        engine=EngineOptions(
            max_active=max_active,
            max_queue=max_queue,
            prefill_chunk=prefill_chunk,
            block_tokens=block_tokens,
            chunk_tokens=chunk_tokens,
            restore=restore,
            codec=codec,
            ttl=None if ttl is None else parse_ttl(ttl),
            context_tokens=context_tokens,
        ),
        max_body=parse_size(max_body),
        drain_s=drain,
        **plain,
    )
    # Imported after the options were read: it brings torch, which takes seconds.
    from kvlab.serve.run import run

    def announce(started: Started) -> None:
        said = json.dumps(described(options, started)) if as_json else render(options, started)
        click.echo(said)

    run(options, announce)
    click.echo("kvlab serve: closed", err=True)
