"""What goes wrong, in the shape that OpenAI's clients read.

A body is `{"error": {"message", "type", "param", "code"}}`, always with all four fields.
"""

from __future__ import annotations

import reprlib
from http import HTTPStatus
from typing import Any

from pydantic import ValidationError
from pydantic_core import PydanticCustomError
from starlette.responses import JSONResponse

from kvlab.errors import EngineClosingError, KvlabError, PromptTooLongError, QueueFullError

INVALID = "invalid_request_error"
AUTHENTICATION = "authentication_error"
OVERLOADED = "rate_limit_error"
SERVER = "server_error"

RETRY_SECONDS = 1
"""What `Retry-After` says when the queue is full: a place is free once any request in it starts."""

_short = reprlib.Repr()
_short.maxlevel, _short.maxstring, _short.maxother = 3, 80, 80

UNSUPPORTED = "unsupported_parameter"
REFUSED = "refused"
"""The types of the errors that a schema's own checks raise: the message stands as it is, and the context
may name a `param` below where it was raised."""


def refusal(message: str, *, param: str | None = None, kind: str = REFUSED) -> PydanticCustomError:
    """An error for a schema's own check to raise."""
    # Braces in a value are not to be taken for places to fill.
    context = {"text": message} | ({} if param is None else {"param": param})
    return PydanticCustomError(kind, "{text}", context)


class ApiError(Exception):
    """A refusal with its HTTP status.

    Attributes:
        status: The HTTP status.
        message: What is wrong and what to do, naming the value.
        kind: OpenAI's `type`.
        param: The field of the request that is meant, such as `messages[0].role`.
        code: A name for programs.
        headers: Further headers.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = INVALID,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param
        self.code = code
        self.headers = headers

    def body(self) -> dict[str, Any]:
        """The JSON object."""
        return {
            "error": {
                "message": self.message,
                "type": self.kind,
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self) -> JSONResponse:
        """The HTTP response."""
        return JSONResponse(self.body(), self.status, self.headers)


def shown(value: object) -> str:
    """A value as it stands in a message, cut where it is long."""
    return _short.repr(value)


def from_engine(error: KvlabError, param: str) -> ApiError:
    """What a client is told of what the engine raised or reported.

    Args:
        error: What happened.
        param: The field that holds the prompt, which is to blame for one that is too long.
    """
    message = str(error)
    if isinstance(error, QueueFullError):
        wait = {"Retry-After": str(RETRY_SECONDS)}
        return ApiError(429, message, kind=OVERLOADED, code="queue_full", headers=wait)
    if isinstance(error, EngineClosingError):
        return closing()
    if isinstance(error, PromptTooLongError):
        return ApiError(400, message, param=param, code="context_length_exceeded")
    if isinstance(error, ValueError):
        return ApiError(400, message, code="invalid_value")
    return ApiError(500, message, kind=SERVER, code="engine_error")


def closing() -> ApiError:
    """The server is about to end."""
    return ApiError(
        503,
        "the server is shutting down; send the request again when it is back",
        kind=SERVER,
        code="shutting_down",
        headers={"Retry-After": str(RETRY_SECONDS)},
    )


def internal() -> ApiError:
    """A fault of the server; the log has the rest."""
    return ApiError(
        500, "the server failed on this request; its log says where", kind=SERVER, code="internal"
    )


def from_status(status: int, detail: str) -> ApiError:
    """What routing refuses: an unknown path, a wrong method."""
    phrase = HTTPStatus(status).phrase
    message = detail if detail and detail != phrase else phrase.lower()
    return ApiError(status, message, code=phrase.lower().replace(" ", "_"))


def from_validation(error: ValidationError) -> ApiError:
    """The first thing that is wrong with a request's body."""
    first = error.errors(include_url=False)[0]
    kind, context = first["type"], first.get("ctx", {})
    location = first["loc"] + ((context["param"],) if "param" in context else ())
    param = _path(location)
    if kind == "json_invalid":
        detail = first["msg"].removeprefix("Invalid JSON: ")
        return ApiError(400, f"the body is not JSON: {detail}", code="invalid_json")
    if kind in {UNSUPPORTED, REFUSED}:
        code = UNSUPPORTED if kind == UNSUPPORTED else "invalid_value"
        return ApiError(400, first["msg"], param=param, code=code)
    if kind == "missing":
        return ApiError(400, f"{param} is required", param=param, code="missing_parameter")
    if not param:
        message = f"the body must be a JSON object, got {shown(first['input'])}"
        return ApiError(400, message, code="invalid_type")
    text = first["msg"]
    message = f"{param}: {text[:1].lower()}{text[1:]}, got {shown(first['input'])}"
    code = "invalid_type" if kind.endswith("_type") else "invalid_value"
    return ApiError(400, message, param=param, code=code)


def _path(location: tuple[int | str, ...]) -> str:
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            path += f".{part}" if path else part
    return path
