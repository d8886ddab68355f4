"""The demo, end to end, on a tiny model with a tokenizer made here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the 'hf' extra is not installed")
pytest.importorskip("transformers", reason="the 'hf' extra is not installed")

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from kvlab.demo.prompt import prompt
from kvlab.errors import InvalidArgumentError
from tiny_models import VOCAB, build

CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
)
LENGTHS = (64, 128)


PADDING = "<pad>"


def text(name: str) -> str:
    return resources.files("kvlab.demo").joinpath("prompts", name).read_text("utf-8").strip()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """Byte-level BPE as large as the tiny models' vocabulary, trained on the demo's own prompt."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special = [PADDING, "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=special, show_progress=False)
    names = ("agent_prefix.md", "turn_1.md", "turn_2.md")
    made.train_from_iterator([*map(text, names), "system user assistant"], trainer)
    make: Any = PreTrainedTokenizerFast
    return make(tokenizer_object=made, pad_token=PADDING, chat_template=CHAT)


def test_the_template_frames_the_prompt_and_the_prefix_has_its_length(tokenizer: Any) -> None:
    first, second = (prompt(tokenizer, 100, turn) for turn in (1, 2))
    assert torch.equal(first[:, :100], second[:, :100])
    written = tokenizer.decode(first[0])
    assert written.startswith("<|im_start|>system\n" + text("agent_prefix.md")[:40])
    assert written.endswith(
        f"<|im_end|>\n<|im_start|>user\n{text('turn_1.md')}<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("template", [None, NO_SYSTEM])
def test_without_a_system_role_the_parts_follow_one_another(
    template: str | None, tokenizer: Any
) -> None:
    make: Any = PreTrainedTokenizerFast
    plain = make(
        tokenizer_object=tokenizer.backend_tokenizer, pad_token=PADDING, chat_template=template
    )
    written = plain.decode(prompt(plain, 100, 2)[0])
    assert written.startswith(text("agent_prefix.md")[:40])
    assert written.endswith(f"\n\n{text('turn_2.md')}\n\n")


def test_a_prefix_longer_than_its_text_is_refused(tokenizer: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="--tokens 1000000: the agent prefix has"):
        prompt(tokenizer, 1_000_000, 1)


def check_spread(spread: dict[str, float]) -> None:
    assert set(spread) == {"median", "min", "max"}
    assert 0 < spread["min"] <= spread["median"] <= spread["max"]


def test_the_demo_restores_bit_for_bit_in_a_new_process(tokenizer: Any, tmp_path: Path) -> None:
    model, out = tmp_path / "model", tmp_path / "out"
    build("llama").save_pretrained(model)
    tokenizer.save_pretrained(model)
    options = {
        "--model": str(model),
        "--tokens": ",".join(map(str, LENGTHS)),
        "--dtype": "fp32",
        "--repeats": "1",
        "--out": str(out),
    }
    arguments = [part for option in options.items() for part in option]
    capstone = Path(__file__).parents[1] / "toys" / "capstone.py"
    done = subprocess.run(
        [sys.executable, str(capstone), *arguments, "--json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
        env={**os.environ, "COLUMNS": "80"},
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result == json.loads((out / "demo.json").read_text("utf-8"))
    assert result["environment"]["model"] == str(model)
    runs = [(run["dtype"], run["prefix_tokens"]) for run in result["runs"]]
    assert runs == [("fp32", length) for length in LENGTHS]
    for run in result["runs"]:
        hit = run["prefix_tokens"]
        assert run["bit_exact"] is True
        assert run["same_text"] is True
        assert run["text"]["restored"] == run["text"]["never_evicted"]
        assert run["hit_tokens"] == {"l1": 0, "l2": 0, "l3": hit, "l4": 0}
        assert run["computed_tokens"] == run["prompt_tokens"] - hit > 0
        assert run["blocks_reused"] == hit // 16
        assert run["bytes_read"] >= hit * 1024  # 4 layers of K and V, 2 heads of 16, 4 bytes
        assert set(run["ttft_ms"]) == {"restored", "never_evicted", "recomputed"}
        for spread in (*run["ttft_ms"].values(), run["restore_ms"]):
            check_spread(spread)
        assert run["pool"]["blocks_saved"] >= hit // 16
    longest = result["runs"][1]
    assert (longest["dtype"], longest["prefix_tokens"]) == ("fp32", 128)
    assert result["headline"] == longest["ratios"]["recomputed_over_restored"]["median"]
    for beats in result["writes"].values():
        assert all(
            beat["l1_used_blocks"] == beat["l2_used_bytes"] == 0 for beat in beats["lengths"]
        )
    # The tables fit a terminal of 80 columns, nothing cut off.
    assert "…" not in done.stderr
    tables = done.stderr[done.stderr.index("Time to the first token") :]
    assert max(len(line.rstrip()) for line in tables.split("restored logits")[0].splitlines()) <= 80
    assert not list(out.glob("store-*"))
