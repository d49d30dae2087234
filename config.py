"""Everything that can be set, typed, with its default and its meaning; runtime/command_line.py
reads it from YAML and options. The settings of an expert are in settings/experts.py, those of the
questions in settings/data.py, those of learning and evaluation in settings/learning.py.

A YAML file holds only what differs from the defaults below. Every field is checked; an error names
the field, the value, what is allowed and, for an unknown key, the nearest known one.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from settings.data import SPLITS, DataConfig, SourceConfig
from settings.experts import (
    EXPERT_KINDS,
    THINKING_TAGS,
    AnyExpertConfig,
    DecodingConfig,
    EndpointExpertConfig,
    ExpertConfig,
    HFExpertConfig,
    ImportedExpertConfig,
    PromptedExpertConfig,
    RayExpertConfig,
    RecordedExpertConfig,
)
from settings.learning import (
    MAX_SIZE,
    EvalConfig,
    PPOConfig,
    TerminatorConfig,
    TrainConfig,
)
from settings.section import Section
from settings.units import UNITS, CostKind, parse_unit

__all__ = [
    "EXPERT_KINDS",
    "SPLITS",
    "THINKING_TAGS",
    "AgentConfig",
    "AnyExpertConfig",
    "Config",
    "CostKind",
    "DataConfig",
    "DecodingConfig",
    "EndpointExpertConfig",
    "EnvConfig",
    "EvalConfig",
    "ExpertConfig",
    "HFExpertConfig",
    "ImportedExpertConfig",
    "PPOConfig",
    "PoolConfig",
    "PromptedExpertConfig",
    "RayExpertConfig",
    "RecordedExpertConfig",
    "RewardConfig",
    "Section",
    "SourceConfig",
    "TerminatorConfig",
    "TrainConfig",
    "defaults_beside",
]

MAX_SETS = 3_000  # of experts asked, that a plan is fitted on
MAX_CALLS = 1000  # of a question
NAME_CHARS, NAME_BYTES = 100, 200  # of a run; file systems take 255 bytes
RESERVED = ("answers.sqlite", "full_information", "readings")  # what else lies under runs/
WEIGHT = 1e6  # in a reward, at most: sums and squares stay finite
TOKEN_UNITS = ("flops", "tokens", "usd")  # costs that depend on how long prompts and answers are


class PoolConfig(Section):
    experts: tuple[AnyExpertConfig, ...] = Field(
        (), description="the pool; the order numbers the actions"
    )
    ray_address: str | None = Field(
        None, description="kind ray: address of a running cluster; none: start one on this machine"
    )
    ray_wait_s: float = Field(
        300.0,
        gt=0,
        description="kind ray: seconds to wait for the cluster to have room for an expert",
    )
    store: str = Field(
        "runs/answers.sqlite", description="every answer ever generated; shared by runs"
    )
    memory_gb: float | None = Field(
        None,
        gt=0,
        description="memory for loaded experts; the least recently used is evicted; none: no limit",
    )
    max_batch_tokens: int = Field(
        16384, ge=64, description="padded prompt and new tokens of one generate call"
    )
    max_batch_size: int = Field(128, ge=1, description="most prompts of one generate call")

    @field_validator("experts")
    @classmethod
    def _names_are_unique(cls, experts: tuple[AnyExpertConfig, ...]) -> tuple[AnyExpertConfig, ...]:
        names = [expert.name for expert in experts]
        if not names:
            raise ValueError("the pool is empty: list at least one expert under pool.experts")
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"two experts share a name: {', '.join(sorted(twice))}")
        return experts


class EnvConfig(Section):
    t_max: int = Field(
        4,
        ge=1,
        le=MAX_CALLS,
        description=(
            "expert calls at most per question (paper: 4); an agent over beliefs asks an expert"
            " once, so at most as many as there are experts"
        ),
    )
    p0: float = Field(
        1.0,
        ge=0,
        le=1,
        description="quality that ends a training episode; 1 where quality is 0 or 1",
    )
    continue_past_p0: float = Field(
        0.15, ge=0, le=1, description="share of training episodes that run on past p0 (paper: 0)"
    )
    submits: Literal["last", "agreed", "best"] = Field(
        "last",
        description=(
            "which answer of a route counts: the last (paper), the one that most answers agree"
            " with, or the one estimated best"
        ),
    )
    similarity: float | None = Field(
        None,
        gt=0,
        le=1,
        description=(
            "ROUGE-L F1 from which answers in free text agree; none: chosen on validation questions"
        ),
    )
    stop: Literal["terminator", "action"] = Field(
        "terminator",
        description="who ends a route: the Terminator (paper), or an action of the agent",
    )
    ktp: Literal["paper-v1", "code-v1", "all-v1", "none-v1"] = Field(
        "paper-v1",
        description="Knowledge Transfer Prompt: all-v1 hands on all different answers so far,"
        " none-v1 nothing, the others the last; with agent.reads: belief the default is none-v1",
    )


class RewardConfig(Section):
    kind: Literal["final", "paper"] = Field(
        "final",
        description=(
            "final: quality once, at the end; paper: quality at every step (see docs/paper.md)"
        ),
    )
    alpha: float = Field(0.1, ge=0, le=WEIGHT, description="weight of cost against quality")
    alphas: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        (),
        description=(
            "agent.reads belief, env.stop action: train one agent for all these weights and those"
            " between, whatever alpha it is asked with; empty: alpha alone"
        ),
    )
    cost_unit: str = Field(
        "billion parameters",
        description=(
            f"what the cost C of a call counts: {', '.join(UNITS)}; a number before it makes a"
            " larger unit: 34.4 billion parameters, 0.001 USD (authors: trillion parameters)"
        ),
    )
    beta: float = Field(
        5.0,
        ge=-WEIGHT,
        le=WEIGHT,
        description="reward paper: weight of the quality gained by a step",
    )
    gamma_bonus: float = Field(
        2.0,
        ge=-WEIGHT,
        le=WEIGHT,
        description="reward paper: bonus for reaching p0, penalty for not",
    )
    discount: float = Field(1.0, gt=0, le=1, description="discount of a step (paper: 0.95)")

    @field_validator("cost_unit")
    @classmethod
    def _cost_unit_is_of_usual_size(cls, cost_unit: str) -> str:
        _, scale = parse_unit(cost_unit)
        if not 1 / WEIGHT <= scale <= WEIGHT:
            raise ValueError(f"at most {WEIGHT:g} times larger or smaller than the usual units")
        return cost_unit

    @property
    def cost(self) -> CostKind:
        """What is counted."""
        kind, _ = parse_unit(self.cost_unit)
        return kind

    @property
    def cost_scale(self) -> float:
        """C of one raw unit, as reward.py:Cost.in_unit returns it."""
        _, scale = parse_unit(self.cost_unit)
        return scale


class AgentConfig(Section):
    reads: Literal["text", "belief"] = Field(
        "text",
        description=(
            "what the agent decides by: the question and the last answer (paper), or the belief:"
            " estimates of all experts and answers, and how the answers agree"
        ),
    )
    encoder: str = Field(
        "sentence-transformers/all-MiniLM-L6-v2",
        description="any Hugging Face encoder: folder or hub id",
    )
    revision: str | None = Field(None, description="hub commit of the encoder")
    pooling: Literal["cls", "mean", "last"] = Field(
        "mean", description="which token features make the state: first, mean of all, or last"
    )
    freeze_encoder: bool = Field(
        True, description="keep the encoder as it is and cache its features"
    )
    encoder_dtype: Literal["float32", "bfloat16"] = Field(
        "float32",
        description=(
            "precision of a frozen encoder; bfloat16 is faster on processors that compute in it"
            " (docs/speed.md)"
        ),
    )
    max_tokens: int = Field(256, ge=16, description="length of the state text in tokens")
    hidden_sizes: tuple[Annotated[int, Field(ge=1, le=MAX_SIZE)], ...] = Field(
        (128,), description="hidden layers of the policy head and of the value head"
    )
    sees_calls_left: bool = Field(
        True, description="tell the heads how many calls are left (paper: false)"
    )

    @model_validator(mode="after")
    def _a_trainable_encoder_is_float32(self) -> AgentConfig:
        if self.encoder_dtype != "float32" and not self.freeze_encoder:
            raise ValueError(
                f"encoder_dtype {self.encoder_dtype} is for a frozen encoder: gradient steps are"
                " too small for it; leave freeze_encoder true, or encoder_dtype float32"
            )
        return self


class Config(Section):
    """Everything a run is made of. `name` is the run's folder under `runs/`."""

    name: str | None = Field(
        None,
        min_length=1,
        max_length=NAME_CHARS,
        description="folder under runs/; none: configuration name, seed and time",
    )
    seed: int = Field(0, ge=0, lt=2**32, description="seed of everything random in training")
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$",
        description="auto, cpu, cuda, cuda:N or mps",
    )
    threads: int | None = Field(
        None, ge=1, description="CPU threads of torch and NumPy; none: their choice"
    )
    data: DataConfig = DataConfig()
    pool: PoolConfig = PoolConfig()
    env: EnvConfig = EnvConfig()
    reward: RewardConfig = RewardConfig()
    agent: AgentConfig = AgentConfig()
    ppo: PPOConfig = PPOConfig()
    train: TrainConfig = TrainConfig()
    terminator: TerminatorConfig = TerminatorConfig()
    eval: EvalConfig = EvalConfig()

    @field_validator("name")
    @classmethod
    def _name_is_one_part_of_a_path(cls, name: str | None) -> str | None:
        if name is None:
            return None
        if name in (".", "..") or set(name) & set("/\\") or not name.isprintable():
            raise ValueError("expected one part of a path, a folder of runs/")
        if name != name.strip() or len(name.encode()) > NAME_BYTES:
            raise ValueError(f"no spaces around it, and at most {NAME_BYTES} bytes")
        if name in RESERVED:
            raise ValueError("this name is taken by the project itself")
        return name

    @field_validator("threads")
    @classmethod
    def _threads_are_not_far_beyond_the_cores(cls, threads: int | None) -> int | None:
        cores = os.cpu_count() or 1
        if threads is not None and threads > 4 * cores:
            raise ValueError(f"this machine has {cores} cores; at most {4 * cores}")
        return threads

    @model_validator(mode="after")
    def _priced_where_usd_counts(self) -> Config:
        unpriced = [
            e.name for e in self.pool.experts if e.usd_per_million_completion_tokens is None
        ]
        if self.reward.cost == "usd" and unpriced:
            raise ValueError(
                f"reward.cost_unit is {self.reward.cost_unit}, but these experts have no price:"
                f" {', '.join(unpriced)}"
            )
        return self

    @model_validator(mode="after")
    def _who_learns_several_alphas_can(self) -> Config:
        alphas = self.reward.alphas
        if alphas and self.agent.reads != "belief":
            raise ValueError("reward.alphas is for agents that hold beliefs (agent.reads)")
        if alphas and self.env.stop != "action":
            raise ValueError("reward.alphas needs env.stop: action; a threshold fits one alpha")
        if list(alphas) != sorted(set(alphas)):
            raise ValueError("reward.alphas: list different weights in rising order")
        if alphas and not alphas[0] <= self.reward.alpha <= alphas[-1]:
            raise ValueError(
                f"reward.alpha = {self.reward.alpha:g} is outside reward.alphas, {alphas[0]:g} to"
                f" {alphas[-1]:g}, which is all that the agent learns"
            )
        return self

    @model_validator(mode="after")
    def _who_stops_can(self) -> Config:
        if self.env.stop == "action" and self.agent.reads != "belief":
            raise ValueError("env.stop: action is for agents that hold beliefs (agent.reads)")
        return self

    @model_validator(mode="after")
    def _no_route_is_longer_than_the_pool(self) -> Config:
        """An agent over beliefs asks an expert once: beyond that t_max is cut, not refused."""
        num_experts = len(self.pool.experts)
        if self.agent.reads == "belief" and self.env.t_max > num_experts:
            env = self.env.model_copy(update={"t_max": num_experts})
            object.__setattr__(self, "env", env)  # the model is frozen for everybody else
        return self

    @model_validator(mode="after")
    def _the_pool_can_be_planned_over(self) -> Config:
        if self.agent.reads != "belief":
            return self
        num_experts = len(self.pool.experts)
        num_sets = [math.comb(num_experts, size) for size in range(1, self.env.t_max + 1)]
        if sum(num_sets) > MAX_SETS:
            possible = [
                size for size in range(1, self.env.t_max) if sum(num_sets[:size]) <= MAX_SETS
            ]
            remedy = f"set env.t_max to {possible[-1]}" if possible else "use fewer experts"
            raise ValueError(
                f"env.t_max = {self.env.t_max} with {num_experts} experts: an agent over beliefs"
                f" plans over every set of experts asked, {sum(num_sets):,} here, at most"
                f" {MAX_SETS:,}; {remedy}"
            )
        return self

    @model_validator(mode="after")
    def _who_promises_can(self) -> Config:
        settings = self.terminator
        names = [expert.name for expert in self.pool.experts]
        if settings.reference is not None and settings.reference not in names:
            raise ValueError(
                f"terminator.reference = {settings.reference!r} is not in the pool:"
                f" {', '.join(names)}"
            )
        if settings.max_loss is None:
            return self
        if self.agent.reads != "belief" or self.env.stop != "terminator":
            raise ValueError(
                "terminator.max_loss needs agent.reads: belief and env.stop: terminator, whose"
                " threshold it sets"
            )
        return self

    @model_validator(mode="after")
    def _timed_where_latency_counts(self) -> Config:
        untimed = []
        for expert in self.pool.experts:
            if isinstance(expert, RecordedExpertConfig) or expert.first_answers is not None:
                untimed.append(expert.name)
        if self.reward.cost == "latency" and untimed:
            raise ValueError(
                f"reward.cost_unit is {self.reward.cost_unit}, but recorded answers took no time"
                f" that is known: {', '.join(untimed)}"
            )
        return self


def defaults_beside(given: Mapping[str, Any]) -> dict[str, Any]:
    """The default of every setting, as plain values, beside what is given.

    An agent over beliefs is fitted on answers to bare questions, and should meet such answers.
    """
    settings = Config().model_dump(mode="json")
    agent = given.get("agent")
    if isinstance(agent, dict) and agent.get("reads") == "belief":
        settings["env"]["ktp"] = "none-v1"
    return settings
