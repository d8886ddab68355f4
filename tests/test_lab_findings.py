"""artifacts/: what is committed is what its script makes."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="the 'plot' extra is not installed")

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import lab_artifacts
import lab_pages


def test_the_default_sweep_is_made_again_to_the_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lab_artifacts, "ROOT", tmp_path)
    lab_pages.default_sweep()
    made, kept = tmp_path / "default_sweep", ROOT / "artifacts" / "default_sweep"
    tables = [path.name for path in kept.iterdir() if path.suffix == ".csv"]
    assert {"results.csv", "headlines.csv", "engines_differ.csv"} == set(tables)
    for name in ("config.json", "results.json", *tables):
        assert (made / name).read_bytes() == (kept / name).read_bytes(), name


def test_every_row_says_that_it_is_simulated() -> None:
    for path in (ROOT / "artifacts").glob("*/*.csv"):
        with path.open(encoding="utf-8", newline="") as file:
            origins = {row["origin"] for row in csv.DictReader(file)}
        assert origins == {"simulated"}, path
