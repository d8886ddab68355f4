"""Whatever is sent, the answer is a good one or an error in OpenAI's shape, and the server goes on."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

httpx = pytest.importorskip("httpx", reason="the 'serve' extra is not installed")
pytest.importorskip("pydantic", reason="the 'serve' extra is not installed")

from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from kvlab.cli.serve import serve
from kvlab.serve.api import fields
from kvlab.serve.api.errors import ApiError, from_validation
from kvlab.serve.api.schemas import ChatRequest, CompletionRequest, Message
from kvlab.serve.engine import EngineOptions
from serve_api_support import MODEL, Running, running

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hypothesis.strategies import SearchStrategy

BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "model": MODEL,
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 1,
    },
    "/v1/completions": {"model": MODEL, "prompt": "hi", "max_tokens": 1},
    "/tokenize": {"prompt": "hi"},
    "/detokenize": {"tokens": [1, 2]},
}
KNOWN = [
    *("cache_salt", "content", "ignore_eos", "include_usage", "logprobs", "max_completion_tokens"),
    *(
        "max_tokens",
        "messages",
        "metadata",
        "model",
        "n",
        "prompt",
        "response_format",
        "role",
        "seed",
    ),
    *(
        "stop",
        "stream",
        "stream_options",
        "temperature",
        "text",
        "tokens",
        "tools",
        "top_p",
        "type",
    ),
]
SCALARS: SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["user", "system", "text", MODEL, "\ud800", "{}", "%s"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(KNOWN) | st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=8,
)
"""Any JSON, and what only nearly is: NaN, infinities, halves of surrogate pairs."""


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    # A short context, since a body may ask for all of it.
    engine = EngineOptions(context_tokens=64)
    with (
        running(tmp_path_factory.mktemp("serve"), engine=engine) as server,
        httpx.Client(base_url=server.url, timeout=60) as made,
    ):
        yield made
        check_alive(made)
        check_nothing_is_held(server)


def check_alive(http: Any) -> None:
    assert http.post("/v1/completions", json=BODIES["/v1/completions"]).status_code == 200


def check_nothing_is_held(server: Running) -> None:
    counters = server.counters()
    assert counters.failed == 0
    assert counters.submitted == counters.finished + counters.cancelled


def check(answer: Any) -> None:
    assert answer.status_code < 500, answer.text
    if answer.status_code < 300:
        return
    (error,) = answer.json().values()
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert isinstance(error["code"], str)
    assert len(error["message"]) < 1000


def post(http: Any, path: str, content: bytes) -> Any:
    return http.post(path, content=content, headers={"Content-Type": "application/json"})


@settings(max_examples=30, deadline=None)
@given(path=st.sampled_from(list(BODIES)), value=VALUES)
def test_any_json_is_answered(http: Any, path: str, value: Any) -> None:
    check(post(http, path, json.dumps(value).encode()))


@settings(max_examples=80, deadline=None)
@given(
    path=st.sampled_from(list(BODIES)),
    changed=st.dictionaries(st.sampled_from(KNOWN), VALUES, max_size=3),
)
@example(path="/v1/chat/completions", changed={"messages": [{"role": "user", "content": "\x00"}]})
def test_a_good_body_with_other_values_is_answered(
    http: Any, path: str, changed: dict[str, Any]
) -> None:
    answer = post(http, path, json.dumps(BODIES[path] | changed).encode())
    check(answer)
    if answer.status_code == 400 and "param" in answer.json()["error"]:
        param = answer.json()["error"]["param"]
        assert param is None or param.partition(".")[0].partition("[")[0] in {
            *changed,
            *BODIES[path],
        }


@settings(max_examples=20, deadline=None)
@given(path=st.sampled_from(list(BODIES)), content=st.binary(max_size=40))
@example(path="/v1/completions", content=b"[" * 10_000)
@example(path="/v1/completions", content=b'{"model": ' + b"9" * 10_000 + b"}")
@example(path="/v1/completions", content=b"\xff\xfe{}")
def test_any_bytes_are_answered(http: Any, path: str, content: bytes) -> None:
    answer = post(http, path, content)
    check(answer)
    assert answer.status_code == 400


@pytest.mark.parametrize(
    ("path", "changed", "param", "code"),
    [
        ("/v1/chat/completions", {"messages": []}, "messages", "invalid_value"),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "king", "content": ""}]},
            "messages[0].role",
            "invalid_value",
        ),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user"}]},
            "messages[0].content",
            "missing_parameter",
        ),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": 5}]},
            "messages[0].content",
            "invalid_type",
        ),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content",
            "unsupported_parameter",
        ),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]},
            "messages[0].tool_calls",
            "unsupported_parameter",
        ),
        (
            "/v1/chat/completions",
            {"max_completion_tokens": 2},
            "max_completion_tokens",
            "invalid_value",
        ),
        ("/v1/chat/completions", {"max_tokens": -1}, "max_tokens", "invalid_value"),
        ("/v1/completions", {"max_tokens": "5"}, "max_tokens", "invalid_type"),
        ("/v1/completions", {"max_tokens": True}, "max_tokens", "invalid_type"),
        ("/v1/completions", {"temperature": 2.5}, "temperature", "invalid_value"),
        ("/v1/completions", {"top_p": 0}, "top_p", "invalid_value"),
        ("/v1/completions", {"seed": 1.5}, "seed", "invalid_type"),
        ("/v1/completions", {"stop": list("abcde")}, "stop", "invalid_value"),
        ("/v1/completions", {"stop": ""}, "stop[0]", "invalid_value"),
        (
            "/v1/completions",
            {"stream_options": {"include_usage": True}},
            "stream_options",
            "invalid_value",
        ),
        ("/v1/completions", {"prompt": ""}, "prompt", "invalid_value"),
        ("/v1/completions", {"prompt": [300]}, "prompt", "invalid_value"),
        ("/v1/completions", {"prompt": ["a", "b"]}, "prompt", "unsupported_parameter"),
        ("/v1/completions", {"temprature": 1}, "temprature", "unsupported_parameter"),
        ("/tokenize", {"messages": [{"role": "user", "content": ""}]}, "prompt", "invalid_value"),
        ("/detokenize", {"tokens": [-1]}, "tokens", "invalid_value"),
    ],
)
def test_an_error_names_the_field(
    http: Any, path: str, changed: dict[str, Any], param: str, code: str
) -> None:
    answer = post(http, path, json.dumps(BODIES[path] | changed).encode())
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == (param, code), error
    assert error["type"] == "invalid_request_error"


TABLES: list[tuple[type[ChatRequest | CompletionRequest], str, fields.Refusal]] = [
    *((ChatRequest, name, rule) for name, rule in fields.CHAT.items()),
    *((CompletionRequest, name, rule) for name, rule in fields.COMPLETIONS.items()),
]


@pytest.mark.parametrize(("schema", "name", "rule"), TABLES)
def test_what_is_not_supported_is_said_unless_it_asks_for_nothing(
    schema: type[ChatRequest | CompletionRequest], name: str, rule: fields.Refusal
) -> None:
    body = BODIES["/v1/chat/completions" if schema is ChatRequest else "/v1/completions"]
    for nothing in (None, *rule.neutral):
        schema.model_validate_json(json.dumps(body | {name: nothing}))
    for value in ("surely not", {"a": [1]}, 0.25):
        with pytest.raises(ValidationError) as caught:
            schema.model_validate_json(json.dumps(body | {name: value}))
        error = from_validation(caught.value)
        assert (error.status, error.param, error.code) == (400, name, "unsupported_parameter")
        assert rule.remedy in error.message


def test_the_reference_has_every_field_and_option() -> None:
    page = (Path(__file__).parent.parent / "docs" / "serving.md").read_text(encoding="utf-8")
    names = {*fields.TAKEN, *fields.CHAT, *fields.COMPLETIONS, *fields.MESSAGE}
    names |= {*ChatRequest.model_fields, *CompletionRequest.model_fields, *Message.model_fields}
    names |= {option for param in serve.params for option in param.opts if option.startswith("--")}
    missing = [
        name for name in sorted(names - {"role", "content"}) if not re.search(rf"`{name}[`.]", page)
    ]
    assert missing == []


def test_an_error_costs_no_more_for_many_wrong_values() -> None:
    body = json.dumps(BODIES["/v1/chat/completions"] | {"messages": [0] * 100_000})
    with pytest.raises(ValidationError) as caught:
        ChatRequest.model_validate_json(body)
    assert caught.value.error_count() == 1
    assert isinstance(from_validation(caught.value), ApiError)


def test_what_is_not_sent_as_json_is_not_read(http: Any) -> None:
    answer = http.post("/v1/completions", content=json.dumps(BODIES["/v1/completions"]))
    assert answer.status_code == 415
    check(answer)
    assert "application/json" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/completions", 405), ("GET", "/nothing", 404), ("POST", "/v1/models/", 404)],
)
def test_a_path_that_is_not_there_is_said(http: Any, method: str, path: str, status: int) -> None:
    answer = http.request(method, path)
    assert answer.status_code in {status, 405}
    check(answer)
