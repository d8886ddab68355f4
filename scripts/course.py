"""Make docs/course/README.md anew from the syllabus: `python scripts/course.py`.

With --check nothing is written; the exit code is 1 if the page is another.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from kvlab.course.markdown import page
from kvlab.course.syllabus import load

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "course" / "README.md"


def main() -> int:
    """Writes the page, or says whether it is up to date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    text = page(load())
    name = PAGE.relative_to(ROOT)
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == text:
        print(f"{name}: as it was")
        return 0
    if check:
        print(f"{name}: not what the syllabus says; run python scripts/course.py")
        return 1
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(text, encoding="utf-8")
    print(f"{name}: changed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
