"""int8 on L3: close to exact, a namespace of its own, never encoded twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the 'hf' extra is not installed")
pytest.importorskip("transformers", reason="the 'hf' extra is not installed")

from click.testing import CliRunner
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hf_support import all_in, forward, hits, live_cache, open_store, same_rows
from kvlab import KvlabError
from kvlab.cli import app
from kvlab.codec_bench.measure import windows_of
from kvlab.errors import ConfigError, InvalidArgumentError
from kvlab.hf import attach
from tiny_models import build, prompt

UNKNOWN = "?"


@pytest.fixture(scope="module")
def tiny_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a tokenizer of characters."""
    path = tmp_path_factory.mktemp("model")
    build("llama").save_pretrained(path)
    letters = {letter: index for index, letter in enumerate([UNKNOWN, *"abcdefgh"])}
    made = Tokenizer(models.WordLevel(letters, unk_token=UNKNOWN))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    make: Any = PreTrainedTokenizerFast
    make(tokenizer_object=made, unk_token=UNKNOWN).save_pretrained(path)
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_restored_through_int8_is_close_and_exact_stays_exact(tmp_path: Path, dtype: Any) -> None:
    model, ids = build("llama").to(dtype), prompt(113)
    with open_store(tmp_path) as store:
        live = live_cache(model, ids, 112)
        expected = forward(model, ids[:, 112:], live)
        namespaces = set()
        for codec in ("exact", "int8"):
            with attach(model, store, codec=codec) as session:
                namespaces.add(session.namespace)
                assert hits(session.prefill(ids).report) == all_in("l1", 0)
                # In memory all is exact, whatever the codec.
                memory = session.prefill(ids, keep=False)
                assert hits(memory.report) == all_in("l1", 112)
                assert same_rows(memory.cache, live, 112)
                store.evict()
                disk = session.prefill(ids, keep=False)
                assert hits(disk.report) == all_in("l3", 112)
                assert same_rows(disk.cache, live, 112) == (codec == "exact")
                if codec == "exact":
                    assert torch.equal(disk.logits, expected)
                for ours, theirs in zip(disk.cache.layers, live.layers, strict=True):
                    for mine, other in ((ours.keys, theirs.keys), (ours.values, theirs.values)):
                        rows, exact = mine[:, :, :112].float(), other[:, :, :112].float()
                        # Half a scale, and what rounding to the dtype adds.
                        largest = exact.abs().amax(-1, keepdim=True)
                        slack = largest * torch.finfo(dtype).eps * 2
                        assert bool(((rows - exact).abs() <= largest / 254 + slack).all())
                assert torch.allclose(disk.logits, expected, atol=0.1, rtol=0.1)
        assert len(namespaces) == 2


def test_what_came_from_disk_is_not_encoded_again(tmp_path: Path) -> None:
    model, ids = build("llama"), prompt(113)
    with open_store(tmp_path, l2=0) as store, attach(model, store, codec="int8") as session:
        session.prefill(ids)
        store.evict()
        first = session.prefill(ids)
        for _ in range(3):
            session.flush()
            store.evict()
            again = session.prefill(ids)
            assert hits(again.report) == all_in("l3", 112)
            assert same_rows(again.cache, first.cache, 112)
        assert store.stats()["refusals"]["decoded"] == 0  # L3 had it all the time
        assert store.stats()["l3"]["blocks"] == 7


def test_what_cannot_be_int8_is_refused(tmp_path: Path) -> None:
    model = build("llama")
    with open_store(tmp_path) as store:
        with pytest.raises(ConfigError, match="codec = zip"):
            attach(model, store, codec="zip")  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="greatest common divisor"):
            attach(build("deepseek-v3"), store, codec="int8")  # 24 and 8
        with pytest.raises(ConfigError, match="float64"):
            attach(build("llama").to(torch.float64), store, codec="int8")


def test_windows_are_spread_over_the_text() -> None:
    assert windows_of(100, 40, 4) == [0, 20, 40, 60]
    assert windows_of(40, 40, 4) == [0]
    assert windows_of(100, 40, 1) == [0]
    with pytest.raises(InvalidArgumentError, match="39 tokens"):
        windows_of(39, 40, 4)


def test_the_bench_measures_a_model_on_a_text(tmp_path: Path, tiny_directory: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("a b c d e f g h " * 40, encoding="utf-8")
    arguments = ["codec-bench", "--model", str(tiny_directory), "--text", str(text)]
    arguments += ["--prefix", "64", "--score", "16", "--windows", "2", "--dtype", "fp32", "--json"]
    done = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    rows = {row["arm"]: row for row in result["rows"]}
    assert rows["exact"]["ratio"] == 1
    assert rows["exact"]["kl"] == 0
    assert rows["exact"]["top1"] == 1
    assert rows["int8"]["ratio"] > 3
    assert 0 < rows["int8"]["kl"] < 0.01
    assert (tmp_path / "out" / "codec-bench.svg").is_file()
    with pytest.raises(KvlabError, match="multiple of 16"):
        CliRunner().invoke(app, ["codec-bench", "--prefix", "65"], catch_exceptions=False)
