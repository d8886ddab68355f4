"""People who chat: one system prompt for all, conversations that come back, and nothing in common."""

from __future__ import annotations

from kvlab.errors import InvalidArgumentError
from kvlab.workload.generators.prose import sized
from kvlab.workload.generators.script import Script, Talk, check, system, user

__all__ = ["session", "shared_system_chat", "unique"]


def shared_system_chat(
    *,
    requests: int = 48,
    system_tokens: int = 2_000,
    output_tokens: int = 32,
    arrival_ms: float = 2_000.0,
    seed: int = 101,
) -> Script:
    """Short questions of many people behind one long system prompt.

    Args:
        requests: Questions, each of at most 32 tokens, in a conversation of its own.
        system_tokens: Tokens of the system prompt, about.
        output_tokens: The longest answer.
        arrival_ms: Mean time between two questions; 0 for one after the other.
        seed: What all choices come from.

    Raises:
        InvalidArgumentError: a count below 1.
    """
    check(requests=requests, system_tokens=system_tokens, output_tokens=output_tokens)
    script = Script(seed, arrival_ms)
    prose, domain = script.prose, script.domain()
    rules = sized(system_tokens, lambda: f"- {prose.rule(domain)}", "\n")
    shared = system(script.keep("system", f"{prose.opening(domain)}\n\nRules:\n{rules}"))
    for number in range(requests):
        talk = Talk(script, f"chat-{number:03}", shared)
        talk.ask("chat", user(prose.question(domain)), max_tokens=output_tokens)
    return script


def session(
    *,
    sessions: int = 6,
    turns: int = 8,
    system_tokens: int = 800,
    tool_tokens: int = 160,
    answer_tokens: int = 60,
    tool_share: float = 0.7,
    tool_gap_ms: float = 1_500.0,
    human_gap_ms: float = 120_000.0,
    arrival_ms: float = 20_000.0,
    seed: int = 109,
) -> Script:
    """Conversations that go on: seconds after a tool, minutes after a human.

    Args:
        sessions: Conversations.
        turns: Requests of each.
        system_tokens: Tokens of the system prompt that all have, about.
        tool_tokens: Tokens of a tool's result, about.
        answer_tokens: Tokens of an answer, about; the longest is half as long again.
        tool_share: The part of later turns that bring a tool's result; the others are a human's.
        tool_gap_ms: Median time that a tool takes.
        human_gap_ms: Median time until a human goes on.
        arrival_ms: Mean time between the first requests of two conversations.
        seed: What all choices come from.

    Raises:
        InvalidArgumentError: a count below 1, a share not from 0 to 1, or a negative time.
    """
    check(sessions=sessions, turns=turns, system_tokens=system_tokens, tool_tokens=tool_tokens)
    check(answer_tokens=answer_tokens)
    if not 0.0 <= tool_share <= 1.0:
        raise InvalidArgumentError(f"tool_share = {tool_share}: use 0 to 1")
    if min(tool_gap_ms, human_gap_ms) < 0:
        raise InvalidArgumentError(
            f"tool_gap_ms = {tool_gap_ms}, human_gap_ms = {human_gap_ms}: use times from 0 on"
        )
    script = Script(seed, arrival_ms)
    rng, prose, domain = script.rng, script.prose, script.domain()
    rules = sized(system_tokens, lambda: f"- {prose.rule(domain)}", "\n")
    shared = system(script.keep("system", f"{prose.opening(domain)}\n\nRules:\n{rules}"))

    def said() -> str:
        return sized(answer_tokens, lambda: prose.answer(domain))

    for number in range(sessions):
        talk = Talk(script, f"session-{number:02}", shared)
        for turn in range(turns):
            reply = said() if turn < turns - 1 else None
            longest = answer_tokens + answer_tokens // 2
            if turn and rng.random() < tool_share:
                record = sized(tool_tokens, lambda: prose.fact(domain), "\n")
                content = user(f"Result of the look-up:\n{record}")
                gap = script.gap(tool_gap_ms)
                talk.ask("tool", content, max_tokens=longest, reply=reply, gap_ms=gap)
            else:
                gap = script.gap(human_gap_ms)
                content = user(prose.question(domain))
                talk.ask("human", content, max_tokens=longest, reply=reply, gap_ms=gap)
    return script


def unique(
    *,
    requests: int = 24,
    prompt_tokens: int = 600,
    output_tokens: int = 16,
    arrival_ms: float = 2_000.0,
    seed: int = 127,
) -> Script:
    """Prompts that have nothing in common: the control, on which a cache can only cost.

    Args:
        requests: Prompts.
        prompt_tokens: Tokens of each, about.
        output_tokens: The longest answer.
        arrival_ms: Mean time between two prompts; 0 for one after the other.
        seed: What all choices come from.

    Raises:
        InvalidArgumentError: a count below 1.
    """
    check(requests=requests, prompt_tokens=prompt_tokens, output_tokens=output_tokens)
    script = Script(seed, arrival_ms)
    prose = script.prose
    for number in range(requests):
        domain = script.domain()
        # The first block of 16 tokens differs already: it has the number of the case.
        case = f"Case {number:04}-{script.rng.randrange(16**6):06x}. {prose.opening(domain)}"
        notes = sized(prompt_tokens, lambda domain=domain: prose.fact(domain))  # type: ignore[misc]
        talk = Talk(script, f"unique-{number:03}", system(case))
        talk.ask(
            "unique",
            user(f"{notes}\n\n{prose.question(domain)}"),
            max_tokens=output_tokens,
        )
    return script
