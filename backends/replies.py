"""What OpenAI-compatible servers reply, read with their differences. Pure functions on replies."""

from __future__ import annotations

import re
from collections.abc import AsyncIterable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from backends.answer_store import Finish
from runtime.files import whole_text

MAX_TOKENS = 10**9  # of one call; a server that counts more has a defect


class ReplyError(Exception):
    """A server answered with something that is not a completion."""


@dataclass(frozen=True)
class Overflow:
    """A prompt over the server's context.

    `context` is what the server holds and `prompt` what it was sent, in tokens. None where the
    server does not say.
    """

    context: int | None = None
    prompt: int | None = None


@dataclass(frozen=True)
class Completion:
    """What a server said, and what it told of it. Counts are None where it does not count."""

    text: str
    prompt_tokens: int | None
    completion_tokens: int | None
    finish: Finish
    logprobs: list[float]


MAXIMUM = r"maximum context length is (?P<context>\d+) tokens"
# The wording of vLLM (three versions), SGLang, llama.cpp and OpenAI.
OVERFLOW_WORDINGS = (
    rf"{MAXIMUM}.*?\((?P<prompt>\d+) in the (?:messages|prompt)",
    rf"{MAXIMUM}.*?request has (?P<prompt>\d+) input tokens",
    rf"{MAXIMUM}.*?resulted in (?P<prompt>\d+) tokens",
    r"[Ii]nput(?: length)? \((?P<prompt>\d+) tokens\).*?\((?P<context>\d+) tokens\)",
    r"request \((?P<prompt>\d+) tokens\) exceeds the available context size \((?P<context>\d+)",
    r"\(length (?P<prompt>\d+)\) is longer than the maximum model length of (?P<context>\d+)",
    r"max_tokens must be at least 1, got -\d+",
    r"context_length_exceeded|exceeds the context (?:window|length)",
)


def overflow_in(message: str) -> Overflow | None:
    """The overflow that an error message tells of; None for any other error."""
    for wording in OVERFLOW_WORDINGS:
        match = re.search(wording, message, re.DOTALL)
        if match is None:
            continue
        lengths = {name: int(value) for name, value in match.groupdict().items()}
        return Overflow(**lengths)
    return None


def wants_completion_limit(message: str) -> bool:
    """Whether an error asks for `max_completion_tokens` in the place of `max_tokens`."""
    return "max_tokens" in message and "max_completion_tokens" in message


def chat_text(message: Any) -> str:
    """The whole text of a chat message: thinking in tags, then the answer or the refusal.

    Servers with a reasoning parser return the thinking apart, as `reasoning_content` or
    `reasoning`, and `content` null while the model has not come to an answer.
    """
    thinking, said = chat_parts(message)
    return with_thinking(thinking, said)


def chat_parts(message: Any) -> tuple[str, str]:
    """What a chat message, or a piece of one, thinks and says."""
    thinking = getattr(message, "reasoning_content", None) or getattr(message, "reasoning", None)
    said = message.content or getattr(message, "refusal", None)
    return thinking or "", said or ""


def with_thinking(thinking: str, said: str) -> str:
    if not thinking:
        return said
    if not said:
        return f"<think>{thinking}"
    return f"<think>{thinking}</think>\n{said}"


# What servers call the end of a completion -> what the store calls it. vLLM, OpenAI, TGI
FINISHES: dict[str, Finish] = {
    "stop": "stop",
    "eos_token": "stop",
    "stop_sequence": "stop",
    "length": "length",
    "content_filter": "content_filter",
}


def finish_of(choice: Any) -> Finish:
    """Why a completion ended; empty where the server does not say, or says something else."""
    reason = getattr(choice, "finish_reason", None)
    if reason != "content_filter" and getattr(getattr(choice, "message", None), "refusal", None):
        return "refusal"
    return FINISHES.get(reason, "") if isinstance(reason, str) else ""


def token_logprobs(choice: Any) -> list[float]:
    """Log-probabilities of a completion's tokens; empty where the server does not give them all.

    Chat completions list them as `content`, completions as `token_logprobs`.
    """
    logprobs = getattr(choice, "logprobs", None)
    values = []
    for token in getattr(logprobs, "content", None) or ():
        values.append(token.logprob)
    values = values or list(getattr(logprobs, "token_logprobs", None) or ())
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return []
    return [float(value) for value in values]


def model_context(models: Sequence[Any], name: str) -> int | None:
    """Tokens that a server holds for a model, prompt and answer together, from its /v1/models."""
    for model in models:
        length = getattr(model, "max_model_len", None)
        if model.id == name and isinstance(length, int) and 0 < length <= MAX_TOKENS:
            return length
    return None


def read_completion(reply: Any, *, is_chat: bool) -> Completion:
    """The first choice of a reply. Raises ReplyError where it is none: no client checks fields."""
    try:
        choice = reply.choices[0]
        text = chat_text(choice.message) if is_chat else choice.text
        counts = token_counts(reply.usage)
        return Completion(
            whole_text(text or ""), *counts, finish_of(choice), token_logprobs(choice)
        )
    except (ValueError, AttributeError, TypeError, IndexError) as error:
        raise ReplyError("the reply is not a completion") from error


class StreamedReply:
    """A completion that arrives in chunks."""

    def __init__(self, *, is_chat: bool):
        self.is_chat = is_chat
        self.num_chunks = 0
        self._thinking = ""
        self._said = ""
        self._is_refusal = False
        self._finish: str | None = None
        self._usage: Any = None
        self._logprobs: list[float] = []

    def add(self, chunk: Any) -> None:
        """Take in the next chunk."""
        self.num_chunks += 1
        self._usage = chunk.usage or self._usage
        if not chunk.choices:  # as in a chunk that counts tokens
            return
        choice = chunk.choices[0]
        if self.is_chat:
            thinking, said = chat_parts(choice.delta)
            self._is_refusal |= bool(getattr(choice.delta, "refusal", None))
        else:
            thinking, said = "", choice.text or ""
        self._thinking += thinking
        self._said += said
        self._logprobs += token_logprobs(choice)
        self._finish = choice.finish_reason or self._finish

    @property
    def text(self) -> str:
        """What has come so far, thinking in tags."""
        return with_thinking(self._thinking, self._said)

    def completion(self) -> Completion:
        """All of it. Raises ReplyError where the stream has ended before the completion."""
        if self._finish is None:
            raise ReplyError("the stream ended before the answer")
        finish = FINISHES.get(self._finish, "")
        if self._is_refusal and finish != "content_filter":
            finish = "refusal"
        counts = token_counts(self._usage)
        return Completion(whole_text(self.text), *counts, finish, self._logprobs)


async def read_stream(
    chunks: AsyncIterable[Any], on_text: Callable[[str], None], *, is_chat: bool
) -> StreamedReply:
    """A streamed reply, of which `on_text` is told what has come so far. Raises ReplyError."""
    reply = StreamedReply(is_chat=is_chat)
    try:
        async for chunk in chunks:
            reply.add(chunk)
            on_text(reply.text)
    except (ValueError, AttributeError, TypeError) as error:
        raise ReplyError("the reply is not a completion") from error
    return reply


def token_counts(usage: Any) -> tuple[int | None, int | None]:
    """Prompt and completion tokens of a reply; None where the server does not count.

    Raises ReplyError for counts that cannot be.
    """
    counts: list[int | None] = []
    for name in ("prompt_tokens", "completion_tokens"):
        count = getattr(usage, name, None)
        if not isinstance(count, int):
            counts.append(None)
        elif 0 <= count <= MAX_TOKENS:
            counts.append(count)
        else:
            raise ReplyError(f"the server counts {count:.3g} {name.replace('_', ' ')}")
    return counts[0], counts[1]


def cut_text(text: str, share: float) -> str:
    """About `share` of a text, without its middle: a task opens and closes with what matters."""
    kept = int(len(text) * share)
    head = (kept + 1) // 2
    return text[:head] + text[len(text) - (kept - head) :]
