"""Agents: planners that work step by step, sub-agents with roles, and agents forked from one context."""

from __future__ import annotations

from kvlab.errors import InvalidArgumentError
from kvlab.workload.generators.script import Script, Talk, check, system, user

__all__ = ["fanout", "planner", "subagent"]

_PLANNER = (
    "You are a coding agent. You work in small steps: think, call one tool, read its result, go on. "
    "A call is one line of JSON with the name of the tool and its arguments. You stop when the tests "
    "pass and say what you changed."
)
_ROLES = {
    "researcher": (
        "You are the researcher of a team of agents. You read, you search and you report; you never "
        "change a file. Your report names files and lines."
    ),
    "tester": (
        "You are the tester of a team of agents. You run tests, you narrow down failures, and you "
        "report the smallest case that fails, with its output."
    ),
    "reviewer": (
        "You are the reviewer of a team of agents. You look at a change with fresh eyes and list what "
        "could break, the worst first, each with the line that shows it."
    ),
    "writer": (
        "You are the writer of a team of agents. You turn notes into a short text for people who use "
        "the package and do not read its code."
    ),
}
_MAIN = (
    "You lead a team of agents. You give each piece of work to one of them, wait for the report, and "
    "decide what comes next. You do not touch files yourself."
)


def planner(
    *,
    plans: int = 6,
    steps: int = 6,
    system_tokens: int = 1_200,
    observation_tokens: int = 200,
    tool_gap_ms: float = 1_500.0,
    arrival_ms: float = 15_000.0,
    seed: int = 103,
) -> Script:
    """A planner thinks, calls a tool and reads its result, over and over, in a context that grows.

    Args:
        plans: Tasks.
        steps: Requests of each.
        system_tokens: Tokens of the instructions and tools that all have, about.
        observation_tokens: Tokens of a tool's result, about.
        tool_gap_ms: Median time that a tool takes.
        arrival_ms: Mean time between two tasks.
        seed: What all choices come from.

    Raises:
        InvalidArgumentError: a count below 1.
    """
    check(plans=plans, steps=steps, system_tokens=system_tokens)
    check(observation_tokens=observation_tokens)
    script = Script(seed, arrival_ms)
    coding = script.coding
    shared = system(script.keep("system", f"{_PLANNER}\n\n{coding.tools(system_tokens)}"))
    for number in range(plans):
        talk = Talk(script, f"plan-{number:02}", shared)
        klass, content = "plan", coding.bug()
        for step in range(steps):
            reply = coding.call() if step < steps - 1 else None
            gap = script.gap(tool_gap_ms)
            talk.ask(klass, user(content), max_tokens=96, reply=reply, gap_ms=gap)
            klass = "step" if step < steps - 2 else "conclude"
            content = f"Result:\n{coding.output(observation_tokens)}"
    return script


def subagent(
    *,
    sessions: int = 4,
    delegations: int = 4,
    steps: int = 3,
    roles: int = 4,
    system_tokens: int = 800,
    role_tokens: int = 1_000,
    observation_tokens: int = 120,
    tool_gap_ms: float = 1_500.0,
    arrival_ms: float = 15_000.0,
    seed: int = 107,
) -> Script:
    """A main agent hands work to sub-agents, each of which begins with the template of its role.

    Args:
        sessions: Main agents.
        delegations: Sub-agents that each calls, one after the other.
        steps: Requests of a sub-agent.
        roles: Templates, 1 to 4; the first are called more often.
        system_tokens: Tokens of the main agents' system prompt, about.
        role_tokens: Tokens of a template, about.
        observation_tokens: Tokens of a tool's result, about.
        tool_gap_ms: Median time that a tool takes.
        arrival_ms: Mean time between two main agents.
        seed: What all choices come from.

    Raises:
        InvalidArgumentError: a count below 1, or more roles than there are.
    """
    check(sessions=sessions, delegations=delegations, steps=steps, roles=roles)
    check(system_tokens=system_tokens, role_tokens=role_tokens)
    check(observation_tokens=observation_tokens)
    if roles > len(_ROLES):
        raise InvalidArgumentError(f"roles = {roles}: there are {len(_ROLES)} templates")
    script = Script(seed, arrival_ms)
    coding = script.coding
    names = tuple(_ROLES)[:roles]
    shared = system(script.keep("main", f"{_MAIN}\n\n{coding.tools(system_tokens)}"))
    templates = {
        name: system(script.keep(name, f"{_ROLES[name]}\n\n{coding.tools(role_tokens)}"))
        for name in names
    }
    weights = [1.0 / (place + 1) for place in range(len(names))]
    for number in range(sessions):
        main = Talk(script, f"main-{number:02}", shared)
        content = coding.bug()
        ended: tuple[str, ...] = ()
        for call in range(delegations):
            role = script.rng.choices(names, weights)[0]
            order = f"To the {role}: {coding.order()}, and {coding.order()}."
            gap = script.gap(tool_gap_ms)
            asked = main.ask(
                "main", user(content), max_tokens=96, reply=order, gap_ms=gap, waits_for=ended
            )
            name = f"main-{number:02}-{role}-{call}"
            sub = Talk(script, name, templates[role], start=asked)
            task = user(f"{order}\nReport in a few sentences.")
            for step in range(steps):
                said = coding.call() if step < steps - 1 else None
                sub.ask(role, task, max_tokens=96, reply=said, gap_ms=script.gap(tool_gap_ms))
                task = user(f"Result:\n{coding.output(observation_tokens)}")
            ended = (sub.last,)
            content = f"Report of the {role}:\n{coding.thoughts(60)}"
        main.ask("main", user(content), max_tokens=96, gap_ms=0.0, waits_for=ended)
    return script


def fanout(
    *,
    contexts: int = 3,
    agents: int = 5,
    steps: int = 2,
    system_tokens: int = 600,
    context_tokens: int = 1_600,
    observation_tokens: int = 120,
    tool_gap_ms: float = 1_500.0,
    arrival_ms: float = 60_000.0,
    seed: int = 131,
) -> Script:
    """Agents are forked from one context, work at the same time, and are joined.

    Args:
        contexts: How often that happens.
        agents: Agents that go on from one context.
        steps: Requests of each agent.
        system_tokens: Tokens of the system prompt that all have, about.
        context_tokens: Tokens of the material of a context, about.
        observation_tokens: Tokens of a tool's result, about.
        tool_gap_ms: Median time that a tool takes.
        arrival_ms: Mean time between two contexts.
        seed: What all choices come from.

    Raises:
        InvalidArgumentError: a count below 1.
    """
    check(contexts=contexts, agents=agents, steps=steps, system_tokens=system_tokens)
    check(context_tokens=context_tokens, observation_tokens=observation_tokens)
    script = Script(seed, arrival_ms)
    coding = script.coding
    shared = system(script.keep("system", f"{_PLANNER}\n\n{coding.tools(system_tokens)}"))
    for number in range(contexts):
        root = Talk(script, f"context-{number:02}", shared)
        material = coding.output(context_tokens)
        question = f"{coding.bug()}\n\nWhat we have so far:\n{material}"
        plan = coding.thoughts(60)
        parent = root.ask("context", user(question), max_tokens=96, reply=plan)
        ended = []
        for agent in range(agents):
            fork = Talk(script, f"context-{number:02}-agent-{agent}", start=parent, fork=True)
            content = f"You are agent {agent + 1} of {agents}. Your part: {coding.order()}."
            gap = 0.0
            for step in range(steps):
                said = coding.call() if step < steps - 1 else None
                fork.ask("agent", user(content), max_tokens=96, reply=said, gap_ms=gap)
                gap, content = (
                    script.gap(tool_gap_ms),
                    f"Result:\n{coding.output(observation_tokens)}",
                )
            ended.append(fork.last)
        reports = "\n".join(f"Agent {at + 1}: {coding.thought()}" for at in range(agents))
        root.ask(
            "join", user(f"Reports:\n{reports}\nDecide."), max_tokens=96, waits_for=tuple(ended)
        )
    return script
