"""`kvlab size` and `kvlab.sizing`: numbers by hand, configs as they are found, and bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from kvlab.cli.size import read_params, resolve_shape
from kvlab.errors import InvalidArgumentError
from kvlab.sizing import DTYPES, ModelShape, kv_size, presets, read_dtype, shape_of

if TYPE_CHECKING:
    from pathlib import Path

LLAMA = {
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_size": 2048,
    "torch_dtype": "bfloat16",
}


def size_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kvlab", "size", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def write_config(directory: Path, **changes: Any) -> Path:
    config = {key: value for key, value in {**LLAMA, **changes}.items() if value != "absent"}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def write_safetensors(path: Path, shapes: dict[str, list[int]]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for name, shape in shapes.items():
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [0, 0]}
    encoded = json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded)


def test_smollm2_by_hand() -> None:
    shape = ModelShape(layers=30, kv_heads=3, head_dim=64, dtype="float32", params=134_515_008)
    sizes = kv_size(shape, batch=2, seq_len=1000, memory=2**30)
    assert sizes.kv_bytes_per_token == 30 * 2 * 3 * 64 * 4 == 46_080
    assert sizes.kv_bytes == 92_160_000
    assert sizes.weight_bytes == 538_060_032
    assert sizes.crossover_tokens == 538_060_032 // 46_080 + 1
    assert sizes.crossover_seq_len == 538_060_032 // 92_160 + 1
    assert sizes.sequences == (2**30 - 538_060_032) // 46_080_000


def test_presets_are_models_with_known_sizes() -> None:
    per_token = {name: kv_size(shape).kv_bytes_per_token for name, shape in presets().items()}
    assert per_token["llama-3.1-8b"] == 131_072
    assert per_token["llama-2-7b"] == 4 * per_token["llama-3.1-8b"]
    assert per_token["deepseek-v3"] == 61 * (512 + 64) * 2
    assert all(shape.params for shape in presets().values())


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ModelShape(layers=16, kv_heads=8, head_dim=64)),
        ({"head_dim": 128}, ModelShape(layers=16, kv_heads=8, head_dim=128)),
        ({"head_dim": None}, ModelShape(layers=16, kv_heads=8, head_dim=64)),
        ({"num_key_value_heads": "absent"}, ModelShape(layers=16, kv_heads=32, head_dim=64)),
        ({"dtype": "float16"}, ModelShape(layers=16, kv_heads=8, head_dim=64, dtype="float16")),
        (
            {"torch_dtype": "absent"},
            ModelShape(layers=16, kv_heads=8, head_dim=64, dtype="float32"),
        ),
        (
            {"kv_lora_rank": 512, "qk_rope_head_dim": 64},
            ModelShape(layers=16, kv_heads=8, head_dim=64, latent=(512, 64)),
        ),
        (
            {"layer_types": ["linear_attention"] * 12 + ["full_attention"] * 4},
            ModelShape(layers=4, kv_heads=8, head_dim=64),
        ),
    ],
)
def test_a_config_is_read(tmp_path: Path, changes: dict[str, Any], expected: ModelShape) -> None:
    assert shape_of(write_config(tmp_path, **changes)) == expected


def test_the_text_part_of_a_multimodal_config_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"text_config": LLAMA}))
    assert shape_of(tmp_path) == ModelShape(layers=16, kv_heads=8, head_dim=64)


def test_parameters_are_counted_in_safetensors_headers(tmp_path: Path) -> None:
    write_config(tmp_path)
    write_safetensors(tmp_path / "a.safetensors", {"x": [3, 5], "scalar": []})
    assert shape_of(tmp_path).params == 16
    write_safetensors(tmp_path / "b.safetensors", {"y": [100]})
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"y": "b.safetensors"}}))
    assert shape_of(tmp_path).params == 100, "the index says which files count"
    write_config(tmp_path, quantization_config={"bits": 4})
    assert shape_of(tmp_path).params is None, "packed weights do not show their number"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_hidden_layers": "absent"}, "num_hidden_layers"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"hidden_size": "big"}, "hidden_size"),
        ({"num_key_value_heads": True}, "num_key_value_heads"),
        ({"kv_lora_rank": 512}, "qk_rope_head_dim"),
        ({"torch_dtype": "complex64"}, "complex64"),
    ],
)
def test_a_config_without_a_cache_is_refused(
    tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=named):
        shape_of(write_config(tmp_path, **changes))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'"text"'])
def test_a_damaged_config_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(InvalidArgumentError, match=r"config\.json"):
        shape_of(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 8, b"\x02" + b"\0" * 7 + b"[]", b"\x08" + b"\0" * 7 + b'{"x": 1}']
)
def test_a_damaged_safetensors_file_is_refused(tmp_path: Path, content: bytes) -> None:
    write_config(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(InvalidArgumentError, match=r"model\.safetensors"):
        shape_of(tmp_path)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("8030261248", 8_030_261_248),
        ("8B", 8_000_000_000),
        ("1.5b", 1_500_000_000),
        ("135M", 135_000_000),
    ],
)
def test_parameters_are_read(text: str, count: int) -> None:
    assert read_params(text) == count


@pytest.mark.parametrize("text", ["", "B", "0", "-1", "1e9", "8 B", "1.2.3B", ".", "0.1"])
def test_nonsense_parameters_are_refused(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="--params"):
        read_params(text)


def test_dtypes_have_short_names() -> None:
    assert [read_dtype(name) for name in DTYPES] == list(DTYPES)
    assert [read_dtype(name) for name in ("fp32", "bf16", "torch.float16", "float8_e4m3fn")] == [
        "float32",
        "bfloat16",
        "float16",
        "float8",
    ]
    with pytest.raises(InvalidArgumentError, match="int3"):
        read_dtype("int3")


@pytest.mark.parametrize("field", ["layers", "kv_heads", "head_dim", "params"])
@pytest.mark.parametrize("value", [0, -1, 2**64])
def test_impossible_shapes_are_refused(field: str, value: int) -> None:
    fields: dict[str, Any] = {"layers": 1, "kv_heads": 1, "head_dim": 1, "params": 1, field: value}
    with pytest.raises(InvalidArgumentError, match=field):
        kv_size(ModelShape(**fields))


@pytest.mark.parametrize("field", ["batch", "seq_len", "memory"])
@pytest.mark.parametrize("value", [0, -1, 2**64])
def test_impossible_requests_are_refused(field: str, value: int) -> None:
    arguments: dict[str, Any] = {field: value}
    with pytest.raises(InvalidArgumentError, match=field):
        kv_size(ModelShape(layers=1, kv_heads=1, head_dim=1, params=1), **arguments)


def test_what_overflows_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="64 bits"):
        kv_size(presets()["llama-3.1-8b"], batch=2**40, seq_len=2**40)


def test_flags_take_the_place_of_what_a_model_says() -> None:
    shape = resolve_shape(
        "llama-3.1-8b", layers=None, kv_heads=32, head_dim=None, dtype="fp32", params=5
    )
    assert shape == ModelShape(layers=32, kv_heads=32, head_dim=128, dtype="float32", params=5)


def test_json_holds_shape_and_sizes() -> None:
    result = size_command("--model", "llama-3.1-8b", "--batch", "4", "--memory", "24GiB", "--json")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["layers"] == 32
    assert report["kv_bytes"] == 4 * 4096 * 131_072
    assert report["weight_bytes"] == 16_060_522_496
    assert report["crossover_seq_len"] == 30_634
    assert report["sequences"] == 18


def test_both_spellings_of_the_flags_give_the_same() -> None:
    short = size_command(
        *("--layers", "30", "--kv-heads", "3", "--head-dim", "64", "--batch", "2", "--json")
    )
    long = size_command(
        *(
            "--n-layers",
            "30",
            "--n-kv-heads",
            "3",
            "--head-dim",
            "64",
            "--batch-size",
            "2",
            "--json",
        )
    )
    assert short.returncode == 0, short.stderr
    assert short.stdout == long.stdout
    assert json.loads(short.stdout)["weight_bytes"] is None


def test_the_table_names_what_it_shows() -> None:
    result = size_command("--model", "deepseek-v2-lite", "--memory", "80GiB")
    assert result.returncode == 0, result.stderr
    for part in ("a latent of 512 + 64", "31,104 bytes", "exceeds weights", "80 GiB"):
        assert part in result.stdout


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "--model"),
        (["--model", "gpt-9"], "gpt-9"),
        (["--layers", "30"], "--kv-heads"),
        (["--model", "llama-3.1-8b", "--batch", "0"], "batch = 0"),
        (["--model", "llama-3.1-8b", "--seq-len", "-5"], "seq_len = -5"),
        (["--model", "llama-3.1-8b", "--dtype", "int3"], "int3"),
        (["--model", "llama-3.1-8b", "--memory", "many"], "many"),
        (["--model", "llama-3.1-8b", "--params", "many"], "many"),
        (["--model", "deepseek-v3", "--kv-heads", "8"], "--kv-heads"),
    ],
)
def test_bad_input_is_one_line_that_names_it(arguments: list[str], named: str) -> None:
    result = size_command(*arguments)
    assert result.returncode == 1
    assert named in result.stderr
    assert len(result.stderr.splitlines()) == 1, result.stderr
