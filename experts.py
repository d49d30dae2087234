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
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

import torch

from backends.answer_store import Answer, AnswerStore, StoredAnswer, answer_key
from backends.dispatch import Dispatcher, Expert, OnText
from backends.hf import HFExpert
from backends.imported import imported_expert
from backends.live_answers import LiveAnswers
from backends.recorded import RecordedExpert, first_answers_of
from config import (
    AnyExpertConfig,
    Config,
    EndpointExpertConfig,
    HFExpertConfig,
    ImportedExpertConfig,
    PoolConfig,
    PromptedExpertConfig,
    RayExpertConfig,
    RecordedExpertConfig,
)
from metrics.registry import check_metrics
from prompts import Message, answer_of, content, handed_on
from questions import Question
from reward import Cost, call_cost
from runtime.errors import BudgetError
from runtime.machine import pick_device
from runtime.version import library_versions


@dataclass(frozen=True)
class Request:
    """One call: which expert, which question, and the answer it is handed.

    A `previous_answer` of None makes it a first call. `context` is what was said before the
    question, and part of the prompt.
    """

    expert_idx: int
    question: str
    previous_answer: str | None = None
    earlier: tuple[str, ...] = ()  # the answers before the previous one
    context: tuple[Message, ...] = ()
    on_text: OnText | None = None  # told the answer while it grows, where that can be done


@dataclass(eq=False)
class Call:
    """A request made of the pool, with its answer once there is one."""

    expert_idx: int  # the expert that is asked
    responder: Expert  # who answers: this expert, or the recording of its first answers
    prompt: str
    key: bytes
    answer: Answer | None = None
    error: str | None = None  # why there will be none, once the pool outlives failures
    on_text: OnText | None = None


@dataclass
class PoolStats:
    """Counters since the pool was made."""

    requests: int = 0
    hits: int = 0  # answered from the store
    generated: int = 0
    replayed: int = 0  # read from recorded answers
    failed: int = 0  # requests given up; their empty answers are not stored
    loads: int = 0
    cut_prompts: int = 0
    empty_answers: int = 0
    never_ended_thinking: int = 0  # empty answers whose thinking part ran out of tokens
    answer_s: float = 0.0  # wall seconds inside answer()

    @property
    def hit_rate(self) -> float:
        return self.hits / self.requests if self.requests else 0.0


class ExpertPool:
    """Experts and their store.

    `first_answers` maps an expert's index to recorded answers that stand for its first calls.
    `max_calls` bounds what the pool may generate; stored and recorded answers are free.
    `memory_gb` bounds the loaded weights. The least recently used expert is unloaded first.
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
        self.experts = list(experts)
        self.store = store
        self.ktp = ktp
        self.first_answers = dict(first_answers or {})
        self.max_calls = max_calls
        self.stats = PoolStats()
        # Called with the total of generated answers after every stored batch
        self.on_generated: Callable[[int], None] | None = None
        self._dispatcher = Dispatcher(self.experts, memory_gb)
        # Answer key -> calls that wait for this answer; equal requests are asked once
        self._under_way: dict[bytes, list[Call]] = {}
        self._live_answers = LiveAnswers()

    def __len__(self) -> int:
        return len(self.experts)

    def __deepcopy__(self, memo: dict[int, Any]) -> ExpertPool:
        """The pool itself.

        Gymnasium copies what an environment was made of, but models and an open store are shared.
        """
        return self

    def outlive_failures(self) -> None:
        """Let a failed request set its calls' `error` from now on, instead of an empty answer.

        An expert's error then ends the calls to this expert alone, and is not raised.
        """
        self._dispatcher.on_failure = self._give_up

    def _give_up(self, expert_idx: int, error: Exception, keys: Sequence[bytes]) -> None:
        """Note an expert's error at the calls that wait for it."""
        self.stats.failed += len(keys)
        reason = str(error) or type(error).__name__
        self._fail_calls(keys, f"expert {self.names[expert_idx]}: {reason}")

    def _fail_calls(self, keys: Sequence[bytes], reason: str) -> None:
        for key in keys:
            for call in self._under_way.pop(key, ()):
                call.error = reason

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
        """For each expert, whether its answers are recorded and do not depend on the prompt."""
        return [isinstance(expert.config, RecordedExpertConfig) for expert in self.experts]

    @functools.cached_property
    def identities(self) -> list[dict[str, Any]]:
        """For each expert, what makes its answers its own."""
        return [expert.identity() for expert in self.experts]

    @functools.cached_property
    def _first_identities(self) -> dict[int, dict[str, Any]]:
        """Expert index -> identity of its recorded first answers."""
        identities = {}
        for expert_idx, recording in self.first_answers.items():
            identities[expert_idx] = recording.identity()
        return identities

    @functools.cached_property
    def _identity_of_responder(self) -> dict[int, dict[str, Any]]:
        """Identity of every responder, by `id(responder)`: taken once, since it hashes weights."""
        identities = {}
        for expert, identity in zip(self.experts, self.identities, strict=True):
            identities[id(expert)] = identity
        for expert_idx, recording in self.first_answers.items():
            identities[id(recording)] = self._first_identities[expert_idx]
        return identities

    def fingerprint(self) -> list[dict[str, Any]]:
        """What an agent trained on this pool depends on, for each expert in the pool's order."""
        entries = []
        for expert_idx, expert in enumerate(self.experts):
            entry = {
                "name": expert.config.name,
                "params_b": expert.config.params_b,
                "identity": self.identities[expert_idx],
                "decoding": expert.decoding(),
            }
            if expert_idx in self.first_answers:
                entry["first_answers"] = self._first_identities[expert_idx]
            entries.append(entry)
        return entries

    def check_questions(self, questions: Sequence[Question]) -> None:
        """Check questions before anything is spent on them.

        Raises PromptError where an expert cannot be asked, MetricError where answers cannot be
        judged, and ExpertError where a recorded expert has no answer.
        """
        check_metrics(questions, [expert.config for expert in self.experts])
        for expert in self.experts:  # a chat template may refuse a prompt
            for previous_answer in (None, "2"):
                expert.render("What is 1 + 1?", previous_answer, self.ktp)
        self.check_recorded(questions)

    def check_recorded(self, questions: Sequence[Question]) -> None:
        """Raise ExpertError where a recorded expert has no answer to one of the questions."""
        for expert in self.experts:
            if isinstance(expert, RecordedExpert):
                expert.check_questions(questions)

    def responder(self, request: Request) -> Expert:
        """Who answers a request: the expert, or its recorded first answers where they have it."""
        expert = self.experts[request.expert_idx]
        recording = self.first_answers.get(request.expert_idx)
        if recording is None or request.context:
            return expert
        asked = self.content(request)
        if asked == request.question and request.question in recording:
            return recording
        return expert

    def content(self, request: Request) -> str:
        """What a request says, before the format of its responder."""
        return content(request.question, self._handed_on(request), self.ktp)

    def render(self, request: Request) -> str:
        """The prompt of a request, as its responder wants it."""
        return self._render(self.responder(request), request)

    def _render(self, responder: Expert, request: Request) -> str:
        handed = self._handed_on(request)
        return responder.render(request.question, handed, self.ktp, request.context)

    def _handed_on(self, request: Request) -> str | None:
        return handed_on(request.previous_answer, request.earlier, self.ktp)

    def key(self, responder: Expert, prompt: str) -> bytes:
        """The store's key of a responder's answer to a prompt."""
        identity = self._identity_of_responder[id(responder)]
        return answer_key(identity, prompt, responder.decoding())

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
        """One call per request, in order.

        Calls whose answers are stored or recorded have them already. `advance` brings the others.
        `on_missing(n)` is told how many answers have to be generated.

        Raises BudgetError when `max_calls` would be exceeded, after what is under way has been
        finished; StoreError.
        """
        start = time.perf_counter()
        calls = [self._call(request) for request in requests]
        found = self.store.get_many([call.key for call in calls])
        for call in calls:
            self.stats.hits += call.key in found
        missing = self._missing(calls, found)
        found |= self._replay_recorded(missing)
        new = []
        for call in calls:
            if missing.get(call.key) is call and call.key not in found:
                new.append(call)
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
            self._submit(call)
        self.stats.answer_s += time.perf_counter() - start
        return calls

    def _submit(self, call: Call) -> None:
        config = call.responder.config
        on_text = self._live_answers.listener(config, call.prompt, call.on_text)
        self._dispatcher.submit(call.expert_idx, call.key, call.prompt, on_text)

    def _call(self, request: Request) -> Call:
        responder = self.responder(request)
        prompt = self._render(responder, request)
        key = self.key(responder, prompt)
        return Call(request.expert_idx, responder, prompt, key, on_text=request.on_text)

    def _missing(self, calls: Sequence[Call], found: Mapping[bytes, Answer]) -> dict[bytes, Call]:
        """Calls without a stored answer that nobody has asked yet; of equal calls the first."""
        missing = {}
        for call in reversed(calls):
            if call.key not in found and call.key not in self._under_way:
                missing[call.key] = call
        return missing

    def _replay_recorded(self, missing: Mapping[bytes, Call]) -> dict[bytes, Answer]:
        """Answer what recordings can answer."""
        replayed: dict[bytes, Answer] = {}
        for responder in (*self.experts, *self.first_answers.values()):
            if not isinstance(responder.config, RecordedExpertConfig):
                continue
            prompts = {}
            for key, call in missing.items():
                if call.responder is responder:
                    prompts[key] = call.prompt
            if prompts:
                replayed |= self._replay(responder, prompts)
        return replayed

    def advance(self, wake: Future[None] | None = None) -> None:
        """Do a little of what was started.

        The local expert that has most to do generates a few tokens. Whatever has arrived from
        remote experts is taken in; there is no waiting for them once `wake` is done.

        Raises ExpertError and StoreError as they come. All calls under way are then forgotten;
        what is stored stays.
        """
        start = time.perf_counter()
        try:
            self._dispatcher.advance(self._keep, wake)
        except BaseException:
            self._under_way.clear()
            raise
        finally:
            self.stats.loads = self._dispatcher.num_loads
            self.stats.answer_s += time.perf_counter() - start

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way."""
        return not self._under_way

    def _finish(self, call: Call, stored: Answer) -> None:
        """Make a stored completion the call's answer: what follows its thinking part.

        Every reader of answers gets them from here. Tokens and costs stay those of the whole.
        """
        config = call.responder.config
        text = answer_of(stored.text, config.thinking_tags, call.prompt)
        self._live_answers.note(config, call.prompt, stored)
        answer = stored
        if text != stored.text:
            answer = replace(stored, text=text, whole_text=stored.text)
        call.answer = answer
        self.stats.cut_prompts += answer.prompt_cut
        self.stats.empty_answers += not answer.text.strip()
        self.stats.never_ended_thinking += answer.never_ended_thinking

    def _replay(self, recording: Expert, prompts: dict[bytes, str]) -> dict[bytes, Answer]:
        """Copy recorded answers into the store. None of them counts as generated."""
        name = recording.config.name
        keys = list(prompts)
        kept: dict[bytes, Answer] = {}
        for batch in recording.answer(list(prompts.values())):
            rows = []
            for request_id, answer in batch:
                if answer is not None:
                    key = keys[request_id]
                    rows.append(StoredAnswer(key, name, prompts[key], answer))
            kept |= self.store.put_many(rows)
        self.stats.replayed += len(kept)
        return kept

    def _check_budget(self, num_new: int) -> None:
        if self.max_calls is None:
            return
        if self.stats.generated + len(self._under_way) + num_new <= self.max_calls:
            return
        while self._under_way:
            self.advance()
        raise BudgetError(
            f"train.max_expert_calls = {self.max_calls}: {self.stats.generated} answers generated,"
            f" {num_new} more needed. Everything generated is stored; raise the limit and continue"
            " with --resume."
        )

    def _keep(self, expert_idx: int, rows: list[tuple[bytes, str, Answer | None]]) -> None:
        """Store a batch of rows (key, prompt, answer) and hand it to the calls that wait.

        Calls get the answers that the store holds, which another process may have written first.
        A failed request (None) counts as an empty answer that is not stored.
        """
        name = self.experts[expert_idx].config.name
        answered = []
        for key, prompt, answer in rows:
            if answer is not None:
                answered.append(StoredAnswer(key, name, prompt, answer))
        kept = self.store.put_many(answered)
        self.stats.generated += len(answered)
        self.stats.failed += len(rows) - len(answered)
        if self.on_generated is not None:
            self.on_generated(self.stats.generated)
        if self._dispatcher.on_failure is not None:
            failed = [key for key, _, answer in rows if answer is None]
            self._fail_calls(failed, f"expert {name} gave no answer")
        for key, _, answer in rows:
            stored = Answer("", 0, 0, 0.0) if answer is None else kept[key]
            for call in self._under_way.pop(key, ()):
                self._finish(call, stored)


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
        case ImportedExpertConfig():
            return imported_expert(expert)
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
    """The pool of a configuration, which may generate `max_calls` answers.

    No weights are loaded yet. Recorded answers have been read and checked.

    Raises ExpertError naming file and line for recorded answers that are broken, incomplete or
    cannot be charged.
    """
    device = pick_device(config.device)
    experts = [build_expert(expert, config.pool, device) for expert in config.pool.experts]
    first_answers: dict[int, RecordedExpert] = {}
    for idx, expert in enumerate(config.pool.experts):
        if isinstance(expert, PromptedExpertConfig) and expert.first_answers:
            first_answers[idx] = first_answers_of(experts[idx], expert)
    for responder in (*experts, *first_answers.values()):
        if isinstance(responder, RecordedExpert):
            responder.check_charge(config.reward.cost)
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
