"""The settings of an expert, by kind: what stands under `pool.experts`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from settings.section import Section

THINKING_TAGS = ("think", "thinking", "reasoning")
# of transformers' apply_chat_template, which are no business of a template
TEMPLATE_ARGUMENTS = {
    "add_generation_prompt", "chat_template", "continue_final_message", "conversation", "messages",
    "return_dict", "return_tensors", "tokenize",
}  # fmt: skip
# Device maps that spread the weights; the others name one device
SPREADING_MAPS = frozenset({"auto", "balanced", "balanced_low_0", "sequential"})
IMPORTED = "imported"  # tag of the union, for a kind that is an import path
IMPORT_PATH = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$"
DEVICE_MAPS = r"^(auto|balanced|balanced_low_0|sequential|cpu|mps|cuda(:\d+)?)$"


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
        if self.max_memory and self.device_map not in SPREADING_MAPS:
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
    max_away_s: float = Field(
        96.0, gt=0, description="the longest that a failing replica is left alone, in seconds"
    )
    on_failure: Literal["stop", "empty"] = Field(
        "stop",
        description=(
            "when a request fails for good: end the run, or go on with an empty answer that is not"
            " stored"
        ),
    )
    logprobs: bool = Field(
        False,
        description=(
            "ask for the log-probability of each token, to store how sure the model was; some"
            " servers refuse such requests"
        ),
    )


class ImportedExpertConfig(PromptedExpertConfig):
    """An expert of a class of the user's own; docs/extending.md has an example."""

    kind: str = Field(
        pattern=IMPORT_PATH,
        description="import path of a class of your own: my_package.my_module:MyExpert",
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="what the class is told beside its configuration"
    )


EXPERT_KINDS: dict[str, type[ExpertConfig]] = {
    "hf": HFExpertConfig,
    "recorded": RecordedExpertConfig,
    "endpoint": EndpointExpertConfig,
    "ray": RayExpertConfig,
}


def _kind_of(expert: Any) -> str | None:
    kind = getattr(expert, "kind", None)
    if isinstance(expert, dict):
        kind = expert.get("kind", "hf")
    return IMPORTED if isinstance(kind, str) and ":" in kind else kind


def expert_section(kind: str) -> type[ExpertConfig]:
    """The settings of an expert of this kind."""
    return EXPERT_KINDS.get(kind, ImportedExpertConfig)


AnyExpertConfig = Annotated[
    Annotated[HFExpertConfig, Tag("hf")]
    | Annotated[RecordedExpertConfig, Tag("recorded")]
    | Annotated[EndpointExpertConfig, Tag("endpoint")]
    | Annotated[RayExpertConfig, Tag("ray")]
    | Annotated[ImportedExpertConfig, Tag(IMPORTED)],
    Discriminator(
        _kind_of,
        custom_error_type="expert_kind",
        custom_error_message=(
            f"unknown kind of expert; known: {', '.join(EXPERT_KINDS)}, or the import path of a"
            " class, package.module:Class"
        ),
    ),
]
