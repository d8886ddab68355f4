"""Print the requirements of this project, one a line, for `pip install -r`.

`python scripts/requirements.py test` prints the base requirements and those of the extra `test`,
with the extras it refers to; `--build` prints what builds the project. So dependencies are
installed once, from pyproject.toml alone, without building the extension.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


def expand(extra: str, extras: dict[str, list[str]], own_name: str) -> list[str]:
    """The requirements of an extra; those that name this project's own extras are replaced."""
    lines = []
    for line in extras[extra]:
        own = re.fullmatch(rf"{own_name}\[(.+)\]", line)
        if own:
            for other in own[1].split(","):
                lines += expand(other.strip(), extras, own_name)
        else:
            lines.append(line)
    return lines


def main(arguments: list[str]) -> None:
    """Prints what the command line asks for."""
    with PYPROJECT.open("rb") as file:
        pyproject = tomllib.load(file)
    project = pyproject["project"]
    lines: list[str] = []
    for argument in arguments:
        if argument == "--build":
            lines += pyproject["build-system"]["requires"]
        else:
            lines += project["dependencies"]
            lines += expand(argument, project["optional-dependencies"], project["name"])
    print("\n".join(sorted(set(lines))))


if __name__ == "__main__":
    main(sys.argv[1:])
