"""Prompt modules: pieces of a prompt computed once, each at positions reserved for it, then used in any set.

Prompt Cache (Gim and others, arXiv:2311.04934): a schema lays out every module that a prompt may have,
one behind the other, and so reserves a range of positions for each. Each is computed alone, at its
range. A prompt takes the KV of the modules that it wants as it is, nothing is turned and nothing
recomputed; the places of the others stay empty. Only the question is computed.

Two things are lost against a full prefill: modules have not seen each other, and there are gaps between
them. The first module, a system prompt, is in every prompt: the others can be computed behind it at no
further cost. What each of these does is told apart here; the modules are in prompt_schema.py.

    python toys/prompt_modules.py [--quick] [--json] [--out prompt_modules.svg]
"""

from __future__ import annotations

import random
import statistics
import time
from importlib import resources
from typing import TYPE_CHECKING, Any

from common import Results, arguments, conclude, need, panels

need("torch", "transformers")

import torch
from blend import compare as distance
from prompt_schema import (
    MODULE_TOKENS,
    MODULES,
    SCHEMA,
    Schema,
    cached,
    from_modules,
    positions,
    run,
)

from kvlab.hf import load

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from matplotlib.figure import Figure
    from torch import Tensor

QUESTION_TOKENS = 48
SETS = (1, 2, 3, 5, 8)


def ways(
    schema: Schema, modules: Sequence[int], question: Tensor
) -> dict[str, Callable[[], Tensor]]:
    """How the question can be answered; each gives its log-probabilities `[tokens, vocabulary]`."""
    model, ids = schema.model, torch.cat([schema.tokens[list(modules)].flatten(), question])
    after = torch.arange(SCHEMA, SCHEMA + len(question))
    with_gaps = torch.cat([positions(modules), after])

    def modular(kv: list[list[tuple[Tensor, Tensor]]]) -> Tensor:
        return run(model, question, after, cached(model, from_modules(kv, modules)), len(question))

    return {
        "full": lambda: run(model, ids, torch.arange(len(ids)), cached(model), len(question)),
        "gaps": lambda: run(model, ids, with_gaps, cached(model), len(question)),
        "alone": lambda: modular(schema.alone),
        "behind": lambda: modular(schema.behind),
    }


def compare(schema: Schema, modules: Sequence[int], question: Tensor) -> dict[str, Results]:
    """One set of modules in all ways, one after the other."""
    answers, seconds = {}, {}
    for name, way in ways(schema, modules, question).items():
        begun = time.perf_counter()
        answers[name] = way()
        seconds[name] = time.perf_counter() - begun
    rows: dict[str, Results] = {}
    for name, ours in answers.items():
        kl, top1 = distance(ours, answers["full"])
        # Against a prefill with the same gaps, only the attention between modules is missing.
        missing, _ = distance(ours, answers["gaps"])
        rows[name] = {"kl": kl, "missing": missing, "top1": top1, "seconds": seconds[name]}
    return rows


@torch.inference_mode()
def measure(*, quick: bool = False) -> Results:
    """Schemas from several places of a text; sets of modules of every size from each."""
    model: Any
    model, tokenizer = load("smollm2-135m")
    text = resources.files("kvlab.demo").joinpath("prompts", "agent_prefix.md").read_text()
    ids, rng = tokenizer(text)["input_ids"], random.Random(5)
    sizes, found = SETS[::2] if quick else SETS, []
    length = SCHEMA + QUESTION_TOKENS
    for number in range(1 if quick else 2):
        part = torch.tensor(ids[number * length : (number + 1) * length])
        schema = Schema(model, part[:SCHEMA].view(MODULES, MODULE_TOKENS))
        sets = [
            [0, *sorted(rng.sample(range(1, MODULES), size - 1))]
            for size in sizes
            for _ in range(1 if quick or size in {1, MODULES} else 2)
        ]
        compare(schema, sets[0], part[SCHEMA:])  # warm-up
        found += [(len(one), compare(schema, one, part[SCHEMA:])) for one in sets]
    rows = [summary(size, [one for has, one in found if has == size]) for size in sizes]
    if max(rows[0]["alone"]["missing"], rows[-1]["gaps"]["kl"]) > 1e-6:
        raise AssertionError(f"one module lacks nobody's attention, and all leave no gaps: {rows}")
    if min(rows[0]["gaps"]["kl"], rows[-1]["alone"]["missing"]) < 1e-3:
        raise AssertionError(f"both gaps and missing attention were expected to cost: {rows}")
    if not all(row["alone"]["missing"] > row["behind"]["missing"] for row in rows[1:]):
        raise AssertionError(f"modules behind the first one were expected to be closer: {rows}")
    shape = {"modules": MODULES, "module_tokens": MODULE_TOKENS, "question": QUESTION_TOKENS}
    return {**shape, "rows": rows}


def summary(size: int, found: list[dict[str, Results]]) -> Results:
    """Means over sets of one size; of times the medians."""
    row: Results = {"modules": size, "sets": len(found)}
    for name, first in found[0].items():
        columns = {key: [one[name][key] for one in found] for key in first}
        row[name] = {key: statistics.fmean(column) for key, column in columns.items()}
        row[name]["seconds"] = statistics.median(columns["seconds"])
    return row


def tell(results: Results) -> None:
    """Prints a row a size of the set."""
    print("{modules} modules of {module_tokens} tokens, a question of {question}".format(**results))
    print("KL against a full prefill (and what only the missing attention does)\n")
    print("           gaps   computed alone             behind the first one       milliseconds")
    print("modules      KL      KL  (missing)   top-1       KL  (missing)   top-1   full  modules")
    for row in results["rows"]:
        print(f"{row['modules']:7}{row['gaps']['kl']:8.4f}", end="")
        for way in (row["alone"], row["behind"]):
            print(f"{way['kl']:8.3f}    ({way['missing']:.3f}){way['top1']:8.1%}", end=" ")
        print("".join(f"{1e3 * row[name]['seconds']:8.0f}" for name in ("full", "behind")))
    print("few modules suffer from the gaps, many from what they did not see of each other")


def draw(results: Results) -> Figure:
    """KL, and time to the first token, over the number of modules used."""
    figure, (left, right) = panels(2)
    rows = results["rows"]
    sizes = [row["modules"] for row in rows]
    for name, label in (
        ("alone", "modules computed alone"),
        ("behind", "computed behind the first one"),
        ("gaps", "gaps only: all attention there"),
    ):
        left.plot(sizes, [row[name]["kl"] for row in rows], "o-", label=label)
    left.set(ylim=(0, None), xlabel="modules in the prompt", ylabel="KL, nats")
    left.set(title="Against a full prefill")
    for name, label in (("full", "full prefill"), ("behind", "modules")):
        right.plot(sizes, [1e3 * row[name]["seconds"] for row in rows], "o-", label=label)
    right.set(ylim=(0, None), xlabel="modules in the prompt", ylabel="milliseconds")
    right.set(title="Time to the first token")
    left.legend(fontsize=8)
    right.legend()
    return figure


def main() -> None:
    """Uses modules."""
    options = arguments(__doc__).parse_args()
    conclude(options, measure(quick=options.quick), tell, draw)


if __name__ == "__main__":
    main()
