"""Prompts around documents: long templates of which a small part changes, and retrieved passages."""

from __future__ import annotations

from functools import partial

from kvlab.errors import InvalidArgumentError
from kvlab.workload.generators.domains import DOMAINS
from kvlab.workload.generators.prose import sized
from kvlab.workload.generators.script import Script, Talk, check, system, user

__all__ = ["rag", "structured"]

_SQL = (
    "You translate questions into one SQL query over the tables below. Answer with the query alone, "
    "in a block of code, without a word before or behind it. Use only columns that exist."
)
_CODE = (
    "You write one Python function for the interface below. Answer with the function alone, in a "
    "block of code, typed, with a docstring of one line and no other import than the given ones."
)


def structured(
    *,
    requests: int = 40,
    templates: int = 4,
    template_tokens: int = 1_200,
    output_tokens: int = 64,
    arrival_ms: float = 1_000.0,
    seed: int = 137,
) -> Script:
    """SQL and code from long templates, of which only the last lines change.

    Args:
        requests: How many.
        templates: Templates, by turns for SQL and for code; each request uses any of them.
        template_tokens: Tokens of a template, about.
        output_tokens: The longest answer.
        arrival_ms: Mean time between two requests; 0 for one after the other.
        seed: What all choices come from.

    Raises:
        InvalidArgumentError: a count below 1.
    """
    check(requests=requests, templates=templates, template_tokens=template_tokens)
    check(output_tokens=output_tokens)
    script = Script(seed, arrival_ms)
    coding = script.coding
    kinds = []
    for number in range(templates):
        klass, head, body = (
            ("sql", _SQL, coding.tables(template_tokens))
            if number % 2 == 0
            else ("code", _CODE, coding.functions(template_tokens))
        )
        kinds.append((klass, system(script.keep(f"{klass}-{number}", f"{head}\n\n{body}"))))
    for number in range(requests):
        klass, template = script.rng.choice(kinds)
        talk = Talk(script, f"{klass}-{number:03}", template)
        talk.ask(klass, user(f"Wanted: {coding.wanted(klass)}."), max_tokens=output_tokens)
    return script


def rag(
    *,
    requests: int = 48,
    passages: int = 24,
    passages_a_request: int = 4,
    passage_tokens: int = 160,
    system_tokens: int = 240,
    reorder: float = 0.5,
    output_tokens: int = 48,
    arrival_ms: float = 1_000.0,
    seed: int = 113,
) -> Script:
    """Questions over retrieved passages, in the order of the corpus or in that of their scores.

    Passages in another order share nothing behind the first that differs, though all of them were
    seen before: what a prefix cache loses there, reuse at any position would win.

    Args:
        requests: Questions.
        passages: Passages of the corpus; popular as 1 / rank.
        passages_a_request: Different passages before each question.
        passage_tokens: Tokens of a passage, about.
        system_tokens: Tokens of the system prompt that all have, about.
        reorder: The part of questions, of class "shuffled", whose passages come in random order;
            those of the others ("ranked") stand as in the corpus.
        output_tokens: The longest answer.
        arrival_ms: Mean time between two questions; 0 for one after the other.
        seed: What all choices come from.

    Raises:
        InvalidArgumentError: a count below 1, more passages a request than there are, or `reorder`
            not from 0 to 1.
    """
    check(requests=requests, passages=passages, passages_a_request=passages_a_request)
    check(passage_tokens=passage_tokens, system_tokens=system_tokens, output_tokens=output_tokens)
    if passages_a_request > passages or not 0.0 <= reorder <= 1.0:
        raise InvalidArgumentError(
            f"passages_a_request = {passages_a_request} of {passages}, reorder = {reorder}: use at "
            f"most all passages, and 0 to 1"
        )
    script = Script(seed, arrival_ms)
    rng, prose = script.rng, script.prose
    home = script.domain()
    rules = sized(system_tokens, lambda: f"- {prose.rule(home)}", "\n")
    opening = f"{prose.opening(home)} Answer from the passages alone and name the one you used."
    shared = system(script.keep("system", f"{opening}\n\nRules:\n{rules}"))
    corpus = []
    for rank in range(passages):
        domain = DOMAINS[rank % len(DOMAINS)]
        facts = sized(passage_tokens, partial(prose.fact, domain))
        corpus.append((domain, script.keep(f"passage-{rank}", f"[passage {rank}] {facts}")))
    for number in range(requests):
        # The smallest of exponential times with these rates: weighted, without replacement.
        times = sorted((rng.expovariate(1.0 / (rank + 1)), rank) for rank in range(passages))
        chosen = sorted(rank for _, rank in times[:passages_a_request])
        klass = "ranked"
        if rng.random() < reorder:
            klass = "shuffled"
            rng.shuffle(chosen)
        found = "\n\n".join(corpus[rank][1] for rank in chosen)
        asked = prose.question(corpus[chosen[0]][0])
        talk = Talk(script, f"rag-{number:03}", shared)
        talk.ask(klass, user(f"{found}\n\nQuestion: {asked}"), max_tokens=output_tokens)
    return script
