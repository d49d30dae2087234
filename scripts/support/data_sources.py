"""The public question sets that prepare_data.py knows: where each is, which of its splits serve as
ours, and how a row becomes a question.

Mappings are pure functions, row -> Mapped; docs/data.md explains each choice. Revisions are
commits of the hub's repositories.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

Row = dict[str, Any]

LETTERS = "ABCDEFGHIJ"
LETTER_RULE = "Answer with the letter of the right choice."
NUMBER_RULE = 'End with "####" and the final number alone.'
BRIEF_RULE = "Give the answer alone, in as few words as possible."
# Grade-school-math's own rule: this, commas removed
GSM8K_ANSWER = re.compile(r"#### (-?[0-9.,]+)")
WIKIHOW_MARK = re.compile(r"\[(?:header|title|step|substeps)\]")

# Name upstream -> expert: the last part of the hub id that the card lists. Two things to know of
# the upstream files: they also hold answers of mpt-7b, a base model and no expert of the paper (its
# "MPT" is mpt-7b-instruct: 63.21 BERTScore in both tables), and the card's validation table spells
# Open Assistant "oasst-ft".
MIXINSTRUCT_EXPERTS = {
    "alpaca-native": "alpaca-native",
    "chatglm-6b": "chatglm-6b",
    "dolly-v2-12b": "dolly-v2-12b",
    "flan-t5-xxl": "flan-t5-xxl",
    "koala-7B-HF": "koala-7B-HF",
    "llama-7b-hf-baize-lora-bf16": "llama-7b-hf-baize-lora-bf16",
    "moss-moon-003-sft": "moss-moon-003-sft",
    "mpt-7b-instruct": "mpt-7b-instruct",
    "oasst-ft-4-pythia-12b-epoch-3.5": "oasst-sft-4-pythia-12b-epoch-3.5",
    "oasst-sft-4-pythia-12b-epoch-3.5": "oasst-sft-4-pythia-12b-epoch-3.5",
    "stablelm-tuned-alpha-7b": "stablelm-tuned-alpha-7b",
    "vicuna-13b-1.1": "vicuna-13b-1.1",
}


class Mapped(NamedTuple):
    """What a row says.

    A row without text or reference cannot be used; it is left out and counted.
    """

    text: str
    reference: str | list[str] | None
    task: str


class Recorded(NamedTuple):
    """Answers that a row carries, by expert, and their scores in [0, 1]."""

    answers: dict[str, str]
    scores: dict[str, float]


@dataclass(frozen=True)
class Source:
    """A question set on the hub."""

    hub_id: str
    subset: str | None
    revision: str  # commit
    splits: dict[str, str]  # ours -> theirs
    metric: str
    read: Callable[[Row], Mapped]
    validation_share: float = (
        0.0  # of their training questions, where they have no labelled validation split to spare
    )
    recorded: Callable[[Row], Recorded] | None = None


def with_choices(question: str, choices: Sequence[str]) -> str:
    """The question, its choices on lines "A. ...", and how to answer."""
    lines = [
        f"{letter}. {choice.strip()}" for letter, choice in zip(LETTERS, choices, strict=False)
    ]
    return "\n".join([question.strip(), *lines, LETTER_RULE])


def read_mixinstruct(row: Row) -> Mapped:
    """Instruction and input on lines of their own; the task is the instruction set that the row
    came from.
    """
    parts = [part.strip() for part in (row["instruction"], row["input"]) if part]
    return Mapped("\n".join(filter(None, parts)), row["output"], row["id"].partition("/")[0])


def recorded_mixinstruct(row: Row) -> Recorded:
    """The 11 experts' answers with their BERTScore F1 (bert-base-multilingual-cased, not rescaled),
    cut to [0, 1].
    """
    answers, scores = {}, {}
    for candidate in row["candidates"]:
        expert = MIXINSTRUCT_EXPERTS.get(candidate["model"])
        if expert is None:
            continue
        answers[expert] = candidate["text"]
        if (score := candidate["scores"].get("bertscore")) is not None:
            scores[expert] = min(1.0, max(0.0, score))
    return Recorded(answers, scores)


def read_gsm8k(row: Row) -> Mapped:
    """The final number, after ####, without thousands separators.

    Experts are asked for the same form.
    """
    found = GSM8K_ANSWER.search(row["answer"])
    return Mapped(
        f"{row['question'].strip()}\n{NUMBER_RULE}",
        found[1].replace(",", "") if found else None,
        "gsm8k",
    )


def read_mmlu(row: Row) -> Mapped:
    """The task is the subject; the auxiliary training questions have none."""
    return Mapped(
        with_choices(row["question"], row["choices"]),
        LETTERS[row["answer"]],
        row["subject"] or "auxiliary_train",
    )


def read_arc(row: Row) -> Mapped:
    """Three to five choices, some labelled 1 to 4 upstream: letters go by position."""
    choices = row["choices"]
    return Mapped(
        with_choices(row["question"], choices["text"]),
        LETTERS[choices["label"].index(row["answerKey"])],
        "arc_challenge",
    )


def read_triviaqa(row: Row) -> Mapped:
    """The answer and all its aliases are accepted."""
    answer = row["answer"]
    return Mapped(
        f"{row['question'].strip()}\n{BRIEF_RULE}",
        list(dict.fromkeys([answer["value"], *answer["aliases"]])),
        "triviaqa",
    )


def read_hellaswag(row: Row) -> Mapped:
    """Activity and context, then four endings; the marks that WikiHow's layout left in the texts
    are dropped.
    """
    context, *endings = (
        " ".join(WIKIHOW_MARK.sub(" ", text).split()) for text in (row["ctx"], *row["endings"])
    )
    question = f"Which ending continues the text best?\n{row['activity_label']}: {context}"
    return Mapped(
        with_choices(question, endings),
        LETTERS[int(row["label"])] if row["label"] else None,
        "hellaswag",
    )


SOURCES = {
    "mixinstruct": Source(
        hub_id="llm-blender/mix-instruct",
        subset=None,
        revision="c7f77a4ef0515a99d1752c6387c22366d6922da6",
        splits={"train": "train", "validation": "validation", "test": "test"},
        metric="bertscore",
        read=read_mixinstruct,
        recorded=recorded_mixinstruct,
    ),
    "gsm8k": Source(
        hub_id="openai/gsm8k",
        subset="main",
        revision="740312add88f781978c0658806c59bc2815b9866",
        splits={"train": "train", "validation": "train", "test": "test"},
        metric="numeric_match",
        read=read_gsm8k,
        validation_share=0.1,
    ),
    "mmlu": Source(
        hub_id="cais/mmlu",
        subset="all",
        revision="c30699e8356da336a370243923dbaf21066bb9fe",
        splits={"train": "auxiliary_train", "validation": "validation", "test": "test"},
        metric="multiple_choice",
        read=read_mmlu,
    ),
    "arc_challenge": Source(
        hub_id="allenai/ai2_arc",
        subset="ARC-Challenge",
        revision="210d026faf9955653af8916fad021475a3f00453",
        splits={"train": "train", "validation": "validation", "test": "test"},
        metric="multiple_choice",
        read=read_arc,
    ),
    "triviaqa": Source(
        hub_id="mandarjoshi/trivia_qa",
        subset="unfiltered.nocontext",
        revision="0f7faf33a3908546c6fd5b73a660e0f8ff173c2f",
        splits={"train": "train", "validation": "train", "test": "validation"},
        metric="exact_match",
        read=read_triviaqa,
        validation_share=0.1,
    ),
    "hellaswag": Source(
        hub_id="Rowan/hellaswag",
        subset=None,
        revision="218ec52e09a7e7462a5400043bb9a69a41d06b76",
        splits={"train": "train", "validation": "train", "test": "validation"},
        metric="multiple_choice",
        read=read_hellaswag,
        validation_share=0.1,
    ),
}

# All scored 0 or 1; mixinstruct's quality is graded
MULTIDOMAIN = (
    "gsm8k",
    "mmlu",
    "arc_challenge",
    "triviaqa",
    "hellaswag",
)
MULTIDOMAIN_SIZES = {"train": 1000, "validation": 200, "test": 400}  # of each domain
