"""The server through the clients that people use: OpenAI's for Python, and curl."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

openai = pytest.importorskip("openai", reason="the 'test' extra is not installed")
httpx = pytest.importorskip("httpx", reason="the 'serve' extra is not installed")

from hypothesis import given, settings
from hypothesis import strategies as st

from kvlab.serve.engine import EngineOptions
from serve_api_support import CONTEXT, MODEL, Running, running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

GREEDY: dict[str, Any] = {"model": MODEL, "temperature": 0, "max_tokens": 12}


def turns(text: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": "You are brief. " * 4}, {"role": "user", "content": text}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("serve")) as found:
        yield found


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def http(server: Running) -> Iterator[Any]:
    with httpx.Client(base_url=server.url, timeout=60) as made:
        yield made


def cached(answer: Any) -> dict[str, int]:
    details = answer.usage.prompt_tokens_details
    by_source: dict[str, int] = details.cached_tokens_by_source
    assert details.cached_tokens == sum(by_source.values())
    return by_source


def test_an_answer_says_what_it_used_and_the_second_time_it_is_cached(client: Any) -> None:
    first, second = (
        client.chat.completions.create(messages=turns("twice"), **GREEDY) for _ in range(2)
    )
    assert first.choices[0].message.role == "assistant"
    assert first.choices[0].finish_reason == "length"
    assert first.choices[0].message.content == second.choices[0].message.content
    usage = first.usage
    assert usage.completion_tokens == 12
    assert usage.total_tokens == usage.prompt_tokens + 12
    assert sum(cached(first).values()) < usage.prompt_tokens
    assert cached(second)["l1"] == (usage.prompt_tokens - 1) // 16 * 16
    timings = second.timings
    assert (timings["cache_n"], timings["predicted_n"]) == (cached(second)["l1"], 12)
    assert timings["cache_n"] + timings["prompt_n"] == usage.prompt_tokens
    assert timings["prompt_ms"] > 0
    assert timings["predicted_ms"] > 0


def test_a_stream_is_the_same_answer_in_pieces(client: Any) -> None:
    whole = client.chat.completions.create(messages=turns("stream"), **GREEDY)
    chunks = list(
        client.chat.completions.create(
            messages=turns("stream"),
            stream=True,
            stream_options={"include_usage": True},
            **GREEDY,
        )
    )
    *pieces, usage = chunks
    assert len({chunk.id for chunk in chunks}) == 1
    assert pieces[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert pieces[-1].choices[0].finish_reason == "length"
    assert all(chunk.usage is None for chunk in pieces)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in pieces)
    assert text == whole.choices[0].message.content
    assert usage.choices == []
    assert usage.usage.prompt_tokens == whole.usage.prompt_tokens
    assert cached(usage)["l1"] > 0
    assert usage.timings["predicted_n"] == 12


def test_a_stream_without_usage_ends_with_the_reason_and_done(http: Any) -> None:
    body = GREEDY | {"messages": turns("raw"), "stream": True}
    answer = http.post("/v1/chat/completions", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    *events, done = [line for line in answer.text.split("\n\n") if line]
    assert done == "data: [DONE]"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert all("usage" not in chunk for chunk in chunks)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert chunks[-1]["timings"]["predicted_n"] == 12


def test_many_at_once_get_the_answers_that_each_would_get_alone(
    client: Any, server: Running
) -> None:
    texts = [f"question {number}" for number in range(6)]
    alone = [client.chat.completions.create(messages=turns(text), **GREEDY) for text in texts]

    async def ask_all() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as made:

            async def ask(text: str) -> str:
                stream = await made.chat.completions.create(
                    messages=turns(text), stream=True, extra_body={"cache_salt": text}, **GREEDY
                )
                pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
                return "".join(pieces)

            return await asyncio.gather(*map(ask, texts))

    assert asyncio.run(ask_all()) == [answer.choices[0].message.content for answer in alone]


def test_completions_take_texts_and_ids(client: Any, http: Any) -> None:
    text = "Once upon a time"
    ids = http.post("/tokenize", json={"prompt": text}).json()["tokens"]
    answers = [
        client.completions.create(model=MODEL, prompt=prompt, temperature=0)
        for prompt in (text, ids, [text], [ids])
    ]
    assert len({answer.choices[0].text for answer in answers}) == 1
    assert answers[0].usage.completion_tokens == 16  # unless it says otherwise, as OpenAI's
    stream = client.completions.create(model=MODEL, prompt=text, temperature=0, stream=True)
    chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks) == answers[0].choices[0].text
    assert chunks[-1].choices[0].finish_reason == "length"


@pytest.mark.parametrize("as_list", [False, True])
def test_an_answer_ends_before_its_stop_string(client: Any, *, as_list: bool) -> None:
    whole = client.completions.create(prompt="stop here", **GREEDY).choices[0].text
    at = next(place for place in range(2, len(whole)) if whole[place] not in whole[:place])
    stop = ["never in it", whole[at]] if as_list else whole[at]
    answer = client.completions.create(prompt="stop here", stop=stop, **GREEDY)
    assert answer.choices[0].text == whole[:at]
    assert answer.choices[0].finish_reason == "stop"


def test_a_seed_makes_a_drawn_answer_the_same_again(client: Any) -> None:
    def draw(seed: int) -> str:
        drawn = client.chat.completions.create(
            model=MODEL, messages=turns("draw"), seed=seed, top_p=0.9, max_completion_tokens=12
        )
        text: str = drawn.choices[0].message.content
        return text

    assert draw(7) == draw(7)
    assert len({draw(seed) for seed in range(4)}) > 1


def test_a_salt_keeps_caches_apart(client: Any) -> None:
    def ask(salt: str) -> int:
        answer = client.chat.completions.create(
            messages=turns("salted"), extra_body={"cache_salt": salt}, **GREEDY
        )
        return sum(cached(answer).values())

    assert ask("one") == 0
    assert ask("two") == 0
    assert ask("one") > 0


def test_parts_of_text_and_the_developer_s_role_are_read(client: Any) -> None:
    plain = client.chat.completions.create(messages=turns("a\nb"), **GREEDY)
    system, _ = turns("")
    parts = [
        {"role": "developer", "content": [{"type": "text", "text": system["content"]}]},
        {
            "role": "user",
            "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
            "name": "somebody",
        },
    ]
    other = client.chat.completions.create(messages=parts, user="me", metadata={}, **GREEDY)
    assert other.choices[0].message.content == plain.choices[0].message.content


def test_what_an_answer_counts_as_its_prompt_is_what_tokenize_counts(
    client: Any, http: Any
) -> None:
    messages = turns("count me")
    answer = client.chat.completions.create(messages=messages, **GREEDY)
    counted = http.post("/tokenize", json={"messages": messages}).json()
    assert counted["count"] == len(counted["tokens"]) == answer.usage.prompt_tokens
    assert counted["max_model_len"] == CONTEXT
    open_end = {"messages": messages, "add_generation_prompt": False}
    assert http.post("/tokenize", json=open_end).json()["count"] < counted["count"]


@settings(max_examples=20, deadline=None)
@given(text=st.text(st.characters(codec="utf-8"), max_size=60))
def test_a_text_survives_tokenize_and_detokenize(http: Any, text: str) -> None:
    tokens = http.post("/tokenize", json={"prompt": text}).json()["tokens"]
    assert http.post("/detokenize", json={"tokens": tokens}).json() == {"prompt": text}


def test_curl_gets_an_answer_and_a_stream(server: Running) -> None:
    body = json.dumps(GREEDY | {"messages": turns("curl")})

    def curl(body: str) -> str:
        command = ["curl", "-sS", "-N", f"{server.url}/v1/chat/completions", "-d", body]
        command += ["-H", "Content-Type: application/json"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    whole = json.loads(curl(body))
    stream = curl(json.dumps(json.loads(body) | {"stream": True}))
    assert stream.endswith("data: [DONE]\n\n")
    chunks = [json.loads(line[6:]) for line in stream.split("\n\n") if line.startswith("data: {")]
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert text == whole["choices"][0]["message"]["content"]


def test_an_answer_ends_where_the_context_does(client: Any) -> None:
    prompt = "x" * (CONTEXT - 5)
    answer = client.completions.create(**GREEDY | {"prompt": prompt, "max_tokens": 4000})
    assert answer.usage.completion_tokens == 5
    assert answer.choices[0].finish_reason == "length"


@pytest.mark.parametrize("over", [0, 1, 100])
def test_a_prompt_that_fills_the_context_is_refused(client: Any, over: int) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=MODEL, prompt="x" * (CONTEXT + over))
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.param == "prompt"
    assert str(CONTEXT) in caught.value.message


def test_a_model_that_is_not_served_is_not_found(client: Any) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).max_model_len == CONTEXT
    asks: list[Callable[[], Any]] = [
        lambda: client.models.retrieve("gpt/other"),
        lambda: client.chat.completions.create(messages=turns(""), model="gpt/other"),
    ]
    for ask in asks:
        with pytest.raises(openai.NotFoundError) as caught:
            ask()
        assert caught.value.code == "model_not_found"
        assert caught.value.param == "model"
        assert "gpt/other" in caught.value.message
        assert MODEL in caught.value.message


def test_what_the_template_refuses_is_told(client: Any) -> None:
    message = {"role": "tool", "content": "42", "tool_call_id": "1"}
    with pytest.raises(openai.BadRequestError, match="there are no tools") as caught:
        client.chat.completions.create(messages=[message], **GREEDY)
    assert caught.value.param == "messages"


def test_a_request_keeps_its_id(http: Any) -> None:
    assert (
        http.get("/health", headers={"X-Request-Id": "mine-1"}).headers["x-request-id"] == "mine-1"
    )
    refused = http.post("/v1/completions", headers={"X-Request-Id": "mine-2"}, json={})
    assert (refused.status_code, refused.headers["x-request-id"]) == (400, "mine-2")
    ids = {http.get("/health").headers["x-request-id"] for _ in range(3)}
    assert len(ids) == 3
    for bad in ("with space", "x" * 200):
        assert http.get("/health", headers={"X-Request-Id": bad}).headers["x-request-id"] != bad


def test_the_server_says_how_it_is(http: Any) -> None:
    assert http.get("/health").json() == {"status": "ok"}
    assert http.get("/ready").json() == {"status": "ready", "running": 0, "waiting": 0}
    assert http.get("/version").json()["version"]
    assert http.get("/").headers["content-type"].startswith("text/html")
    metrics = http.get("/metrics").text
    assert "kvlab:prompt_tokens_by_source_total" in metrics


@pytest.mark.parametrize("mode", ["baseline", "prefix_reuse", "cpu_offload"])
def test_a_mode_without_disk_keeps_what_it_has(tmp_path: Path, mode: str) -> None:
    with (
        running(tmp_path, mode=mode) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client,
    ):
        for _ in range(2):
            last = client.chat.completions.create(messages=turns("again"), **GREEDY)
    assert (cached(last)["l1"] > 0) == (mode != "baseline")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("damaged", [False, True])
def test_a_server_answers_from_the_store_of_the_last_one(tmp_path: Path, *, damaged: bool) -> None:
    answers = []
    engine = EngineOptions(restore="always")
    for _ in range(2):
        with (
            running(tmp_path, engine=engine) as server,
            openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client,
        ):
            answers.append(client.chat.completions.create(messages=turns("again"), **GREEDY))
        if damaged:
            damage_every_record(tmp_path / "store")
    first, second = answers
    assert second.choices[0].message.content == first.choices[0].message.content
    assert sum(cached(first).values()) == 0
    whole = (first.usage.prompt_tokens - 1) // 16 * 16
    assert cached(second)["l3"] == (0 if damaged else whole)


def damage_every_record(store: Path) -> None:
    """Inverts the first payload bytes of every run."""
    for segment in store.glob("*.seg"):
        content = bytearray(segment.read_bytes())
        for found in re.finditer(b"KVLABRUN", bytes(content)):
            payload = slice(
                found.start() + 4096, found.start() + 4160
            )  # behind a header of one page
            content[payload] = bytes(255 - byte for byte in content[payload])
        segment.write_bytes(content)


def test_the_example_of_the_readme_works(
    server: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    (example,) = (
        block
        for block in re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
        if "openai" in block
    )
    example = example.replace("http://127.0.0.1:8000", server.url).replace("smollm2-135m", MODEL)
    exec(compile(example, "README.md", "exec"), {})  # noqa: S102 (our own page)
    assert "cached_tokens_by_source" in capsys.readouterr().out
