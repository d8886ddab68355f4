"""Make `workloads/*.jsonl` anew, each from its own header: `python scripts/make_workloads.py`.

For a change of a generator. What was imported (`*.jsonl.gz`) stays as it is.
"""

from __future__ import annotations

from pathlib import Path

from kvlab.workload import dump, load
from kvlab.workload.generators import generate

FOLDER = Path(__file__).resolve().parent.parent / "workloads"


def main() -> None:
    """Writes every file whose bytes would be others."""
    for path in sorted(FOLDER.glob("*.jsonl")):
        before = path.read_bytes()
        header = load(path).header
        dump(generate(header.generator, seed=header.seed, name=header.name, **header.options), path)
        print(f"{path.name}: {'as it was' if path.read_bytes() == before else 'changed'}")


if __name__ == "__main__":
    main()
