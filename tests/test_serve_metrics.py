"""What `/metrics` says is what requests did and what the store counts."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings

from hf_support import damage_last_record, open_store
from kvlab import Store
from kvlab.serve.engine import EngineOptions, GenerationRequest, Sampling
from observed import MODEL, SOURCES, Script, Told, observe, scrape, series, told

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvlab.serve.engine import Finished
    from kvlab.serve.engine.engine import Engine

DOCS = Path(__file__).resolve().parent.parent / "docs" / "metrics.md"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "store") as store:
        yield store


@pytest.fixture(scope="module")
def model() -> Any:
    pytest.importorskip("torch", reason="the 'hf' extra is not installed")
    from tiny_models import build

    return build("llama")


@pytest.fixture
def engine(model: Any, store: Store) -> Iterator[Engine]:
    from kvlab.serve.engine.engine import Engine
    from serve_support import byte_tokenizer

    options = EngineOptions(restore="always", prefill_chunk=256)
    with Engine(model, byte_tokenizer(), store, options) as engine:
        yield engine


def ask(engine: Engine, name: str, prompt: Any, tokens: int = 3) -> Finished:
    from serve_support import ask as wait_for

    request = GenerationRequest(
        name, np.asarray(prompt, np.int64), tokens, Sampling(temperature=0.0)
    )
    finished: Finished = wait_for(engine, request).wait()
    return finished


@settings(deadline=None, max_examples=20)
@given(requests=told())
def test_every_request_is_counted_once(requests: list[Told]) -> None:
    script = Script()
    metrics, _, _ = observe(script, None)
    for request in requests:
        request.tell(script)
    samples = scrape(metrics)
    assert scrape(metrics) == samples  # to look changes nothing
    admitted = [request for request in requests if request.admitted]
    ends = Counter(request.end for request in requests)
    by_source = series(samples, "kvlab:prompt_tokens_by_source_total", "source")
    assert by_source == {
        source: sum(request.tokens[at] for request in admitted) for at, source in enumerate(SOURCES)
    }
    assert samples["kvlab:prompt_tokens_total", ()] == sum(by_source.values())
    assert samples["kvlab:generation_tokens_total", ()] == sum(len(r.times) for r in admitted)
    assert series(samples, "kvlab:request_success_total", "finished_reason") == {
        "stop": ends["stop"],
        "length": ends["length"],
    }
    assert samples["kvlab:requests_cancelled_total", ()] == ends["cancelled"] + ends["unadmitted"]
    failed = series(samples, "kvlab:requests_failed_total", "error")
    assert failed == ({"CapacityError": ends["failed"]} if ends["failed"] else {})
    assert (
        series(samples, "kvlab:requests_rejected_total", "reason")["queue_full"]
        == (ends["rejected"])
    )
    firsts = [request.times[0] for request in admitted if request.times]
    others = [seconds for request in admitted for seconds in request.times[1:]]
    for name, seconds in (("time_to_first_token", firsts), ("inter_token_latency", others)):
        assert samples[f"kvlab:{name}_seconds_count", ()] == len(seconds)
        assert samples[f"kvlab:{name}_seconds_sum", ()] == pytest.approx(sum(seconds))
        buckets = series(samples, f"kvlab:{name}_seconds_bucket", "le")
        for bound, count in buckets.items():
            assert count == sum(each <= float(bound) for each in seconds)
    done = [request for request in admitted if request.end in {"stop", "length"}]
    assert samples["kvlab:e2e_request_latency_seconds_sum", ()] == pytest.approx(
        sum(sum(request.times) for request in done)
    )
    assert samples["kvlab:restore_shortfall_tokens_total", ()] == sum(
        request.found - request.restored for request in done if request.restored is not None
    )
    # Without a cache nothing is looked up, whatever an engine says.
    assert samples["kvlab:prefix_cache_queries_total", ()] == 0


def test_what_requests_got_is_what_is_counted(engine: Engine, store: Store) -> None:
    metrics, _, _ = observe(engine, store)
    shared = list(range(1, 129))
    done = []
    for at, tier in enumerate(["", "l1", "l2", "l3"]):
        if tier in {"l2", "l3"}:
            store.flush()
            store.evict("l1" if tier == "l2" else "l2")
        done.append(ask(engine, f"r{at}", [*shared, 200 + at]))
    usages = [each.usage for each in done]
    assert usages[0].cached.total == 0
    assert (usages[1].cached.l1, usages[2].cached.l2, usages[3].cached.l3) == (128, 128, 128)
    samples = scrape(metrics)
    by_source = series(samples, "kvlab:prompt_tokens_by_source_total", "source")
    for source in ("l1", "l2", "l3", "remote"):
        assert by_source[source] == sum(getattr(usage.cached, source) for usage in usages)
    prompts = sum(usage.prompt_tokens for usage in usages)
    assert sum(by_source.values()) == samples["kvlab:prompt_tokens_total", ()] == prompts
    assert samples["kvlab:prefix_cache_queries_total", ()] == prompts
    assert samples["kvlab:prefix_cache_hits_total", ()] == prompts - by_source["compute"]
    assert samples["kvlab:restore_shortfall_tokens_total", ()] == 0
    assert samples["kvlab:generation_tokens_total", ()] == sum(u.completion_tokens for u in usages)
    assert series(samples, "kvlab:request_success_total", "finished_reason")["length"] == 4
    assert samples["kvlab:num_requests_running", ()] == 0
    assert samples["kvlab:num_requests_waiting", ()] == 0


def test_what_the_store_counts_is_shown(engine: Engine, store: Store) -> None:
    metrics, _, _ = observe(engine, store)
    for at in range(12):
        ask(engine, f"r{at}", [*range(1, 65), *([at] * 400)], tokens=1)
    store.flush()
    store.evict("l2")
    ask(engine, "again", [*range(1, 65), *([0] * 400)], tokens=1)
    store.flush()
    stats, samples = store.stats(), scrape(metrics)
    for name, field in (
        ("tier_capacity_bytes", "capacity"),
        ("tier_used_bytes", "used"),
        ("tier_blocks", "blocks"),
        ("restore_bytes_total", "read_bytes"),
        ("write_bytes_total", "write_bytes"),
        ("corrupt_blocks_total", "corrupt"),
        ("io_errors_total", "io_errors"),
    ):
        found = series(samples, f"kvlab:{name}", "tier")
        assert (found["l2"], found["l3"]) == (stats["l2"][field], stats["l3"][field]), name  # type: ignore[literal-required]
    seconds = series(samples, "kvlab:restore_seconds_total", "tier")
    assert seconds["l3"] == pytest.approx(stats["l3"]["read_micros"] / 1e6)
    assert seconds["l3"] > 0
    evicted = {
        (dict(labels)["tier"], dict(labels)["reason"]): value
        for (name, labels), value in samples.items()
        if name == "kvlab:evictions_total"
    }
    (cache,) = stats["caches"]
    assert evicted["l1", "given_up"] == cache["l1"]["evicted_blocks"] > 0
    assert evicted["l2", "demoted"] + evicted["l2", "dropped"] == stats["l2"]["evictions"] > 0
    assert evicted["l3", "given_up"] == stats["l3"]["evictions"]
    assert sum(series(samples, "kvlab:refusals_total", "reason").values()) == (
        sum(stats["refusals"].values()) + cache["l1"]["refused_blocks"]  # type: ignore[arg-type]
    )
    l1 = series(samples, "kvlab:tier_used_bytes", "tier")["l1"]
    assert l1 == (cache["l1"]["used"] * cache["l1"]["block_bytes"] + cache["buffers"]["mapped"])
    # Nothing runs: nobody holds any of L1.
    assert samples["kvlab:kv_cache_usage_perc", ()] == 0


def test_what_was_found_and_is_damaged_is_counted(
    engine: Engine, store: Store, tmp_path: Path
) -> None:
    metrics, _, _ = observe(engine, store)
    prompt = [7] * 200
    ask(engine, "before", prompt)
    store.flush()
    store.evict("l2")
    damage_last_record(tmp_path / "store")
    before = scrape(metrics)["kvlab:prefix_cache_hits_total", ()]
    usage = ask(engine, "after", prompt).usage
    samples = scrape(metrics)
    found = samples["kvlab:prefix_cache_hits_total", ()] - before
    assert usage.cached.total < found
    assert samples["kvlab:restore_shortfall_tokens_total", ()] == found - usage.cached.total
    assert series(samples, "kvlab:corrupt_blocks_total", "tier")["l3"] == 1


def test_a_running_request_holds_a_part_of_l1(store: Store) -> None:
    from kvlab import KvLayout

    metrics, _, _ = observe(Script(), store)
    cache = store.prefix_cache(KvLayout([(1, 8, 1, 8)], element_bytes=4))
    prompt = np.arange(64)
    with_buffer = cache.lease(128)
    request = cache.begin(prompt, bytes(32))
    request.commit(prompt, with_buffer)
    assert request.wait_committed()
    stats = cache.stats()
    held = 4 * stats["l1"]["block_bytes"] + with_buffer.nbytes
    capacity = stats["l1"]["blocks"] * stats["l1"]["block_bytes"] + stats["buffers"]["budget"]
    samples = scrape(metrics)
    assert series(samples, "kvlab:tier_held_bytes", "tier")["l1"] == held
    assert samples["kvlab:kv_cache_usage_perc", ()] == pytest.approx(held / capacity)
    request.close()
    del with_buffer
    store.flush()
    assert scrape(metrics)["kvlab:kv_cache_usage_perc", ()] == 0


def test_a_closed_store_leaves_the_metrics_of_requests(store: Store) -> None:
    metrics, state, _ = observe(Script(), store)
    assert scrape(metrics)["kvlab:store_open", ()] == 1
    store.close()
    samples = scrape(metrics)
    assert samples["kvlab:store_open", ()] == 0
    assert samples["kvlab:prompt_tokens_total", ()] == 0
    assert series(samples, "kvlab:tier_used_bytes", "tier") == {}
    assert state.snapshot()["server"]["store"] == "closed"


@settings(deadline=None, max_examples=8)
@given(requests=told())
def test_vllms_names_carry_the_same_numbers(requests: list[Told]) -> None:
    script = Script()
    metrics, _, _ = observe(script, None, vllm_names=True)
    for request in requests:
        request.tell(script)
    samples = scrape(metrics)
    theirs = {key: value for key, value in samples.items() if key[0].startswith("vllm:")}
    assert theirs
    for _, labels in theirs:
        assert dict(labels) | {"model_name": MODEL, "engine": "0"} == dict(labels)
    common = (("engine", "0"), ("model_name", MODEL))
    for name in (
        *("prompt_tokens_total", "generation_tokens_total", "num_requests_running"),
        *("time_to_first_token_seconds_sum", "inter_token_latency_seconds_count"),
    ):
        assert theirs[f"vllm:{name}", common] == samples[f"kvlab:{name}", ()]
    ours = series(samples, "kvlab:prompt_tokens_by_source_total", "source")
    assert series(theirs, "vllm:prompt_tokens_by_source_total", "source") == {
        "local_compute": ours["compute"],
        "local_cache_hit": ours["l1"] + ours["l2"] + ours["l3"],
        "external_kv_transfer": ours["remote"],
    }
    ends = Counter(request.end for request in requests)
    reasons = series(theirs, "vllm:request_success_total", "finished_reason")
    assert reasons.get("abort", 0) == ends["cancelled"] + ends["unadmitted"]
    assert reasons.get("error", 0) == ends["failed"]
    assert (reasons["stop"], reasons["length"]) == (ends["stop"], ends["length"])
    plain, _, _ = observe(Script(), None)
    assert not any(name.startswith("vllm:") for name, _ in scrape(plain))


@pytest.fixture
def sharing() -> Iterator[Store]:
    """A store that shares with a server which is not there."""
    with Store.open(None, l1="1MiB", l2="1MiB", remote="redis://127.0.0.1:1") as store:
        yield store


def test_the_docs_name_every_metric_with_its_type_and_labels(sharing: Store) -> None:
    script = Script()
    metrics, _, _ = observe(script, sharing, vllm_names=True)
    Told("r", (1, 1, 1, 1, 1), None, (0.1,), "failed").tell(script)
    rows = re.findall(r"^\| `(kvlab:\w+)` \| (\w+) \| ([^|]*)\|", DOCS.read_text(), re.MULTILINE)
    documented = {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    shown = {}
    for family in metrics.registry.collect():
        if family.name.startswith("kvlab:"):
            total = "_total" if family.type == "counter" else ""
            labels = {label for sample in family.samples for label in sample.labels} - {"le"}
            shown[family.name + total] = (family.type, labels)
    assert documented == shown
    aliases = set(re.findall(r"`(vllm:\w+)`", DOCS.read_text()))
    assert aliases == {
        family.name + ("_total" if family.type == "counter" else "")
        for family in metrics.registry.collect()
        if family.name.startswith("vllm:")
    }
