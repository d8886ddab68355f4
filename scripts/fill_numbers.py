"""Fills the numbers of the docs in from what was measured: `python scripts/fill_numbers.py`.

A number in a text of docs/ stands between two marks, and what stands there is made anew:

    <!-- m:FILE:PATH:FORMAT -->value<!-- /m -->

- FILE names docs/measurements/FILE.json, or, with a slash in it, a JSON file by its path from the
  root of the repository.
- PATH leads to one number or text: keys with dots between them, `[2]` (or `.2`) for the entry of a
  list, and `[tokens=512]` or `[arm=naive&tokens=512]` for the one entry that has these values.
  `PATH / PATH`, or `PATH / FILE:PATH`, is a quotient.
- FORMAT is Python's format spec, maybe with a unit behind it: `.1f MiB` divides bytes by 2**20,
  `.0f ms` multiplies seconds by 1,000, and both write the unit, too.

What another page measured is quoted, and has to stand in that page word for word, bold or not:

    <!-- q:README.md -->13.8<!-- /q -->

No line begins with a mark: a line that begins with a comment ends a paragraph in Markdown.

With --check nothing is written; the exit code is 1 if a text says something else.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
NUMBER = re.compile(r"(<!-- m:([^:\s]+:[^<>\n]+?):([^:<>\n]+) -->)([^<\n]*)(<!-- /m -->)")
QUOTE = re.compile(r"<!-- q:(\S+) -->([^<\n]*)<!-- /q -->")
MARK = re.compile(r"<!-- (/?)([mq])\b")
BEGINS_A_LINE = re.compile(r"^[\s>*+-]*<!-- [mq]:.*", re.MULTILINE)
STEP = re.compile(r"\.?([^.\[\]]+)|\[([^\[\]]+)\]")
UNITS = {
    "kB": 1e3,
    "MB": 1e6,
    "GB": 1e9,
    "G": 1e9,
    "KiB": 2.0**10,
    "MiB": 2.0**20,
    "GiB": 2.0**30,
    "ms": 1e-3,
    "us": 1e-6,
    "%": 1e-2,
}


class NumberError(Exception):
    """A mark that says nothing: its file, path or format is wrong, or the quoted page has changed."""


@cache
def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _load(name: str, root: Path) -> Any:
    path = root / (name if "/" in name else f"docs/measurements/{name}.json")
    if not path.is_file():
        raise NumberError(f"no such measurement: {path.relative_to(root)}; run make measure")
    return _read(path)


def _entry(values: Any, wanted: str) -> Any:
    """The entry of a list: by its index, or the only one with these fields."""
    if not isinstance(values, list):
        raise NumberError(f"[{wanted}] asks for an entry of a list, of which there is none")
    if "=" not in wanted:
        try:
            return values[int(wanted)]
        except (ValueError, IndexError):
            raise NumberError(f"no entry [{wanted}] in a list of {len(values)}") from None
    fields = [field.split("=", 1) for field in wanted.split("&")]
    found = [
        entry
        for entry in values
        if isinstance(entry, dict) and all(str(entry.get(key)) == said for key, said in fields)
    ]
    if len(found) != 1:
        raise NumberError(f"{len(found)} entries with {wanted}; a path leads to one")
    return found[0]


def look_up(measured: Any, path: str) -> Any:
    """What a path leads to in a measurement.

    Raises:
        NumberError: there is no such thing, or it is neither a number nor a text.
    """
    found, end = measured, 0
    while end < len(path):
        step = STEP.match(path, end)
        if step is None:
            raise NumberError(f"{path!r} cannot be read behind {path[:end]!r}")
        key, wanted = step.groups()
        end = step.end()
        if wanted is not None or isinstance(found, list):
            found = _entry(found, wanted or key)
        elif isinstance(found, dict) and key in found:
            found = found[key]
        else:
            known = f"there are {', '.join(found)}" if isinstance(found, dict) else "it has no keys"
            raise NumberError(f"no {key!r} in {path!r}: {known}")
    if isinstance(found, bool) or not isinstance(found, (int, float, str)):
        raise NumberError(f"{path!r} is no number and no text but {type(found).__name__}")
    return found


def value(source: str, spec: str, root: Path = ROOT) -> str:
    """The text for a mark's FILE:PATH and FORMAT.

    Raises:
        NumberError: they lead nowhere.
    """
    over, *under = source.split(" / ")
    file, _, path = over.partition(":")
    found = look_up(_load(file, root), path)
    for part in under:
        other, colon, rest = part.partition(":")
        divisor = look_up(_load(other if colon else file, root), rest if colon else other)
        if isinstance(found, str) or isinstance(divisor, str) or divisor == 0:
            raise NumberError(f"{source!r}: {found!r} cannot be divided by {divisor!r}")
        found /= divisor
    spec, _, unit = spec.partition(" ")
    if unit and (unit not in UNITS or isinstance(found, str)):
        raise NumberError(f"{found!r} in {unit!r}: units of numbers are {', '.join(UNITS)}")
    try:
        return f"{found / UNITS[unit]:{spec}} {unit}" if unit else f"{found:{spec}}"
    except ValueError as error:
        raise NumberError(f"{found!r} does not go into the format {spec!r}: {error}") from None


def filled(text: str, root: Path = ROOT) -> str:
    """The text with the numbers that were measured.

    Raises:
        NumberError: a mark leads nowhere or is not closed, or a quote does not stand in its page.
    """
    whole = len(NUMBER.findall(text)) + len(QUOTE.findall(text))
    opened = [mark.end() for mark in MARK.finditer(text) if not mark[1]]
    closed = [mark.end() for mark in MARK.finditer(text) if mark[1]]
    if not whole == len(opened) == len(closed):
        raise NumberError(f"{len(opened)} marks, {len(closed)} ends, but {whole} whole ones")
    if first := BEGINS_A_LINE.search(text):
        raise NumberError(
            f"a mark begins a line, which would end its paragraph: {first[0].strip()}"
        )
    for page, said in QUOTE.findall(text):
        file = root / page
        if not file.is_file() or said not in file.read_text(encoding="utf-8").replace("**", ""):
            raise NumberError(f"{page} does not say {said!r}")
    return NUMBER.sub(lambda mark: f"{mark[1]}{value(mark[2], mark[3], root)}{mark[5]}", text)


def differences(before: str, after: str) -> list[str]:
    """Each number that a text says otherwise than was measured."""
    return [
        f"line {before.count(chr(10), 0, old.start()) + 1}: {old[2]} is {new[4]}, not {old[4]}"
        for old, new in zip(NUMBER.finditer(before), NUMBER.finditer(after), strict=True)
        if old[4] != new[4]
    ]


def main() -> int:
    """Fills in all pages of docs/, or says which numbers are others."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    wrong = 0
    for page in sorted((ROOT / "docs").rglob("*.md")):
        before = page.read_text(encoding="utf-8")
        name = page.relative_to(ROOT)
        try:
            after = filled(before)
        except NumberError as error:
            print(f"{name}: {error}")
            wrong += 1
            continue
        changed = differences(before, after)
        for difference in changed:
            print(f"{name}: {difference}")
        if check:
            wrong += len(changed)
        elif changed:
            page.write_text(after, encoding="utf-8")
    if wrong:
        print(f"{wrong} to mend" + ("; run python scripts/fill_numbers.py" if check else ""))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
