"""`kvlab demo`: the four beats of a prefix that leaves memory and comes back in another process."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections import deque
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvlab._core import build_info
from kvlab.demo import show
from kvlab.demo.measure import STEP_MARK, Plan, write
from kvlab.errors import KvlabError
from kvlab.models import resolve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console

_LENGTHS = (512, 1024, 2048, 4096)
_DTYPES = ("fp32", "bf16")
_TORCH_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def run(
    *,
    model: str = "smollm2-135m",
    tokens: list[int] | None = None,
    dtypes: list[str] | None = None,
    repeats: int | None = None,
    cache_dir: Path | None = None,
    keep: bool = False,
    quick: bool = False,
    out: Path | None = None,
    as_json: bool = False,
) -> dict[str, Any]:
    """Run the demo and show it.

    Args:
        model: Name, path or hub id.
        tokens: Prefix lengths; default 512 to 4,096 (512 alone with ``quick``).
        dtypes: ``fp32``, ``bf16``, ``fp16``; default the first two (the first with ``quick``).
        repeats: Measured repeats of each arm; default 5 (2 with ``quick``).
        cache_dir: Directory for the store; default a fresh one below ``out``.
        keep: Leave the store in place.
        quick: One short length, few repeats.
        out: Directory for ``demo.json`` and ``demo.svg``; default ``demo-out``.
        as_json: Print the JSON to stdout; tables go to stderr then.

    Returns:
        ``environment``, ``writes`` (beats 1 and 2), ``runs`` (one per dtype and length) and
        ``headline`` (recomputed / restored at the longest length).

    Raises:
        KvlabError: The model cannot be had, the new process failed, or what was restored is not
            bit for bit what was never evicted (said after everything is shown).
    """
    from rich.console import Console

    console = Console(stderr=as_json)
    lengths = sorted(set(tokens or (_LENGTHS[:1] if quick else _LENGTHS)))
    dtypes = dtypes or list(_DTYPES[:1] if quick else _DTYPES)
    repeats = repeats or (2 if quick else 5)
    out = out or Path("demo-out")
    out.mkdir(parents=True, exist_ok=True)
    path = str(resolve(model))
    parent = (cache_dir or out).expanduser()
    parent.mkdir(parents=True, exist_ok=True)
    root = Path(tempfile.mkdtemp(prefix="store-", dir=parent))
    result: dict[str, Any] = {
        "environment": _environment(model, repeats, root),
        "writes": {},
        "runs": [],
    }
    try:
        for dtype in dtypes:
            plan = Plan(path, str(root / dtype), _TORCH_NAMES[dtype], lengths, repeats)
            console.print(f"[bold]{dtype}[/bold]: cold prefill, write-through, eviction to L3")
            with _bar(console, "prefill and evict", len(lengths)) as done:
                result["writes"][dtype] = write(plan, done)
            show.written(result["writes"][dtype], console)
            console.print(f"[bold]{dtype}[/bold]: a new process restores for turn 2")
            with _bar(console, "restore and compare", plan.restore_steps()) as done:
                rows = _in_new_process(plan, done)
            result["runs"].extend({**row, "dtype": dtype} for row in rows)
        longest = show.longest(result["runs"])
        result["headline"] = longest["ratios"]["recomputed_over_restored"]["median"]
        (out / "demo.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
        drawn = show.picture(result, out / "demo.svg")
    finally:
        if not keep:
            shutil.rmtree(root, ignore_errors=True)
    show.tables(result, console)
    console.print(f"written: {out / 'demo.json'}" + (f" and {out / 'demo.svg'}" if drawn else ""))
    if not drawn:
        console.print("no picture: matplotlib is missing; pip install 'kvlab[plot]'")
    if keep:
        console.print(f"the store stays in {root}")
    if as_json:
        print(json.dumps(result))
    wrong = [
        f"{run['dtype']} {run['prefix_tokens']}" for run in result["runs"] if not run["bit_exact"]
    ]
    if wrong:
        message = f"restored logits differ from never-evicted ones: {', '.join(wrong)}"
        raise KvlabError(message)
    return result


@contextmanager
def _bar(console: Console, text: str, total: int) -> Iterator[Callable[[], None]]:
    """A progress bar; yields what to call after each step."""
    from rich import progress

    columns = (
        progress.TextColumn("  {task.description}"),
        progress.BarColumn(30),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
    )
    with progress.Progress(*columns, console=console, transient=True) as shown:
        task = shown.add_task(text, total=total)
        yield lambda: shown.advance(task)


def _in_new_process(plan: Plan, done: Callable[[], None]) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as scratch:
        answer = Path(scratch) / "runs.json"
        said: deque[str] = deque(maxlen=40)
        with subprocess.Popen(
            [sys.executable, "-m", "kvlab.demo.measure", str(answer)],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as child:
            with suppress(BrokenPipeError), child.stdin or nullcontext() as pipe:
                if pipe is not None:  # a pipe that breaks: the exit code and last words say why
                    pipe.write(json.dumps(asdict(plan)))
            for line in child.stderr or ():
                if line.startswith(STEP_MARK):
                    done()
                else:
                    said.append(line)
        if child.returncode != 0:
            message = f"the new process failed ({child.returncode}): {''.join(said).strip()}"
            raise KvlabError(message)
        runs: list[dict[str, Any]] = json.loads(answer.read_text(encoding="utf-8"))
        return runs


def _environment(model: str, repeats: int, root: Path) -> dict[str, Any]:
    import torch
    import transformers

    return {
        "model": model,
        "repeats": repeats,
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "free_disk_gib": round(shutil.disk_usage(root).free / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "kvlab": build_info(),
    }


def _cpu_name() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
