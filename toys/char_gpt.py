"""A character model on top of attention.py: what attention is good for, after two minutes of training.

The model sees some characters and predicts the next one. It is scored by its loss, the mean of
-log(probability it gave to the character that came), in nats. Two yardsticks need no network:
the entropy of single characters (the best that is possible without looking at the text before) and
that of a character given the one before it. A model below both has learnt to use more than one
character of context, and attention is the only part of it that mixes one position with another.

The model is char_model.py; where the text is from is said in texts/README.md.

    python toys/char_gpt.py [--quick] [--json] [--out char_gpt.svg]
"""

from __future__ import annotations

import math
import textwrap
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import Results, arguments, conclude, need, panels

need("torch")

import torch
from char_model import CharGPT
from torch import Tensor, nn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEXT = Path(__file__).parent / "texts" / "pride-and-prejudice.txt"
OPENING = "It is a truth universally acknowledged, that "
STEPS = 650  # about two minutes on two cores


def entropies(text: str) -> tuple[float, float]:
    """Nats of a character of this text by itself, and of one given the character before it."""

    def entropy(counts: Counter[str]) -> float:
        return -sum(n / counts.total() * math.log(n / counts.total()) for n in counts.values())

    pairs = Counter(first + second for first, second in pairwise(text))
    return entropy(Counter(text)), entropy(pairs) - entropy(Counter(text[:-1]))


def loss_of(model: CharGPT, windows: Tensor) -> Tensor:
    """Mean -log p of every character of the windows `[batch, characters]` after the first."""
    logits, _ = model(windows[:, :-1])
    return nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


def train(
    steps: int, *, context: int, batch: int, checks: int = 24
) -> tuple[CharGPT, str, list[Results]]:
    """Trains for so many steps of `batch` pieces of the text each, `context` characters long.

    Returns:
        The model, the tenth of the text that it was not shown, and the losses on the way.
    """
    torch.manual_seed(0)
    text = TEXT.read_text(encoding="utf-8")
    model = CharGPT("".join(sorted(set(text))), context=context)
    cut = len(text) * 9 // 10
    shown, held_back = model.encode(text[:cut])[0], model.encode(text[cut:])[0]
    # Fixed places, so that every check asks the same.
    exam = held_back[: len(held_back) // (context + 1) * (context + 1)].view(-1, context + 1)
    exam = exam[: 4096 // context]
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
    curve: list[Results] = []
    for step in range(1, steps + 1):
        starts = torch.randint(len(shown) - context, (batch,))
        loss = loss_of(model, torch.stack([shown[at : at + context + 1] for at in starts]))
        for group in optimiser.param_groups:  # rises over the first steps, then falls to nothing
            group["lr"] = 3e-3 * min(step / 20, 1 - (step - 1) / steps)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if step == 1 or step % max(1, steps // checks) == 0 or step == steps:
            with torch.no_grad():
                unseen = float(loss_of(model, exam))
            curve.append({"step": step, "loss": float(loss.detach()), "unseen_loss": unseen})
    return model.eval(), text[cut:], curve


@torch.no_grad()
def sample(model: CharGPT, opening: str, *, temperature: float = 0.7, seed: int = 0) -> str:
    """Goes on from an opening until the model's context is full: one character a step, cached."""
    generator = torch.Generator().manual_seed(seed)
    ids = model.encode(opening)
    written, past = ids[0].tolist(), None
    while len(written) < model.context:
        logits, past = model(ids, past)
        chances = torch.softmax(logits[0, -1] / temperature, dim=-1)
        ids = torch.multinomial(chances, 1, generator=generator)[None]
        written.append(int(ids))
    return model.decode(written)


def measure(*, quick: bool = False) -> Results:
    """Trains, and compares the loss with what is possible without attention."""
    begun = time.perf_counter()
    model, unseen, curve = (
        train(40, context=64, batch=16, checks=8) if quick else train(STEPS, context=128, batch=16)
    )
    seconds = time.perf_counter() - begun
    single, pair = entropies(unseen)
    reached = curve[-1]["unseen_loss"]
    if reached >= single:
        raise AssertionError(f"loss {reached} is not below {single}, the entropy of characters")
    if not quick and reached >= pair:
        raise AssertionError(f"loss {reached} is not below {pair}, the entropy given one before")
    return {
        "seconds": seconds,
        "parameters": sum(weights.numel() for weights in model.parameters()),
        "context": model.context,
        "characters": {"shown": len(TEXT.read_text()) - len(unseen), "unseen": len(unseen)},
        "entropy": {"uniform": math.log(len(model.letters)), "single": single, "pair": pair},
        "curve": curve,
        "sample": sample(model, OPENING),
    }


def tell(results: Results) -> None:
    """Prints the curve in a few lines, and the sample."""
    counts = results["characters"]
    print(
        f"{results['parameters']:,} parameters, {results['context']} characters of context, ",
        end="",
    )
    print(f"{counts['shown']:,} characters to learn from, {counts['unseen']:,} held back\n")
    print("step   loss   loss on what it has not seen (nats a character)")
    curve = results["curve"]
    for row in [*curve[: -1 : max(1, len(curve) // 6)], curve[-1]]:
        print(f"{row['step']:4}{row['loss']:7.2f}{row['unseen_loss']:7.2f}")
    entropy = results["entropy"]
    print(f"\nall characters alike {entropy['uniform']:.2f}; by how frequent they are ", end="")
    print(f"{entropy['single']:.2f}; given the one before {entropy['pair']:.2f}\n")
    print(results["sample"])


def draw(results: Results) -> Figure:
    """The loss against the steps with both yardsticks, and the sample beside it."""
    figure, (left, right) = panels(2)
    curve, entropy = results["curve"], results["entropy"]
    steps = [row["step"] for row in curve]
    left.plot(steps, [row["loss"] for row in curve], label="text it learns from", alpha=0.6)
    left.plot(steps, [row["unseen_loss"] for row in curve], label="text it has not seen")
    for name, label in (("single", "entropy of characters"), ("pair", "... given one before")):
        left.axhline(entropy[name], color="gray", linestyle="--" if name == "single" else ":")
        left.annotate(label, (steps[-1], entropy[name] + 0.03), ha="right", color="gray")
    left.set(
        title=f"{results['seconds']:.0f} s of training", xlabel="step", ylabel="nats a character"
    )
    left.legend(loc="upper right", bbox_to_anchor=(1, 0.95))
    right.set_axis_off()
    right.set_title("What it writes")
    style: dict[str, Any] = {"family": "monospace", "size": 8, "va": "top"}
    right.text(0, 0.97, wrapped(results["sample"]), transform=right.transAxes, **style)
    return figure


def wrapped(text: str) -> str:
    """The text in lines that fit a panel; its own line ends are kept."""
    return "\n".join(textwrap.fill(line, 52) for line in text.splitlines())


def main() -> None:
    """Trains, tells and draws."""
    options = arguments(__doc__).parse_args()
    conclude(options, measure(quick=options.quick), tell, draw)


if __name__ == "__main__":
    main()
