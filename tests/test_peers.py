"""The side-by-side bench at a tiny size: the arms that need nothing extra, the schedule, the summary."""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")
pytest.importorskip("matplotlib")
pytest.importorskip("transformers")

BENCHES = Path(__file__).parent.parent / "benches"
sys.path.insert(0, str(BENCHES))

from peers import cycle, disk, machine, picture, schedule, summary, trees
from peers.cycle import Task
from peers.payload import Payload, Shape, Tensors
from peers.ttft import session, table, turns

from tiny_models import build

SHAPE = Shape(tokens=256, layers=2, prompts=2)
ARMS = (
    "arms.files:BufferedFile",
    "arms.files:Safetensors",
    "arms.files:TorchSave",
    "arms.kvlab_store:Runs",
    "arms.kvlab_store:Blocks",
)


@pytest.fixture
def own_threads() -> Iterator[None]:
    """The bench sets torch's threads, which are part of a namespace: other tests go on with their own number."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory on a disk: what is in memory only has no cold read."""
    base = Path(tempfile.gettempdir())
    if machine.describe(base)["file_system"] == "tmpfs":
        base = BENCHES.parent / "target"
        base.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=base) as name:
        yield Path(name)


@pytest.mark.parametrize("name", ARMS)
def test_an_arm_gives_back_what_it_was_given(name: str, place: Path) -> None:
    samples = cycle.measure(cycle.load(name)(place, SHAPE), Payload(SHAPE))
    assert len(samples.acknowledged) == len(samples.cold) == len(samples.warm) == SHAPE.prompts
    assert samples.disk_bytes >= SHAPE.bytes


@pytest.mark.parametrize(
    ("name", "verdict"),
    [
        ("arms.files:BufferedFile", "SERVED"),
        ("arms.files:Safetensors", "SERVED"),
        ("arms.kvlab_store:Runs", "noticed"),
        ("arms.kvlab_store:Blocks", "noticed"),
    ],
)
def test_a_flipped_byte(name: str, verdict: str, place: Path) -> None:
    shape = dataclasses.replace(SHAPE, prompts=1)
    found = cycle.integrity(cycle.load(name)(place, shape), Payload(shape))
    assert found.startswith(verdict)


def test_prompts_differ_and_come_back_in_any_order() -> None:
    payload = Payload(SHAPE)
    first = payload.select(0).copy()
    second = payload.select(1).copy()
    assert (first != second).mean() > 0.9
    assert (payload.select(0) == first).all()
    assert payload.differing(payload.tensors()) == 0
    tensors: Tensors = [each.clone() for each in payload.tensors()]
    tensors[3].view(torch.int32)[5, 7] ^= 1
    assert payload.differing(tensors) == 1


def test_dropping_makes_a_file_cold(place: Path) -> None:
    path = place / "deep" / "file"
    path.parent.mkdir()
    path.write_bytes(bytes(1 << 20))
    assert disk.resident(path) == 1 << 20
    disk.sync(place)
    disk.drop(place)
    assert disk.resident(path) == 0
    assert disk.allocated(place) >= 1 << 20


def test_rounds_are_summed_up_and_what_did_not_run_is_named(place: Path, tmp_path: Path) -> None:
    outcomes = schedule.prepare(
        ["arms.files:BufferedFile", "arms.kvlab_store:Runs", "arms.embedded:Sled"]
    )
    # As where the Rust stores are not built.
    outcomes[2].not_run = "FileNotFoundError: not built"
    turns: list[str] = []
    task = Task(arm="", shape=SHAPE, directory=str(place))
    schedule.run(outcomes, task, 1, turns.append)
    assert [turn.rsplit(" ", 1)[1] for turn in turns] == [
        *("buffered", "kvlab"),
        *("kvlab", "buffered"),  # the order turns
        *("buffered", "kvlab"),  # integrity
    ]
    assert [len(outcome.rounds) for outcome in outcomes] == [1, 1, 0]
    assert not list(place.iterdir())
    rows = summary.summarise(outcomes, SHAPE)
    table = summary.markdown(rows)
    assert "sled, values inline: FileNotFoundError: not built" in table
    assert table.count("\n| ") == 3
    json.dumps(summary.as_dict(rows))
    picture.draw(rows, tmp_path / "picture.svg")
    assert "served wrong bytes" in (tmp_path / "picture.svg").read_text()


def test_an_arm_that_fails_drops_out_with_its_reason(place: Path) -> None:
    outcomes = schedule.prepare(["arms.files:BufferedFile"])
    task = Task(arm="", shape=SHAPE, directory=str(place / "missing"))
    schedule.run(outcomes, task, 1, lambda _: None)
    assert "FileNotFoundError" in outcomes[0].not_run
    assert summary.summarise(outcomes, SHAPE)[0].cold is None


def test_every_tree_here_finds_what_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trees, "PROMPT", 1_600 + 64)
    kvlab_tree, *others = trees.run(rounds=1, groups=1, leaves=32, evictions=4)
    assert not kvlab_tree.not_run
    assert all(tree.not_run or tree.match for tree in others)
    assert len(kvlab_tree.match) == len(kvlab_tree.insert) == len(kvlab_tree.evict) == 1
    assert "kvlab.RadixCache" in summary.markdown_trees([kvlab_tree, *others], leaves=32)


class TinySession(session.SessionFp32):
    """The engine as it is, with a model that needs no download."""

    def load(self) -> object:
        return build("llama")


@pytest.mark.usefixtures("own_threads")
def test_a_session_answers_alike_restored_and_never_evicted_and_notices_damage(place: Path) -> None:
    engine = TinySession(place, longest=256)
    prefix, turn = [index % 200 for index in range(256)], [3, 1, 4, 1, 5]
    assert engine.keep(prefix) > 0
    for _ in range(2):
        _, restored = engine.restored(prefix, turn)
        _, never_evicted = engine.never_evicted(prefix, turn)
        assert restored == never_evicted
    verdict = engine.damaged(prefix, turn)
    assert verdict.startswith("noticed: 0 tokens restored")
    engine.close()


def test_an_engine_that_cannot_start_is_named_with_its_reason(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(turns.TITLES, "absent:Engine", "an absent engine")
    outcomes = turns.run(["absent:Engine"], [16, 32], 1, place, lambda _: None)
    assert [outcome.tokens for outcome in outcomes] == [16, 32]
    shown = table.markdown(outcomes)
    for tokens in (16, 32):
        assert f"- an absent engine, {tokens} tokens: ModuleNotFoundError" in shown
    assert not list(place.iterdir())


def test_first_tokens_are_ratios_round_by_round(tmp_path: Path) -> None:
    outcome = turns.Outcome("ours", 512, "1", 5_000_000)
    outcome.computed, outcome.restored = [2.0, 6.0, 3.0], [1.0, 2.0, 0.5]
    outcome.never_evicted, outcome.integrity = [1.0, 1.0, 0.5], "noticed"
    row = table.markdown([outcome]).splitlines()[2]
    assert "| 3.0 (2.0-6.0) | 1.00 (1.00-2.00) | 3000 (2000-6000) |" in row
    table.draw([outcome], tmp_path / "picture.svg")
    assert "ours, 512" in (tmp_path / "picture.svg").read_text()
