"""The expert pool: many LLMs behind one call.

    pool = build_pool(config)
    requests = [Request(expert_idx=0, question="2 + 2?"), Request(1, "2 + 2?", previous_answer="5")]
    answers = pool.answer(requests)

`answer` takes the steps of all environments at once: it looks up the store, drops duplicates, lets
each expert generate in batches and writes back. `start` and `advance` do the same without waiting
for all. Nothing else in the project asks an LLM.
"""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from backends.answer_store import Answer, AnswerStore, StoredAnswer, answer_key
from backends.dispatch import Dispatcher, Expert
from backends.hf import HFExpert
from backends.recorded import RecordedExpert, first_answers_of
from config import (
    AnyExpertConfig,
    Config,
    EndpointExpertConfig,
    HFExpertConfig,
    PoolConfig,
    PromptedExpertConfig,
    RayExpertConfig,
    RecordedExpertConfig,
)
from metrics.registry import check_metrics
from prompts import answer_of, content
from questions import Question
from reward import Cost, call_cost
from runtime.errors import BudgetError
from runtime.machine import pick_device
from runtime.version import library_versions


@dataclass(frozen=True)
class Request:
    """One call: which expert, which question, and the answer it is handed (None: the first
    call).
    """

    expert_idx: int
    question: str
    previous_answer: str | None = None


@dataclass(eq=False)
class Call:
    """A request made of the pool; its answer once there is one."""

    voice: int  # who answers
    prompt: str
    key: bytes
    answer: Answer | None = None


@dataclass
class PoolStats:
    """Counters since the pool was made."""

    requests: int = 0
    hits: int = 0  # answered from the store
    generated: int = 0
    replayed: int = 0  # read from recorded answers
    failed: int = 0  # requests given up: their empty answers are not stored
    loads: int = 0
    cut_prompts: int = 0
    empty_answers: int = 0
    never_ended_thinking: int = 0  # of the empty ones: thinking parts that ran out of tokens
    answer_s: float = 0.0  # wall seconds inside answer()

    @property
    def hit_rate(self) -> float:
        return self.hits / self.requests if self.requests else 0.0


class ExpertPool:
    """Experts and their store.

    `first_answers`, by expert, are recorded answers that stand for its first calls. `max_calls`
    bounds what the pool may generate (stored and recorded answers are free); `memory_gb` bounds the
    loaded weights, the least recently used expert leaving first.
    """

    def __init__(
        self,
        experts: Sequence[Expert],
        store: AnswerStore,
        *,
        ktp: str = "paper-v1",
        memory_gb: float | None = None,
        max_calls: int | None = None,
        first_answers: Mapping[int, RecordedExpert] | None = None,
    ):
        self.experts, self.store, self.ktp = list(experts), store, ktp
        self.first_answers = dict(first_answers or {})
        self.voices: list[Expert] = [
            *self.experts,
            *self.first_answers.values(),
        ]  # all who can answer
        self._first_voice = {
            expert_idx: len(self.experts) + n for n, expert_idx in enumerate(self.first_answers)
        }
        self.max_calls = max_calls
        self.stats = PoolStats()
        self.on_generated: Callable[[int], None] | None = (
            None  # told the total after every stored batch
        )
        self._dispatcher = Dispatcher(self.experts, memory_gb)
        self._under_way: dict[bytes, list[Call]] = {}  # by key: equal requests are asked once

    def __len__(self) -> int:
        return len(self.experts)

    def __deepcopy__(self, memo: dict[int, Any]) -> ExpertPool:
        """Itself: Gymnasium copies what an environment was made of, but models and an open store
        are shared.
        """
        return self

    def with_ktp(self, ktp: str) -> ExpertPool:
        """The same experts, store and counters under another Knowledge Transfer Prompt."""
        other = copy.copy(self)
        other.ktp = ktp
        return other

    @property
    def names(self) -> list[str]:
        return [expert.config.name for expert in self.experts]

    @property
    def total_params_b(self) -> float:
        return sum(expert.config.params_b for expert in self.experts)

    @functools.cached_property
    def is_recorded(self) -> list[bool]:
        """By voice: whether its answers are replayed, whatever the prompt."""
        return [isinstance(voice.config, RecordedExpertConfig) for voice in self.voices]

    @functools.cached_property
    def identities(self) -> list[dict[str, Any]]:
        """By voice."""
        return [voice.identity() for voice in self.voices]

    def fingerprint(self) -> list[dict[str, Any]]:
        """What an agent trained on this pool depends on: names, weights and costs of the experts in
        order.
        """
        first = {
            expert_idx: {"first_answers": self.identities[voice]}
            for expert_idx, voice in self._first_voice.items()
        }
        return [
            {
                "name": e.config.name,
                "params_b": e.config.params_b,
                "identity": self.identities[idx],
                "decoding": e.decoding(),
                **first.get(idx, {}),
            }
            for idx, e in enumerate(self.experts)
        ]

    def check_questions(self, questions: Sequence[Question]) -> None:
        """Raise before anything is spent on them: PromptError where an expert cannot be asked,
        MetricError where answers cannot be judged,
        ExpertError where a recorded expert has none.
        """
        check_metrics(questions, [expert.config for expert in self.experts])
        for expert in self.experts:  # a template that refuses is better known now
            for previous_answer in (None, "2"):
                expert.render("What is 1 + 1?", previous_answer, self.ktp)
        for expert in self.experts:
            if isinstance(expert, RecordedExpert):
                expert.check_questions(questions)

    def voice(self, request: Request) -> int:
        """Who answers, an index into `voices`: the expert, or on a first call its recorded answers
        where they have the question.
        """
        recorded = self.first_answers.get(request.expert_idx)
        if recorded is None:
            return request.expert_idx
        asked = content(request.question, request.previous_answer, self.ktp)
        if asked == request.question and request.question in recorded:
            return self._first_voice[request.expert_idx]
        return request.expert_idx

    def render(self, request: Request) -> str:
        return self.voices[self.voice(request)].render(
            request.question, request.previous_answer, self.ktp
        )

    def key(self, voice: int, prompt: str) -> bytes:
        return answer_key(self.identities[voice], prompt, self.voices[voice].decoding())

    def cost(self, expert_idx: int, answer: Answer) -> Cost:
        return call_cost(
            self.experts[expert_idx].config,
            answer.prompt_tokens,
            answer.completion_tokens,
            answer.latency_s,
        )

    def answer(
        self, requests: Sequence[Request], on_missing: Callable[[int], None] | None = None
    ) -> list[Answer]:
        """One answer per request, in order. Every generated batch is stored as it arrives.

        Raises as `start` and `advance` do.
        """
        calls = self.start(requests, on_missing)
        while any(call.answer is None for call in calls):
            self.advance()
        return [call.answer for call in calls if call.answer is not None]

    def start(
        self, requests: Sequence[Request], on_missing: Callable[[int], None] | None = None
    ) -> list[Call]:
        """One call per request, in order; those whose answers are stored or recorded have them
        already, `advance` brings the others.

        `on_missing(n)` is told how many answers will have to be generated.

        Raises BudgetError when `max_calls` would be exceeded, after what is under way has been
        finished; StoreError.
        """
        start = time.perf_counter()
        voices = [self.voice(request) for request in requests]
        prompts = [
            self.voices[voice].render(r.question, r.previous_answer, self.ktp)
            for voice, r in zip(voices, requests, strict=True)
        ]
        calls = [
            Call(voice, prompt, self.key(voice, prompt))
            for voice, prompt in zip(voices, prompts, strict=True)
        ]
        found = self.store.get_many([call.key for call in calls])
        self.stats.hits += sum(call.key in found for call in calls)
        missing = {
            call.key: call
            for call in reversed(calls)
            if call.key not in found and call.key not in self._under_way
        }  # of equal ones the first
        for voice in {call.voice for call in missing.values() if self.is_recorded[call.voice]}:
            found |= self._replay(
                voice, {key: call.prompt for key, call in missing.items() if call.voice == voice}
            )
        new = [call for call in calls if missing.get(call.key) is call and call.key not in found]
        if on_missing is not None:
            on_missing(len(new))
        self._check_budget(len(new))
        self.stats.requests += len(calls)
        for call in calls:
            if call.key in found:
                self._finish(call, found[call.key])
            else:
                self._under_way.setdefault(call.key, []).append(call)
        for call in new:
            self._dispatcher.submit(call.voice, call.key, call.prompt)
        self.stats.answer_s += time.perf_counter() - start
        return calls

    def advance(self) -> None:
        """Do a little of what was started: a round of tokens for the local expert that has most to
        do, and whatever has arrived from remote ones.

        Raises ExpertError and StoreError as they come; all that was under way is then forgotten,
        but for what is stored.
        """
        start = time.perf_counter()
        try:
            self._dispatcher.advance(self._keep)
        except BaseException:
            self._under_way.clear()
            raise
        finally:
            self.stats.loads, self.stats.answer_s = (
                self._dispatcher.num_loads,
                self.stats.answer_s + time.perf_counter() - start,
            )

    def _finish(self, call: Call, stored: Answer) -> None:
        """Make a stored completion the call's answer: what follows its thinking part.

        All that read answers read them from here. Tokens and costs stay those of the whole.
        """
        tags = self.voices[call.voice].config.thinking_tags
        text = answer_of(stored.text, tags, call.prompt)
        has_thought = text != stored.text
        answer = replace(stored, text=text, whole_text=stored.text) if has_thought else stored
        call.answer = answer
        self.stats.cut_prompts += answer.prompt_cut
        self.stats.empty_answers += not answer.text.strip()
        self.stats.never_ended_thinking += answer.never_ended_thinking

    def _replay(self, voice: int, prompts: dict[bytes, str]) -> dict[bytes, Answer]:
        """Copy recorded answers into the store: nothing is loaded, and nothing counts as
        generated.
        """
        speaker = self.voices[voice]
        keys = list(prompts)
        kept: dict[bytes, Answer] = {}
        for batch in speaker.answer(list(prompts.values())):
            rows = [
                StoredAnswer(keys[index], speaker.config.name, prompts[keys[index]], answer)
                for index, answer in batch
                if answer is not None
            ]
            kept |= self.store.put_many(rows)
        self.stats.replayed += len(kept)
        return kept

    def _check_budget(self, num_new: int) -> None:
        if (
            self.max_calls is None
            or self.stats.generated + len(self._under_way) + num_new <= self.max_calls
        ):
            return
        while self._under_way:
            self.advance()
        raise BudgetError(
            f"train.max_expert_calls = {self.max_calls}: {self.stats.generated} answers generated,"
            f" {num_new} more needed. Everything generated is stored; raise the limit and continue"
            " with --resume."
        )

    def _keep(self, expert_idx: int, rows: list[tuple[bytes, str, Answer | None]]) -> None:
        """Store a batch (key, prompt, answer); what the store kept is what counts.

        A failed request counts as an empty answer, this once.
        """
        name = self.experts[expert_idx].config.name
        answered = [
            StoredAnswer(key, name, prompt, answer)
            for key, prompt, answer in rows
            if answer is not None
        ]
        kept = self.store.put_many(answered)
        self.stats.generated += len(answered)
        self.stats.failed += len(rows) - len(answered)
        if self.on_generated is not None:
            self.on_generated(self.stats.generated)
        for key, _, answer in rows:
            for call in self._under_way.pop(key, ()):
                self._finish(call, Answer("", 0, 0, 0.0) if answer is None else kept[key])


def build_expert(expert: AnyExpertConfig, pool: PoolConfig, device: torch.device) -> Expert:
    """An expert of any kind.

    Nothing is loaded or contacted yet; what a kind needs is imported only where it is used.
    """
    match expert:
        case RecordedExpertConfig():
            return RecordedExpert(expert)
        case EndpointExpertConfig():
            from backends.endpoint import EndpointExpert

            return EndpointExpert(expert)
        case RayExpertConfig():
            from backends.ray_actors import RayExpert

            return RayExpert(expert, pool)
        case HFExpertConfig():
            return HFExpert(
                expert,
                device,
                max_batch_tokens=pool.max_batch_tokens,
                max_batch_size=pool.max_batch_size,
            )


def build_pool(config: Config, max_calls: int | None = None) -> ExpertPool:
    """The pool of a configuration, which may generate `max_calls` answers. No weights are loaded
    yet; recorded answers have been read and checked.

    Raises ExpertError naming file and line for recorded answers that are broken, incomplete or
    cannot be charged.
    """
    device = pick_device(config.device)
    experts = [build_expert(expert, config.pool, device) for expert in config.pool.experts]
    first_answers: dict[int, RecordedExpert] = {}
    for idx, expert in enumerate(config.pool.experts):
        if isinstance(expert, PromptedExpertConfig) and expert.first_answers:
            first_answers[idx] = first_answers_of(experts[idx], expert)
    for voice in (*experts, *first_answers.values()):
        if isinstance(voice, RecordedExpert):
            voice.check_charge(config.reward.cost)
    store = AnswerStore(config.pool.store, library_versions())
    store.check_small()
    return ExpertPool(
        experts,
        store,
        ktp=config.env.ktp,
        memory_gb=config.pool.memory_gb,
        max_calls=max_calls,
        first_answers=first_answers,
    )
