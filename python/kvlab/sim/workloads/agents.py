"""Requests as agents send them, for prefix mode, and as pages for page mode.

The shapes follow what is published of agent traffic: tools and system prompt of thousands of
tokens, contexts that only grow, gaps of about a second after a tool and of minutes before a human,
sub-agents that share a template. All of it is drawn from `random.Random(seed)`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable

from kvlab.errors import InvalidArgumentError
from kvlab.sim.request import Request
from kvlab.sim.workloads.prompt import Prompt

__all__ = [
    "multi_turn_tools",
    "planner_fanout",
    "rag_reordered",
    "shared_system_prompt",
    "sub_agents",
]

TOOL_GAP_MS = 1_000.0
"""The median time between a tool call and the request that brings its result."""

HUMAN_GAP_MS = 120_000.0
"""The median time until a human answers."""


def shared_system_prompt(
    *,
    users: int = 32,
    turns: int = 4,
    system_tokens: int = 2_000,
    user_tokens: int = 60,
    output_tokens: int = 120,
    arrival_ms: float = 4_000.0,
    block_tokens: int = 16,
    seed: int = 101,
) -> list[Request]:
    """Many users chat behind one system prompt.

    Args:
        users: Conversations.
        turns: Requests of each.
        system_tokens: Tokens that all share.
        user_tokens: Tokens of a user's message, on average.
        output_tokens: Tokens of an answer, on average.
        arrival_ms: Mean time between two users' first requests.
        block_tokens: Tokens of a block.
        seed: What all choices come from.

    Raises:
        InvalidArgumentError: a number that is below 1.
    """
    rng = _start(seed, users=users, turns=turns, system_tokens=system_tokens)
    requests = []
    begins = 0.0
    for user in range(users):
        begins += rng.expovariate(1.0 / arrival_ms)
        at, session = begins, f"user-{user}"
        prompt = Prompt(block_tokens).append("system", system_tokens)
        for turn in range(turns):
            prompt.append(f"{session} message {turn}", _around(rng, user_tokens))
            answer = _around(rng, output_tokens)
            requests.append(_request(at, prompt, answer, session, "chat"))
            prompt.append(f"{session} answer {turn}", answer)
            at += _gap(rng, HUMAN_GAP_MS)
    return _in_order(requests)


def planner_fanout(
    *,
    plans: int = 12,
    workers: int = 6,
    system_tokens: int = 4_000,
    task_tokens: int = 800,
    result_tokens: int = 400,
    arrival_ms: float = 20_000.0,
    block_tokens: int = 16,
    seed: int = 103,
) -> list[Request]:
    """A planner hands its whole context to workers, which run at once, and reads their results.

    Args:
        plans: Tasks.
        workers: Workers of each.
        system_tokens: Tokens that all plans share.
        task_tokens: Tokens of a task, on average.
        result_tokens: Tokens of a worker's result, on average.
        arrival_ms: Mean time between two tasks.
        block_tokens: Tokens of a block.
        seed: What all choices come from.

    Raises:
        InvalidArgumentError: a number that is below 1.
    """
    rng = _start(seed, plans=plans, workers=workers, system_tokens=system_tokens)
    requests = []
    at = 0.0
    for plan in range(plans):
        at += rng.expovariate(1.0 / arrival_ms)
        session = f"plan-{plan}"
        planner = Prompt(block_tokens).append("system", system_tokens)
        planner.append(f"{session} task", _around(rng, task_tokens))
        steps = _around(rng, 200)
        requests.append(_request(at, planner, steps, session, "planner"))
        planner.append(f"{session} steps", steps)
        results = []
        done = at
        for worker in range(workers):
            prompt = planner.fork().append(f"{session} worker {worker}", _around(rng, 80))
            result = _around(rng, result_tokens)
            begins = at + _gap(rng, TOOL_GAP_MS)
            name = f"{session} worker-{worker}"
            requests.append(_request(begins, prompt, result, name, "worker"))
            results.append((f"{name} result", result))
            done = max(done, begins + _gap(rng, 10 * TOOL_GAP_MS))
        for name, tokens in results:
            planner.append(name, tokens)
        requests.append(_request(done, planner, _around(rng, 300), session, "planner"))
    return _in_order(requests)


def sub_agents(
    *,
    sessions: int = 8,
    delegations: int = 6,
    roles: int = 4,
    role_tokens: int = 3_000,
    system_tokens: int = 6_000,
    steps: int = 5,
    arrival_ms: float = 15_000.0,
    block_tokens: int = 16,
    seed: int = 107,
) -> list[Request]:
    """A main agent delegates to sub-agents, each of which starts from its role's template.

    Args:
        sessions: Main agents.
        delegations: Sub-agents that each calls, one after the other.
        roles: Templates; the first are called more often.
        role_tokens: Tokens of a template.
        system_tokens: Tokens that all main agents share.
        steps: Requests of a sub-agent.
        arrival_ms: Mean time between two main agents.
        block_tokens: Tokens of a block.
        seed: What all choices come from.

    Raises:
        InvalidArgumentError: a number that is below 1.
    """
    rng = _start(seed, sessions=sessions, delegations=delegations, roles=roles, steps=steps)
    weights = [1.0 / (role + 1) for role in range(roles)]
    requests = []
    begins = 0.0
    for number in range(sessions):
        begins += rng.expovariate(1.0 / arrival_ms)
        at, session = begins, f"main-{number}"
        main = Prompt(block_tokens).append("main system", system_tokens)
        main.append(f"{session} task", _around(rng, 400))
        for call in range(delegations):
            order = _around(rng, 150)
            requests.append(_request(at, main, order, session, "main"))
            main.append(f"{session} order {call}", order)
            role = rng.choices(range(roles), weights=weights, k=1)[0]
            name = f"{session} sub-{call}"
            agent = Prompt(block_tokens).append(f"role {role}", role_tokens)
            agent.append(f"{session} order {call}", order)
            for step in range(steps):
                at += _gap(rng, TOOL_GAP_MS)
                said = _around(rng, 100)
                requests.append(_request(at, agent, said, name, f"role-{role}"))
                agent.append(f"{name} said {step}", said)
                agent.append(f"{name} tool {step}", _around(rng, 500))
            at += _gap(rng, TOOL_GAP_MS)
            main.append(f"{name} report", _around(rng, 250))
        requests.append(_request(at, main, _around(rng, 300), session, "main"))
    return _in_order(requests)


def multi_turn_tools(
    *,
    sessions: int = 16,
    turns: int = 5,
    tools_a_turn: int = 6,
    system_tokens: int = 8_000,
    tool_tokens: int = 600,
    arrival_ms: float = 30_000.0,
    block_tokens: int = 16,
    seed: int = 109,
) -> list[Request]:
    """Sessions of a coding agent: tool loops a second apart, and a human minutes later.

    Args:
        sessions: Sessions.
        turns: Messages of the human in each.
        tools_a_turn: Tool calls for a message, on average.
        system_tokens: Tokens of tools and system prompt, which all share.
        tool_tokens: Tokens of a tool's result, on average.
        arrival_ms: Mean time between two sessions' first requests.
        block_tokens: Tokens of a block.
        seed: What all choices come from.

    Raises:
        InvalidArgumentError: a number that is below 1.
    """
    rng = _start(seed, sessions=sessions, turns=turns, tools_a_turn=tools_a_turn)
    requests = []
    begins = 0.0
    for number in range(sessions):
        begins += rng.expovariate(1.0 / arrival_ms)
        at, session = begins, f"session-{number}"
        prompt = Prompt(block_tokens).append("tools and system", system_tokens)
        for turn in range(turns):
            prompt.append(f"{session} human {turn}", _around(rng, 80))
            for call in range(1 + _around(rng, tools_a_turn)):
                said = _around(rng, 150)
                kind = "human" if call == 0 else "tool"
                requests.append(_request(at, prompt, said, session, kind))
                prompt.append(f"{session} said {turn}.{call}", said)
                prompt.append(f"{session} result {turn}.{call}", _around(rng, tool_tokens))
                at += _gap(rng, TOOL_GAP_MS)
            at += _gap(rng, HUMAN_GAP_MS)
    return _in_order(requests)


def rag_reordered(
    *,
    requests: int = 200,
    passages: int = 64,
    passages_a_request: int = 5,
    passage_tokens: int = 320,
    system_tokens: int = 500,
    reorder: float = 0.5,
    arrival_ms: float = 1_000.0,
    block_tokens: int = 16,
    seed: int = 113,
) -> list[Request]:
    """Questions over passages of a corpus, whose order changes from request to request.

    The same passages in another order share nothing behind the first that differs: what any prefix
    cache loses here is what any-position reuse would win.

    Args:
        requests: Questions.
        passages: Passages of the corpus; popular as 1 / rank.
        passages_a_request: Different passages before each question.
        passage_tokens: Tokens of a passage.
        system_tokens: Tokens that all share.
        reorder: The part of requests whose passages come in random order; the others' stand by rank.
        arrival_ms: Mean time between two questions.
        block_tokens: Tokens of a block.
        seed: What all choices come from.

    Raises:
        InvalidArgumentError: a number that is below 1, more passages a request than there are, or
            `reorder` not 0 to 1.
    """
    rng = _start(seed, requests=requests, passages=passages, passages_a_request=passages_a_request)
    if passages_a_request > passages or not 0.0 <= reorder <= 1.0:
        message = (
            f"passages_a_request = {passages_a_request} of {passages}, reorder = {reorder}; use at "
            f"most all passages, and 0 to 1"
        )
        raise InvalidArgumentError(message)
    sent = []
    at = 0.0
    for number in range(requests):
        at += rng.expovariate(1.0 / arrival_ms)
        # The smallest of exponential times with these rates: weighted, without replacement.
        times = [(rng.expovariate(1.0 / (rank + 1)), rank) for rank in range(passages)]
        chosen = sorted(rank for _, rank in sorted(times)[:passages_a_request])
        if rng.random() < reorder:
            rng.shuffle(chosen)
        prompt = Prompt(block_tokens).append("system", system_tokens)
        for rank in chosen:
            prompt.append(f"passage {rank}", passage_tokens)
        prompt.append(f"question {number}", _around(rng, 40))
        sent.append(_request(at, prompt, _around(rng, 150), None, "rag"))
    return _in_order(sent)


def _start(seed: int, **counts: int) -> random.Random:
    for name, count in counts.items():
        if count < 1:
            message = f"{name} = {count}; use at least 1"
            raise InvalidArgumentError(message)
    return random.Random(seed)  # noqa: S311 - a workload, not a secret


def _around(rng: random.Random, mean: int) -> int:
    """A count that is half to one and a half of the mean, at least 1."""
    return max(1, round(mean * rng.uniform(0.5, 1.5)))


def _gap(rng: random.Random, median_ms: float) -> float:
    """A time whose logarithm is normal: some gaps are several times as long as most."""
    return median_ms * math.exp(rng.gauss(0.0, 0.8))


def _request(
    at: float, prompt: Prompt, output_tokens: int, session: str | None, category: str
) -> Request:
    return Request(
        at_ms=round(at, 3),
        blocks=prompt.blocks(),
        tokens=prompt.tokens,
        output_tokens=output_tokens,
        session=session,
        category=category,
    )


def _in_order(requests: Iterable[Request]) -> list[Request]:
    return sorted(requests, key=lambda request: request.at_ms)
