"""What an ideal prefix cache would reuse of a workload: the most that any real one can."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvlab.errors import InvalidArgumentError
from kvlab.sim.formats.chain import chain_ids
from kvlab.workload.schedule import starts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from kvlab.workload.schema import Workload, WorkloadRequest
    from kvlab.workload.tokens import ChatTokenizer

__all__ = ["IdealReuse", "RequestReuse", "ReuseTotal", "ideal_reuse", "prompts"]


@dataclass(frozen=True, slots=True)
class RequestReuse:
    """What would be reused of one prompt.

    Attributes:
        id: Of the request.
        klass: Its class.
        prompt_tokens: Tokens of its prompt.
        reused_tokens: Of these, tokens that need not be computed.
    """

    id: str
    klass: str
    prompt_tokens: int
    reused_tokens: int


@dataclass(frozen=True, slots=True)
class ReuseTotal:
    """What would be reused of some prompts.

    Attributes:
        requests: How many.
        prompt_tokens: Tokens of their prompts, summed.
        reused_tokens: Of these, tokens that need not be computed.
    """

    requests: int
    prompt_tokens: int
    reused_tokens: int

    @property
    def share(self) -> float:
        """Reused tokens by prompt tokens, 0 to 1."""
        return self.reused_tokens / self.prompt_tokens if self.prompt_tokens else 0.0


@dataclass(frozen=True, slots=True)
class IdealReuse:
    """What would be reused of a workload.

    Attributes:
        block_tokens: Tokens of a block.
        tokenizer: What tokens are counted in.
        requests: In the order in which they were served.
        assumed_answers: Answers that go on in later prompts and were neither recorded nor given: a
            text of their longest length, of 1,024 tokens at most, stands for each.
    """

    block_tokens: int
    tokenizer: str
    requests: tuple[RequestReuse, ...]
    assumed_answers: int

    @property
    def total(self) -> ReuseTotal:
        """Of all requests."""
        return _total(self.requests)

    def by_class(self) -> dict[str, ReuseTotal]:
        """Of each class, in the order in which the classes came."""
        classes = dict.fromkeys(each.klass for each in self.requests)
        return {
            klass: _total([each for each in self.requests if each.klass == klass])
            for klass in classes
        }


def ideal_reuse(
    workload: Workload,
    tokenizer: ChatTokenizer,
    *,
    block_tokens: int = 16,
    answers: Mapping[str, str] | None = None,
    order: Sequence[str] | None = None,
    progress: Callable[[int], None] | None = None,
) -> IdealReuse:
    """What a cache without end would reuse of each prompt.

    It keeps whole blocks of everything that was computed and forgets nothing. Of a prompt it reuses
    the longest run of blocks from the first token on, and never the last token, whose logits choose
    the answer's first. Requests count one after the other: those at once share what either computed,
    as with a server that computes a prefix once for all that wait for it. Salts share nothing.

    Without `answers`, later prompts contain the recorded replies. What a model then says is something
    else, so the keys and values of a reply are computed as part of the next prompt. With `answers`,
    later prompts contain these, and their keys and values are there, but for the last token.

    Args:
        workload: What is sent.
        tokenizer: What makes ids of prompts; that of the model, to compare with a run.
        block_tokens: Tokens of a block, at least 1.
        answers: What the model said, by request; see above.
        order: All ids in the order in which they were served; by default by `schedule.starts`.
        progress: Called with the number of requests done.

    Raises:
        InvalidArgumentError: `block_tokens` below 1, or an order of other requests.
    """
    if block_tokens < 1:
        raise InvalidArgumentError(f"block_tokens = {block_tokens}: a block has at least 1 token")
    stands, assumed = _answers(workload, answers or {})
    cached: set[int] = set()
    found = []
    for count, (request, tokens) in enumerate(_prompts(workload, tokenizer, stands, order), 1):
        salt = request.salt.encode()
        ids = chain_ids(tokens, block_tokens, salt)
        most = max(0, len(tokens) - 1) // block_tokens
        hits = next((at for at, block in enumerate(ids[:most]) if block not in cached), most)
        found.append(RequestReuse(request.id, request.klass, len(tokens), hits * block_tokens))
        if answers is not None and request.id in answers:
            kept = [*tokens, *tokenizer.text(answers[request.id])]
            ids = chain_ids(kept[:-1], block_tokens, salt)
        cached.update(ids)
        if progress is not None:
            progress(count)
    return IdealReuse(block_tokens, tokenizer.name, tuple(found), assumed)


def prompts(
    workload: Workload, tokenizer: ChatTokenizer, *, order: Sequence[str] | None = None
) -> Iterator[tuple[WorkloadRequest, Sequence[int]]]:
    """The requests with the ids of their whole prompts, recorded replies included.

    Args:
        workload: What is sent.
        tokenizer: What makes ids of prompts.
        order: All ids in the order in which they are wanted; by default by `schedule.starts`.

    Raises:
        InvalidArgumentError: an order of other requests.
    """
    return _prompts(workload, tokenizer, _answers(workload, {})[0], order)


def _prompts(
    workload: Workload,
    tokenizer: ChatTokenizer,
    answers: Mapping[str, str],
    order: Sequence[str] | None,
) -> Iterator[tuple[WorkloadRequest, Sequence[int]]]:
    known = workload.by_id()
    if order is None:
        begun = dict(zip(known, starts(workload.requests), strict=True))
        order = sorted(begun, key=begun.__getitem__)
    elif len(order) != len(known) or set(order) != set(known):
        raise InvalidArgumentError(
            f"order: has {len(order)} ids, and the workload {len(known)} requests; give each once"
        )
    for name in order:
        request = known[name]
        yield request, tokenizer.prompt(workload.conversation(request, answers))


def _answers(workload: Workload, given: Mapping[str, str]) -> tuple[dict[str, str], int]:
    """What stands for each answer that goes on in a later prompt, and how many of these are assumed."""
    known = workload.by_id()
    stands: dict[str, str] = {}
    assumed = 0
    for request in workload.requests:
        if not request.append or request.after is None or request.after in stands:
            continue
        before = known[request.after]
        answer = given.get(before.id, before.reply)
        if answer is None:
            assumed += 1
            length = min(before.max_tokens, _ASSUMED_TOKENS) * _CHARS_PER_TOKEN
            answer = (f"(the answer to {before.id}) " * length)[:length]
        stands[before.id] = answer
    return stands, assumed


_CHARS_PER_TOKEN = 4
_ASSUMED_TOKENS = 1_024


def _total(requests: Sequence[RequestReuse]) -> ReuseTotal:
    return ReuseTotal(
        len(requests),
        sum(each.prompt_tokens for each in requests),
        sum(each.reused_tokens for each in requests),
    )
