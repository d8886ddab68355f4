"""Metrics that are read at scrape time: the engine's state, and the store's own counters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from kvlab.serve.observe.tiers import read_store

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from kvlab import Store
    from kvlab._types import RemoteStats
    from kvlab.serve.engine import EngineObserver, EngineState
    from kvlab.serve.observe.tiers import StoreReading

__all__ = ["EngineCollector", "Observable", "StoreCollector"]


class Observable(Protocol):
    """What is needed of an engine."""

    def snapshot(self) -> EngineState:
        """What it does now; any thread."""

    def add_observer(self, observer: EngineObserver) -> None:
        """Tell it what happens from now on."""


class EngineCollector(Collector):
    """Requests that run and wait."""

    def __init__(self, engine: Observable) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        """The families of one scrape."""
        state = self._engine.snapshot()
        yield GaugeMetricFamily(
            "kvlab:num_requests_running", "Requests in prefill or decode.", len(state.running)
        )
        yield GaugeMetricFamily(
            "kvlab:num_requests_waiting", "Requests that wait for a place.", state.waiting
        )
        yield CounterMetricFamily(
            "kvlab:num_preemptions",
            "Times that an answer had no memory to grow and gave up its place for a while.",
            state.counters.preempted,
        )


class StoreCollector(Collector):
    """What a store counts itself; nothing but `kvlab:store_open` once it is closed, or without one."""

    def __init__(self, store: Store | None) -> None:
        self._store = store

    def collect(self) -> Iterator[Metric]:
        """The families of one scrape."""
        reading = read_store(self._store)
        yield GaugeMetricFamily(
            "kvlab:store_open", "1 while the store is open, else 0.", int(reading is not None)
        )
        if reading is not None:
            yield GaugeMetricFamily(
                "kvlab:kv_cache_usage_perc",
                "The part of L1 that running requests hold, 0 to 1.",
                reading.in_use,
            )
            yield from _tiers(reading)
            yield from _losses(reading)
            if reading.remote is not None:
                yield from _remote(reading.remote)


def _tiers(reading: StoreReading) -> Iterator[Metric]:
    tiers = reading.tiers

    def family(
        kind: type[CounterMetricFamily | GaugeMetricFamily],
        name: str,
        about: str,
        values: Iterable[tuple[str, float | None]],
    ) -> Metric:
        metric = kind(name, about, labels=["tier"])
        for tier, value in values:
            if value is not None:
                metric.add_metric([tier], value)
        return metric

    # What a shared tier holds in all, only its servers know.
    here = [each for each in tiers if each.tier != "remote"]
    below = [each for each in tiers if each.tier != "l1"]
    gauge, counter = GaugeMetricFamily, CounterMetricFamily
    yield family(
        gauge,
        "kvlab:tier_capacity_bytes",
        "Bytes that a tier may take.",
        ((each.tier, each.capacity) for each in here),
    )
    yield family(
        gauge,
        "kvlab:tier_used_bytes",
        "Bytes that a tier takes.",
        ((each.tier, each.used) for each in here),
    )
    yield family(
        gauge,
        "kvlab:tier_held_bytes",
        "Bytes of a tier that cannot be evicted now.",
        ((each.tier, each.held) for each in here),
    )
    yield family(
        gauge,
        "kvlab:tier_blocks",
        "Blocks that can be read from a tier.",
        ((each.tier, each.blocks) for each in here),
    )
    yield family(
        counter,
        "kvlab:restore_bytes",
        "Payload bytes read from a tier.",
        ((each.tier, each.read_bytes) for each in below),
    )
    yield family(
        counter,
        "kvlab:restore_seconds",
        "Seconds that threads spent on reading from a tier.",
        ((each.tier, each.read_seconds) for each in below),
    )
    yield family(
        counter,
        "kvlab:write_bytes",
        "Payload bytes written to a tier.",
        ((each.tier, each.write_bytes) for each in below),
    )
    yield family(
        counter,
        "kvlab:write_seconds",
        "Seconds that threads spent on writing to a tier.",
        ((each.tier, each.write_seconds) for each in below),
    )
    yield family(
        counter,
        "kvlab:corrupt_blocks",
        "Reads of a tier that found damaged bytes; each dropped the run that it read.",
        ((each.tier, each.corrupt) for each in below),
    )
    yield family(
        counter,
        "kvlab:io_errors",
        "Reads of a tier that the operating system or a server failed.",
        ((each.tier, each.io_errors) for each in below),
    )
    yield GaugeMetricFamily(
        "kvlab:write_queue_bytes",
        "Payload bytes accepted for L3 and not written yet.",
        reading.write_queue_bytes,
    )


def _losses(reading: StoreReading) -> Iterator[Metric]:
    evictions = CounterMetricFamily(
        "kvlab:evictions",
        "What left a tier: blocks of l1, runs of l2 and l3, sequences of buffers.",
        labels=["tier", "reason"],
    )
    for labels, count in reading.evictions.items():
        evictions.add_metric(labels, count)
    yield evictions
    refusals = CounterMetricFamily(
        "kvlab:refusals",
        "Runs that a tier did not keep; l1_full: blocks that L1 had no room for.",
        labels=["reason"],
    )
    for reason, count in reading.refusals.items():
        refusals.add_metric([reason], count)
    yield refusals
    prefetched = CounterMetricFamily(
        "kvlab:prefetched_runs", "Prefetched runs by what became of them.", labels=["outcome"]
    )
    for outcome, count in reading.prefetched.items():
        prefetched.add_metric([outcome], count)
    yield prefetched


def _remote(stats: RemoteStats) -> Iterator[Metric]:
    yield CounterMetricFamily(
        "kvlab:remote_lookups", "Times that the shared tier was asked for blocks.", stats["lookups"]
    )
    yield CounterMetricFamily(
        "kvlab:remote_lookup_seconds",
        "Seconds that requests waited for that.",
        stats["lookup_micros"] * 1e-6,
    )
    blocks = CounterMetricFamily(
        "kvlab:remote_lookup_blocks", "Blocks that it was asked for, by outcome.", labels=["found"]
    )
    blocks.add_metric(["yes"], stats["found_blocks"])
    blocks.add_metric(["no"], stats["missed_blocks"])
    yield blocks
    errors = CounterMetricFamily(
        "kvlab:remote_errors", "What went wrong with its servers, by kind.", labels=["kind"]
    )
    for kind, count in stats["errors"].items():
        errors.add_metric([kind], int(count))  # type: ignore[call-overload]
    yield errors
    refusals = CounterMetricFamily(
        "kvlab:remote_refusals", "Runs that it did not keep, by reason.", labels=["reason"]
    )
    for reason, count in stats["refusals"].items():
        refusals.add_metric([reason], int(count))  # type: ignore[call-overload]
    yield refusals
    yield GaugeMetricFamily(
        "kvlab:remote_write_queue_bytes",
        "Payload bytes that wait to be written to it.",
        stats["queue_bytes"],
    )
    up = GaugeMetricFamily(
        "kvlab:remote_server_up",
        "1 for a server that is asked, 0 for one that is left alone after failures.",
        labels=["server"],
    )
    opened = CounterMetricFamily(
        "kvlab:remote_server_given_up", "Times that a server was left alone.", labels=["server"]
    )
    for server in stats["servers"]:
        up.add_metric([server["address"]], int(server["state"] == "closed"))
        opened.add_metric([server["address"]], server["opened"])
    yield up
    yield opened
