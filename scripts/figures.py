"""Draws docs/figures from docs/measurements; the same measurements give the same bytes. `make figures`."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "toys"))


def main(out: Path) -> None:
    """Draws each measurement with the toy that made it."""
    import common

    out.mkdir(exist_ok=True, parents=True)
    for measured in sorted((ROOT / "docs" / "measurements").glob("*.json")):
        toy = importlib.import_module(measured.stem)
        common.save(toy.draw(json.loads(measured.read_text())), out / f"{measured.stem}.svg")
        print(out / f"{measured.stem}.svg")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "figures")
