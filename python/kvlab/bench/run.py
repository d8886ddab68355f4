"""Runs: a workload in one mode or several, interleaved over rounds."""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from kvlab.bench.backend import RESTARTED, Backend, Mode, Service
from kvlab.bench.clock import VirtualTimeLoop
from kvlab.bench.conversation import Sent
from kvlab.bench.environment import environment
from kvlab.bench.report import Round, make
from kvlab.bench.schedule import Plan, play
from kvlab.errors import InvalidArgumentError
from kvlab.workload.schema import Message, Workload, WorkloadRequest, dumps

if TYPE_CHECKING:
    from kvlab.bench.outcome import Outcome

__all__ = ["RunOptions", "first", "run"]

_COLD: tuple[Mode, ...] = ("baseline", "generate", "none")
"""Modes without a cache, which say what computing takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """What is run.

    Attributes:
        modes: In the order of the first round; each further round begins with the next one.
        rounds: How often each mode is run, every time with empty caches.
        warmup: Requests of a text of their own before each round of a mode, that are not counted.
        plan: When requests are sent.
        percentiles: Of the times.
        goodput: Limits in milliseconds by name.
        machines: Of modes that run on some: the plan's concurrency is that of each machine.

    Raises:
        InvalidArgumentError: no mode, one twice, or a number that cannot be.
    """

    modes: tuple[Mode, ...]
    rounds: int = 1
    warmup: int = 1
    plan: Plan = field(default_factory=Plan)
    percentiles: tuple[float, ...] = (50.0, 95.0, 99.0)
    goodput: Mapping[str, float] = field(default_factory=dict)
    machines: Mapping[Mode, int] = field(default_factory=dict)

    def plan_of(self, mode: Mode) -> Plan:
        """When requests of a mode are sent."""
        concurrency = self.plan.concurrency
        if concurrency is None:
            return self.plan
        return replace(self.plan, concurrency=concurrency * self.machines.get(mode, 1))

    def __post_init__(self) -> None:
        if not self.modes or len(set(self.modes)) != len(self.modes):
            raise InvalidArgumentError(
                f"--modes {','.join(self.modes)}: name at least one mode, and each once"
            )
        if self.rounds < 1 or self.warmup < 0:
            raise InvalidArgumentError(
                f"rounds = {self.rounds}, warmup = {self.warmup}: use at least 1 and 0"
            )


def first(workload: Workload, count: int | None) -> Workload:
    """The first requests of a workload; all for None.

    Raises:
        InvalidArgumentError: fewer than one is asked for.
    """
    if count is None or count >= len(workload.requests):
        return workload
    if count < 1:
        raise InvalidArgumentError(f"--num-prompts {count}: use at least 1")
    return Workload(workload.header, workload.requests[:count])


def run(
    backend: Backend,
    workload: Workload,
    options: RunOptions,
    *,
    done: Callable[[Mode, Outcome], None] = lambda _mode, _outcome: None,
    now: float | None = None,
) -> dict[Mode, dict[str, Any]]:
    """Runs a workload.

    Args:
        backend: What requests are sent to.
        workload: The requests.
        options: How.
        done: Called with each outcome as it comes.
        now: Seconds since the epoch that name the run; by default the time of day.

    Returns:
        The report of each mode.

    Raises:
        KvlabError: a mode cannot be brought up or restarted. Requests that fail are outcomes.
    """
    loop = VirtualTimeLoop if backend.estimated else None
    with asyncio.Runner(loop_factory=loop) as runner:
        rounds = runner.run(_rounds(backend, workload, options, done))
    head = {
        "run": _run_name(workload, options, 0.0 if backend.estimated else now or time.time()),
        "modes_in_run": list(options.modes),
        "workload": describe(workload),
        "config": {
            **backend.describe(),
            "kv_bytes_per_token": backend.token_bytes,
            "concurrency": options.plan.concurrency,
            "rate": options.plan.rate,
            "burstiness": options.plan.burstiness,
            "recorded_arrivals": options.plan.recorded_arrivals,
            "delay_scale": options.plan.delay_scale,
            "replies": options.plan.replies,
            "restart_at": options.plan.restart_at,
            "seed": options.plan.seed,
            "warmup": options.warmup,
        },
        "environment": environment(),
    }
    cold = [
        outcome.row()
        for mode in _COLD
        if mode in rounds and backend.name != "live"
        for each in rounds[mode]
        for outcome in each.outcomes
    ]
    return {
        mode: make(
            rounds[mode],
            mode=mode,
            estimated=backend.estimated,
            head=head | ({"machines": options.machines[mode]} if options.machines else {}),
            percentiles=options.percentiles,
            goodput=options.goodput,
            reference=cold,
        )
        for mode in options.modes
    }


def describe(workload: Workload) -> dict[str, Any]:
    """What a report says of its workload."""
    header = workload.header
    return {
        "name": header.name,
        "generator": header.generator,
        "seed": header.seed,
        "requests": len(workload.requests),
        "sessions": len({request.session for request in workload.requests}),
        "classes": dict(Counter(request.klass for request in workload.requests)),
        "sha256": hashlib.sha256(dumps(workload).encode()).hexdigest(),
    }


async def _rounds(
    backend: Backend,
    workload: Workload,
    options: RunOptions,
    done: Callable[[Mode, Outcome], None],
) -> dict[Mode, list[Round]]:
    rounds: dict[Mode, list[Round]] = {mode: [] for mode in options.modes}
    for number in range(options.rounds):
        turn = number % len(options.modes)
        for mode in (*options.modes[turn:], *options.modes[:turn]):

            def settled(outcome: Outcome, mode: Mode = mode, number: int = number) -> None:
                done(mode, replace(outcome, round=number))

            async with backend.open(mode) as service:
                await _warm_up(service, options, number)
                await service.begin()
                played = await play(
                    workload,
                    service.send,
                    options.plan_of(mode),
                    middle=service.restart if mode in RESTARTED else None,
                    done=settled,
                )
                facts = await service.facts()
            rounds[mode].append(
                Round(
                    tuple(replace(outcome, round=number) for outcome in played.outcomes),
                    played.duration,
                    played.middle_seconds if mode in RESTARTED else None,
                    played.most_in_flight,
                    facts,
                )
            )
    return rounds


async def _warm_up(service: Service, options: RunOptions, number: int) -> None:
    """Requests whose text no workload begins with, so that they warm up all but the cache."""
    draw = random.Random(f"{options.plan.seed} {number}")  # noqa: S311 (words, not secrets)
    for count in range(options.warmup):
        words = " ".join(f"{draw.randrange(16**6):06x}" for _ in range(60))
        name = f"warm-up {count}"
        messages = (Message("user", f"{words} {name}"),)
        request = WorkloadRequest(
            id=name, klass="warm-up", session=name, messages=messages, max_tokens=4
        )
        await service.send(request, Sent(messages, 0.0))


def _run_name(workload: Workload, options: RunOptions, now: float) -> str:
    """The same for all modes of a run, and for no other run."""
    text = f"{now} {options} {workload.header.name}"
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def ideal(
    workload: Workload, chat: Any, block_tokens: int, reports: Sequence[dict[str, Any]]
) -> None:
    """Adds to reports what a cache without limits would have reused, in the model's own tokens.

    Args:
        workload: What was run, with recorded replies.
        chat: A `kvlab.workload.tokens.ChatTokenizer`.
        block_tokens: Tokens of a block.
        reports: Of its modes.
    """
    from kvlab.workload.reuse import ideal_reuse

    for report in reports:
        samples = report["samples"]
        sent = [
            (sent, name)
            for sent, name, number in zip(
                samples["sent_ms"], samples["request"], samples["round"], strict=True
            )
            if number == 0 and sent is not None
        ]
        if len(sent) < len(workload.requests):
            report["ideal_reuse"] = None  # some were never sent
            continue
        order = [name for _, name in sorted(sent, key=lambda pair: pair[0])]
        found = ideal_reuse(workload, chat, block_tokens=block_tokens, order=order)
        total = found.total
        report["ideal_reuse"] = {
            "tokenizer": found.tokenizer,
            "block_tokens": block_tokens,
            "prompt_tokens": total.prompt_tokens,
            "reused_tokens": total.reused_tokens,
            "ratio": round(total.share, 6),
            "classes": {klass: round(part.share, 6) for klass, part in found.by_class().items()},
        }
