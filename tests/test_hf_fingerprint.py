"""The fingerprint changes with everything that changes keys and values, and with nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the 'hf' extra is not installed")
pytest.importorskip("transformers", reason="the 'hf' extra is not installed")

from transformers import AutoModelForCausalLM

from kvlab.errors import UnsupportedModelError
from kvlab.hf.fingerprint import fingerprint
from kvlab.hf.layout import read_layout
from kvlab.hf.stamp import Stamp
from tiny_models import FAMILIES, build, prompt


def digest(model: Any, *, chunk_tokens: int = 0) -> bytes:
    return fingerprint(model, read_layout(model), chunk_tokens=chunk_tokens)


def weight(model: Any) -> Any:
    return model.model.layers[1].self_attn.k_proj.weight


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("family", FAMILIES)
def test_equal_models_have_equal_fingerprints_and_use_does_not_change_them(family: str) -> None:
    model = build(family)
    before, stamp = digest(model), Stamp.take(model)
    assert len(before) == 32
    assert digest(build(family)) == before
    with torch.no_grad():
        model(prompt(40))
    model.generate(prompt(8), max_new_tokens=2, do_sample=False)
    assert digest(model) == before
    assert stamp.matches(model)


def test_no_two_families_seeds_dtypes_or_grids_share_a_fingerprint() -> None:
    seen = [digest(build(family)) for family in FAMILIES]
    seen += [digest(build("llama", seed=1)), digest(build("llama", dtype=torch.bfloat16))]
    seen += [digest(build("llama"), chunk_tokens=256), digest(build("llama"), chunk_tokens=512)]
    assert len(set(seen)) == len(seen)


def test_another_process_computes_the_same_fingerprint(tmp_path: Path) -> None:
    model = build("gemma3", dtype=torch.bfloat16)
    model.save_pretrained(tmp_path)
    script = (
        "import sys, torch\n"
        "from transformers import AutoModelForCausalLM\n"
        "from kvlab.hf import fingerprint, read_layout\n"
        "torch.set_num_threads(int(sys.argv[2]))\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)\n"
        "model.eval()\n"
        "print(hash('kvlab'), fingerprint(model, read_layout(model), chunk_tokens=0).hex())\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path), str(torch.get_num_threads())]
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    done = subprocess.run(
        command,
        env=os.environ | {"PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        check=True,
        timeout=280,
    )
    hashed, found = done.stdout.split()
    assert int(hashed) != hash("kvlab")
    again: Any = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert found == digest(again.eval()).hex()


# Each makes keys and values differ; the stamp must notice without reading everything.
CHANGES: dict[str, Callable[[Any], object]] = {
    "in-place update": lambda model: weight(model).requires_grad_(False).add_(0.01),
    "write through .data": lambda model: weight(model).data.copy_(weight(model).data * 1.5),
    "write through numpy": lambda model: weight(model).detach().numpy().fill(0.5),
    "replaced parameter": lambda model: setattr(
        model.model.layers[1].self_attn.k_proj,
        "weight",
        torch.nn.Parameter(weight(model).detach() + 1),
    ),
    "rope frequencies": lambda model: model.model.rotary_emb.inv_freq.mul_(0.5),
    "a new buffer": lambda model: model.register_buffer("extra", torch.ones(4)),
    "a removed layer": lambda model: model.model.layers.pop(3),
    "rope in the config": lambda model: model.config.rope_parameters.update(rope_theta=5e5),
    "attention implementation": lambda model: model.set_attn_implementation("eager"),
    "dtype": lambda model: model.to(torch.bfloat16),
    "threads": lambda model: torch.set_num_threads(torch.get_num_threads() + 1),
}


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_keys_and_values_changes_fingerprint_and_stamp(change: str) -> None:
    model = build("llama")
    before, stamp = digest(model), Stamp.take(model)
    CHANGES[change](model)
    assert digest(model) != before
    assert not stamp.matches(model)


def test_a_single_element_written_around_torch_changes_the_fingerprint() -> None:
    model = build("llama")
    before = digest(model)
    weight(model).detach().numpy()[7, 3] += 1e-3
    assert digest(model) != before


def test_a_value_that_only_moves_to_another_parameter_changes_the_fingerprint() -> None:
    model = build("llama")
    before = digest(model)
    attention = model.model.layers[0].self_attn
    key, value = attention.k_proj.weight.data, attention.v_proj.weight.data
    attention.k_proj.weight.data, attention.v_proj.weight.data = value, key
    assert digest(model) != before


def test_the_fingerprint_is_of_the_elements_not_of_their_strides() -> None:
    model = build("llama")
    before = digest(model)
    projection = model.model.layers[0].mlp.up_proj
    projection.weight.data = projection.weight.data.t().contiguous().t()
    assert not projection.weight.is_contiguous()
    assert digest(model) == before


def test_adapter_switches_are_seen() -> None:
    # The attributes of peft's tuner layers, on a plain layer: peft is no dependency of kvlab.
    model = build("llama")
    layer = model.model.layers[0].self_attn.q_proj
    layer._active_adapter, layer._disable_adapters = ["default"], False
    layer.merged_adapters, layer.scaling = [], {"default": 1.0}
    before, stamp = digest(model), Stamp.take(model)
    layer.scaling["default"] = 0.5
    scaled, scaled_stamp = digest(model), Stamp.take(model)
    assert scaled != before
    assert not stamp.matches(model)
    layer._disable_adapters = True
    assert digest(model) not in (before, scaled)
    assert not scaled_stamp.matches(model)


def test_the_stamp_notices_training_mode_and_hooks() -> None:
    model = build("llama")
    stamp = Stamp.take(model)
    model.train()
    assert not stamp.matches(model)
    model.eval()
    assert stamp.matches(model)
    handle = model.model.layers[0].register_forward_pre_hook(lambda module, args: None)
    assert not stamp.matches(model)
    handle.remove()
    assert stamp.matches(model)


def test_a_model_built_under_inference_mode_can_be_stamped() -> None:
    with torch.inference_mode():
        model = build("llama")
    stamp = Stamp.take(model)
    assert stamp.matches(model)
    assert weight(model).is_inference()  # such tensors have no version counter
    weight(model).detach().numpy().fill(2.0)
    assert not stamp.matches(model)


def test_bytes_that_cannot_be_read_are_an_error_that_names_the_tensor() -> None:
    model = build("llama")
    layout = read_layout(model)
    with pytest.raises(UnsupportedModelError, match=r"lm_head\.weight.*meta"):
        fingerprint(model.to("meta"), layout, chunk_tokens=0)


def test_where_a_model_came_from_does_not_matter() -> None:
    model = build("llama")
    before, stamp = digest(model), Stamp.take(model)
    model.config._name_or_path = "/somewhere/else"
    assert digest(model) == before
    assert stamp.matches(model)


def test_smollm2_loaded_twice_is_one_namespace(smollm2: Path) -> None:
    from kvlab.hf.load import load

    first, _ = load(str(smollm2))
    again, _ = load("smollm2-135m")
    assert digest(first) == digest(again)
    halved, _ = load("smollm2-135m", dtype="bfloat16")
    assert digest(halved) != digest(first)
