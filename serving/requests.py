"""What a client may ask for: the body of a chat completion, checked.

Messages before the last one are the context of the question; the last one is the question.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prompts import Message
from runtime.errors import DERError
from runtime.files import parse_json, shown, whole_text

MODEL = "der"
NAMED_ALPHA = re.compile(rf"{MODEL}-(\d*\.?\d+(?:e-?\d+)?)")
OPTIONS = ("alpha", "max_cost", "max_calls", "task")  # DER's own, in the body or as x-der- headers
# What an expert that is asked in plain text cannot do
REFUSED = (
    "tools",
    "functions",
    "function_call",
    "logprobs",
    "audio",
    "prediction",
    "web_search_options",
)
MAX_TASK = 200  # characters of a task's name; with a limit, half characters are refused too
MAX_BYTES_PER_CHARACTER = 12  # of JSON: an escaped pair of surrogates


class RequestError(DERError):
    """A request that gets an error instead of an answer, as OpenAI's error object."""

    def __init__(self, status: int, message: str, *, code: str, param: str | None = None):
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param

    def body(self) -> dict[str, Any]:
        """The error object."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        error = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return {"error": error}


class ContentPart(BaseModel):
    type: str
    text: str | None = None


class ChatMessage(BaseModel):
    role: str
    content: str | list[ContentPart] | None = None
    tool_calls: Any = None


class StreamOptions(BaseModel):
    include_usage: bool = False


class ChatBody(BaseModel):
    """The body of a chat completion. What is not named here is left to the experts' settings."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    model: str
    messages: list[ChatMessage] = Field(min_length=1)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: Literal[1] | None = None
    alpha: Annotated[float, Field(ge=0)] | None = None
    max_cost: Annotated[float, Field(gt=0)] | None = None
    max_calls: Annotated[int, Field(ge=1)] | None = None
    task: Annotated[str, Field(max_length=MAX_TASK)] | None = None


@dataclass(frozen=True)
class Asked:
    """A checked request."""

    model: str
    text: str  # the last message: the question of the state
    context: tuple[Message, ...]
    alpha: float | None = None
    max_cost: float | None = None
    max_calls: int | None = None
    task: str | None = None
    is_streamed: bool = False
    wants_usage: bool = False
    ignored: tuple[str, ...] = ()  # settings of the request that the experts' own replace


def read_request(data: bytes, headers: Mapping[str, str], max_characters: int) -> Asked:
    """The request of a body. Raises RequestError for one that cannot be answered."""
    values = _json_of(data)
    for name in OPTIONS:
        header = headers.get("x-der-" + name.replace("_", "-"))
        if header is not None:
            values.setdefault(name, header)
    try:
        body = ChatBody.model_validate(values)
    except ValidationError as error:
        raise _explained(error) from error
    others = body.model_extra or {}
    _refuse(others)
    messages = [_message(message, place) for place, message in enumerate(body.messages)]
    _check_length(messages, max_characters)
    *context, last = messages
    if last.role != "user":
        raise _invalid("the last message must be of role user: it is the question", "messages")
    if not last.text.strip():
        raise _invalid("the last message is empty", "messages")
    options = body.stream_options or StreamOptions()
    return Asked(
        model=body.model,
        text=last.text.strip(),
        context=tuple(context),
        alpha=alpha_of(body.model, body.alpha),
        max_cost=body.max_cost,
        max_calls=body.max_calls,
        task=body.task,
        is_streamed=bool(body.stream),
        wants_usage=options.include_usage,
        ignored=tuple(sorted(name for name, value in others.items() if value is not None)),
    )


def _json_of(data: bytes) -> dict[str, Any]:
    class _UnreadableError(DERError):
        pass

    try:
        values = parse_json(data, "the body", _UnreadableError)
    except _UnreadableError as error:
        raise _invalid(str(error), None) from error
    if not isinstance(values, dict):
        raise _invalid("the body must be a JSON object", None)
    return values


def alpha_of(model: str, alpha: float | None) -> float | None:
    """The weight of cost that a request names; None for the run's own.

    Raises RequestError for a model that is not here, and where name and field differ.
    """
    if model == MODEL:
        return alpha
    match = NAMED_ALPHA.fullmatch(model)
    if match is None:
        raise unknown_model(model)
    named = float(match.group(1))
    if alpha is not None and alpha != named:
        raise _invalid(f"model {model} and alpha = {alpha:g} name two weights of cost", "alpha")
    return named


def unknown_model(model: str, why: str = "") -> RequestError:
    said = f"no model {shown(model)} here{why}; GET /v1/models lists them"
    return RequestError(404, said, code="model_not_found", param="model")


def too_long(max_characters: int) -> RequestError:
    said = f"the messages have more than {max_characters} characters, the most that are taken"
    return RequestError(400, said, code="context_length_exceeded", param="messages")


def _invalid(message: str, param: str | None) -> RequestError:
    return RequestError(400, message, code="invalid_value", param=param)


def _explained(error: ValidationError) -> RequestError:
    """The first problem that pydantic has found."""
    problem = error.errors()[0]
    field = ".".join(str(part) for part in problem["loc"])
    said = f"{field} = {shown(problem['input'])}: {problem['msg']}"
    if problem["type"] == "missing":
        said = f"{field} is missing"
    return _invalid(said, field)


def _refuse(others: Mapping[str, Any]) -> None:
    """Raise RequestError for what would change the kind of answer."""
    for name in REFUSED:
        if others.get(name):
            raise _unsupported(name)
    format_ = others.get("response_format") or {"type": "text"}
    if not isinstance(format_, dict) or format_.get("type") != "text":
        raise _unsupported("response_format")
    if others.get("modalities") not in (None, ["text"]):
        raise _unsupported("modalities")


def _unsupported(what: str) -> RequestError:
    said = f"{what}: not supported; DER's experts read text and answer in text"
    return RequestError(400, said, code="unsupported_value", param=what)


def _message(message: ChatMessage, place: int) -> Message:
    """A message as experts read it. Raises RequestError for anything but text."""
    where = f"messages.{place}"
    role = "system" if message.role == "developer" else message.role
    if message.tool_calls or role in ("tool", "function"):
        raise _unsupported("tools")
    if role not in ("system", "user", "assistant"):
        raise _invalid(f"{where}.role = {shown(message.role)}: no such role", f"{where}.role")
    if isinstance(message.content, str):
        return Message(role, whole_text(message.content))
    texts = []
    for part in message.content or ():
        if part.type != "text" or part.text is None:
            raise _unsupported(f"{where}.content of type {shown(part.type)}")
        texts.append(part.text)
    if not texts:
        raise _invalid(f"{where}.content is empty", f"{where}.content")
    return Message(role, whole_text("\n".join(texts)))


def _check_length(messages: list[Message], max_characters: int) -> None:
    if sum(len(message.text) for message in messages) > max_characters:
        raise too_long(max_characters)
