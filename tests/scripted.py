"""Experts whose answers a test writes down: no weights, nothing random, every call counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from backends.answer_store import Answer
from backends.dispatch import Inbox
from config import HFExpertConfig
from prompts import Message, content, transcript

AnswerFunction = Callable[[str, str | None], str]  # (question, previous answer or None) -> text

LATENCY_S = 0.5  # of every scripted call


class ScriptedExpert:
    """A `dispatch.Expert`. Token counts are word counts, so costs can be worked out by hand.

    `num_answer_calls` counts calls of `answer`, `prompts` holds every prompt generated for,
    `events` the loads and unloads.
    """

    is_remote = False

    def __init__(
        self,
        function: AnswerFunction,
        name: str = "scripted",
        *,
        params_b: float = 1.0,
        memory_gb: float = 1.0,
        batch_size: int = 8,
        events: list[str] | None = None,
        **config: Any,
    ):
        self.function, self.batch_size, self._memory_gb = function, batch_size, memory_gb
        self.config = HFExpertConfig(
            name=name, source=f"scripted/{name}", params_b=params_b, prompt_format="plain", **config
        )
        self.num_answer_calls = 0
        self.prompts: list[str] = []
        self.events = [] if events is None else events
        self.is_loaded = False
        self._asked: dict[str, tuple[str, str | None]] = {}

    def identity(self) -> dict[str, Any]:
        return {"kind": "scripted", "name": self.config.name}

    def decoding(self) -> dict[str, Any]:
        return self.config.decoding.model_dump()

    def render(
        self,
        question: str,
        previous_answer: str | None,
        ktp: str,
        context: Sequence[Message] = (),
    ) -> str:
        prompt = transcript(context) + content(question, previous_answer, ktp)
        # ktp none-v1 hides the previous answer
        self._asked[prompt] = (
            question,
            None if prompt == transcript(context) + question else previous_answer,
        )
        return prompt

    def answer(self, prompts: Sequence[str] | Inbox) -> Iterator[list[tuple[int, Answer]]]:
        assert self.is_loaded, f"{self.config.name} was asked before it was loaded"
        self.num_answer_calls += 1
        inbox = Inbox.of(prompts)
        while inbox:
            yield [(number, self._answer(prompt)) for number, prompt in inbox.take(self.batch_size)]

    def _answer(self, prompt: str) -> Answer:
        self.prompts.append(prompt)
        text = self.function(*self._asked[prompt])
        return Answer(
            text,
            prompt_tokens=len(prompt.split()),
            completion_tokens=len(text.split()),
            latency_s=LATENCY_S,
        )

    @property
    def memory_gb(self) -> float:
        return self._memory_gb

    def load(self) -> None:
        self.is_loaded = True
        self.events.append(f"load {self.config.name}")

    def unload(self) -> None:
        self.is_loaded = False
        self.events.append(f"unload {self.config.name}")
