"""Check the relative links and anchors of the Markdown files: `python scripts/check_links.py`.

A link must lead to a file of this repository, and its anchor to a heading of that file. Links to
other sites are not followed: a check that needs the network fails for reasons that are not ours.
"""

from __future__ import annotations

import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parent.parent
FENCE = re.compile(r"^(```|~~~).*?^\1[^\n]*$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`[^`\n]*`")
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
LINK = re.compile(r"!?\[(?:[^\]\[]|\[[^\]]*\])*\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*\s*$", re.MULTILINE)
ELSEWHERE = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)


def markdown_files() -> list[Path]:
    """The Markdown files that are, or are about to be, in the repository."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [path for line in listing.stdout.splitlines() if (path := ROOT / line).is_file()]


@cache
def anchors(path: Path) -> frozenset[str]:
    """The anchors that a Markdown renderer makes of the headings of a file."""
    text = COMMENT.sub("", FENCE.sub("", path.read_text(encoding="utf-8")))
    found: set[str] = set()
    for heading in HEADING.findall(text):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        base = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        name, count = base, 0
        while name in found:
            count += 1
            name = f"{base}-{count}"
        found.add(name)
    return frozenset(found)


def broken_links(path: Path) -> list[str]:
    """What is wrong with the links of one file."""
    text = CODE.sub("", COMMENT.sub("", FENCE.sub("", path.read_text(encoding="utf-8"))))
    wrong = []
    for target in LINK.findall(text):
        if ELSEWHERE.match(target):
            continue
        name, _, anchor = unquote(target).partition("#")
        file = (path.parent / name).resolve() if name else path
        if not file.exists():
            wrong.append(f"{target}: no such file")
        elif not file.is_relative_to(ROOT):
            wrong.append(f"{target}: leads out of the repository")
        elif anchor and file.suffix == ".md" and anchor not in anchors(file):
            wrong.append(f"{target}: no such heading")
    return wrong


def main() -> int:
    """Prints every broken link; the exit code is 1 if there is one."""
    files = markdown_files()
    wrong = [
        f"{path.relative_to(ROOT)}: {problem}" for path in files for problem in broken_links(path)
    ]
    print("\n".join([*wrong, f"{len(files)} Markdown files, {len(wrong)} broken links"]))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
