"""What rollouts cost: ours against one prompt at a time, against threads, against steps that wait
for all, and against generation alone.

All ways make the same calls: which expert is asked at which step is drawn beforehand.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import math
import os
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from backends.answer_store import Answer, AnswerStore
from backends.dispatch import Inbox
from backends.hf import HFExpert
from config import Config, HFExpertConfig
from der_env import Episode
from experts import ExpertPool, build_pool
from prompts import Message, before_stop, content
from questions import Question, load_splits
from rollout import Decision, NeverSatisfied, play

ENVS = (64, 256, 1024)


@dataclass(frozen=True)
class Plan:
    """Distinct questions, and the expert to ask at each step: `experts` (N, T_max).

    As a `rollout.Policy` it follows itself.
    """

    questions: Sequence[Question]
    experts: dict[str, np.ndarray]
    t_max: int

    @classmethod
    def draw(
        cls, questions: Sequence[Question], num_experts: int, t_max: int, seed: int = 0
    ) -> Plan:
        rng = np.random.default_rng(seed)
        experts = {}
        for question in questions:
            experts[question.id] = rng.integers(num_experts, size=t_max)
        return cls(questions, experts, t_max)

    @property
    def num_transitions(self) -> int:
        return len(self.questions) * self.t_max

    def act(self, episodes: Sequence[Episode]) -> list[Decision]:
        decisions = []
        for episode in episodes:
            expert_idx = self.experts[episode.question.id][len(episode.steps)]
            decisions.append(Decision(int(expert_idx)))
        return decisions

    def first(self, num_questions: int) -> Plan:
        return Plan(self.questions[:num_questions], self.experts, self.t_max)


class DistantExpert:
    """A server far away that says "no": it takes a time of its own for every request (lognormal,
    median .2 s, one in a hundred above 1.3 s).
    """

    is_remote, memory_gb, concurrency = True, 0.0, 16

    def __init__(self, name: str):
        self.config = HFExpertConfig(name=name, source=name, params_b=1.0)

    def identity(self) -> dict[str, str]:
        return {"name": self.config.name}

    def decoding(self) -> dict[str, int]:
        return {}

    def render(
        self,
        question: str,
        previous_answer: str | None,
        ktp: str,
        context: Sequence[Message] = (),
    ) -> str:
        return content(question, previous_answer, ktp)

    def load(self) -> None:
        pass

    unload = load

    def answer(self, prompts: Sequence[str] | Inbox) -> Iterator[list[tuple[int, Answer]]]:
        inbox = Inbox.of(prompts)
        due: list[tuple[float, int]] = []  # heap of (time, number)
        while inbox or due:
            for number, prompt in inbox.take(self.concurrency - len(due)):
                latency_s = np.random.default_rng(
                    zlib.crc32(f"{self.config.name} {prompt}".encode())
                ).lognormal(np.log(0.2), 0.8)
                heapq.heappush(due, (time.perf_counter() + latency_s, number))
            time.sleep(min(0.005, max(0.0, due[0][0] - time.perf_counter())))
            if due[0][0] <= time.perf_counter():
                yield [(heapq.heappop(due)[1], Answer("no", 1, 1, 0.0))]


class Bench:
    """A pool's experts, loaded once, and empty stores for them."""

    def __init__(self, pool: ExpertPool, folder: Path):
        self.pool, self.num_stores = pool, 0
        self.experts = [expert for expert in pool.experts if isinstance(expert, HFExpert)]
        # Its own: another bench's answers would make its rollouts warm
        self.folder = Path(tempfile.mkdtemp(dir=folder))
        for expert in pool.experts:
            prompt = expert.render("2 + 2?", None, pool.ktp)
            list(expert.answer([prompt]))  # loads the weights, and whatever is done once

    def cold_pool(self) -> ExpertPool:
        """The same experts, already loaded, with an empty store."""
        self.num_stores += 1
        pool = ExpertPool(
            self.pool.experts,
            AnswerStore(self.folder / f"cold{self.num_stores}.sqlite"),
            ktp=self.pool.ktp,
        )
        pool._dispatcher.loaded = list(range(len(pool)))
        return pool

    def rollout_s(
        self, plan: Plan, num_envs: int, *, lockstep: bool = False
    ) -> tuple[float, ExpertPool]:
        """Seconds of a cold rollout with `num_envs` questions in flight, and the pool that now
        holds its answers.
        """
        pool, start = self.cold_pool(), time.perf_counter()
        play(
            plan.questions,
            plan,
            pool,
            NeverSatisfied(),
            plan.t_max,
            max_in_flight=num_envs,
            lockstep=lockstep,
        )
        return time.perf_counter() - start, pool

    def walk(self, plan: Plan, question: Question) -> None:
        """One question's calls, one prompt at a time, by the model's own `generate`: no store, no
        batch.
        """
        answer = None
        for expert_idx in plan.experts[question.id]:
            expert = self.experts[expert_idx]
            answer = generate_one(expert, expert.render(question.text, answer, self.pool.ktp))

    def sequential_s(self, plan: Plan) -> float:
        start = time.perf_counter()
        for question in plan.questions:
            self.walk(plan, question)
        return time.perf_counter() - start

    def threads_s(self, plan: Plan, num_threads: int) -> float:
        """The usual design: a thread per question in flight, each sending one prompt at a time."""
        start = time.perf_counter()
        with ThreadPoolExecutor(num_threads) as executor:
            list(executor.map(lambda question: self.walk(plan, question), plan.questions))
        return time.perf_counter() - start

    def generate_s(self, prompts: dict[str, list[str]]) -> float:
        """Seconds to generate all prompts of every expert, handed over in one pass under the same
        batch budget.
        """
        start = time.perf_counter()
        for expert in self.pool.experts:
            for _ in expert.answer(prompts[expert.config.name]):
                pass
        return time.perf_counter() - start

    def together_ratio(self, expert: HFExpert, prompts: Sequence[str]) -> float:
        """Speed of answering one expert's prompts handed over together over one at a time: the most
        that so many questions in flight could gain.
        """
        alone = seconds_of(lambda: [generate_one(expert, prompt) for prompt in prompts])
        return alone / seconds_of(lambda: list(expert.answer(prompts)))

    def differing_share(self, expert: HFExpert, prompts: Sequence[str]) -> float:
        """Share of answers that differ between batches of one and full batches."""
        batched = answer_texts(expert, prompts)
        num_differing = 0
        for index, prompt in enumerate(prompts):
            num_differing += answer_texts(expert, [prompt])[0] != batched[index]
        return num_differing / len(prompts)


def answer_texts(expert: HFExpert, prompts: Sequence[str]) -> dict[int, str]:
    """The expert's answer to each prompt, by the prompt's index."""
    texts = {}
    for batch in expert.answer(prompts):
        for index, answer in batch:
            texts[index] = answer.text
    return texts


@torch.inference_mode()
def generate_one(expert: HFExpert, prompt: str) -> str:
    """What one would write without this project."""
    inputs = expert.tokenizer(
        [prompt],
        add_special_tokens=expert.config.prompt_format != "chat",
        return_tensors="pt",
        return_token_type_ids=False,
    ).to(expert.model.device)
    settings = {
        "max_new_tokens": expert.config.decoding.max_new_tokens,
        "do_sample": False,
        "pad_token_id": expert.tokenizer.pad_token_id,
    }
    output = expert.model.generate(**inputs, **settings, eos_token_id=sorted(expert._end_ids))[0]
    new = (
        output if expert.model_config.is_encoder_decoder else output[inputs["input_ids"].shape[1] :]
    )
    return before_stop(expert.tokenizer.decode(new, skip_special_tokens=True), expert.config.stop)


def stored_prompts(store: AnswerStore) -> dict[str, list[str]]:
    """Every prompt in a store, by expert."""
    out: dict[str, list[str]] = {}
    for name, prompt in store._run("SELECT expert, prompt FROM answers"):
        out.setdefault(name, []).append(prompt)
    return out


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """b of seconds = a * size^b, fitted by least squares on the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def seconds_of(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def best_threads(run: Callable[[], object]) -> int:
    """The torch thread count at which `run` is fastest, the best of three turns: a power of two, at
    most the number of cores.
    """

    cores = os.cpu_count() or 1
    fastest: dict[int, float] = {}
    for _ in range(3):
        count = 1
        while count <= cores:
            torch.set_num_threads(count)
            fastest[count] = min(seconds_of(run), fastest.get(count, math.inf))
            count *= 2
    return min(fastest, key=fastest.__getitem__)


def median_of(sample: Callable[[], float], repeats: int) -> float:
    """The median of a number that is measured several times."""
    samples = []
    for _ in range(repeats):
        samples.append(sample())
    return float(np.median(samples))


def repeated(experts: Sequence[Any], count: int) -> tuple[Any, ...]:
    """`count` experts, the given ones over and over; a decoding seed, which greedy decoding
    ignores, keeps their answers apart.
    """
    copies = []
    for number, expert in zip(range(count), itertools.cycle(experts), strict=False):
        decoding = expert.decoding.model_copy(update={"seed": number})
        changed = {"name": f"{expert.name}-{number}", "decoding": decoding}
        copies.append(expert.model_copy(update=changed))
    return tuple(copies)


def measure(config: Config, folder: Path, repeats: int, num_questions: int) -> dict[str, float]:
    """Our rollout of `num_questions` against the slow ways (which play a quarter of them), and
    against generating its prompts in one pass.
    """
    questions = load_splits(config.data).test[:num_questions]
    bench = Bench(build_pool(config), folder)
    plan = Plan.draw(questions, len(bench.pool), config.env.t_max)
    ways = ways_of(bench, plan)
    threads = _threads_of(ways, bench, plan)
    rates: dict[str, list[float]] = {name: [] for name in ways}
    against_generate = []
    for _ in range(repeats):
        for name, way in ways.items():
            torch.set_num_threads(threads[name])
            rates[name].append(way())
        torch.set_num_threads(threads["envs_64"])
        against_generate.append(_rollout_over_generate(bench, plan))
    out = _rate_figures(rates)
    for name in ("envs_64", "sequential", "threads"):
        out[f"threads/{name}"] = float(threads[name])
    out["rollout_vs_generate"] = float(np.median(against_generate))
    out["rollout_vs_lockstep/remote"] = distant_ratio(plan.first(128), bench, repeats)
    return out | _batch_figures(bench, questions[:64], repeats)


def _rollout_over_generate(bench: Bench, plan: Plan) -> float:
    """Time of a rollout with all questions in flight over generating its prompts in one pass."""
    seconds, pool = bench.rollout_s(plan, len(plan.questions))
    return seconds / bench.generate_s(stored_prompts(pool.store))


def ways_of(bench: Bench, plan: Plan) -> dict[str, Callable[[], float]]:
    """Ways of playing a plan; each returns its transitions per second.

    More questions in flight are tried only where there are more than half as many.
    """
    part = _part(plan)

    def rate(num_envs: int, *, lockstep: bool = False) -> float:
        return plan.num_transitions / bench.rollout_s(plan, num_envs, lockstep=lockstep)[0]

    ways: dict[str, Callable[[], float]] = {}
    for num_envs in ENVS:
        if num_envs == ENVS[0] or num_envs // 2 < len(plan.questions):
            ways[f"envs_{num_envs}"] = functools.partial(rate, num_envs)
    ways["lockstep"] = functools.partial(rate, 64, lockstep=True)
    ways["sequential"] = lambda: part.num_transitions / bench.sequential_s(part)
    ways["threads"] = lambda: part.num_transitions / bench.threads_s(part, 16)
    return ways


def _part(plan: Plan) -> Plan:
    """What the slow ways play of a plan."""
    return plan.first(max(16, len(plan.questions) // 4))


def _threads_of(ways: Iterable[str], bench: Bench, plan: Plan) -> dict[str, int]:
    """The thread count that suits each way best."""
    part, probe = _part(plan), plan.first(8)
    threads = dict.fromkeys(ways, best_threads(lambda: bench.rollout_s(part, 64)))
    threads["sequential"] = best_threads(lambda: bench.sequential_s(probe))
    threads["threads"] = best_threads(lambda: bench.threads_s(plan.first(16), 16))
    return threads


def _rate_figures(rates: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Transitions per second of each way, and our rollouts against the slow ones."""
    out = {}
    for name, values in rates.items():
        out[f"transitions_per_s/{name}"] = float(np.median(values))
    for slow, name in itertools.product(("sequential", "threads", "lockstep"), rates):
        if name.startswith("envs") and (slow != "lockstep" or name == "envs_64"):
            suffix = "" if name == "envs_64" else f"/{name}"
            ratios = np.array(rates[name]) / np.array(rates[slow])
            out[f"rollout_vs_{slow}{suffix}"] = float(np.median(ratios))
    return out


def _batch_figures(bench: Bench, questions: Sequence[Question], repeats: int) -> dict[str, float]:
    """For each expert, the gain of batches and the share of answers that they change."""
    together, differing = {}, {}
    for expert in bench.experts:
        prompts = []
        for number, question in enumerate(questions):
            previous_answer = "no" if number % 2 else None
            prompts.append(expert.render(question.text, previous_answer, bench.pool.ktp))
        name = expert.config.name
        ratio = functools.partial(bench.together_ratio, expert, prompts)
        together[f"together_vs_one_by_one/{name}"] = median_of(ratio, repeats)
        differing[f"batch_invariance/{name}"] = bench.differing_share(expert, prompts)
    return together | differing | {"batch_invariance": max(differing.values())}


def distant_ratio(plan: Plan, bench: Bench, repeats: int) -> float:
    """Speed of our rollout, 64 questions in flight, over one whose questions wait for each other,
    with experts on servers far away.
    """

    def seconds(*, lockstep: bool) -> float:
        experts = [DistantExpert(name) for name in bench.pool.names]
        pool = ExpertPool(experts, bench.cold_pool().store)
        start = time.perf_counter()
        play(
            plan.questions,
            plan,
            pool,
            NeverSatisfied(),
            plan.t_max,
            max_in_flight=64,
            lockstep=lockstep,
        )
        return time.perf_counter() - start

    return median_of(lambda: seconds(lockstep=True) / seconds(lockstep=False), repeats)


class Scaling:
    """Rollouts of growing size, on one pool or on pools made for them."""

    def __init__(self, config: Config, folder: Path, repeats: int):
        self.config, self.folder, self.repeats = config, folder, repeats
        self.questions = load_splits(config.data).test
        self.bench = Bench(build_pool(config), folder)
        self.t_max = config.env.t_max
        warm_up = Plan.draw(self.questions[:64], len(self.bench.pool), self.t_max)
        torch.set_num_threads(best_threads(lambda: self.bench.rollout_s(warm_up, 64)))

    def seconds(self, plan: Plan, num_envs: int, bench: Bench | None = None) -> float:
        runner = bench or self.bench
        return median_of(lambda: runner.rollout_s(plan, num_envs)[0], self.repeats)

    def in_envs(self) -> dict[str, float]:
        """Against questions in flight."""
        out = {}
        per_step = {}
        whole = Plan.draw(self.questions[:512], len(self.bench.pool), self.t_max)
        for envs in (1, 4, 16, 64, 256):
            plan = whole.first(max(16, min(256, 4 * envs)))
            took = self.seconds(plan, envs)
            out[f"scaling/transitions_per_s/envs_{envs}"] = plan.num_transitions / took
            per_step[envs] = took / (plan.num_transitions / envs)
        out["scaling/envs_exponent"] = exponent(list(per_step), list(per_step.values()))
        return out

    def in_transitions(self) -> dict[str, float]:
        """Against the size of the rollout."""
        by_size = {}
        whole = Plan.draw(self.questions[:512], len(self.bench.pool), self.t_max)
        for num_questions in (64, 128, 256, 512):
            plan = whole.first(num_questions)
            by_size[plan.num_transitions] = self.seconds(plan, 64)
        growth = exponent(list(by_size), list(by_size.values()))
        return {"scaling/transitions_exponent": growth}

    def in_experts(self) -> dict[str, float]:
        """Against the number of experts."""
        out = {}
        for count in (1, 2, 4, 8, 16):
            experts = repeated(self.config.pool.experts, count)
            pool_config = self.config.pool.model_copy(update={"experts": experts})
            pool = build_pool(self.config.model_copy(update={"pool": pool_config}))
            plan = Plan.draw(self.questions[:128], count, self.t_max)
            took = self.seconds(plan, 128, Bench(pool, self.folder))
            out[f"scaling/transitions_per_s/experts_{count}"] = plan.num_transitions / took
        return out

    def in_length(self) -> dict[str, float]:
        """Against the length of the questions."""
        out = {}
        by_length = {}
        for times in (1, 2, 4, 8):
            longer = []
            for question in self.questions[:64]:
                longer.append(replace(question, text=" ".join([question.text] * times)))
            length = self._mean_prompt_tokens(longer)
            took = self.seconds(Plan.draw(longer, len(self.bench.pool), 1), 64)
            by_length[length] = took
            out[f"scaling/transitions_per_s/prompt_tokens_{length:.0f}"] = len(longer) / took
        growth = exponent(list(by_length), list(by_length.values()))
        out["scaling/prompt_tokens_exponent"] = growth
        return out

    def _mean_prompt_tokens(self, questions: Sequence[Question]) -> float:
        """Mean number of tokens of the first prompts, over experts and questions."""
        lengths: list[int] = []
        for expert in self.bench.experts:
            prompts = [expert.render(q.text, None, self.bench.pool.ktp) for q in questions]
            ids, _ = expert.encode(prompts)
            lengths += map(len, ids)
        return float(np.mean(lengths))


def measure_scaling(config: Config, folder: Path, repeats: int) -> dict[str, float]:
    """Transitions per second against environments, transitions, experts and text length, and the
    exponents at which cost grows.
    """
    scaling = Scaling(config, folder, repeats)
    out = scaling.in_envs()
    out |= scaling.in_transitions()
    out |= scaling.in_experts()
    out |= scaling.in_length()
    return out
