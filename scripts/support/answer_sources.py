"""Published answers of LLMs that prepare_data.py knows: where they are, and how they are read.

A reader is a function (paths of one model's files, part) -> replies; docs/data.md explains each
choice. Commits are those of the publishers' GitHub repositories.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metrics.choices import choice_in
from runtime.errors import DataError
from scripts.support.data_sources import LETTERS
from scripts.support.recorded_rows import Reply
from scripts.support.upstream_files import expect, read_json, take


@dataclass(frozen=True)
class Part:
    """Answers to one question set, one or two files a model."""

    task: str | None  # None: the file names a task for each question
    agreement: str  # metric whose reading decides whether two answers agree
    files: tuple[str, ...]  # in the repository; {model} stands for the model's name there
    read: Callable[[Sequence[Path], Part], Iterator[Reply]]
    drop_changed: bool = False  # its files hold several versions of some questions


@dataclass(frozen=True)
class AnswerSource:
    """Recorded answers of several models in their publisher's repository."""

    repository: str  # GitHub owner/name
    commit: str
    licence: str
    models: tuple[str, ...]
    parts: dict[str, tuple[Part, ...]]  # folder under data/NAME -> what its file holds


def user_turn(prompt: Any, place: str) -> str:
    """The text of the last user turn of an OpenCompass prompt: a list of turns, or its repr."""
    if isinstance(prompt, str):
        try:
            prompt = ast.literal_eval(prompt)
        except (ValueError, SyntaxError) as error:
            raise DataError(f"{place}: the prompt is not a list of turns ({error})") from error
    for turn in reversed(expect(prompt, list, place, "the prompt")):
        if take(turn, "role", str, place) == "HUMAN":
            return take(turn, "prompt", str, place)
    raise DataError(f"{place}: no turn of the prompt has the role HUMAN, so it asks nothing")


def details_of(path: Path) -> dict[str, Any]:
    """Question number -> row of an OpenCompass file."""
    return take(read_json(path), "details", dict, str(path))


def read_judged(paths: Sequence[Path], part: Part) -> Iterator[Reply]:
    """OpenCompass' details of GSM8K and MATH: prompt, text and verdict in one file."""
    (path,) = paths
    for number, row in details_of(path).items():
        place = f"{path}: details.{number}"
        yield Reply(
            key=f"{part.task}-{number}",
            question=user_turn(take(row, "prompt", (list, str), place), place),
            reference=take(row, "references", str, place),
            task=str(part.task),
            answer=take(row, "origin_prediction", str, place),
            score=float(take(row, "correct", bool, place)),
            place=place,
        )


def read_programs(paths: Sequence[Path], part: Part) -> Iterator[Reply]:
    """OpenCompass' predictions and results of HumanEval and MBPP: texts in one file, verdicts in
    the other.

    `gold` is MBPP's tests; for HumanEval it is the name of the task, which is no reference.
    """
    texts_path, verdicts_path = paths
    texts = expect(read_json(texts_path), dict, str(texts_path), "the file")
    verdicts = details_of(verdicts_path)
    if texts.keys() != verdicts.keys():
        number = next(iter(texts.keys() ^ verdicts.keys()))
        where = verdicts_path if number in texts else texts_path
        raise DataError(
            f"{where}: no question {number}, which the other file has; fetch both again"
        )
    for number, row in texts.items():
        place = f"{texts_path}: {number}"
        gold = take(row, "gold", str, place)
        correct = take(verdicts[number], "is_correct", bool, f"{verdicts_path}: details.{number}")
        yield Reply(
            key=f"{part.task}-{number}",
            question=user_turn(take(row, "origin_prompt", (list, str), place), place),
            reference="" if part.task == "humaneval" else gold,
            task=str(part.task),
            answer=take(row, "prediction", str, place),
            score=float(correct),
            place=place,
        )


def choice_question(row: Any, place: str) -> str:
    """The question, and its options on lines "A. ..."."""
    options = take(row, "options", list, place)
    if len(options) > len(LETTERS):
        raise DataError(f"{place}: {len(options)} options, but letters end at {LETTERS[-1]}")
    lines = [take(row, "question", str, place).strip()]
    for letter, option in zip(LETTERS, options, strict=False):
        lines.append(f"{letter}. {expect(option, str, place, 'each option').strip()}")
    return "\n".join(lines)


def read_mmlu_pro(paths: Sequence[Path], part: Part) -> Iterator[Reply]:
    """MMLU-Pro's model outputs: a list of questions with `pred`, the letter read, null if none.

    Some files hold no null: there a random letter stands where none could be read. So a letter of
    such a file counts only where the text has one.
    """
    (path,) = paths
    rows = expect(read_json(path), list, str(path), "the file")
    is_guessed = True
    for idx, row in enumerate(rows):
        is_guessed = is_guessed and take(row, "pred", object, f"{path}[{idx}]") is not None
    for idx, row in enumerate(rows):
        place = f"{path}[{idx}]"
        field = "model_outputs" if "model_outputs" in row else "generated_text"
        text, answer = take(row, field, str, place), take(row, "answer", str, place)
        was_read = not is_guessed or choice_in(text) is not None
        yield Reply(
            key=f"mmlu_pro-{take(row, 'question_id', int, place)}",
            question=choice_question(row, place),
            reference=answer,
            task=take(row, "category", str, place),
            answer=text,
            score=float(was_read and row["pred"] == answer),
            place=place,
        )


LOOKAHEAD = "compressed_data/test"

ANSWER_SOURCES = {
    "lookahead": AnswerSource(
        repository="huangcb01/lookahead-routing",
        commit="62ecd6e73a073329a6145856e383b3f5cbbf726d",
        licence="MIT",
        models=(
            "Llama-3.1-8B-Instruct",
            "Phi-3-medium-4k-instruct",
            "Qwen2.5-Coder-7B-Instruct",
            "Yi-1.5-34B-Chat",
            "gemma-2-9b-it",
            "internlm2_5-20b-chat",
        ),
        parts={
            "gsm8k": (
                Part(
                    task="gsm8k",
                    agreement="numeric_match",
                    files=(f"{LOOKAHEAD}/GSM8k/{{model}}.json.gz",),
                    read=read_judged,
                ),
            ),
            "math": (
                Part(
                    task="math",
                    agreement="math",
                    files=(f"{LOOKAHEAD}/MATH/{{model}}.json.gz",),
                    read=read_judged,
                ),
            ),
            "code": (
                Part(
                    task="humaneval",
                    agreement="code",
                    files=(
                        f"{LOOKAHEAD}/HumanEval/predictions/{{model}}.json.gz",
                        f"{LOOKAHEAD}/HumanEval/results/{{model}}.json.gz",
                    ),
                    read=read_programs,
                ),
                Part(
                    task="mbpp",
                    agreement="code",
                    files=(
                        f"{LOOKAHEAD}/MBPP/predictions/{{model}}.json.gz",
                        f"{LOOKAHEAD}/MBPP/results/{{model}}.json.gz",
                    ),
                    read=read_programs,
                ),
            ),
        },
    ),
    "mmlu_pro_answers": AnswerSource(
        repository="TIGER-AI-Lab/MMLU-Pro",
        commit="f418b116db00b065c2aea046518d8fcf74d39872",
        licence="Apache-2.0",
        models=(
            "Meta-Llama-3_1-70B-Instruct",
            "Meta-Llama-3_1-8B-Instruct",
            "Mistral-7B-Instruct-v0.2",
            "Mixtral-8x7B-Instruct-v0.1",
            "Phi-3-mini-4k-instruct",
            "Qwen1.5-72B-Chat",
            "c4ai-command-r-v01",
            "mathstral-7B",
        ),
        parts={
            "": (
                Part(
                    task=None,
                    agreement="multiple_choice",
                    files=("eval_results/model_outputs_{model}_5shots.zip",),
                    read=read_mmlu_pro,
                    drop_changed=True,
                ),
            ),
        },
    ),
}
