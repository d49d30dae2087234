"""Typed configuration: defaults < YAML file < command line.

    config, rest = load_config(["--config", "configs/quickstart.yaml", "--reward.alpha", "0.05"])

A YAML file holds only what differs from the defaults below. Every field is checked; an error names the field, the value,
what is allowed and, for an unknown key, the nearest known one.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

CostUnit = Literal["params", "flops", "tokens", "latency", "usd"]


class DERError(Exception):
    """An error a user can mend; commands end with its message and no traceback."""


class ConfigError(DERError):
    """A configuration that cannot be used; the message says what to change."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class SourceConfig(Section):
    """Where one split comes from."""

    path: str = Field(description="a .jsonl file, or a name or folder that datasets.load_dataset takes")
    subset: str | None = Field(None, description="configuration name of a hub data set")
    split: str = Field("train", description="split of a hub data set")
    revision: str | None = Field(None, description="commit of a hub data set")
    fields: dict[str, str] = Field(default_factory=dict, description="our field (id, text, reference, task, metric) -> theirs; dots reach into nested fields")
    task: str = Field("default", description="task of rows that name none")
    metric: str = Field("exact_match", description="metric of rows that name none")
    limit: int | None = Field(None, ge=1, description="use the first N questions only")


class DataConfig(Section):
    train: SourceConfig = SourceConfig(path="data/tiny_questions/train.jsonl")
    validation: SourceConfig = SourceConfig(path="data/tiny_questions/validation.jsonl")
    test: SourceConfig = SourceConfig(path="data/tiny_questions/test.jsonl")


class DecodingConfig(Section):
    """How an expert generates. Temperature 0 is greedy; above 0, sampling is seeded per prompt and so repeatable."""

    max_new_tokens: int = Field(64, ge=1)
    temperature: float = Field(0.0, ge=0.0)
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    seed: int = 0


class ExpertConfig(Section):
    """One LLM of the pool."""

    name: str
    kind: Literal["hf"] = Field("hf", description="hf: a Hugging Face causal or sequence-to-sequence model run in this process")
    source: str = Field(description="local folder or hub id")
    revision: str | None = Field(None, description="hub commit; pin it for a result to stand")
    gguf_file: str | None = Field(None, description="file in the source to read instead of safetensors")
    params_b: float = Field(gt=0, description="parameters in billions; what the paper charges")
    usd_per_million_prompt_tokens: float | None = Field(None, ge=0)
    usd_per_million_completion_tokens: float | None = Field(None, ge=0)
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    device_map: str | None = Field(None, description="accelerate's placement, e.g. auto; none: the run's device")
    trust_remote_code: bool = False
    prompt_format: Literal["chat", "plain", "few_shot"] = Field("chat", description="chat: the tokenizer's template; plain and few_shot: 'Question ... Answer:' for base models")
    system_prompt: str | None = Field(None, description="for prompt_format chat")
    few_shot: str | None = Field(None, description="JSONL of examples {question, previous_answer, answer} for prompt_format few_shot")
    stop: tuple[str, ...] = Field((), description="the answer ends before any of these")
    decoding: DecodingConfig = DecodingConfig()

    @model_validator(mode="after")
    def _few_shot_has_examples(self) -> ExpertConfig:
        if (self.prompt_format == "few_shot") != (self.few_shot is not None):
            raise ValueError("prompt_format few_shot and a few_shot file belong together")
        return self


class PoolConfig(Section):
    experts: tuple[ExpertConfig, ...] = Field((), description="the pool; the order numbers the actions")
    store: str = Field("runs/answers.sqlite", description="every answer ever generated; shared by runs")
    memory_gb: float | None = Field(None, gt=0, description="memory for loaded experts; the least recently used is evicted; none: no limit")
    max_batch_tokens: int = Field(16384, ge=64, description="padded prompt and new tokens of one generate call")
    max_batch_size: int = Field(128, ge=1)

    @field_validator("experts")
    @classmethod
    def _names_are_unique(cls, experts: tuple[ExpertConfig, ...]) -> tuple[ExpertConfig, ...]:
        names = [expert.name for expert in experts]
        if not names:
            raise ValueError("the pool is empty: list at least one expert under pool.experts")
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"two experts share a name: {', '.join(sorted(twice))}")
        return experts


class EnvConfig(Section):
    t_max: int = Field(4, ge=1, description="expert calls at most per question (paper: 4)")
    p0: float = Field(1.0, ge=0, le=1, description="quality that ends a training episode; 1 where quality is 0 or 1")
    continue_past_p0: float = Field(0.15, ge=0, le=1, description="share of training episodes that run on past p0 (paper: 0)")
    ktp: str = Field("paper-v1", description="Knowledge Transfer Prompt wording: paper-v1, code-v1 or none-v1 (ablation)")

    @field_validator("ktp")
    @classmethod
    def _ktp_is_known(cls, version: str) -> str:
        from prompts import KTP_TEMPLATES

        if version not in KTP_TEMPLATES:
            raise ValueError(f"unknown wording; known: {', '.join(KTP_TEMPLATES)}")
        return version


class RewardConfig(Section):
    kind: Literal["final", "paper"] = Field("final", description="final: quality once, at the end; paper: quality at every step (see README, deviations)")
    alpha: float = Field(0.1, ge=0, description="weight of cost against quality")
    cost: CostUnit = Field("params", description="what a call costs: params (billions), flops (1e12), tokens (1000s), latency (s), usd")
    cost_scale: float = Field(1.0, gt=0, description="C = raw units x cost_scale (authors: 0.001)")
    beta: float = Field(5.0, description="reward paper: weight of the quality gained by a step")
    gamma_bonus: float = Field(2.0, description="reward paper: bonus for reaching p0, penalty for not")
    discount: float = Field(1.0, gt=0, le=1)


class AgentConfig(Section):
    encoder: str = Field("sentence-transformers/all-MiniLM-L6-v2", description="any Hugging Face encoder: folder or hub id")
    revision: str | None = None
    pooling: Literal["cls", "mean", "last"] = "mean"
    freeze_encoder: bool = Field(True, description="keep the encoder as it is and cache its features")
    max_tokens: int = Field(256, ge=16, description="length of the state text in tokens")
    hidden_sizes: tuple[int, ...] = (128,)
    sees_calls_left: bool = Field(True, description="tell the heads how many calls are left (paper: false)")


class PPOConfig(Section):
    lr: float = Field(1e-3, gt=0, description="learning rate of the heads")
    lr_encoder: float = Field(2e-5, gt=0, description="learning rate of a trainable encoder")
    batch_size: int = Field(64, ge=2, description="transitions a gradient step")
    repeats: int = Field(4, ge=1, description="passes over each collected batch")
    eps_clip: float = Field(0.2, gt=0)
    gae_lambda: float = Field(0.95, ge=0, le=1)
    ent_coef: float = Field(0.01, ge=0)
    vf_coef: float = Field(0.5, ge=0)
    max_grad_norm: float = Field(0.5, gt=0)


class TrainConfig(Section):
    epochs: int = Field(10, ge=1)
    updates_per_epoch: int = Field(4, ge=1, description="PPO updates between two validations")
    episodes_per_update: int = Field(128, ge=1)
    num_envs: int = Field(64, ge=1, description="questions in flight; their expert calls are batched")
    lr_decay: bool = Field(True, description="learning rate falls linearly to zero")
    max_expert_calls: int | None = Field(None, ge=1, description="answers this run may generate; stored ones are free")


class TerminatorConfig(Section):
    hidden_size: int = Field(64, ge=1)
    steps: int = Field(400, ge=1, description="optimiser steps of a fit")
    lr: float = Field(2e-3, gt=0)
    weight_decay: float = Field(1e-2, ge=0)
    dropout: float = Field(0.0, ge=0, lt=1, description="of features and hidden units while learning")
    max_states: int = Field(20_000, ge=1, description="learn from the newest N distinct states")
    max_threshold: float = Field(0.95, gt=0, le=1, description="validation routes end here, so thresholds above are not considered")


class EvalConfig(Section):
    full: bool = Field(False, description="all baselines, the exact optimum, the full-information router and the transfer audit: many expert calls, all stored")
    tree_questions: int | None = Field(None, ge=2, description="full: training questions whose route trees teach the full-information router; none: all")
    composition_tasks: tuple[str, ...] = Field((), description="full: tasks that chain skills by construction, reported apart in the transfer audit")
    max_tree_calls: int = Field(1_000_000, ge=1, description="full: refuse route trees that could need more expert calls")


class Config(Section):
    """Everything a run is made of. `name` is the run's folder under `runs/`."""

    name: str | None = Field(None, description="folder under runs/; none: configuration name, seed and time")
    seed: int = Field(0, ge=0)
    device: str = Field("auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$", description="auto, cpu, cuda, cuda:N or mps")
    threads: int | None = Field(None, ge=1, description="CPU threads of torch; none: torch's choice")
    data: DataConfig = DataConfig()
    pool: PoolConfig = PoolConfig()
    env: EnvConfig = EnvConfig()
    reward: RewardConfig = RewardConfig()
    agent: AgentConfig = AgentConfig()
    ppo: PPOConfig = PPOConfig()
    train: TrainConfig = TrainConfig()
    terminator: TerminatorConfig = TerminatorConfig()
    eval: EvalConfig = EvalConfig()

    @model_validator(mode="after")
    def _priced_where_usd_counts(self) -> Config:
        unpriced = [e.name for e in self.pool.experts if e.usd_per_million_completion_tokens is None]
        if self.reward.cost == "usd" and unpriced:
            raise ValueError(f"reward.cost is usd, but these experts have no price: {', '.join(unpriced)}")
        return self


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping. Raises ConfigError when the file is missing, malformed or not a mapping."""
    if not path.is_file():
        raise ConfigError(f"{path}: no such configuration file")
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected keys and values, found {type(data).__name__}")
    return data


def overrides_from(arguments: list[str]) -> dict[str, Any]:
    """`--reward.alpha 0.1 --seed=3` as a nested mapping; values are read as YAML. Raises ConfigError for anything else."""
    out: dict[str, Any] = {}
    rest = list(arguments)
    while rest:
        flag = rest.pop(0)
        if not flag.startswith("--"):
            raise ConfigError(f"unexpected argument {flag!r}: options look like --reward.alpha 0.1")
        key, has_value, value = flag[2:].partition("=")
        if not has_value:
            if not rest or rest[0].startswith("--"):
                raise ConfigError(f"--{key} needs a value: --{key} VALUE")
            value = rest.pop(0)
        target = out
        *parents, leaf = key.split(".")
        for parent in parents:
            target = target.setdefault(parent, {})
            if not isinstance(target, dict):
                raise ConfigError(f"--{key}: {parent} was given a value of its own before")
        try:
            target[leaf] = yaml.safe_load(value) if value else ""
        except yaml.YAMLError as error:
            raise ConfigError(f"--{key} {value}: not a YAML value ({error})") from error
    return out


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` on top of `base`, mappings merged key by key, everything else replaced."""
    out = dict(base)
    for key, value in over.items():
        out[key] = merge(out[key], value) if isinstance(value, dict) and isinstance(out.get(key), dict) else value
    return out


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    """Field names of the section that the last part of `location` was looked up in."""
    section: Any = Config
    for part in location[:-1]:
        if isinstance(part, int):
            continue
        annotation = section.model_fields[part].annotation
        arguments = getattr(annotation, "__args__", ())
        section = next((a for a in (annotation, *arguments) if isinstance(a, type) and issubclass(a, Section)), None)
        if section is None:
            return []
    return list(section.model_fields)


def _explain(error: ValidationError, origin: str) -> str:
    lines = []
    for problem in error.errors():
        field = ".".join(map(str, problem["loc"])) or "configuration"
        if problem["type"] == "extra_forbidden":
            known = _known_keys(problem["loc"])
            near = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
            lines.append(f"{field}: unknown key; {hint}")
        elif problem["type"] == "missing":
            lines.append(f"{field}: missing")
        else:
            lines.append(f"{field} = {problem['input']!r}: {problem['msg'].removeprefix('Value error, ')}")
    return "\n".join([f"{origin}: {len(lines)} problem(s)", *(f"  {line}" for line in lines)])


def validate(data: dict[str, Any], origin: str = "configuration") -> Config:
    """A checked Config. Raises ConfigError listing every problem."""
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        raise ConfigError(_explain(error, origin)) from error


def load_config(path: Path, overrides: list[str] | None = None) -> Config:
    """Read a YAML file, put command-line overrides on top, check the result. Raises ConfigError."""
    given = merge(read_yaml(path), overrides_from(overrides or []))
    return validate(merge(Config().model_dump(mode="json"), given), str(path))


def dump_config(config: Config) -> str:
    """The resolved configuration as YAML that `load_config` reads back to an equal one."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def run_command(main: Callable[[list[str]], Any]) -> None:
    """Run a script's main on the command line; an error that a user can mend ends it with its message alone."""
    try:
        main(sys.argv[1:])
    except DERError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; what was generated is stored, and --resume continues from the last checkpoint")
