"""What is in a workload, in numbers and as a picture."""

from __future__ import annotations

import io
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from kvlab.workload.reuse import IdealReuse, RequestReuse, ReuseTotal
    from kvlab.workload.schema import Workload, WorkloadRequest

__all__ = ["draw", "summary"]

_REUSED = "#4c72b0"
_COMPUTED = "#dd8452"


def summary(workload: Workload, reuse: IdealReuse) -> dict[str, Any]:
    """Requests, classes, lengths, gaps and ideal reuse, as JSON has them.

    Args:
        workload: What it is about.
        reuse: Of the same workload.
    """
    header = workload.header
    requests = workload.requests
    classes = reuse.by_class()
    return {
        "name": header.name,
        "generator": header.generator,
        "seed": header.seed,
        "options": dict(header.options),
        "notes": list(header.notes),
        "sessions": len({request.session for request in requests}),
        "forks": _forks(requests),
        "salts": len({request.salt for request in requests}),
        "tokenizer": reuse.tokenizer,
        "block_tokens": reuse.block_tokens,
        "assumed_answers": reuse.assumed_answers,
        "total": _figures(requests, reuse.requests, reuse.total),
        "classes": {
            name: _figures(
                [request for request in requests if request.klass == name],
                [each for each in reuse.requests if each.klass == name],
                total,
            )
            for name, total in classes.items()
        },
    }


def _figures(
    requests: Sequence[WorkloadRequest], reuse: Sequence[RequestReuse], total: ReuseTotal
) -> dict[str, Any]:
    lengths = [each.prompt_tokens for each in reuse]
    gaps = [request.delay_ms for request in requests if request.after is not None]
    return {
        "requests": total.requests,
        "prompt_tokens": total.prompt_tokens,
        "prompt_tokens_min": min(lengths),
        "prompt_tokens_median": median(lengths),
        "prompt_tokens_max": max(lengths),
        "max_tokens": sum(request.max_tokens for request in requests),
        "ideal_reused_tokens": total.reused_tokens,
        "ideal_reuse": round(total.share, 6),
        "gap_ms": _spread(gaps),
    }


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    """The 10th, 50th and 90th percentile; None of nothing."""
    if not values:
        return None
    if len(values) == 1:
        return {"p10": values[0], "p50": values[0], "p90": values[0]}
    tenths = quantiles(values, n=10, method="inclusive")
    return {"p10": tenths[0], "p50": tenths[4], "p90": tenths[8]}


def _forks(requests: Sequence[WorkloadRequest]) -> int:
    """Conversations that go on from another one's."""
    session_of = {request.id: request.session for request in requests}
    return sum(
        request.append
        and request.after is not None
        and session_of[request.after] != request.session
        for request in requests
    )


def draw(workload: Workload, reuse: IdealReuse) -> str:
    """Each prompt with what an ideal cache reuses of it, and the gaps, as SVG.

    Args:
        workload: What it is about.
        reuse: Of the same workload.
    """
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    gaps = sorted(request.delay_ms for request in workload.requests if request.after is not None)
    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "kvlab",
        "font.family": "sans-serif",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with mpl.rc_context(style):
        columns = 2 if gaps else 1
        drawn, axes = plt.subplots(
            1, columns, figsize=(4.8 * columns + 1.6, 3.4), squeeze=False, layout="constrained"
        )
        _strip(axes[0][0], reuse.requests)
        if gaps:
            _gaps(axes[0][1], gaps)
        share = reuse.total.share
        drawn.suptitle(
            f"{workload.header.name}: an ideal cache reuses {share:.1%} of "
            f"{reuse.total.prompt_tokens:,} prompt tokens ({reuse.tokenizer})"
        )
        out = io.StringIO()
        drawn.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
        plt.close(drawn)
    return out.getvalue()


def _strip(axis: Axes, requests: Sequence[RequestReuse]) -> None:
    places = [float(at) for at in range(len(requests) + 1)]
    reused = [each.reused_tokens for each in requests]
    whole = [each.prompt_tokens for each in requests]
    # A step ends where the next begins: the last value stands twice.
    for low, high, colour, text in (
        ([0] * len(whole), reused, _REUSED, "reused"),
        (reused, whole, _COMPUTED, "computed"),
    ):
        bottom, top = [*low, low[-1]], [*high, high[-1]]
        axis.fill_between(places, bottom, top, step="post", color=colour, label=text, linewidth=0)
    axis.set_xlim(0, len(requests))
    axis.set_ylim(bottom=0)
    axis.set_xlabel("requests, in the order in which they start")
    axis.set_ylabel("prompt tokens")
    axis.legend(frameon=False, loc="upper left", ncols=2, bbox_to_anchor=(0, 1.12))


def _gaps(axis: Axes, gaps: Sequence[float]) -> None:
    # Half a millisecond stands for none on a logarithmic axis.
    seconds = [max(gap, 0.5) / 1000 for gap in gaps]
    axis.step(
        seconds, [(at + 1) / len(gaps) for at in range(len(gaps))], where="post", color=_REUSED
    )
    axis.set_xscale("log")
    axis.set_ylim(0, 1.02)
    axis.set_xlabel("gap before a request, in seconds")
    axis.set_ylabel("share of gaps up to it")
    axis.grid(visible=True, alpha=0.25)
