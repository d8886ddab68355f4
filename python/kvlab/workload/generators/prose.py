"""Sentences for generated prompts: plain English about everyday work, made of templates and words."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from kvlab.workload.generators.domains import Domain

__all__ = ["CODE", "OUTPUT", "PROSE", "Prose", "sized"]

PROSE = 4.1
"""Characters of a token of prose, about, with SmolLM2's tokenizer."""

CODE = 3.3
"""The same of code, of JSON and of what agents say about them."""

OUTPUT = 2.7
"""The same of what tools print: paths and numbers."""

_RULES = (
    "When someone asks about a {thing}, {action} before you answer.",
    "If {issue} comes up, {action}, and say in one sentence what you did.",
    "Never promise anything about a {thing} before you {action}.",
    "For {issue}, first {action}; if that does not help, {action2}.",
    "Questions about a {thing} and {issue} are answered in at most {number} sentences.",
    "If it is not clear which {thing} is meant, ask one question and wait.",
    "After {issue}, {action} and then {action2}, in this order.",
    "A {thing} that is older than {number} years is a case for a person: {action} and hand over.",
    "Do not {action} twice for the same {thing} within {number} days.",
    "When {issue} was reported by more than {number} people today, say so and {action}.",
    "Treat {issue} with a {thing} as urgent; {action} at once.",
    "If the tone becomes angry, stay calm, repeat {issue} in your own words and {action}.",
    "Prices for a {thing} are only given together with the date on which they were read.",
    "Without a number of the {thing} you may {action}, but you may not {action2}.",
)

_OPENINGS = (
    "You are the assistant of {service}. You answer briefly, in plain words, and you never guess.",
    "You work for {service} and help people by chat. Be exact, be kind, and keep to the rules below.",
    "You answer questions for {service}. What you do not know you say that you do not know.",
)

_QUESTIONS = (
    "How do I deal with {issue} on my {thing}?",
    "Can you {action} for my {thing}?",
    "What should I do first about {issue}?",
    "Is {issue} covered for a {thing} of {number} months?",
    "My {thing} has {issue}. What now?",
    "Who pays when there is {issue} with a {thing}?",
    "How long does it take to {action}?",
    "Could you {action} before the {number}th?",
    "Where do I report {issue} with the {thing}?",
    "Which {thing} do you suggest for {number} people?",
    "Why was my {thing} changed without a message?",
    "Do I have to {action} myself?",
)

_ANSWERS = (
    "I would first {action}.",
    "That sounds like {issue}; we can {action} and then {action2}.",
    "For a {thing} this usually takes {number} days.",
    "Please keep the {thing} as it is until we {action}.",
    "If there is still {issue} after that, tell me and I will {action}.",
    "There is no charge for this within {number} months.",
    "You do not have to {action} yourself.",
    "I have noted {issue} for your {thing}.",
    "The rules allow me to {action2} as soon as the {thing} is known.",
)


class Prose:
    """Sentences, chosen by a random generator.

    Args:
        rng: What all choices come from.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def opening(self, domain: Domain) -> str:
        """Who the assistant is."""
        return self._rng.choice(_OPENINGS).format(service=domain.service)

    def rule(self, domain: Domain) -> str:
        """An instruction for the assistant."""
        return self._about(self._rng.choice(_RULES), domain)

    def fact(self, domain: Domain) -> str:
        """Something to know."""
        return self._about(self._rng.choice(domain.facts), domain)

    def question(self, domain: Domain) -> str:
        """What someone asks: at most 32 tokens."""
        return self._about(self._rng.choice(_QUESTIONS), domain)

    def answer(self, domain: Domain) -> str:
        """A sentence of an answer."""
        return self._about(self._rng.choice(_ANSWERS), domain)

    def _about(self, template: str, domain: Domain) -> str:
        action, action2 = self._rng.sample(domain.actions, 2)
        return template.format(
            thing=self._rng.choice(domain.things),
            issue=self._rng.choice(domain.issues),
            action=action,
            action2=action2,
            number=self._rng.randint(2, 30),
            other=self._rng.randint(2, 12),
        )


def sized(
    tokens: int,
    sentence: Callable[[], str],
    between: str = " ",
    *,
    chars_per_token: float = PROSE,
) -> str:
    """Sentences until they are as long as so many tokens, to within a sentence and a tenth."""
    parts: list[str] = []
    length = 0
    while length < tokens * chars_per_token:
        parts.append(sentence())
        length += len(parts[-1]) + len(between)
    return between.join(parts)
