"""Expert kind `endpoint`: a model behind one or several OpenAI-compatible servers (vLLM, SGLang,
TGI, llama.cpp, Ollama, transformers serve).

prompt_format chat asks /chat/completions, the others ask /completions.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import openai

from backends.answer_store import Answer, mean_and_least
from backends.dispatch import Inbox, OnText
from backends.live_answers import without_start_of
from backends.replies import (
    Completion,
    Overflow,
    ReplyError,
    cut_text,
    model_context,
    overflow_in,
    read_completion,
    read_stream,
    wants_completion_limit,
)
from config import EndpointExpertConfig
from prompts import Message, PromptFormat, before_stop
from runtime.errors import ExpertError

CONNECT_S = 10.0  # a server that is up accepts a connection at once, however slow its model
MAX_RETRY_AFTER_S = 120.0  # the most that one try waits: a run does not stand still for a day
# A failing replica is left alone for 1, 2, 4 ... 64 seconds, and up to half as long again by chance
FIRST_WAIT_S = 1.0
MAX_DOUBLINGS = 6
POLL_S = 0.05  # between two looks for a free replica
CHARACTERS_PER_TOKEN = 4  # of English text, where a server does not count
MOST_CHARACTERS_PER_TOKEN = 8  # a longer prompt than this allows does not fit, in any language
CONTEXT_S = 2.0  # for the one question how long the server's context is
MAX_CUTS = 8  # times that a prompt over the server's context is cut and sent again
CUT_SHARE = 0.75  # kept by each cut where the server does not say how long the prompt is
CUT_MARGIN = 0.95  # of the room that is aimed at: characters only estimate tokens
PASSING = {408, 409, 425, 429}  # and 5xx: the same request may succeed later
SETTINGS = {401, 403, 404}  # a wrong key, address or model name: no request can succeed

log = logging.getLogger(__name__)


class Replica:
    """One server: how many requests it has in flight, and until when it is left alone."""

    def __init__(self, url: str, max_away_s: float):
        self.url = url
        self.max_away_s = max_away_s
        self.client: openai.AsyncOpenAI | None = None  # while requests are out
        self.in_flight, self.num_failures = 0, 0
        self.away_until = 0.0  # on time.monotonic
        self.jitter = random.Random()  # its own: the global generator belongs to the experiment

    @property
    def is_away(self) -> bool:
        return time.monotonic() < self.away_until

    def set_aside(self, at_least_s: float) -> float:
        """Leave it alone, longer after each failure in a row; returns for how long, in seconds.

        `at_least_s` wins: the server asked for it.
        """
        wait_s = (
            FIRST_WAIT_S
            * 2 ** min(self.num_failures, MAX_DOUBLINGS)
            * self.jitter.uniform(1.0, 1.5)
        )
        wait_s = max(min(wait_s, self.max_away_s), at_least_s)
        self.num_failures += 1
        self.away_until = time.monotonic() + wait_s
        return wait_s


class EndpointExpert:
    """One model on remote servers.

    A request that fails is tried again on another replica, or on the same one after a growing wait.
    """

    is_remote = True
    memory_gb = 0.0

    def __init__(self, config: EndpointExpertConfig):
        self.config = config
        if any(
            parts.scheme not in ("http", "https") or "@" in parts.netloc or parts.query
            for parts in map(urlsplit, config.urls)
        ):
            raise ExpertError(
                f"expert {config.name}: urls are http(s)://host:port/v1, without password or query:"
                " they are saved with the run, keys belong in api_key_env"
            )
        self.prompt_format = PromptFormat.of(config)
        self.replicas = [Replica(url, config.max_away_s) for url in config.urls]
        self._error: ExpertError | None = None  # what ended the current call of answer
        self._estimates_tokens = False
        self._context: int | None = None  # tokens of prompt and answer, where the server says
        self._has_asked_context = False
        self._limit_name = "max_tokens"  # or what the server's error asks for
        self._can_stream = True  # until a server refuses, or sends no stream

    def identity(self) -> dict[str, Any]:
        """What makes this expert's answers its own.

        Not the URL: the same model on another machine gives the same answers.
        """
        config = self.config
        return {
            "kind": "endpoint",
            "model": config.model,
            "revision": config.revision,
            "format": self.prompt_format.identity(),
            "stop": list(config.stop),
        }

    def decoding(self) -> dict[str, Any]:
        return self.config.decoding.model_dump()

    def render(
        self,
        question: str,
        previous_answer: str | None,
        ktp: str,
        context: Sequence[Message] = (),
    ) -> str:
        """The prompt as sent: the text, or for prompt_format chat the messages as JSON (the server
        applies its template).
        """
        return self.prompt_format.render(
            question,
            previous_answer,
            ktp,
            lambda messages, **_: json.dumps(messages, ensure_ascii=False),
            context,
        )

    def load(self) -> None:
        """Look for the key. Raises ExpertError when its environment variable is not set."""
        if self.config.api_key_env and not os.environ.get(self.config.api_key_env):
            raise ExpertError(
                f"expert {self.config.name}: the environment variable {self.config.api_key_env}"
                " (api_key_env) is not set"
            )

    def unload(self) -> None:
        """Nothing of it is in this machine's memory."""

    @property
    def _key(self) -> str:
        """The key, read when needed and kept nowhere.

        Servers without keys get a word: the client insists on one.
        """
        return os.environ[self.config.api_key_env] if self.config.api_key_env else "none"

    def answer(self, prompts: Sequence[str] | Inbox) -> Iterator[list[tuple[int, Answer | None]]]:
        """Answers as they arrive, in lists of (number, answer); None for a request that failed for
        good under on_failure empty.

        Raises ExpertError when a request fails for good under on_failure stop, after what was in
        flight has been yielded.
        """
        self.load()
        self._error = None
        inbox = Inbox.of(prompts)
        running: dict[asyncio.Task[Answer | None], int] = {}
        num_slots = self.config.concurrency * len(self.replicas)
        with self._connected() as runner:
            runner.run(self._learn_context())
            try:
                while True:
                    if self._error is None:
                        for number, prompt in inbox.take(num_slots - len(running)):
                            on_text = inbox.listeners.get(number)
                            task = runner.get_loop().create_task(self._ask(prompt, on_text))
                            running[task] = number
                    if not running:
                        break
                    # With room left, look whether more is asked
                    patience = POLL_S if len(running) < num_slots else None
                    done, _ = runner.run(
                        asyncio.wait(running, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
                    )
                    if not done:
                        continue
                    yield _answers_of({running.pop(task): task for task in done})
            finally:
                for task in running:
                    task.cancel()
        if self._error is not None:
            raise self._error

    @contextlib.contextmanager
    def _connected(self) -> Iterator[asyncio.Runner]:
        """An event loop, and a client for each replica."""
        # The deadline of a whole request is _complete's
        timeout = openai.Timeout(None, connect=min(CONNECT_S, self.config.timeout_s))
        with asyncio.Runner() as runner:
            for replica in self.replicas:
                replica.client = openai.AsyncOpenAI(
                    api_key=self._key, base_url=replica.url, timeout=timeout, max_retries=0
                )
            try:
                yield runner
            finally:
                for replica in self.replicas:
                    if replica.client is not None:
                        runner.run(replica.client.close())
                    replica.client = None

    async def _learn_context(self) -> None:
        """Ask the first server, once, how many tokens it holds; many do not say.

        Raises ExpertError where the answer alone would fill them.
        """
        if self._has_asked_context:
            return
        self._has_asked_context = True
        client = self.replicas[0].client
        assert client is not None, "asked outside of `_connected`"
        silence = (openai.APIError, TimeoutError, ValueError, AttributeError, TypeError)
        with contextlib.suppress(*silence):
            async with asyncio.timeout(min(CONTEXT_S, self.config.timeout_s)):
                models = await client.models.list()
            self._context = model_context(models.data, self.config.model)
        max_new_tokens = self.config.decoding.max_new_tokens
        if self._context is not None and self._context <= max_new_tokens:
            raise ExpertError(
                f"expert {self.config.name}: max_new_tokens {max_new_tokens} leaves no room in the"
                f" server's context of {self._context} tokens"
            )

    async def _ask(self, prompt: str, on_text: OnText | None) -> Answer | None:
        """One request with all its tries; `on_text` is told the completion while it grows.

        Raises ExpertError naming replica, reason and number of tries.
        """
        failed_on: set[Replica] = set()
        tries = 0
        while tries <= self.config.max_retries:
            tries += 1
            replica = await self._free_replica(failed_on)
            try:
                answer = await self._complete(replica, prompt, on_text)
            except (openai.APIError, ReplyError, TimeoutError) as error:
                status, reason = getattr(error, "status_code", None), self._reason(error)
                if status is not None and 400 <= status < 500 and status not in PASSING:
                    break  # its own fault: another try would end the same
                failed_on.add(replica)
                # Else it is known: a failure of requests sent together counts once
                if not replica.is_away:
                    wait_s = replica.set_aside(_retry_after_s(error))
                    log.warning(
                        "expert %s: %s is set aside for %.1f s: %s",
                        self.config.name,
                        replica.url,
                        wait_s,
                        reason,
                    )
            else:
                replica.num_failures = 0
                return answer
            finally:
                replica.in_flight -= 1
        message = (
            f"expert {self.config.name}: {replica.url}: {reason} (tries: {tries}, replicas:"
            f" {len(self.replicas)})"
        )
        if self.config.on_failure == "empty" and status not in SETTINGS:
            log.warning("%s; going on with an empty answer that is not stored", message)
            return None
        self._error = ExpertError(
            f"{message}. What was answered is stored: mend the server or its settings and continue"
            " with --resume."
        )
        raise self._error

    async def _free_replica(self, failed_on: set[Replica]) -> Replica:
        """Wait for a replica with room and take a place on it; one where this request failed only
        when no other is in use.

        While another works, one whose last answer was a failure gets a single request at a time.
        Raises the ExpertError that ended another request.
        """
        while self._error is None:
            in_use = [replica for replica in self.replicas if not replica.is_away]
            is_one_sound = any(replica.num_failures == 0 for replica in in_use)
            in_use = [replica for replica in in_use if replica not in failed_on] or in_use
            free = [
                replica
                for replica in in_use
                if replica.in_flight
                < (1 if replica.num_failures and is_one_sound else self.config.concurrency)
            ]
            if free:
                replica = min(free, key=lambda replica: replica.in_flight)
                replica.in_flight += 1
                return replica
            await asyncio.sleep(POLL_S)
        raise self._error

    async def _complete(self, replica: Replica, prompt: str, on_text: OnText | None) -> Answer:
        """One try, which may take timeout_s. A prompt over the server's context loses its middle.

        Raises APIError, ReplyError or TimeoutError.
        """
        start = time.perf_counter()
        sent = self._cut_far_over(prompt)
        async with asyncio.timeout(self.config.timeout_s):
            for _ in range(MAX_CUTS):
                try:
                    completion = await self._send(replica, sent, on_text)
                    break
                except openai.BadRequestError as error:
                    overflow = overflow_in(error.message)
                    if overflow is None:
                        raise
                    sent = self._cut(sent, overflow)
            else:
                completion = await self._send(replica, sent, on_text)
        text = self._without_key(completion.text)
        prompt_tokens, completion_tokens = completion.prompt_tokens, completion.completion_tokens
        if prompt_tokens is None:
            prompt_tokens = self._estimate_tokens(sent)
        if completion_tokens is None:
            completion_tokens = self._estimate_tokens(text)
        answer = before_stop(text, self.config.stop)
        is_stopped = completion.finish == "length" and answer != text.strip()
        logprob_mean, logprob_min = mean_and_least(completion.logprobs)
        return Answer(
            answer,
            prompt_tokens,
            completion_tokens,
            latency_s=time.perf_counter() - start,
            prompt_cut=sent != prompt,
            finish="stop" if is_stopped else completion.finish,
            logprob_mean=logprob_mean,
            logprob_min=logprob_min,
        )

    async def _send(self, replica: Replica, prompt: str, on_text: OnText | None) -> Completion:
        """One completion. Raises APIError or ReplyError."""
        try:
            return await self._receive(replica, prompt, on_text)
        except openai.BadRequestError as error:
            if wants_completion_limit(error.message) and self._limit_name == "max_tokens":
                self._limit_name = "max_completion_tokens"
            elif on_text is not None and self._can_stream and "stream" in error.message:
                self._can_stream = False
            else:
                raise
        return await self._send(replica, prompt, on_text)

    async def _receive(self, replica: Replica, prompt: str, on_text: OnText | None) -> Completion:
        """One completion, streamed where somebody listens. Raises APIError or ReplyError."""
        is_chat = self.config.prompt_format == "chat"
        if on_text is not None and self._can_stream:
            told = {"stream": True, "stream_options": {"include_usage": True}}
            chunks = await self._request(replica, prompt, **told)
            streamed = await read_stream(chunks, self._keeping_key(on_text), is_chat=is_chat)
            if streamed.num_chunks:
                return streamed.completion()
            self._can_stream = False  # it has replied in one piece, which the client passes over
        return read_completion(await self._request(replica, prompt), is_chat=is_chat)

    def _without_key(self, text: str) -> str:
        """A text without the key, should a server repeat it."""
        return text.replace(self._key, "[key]") if self.config.api_key_env else text

    def _keeping_key(self, on_text: OnText) -> OnText:
        """The same listener, which never hears the key or a part of it."""
        if not self.config.api_key_env:
            return on_text
        return lambda text: on_text(without_start_of(self._key, self._without_key(text)))

    async def _request(self, replica: Replica, prompt: str, **told: Any) -> Any:
        """The server's reply to one request. Raises APIError or ReplyError."""
        decoding = self.config.decoding
        client = replica.client
        assert client is not None, "asked outside of `_connected`"
        options: dict[str, Any] = {
            "model": self.config.model,
            self._limit_name: decoding.max_new_tokens,
            "temperature": decoding.temperature,
            "top_p": decoding.top_p,
            "seed": decoding.seed,
            **told,
        }
        if self.config.stop:
            options["stop"] = list(self.config.stop)
        is_chat = self.config.prompt_format == "chat"
        if self.config.logprobs:
            options["logprobs"] = True if is_chat else 1
        if self.config.chat_template_kwargs:
            options["extra_body"] = {"chat_template_kwargs": self.config.chat_template_kwargs}
        try:
            if is_chat:
                messages = json.loads(prompt)
                return await client.chat.completions.create(messages=messages, **options)
            return await client.completions.create(prompt=prompt, **options)
        except (ValueError, AttributeError, TypeError) as error:
            raise ReplyError("the reply is not a completion") from error

    def _cut(self, prompt: str, overflow: Overflow) -> str:
        """The prompt cut to the room that the server's context leaves it."""
        share = CUT_SHARE
        context = overflow.context or self._context
        if context and overflow.prompt:
            room = context - self.config.decoding.max_new_tokens
            share = max(0.0, min(CUT_MARGIN * room / overflow.prompt, CUT_MARGIN))
        elif context:
            share = min(CUT_SHARE, self._share_of_room(prompt, CHARACTERS_PER_TOKEN))
        return self._without_middle(prompt, share)

    def _cut_far_over(self, prompt: str) -> str:
        """The prompt, cut where the context that the server told of cannot hold it.

        A server may cut what is too long in its own way, without a word.
        """
        share = self._share_of_room(prompt, MOST_CHARACTERS_PER_TOKEN)
        return prompt if share >= 1.0 else self._without_middle(prompt, CUT_MARGIN * share)

    def _share_of_room(self, prompt: str, characters_per_token: int) -> float:
        """How much of a prompt the known context has room for, by an estimate; 1 for all of it."""
        if self._context is None:
            return 1.0
        room = characters_per_token * (self._context - self.config.decoding.max_new_tokens)
        return max(0.0, min(1.0, room / len(prompt)))

    def _without_middle(self, prompt: str, share: float) -> str:
        """The prompt with `share` of what its last message asks."""
        if self.config.prompt_format != "chat":
            return cut_text(prompt, share)
        messages = json.loads(prompt)
        messages[-1]["content"] = cut_text(messages[-1]["content"], share)
        return json.dumps(messages, ensure_ascii=False)

    def _estimate_tokens(self, text: str) -> int:
        if not self._estimates_tokens:
            self._estimates_tokens = True
            log.warning(
                "expert %s: the server does not count tokens; %d characters are charged as one"
                " token",
                self.config.name,
                CHARACTERS_PER_TOKEN,
            )
        return -(-len(text) // CHARACTERS_PER_TOKEN)

    def _reason(self, error: Exception) -> str:
        """What went wrong in a line, without the key, should a server repeat it."""
        match error:
            case TimeoutError():
                reason = f"no answer within {self.config.timeout_s:g} s"
            case openai.APITimeoutError():
                reason = "no connection"
            case openai.APIConnectionError():
                reason = f"connection failed ({error.__cause__})"
            case openai.APIStatusError():
                reason = f"status {error.status_code}, {error.message}"
            case _:
                reason = str(error) or "the reply is not a completion"
        return self._without_key(reason)


def _answers_of(
    ended: Mapping[int, asyncio.Task[Answer | None]],
) -> list[tuple[int, Answer | None]]:
    """Answers of the requests that have ended, without those of requests that failed for good."""
    answers = []
    for number, task in ended.items():
        if not isinstance(task.exception(), ExpertError):
            answers.append((number, task.result()))
    return answers


def _retry_after_s(error: Exception) -> float:
    """How long the server asks to be left alone, in seconds, within reason; 0 where it does not
    say.
    """
    header = (
        error.response.headers.get("retry-after", "")
        if isinstance(error, openai.APIStatusError)
        else ""
    )
    return min(float(header), MAX_RETRY_AFTER_S) if header.isdecimal() else 0.0
