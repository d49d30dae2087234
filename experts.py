"""The expert pool: many LLMs behind one call.

    pool = build_pool(config)
    answers = pool.answer([Request(expert_idx=0, question="2 + 2?"), Request(1, "2 + 2?", previous_answer="5")])

`answer` takes the steps of all environments at once: it looks up the store, drops duplicates, groups by expert, lets each expert
generate in batches and writes back. Nothing else in the project asks an LLM.
"""

from __future__ import annotations

import copy
import functools
import importlib.metadata
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from answer_store import Answer, AnswerStore, StoredAnswer, answer_key
from config import Config, DERError, EndpointExpertConfig, ExpertConfig, PoolConfig, RayExpertConfig, RecordedExpertConfig
from hf_expert import HFExpert
from placement import pick_device
from prompts import content
from questions import Question
from recorded_expert import RecordedExpert, first_answers_of
from reward import Cost, call_cost, check_metrics


class BudgetError(DERError):
    """The run has generated as many answers as it was allowed to."""


@dataclass(frozen=True)
class Request:
    """One call: which expert, which question, and the answer it is handed (None: the first call)."""

    expert_idx: int
    question: str
    previous_answer: str | None = None


class Expert(Protocol):
    """What the pool asks of an expert kind. `answer` says None for a request that failed for good where the run is to go on."""

    config: ExpertConfig
    is_remote: bool  # works on other machines, so that it is asked at the same time as the other remote ones, from a thread

    def identity(self) -> dict[str, Any]: ...
    def decoding(self) -> dict[str, Any]: ...
    def render(self, question: str, previous_answer: str | None, ktp: str) -> str: ...
    def answer(self, prompts: Sequence[str]) -> Iterator[list[tuple[int, Answer | None]]]: ...
    def load(self) -> None: ...
    def unload(self) -> None: ...

    @property
    def memory_gb(self) -> float: ...


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
    answer_s: float = 0.0  # wall seconds inside answer()

    @property
    def hit_rate(self) -> float:
        return self.hits / self.requests if self.requests else 0.0


class ExpertPool:
    """Experts and their store.

    `first_answers`, by expert, are recorded answers that stand for its first calls. `max_calls` bounds what the pool may generate (stored
    and recorded answers are free); `memory_gb` bounds the loaded weights, the least recently used expert leaving first.
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
        self.voices: list[Expert] = [*self.experts, *self.first_answers.values()]  # all who can answer
        self._first_voice = {expert_idx: len(self.experts) + n for n, expert_idx in enumerate(self.first_answers)}
        self.memory_gb, self.max_calls = memory_gb, max_calls
        self.stats = PoolStats()
        self.on_generated: Callable[[int], None] | None = None  # told the total after every stored batch
        self._loaded: dict[int, None] = {}  # in order of use

    def __len__(self) -> int:
        return len(self.experts)

    def __deepcopy__(self, memo: dict[int, Any]) -> ExpertPool:
        """Itself: Gymnasium copies what an environment was made of, but models and an open store are shared."""
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
        """What an agent trained on this pool depends on: names, weights and costs of the experts in order."""
        first = {expert_idx: {"first_answers": self.identities[voice]} for expert_idx, voice in self._first_voice.items()}
        return [
            {"name": e.config.name, "params_b": e.config.params_b, "identity": self.identities[idx], "decoding": e.decoding(), **first.get(idx, {})}
            for idx, e in enumerate(self.experts)
        ]

    def check_questions(self, questions: Sequence[Question]) -> None:
        """Raise before anything is spent on them: MetricError where answers cannot be judged, ExpertError where a recorded expert has none."""
        check_metrics(questions, [expert.config for expert in self.experts])
        for expert in self.experts:
            if isinstance(expert, RecordedExpert):
                expert.check_questions(questions)

    def voice(self, request: Request) -> int:
        """Who answers, an index into `voices`: the expert, or on a first call its recorded answers where they have the question."""
        first = self._first_voice.get(request.expert_idx)
        is_bare = first is not None and content(request.question, request.previous_answer, self.ktp) == request.question
        return first if is_bare and request.question in self.voices[first] else request.expert_idx

    def render(self, request: Request) -> str:
        return self.voices[self.voice(request)].render(request.question, request.previous_answer, self.ktp)

    def key(self, voice: int, prompt: str) -> bytes:
        return answer_key(self.identities[voice], prompt, self.voices[voice].decoding())

    def cost(self, expert_idx: int, answer: Answer) -> Cost:
        return call_cost(self.experts[expert_idx].config, answer.prompt_tokens, answer.completion_tokens, answer.latency_s)

    def answer(self, requests: Sequence[Request], on_missing: Callable[[int], None] | None = None) -> list[Answer]:
        """One answer per request, in order. Every generated batch is in the store before the next begins.

        `on_missing(n)` is told how many answers will have to be generated, before the first is.

        Raises BudgetError before generating when `max_calls` would be exceeded, ExpertError and StoreError as they come.
        """
        start = time.perf_counter()
        voices = [self.voice(request) for request in requests]
        prompts = [self.voices[voice].render(r.question, r.previous_answer, self.ktp) for voice, r in zip(voices, requests, strict=True)]
        keys = [self.key(voice, prompt) for voice, prompt in zip(voices, prompts, strict=True)]
        found = self.store.get_many(keys)
        self.stats.hits += sum(key in found for key in keys)
        missing: dict[int, dict[bytes, str]] = {}
        for voice, prompt, key in zip(voices, prompts, keys, strict=True):
            if key not in found:
                missing.setdefault(voice, {})[key] = prompt
        for voice in [voice for voice in missing if self.is_recorded[voice]]:
            found |= self._replay(voice, missing.pop(voice))
        num_missing = sum(map(len, missing.values()))
        if on_missing is not None:
            on_missing(num_missing)
        self._check_budget(num_missing)
        local = [idx for idx in missing if not self.experts[idx].is_remote]
        if len(local) < len(missing):
            found |= self._generate_remotely({idx: prompts for idx, prompts in missing.items() if idx not in local})
        for expert_idx in sorted(local, key=lambda idx: (idx not in self._loaded, idx)):  # loaded experts first: each loads at most once
            found |= self._generate(expert_idx, missing[expert_idx])
        answers = [found[key] for key in keys]
        self.stats.requests += len(requests)
        self.stats.cut_prompts += sum(answer.prompt_cut for answer in answers)
        self.stats.empty_answers += sum(not answer.text.strip() for answer in answers)
        self.stats.answer_s += time.perf_counter() - start
        return answers

    def _replay(self, voice: int, prompts: dict[bytes, str]) -> dict[bytes, Answer]:
        """Copy recorded answers into the store: nothing is loaded, and nothing counts as generated."""
        speaker, asked, kept = self.voices[voice], list(prompts.items()), {}
        for batch in speaker.answer(list(prompts.values())):
            kept |= self.store.put_many([StoredAnswer(asked[index][0], speaker.config.name, asked[index][1], answer) for index, answer in batch])
        self.stats.replayed += len(kept)
        return kept

    def _check_budget(self, num_new: int) -> None:
        if self.max_calls is not None and self.stats.generated + num_new > self.max_calls:
            raise BudgetError(
                f"train.max_expert_calls = {self.max_calls}: {self.stats.generated} answers generated, {num_new} more needed. "
                "Everything generated is stored; raise the limit and continue with --resume."
            )

    def _generate(self, expert_idx: int, prompts: dict[bytes, str]) -> dict[bytes, Answer]:
        """Generate and store, batch by batch."""
        kept, asked = {}, list(prompts.items())
        self._make_room(expert_idx)
        for batch in self.experts[expert_idx].answer(list(prompts.values())):
            kept |= self._keep(expert_idx, asked, batch)
        return kept

    def _generate_remotely(self, missing: dict[int, dict[bytes, str]]) -> dict[bytes, Answer]:
        """Generate with several experts at once, each in a thread of its own; this thread stores what arrives.

        When one fails the others finish first: what they were asked is needed all the same.
        """
        kept, errors = {}, []
        for expert_idx in missing:
            self._make_room(expert_idx)
        asked = {idx: list(prompts.items()) for idx, prompts in missing.items()}
        streams = {idx: iter(self.experts[idx].answer(list(prompts.values()))) for idx, prompts in missing.items()}
        with ThreadPoolExecutor(len(streams)) as threads:
            waiting = {threads.submit(next, stream, None): idx for idx, stream in streams.items()}
            while waiting:
                for arrived in wait(waiting, return_when=FIRST_COMPLETED).done:
                    expert_idx = waiting.pop(arrived)
                    if isinstance(error := arrived.exception(), DERError):
                        errors.append(error)
                    elif (batch := arrived.result()) is not None:
                        waiting[threads.submit(next, streams[expert_idx], None)] = expert_idx
                        kept |= self._keep(expert_idx, asked[expert_idx], batch)
        if errors:
            raise errors[0]
        return kept

    def _keep(self, expert_idx: int, asked: list[tuple[bytes, str]], batch: Sequence[tuple[int, Answer | None]]) -> dict[bytes, Answer]:
        """Store a batch of answers to `asked` (key, prompt); what the store kept is what counts. A failed request counts as an empty answer, this once."""
        name = self.experts[expert_idx].config.name
        rows = [StoredAnswer(asked[index][0], name, asked[index][1], answer) for index, answer in batch if answer is not None]
        kept = self.store.put_many(rows)
        self.stats.generated += len(rows)
        self.stats.failed += len(batch) - len(rows)
        if self.on_generated is not None:
            self.on_generated(self.stats.generated)
        return kept | {asked[index][0]: Answer("", 0, 0, 0.0) for index, answer in batch if answer is None}

    def _make_room(self, expert_idx: int) -> None:
        """Load an expert, after evicting others where the memory limit asks for it."""
        expert = self.experts[expert_idx]
        if expert_idx in self._loaded:
            self._loaded.pop(expert_idx)
        else:
            while self.memory_gb is not None and self._loaded and self._used_gb() + expert.memory_gb > self.memory_gb:
                oldest = next(iter(self._loaded))
                self.experts[oldest].unload()
                self._loaded.pop(oldest)
            expert.load()
            self.stats.loads += 1
        self._loaded[expert_idx] = None

    def _used_gb(self) -> float:
        return sum(self.experts[idx].memory_gb for idx in self._loaded)


def library_versions() -> dict[str, str]:
    """Versions that stand beside each stored answer and in a run's environment.json."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in ("torch", "transformers", "tokenizers", "tianshou", "numpy")}}


def build_expert(expert: ExpertConfig, pool: PoolConfig, device: torch.device) -> Expert:
    """An expert of any kind. Nothing is loaded or contacted yet; what a kind needs is imported only where it is used."""
    match expert:
        case RecordedExpertConfig():
            return RecordedExpert(expert)
        case EndpointExpertConfig():
            from endpoint_expert import EndpointExpert

            return EndpointExpert(expert)
        case RayExpertConfig():
            from ray_expert import RayExpert

            return RayExpert(expert, pool)
    return HFExpert(expert, device, max_batch_tokens=pool.max_batch_tokens, max_batch_size=pool.max_batch_size)


def build_pool(config: Config) -> ExpertPool:
    """The pool of a configuration. No weights are loaded yet; recorded answers have been read and checked.

    Raises ExpertError naming file and line for recorded answers that are broken, incomplete or cannot be charged.
    """
    device = pick_device(config.device)
    experts = [build_expert(expert, config.pool, device) for expert in config.pool.experts]
    first_answers = {idx: first_answers_of(expert) for idx, expert in enumerate(experts) if getattr(expert.config, "first_answers", None)}
    for recorded in [*(expert for expert in experts if isinstance(expert, RecordedExpert)), *first_answers.values()]:
        recorded.check_charge(config.reward.cost)
    store = AnswerStore(config.pool.store, library_versions())
    return ExpertPool(experts, store, ktp=config.env.ktp, memory_gb=config.pool.memory_gb, max_calls=config.train.max_expert_calls, first_answers=first_answers)
