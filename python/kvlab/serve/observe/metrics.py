"""Prometheus metrics of a server, in the names and shapes of vLLM's, each request counted once.

Prompt tokens and hits are counted at admission, when the look-up is done, and never again: a request that waits is not
counted each time it is looked at. docs/metrics.md lists every metric.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from kvlab.serve.observe.collectors import EngineCollector, StoreCollector
from kvlab.serve.observe.snapshot import SOURCES
from kvlab.serve.observe.vllm_names import vllm_families

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvlab import Store
    from kvlab.serve.engine import Admitted, Cancelled, Failed, Finished, GenerationRequest
    from kvlab.serve.observe.collectors import Observable

__all__ = ["ServeMetrics"]

# The buckets are vLLM's, so that boards that were made for it show the same steps.
_FIRST_TOKEN = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0),
    *(2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
_INTER_TOKEN = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0),
    *(2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
_REQUEST = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
_TOKENS = tuple(float(digit * 10**power) for power in range(6) for digit in (1, 2, 5))


class ServeMetrics:
    """Counts what an engine does, as its observer, and shows it with what the store counts.

    Args:
        engine: Whose requests are counted, from now on.
        store: Its store; None for a mode without one.
        model: The name that requests give the model: the label `model_name` of vLLM's names.
        vllm_names: Also show what vLLM has under its own names, for boards that exist.
    """

    def __init__(
        self, engine: Observable, store: Store | None, *, model: str, vllm_names: bool = False
    ) -> None:
        own = CollectorRegistry()
        self._has_cache = store is not None
        self._found: dict[str, int] = {}

        def counter(name: str, about: str, *labels: str) -> Counter:
            return Counter(f"kvlab:{name}", about, labels, registry=own)

        def histogram(name: str, about: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"kvlab:{name}", about, buckets=buckets, registry=own)

        self._prompt_tokens = counter("prompt_tokens", "Prompt tokens of admitted requests.")
        self._by_source = counter(
            "prompt_tokens_by_source",
            "Prompt tokens of admitted requests, by where their KV comes from.",
            "source",
        )
        self._queries = counter(
            "prefix_cache_queries", "Prompt tokens that were looked up in the cache."
        )
        self._hits = counter("prefix_cache_hits", "Prompt tokens that were found in the cache.")
        self._shortfall = counter(
            "restore_shortfall_tokens",
            "Prompt tokens of finished requests that were found and then not restored.",
        )
        self._deduplicated = counter(
            "requests_deduplicated",
            "Admitted requests that waited for a prefix that another one computed.",
        )
        self._generated = counter("generation_tokens", "Tokens generated.")
        self._success = counter("request_success", "Requests answered.", "finished_reason")
        self._cancelled = counter(
            "requests_cancelled", "Requests cancelled by their client or the shutdown."
        )
        self._failed = counter("requests_failed", "Requests that failed, by error type.", "error")
        self._rejected = counter("requests_rejected", "Requests that were not taken.", "reason")
        self._first_token = histogram(
            "time_to_first_token_seconds", "Submission to the first token.", _FIRST_TOKEN
        )
        self._inter_token = histogram(
            "inter_token_latency_seconds", "Between two consecutive tokens.", _INTER_TOKEN
        )
        self._request = histogram(
            "e2e_request_latency_seconds", "Submission to the last token.", _REQUEST
        )
        self._queue = histogram(
            "request_queue_time_seconds", "Submission to the look-up of the prefix.", _REQUEST
        )
        self._prefill = histogram(
            "request_prefill_time_seconds",
            "Look-up to the first token, restore included.",
            _REQUEST,
        )
        self._decode = histogram(
            "request_decode_time_seconds", "The first token to the last.", _REQUEST
        )
        self._prompt_length = histogram(
            "request_prompt_tokens", "Prompt tokens of answered requests.", _TOKENS
        )
        self._answer_length = histogram(
            "request_generation_tokens", "Generated tokens of answered requests.", _TOKENS
        )
        # A counter that has a label shows up at 0 from the start, so that rates begin where they should.
        for source in SOURCES:
            self._by_source.labels(source)
        for reason in ("stop", "length"):
            self._success.labels(reason)
        for reason in ("queue_full", "closing", "prompt_too_long"):
            self._rejected.labels(reason)
        own.register(EngineCollector(engine))
        own.register(StoreCollector(store))
        self.registry = CollectorRegistry()
        self.registry.register(_Shown(own, model if vllm_names else None))
        engine.add_observer(self)

    def exposition(self) -> tuple[bytes, str]:
        """The metrics as text, and its content type.

        Always in Prometheus' own text format, which every scraper reads: prometheus_client 0.26 writes the colon of a
        sample's name as an underscore in OpenMetrics, so that no query finds it.
        """
        return generate_latest(self.registry), CONTENT_TYPE_PLAIN_0_0_4

    def admitted(self, event: Admitted, request: GenerationRequest) -> None:
        """Counts the prompt, by source."""
        cached = event.cached
        self._prompt_tokens.inc(event.prompt_tokens)
        computed = event.prompt_tokens - cached.total
        for source in SOURCES:
            tokens = computed if source == "compute" else getattr(cached, source)
            self._by_source.labels(source).inc(tokens)
        if self._has_cache:
            self._queries.inc(event.prompt_tokens)
            self._hits.inc(cached.total)
        if event.deduplicated:
            self._deduplicated.inc()
        self._found[event.request_id] = cached.total
        self._queue.observe(event.queued_s)

    def first_token(self, request_id: str, seconds: float) -> None:
        """Counts the token, and its time since the submission."""
        self._generated.inc()
        self._first_token.observe(seconds)

    def token(self, request_id: str, seconds: float) -> None:
        """Counts the token, and its time since the one before."""
        self._generated.inc()
        self._inter_token.observe(seconds)

    def finished(self, event: Finished) -> None:
        """Counts the answer."""
        timings, usage = event.timings, event.usage
        self._success.labels(event.reason).inc()
        found = self._found.pop(event.request_id, 0)
        self._shortfall.inc(max(0, found - usage.cached.total))
        self._request.observe(timings.first_token_s + timings.predicted_s)
        self._prefill.observe(timings.prompt_s)
        self._decode.observe(timings.predicted_s)
        self._prompt_length.observe(usage.prompt_tokens)
        self._answer_length.observe(usage.completion_tokens)

    def cancelled(self, event: Cancelled) -> None:
        """Counts it."""
        self._found.pop(event.request_id, None)
        self._cancelled.inc()

    def failed(self, event: Failed) -> None:
        """Counts it by the error's type."""
        self._found.pop(event.request_id, None)
        self._failed.labels(type(event.error).__name__).inc()

    def rejected(self, reason: str) -> None:
        """Counts it by reason."""
        self._rejected.labels(reason).inc()


class _Shown(Collector):
    """What a scrape gets: the metrics, and vLLM's names for them if they are wanted."""

    def __init__(self, own: CollectorRegistry, model: str | None) -> None:
        self._own = own
        self._model = model

    def collect(self) -> Iterator[Metric]:
        """The families of one scrape."""
        families = list(self._own.collect())
        for family in families:
            # When each series began, which the library adds as a series of its own, is of no use to anybody here.
            family.samples = [
                sample for sample in family.samples if not sample.name.endswith("_created")
            ]
        yield from families
        if self._model is not None:
            yield from vllm_families(families, self._model)

    def describe(self) -> list[Metric]:
        """None, so that registering scrapes nothing."""
        return []
