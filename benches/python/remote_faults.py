"""What each mishap of the shared server costs a request, beside a store that has no shared server at all.

A prefix lies on a Redis server of this machine. In each round, for each mishap in turn, a server with that content is
started, a store with nothing of its own is opened on it, and a request with the prefix and some new tokens runs to its
first token. Mishaps come before the request, between its look-up and its reads, or when half of the bytes were read.
The arm `no L4` computes everything; a mishap's added latency is its time less that of `no L4` in the same round. That
arm runs a second time in each round, as a mishap of nothing: what it seems to add is the noise of the machine.

The logits have to be those of a cold model bit for bit, and the counters have to name what happened: the exit code is
1 otherwise.

    python benches/python/remote_faults.py --out artifacts/remote_faults/measured.json
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import redis
import torch
from faulty_proxy import Fault, Proxy, damages, drips, garbage, hangs, late, slow
from report import Report

import kvlab
from kvlab import hf
from kvlab.demo.prompt import prompt
from kvlab.remote.server import LocalServer, local_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

NO_L4 = "no L4"
# Beside the time-out, what a store grants each byte that it asks for.
SECONDS_PER_BYTE = 20e-9
SLOW_LINK = 5e6


@dataclass
class Scene:
    """A server with the prefix on it, for one request.

    Attributes:
        rig: What the arms share.
        server: The server.
        stack: Ends what is begun here.
        strike: Done when the store is open and its request is about to begin.
    """

    rig: Rig
    server: LocalServer
    stack: ExitStack
    strike: Callable[[], None] = lambda: None

    def client(self) -> redis.Redis:
        """A connection beside the store's."""
        client: redis.Redis = redis.Redis(self.server.host, self.server.port)
        self.stack.callback(client.close)
        return client

    def kill(self) -> None:
        """Ends the server; nobody listens at its port."""
        self.server.process.kill()
        self.server.process.wait()

    def through(self, fault: Fault) -> str:
        """The URL of a proxy in front of the server."""
        address = (self.server.host, self.server.port)
        return self.stack.enter_context(Proxy(address, fault)).url


def killed_before(scene: Scene) -> str:
    """Nobody listens."""
    scene.strike = scene.kill
    return scene.server.url


def hung_before(scene: Scene) -> str:
    """The server takes connections and answers nothing."""
    scene.strike = lambda: scene.server.process.send_signal(signal.SIGSTOP)
    return scene.server.url


def killed(scene: Scene, after: int) -> str:
    """The server ends while it is asked."""

    def strike(proxy: Proxy) -> None:
        scene.kill()
        proxy.close_links()

    return scene.through(Fault(strike, after=after))


def restarted(scene: Scene) -> str:
    """The server ends between look-up and read, and an empty one is there in its place."""
    empty = scene.stack.enter_context(local_server())

    def strike(proxy: Proxy) -> None:
        scene.kill()
        proxy.server = (empty.host, empty.port)
        proxy.close_links()

    return scene.through(Fault(strike))


def flushed(scene: Scene) -> str:
    """Somebody else says FLUSHALL between look-up and read."""
    client = scene.client()

    def strike(_: Proxy) -> None:
        client.flushall()

    return scene.through(Fault(strike))


def out_of_memory(scene: Scene) -> str:
    """The server takes no more values, and evicts none."""
    scene.client().config_set("maxmemory", 1)
    return scene.server.url


@dataclass(frozen=True)
class Arm:
    """One mishap.

    Attributes:
        name: What happens.
        url: Brings it about, or prepares it; the store's ``remote``.
        counted: Counters of which one at least has to have counted it; none for one where nothing may be counted.
        may: Nothing has to be counted, and anything may: it is up to the machine whether the bytes come in time.
        writes: Whether the store has tried to write another prompt to that server before.
    """

    name: str
    url: Callable[[Scene], str | None]
    counted: tuple[str, ...] = ()
    may: bool = False
    writes: bool = False


def _faulty(passes: Callable[..., None], *, at_once: bool = False) -> Callable[[Scene], str]:
    return lambda scene: scene.through(Fault(passes=passes, after=None if at_once else 0))


ARMS = (
    Arm("no L4, again", lambda _: None),
    Arm("well", lambda scene: scene.server.url),
    Arm("well, through the proxy", lambda scene: scene.through(Fault())),
    Arm("killed before", killed_before, ("refused",)),
    Arm("hung before", hung_before, ("timeouts",)),
    Arm("killed between look-up and read", lambda scene: killed(scene, 0), ("refused",)),
    Arm("killed half-way", lambda scene: killed(scene, scene.rig.half), ("refused",)),
    Arm("hung between look-up and read", _faulty(hangs), ("timeouts",)),
    Arm(
        "hung half-way",
        lambda scene: scene.through(Fault(passes=hangs, after=scene.rig.half)),
        ("timeouts",),
    ),
    Arm("flushed between look-up and read", flushed, ("gone",)),
    Arm("restarted empty in between", restarted, ("gone", "refused")),
    Arm("garbage as an answer", _faulty(garbage), ("protocol",)),
    Arm(
        "garbage half-way",
        lambda scene: scene.through(Fault(passes=garbage, after=scene.rig.half)),
        ("corrupt", "protocol"),
    ),
    Arm(
        "a damaged value",
        lambda scene: scene.through(Fault(passes=damages(), after=scene.rig.half)),
        ("corrupt",),
    ),
    Arm("a byte every 20 ms", _faulty(drips), ("timeouts",)),
    Arm(
        "every answer late by 0.8 time-outs",
        lambda scene: scene.through(Fault(passes=late(0.8 * scene.rig.timeout), after=None)),
        ("timeouts",),
    ),
    Arm(
        "every read late by 0.8 time-outs",
        lambda scene: scene.through(Fault(passes=late(0.8 * scene.rig.timeout))),
        may=True,
    ),
    Arm("a link of 5 MB/s", _faulty(slow(SLOW_LINK), at_once=True), may=True),
    Arm("out of memory", out_of_memory, ("out_of_memory",), writes=True),
)


@dataclass(frozen=True)
class Outcome:
    """One request.

    Attributes:
        ttft: Seconds to the first token.
        l4_tokens: Tokens that came from the server.
        equal: Whether the logits are those of the cold model.
        counts: Errors by kind, `gone` and `corrupt`: those that are not 0.
        state: The breaker's; empty without a server.
        aborted: Whether the forward was begun anew because a layer did not come.
    """

    ttft: float
    l4_tokens: int
    equal: bool
    counts: dict[str, int]
    state: str
    aborted: bool


@dataclass
class Rig:
    """The model, the prompt, and what of it lies on each server.

    Attributes:
        model: A transformers model.
        ids: ``[1, tokens]``: the prefix and the new tokens.
        prefix: Tokens of the prefix.
        timeout: Seconds of a store's `remote_timeout`.
        chunk: The chunk grid, in tokens: cold and restored answers are equal bit for bit.
    """

    model: Any
    ids: Tensor
    prefix: int
    timeout: float = 0.25
    chunk: int = 256
    _values: dict[bytes, bytes] = field(default_factory=dict)
    _cold: Tensor = field(default_factory=lambda: torch.empty(0))

    def __post_init__(self) -> None:
        """Computes the prefix for all servers, and the cold answer."""
        with local_server() as server, redis.Redis(server.host, server.port) as client:
            with self._store(server.url, timeout=30.0) as writer:
                session = hf.attach(self.model, writer, chunk_tokens=self.chunk)
                # One token more, so that all chunks of the prefix are whole.
                session.prefill(self.ids[:, : self.prefix + 1])
                writer.flush()
            keys: Any = client.keys()
            values: Any = client.mget(keys)
            self._values = dict(zip(keys, values, strict=True))
        with self._store(None) as store:
            session = hf.attach(self.model, store, chunk_tokens=self.chunk, restore="never")
            self._cold = session.prefill(self.ids, keep=False).logits.clone()
        with torch.inference_mode():
            plain = self.model(self.ids, logits_to_keep=1).logits
        if not torch.equal(plain.argmax(-1).flatten(), self._cold.argmax(-1).flatten()):
            raise RuntimeError("without kvlab the first token is another one")

    @property
    def payload(self) -> int:
        """Bytes of the runs on a server, headers included."""
        return sum(len(value) for key, value in self._values.items() if b":r:" in key)

    @property
    def half(self) -> int:
        """Bytes after which half of the prefix was read."""
        return self.payload // 2

    def _store(self, url: str | None, *, timeout: float | None = None) -> kvlab.Store:
        return kvlab.Store.open(
            None,
            l1="256MiB",
            l2="64MiB",
            remote=url,
            remote_timeout=self.timeout if timeout is None else timeout,
        )

    def run(self, arm: Arm) -> Outcome:
        """One request, with a server and a store of its own."""
        with ExitStack() as stack:
            server = stack.enter_context(local_server())
            scene = Scene(self, server, stack)
            values: Any = self._values
            scene.client().mset(values)
            url = arm.url(scene)
            store = stack.enter_context(self._store(url))
            session = stack.enter_context(
                hf.attach(self.model, store, chunk_tokens=self.chunk, restore="always")
            )
            # The weights are hashed before the clock runs.
            _ = session.namespace
            if arm.writes:
                session.prefill(self.ids[:, : self.chunk + 1].flip(1))
                store.flush()
            scene.strike()
            answer = session.prefill(self.ids, keep=False)
            report, remote = answer.report, store.stats()["remote"]
            counts: dict[str, int] = {}
            if remote is not None:
                errors: Any = remote["errors"]
                counts = {**errors, "gone": remote["gone"], "corrupt": remote["corrupt"]}
            return Outcome(
                ttft=report.ttft_ms / 1e3,
                l4_tokens=report.hit_tokens.l4,
                equal=torch.equal(answer.logits, self._cold),
                counts={name: count for name, count in counts.items() if count},
                state="" if remote is None else remote["servers"][0]["state"],
                aborted=report.aborted_forwards > 0,
            )


def wrong(arm: Arm, outcome: Outcome) -> Iterator[str]:
    """What must not be: a wrong answer, or counters that do not say what happened."""
    if not outcome.equal:
        yield f"{arm.name}: the logits are not those of the cold model"
    counted = sum(outcome.counts.get(name, 0) for name in arm.counted)
    if arm.counted and not counted:
        yield f"{arm.name}: none of {arm.counted} counted, but {outcome.counts}"
    if not arm.counted and not arm.may and outcome.counts:
        yield f"{arm.name}: nothing happened, and {outcome.counts} was counted"


def spread(samples: list[float]) -> dict[str, float]:
    """The median, the least and the most."""
    return {"median": statistics.median(samples), "least": min(samples), "most": max(samples)}


def measure(rig: Rig, rounds: int) -> tuple[dict[str, list[Outcome]], list[str]]:
    """Lets the arms take turns; every outcome by arm, and what was wrong."""
    arms = (Arm(NO_L4, lambda _: None), *ARMS)
    outcomes: dict[str, list[Outcome]] = {arm.name: [] for arm in arms}
    problems: list[str] = []
    for arm in arms[:3]:  # warm-up: computed twice, restored once
        problems += wrong(arm, rig.run(arm))
    for round_ in range(rounds):
        # The order turns, so that no arm always follows the same one.
        turn = round_ * 5 % len(arms)
        for arm in arms[turn:] + arms[:turn]:
            outcome = rig.run(arm)
            problems += wrong(arm, outcome)
            outcomes[arm.name].append(outcome)
    return outcomes, problems


def row(outcomes: list[Outcome], base: list[Outcome], timeout: float) -> dict[str, Any]:
    """An arm, summed up."""
    added = [one.ttft - other.ttft for one, other in zip(outcomes, base, strict=True)]
    names = sorted({name for outcome in outcomes for name in outcome.counts})
    return {
        "ttft_seconds": spread([outcome.ttft for outcome in outcomes]),
        "added_seconds": spread(added),
        "added_timeouts": spread([each / timeout for each in added]),
        "l4_tokens": spread([outcome.l4_tokens for outcome in outcomes]),
        "counted": {
            name: spread([outcome.counts.get(name, 0) for outcome in outcomes]) for name in names
        },
        "breaker": sorted({outcome.state for outcome in outcomes}),
        "aborted_forwards": sum(outcome.aborted for outcome in outcomes),
        "equal": all(outcome.equal for outcome in outcomes),
    }


def main() -> None:
    """Runs the bench."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="rounds after the warm-up")
    parser.add_argument("--tokens", type=int, default=512, help="of the prefix")
    parser.add_argument("--new", type=int, default=20, help="tokens behind the prefix")
    parser.add_argument("--timeout", type=float, default=0.25, help="seconds, of remote_timeout")
    parser.add_argument("--model", default="smollm2-135m", help="name, path or hub id")
    parser.add_argument("--out", type=Path, help="where to write what was measured, as JSON")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    report = Report("Mishaps of the shared server", {**vars(arguments), "out": ""})
    model, tokenizer = hf.load(arguments.model)
    ids = prompt(tokenizer, arguments.tokens, 1)[:, : arguments.tokens + arguments.new]
    rig = Rig(model, ids, arguments.tokens, arguments.timeout)
    outcomes, problems = measure(rig, arguments.rounds)
    base = outcomes[NO_L4]
    rows = {name: row(each, base, rig.timeout) for name, each in outcomes.items()}
    for name, each in outcomes.items():
        report.add(f"first token, {name}", [[1e3 * one.ttft for one in each]], unit="ms")
    for name, each in list(outcomes.items())[1:]:
        added = [one.ttft - other.ttft for one, other in zip(each, base, strict=True)]
        times = [seconds / rig.timeout for seconds in added]
        known = ", ".join(
            f"{key} {value['median']:g}" for key, value in rows[name]["counted"].items()
        )
        tokens = rows[name]["l4_tokens"]["median"]
        known = f"{tokens:g} tokens from L4; {known or 'nothing counted'}"
        report.add(f"added, {name}", [times], unit="time-outs", known=known)
    noise, bound = rows["no L4, again"]["added_timeouts"], rig.payload * SECONDS_PER_BYTE
    report.remarks += [
        f"* what happened. A time-out is {rig.timeout:g} s; all {rig.payload / 1e6:.1f} MB have {bound:.2f} s more.",
        "Added latencies are taken round by round.",
        f"Noise: a second request without L4 seems to add {noise['least']:.2f} to {noise['most']:.2f} time-outs.",
    ]
    report.print(as_json=arguments.json)
    if arguments.out is not None:
        result = {
            "model": arguments.model,
            "threads": torch.get_num_threads(),
            "prefix_tokens": arguments.tokens,
            "new_tokens": ids.shape[1] - arguments.tokens,
            "payload_bytes": rig.payload,
            "rounds": arguments.rounds,
            "timeout_seconds": rig.timeout,
            "arms": [{"arm": name, **each} for name, each in rows.items()],
        }
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if problems:
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    main()
