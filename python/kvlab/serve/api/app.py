"""The application: which path does what."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from fastapi import APIRouter, Depends, FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from kvlab import build_info
from kvlab.errors import KvlabError
from kvlab.serve.api.body import read
from kvlab.serve.api.edge import Edge
from kvlab.serve.api.errors import ApiError, closing, from_engine, from_status, shown
from kvlab.serve.api.flight import Flight
from kvlab.serve.api.keys import combined
from kvlab.serve.api.replies import Reply
from kvlab.serve.api.schemas import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    Generation,
    TokenizeRequest,
)
from kvlab.serve.api.stream import Answer, Stream
from kvlab.serve.engine.request import GenerationRequest, Sampling

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray
    from starlette.types import ASGIApp

    from kvlab.serve.api.keys import KeyRing
    from kvlab.serve.api.prompts import Prompts
    from kvlab.serve.engine.request import EngineState, Handle, Sink

COMPLETION_TOKENS = 16
"""The length of a plain completion that does not say one, as in OpenAI's."""


class Engine(Protocol):
    """What is needed of `kvlab.serve.engine.engine.Engine`."""

    def submit(self, request: GenerationRequest, sink: Sink) -> Handle:
        """Takes a request."""

    def snapshot(self) -> EngineState:
        """What it is doing."""


@dataclass(frozen=True, kw_only=True)
class Api:
    """What the endpoints work with.

    Attributes:
        engine: Answers requests.
        prompts: Makes token ids of them.
        model: The name that requests have to give.
        context_tokens: The longest prompt and answer together.
        keys: Who may ask; None for everybody.
        max_body: The most bytes of a request's body.
        left_alone: How many servers of L4 are not asked now.
    """

    engine: Engine
    prompts: Prompts
    model: str
    context_tokens: int
    keys: KeyRing | None = None
    max_body: int = 8 << 20
    left_alone: Callable[[], int] = lambda: 0

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        body = await read(request, ChatRequest, self.max_body)
        self._check_model(body.model)
        prompt = await self.prompts.chat(body.messages)
        return self._answer(request, body, prompt, limit=body.limit, param="messages")

    async def completion(self, request: Request) -> Response:
        """POST /v1/completions."""
        body = await read(request, CompletionRequest, self.max_body)
        self._check_model(body.model)
        prompt = await self.prompts.prompt(body.prompt)
        limit = COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
        return self._answer(request, body, prompt, limit=limit, param="prompt")

    def _answer(
        self,
        request: Request,
        body: Generation,
        prompt: NDArray[np.int64],
        *,
        limit: int | None,
        param: str,
    ) -> Response:
        if len(prompt) == 0:
            message = f"{param} has no tokens: give at least one"
            raise ApiError(400, message, param=param, code="invalid_value")
        # The engine ends an answer that would outgrow the context there, with finish_reason "length".
        room = max(self.context_tokens - len(prompt), 1)
        asked = GenerationRequest(
            id=f"{'chatcmpl' if param == 'messages' else 'cmpl'}-{uuid.uuid4().hex}",
            prompt=prompt,
            max_tokens=room if limit is None else limit,
            sampling=Sampling(
                temperature=1.0 if body.temperature is None else body.temperature,
                top_p=1.0 if body.top_p is None else body.top_p,
                seed=body.seed,
            ),
            stop=tuple(body.stop or ()),
            salt=combined(request.state.tenant, body.cache_salt or ""),
            ignore_eos=bool(body.ignore_eos),
        )
        try:
            flight = Flight(self.engine.submit, asked)
        except KvlabError as error:
            raise from_engine(error, param) from error
        chat = param == "messages"
        reply = Reply(asked.id, self.model, chat=chat, with_usage=body.with_usage)
        return (Stream if body.stream else Answer)(flight, reply, param=param)

    async def models(self) -> Response:
        """GET /v1/models."""
        return JSONResponse({"object": "list", "data": [self._model_card()]})

    async def one_model(self, model: str) -> Response:
        """GET /v1/models/{model}."""
        self._check_model(model)
        return JSONResponse(self._model_card())

    async def tokenize(self, request: Request) -> Response:
        """POST /tokenize."""
        body = await read(request, TokenizeRequest, self.max_body)
        self._check_model(body.model)
        if body.messages is not None:
            ids = await self.prompts.chat(body.messages, generate=body.add_generation_prompt)
        else:
            ids = await self.prompts.prompt(body.prompt or "", special=body.add_special_tokens)
        tokens = ids.tolist()
        answer = {"tokens": tokens, "count": len(tokens), "max_model_len": self.context_tokens}
        return JSONResponse(answer)

    async def detokenize(self, request: Request) -> Response:
        """POST /detokenize."""
        body = await read(request, DetokenizeRequest, self.max_body)
        self._check_model(body.model)
        return JSONResponse({"prompt": await self.prompts.text(body.tokens)})

    async def health(self) -> Response:
        """GET /health: the process answers."""
        return JSONResponse({"status": "ok"})

    async def ready(self) -> Response:
        """GET /ready: requests are taken. They are without L4, too."""
        state = self.engine.snapshot()
        if state.closing:
            raise closing()
        answer = {"status": "ready", "running": len(state.running), "waiting": state.waiting}
        left_alone = self.left_alone()
        if left_alone:
            answer |= {"status": "degraded", "servers_left_alone": left_alone}
        return JSONResponse(answer)

    async def version(self) -> Response:
        """GET /version."""
        return JSONResponse(build_info())

    async def admit(self, request: Request) -> None:
        """Lets in who has a key, and notes whose it is."""
        sent = request.headers.get("authorization")
        request.state.tenant = "" if self.keys is None else self.keys.tenant(sent)

    def _check_model(self, model: str | None) -> None:
        if model is not None and model != self.model:
            message = f"model {shown(model)} is not served here; {self.model!r} is"
            raise ApiError(404, message, param="model", code="model_not_found")

    def _model_card(self) -> dict[str, Any]:
        return {
            "id": self.model,
            "object": "model",
            "created": _STARTED,
            "owned_by": "kvlab",
            "max_model_len": self.context_tokens,
        }


_STARTED = int(time.time())


def create_app(
    api: Api, pages: APIRouter | None = None, *, hosts: frozenset[str] | None = None
) -> ASGIApp:
    """Makes the application.

    Args:
        api: What answers.
        pages: Further paths: the live page and the metrics.
        hosts: The names that requests may call the server by; None for any.
    """
    app = FastAPI(title="kvlab", docs_url=None, redoc_url=None, openapi_url=None)
    app.router.redirect_slashes = False
    open_paths: dict[str, Callable[..., Any]] = {
        "/health": api.health,
        "/ready": api.ready,
        "/version": api.version,
    }
    for path, endpoint in open_paths.items():
        app.add_api_route(path, endpoint, methods=["GET"], response_model=None)
    guarded = APIRouter()
    guarded.add_api_route("/v1/models", api.models, methods=["GET"])
    guarded.add_api_route("/v1/models/{model:path}", api.one_model, methods=["GET"])
    posts: dict[str, Callable[..., Any]] = {
        "/v1/chat/completions": api.chat,
        "/v1/completions": api.completion,
        "/tokenize": api.tokenize,
        "/detokenize": api.detokenize,
    }
    for path, endpoint in posts.items():
        guarded.add_api_route(path, endpoint, methods=["POST"], response_model=None)
    for router in (guarded, pages):
        if router is not None:
            app.include_router(router, dependencies=[Depends(api.admit)])
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(ClientDisconnect, _disconnected)
    return Edge(app, hosts=hosts)


async def _api_error(request: Request, error: Exception) -> Response:
    del request
    assert isinstance(error, ApiError)  # noqa: S101 (registered for it)
    return error.response()


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 (registered for it)
    refusal = from_status(error.status_code, error.detail)
    if error.status_code == 404:
        refusal.message = f"there is no {request.url.path[:80]!r} here"
    refusal.headers = dict(error.headers or {})
    return refusal.response()


async def _disconnected(request: Request, error: Exception) -> Response:
    """Nobody reads it: the client went away while it sent its request."""
    del request, error
    return Response(status_code=400)
