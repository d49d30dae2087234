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
    PromptedExpertConfig,
    RayExpertConfig,
    RecordedExpertConfig,
)
from dry_run.preflight import (
    Measured,
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
from rollout import PLAY_WIDTH
from runtime.errors import ConfigError

CHARS_PER_TOKEN = (
    4  # of English under the usual vocabularies; for prompts whose tokenizer is not here
)


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
    """Bounds for any policy.

    Call t of a question (0-based) has at most N^(t+1) distinct prompts, one a route, and no more
    than are played.
    """
    num_experts, train = len(config.pool.experts), config.train
    episodes = train.epochs * train.updates_per_epoch * train.episodes_per_update
    splits = ((num_train, episodes), (num_validation, train.epochs * num_validation))
    steps = [
        sum(min(played, questions * num_experts ** (t + 1)) for questions, played in splits)
        for t in range(config.env.t_max)
    ]
    met = min(
        episodes, max(num_train - train.num_envs, 0)
    )  # a new pass may begin while environments hold questions of the last one
    return Calls(low=met + num_validation, first=steps[0], later=sum(steps[1:]))


def count_pool_calls(num_validation: int, config: Config) -> int:
    """Calls of `pool.answer` at most: the lockstep steps of training and validation."""
    train, t_max = config.train, config.env.t_max
    rounds = math.ceil(train.episodes_per_update / min(train.num_envs, train.episodes_per_update))
    return (
        train.epochs
        * t_max
        * (train.updates_per_epoch * rounds + math.ceil(num_validation / PLAY_WIDTH))
    )


def kv_bytes_per_token(model_config: Any, bytes_per_value: int) -> int | None:
    """Keys and values of a token: 2 x layers x key-value heads x head size x bytes.

    None where the architecture does not say.
    """
    text = model_config.get_text_config(decoder=True)
    layers, heads = (
        getattr(text, "num_hidden_layers", None),
        getattr(text, "num_attention_heads", None),
    )
    if not layers or not heads:
        return None
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    return (
        2
        * layers
        * (getattr(text, "num_key_value_heads", None) or heads)
        * head_dim
        * bytes_per_value
    )


def fit_together(sizes: dict[str, float], limit: float | None) -> list[list[str]]:
    """Experts in groups that fit under a limit together, largest first; one too large for it stands
    alone.
    """
    groups: list[list[str]] = []
    for name in sorted(sizes, key=lambda name: -sizes[name]):
        group = next(
            (g for g in groups if limit is None or sum(sizes[n] for n in g) + sizes[name] <= limit),
            None,
        )
        if group is None:
            groups.append([name])
        else:
            group.append(name)
    return groups


def max_loads(sizes: Sequence[float], limit: float | None, pool_calls: int) -> int:
    """Loads at most under least-recently-used eviction.

    Any k experts fit where the k largest do, so at least k stay loaded; a call of `pool.answer`
    loads each other one at most once.
    """
    largest = sorted(sizes, reverse=True)
    stay = (
        len(sizes)
        if limit is None
        else max(1, sum(sum(largest[: k + 1]) <= limit for k in range(len(sizes))))
    )
    return len(sizes) + max(0, pool_calls - 1) * max(0, len(sizes) - stay)


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
    """Mean tokens of a first prompt, and of a later one but for the previous answer: by the
    tokenizer if it is here, else by characters.

    Raises PromptError and ExpertError for a prompt that cannot be made, ConfigError for answers
    that leave no room for one.
    """
    if local is None:
        format_ = PromptFormat.of(expert)
        first, later = (
            [format_.render(text, previous, ktp, _contents) for text in texts]
            for previous in (None, "")
        )
        return fmean(map(len, first)) / CHARS_PER_TOKEN, fmean(map(len, later)) / CHARS_PER_TOKEN
    new = 0 if local.model_config.is_encoder_decoder else expert.decoding.max_new_tokens
    if local.context is not None and local.context - new < 2:
        raise ConfigError(
            f"expert {expert.name}: max_new_tokens {new} leaves no room in its context of"
            f" {local.context} tokens"
        )
    first, later = (
        [local.render(text, previous, ktp) for text in texts] for previous in (None, "")
    )
    return fmean(map(len, local.tokenizer(first)["input_ids"])), fmean(
        map(len, local.tokenizer(later)["input_ids"])
    )


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
    prompt_tokens: tuple[float, float] = (
        0,
        0,
    )  # of a first call, of a later one with the previous answer
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
        return (
            None
            if speed is None
            else (self.low * self.answer_tokens / speed / 3600, self.tokens_written / speed / 3600)
        )


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
        return low, self.calls.first * any(e.first for e in self.experts) + self.calls.later * any(
            e.later for e in self.experts
        )

    @property
    def metrics(self) -> list[str]:
        return sorted(set().union(*(split.metrics for split in self.splits.values())))

    @property
    def local_gb(self) -> float:
        """Memory of the device that the weights and the largest batch of experts in this process
        take at once.
        """
        here = [e for e in self.experts if e.config.kind == "hf"]
        weights, caches = (
            [getattr(e, name) or 0.0 for e in here] for name in ("weights_gb", "kv_gb")
        )
        return (
            sum(weights) if self.config.pool.memory_gb is None else max(weights, default=0.0)
        ) + max(caches, default=0.0)

    @property
    def can_be_run(self) -> bool:
        """Whether all that is needed is here, as far as can be seen without weights and network."""
        return all(self.needs.values()) and (
            self.device_gb is None or self.local_gb <= self.device_gb
        )


def make_plan(config: Config) -> Plan:
    """Check and reckon. Raises ConfigError with every problem found."""
    problems: list[str] = []
    notes: list[str] = []
    needs = check_needs(config)
    splits = plan_splits(config.data, problems, notes)
    here = [question for split in splits.values() for question in split.questions]
    for metric in sorted({metric for split in splits.values() for metric in split.metrics}):
        with noting(problems):
            check_metric(metric, needs, here, config.pool.experts)
    with noting(problems):
        locate("agent.encoder", config.agent.encoder, config.agent.revision, notes)
    measured: dict[str, Measured] = {}
    bytes_per_answer: float | None = None
    with noting(problems):
        measured, bytes_per_answer = measure(Path(config.pool.store))
    num_train, num_validation = (
        splits[name].num_questions if name in splits else 0 for name in ("train", "validation")
    )
    calls = count_calls(num_train, num_validation, config)
    experts = []
    for expert in config.pool.experts:
        with noting(problems):
            experts.append(
                plan_expert(
                    expert,
                    config,
                    calls,
                    here,
                    splits["train"].texts if "train" in splits else ["x"],
                    measured.get(expert.name),
                    notes,
                )
            )
    if problems:
        raise ConfigError("\n  ".join([f"{len(problems)} problem(s)", *problems]))
    return Plan(
        config,
        splits,
        calls,
        experts,
        bytes_per_answer,
        device_memory_gb(config.device),
        needs,
        notes,
    )


def plan_expert(
    expert: AnyExpertConfig,
    config: Config,
    calls: Calls,
    here: Sequence[Question],
    texts: Sequence[str],
    measured: Measured | None,
    notes: list[str],
) -> ExpertPlan:
    """Check an expert and reckon its part. Raises DERErrors for what has to be mended."""
    if isinstance(expert, RecordedExpertConfig):
        if check_files(f"expert {expert.name}", expert.path, notes):
            replayed = RecordedExpert(expert)
            replayed.check_charge(config.reward.cost)
            replayed.check_questions(here)
        return ExpertPlan(expert, measured)
    if expert.first_answers is not None and check_files(
        f"expert {expert.name}: first_answers", expert.first_answers, notes
    ):
        read_recording(expert.first_answers).require(expert.name)
    local = weights_gb = kv_gb = None
    if isinstance(expert, HFExpertConfig):
        folder = locate(f"expert {expert.name}", expert.source, expert.revision, notes)
        weights_gb = HFExpert(expert, torch.device("cpu")).memory_gb
        if (
            folder is not None and expert.gguf_file is None
        ):  # reading a GGUF's tokenizer takes half a minute
            local = HFExpert(expert.model_copy(update={"source": str(folder)}), torch.device("cpu"))
            per_token = kv_bytes_per_token(
                local.model_config, 4 if expert.dtype == "float32" else 2
            )
            kv_gb = None if per_token is None else per_token * config.pool.max_batch_tokens / 1e9
    if isinstance(expert, EndpointExpertConfig) and find_spec("openai"):
        build_expert(
            expert, config.pool, torch.device("cpu")
        )  # refuses addresses that cannot be right
    first, later = prompt_tokens(expert, local, texts, config.env.ktp)
    answer = measured.completion_tokens if measured else expert.decoding.max_new_tokens
    share, generates_first = 1 / len(config.pool.experts), expert.first_answers is None
    return ExpertPlan(
        expert,
        measured,
        low=share * calls.low * generates_first,
        first=share * calls.first * generates_first,
        later=share * calls.later,
        prompt_tokens=(first, later + answer),
        answer_tokens=answer,
        tokens_per_second=tokens_per_second(expert, measured),
        weights_gb=weights_gb,
        kv_gb=kv_gb,
    )
