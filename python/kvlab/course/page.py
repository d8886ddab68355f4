"""The course as one self-contained page with boxes to tick."""

from __future__ import annotations

import json
import re
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING

from kvlab import _html
from kvlab.course.progress import Standing, standing
from kvlab.course.syllabus import Build, Checkpoint, Essay, Reading

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kvlab.course.syllabus import Item, Layer, Module, Syllabus

__all__ = ["page"]


class _Writer:
    """Writes pieces of HTML.

    Attributes:
        done: What is done, by id.
        top: From the page to the top of the repository; None where there is none, and files are only named.
    """

    def __init__(self, done: Mapping[str, str], top: str | None) -> None:
        self.done = done
        self.top = top

    def layer(self, layer: Layer) -> str:
        modules = "".join(self.module(module) for module in layer.modules)
        return (
            f'<section data-part="{layer.id}."><h2>Layer {layer.id}: {escape(layer.title)}</h2>'
            f"<p>{_text(layer.summary)}</p>{_bar(standing(layer.items, self.done))}{modules}</section>"
        )

    def module(self, module: Module) -> str:
        objectives = "".join(f"<li>{_text(each)}</li>" for each in module.objectives)
        lists = "".join(
            f'<h4>{name}</h4><ul class="items">{"".join(self.item(item) for item in items)}</ul>'
            for name, items in (
                ("Read", module.readings),
                ("Write", (module.essay,)),
                ("Build", module.builds),
                ("Show", module.checkpoints),
            )
        )
        return (
            f'<section class="module" data-part="{module.id}."><h3>{module.id} {escape(module.title)}</h3>'
            f"<p>{_text(module.summary)}</p>{_bar(standing(module.items, self.done))}"
            f'<p class="soft">You can afterwards:</p><ul class="soft">{objectives}</ul>{lists}</section>'
        )

    def item(self, item: Item) -> str:
        ticked = " checked" if item.id in self.done else ""
        match item:
            case Reading():
                inside = self.reading(item)
            case Essay():
                inside = self.essay(item)
            case Build():
                inside = self.build(item)
            case Checkpoint():
                inside = self.checkpoint(item)
            case _:
                raise TypeError(type(item).__name__)
        return (
            f'<li><input type="checkbox" id="{item.id}" data-item{ticked}><div>'
            f'<label for="{item.id}"><code>{item.id}</code> {_text(item.title)}</label>{inside}</div></li>'
        )

    def reading(self, item: Reading) -> str:
        link = _link(item.where, item.url) if item.url else self.file(str(item.file))
        moved = f'<p class="moved"><b>Moved:</b> {_text(item.moved)}.</p>' if item.moved else ""
        return f"<p>{link}: {_text(item.part)}.</p>{moved}"

    def essay(self, item: Essay) -> str:
        points = [_text(each) for each in item.points]
        if item.reference:
            points.append(f"the reference essay: {self.file(item.reference)}")
        return f"<p>{_text(item.task)}</p>{_fold('Written yours?', points)}"

    def build(self, item: Build) -> str:
        lines = [f"{_text(item.task)}{' <i>(stretch)</i>' if item.stretch else ''}"]
        if item.brick:
            code = ", ".join(self.file(each) for each in item.code)
            lines.append(f'<span class="tag">brick</span> {_text(item.brick)}: {code}')
        if item.toy:
            lines.append(f"To compare with: {self.file(f'toys/{item.toy}.py')}")
        if item.notebook:
            lines.append(self.file(item.notebook))
        if item.command:
            lines.append(f"<code>{escape(item.command)}</code>")
        text = "".join(f"<p>{line}</p>" for line in lines)
        return text + (_fold("Built yours?", [self.file(item.reference)]) if item.reference else "")

    def checkpoint(self, item: Checkpoint) -> str:
        if item.answer:
            return _fold("Answer", [_text(item.answer)])
        command = f"<code>kvlab course check {item.id}</code>"
        if item.mine is None or item.interface is None:
            return f"<p>{command}</p>"
        return f"<p>{command}, with <code>--mine</code>: <code>{escape(item.mine)}</code>; {_text(item.interface)}.</p>"

    def file(self, path: str) -> str:
        return (
            f"<code>{escape(path)}</code>"
            if self.top is None
            else _link(path, f"{self.top}/{path}")
        )


def page(syllabus: Syllabus, done: Mapping[str, str], top: str | None) -> str:
    """The page.

    Args:
        syllabus: The course.
        done: What is done, by id: what is ticked until the reader ticks otherwise.
        top: The way from the page to the top of the repository, `/` between directories, or None.
    """
    writer = _Writer(done, top)
    known = sorted({item.id for item in syllabus.items} & set(done))
    bricks = ", ".join(_link(build.title, f"#{build.id}") for build in syllabus.bricks)
    parts = [
        f"<p>{_text(syllabus.summary)}</p><p><b>The one rule.</b> {_text(syllabus.rule)}</p>",
        f"<p><b>The bricks of the capstone:</b> {bricks}.</p>",
        f'<section data-part="">{_bar(standing(syllabus.items, done))}</section>',
        '<p id="kept" class="soft">Ticks are kept in this browser.</p>',
        '<div id="told" hidden><p class="soft">For <code>kvlab course</code> to know, too:</p><pre></pre></div>',
        "<noscript><p><b>Without scripts nothing that you tick is kept or counted.</b></p></noscript>",
        *(writer.layer(layer) for layer in syllabus.layers),
        f'<script type="application/json" id="seed">{json.dumps(known)}</script>',
        f"<script>{_own('page.js')}</script>",
    ]
    return _html.document(syllabus.title, "course", parts, style=_own("page.css"))


def _own(name: str) -> str:
    return files("kvlab.course").joinpath(name).read_text(encoding="utf-8")


def _bar(has: Standing) -> str:
    return (
        f'<p class="standing"><span class="bar" role="img" aria-label="share that is resident">'
        f'<i style="width:{100 * has.resident:.1f}%"></i></span> '
        f'<span class="count">{has}</span></p>'
    )


def _text(text: str) -> str:
    """Prose with `code` in it."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _link(text: str, address: str) -> str:
    return f'<a href="{escape(address)}">{escape(text)}</a>'


def _fold(summary: str, lines: Sequence[str]) -> str:
    inside = "".join(f"<li>{line}</li>" for line in lines)
    inside = f"<ul>{inside}</ul>" if len(lines) > 1 else f"<p>{lines[0]}</p>"
    return f"<details><summary>{summary}</summary>{inside}</details>"
