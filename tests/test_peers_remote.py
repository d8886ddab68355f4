"""The remote side-by-side bench at a tiny size: the arms that need nothing extra on a real server, summary, picture."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")
pytest.importorskip("matplotlib")
pytest.importorskip("transformers")
pytest.importorskip("redis")

BENCHES = Path(__file__).parent.parent / "benches"
sys.path.insert(0, str(BENCHES))

from peers import cycle, schedule
from peers.arm import About, MissingError
from peers.remote import by_hand, picture, prefix, services, summary, turn
from peers.remote.__main__ import main
from peers.remote.arms import ARMS
from peers.schedule import Outcome
from peers.summary import Figure

SHAPE = prefix.shape_of(2048, layers=2)
NOTICED = {
    "remote.kvlab_l4:Runs",
    "remote.kvlab_l4:Blocks",
    "remote.kvlab_l4:Prefixes",
    "remote.kvlab_l4:CompressedPrefixes",
    "remote.kvlab_l4:Layers",
    "remote.by_hand:TorchSaveGzip",
}
SERVED = {
    "remote.by_hand:Sockets",
    "remote.by_hand:Gets",
    "remote.by_hand:Pipelined",
    "remote.here:Folder",
    "remote.here:Memory",
}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[services.Services]:
    place = tmp_path_factory.mktemp("services")
    with services.running(place, mooncake=False) as found:
        yield found


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prefix") / "prefix"
    prefix.make_up(path, SHAPE)
    return path


def task(arm: str, running: services.Services, file: Path, **more: bool) -> turn.RemoteTask:
    return turn.RemoteTask(
        arm=arm,
        shape=SHAPE,
        directory="",
        services=running,
        prefix=str(file),
        reads=2,
        lookups=2,
        **more,
    )


@pytest.mark.parametrize("arm", sorted(NOTICED | SERVED))
def test_an_arm_gives_back_what_it_was_given_and_knows_the_names_that_are_there(
    arm: str, running: services.Services, file: Path, tmp_path: Path
) -> None:
    samples = task(arm, running, file).perform(tmp_path)
    assert len(samples.read) == 2
    assert all(seconds > 0 for seconds in [samples.write, *samples.read])
    assert len(samples.lookup) == (2 if cycle.load(arm).asks else 0)  # type: ignore[attr-defined]
    compressed = arm in {"remote.kvlab_l4:CompressedPrefixes", "remote.by_hand:TorchSaveGzip"}
    assert samples.stored_bytes > SHAPE.prompt_bytes * (0.5 if compressed else 1) * 0.99


@pytest.mark.parametrize("arm", sorted(NOTICED | SERVED))
def test_a_flipped_byte_at_the_other_end(
    arm: str, running: services.Services, file: Path, tmp_path: Path
) -> None:
    verdict = task(arm, running, file, integrity=True).perform(tmp_path)
    assert verdict.startswith("noticed" if arm in NOTICED else "SERVED")


def test_an_emptied_server_has_nothing(
    running: services.Services, file: Path, tmp_path: Path
) -> None:
    arm = by_hand.Gets(tmp_path, SHAPE)
    arm.services = running
    arm.open()
    arm.write(0, prefix.Prefix(SHAPE, file))
    arm.wipe()
    with pytest.raises(MissingError):
        arm.read(0)
    arm.close()


def test_the_prefix_is_laid_out_by_token(tmp_path: Path) -> None:
    parts = [torch.randn(3, 2048, 64) for _ in range(SHAPE.parts)]
    prefix.save(tmp_path / "prefix", parts)
    found = prefix.Prefix(SHAPE, tmp_path / "prefix")
    for part, laid in zip(parts, found.tensors(), strict=True):
        assert torch.equal(laid.view(2048, 3, 64)[7, 2], part[2, 7].bfloat16())
    with pytest.raises(ValueError, match="no prompt 1"):
        found.select(1)


def test_ratios_are_taken_round_by_round(tmp_path: Path) -> None:
    def outcome(name: str, reads: list[float], integrity: str) -> Outcome:
        rounds = [turn.RemoteSamples(0.1, [read], [1e-4], 10, 0) for read in reads]
        about = About(name, f"the {name}", "a layer", "")
        return Outcome(f"x:{name}", about, "1", list(rounds), integrity)

    outcomes = [
        outcome("sockets", [0.01, 0.02], "SERVED"),
        outcome("kvlab", [0.02, 0.01], "noticed: a miss"),
        outcome("broken", [0.02], ""),
    ]
    outcomes[2].not_run = "RuntimeError: it is not here\nmore"
    rows = summary.summarise(outcomes, SHAPE)
    ours = rows[1]
    assert ours.to_sockets == Figure(1.25, 0.5, 2.0)
    assert ours.to_ours == Figure(1.0, 1.0, 1.0)
    assert rows[2].read is None
    table = summary.markdown(rows)
    assert "- the broken: RuntimeError: it is not here\n" in table
    json.dumps(summary.as_dict(rows))
    picture.draw(rows, tmp_path / "picture.svg")
    drawn = (tmp_path / "picture.svg").read_text()
    assert "served wrong bytes" in drawn
    assert "bare sockets" in drawn


def test_the_command_writes_what_it_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Turns in processes of their own are tested with the bench of the disk.
    monkeypatch.setattr(schedule, "turn", lambda task: task.perform(tmp_path))
    said = CliRunner().invoke(
        main,
        [
            *("--rounds", "1", "--reads", "1", "--payload", "random", "--layers", "2"),
            *("--arms", "sockets,kvlab,mooncake", "--output", str(tmp_path)),
        ],
    )
    assert said.exit_code == 0, said.output
    result = json.loads((tmp_path / "remote.json").read_text())
    rows = {row["name"]: row for row in result["rows"]}
    assert set(rows) == {"sockets", "kvlab", "mooncake"}
    assert rows["kvlab"]["integrity"].startswith("noticed")
    assert rows["kvlab"]["read"]["median"] > 0
    # Where it is not installed its row says why.
    assert rows["mooncake"]["read"] or "mooncake" in rows["mooncake"]["not_run"]
    assert "bare sockets" in (tmp_path / "remote.md").read_text()
    assert "bare sockets" in (tmp_path / "remote.svg").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tokens", "2050"], "multiple of 256"),
        (["--layers", "2"], "the model has 30"),
        (["--arms", "nobody"], "no arm is called"),
    ],
)
def test_what_cannot_be_run_is_refused(arguments: list[str], said: str, tmp_path: Path) -> None:
    found = CliRunner().invoke(main, [*arguments, "--output", str(tmp_path)])
    assert found.exit_code == 2
    assert said in found.output


def test_every_arm_is_named_once() -> None:
    names = [cycle.load(arm).about.name for arm in ARMS]
    assert len(set(names)) == len(names)
