"""What `make wheel` builds: the wheel installs and imports alone, the sdist carries what it needs.

KVLAB_DIST names a directory that holds both, as `make test` does; without it they are built here.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TREE = [*ROOT.glob("core/src/**/*.rs"), *ROOT.glob("python/src/**/*.rs")]


def run(*command: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def only(paths: list[Path]) -> Path:
    assert len(paths) == 1, paths
    return paths[0]


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if given := os.environ.get("KVLAB_DIST"):
        return Path(given)
    maturin = shutil.which("maturin", path=Path(sys.executable).parent) or shutil.which("maturin")
    if maturin is None or shutil.which("cargo") is None:
        pytest.skip("maturin and cargo build the wheel; `make test` has both")
    directory = tmp_path_factory.mktemp("dist")
    run(maturin, "build", "--release", "--locked", "--out", directory, cwd=ROOT)
    run(maturin, "sdist", "--out", directory, cwd=ROOT)
    return directory


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    return only(list(dist.glob("kvlab-*.whl")))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` directory of a fresh environment that has the wheel and its base requirements."""
    directory = tmp_path_factory.mktemp("fresh")
    venv.create(directory, with_pip=True)
    bin_directory = directory / "bin"
    run(bin_directory / "python", "-m", "pip", "install", "--quiet", wheel)
    return bin_directory


def test_the_wheel_is_abi3_typed_and_holds_nothing_else(wheel: Path) -> None:
    assert "-cp311-abi3-" in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert "kvlab/py.typed" in names
    assert "kvlab/_core.pyi" in names
    assert any(name.startswith("kvlab/_core.") and name.endswith(".so") for name in names)
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} <= {"kvlab", "kvlab.libs"}
    # Data, too: prompts, and the pages of the server.
    sources = {
        path.relative_to(ROOT / "python").as_posix()
        for path in ROOT.glob("python/kvlab/**/*")
        if path.is_file() and path.suffix not in {".pyc", ".so"}
    }
    assert "kvlab/serve/observe/page/index.html" in sources
    assert sources <= names


def test_the_wheel_imports_without_torch(installed: Path, tmp_path: Path) -> None:
    check = (
        "import importlib.util as u, sys, kvlab, json;"
        "print(json.dumps({'file': kvlab.__file__, 'info': kvlab.build_info(),"
        " 'size': kvlab.parse_size('2GiB'), 'torch_here': u.find_spec('torch') is not None,"
        " 'torch_imported': 'torch' in sys.modules}))"
    )
    # -I: neither the working directory nor PYTHONPATH can stand in for the installed package.
    result = json.loads(run(installed / "python", "-I", "-c", check, cwd=tmp_path))
    assert Path(result["file"]).is_relative_to(installed.parent)
    assert result["info"]["profile"] == "release"
    assert result["size"] == 2 << 30
    assert not result["torch_here"]
    assert not result["torch_imported"]


def test_the_installed_command_runs(installed: Path, tmp_path: Path) -> None:
    version = json.loads(run(installed / "kvlab", "version", "--json", cwd=tmp_path))
    assert version["profile"] == "release"
    size = run(
        installed / "kvlab",
        *("size", "--layers", "30", "--kv-heads", "3", "--head-dim", "64"),
        *("--dtype", "fp32", "--json"),
        cwd=tmp_path,
    )
    assert "46080" in json.dumps(json.loads(size))


def test_the_sdist_is_a_complete_locked_workspace(dist: Path, tmp_path: Path) -> None:
    with tarfile.open(only(list(dist.glob("kvlab-*.tar.gz")))) as archive:
        archive.extractall(tmp_path, filter="data")
    top = only(list(tmp_path.iterdir()))
    for name in ("Cargo.lock", "Cargo.toml", "pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        assert (top / name).is_file(), name
    for source in TREE:
        assert (top / source.relative_to(ROOT)).is_file(), source
    pyproject = tomllib.loads((top / "pyproject.toml").read_text())
    manifest = top / pyproject["tool"]["maturin"]["manifest-path"]
    assert manifest.is_file()
    if shutil.which("cargo") is None:
        pytest.skip("cargo reads the workspace; `make test` has it")
    # --locked fails if the lock file does not fit the manifests that were packed.
    run("cargo", "metadata", "--locked", "--format-version=1", "--manifest-path", manifest)
