"""What the course consists of, read from `syllabus.toml`."""

from __future__ import annotations

import difflib
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from string import ascii_uppercase
from typing import Any

from kvlab.errors import InvalidArgumentError

__all__ = ["Build", "Checkpoint", "Essay", "Item", "Layer", "Module", "Reading", "Syllabus", "load"]


@dataclass(frozen=True, kw_only=True)
class Item:
    """Something to be done.

    Attributes:
        id: Such as `0.1.R1`, `0.1.E`, `0.1.B1` or `0.1.A`.
        title: A line.
    """

    id: str
    title: str

    @property
    def kind(self) -> str:
        """`reading`, `essay`, `build` or `checkpoint`."""
        return type(self).__name__.lower()


@dataclass(frozen=True, kw_only=True)
class Reading(Item):
    """Something to read.

    Attributes:
        where: What pins it: number and year of a paper, version of a project.
        url: Its address; None for a file of the repository.
        file: That file.
        part: What of it.
        moved: What is no longer as it says; None if nothing is known to be.
    """

    where: str
    part: str
    url: str | None = None
    file: str | None = None
    moved: str | None = None


@dataclass(frozen=True, kw_only=True)
class Essay(Item):
    """Something to write.

    Attributes:
        task: What about.
        points: What a good one has; behind the fold.
        reference: The file of the reference essay, if there is one; behind the fold.
    """

    task: str
    points: tuple[str, ...]
    reference: str | None = None


@dataclass(frozen=True, kw_only=True)
class Build(Item):
    """Something to build.

    Attributes:
        task: What it does when it is done.
        toy: The one to compare with: `toys/NAME.py`.
        command: What else to run.
        notebook: What to open and fill in.
        brick: What of kvlab it is, if it is one of the capstone's three bricks.
        code: Where in kvlab.
        reference: The file of the reference; behind the fold.
        stretch: Whether the course goes on without it.
    """

    task: str
    toy: str | None = None
    command: str | None = None
    notebook: str | None = None
    brick: str | None = None
    code: tuple[str, ...] = ()
    reference: str | None = None
    stretch: bool = False


@dataclass(frozen=True, kw_only=True)
class Checkpoint(Item):
    """Something to know or to show. It has a check, a toy that raises if its claim does not hold, or an answer.

    Attributes:
        check: `FILE.FUNCTION` of `kvlab.course.checks`.
        toy: `toys/NAME.py`.
        answer: Behind the fold.
        mine: The function or class of the learner's own that the check can be held against, with its arguments.
        interface: What goes into it and what comes out.
    """

    check: str | None = None
    toy: str | None = None
    answer: str | None = None
    mine: str | None = None
    interface: str | None = None

    @property
    def mine_name(self) -> str | None:
        """The name of what the learner's file has to define."""
        return None if self.mine is None else self.mine.partition("(")[0]


@dataclass(frozen=True, kw_only=True)
class Module:
    """A part of a layer.

    Attributes:
        id: Such as `0.1`.
        title: A few words.
        summary: A sentence or two.
        objectives: What can be done afterwards.
        readings: What to read.
        essay: What to write.
        builds: What to build.
        checkpoints: What to show.
    """

    id: str
    title: str
    summary: str
    objectives: tuple[str, ...]
    readings: tuple[Reading, ...]
    essay: Essay
    builds: tuple[Build, ...]
    checkpoints: tuple[Checkpoint, ...]

    @property
    def items(self) -> tuple[Item, ...]:
        """All that is to be done, in its order."""
        return (*self.readings, self.essay, *self.builds, *self.checkpoints)

    @property
    def toys(self) -> tuple[str, ...]:
        """The names of its toys."""
        return tuple(build.toy for build in self.builds if build.toy is not None)


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A third of the course.

    Attributes:
        id: A digit.
        title: A few words.
        summary: A sentence.
        modules: Its parts.
    """

    id: str
    title: str
    summary: str
    modules: tuple[Module, ...]

    @property
    def items(self) -> tuple[Item, ...]:
        """All that is to be done, in its order."""
        return tuple(item for module in self.modules for item in module.items)


@dataclass(frozen=True, kw_only=True)
class Syllabus:
    """The course.

    Attributes:
        title: Its name.
        summary: For whom it is.
        rule: The one rule.
        layers: Its parts.
    """

    title: str
    summary: str
    rule: str
    layers: tuple[Layer, ...]

    @property
    def modules(self) -> tuple[Module, ...]:
        """Of all layers."""
        return tuple(module for layer in self.layers for module in layer.modules)

    @property
    def items(self) -> tuple[Item, ...]:
        """All that is to be done, in its order."""
        return tuple(item for layer in self.layers for item in layer.items)

    @property
    def bricks(self) -> tuple[Build, ...]:
        """The builds that the capstone is made of."""
        return tuple(item for item in self.items if isinstance(item, Build) and item.brick)

    def item(self, name: str) -> Item:
        """The item of an id.

        Raises:
            InvalidArgumentError: there is none; the message lists the near ones.
        """
        found: dict[str, Item] = {item.id: item for item in self.items}
        if name not in found:
            raise _unknown("item", name, list(found))
        return found[name]

    def module(self, name: str) -> Module:
        """The module of an id.

        Raises:
            InvalidArgumentError: there is none; the message lists the near ones.
        """
        found = {module.id: module for module in self.modules}
        if name not in found:
            raise _unknown("module", name, list(found))
        return found[name]

    def checkpoints(self, name: str | None = None) -> tuple[Checkpoint, ...]:
        """The checkpoints of the course, of a module, or the one of an id.

        Raises:
            InvalidArgumentError: neither a module nor a checkpoint has that id; the message lists the near ones.
        """
        by_module = {module.id: module.checkpoints for module in self.modules}
        everything = tuple(each for found in by_module.values() for each in found)
        if name is None:
            return everything
        chosen = by_module | {each.id: (each,) for each in everything}
        if name not in chosen:
            raise _unknown("module or checkpoint", name, list(chosen))
        return chosen[name]


def _unknown(what: str, name: str, known: list[str]) -> InvalidArgumentError:
    """Names the rest of the same module, or else what is spelt alike."""
    module = ".".join(name.split(".")[:2])
    near = [each for each in known if each.startswith(f"{module}.")]
    near = near or sorted(difflib.get_close_matches(name.upper(), known, n=6, cutoff=0.5))
    told = (
        f"near: {', '.join(near)}"
        if near
        else f"they are called as {known[0]} is; `kvlab course` lists them"
    )
    return InvalidArgumentError(f"no {what} {name!r} in the course; {told}")


@cache
def load() -> Syllabus:
    """The syllabus that comes with kvlab."""
    text = files("kvlab.course").joinpath("syllabus.toml").read_text(encoding="utf-8")
    return read(tomllib.loads(text))


def read(content: dict[str, Any]) -> Syllabus:
    """A syllabus of the content of its file.

    Raises:
        TypeError, KeyError, ValueError: the file is not what its head says.
    """
    modules = [_module(each) for each in content["modules"]]
    layers = [
        Layer(**each, modules=tuple(m for m in modules if m.id.partition(".")[0] == each["id"]))
        for each in content["layers"]
    ]
    made = Syllabus(**_without(content, "layers", "modules"), layers=tuple(layers))
    if len(made.modules) != len(modules):
        raise ValueError("a module belongs to no layer")
    return made


def _module(content: dict[str, Any]) -> Module:
    name: str = content["id"]
    parts = ("objectives", "readings", "essay", "builds", "checkpoints")
    letters = ascii_uppercase[:4]  # E is the essay
    return Module(
        **_without(content, *parts),
        objectives=tuple(content["objectives"]),
        readings=tuple(
            Reading(id=f"{name}.R{number}", **each)
            for number, each in enumerate(content["readings"], 1)
        ),
        essay=Essay(
            id=f"{name}.E", **content["essay"] | {"points": tuple(content["essay"]["points"])}
        ),
        builds=tuple(
            Build(id=f"{name}.B{number}", **each | {"code": tuple(each.get("code", ()))})
            for number, each in enumerate(content["builds"], 1)
        ),
        checkpoints=tuple(
            Checkpoint(id=f"{name}.{letter}", title=each["task"], **_without(each, "task"))
            for letter, each in zip(
                letters[: len(content["checkpoints"])], content["checkpoints"], strict=True
            )
        ),
    )


def _without(content: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in content.items() if name not in names}
