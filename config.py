"""Everything that can be set, typed, with its default and its meaning; runtime/command_line.py
reads it from YAML and options.

A YAML file holds only what differs from the defaults below. Every field is checked; an error names
the field, the value, what is allowed and, for an unknown key, the nearest known one.
"""

from __future__ import annotations

import math
import os
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

CostUnit = Literal["params", "flops", "tokens", "latency", "usd"]
THINKING_TAGS = ("think", "thinking", "reasoning")
# of transformers' apply_chat_template, which are no business of a template
TEMPLATE_ARGUMENTS = {
    "add_generation_prompt", "chat_template", "continue_final_message", "conversation", "messages",
    "return_dict", "return_tensors", "tokenize",
}  # fmt: skip
DEVICE_MAPS = r"^(auto|balanced|balanced_low_0|sequential|cpu|mps|cuda(:\d+)?)$"
LARGEST = 2**32  # no setting needs a number beyond; products of some stay finite
MAX_CALLS = 1000  # of a question
MAX_SIZE = 65_536  # of a layer
NAME_CHARS, NAME_BYTES = 100, 200  # of a run; file systems take 255 bytes
RESERVED = ("answers.sqlite", "full_information", "readings")  # what else lies under runs/
WEIGHT = 1e6  # in a reward, at most: sums and squares stay finite
RATE = 10.0  # of learning, at most
SPLITS = ("train", "validation", "test")
TOKEN_UNITS = ("flops", "tokens", "usd")  # costs that depend on how long prompts and answers are


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _is_plain(cls, given: Any, info: ValidationInfo) -> Any:
        field = cls.model_fields[info.field_name or ""]
        if isinstance(given, bool) and field.annotation is not bool:
            raise ValueError("true and false (yes and no) are no values of this setting")
        if isinstance(given, str) and any(c == "\0" or "\ud800" <= c <= "\udfff" for c in given):
            raise ValueError("holds a character that no path or text may have")
        return given

    @field_validator("*", mode="after")
    @classmethod
    def _is_of_this_world(cls, value: Any) -> Any:
        if isinstance(value, int | float) and abs(value) > LARGEST:
            raise ValueError(f"at most {LARGEST:g} in size")
        return value


class SourceConfig(Section):
    """Where one split comes from."""

    path: str = Field(
        description=(
            "a .jsonl file of questions or of recorded answers, or a name or folder that"
            " datasets.load_dataset takes"
        )
    )
    subset: str | None = Field(None, description="configuration name of a hub data set")
    split: str = Field(
        "train",
        description=(
            "split of a hub data set, or meta.split of the recorded rows to take (rows without one"
            " are all taken)"
        ),
    )
    revision: str | None = Field(None, description="commit of a hub data set")
    fields: dict[
        Literal["id", "text", "reference", "task", "metric", "agreement", "split"], str
    ] = Field(
        default_factory=dict,
        description=(
            "our field (id, text, reference, task, metric, agreement; split of recorded rows) ->"
            " theirs; dots reach into nested fields"
        ),
    )
    task: str = Field("default", description="task of rows that name none")
    metric: str = Field("exact_match", description="metric of rows that name none")
    agreement: str | None = Field(
        None,
        description=(
            "metric whose reading says which answers agree; none: the row's metric, exact_match"
            " where that is recorded"
        ),
    )
    score_range: tuple[float, float] = Field(
        (0.0, 1.0),
        description="metric recorded: the lowest and highest score there can be; mapped to 0 and 1",
    )
    limit: int | None = Field(None, ge=1, description="use the first N questions only")

    @field_validator("score_range")
    @classmethod
    def _score_range_rises(cls, given: tuple[float, float]) -> tuple[float, float]:
        if not given[0] < given[1]:
            raise ValueError("expected [lowest, highest]")
        if math.isinf(given[1] - given[0]):
            raise ValueError("too wide a range to map to [0, 1]")
        return given


class DataConfig(Section):
    train: SourceConfig = Field(
        SourceConfig(path="data/tiny_questions/train.jsonl"), description="training questions"
    )
    validation: SourceConfig = Field(
        SourceConfig(path="data/tiny_questions/validation.jsonl"),
        description="questions that choose the epoch, the threshold and the baselines",
    )
    test: SourceConfig = Field(
        SourceConfig(path="data/tiny_questions/test.jsonl"), description="questions of the report"
    )
    metrics: tuple[Annotated[str, Field(pattern=r"^[^\s:]+:\S+$")], ...] = Field(
        (),
        description=(
            "metrics with code of their own that rows may name: package.module:name,"
            " evaluate:NAME; a row may name no other code"
        ),
    )


class DecodingConfig(Section):
    """How an expert generates.

    Temperature 0 is greedy; above 0, sampling is seeded per prompt and so repeatable.
    """

    max_new_tokens: int = Field(64, ge=1, description="most tokens of one answer")
    temperature: float = Field(0.0, ge=0.0, description="0: greedy decoding; above 0: sampling")
    top_p: float = Field(
        1.0, gt=0.0, le=1.0, description="sampling: probability mass of the tokens to draw from"
    )
    seed: int = Field(0, description="sampling: seed, combined with each prompt")


class ExpertConfig(Section):
    """One LLM of the pool: what every kind of expert has."""

    name: str = Field(description="name in tables and logs; unique in the pool")
    params_b: float = Field(gt=0, description="parameters in billions; what the paper charges")
    usd_per_million_prompt_tokens: float | None = Field(
        None, ge=0, description="price of a million tokens read; none: prompts cost nothing"
    )
    usd_per_million_completion_tokens: float | None = Field(
        None, ge=0, description="price of a million tokens generated; none: the expert has no price"
    )
    tokens_per_second: float | None = Field(
        None, gt=0, description="generation speed to plan with where none was measured (--dry_run)"
    )
    thinking_tags: tuple[Annotated[str, Field(pattern=r"^[^<>/\s]+$")], ...] = Field(
        THINKING_TAGS,
        description=(
            "tags of the part in which a model thinks: <think>...</think>; the answer is what"
            " follows it; empty: texts are answers as they are"
        ),
    )


class RecordedExpertConfig(ExpertConfig):
    """Answers that exist already, replayed. They do not react to the prompt: a second call gets the
    same text as a first.

    The expert's name is its key in the file's answers. Prompt tokens are the question's, 0 without
    a tokenizer; no call takes any time.
    """

    kind: Literal["recorded"] = Field(description="replays recorded answers")
    path: str | tuple[str, ...] = Field(
        description=(
            "JSONL, one file or several, with an object a question: {question, reference, answers:"
            " {expert: text}, scores?, meta?}"
        )
    )
    tokenizer: str | None = Field(
        None,
        description=(
            "folder or hub id that counts tokens: of questions, and of answers where the file's"
            " meta.tokens does not"
        ),
    )
    revision: str | None = Field(None, description="hub commit of the tokenizer")

    @model_validator(mode="after")
    def _priced_prompts_are_counted(self) -> RecordedExpertConfig:
        if self.usd_per_million_prompt_tokens and self.tokenizer is None:
            raise ValueError(
                "usd_per_million_prompt_tokens needs a tokenizer to count the prompts with"
            )
        return self


class PromptedExpertConfig(ExpertConfig):
    """An LLM that reads a prompt."""

    prompt_format: Literal["chat", "plain", "few_shot", "template"] = Field(
        "chat",
        description=(
            "chat: the tokenizer's template; plain and few_shot: 'Question ... Answer:' for base"
            " models; template: prompt_template"
        ),
    )
    system_prompt: str | None = Field(None, description="for prompt_format chat")
    system_role: Literal["auto", "system", "user"] = Field(
        "auto",
        description=(
            "who says the system prompt: user puts it before the question, auto does so where the"
            " chat template has no system role (servers apply their own: name it there)"
        ),
    )
    chat_template_kwargs: dict[str, Any] | None = Field(
        None,
        description=(
            "for prompt_format chat: what the chat template is told, e.g. {enable_thinking: false}"
        ),
    )
    prompt_template: str | None = Field(
        None,
        description=(
            "for prompt_format template: what the model was tuned on, {prompt} standing for what is"
            " asked"
        ),
    )
    few_shot: str | None = Field(
        None,
        description=(
            "JSONL of examples {question, previous_answer, answer} for prompt_format few_shot"
        ),
    )
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        (), description="the answer ends before any of these"
    )
    decoding: DecodingConfig = Field(DecodingConfig(), description="how answers are generated")
    first_answers: str | tuple[str, ...] | None = Field(
        None,
        description=(
            "recorded answers (as kind recorded reads them) that serve as this expert's first"
            " calls: no generation, but the same charge"
        ),
    )

    @model_validator(mode="after")
    def _format_has_what_it_needs(self) -> PromptedExpertConfig:
        if (self.prompt_format == "few_shot") != (self.few_shot is not None):
            raise ValueError("prompt_format few_shot and a few_shot file belong together")
        if (self.prompt_format == "template") != (self.prompt_template is not None):
            raise ValueError("prompt_format template and a prompt_template belong together")
        if self.prompt_template is not None and self.prompt_template.count("{prompt}") != 1:
            raise ValueError("prompt_template needs {prompt} once, where the question goes")
        if self.chat_template_kwargs and self.prompt_format != "chat":
            raise ValueError("chat_template_kwargs are for prompt_format chat")
        if taken := TEMPLATE_ARGUMENTS & set(self.chat_template_kwargs or {}):
            raise ValueError(f"chat_template_kwargs: DER sets {', '.join(sorted(taken))} itself")
        if self.system_prompt is not None and self.prompt_format != "chat":
            raise ValueError(
                "system_prompt is for prompt_format chat; other formats would leave it out"
            )
        return self


class HFExpertConfig(PromptedExpertConfig):
    """A Hugging Face causal or sequence-to-sequence model run in this process."""

    kind: Literal["hf"] = Field("hf", description="a Hugging Face model in this process")
    source: str = Field(description="local folder or hub id")
    revision: str | None = Field(None, description="hub commit; pin it for a result to stand")
    gguf_file: str | None = Field(
        None, description="file in the source to read instead of safetensors"
    )
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = Field(
        "float32", description="precision of the weights; auto: as they are stored"
    )
    quantization: Literal["8bit", "4bit"] | None = Field(
        None, description="weights in 8 or 4 bits through bitsandbytes"
    )
    device_map: str | None = Field(
        None,
        pattern=DEVICE_MAPS,
        description=(
            "auto: over all GPUs, then CPU memory, then disk (accelerate); or one device, e.g."
            " cuda:1; none: the run's device"
        ),
    )
    max_memory: dict[Annotated[int | str, Field(union_mode="left_to_right")], str] | None = Field(
        None,
        description=(
            "for device_map auto: most that each device may hold, e.g. {0: 20GiB, cpu: 60GiB}"
        ),
    )
    trust_remote_code: bool = Field(
        False, description="run Python code that comes with the weights; only for sources you trust"
    )

    @model_validator(mode="after")
    def _weights_can_be_held_so(self) -> HFExpertConfig:
        if self.quantization and self.gguf_file:
            raise ValueError(
                "quantization and gguf_file exclude each other: GGUF weights are quantised already"
            )
        if self.max_memory and self.device_map not in (
            "auto",
            "balanced",
            "balanced_low_0",
            "sequential",
        ):
            raise ValueError("max_memory needs a device_map that spreads the weights, such as auto")
        return self


class RayExpertConfig(HFExpertConfig):
    """The same model as Ray actors, on one machine or many."""

    # The tag of a union: no value fits both classes, whatever their order of inheritance.
    kind: Literal["ray"] = Field(  # type: ignore[assignment]
        description="a Hugging Face model as Ray actors"
    )
    replicas: int = Field(
        1,
        ge=1,
        description=(
            "actors that share this expert's requests; one is enough to go on, the others join when"
            " there is room"
        ),
    )
    num_gpus: float = Field(
        0.0, ge=0, description="GPUs each replica holds; fractions share a card"
    )
    num_cpus: float = Field(1.0, gt=0, description="CPU cores each replica holds")

    @field_validator("num_gpus")
    @classmethod
    def _gpus_are_whole_or_one_is_shared(cls, num_gpus: float) -> float:
        if num_gpus > 1 and num_gpus != int(num_gpus):
            raise ValueError("a share of one GPU (up to 1) or a whole number")
        return num_gpus


class EndpointExpertConfig(PromptedExpertConfig):
    """A model behind an OpenAI-compatible server: vLLM, SGLang, TGI, llama.cpp, Ollama,
    transformers serve.
    """

    kind: Literal["endpoint"] = Field(description="a model behind an OpenAI-compatible server")
    model: str = Field(description="model name as the server knows it")
    urls: tuple[str, ...] = Field(
        min_length=1, description="base URLs of replicas, e.g. http://localhost:8000/v1"
    )
    revision: str | None = Field(
        None,
        description=(
            "what tells these weights from others of the same name; part of every answer's key"
        ),
    )
    api_key_env: str | None = Field(
        None,
        description=(
            "environment variable that holds the key; keys are never read from a file or logged"
        ),
    )
    concurrency: int = Field(16, ge=1, description="requests in flight per replica")
    timeout_s: float = Field(120.0, gt=0, description="deadline of one try")
    max_retries: int = Field(
        5,
        ge=0,
        description="tries after the first, with growing waits, on whichever replica is healthy",
    )
    on_failure: Literal["stop", "empty"] = Field(
        "stop",
        description=(
            "when a request fails for good: end the run, or go on with an empty answer that is not"
            " stored"
        ),
    )


EXPERT_KINDS: dict[str, type[ExpertConfig]] = {
    "hf": HFExpertConfig,
    "recorded": RecordedExpertConfig,
    "endpoint": EndpointExpertConfig,
    "ray": RayExpertConfig,
}


def _kind_of(expert: Any) -> str | None:
    return expert.get("kind", "hf") if isinstance(expert, dict) else getattr(expert, "kind", None)


AnyExpertConfig = Annotated[
    Annotated[HFExpertConfig, Tag("hf")]
    | Annotated[RecordedExpertConfig, Tag("recorded")]
    | Annotated[EndpointExpertConfig, Tag("endpoint")]
    | Annotated[RayExpertConfig, Tag("ray")],
    Discriminator(
        _kind_of,
        custom_error_type="expert_kind",
        custom_error_message=f"unknown kind of expert; known: {', '.join(EXPERT_KINDS)}",
    ),
]


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
        4, ge=1, le=MAX_CALLS, description="expert calls at most per question (paper: 4)"
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
    stop: Literal["terminator", "action"] = Field(
        "terminator",
        description="who ends a route: the Terminator (paper), or an action of the agent",
    )
    ktp: Literal["paper-v1", "code-v1", "all-v1", "none-v1"] = Field(
        "paper-v1",
        description="Knowledge Transfer Prompt: all-v1 hands on all different answers so far, the"
        " others the last; none-v1 is the ablation",
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
            "agent.reads belief: train one agent for all these weights and those between, whatever"
            " alpha it is asked with; empty: alpha alone"
        ),
    )
    cost: CostUnit = Field(
        "params",
        description=(
            "what a call costs: params (billions), flops (1e12), tokens (1000s), latency (s), usd"
        ),
    )
    cost_scale: float = Field(
        1.0, gt=0, le=WEIGHT, description="C = raw units x cost_scale (authors: 0.001)"
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
    max_tokens: int = Field(256, ge=16, description="length of the state text in tokens")
    hidden_sizes: tuple[Annotated[int, Field(ge=1, le=MAX_SIZE)], ...] = Field(
        (128,), description="hidden layers of the policy head and of the value head"
    )
    sees_calls_left: bool = Field(
        True, description="tell the heads how many calls are left (paper: false)"
    )


class PPOConfig(Section):
    lr: float = Field(1e-3, gt=0, le=RATE, description="learning rate of the heads")
    lr_encoder: float = Field(
        2e-5, gt=0, le=RATE, description="learning rate of a trainable encoder"
    )
    batch_size: int = Field(64, ge=2, description="transitions a gradient step")
    repeats: int = Field(4, ge=1, description="passes over each collected batch")
    eps_clip: float = Field(0.2, gt=0, description="clip range of the probability ratio")
    gae_lambda: float = Field(
        0.95, ge=0, le=1, description="lambda of generalised advantage estimation; 1: full returns"
    )
    ent_coef: float = Field(0.01, ge=0, description="weight of the entropy bonus")
    vf_coef: float = Field(0.5, ge=0, description="weight of the value loss")
    max_grad_norm: float = Field(0.5, gt=0, description="gradient norm above which it is scaled")


class TrainConfig(Section):
    epochs: int = Field(10, ge=1, description="epochs; each ends with a validation")
    updates_per_epoch: int = Field(4, ge=1, description="PPO updates between two validations")
    episodes_per_update: int = Field(
        128,
        ge=2,
        description=(
            "episodes collected per PPO update; at least 2, since PPO normalises advantages over"
            " the batch"
        ),
    )
    num_envs: int = Field(
        64, ge=1, description="questions in flight; their expert calls are batched"
    )
    lr_decay: bool = Field(True, description="learning rate falls linearly to zero")
    refit: bool = Field(
        True,
        description=(
            "agent.reads belief: fit what was fitted on training and validation questions together"
            " once training has ended"
        ),
    )
    max_expert_calls: int | None = Field(
        None, ge=1, description="answers this run may generate; stored ones are free"
    )


class TerminatorConfig(Section):
    hidden_size: int = Field(64, ge=1, le=MAX_SIZE, description="hidden units")
    steps: int = Field(400, ge=1, description="optimiser steps of a fit")
    lr: float = Field(2e-3, gt=0, le=RATE, description="learning rate of a fit")
    weight_decay: float = Field(1e-2, ge=0, description="weight decay of a fit")
    dropout: float = Field(
        0.0, ge=0, lt=1, description="dropout of features and hidden units during a fit"
    )
    max_states: int = Field(20_000, ge=1, description="learn from the newest N distinct states")
    max_threshold: float = Field(
        0.95,
        gt=0,
        le=1,
        description="validation routes end here, so thresholds above are not considered",
    )


class EvalConfig(Section):
    full: bool = Field(
        False,
        description=(
            "all baselines, the exact optimum, the full-information router and the transfer audit:"
            " many expert calls, all stored"
        ),
    )
    baselines: tuple[str, ...] = Field(
        (),
        description=(
            "policies to compare with, by name (see docs/evaluation.md) or import path"
            " package.module:name; none: those that ask nothing but the test and validation"
            " questions, where answers are recorded also those that learn from training questions"
        ),
    )
    tree_questions: int | None = Field(
        None,
        ge=2,
        description=(
            "full: training questions whose route trees teach the full-information router;"
            " none: all"
        ),
    )
    composition_tasks: tuple[str, ...] = Field(
        (),
        description=(
            "full: tasks that chain skills by construction, reported apart in the transfer audit"
        ),
    )
    use_terminator: bool = Field(
        True,
        description="false: every route runs to T_max, the paper's ablation without the Terminator",
    )
    ranker: str | None = Field(
        None,
        description=(
            "folder or hub id of a PairRM (llm-blender/PairRM-hf) that picks among all experts'"
            " answers; none: leave it out"
        ),
    )
    ranker_revision: str | None = Field(None, description="hub commit of the ranker")
    max_tree_calls: int = Field(
        1_000_000, ge=1, description="full: refuse route trees that could need more expert calls"
    )


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
        None, ge=1, description="CPU threads of torch; none: torch's choice"
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
                f"reward.cost is usd, but these experts have no price: {', '.join(unpriced)}"
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
    def _timed_where_latency_counts(self) -> Config:
        untimed = [
            e.name for e in self.pool.experts if e.kind == "recorded" or e.first_answers is not None
        ]
        if self.reward.cost == "latency" and untimed:
            raise ValueError(
                "reward.cost is latency, but recorded answers took no time that is known:"
                f" {', '.join(untimed)}"
            )
        return self
