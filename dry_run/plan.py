"""What a run would ask for and take, before a weight is loaded or an expert asked.

    python train_ppo_multi.py --config configs/X.yaml --dry_run

`make_plan` checks all that can be checked without weights and without a network (preflight.py), and
raises ConfigError with every problem it finds; table.py writes the plan down. Numbers of answers
are bounds that hold for any policy. Tokens, hours and bytes are estimates, from answers in the
store where there are some.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from backends.hf import HFExpert
from backends.recorded import RecordedExpert, read_recording
from config import (
    AnyExpertConfig,
    Config,
    EndpointExpertConfig,
    HFExpertConfig,
    ImportedExpertConfig,
    PromptedExpertConfig,
    RayExpertConfig,
    RecordedExpertConfig,
)
from dry_run.preflight import (
    Measured,
    Missing,
    Split,
    check_files,
    check_metric,
    check_needs,
    device_memory_gb,
    locate,
    measure,
    noting,
    plan_splits,
)
from experts import build_expert
from prompts import PromptFormat
from questions import Question
from rollout import MAX_IN_FLIGHT
from runtime.errors import ConfigError

# Of English under the usual vocabularies; used for prompts whose tokenizer is not here
CHARS_PER_TOKEN = 4


# --- bounds and estimates: pure functions ---


@dataclass(frozen=True)
class Calls:
    """Distinct answers that training and its validations need.

    Each is generated once; the store serves repeats.
    """

    low: int  # a first call for every question that is met
    first: int  # first calls at most
    later: int  # later calls at most


def count_calls(num_train: int, num_validation: int, config: Config) -> Calls:
    """Bounds for any policy, and what an agent over beliefs is fitted on: every expert's first
    answer to every training question, and to every validation question with `train.refit`.
    """
    num_experts, train = len(config.pool.experts), config.train
    episodes = train.epochs * train.updates_per_epoch * train.episodes_per_update
    in_training = count_prompts(num_train, episodes, config)
    in_validation = count_prompts(num_validation, train.epochs * num_validation, config)
    # A new pass may begin while environments hold questions of the last one
    low_training = min(episodes, max(num_train - train.num_envs, 0))
    low_validation = num_validation
    if config.agent.reads == "belief":
        in_training[0] = num_experts * num_train
        low_training = in_training[0]
        if train.refit:
            in_validation[0] = num_experts * num_validation
            if config.terminator.max_loss is None:  # else some of them calibrate the promise
                low_validation = in_validation[0]
    return Calls(
        low=low_training + low_validation,
        first=in_training[0] + in_validation[0],
        later=sum(in_training[1:]) + sum(in_validation[1:]),
    )


def count_prompts(num_questions: int, num_played: int, config: Config) -> list[int]:
    """Distinct prompts of each call of a route at most, where so many routes are played.

    Call t of a question (0-based) has at most N^(t+1), one a route, and no more than are played.
    Where nothing is handed on, later calls have the prompts of first ones.
    """
    num_experts, t_max = len(config.pool.experts), config.env.t_max
    if config.env.ktp == "none-v1":
        return [min(num_played * t_max, num_questions * num_experts)] + [0] * (t_max - 1)
    return [min(num_played, num_questions * num_experts ** (t + 1)) for t in range(t_max)]


def count_pool_calls(num_validation: int, config: Config) -> int:
    """Calls of `pool.answer` at most: the lockstep steps of training and validation."""
    train, t_max = config.train, config.env.t_max
    rounds = math.ceil(train.episodes_per_update / min(train.num_envs, train.episodes_per_update))
    return (
        train.epochs
        * t_max
        * (train.updates_per_epoch * rounds + math.ceil(num_validation / MAX_IN_FLIGHT))
    )


def kv_bytes_per_token(model_config: Any, bytes_per_value: int) -> int | None:
    """Keys and values of a token: 2 x layers x key-value heads x head size x bytes.

    None where the architecture does not say.
    """
    text = model_config.get_text_config(decoder=True)
    layers = getattr(text, "num_hidden_layers", None)
    heads = getattr(text, "num_attention_heads", None)
    if not layers or not heads:
        return None
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    return 2 * layers * kv_heads * head_dim * bytes_per_value


def fit_together(sizes: dict[str, float], limit: float | None) -> list[list[str]]:
    """Experts in groups that fit under a limit together, largest first.

    An expert too large for the limit is alone in its group.
    """
    groups: list[list[str]] = []
    for name in sorted(sizes, key=lambda name: -sizes[name]):
        for group in groups:
            if limit is None or sum(map(sizes.__getitem__, group)) + sizes[name] <= limit:
                group.append(name)
                break
        else:
            groups.append([name])
    return groups


def max_loads(sizes: Sequence[float], limit: float | None, pool_calls: int) -> int:
    """Loads at most under least-recently-used eviction.

    Any k experts fit where the k largest do, so at least k stay loaded; a call of `pool.answer`
    loads each other one at most once.
    """
    if limit is None:
        return len(sizes)
    largest = sorted(sizes, reverse=True)
    num_fitting = 0
    for k in range(len(sizes)):
        num_fitting += sum(largest[: k + 1]) <= limit
    num_staying = max(1, num_fitting)
    return len(sizes) + max(0, pool_calls - 1) * max(0, len(sizes) - num_staying)


def tokens_per_second(expert: AnyExpertConfig, measured: Measured | None) -> float | None:
    """Generation speed of an expert with all its replicas: measured, else stated.

    A store tells the speed of one replica, and of one request to an endpoint: how many are in
    flight at once is multiplied in.
    """
    if measured is None or measured.tokens_per_second is None:
        return expert.tokens_per_second
    if isinstance(expert, EndpointExpertConfig):
        return measured.tokens_per_second * expert.concurrency * len(expert.urls)
    return measured.tokens_per_second * (
        expert.replicas if isinstance(expert, RayExpertConfig) else 1
    )


def prompt_tokens(
    expert: PromptedExpertConfig, local: HFExpert | None, texts: Sequence[str], ktp: str
) -> tuple[float, float]:
    """Mean tokens of a first prompt, and of a later one without its previous answer.

    They are counted by the tokenizer if it is here, else estimated from characters.

    Raises PromptError and ExpertError for a prompt that cannot be made, ConfigError for answers
    that leave no room for one.
    """
    if local is None:
        format_ = PromptFormat.of(expert)
        first = fmean(len(format_.render(text, None, ktp, _contents)) for text in texts)
        later = fmean(len(format_.render(text, "", ktp, _contents)) for text in texts)
        return first / CHARS_PER_TOKEN, later / CHARS_PER_TOKEN
    new = 0 if local.model_config.is_encoder_decoder else expert.decoding.max_new_tokens
    if local.context is not None and local.context - new < 2:
        raise ConfigError(
            f"expert {expert.name}: max_new_tokens {new} leaves no room in its context of"
            f" {local.context} tokens"
        )
    first_ids = local.tokenizer([local.render(text, None, ktp) for text in texts])["input_ids"]
    later_ids = local.tokenizer([local.render(text, "", ktp) for text in texts])["input_ids"]
    return fmean(map(len, first_ids)), fmean(map(len, later_ids))


def _contents(messages: list[dict[str, str]], **_: Any) -> str:
    """Stands for a chat template that is not here: the texts without the marks around them."""
    return "\n".join(message["content"] for message in messages)


# --- the plan ---


@dataclass(frozen=True)
class ExpertPlan:
    """One expert's part, at an even share of the calls."""

    config: AnyExpertConfig
    measured: Measured | None = None
    low: float = 0  # answers to generate at least
    first: float = 0  # first answers at most
    later: float = 0
    # Of a first call, and of a later one with the previous answer
    prompt_tokens: tuple[float, float] = (0, 0)
    answer_tokens: float = 0  # mean of those in the store, else the most there can be
    tokens_per_second: float | None = None
    weights_gb: float | None = None  # None: has no weights of its own
    kv_gb: float | None = None  # keys and values of a full batch; None: architecture not known

    @property
    def high(self) -> float:
        return self.first + self.later

    @property
    def tokens_read(self) -> float:
        return self.first * self.prompt_tokens[0] + self.later * self.prompt_tokens[1]

    @property
    def tokens_written(self) -> float:
        return self.high * self.answer_tokens

    @property
    def hours(self) -> tuple[float, float] | None:
        """For `low` and `high` answers; None without a speed."""
        speed = self.tokens_per_second
        if speed is None:
            return None
        return self.low * self.answer_tokens / speed / 3600, self.tokens_written / speed / 3600


@dataclass(frozen=True)
class Plan:
    config: Config
    splits: dict[str, Split]
    calls: Calls
    experts: list[ExpertPlan]
    bytes_per_answer: float | None  # measured in the store
    device_gb: float | None  # memory of the device
    needs: dict[str, bool]  # package, key or hardware -> whether it is here
    notes: list[str]

    @property
    def bounds(self) -> tuple[int, int]:
        """Answers to generate, whatever the policy.

        Recorded answers are not generated, so a policy may get by on those.
        """
        low = self.calls.low if all(e.first for e in self.experts) else 0
        high = 0
        if any(e.first for e in self.experts):
            high += self.calls.first
        if any(e.later for e in self.experts):
            high += self.calls.later
        return low, high

    @property
    def metrics(self) -> list[str]:
        return sorted(set().union(*(split.metrics for split in self.splits.values())))

    @property
    def local_gb(self) -> float:
        """Memory of the device (GB) that experts in this process take at once.

        It is that of their weights and of the largest batch.
        """
        sum_weights = 0.0
        max_weights = 0.0
        max_cache = 0.0
        for expert in self.experts:
            if expert.config.kind == "hf":
                weights = expert.weights_gb or 0.0
                sum_weights += weights
                max_weights = max(max_weights, weights)
                max_cache = max(max_cache, expert.kv_gb or 0.0)
        if self.config.pool.memory_gb is None:
            return sum_weights + max_cache
        return max_weights + max_cache

    @property
    def can_be_run(self) -> bool:
        """Whether all that is needed is here, as far as can be seen without weights and network."""
        if any(isinstance(note, Missing) for note in self.notes):
            return False
        has_room = self.device_gb is None or self.local_gb <= self.device_gb
        return has_room and all(self.needs.values())


def make_plan(config: Config) -> Plan:
    """Check a configuration and estimate what it takes.

    Raises ConfigError with every problem found.
    """
    problems: list[str] = []
    notes: list[str] = []
    needs = check_needs(config)
    splits = plan_splits(config.data, problems, notes)
    _check_metrics(splits, needs, config, problems)
    with noting(problems):
        locate("agent.encoder", config.agent.encoder, config.agent.revision, notes)
    measured: dict[str, Measured] = {}
    bytes_per_answer: float | None = None
    with noting(problems):
        measured, bytes_per_answer = measure(Path(config.pool.store))
    num_train = splits["train"].num_questions if "train" in splits else 0
    num_validation = splits["validation"].num_questions if "validation" in splits else 0
    calls = count_calls(num_train, num_validation, config)
    experts = _plan_experts(config, splits, calls, measured, problems, notes)
    if problems:
        raise ConfigError("\n  ".join([f"{len(problems)} problem(s)", *problems]))
    memory_gb = device_memory_gb(config.device)
    return Plan(config, splits, calls, experts, bytes_per_answer, memory_gb, needs, notes)


def _questions_of(splits: dict[str, Split]) -> list[Question]:
    questions: list[Question] = []
    for split in splits.values():
        questions += split.questions
    return questions


def _check_metrics(
    splits: dict[str, Split], needs: dict[str, bool], config: Config, problems: list[str]
) -> None:
    """Note every metric that cannot judge the questions as a problem."""
    questions = _questions_of(splits)
    metrics: set[str] = set()
    for split in splits.values():
        metrics.update(split.metrics)
    for metric in sorted(metrics):
        with noting(problems):
            check_metric(metric, needs, questions, config.pool.experts)


def _plan_experts(
    config: Config,
    splits: dict[str, Split],
    calls: Calls,
    measured: dict[str, Measured],
    problems: list[str],
    notes: list[str],
) -> list[ExpertPlan]:
    """Plans of the experts without problems; the others' problems are noted."""
    questions = _questions_of(splits)
    texts = splits["train"].texts if "train" in splits else ["x"]
    plans = []
    for expert in config.pool.experts:
        known = measured.get(expert.name)
        with noting(problems):
            plans.append(plan_expert(expert, config, calls, questions, texts, known, notes))
    return plans


def plan_expert(
    expert: AnyExpertConfig,
    config: Config,
    calls: Calls,
    questions: Sequence[Question],
    texts: Sequence[str],
    measured: Measured | None,
    notes: list[str],
) -> ExpertPlan:
    """Check an expert and estimate its part. Raises DERErrors that say what has to be fixed."""
    if isinstance(expert, RecordedExpertConfig):
        _check_recorded(expert, config, questions, notes)
        return ExpertPlan(expert, measured)
    _check_first_answers(expert, notes)
    local = None
    weights_gb = None
    if isinstance(expert, HFExpertConfig):
        local = _local_model(expert, notes)
        weights_gb = HFExpert(expert, torch.device("cpu")).memory_gb
    _check_built(expert, config)
    first, later = prompt_tokens(expert, local, texts, config.env.ktp)
    answer = measured.completion_tokens if measured else expert.decoding.max_new_tokens
    share = 1 / len(config.pool.experts)
    first_share = share if expert.first_answers is None else 0.0
    return ExpertPlan(
        expert,
        measured,
        low=first_share * calls.low,
        first=first_share * calls.first,
        later=share * calls.later,
        prompt_tokens=(first, later + answer),
        answer_tokens=answer,
        tokens_per_second=tokens_per_second(expert, measured),
        weights_gb=weights_gb,
        kv_gb=_kv_gb(local, config.pool.max_batch_tokens),
    )


def _check_built(expert: AnyExpertConfig, config: Config) -> None:
    """Raise ConfigError or ExpertError for an address or a class that cannot be right."""
    is_served = isinstance(expert, EndpointExpertConfig) and find_spec("openai")
    if is_served or isinstance(expert, ImportedExpertConfig):
        build_expert(expert, config.pool, torch.device("cpu"))


def _check_recorded(
    expert: RecordedExpertConfig, config: Config, questions: Sequence[Question], notes: list[str]
) -> None:
    """Check that a recording can be charged and answers all questions."""
    if check_files(f"expert {expert.name}", expert.path, notes):
        recorded = RecordedExpert(expert)
        recorded.check_charge(config.reward.cost)
        recorded.check_questions(questions)


def _check_first_answers(expert: PromptedExpertConfig, notes: list[str]) -> None:
    """Check that recorded first answers, if there are any, are of this expert."""
    if expert.first_answers is None:
        return
    if check_files(f"expert {expert.name}: first_answers", expert.first_answers, notes):
        read_recording(expert.first_answers).require(expert.name)


def _local_model(expert: HFExpertConfig, notes: list[str]) -> HFExpert | None:
    """The expert over its local folder, for tokenizer and architecture; None where it is not here.

    Reading a GGUF file's tokenizer takes half a minute, so there is none for these.
    """
    folder = locate(f"expert {expert.name}", expert.source, expert.revision, notes)
    if folder is None or expert.gguf_file is not None:
        return None
    return HFExpert(expert.model_copy(update={"source": str(folder)}), torch.device("cpu"))


def _kv_gb(local: HFExpert | None, max_batch_tokens: int) -> float | None:
    """Keys and values of a full batch in GB; None where the architecture is not known."""
    if local is None:
        return None
    bytes_per_value = 4 if local.config.dtype == "float32" else 2
    per_token = kv_bytes_per_token(local.model_config, bytes_per_value)
    return None if per_token is None else per_token * max_batch_tokens / 1e9
