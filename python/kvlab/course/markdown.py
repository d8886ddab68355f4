"""The course as Markdown: docs/course/README.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvlab.course.syllabus import Build, Checkpoint, Essay, Reading

if TYPE_CHECKING:
    from kvlab.course.syllabus import Item, Layer, Module, Syllabus

__all__ = ["page"]

_TOP = "../../"
"""From docs/course to the top of the repository."""

_HEAD = """
<!-- Made of python/kvlab/course/syllabus.toml by `python scripts/course.py`: change it there. -->

{summary}

**The one rule.** {rule}

```sh
kvlab course                                   # what there is, and how much of it is resident
kvlab course show 0.1                          # a module in full
kvlab course run 0.1 --quick                   # its toys; pictures go into course-out
kvlab course check 0.1                         # its checkpoints, against kvlab's references
kvlab course check 0.1 --mine my_attention.py  # the same, against your own functions
kvlab course done 0.1.R1 0.1.E                 # what you did; `undo` takes it back
kvlab course page                              # this page with boxes to tick, as one file
```

Items are called by their module: `0.1.R1` is a reading, `0.1.E` the essay, `0.1.B1` a build, and `0.1.A` to `0.1.D` are
checkpoints. A checkpoint is run by `kvlab course check` where it says so; otherwise it is a question with an answer
behind a fold. One that your own function passes (`--mine`) is marked as done; the rest is yours to say. What is done is
*resident*, what is not is *cold*: the bar fills as a cache does.

What is done is kept in `$KVLAB_COURSE_STATE`, else `$XDG_STATE_HOME/kvlab/course.json`, else
`~/.local/state/kvlab/course.json`: `{{"kvlab_course": 1, "done": {{"0.1.A": "2026-01-31T12:00:00+00:00"}}}}`. It is
replaced whole or not at all.

Three builds are the **bricks of the capstone**: what you write there is what kvlab is made of.

{bricks}

The toys need torch and matplotlib (`pip install -e '.[hf,plot]'`), some the small model that the demo uses; none a GPU.
Readings are named with the number and year of a paper or the version of a project; *moved* says what is no longer where
it was.
"""


def page(syllabus: Syllabus) -> str:
    """The whole page, as it is committed."""
    lines = [
        f"# {syllabus.title}",
        _HEAD.strip("\n").format(
            summary=syllabus.summary, rule=syllabus.rule, bricks=_bricks(syllabus)
        ),
    ]
    for layer in syllabus.layers:
        lines += _layer(layer)
    return "\n\n".join(lines) + "\n"


def _bricks(syllabus: Syllabus) -> str:
    rows = [
        f"| `{build.id}` {build.title} | {build.brick} | {', '.join(_link(file) for file in build.code)} |"
        for build in syllabus.bricks
    ]
    return "\n".join(["| build | brick | in kvlab |", "| --- | --- | --- |", *rows])


def _layer(layer: Layer) -> list[str]:
    parts = [f"## Layer {layer.id}: {layer.title}", layer.summary]
    for module in layer.modules:
        parts += _module(module)
    return parts


def _module(module: Module) -> list[str]:
    def listed(items: tuple[Item, ...]) -> str:
        return "\n".join(_item(item) for item in items)

    objectives = "\n".join(f"- {each}" for each in module.objectives)
    return [
        f"### {module.id} {module.title}",
        module.summary,
        f"You can afterwards:\n\n{objectives}",
        f"**Read**\n\n{listed(module.readings)}",
        f"**Write**\n\n{listed((module.essay,))}",
        f"**Build**\n\n{listed(module.builds)}",
        f"**Show**\n\n{listed(module.checkpoints)}",
    ]


def _item(item: Item) -> str:
    box = f"- [ ] `{item.id}` "
    match item:
        case Reading():
            title = f"[{item.title}]({item.url or _TOP + str(item.file)})"
            moved = f" *Moved:* {item.moved}." if item.moved else ""
            return f"{box}{title}, {item.where}: {item.part}.{moved}"
        case Essay():
            points = [*item.points]
            if item.reference:
                points.append(f"the reference essay: {_link(item.reference)}")
            return f"{box}**{item.title}.** {item.task}\n{_fold('Written yours?', points)}"
        case Build():
            return _build(box, item)
        case Checkpoint():
            return _checkpoint(box, item)
        case _:
            raise TypeError(type(item).__name__)


def _build(box: str, item: Build) -> str:
    said = [f"{box}**{item.title}**{' (stretch)' if item.stretch else ''}. {item.task}"]
    if item.brick:
        said.append(f"**Brick:** {item.brick}.")
    if item.toy:
        said.append(f"To compare with: {_link(f'toys/{item.toy}.py')}.")
    if item.notebook:
        said.append(f"{_link(item.notebook)}.")
    if item.command:
        said.append(f"Run `{item.command}`.")
    text = " ".join(said)
    if item.reference:
        text += "\n" + _fold("Built yours?", [_link(item.reference)])
    return text


def _checkpoint(box: str, item: Checkpoint) -> str:
    if item.answer:
        return f"{box}{item.title}\n{_fold('Answer', [item.answer])}"
    run = f"`kvlab course check {item.id}`"
    if item.mine:
        return f"{box}{item.title} {run}; `--mine` with `{item.mine}`: {item.interface}."
    return f"{box}{item.title} {run}."


def _link(file: str) -> str:
    return f"[{file}]({_TOP}{file})"


def _fold(summary: str, lines: list[str]) -> str:
    inside = lines[0] if len(lines) == 1 else "\n".join(f"  - {line}" for line in lines)
    indent = "  " if len(lines) == 1 else ""
    return f"  <details><summary>{summary}</summary>\n\n{indent}{inside}\n\n  </details>"
