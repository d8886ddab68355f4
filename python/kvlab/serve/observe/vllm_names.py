"""What vLLM's metrics are called, for dashboards that were made for it.

The names are those of vLLM's v1 engine, with its labels `model_name` and `engine`. A metric that kvlab has no
number for is left out; none is made up.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from prometheus_client.metrics_core import Metric

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

__all__ = ["vllm_families"]

_SAME = (
    "num_requests_running",
    "num_requests_waiting",
    "num_preemptions",
    "kv_cache_usage_perc",
    "prefix_cache_queries",
    "prefix_cache_hits",
    "prompt_tokens",
    "prompt_tokens_by_source",
    "generation_tokens",
    "time_to_first_token_seconds",
    "inter_token_latency_seconds",
    "e2e_request_latency_seconds",
    "request_queue_time_seconds",
    "request_prefill_time_seconds",
    "request_decode_time_seconds",
    "request_prompt_tokens",
    "request_generation_tokens",
    "request_success",
)
_NAMES: Mapping[str, tuple[str, ...]] = {
    **{f"kvlab:{name}": (name,) for name in _SAME},
    "kvlab:prefix_cache_hits": ("prefix_cache_hits", "prompt_tokens_cached"),
    # What vLLM did not answer is one more finished reason there.
    "kvlab:requests_cancelled": ("request_success",),
    "kvlab:requests_failed": ("request_success",),
}

_SOURCES = {
    "compute": "local_compute",
    "l1": "local_cache_hit",
    "l2": "local_cache_hit",
    "l3": "local_cache_hit",
    "remote": "external_kv_transfer",
}
"""All tiers of this machine are one source there."""


def vllm_families(families: Iterable[Metric], model: str) -> Iterator[Metric]:
    """The same numbers under vLLM's names.

    Args:
        families: Under kvlab's names.
        model: The label `model_name`.
    """
    renamed: dict[str, Metric] = {}
    amounts: dict[tuple[str, str, tuple[tuple[str, str], ...]], float] = defaultdict(float)
    for family in families:
        for name in _NAMES.get(family.name, ()):
            renamed.setdefault(name, Metric(f"vllm:{name}", family.documentation, family.type))
            for sample in family.samples:
                suffix = sample.name.removeprefix(family.name)
                labels = _labels(family.name, sample.labels)
                amounts[name, suffix, tuple(labels.items())] += sample.value
    for (name, suffix, pairs), amount in amounts.items():
        labels = {"model_name": model, "engine": "0", **dict(pairs)}
        renamed[name].add_sample(f"vllm:{name}{suffix}", labels, amount)
    yield from renamed.values()


def _labels(family: str, labels: Mapping[str, str]) -> Mapping[str, str]:
    match family:
        case "kvlab:prompt_tokens_by_source":
            return {"source": _SOURCES[labels["source"]]}
        case "kvlab:requests_cancelled":
            return {"finished_reason": "abort"}
        case "kvlab:requests_failed":
            return {"finished_reason": "error"}
    return labels
