"""Answers of several models, joined by question into rows of recorded answers.

Readers yield a Reply for each model and question; backends/recorded.py tells the form of a row.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from config import SPLITS
from questions import RECORDED, text_key
from runtime.errors import DataError
from runtime.files import whole_text, write_atomically

TRAIN_BELOW = 102  # of 256 values of a digest's first byte: 40% of the questions
VALIDATION_BELOW = 128  # another 10%

Row = dict[str, Any]


class Reply(NamedTuple):
    """One model's answer to one question."""

    key: str  # the same for every model's answer to this question
    question: str  # as published
    reference: str  # "" where none was published
    task: str
    answer: str
    score: float | None  # None: the answer was not judged
    place: str  # file and line, or file and key, for messages
    usd: float | None = None  # what the call cost


Replies = dict[str, dict[str, Reply]]  # model -> key -> reply


@dataclass(frozen=True)
class JoinRules:
    """What to do with questions that not all files agree on."""

    drop_missing: bool = False  # leave a question out that a model lacks, instead of refusing
    drop_changed: bool = False  # leave a question out that the files state differently
    leave_out: frozenset[str] = frozenset()  # first 16 digits of `digest_of` such questions


def digest_of(question: str) -> str:
    """SHA-256 of a question's text without the white space around it, in hexadecimal."""
    return hashlib.sha256(whole_text(question).strip().encode()).hexdigest()


def split_of(question: str) -> str:
    """The split of a question: its text alone decides, so that no other question moves it."""
    first_byte = int(digest_of(question)[:2], 16)
    if first_byte < TRAIN_BELOW:
        return "train"
    return "validation" if first_byte < VALIDATION_BELOW else "test"


def gather(pairs: Iterable[tuple[str, Reply]]) -> Replies:
    """(model, reply) pairs by model and key.

    Raises DataError for a question without words, for a second answer of a model to a question, for
    a score that is no number, for a model whose answers are all blank, and for one that was not
    judged where others were.
    """
    replies: Replies = {}
    for model, reply in pairs:
        of_model = replies.setdefault(model, {})
        if not reply.question.strip():
            raise DataError(f"{reply.place}: question {reply.key} is blank; take it out")
        if reply.key in of_model:
            raise DataError(
                f"{reply.place}: {model} answered question {reply.key} before, at"
                f" {of_model[reply.key].place}; keep one of the two files or rows"
            )
        if reply.score is not None and not math.isfinite(reply.score):
            raise DataError(f"{reply.place}: the score of {model} is {reply.score}, not a number")
        of_model[reply.key] = reply
    for model, of_model in replies.items():
        if not any(reply.answer.strip() for reply in of_model.values()):
            first = next(iter(of_model.values()))
            raise DataError(
                f"{first.place}: scores without texts: every answer of {model} is blank. An agent"
                " reads answers: import files that hold them"
            )
    _refuse_unjudged(replies)
    return replies


def _refuse_unjudged(replies: Replies) -> None:
    """Raise DataError where some models' answers were judged and another's were not."""
    judged = {}
    for model, of_model in replies.items():
        judged[model] = any(reply.score is not None for reply in of_model.values())
    if not any(judged.values()) or all(judged.values()):
        return
    model = next(model for model, is_judged in judged.items() if not is_judged)
    first = next(iter(replies[model].values()))
    raise DataError(
        f"{first.place}: no answer of {model} was judged, those of other models were; add its"
        " verdicts, or take the model out (as the one that others were compared with)"
    )


def _refuse_missing(key: str, replies: Replies, model: str) -> DataError:
    here = next(of_model[key] for of_model in replies.values() if key in of_model)
    there = next(iter(replies[model].values()))
    return DataError(
        f"{here.place}: question {key} is answered here, but {model} has no answer to it (its first"
        f" answer: {there.place}). Add the answer, or leave such questions out with --missing drop"
    )


def _refuse_changed(first: Reply, other: Reply) -> DataError:
    return DataError(
        f"{other.place}: question {first.key} has another text or reference than at {first.place};"
        " these are not answers to one question. Import files of one version of the question set"
    )


def join(replies: Replies, rules: JoinRules) -> tuple[dict[str, dict[str, Reply]], Counter[str]]:
    """Questions with all models' replies, key -> model -> reply, and how many were left out, why.

    Raises DataError for a question that a model lacks or that two files state differently, unless
    the rules say to leave it out.
    """
    left_out = Counter(missing=0, changed=0, repeats=0, listed=0)
    joined: dict[str, dict[str, Reply]] = {}
    texts: set[str] = set()
    for key in _all_keys(replies):
        row, lacking = {}, []
        for model in sorted(replies):
            if key in replies[model]:
                row[model] = replies[model][key]
            else:
                lacking.append(model)
        if lacking and not rules.drop_missing:
            raise _refuse_missing(key, replies, lacking[0])
        reason = "missing" if lacking else _reason_to_leave_out(row, texts, rules)
        if reason is not None:
            left_out[reason] += 1
            continue
        texts.add(_text_of(row))
        joined[key] = row
    return joined, left_out


def _all_keys(replies: Replies) -> list[str]:
    keys: dict[str, None] = {}
    for of_model in replies.values():
        keys.update(dict.fromkeys(of_model))
    return list(keys)


def _text_of(row: dict[str, Reply]) -> str:
    return text_key(next(iter(row.values())).question)


def _reason_to_leave_out(row: dict[str, Reply], texts: set[str], rules: JoinRules) -> str | None:
    """Why a question that all models answered is not taken; None where it is."""
    first, *others = row.values()
    for other in others:
        if (other.question, other.reference) == (first.question, first.reference):
            continue
        if not rules.drop_changed:
            raise _refuse_changed(first, other)
        return "changed"
    if _text_of(row) in texts:
        return "repeats"
    return "listed" if digest_of(first.question)[:16] in rules.leave_out else None


def row_of(of_question: dict[str, Reply], meta: dict[str, Any]) -> Row:
    """A row of recorded answers. `meta` is what the set adds to its meta data.

    Quality is the publisher's verdict, where all answers have one.
    """
    first = next(iter(of_question.values()))
    answers, scores, costs = {}, {}, {}
    for model, reply in of_question.items():
        answers[model] = whole_text(reply.answer)
        scores[model] = reply.score
        if reply.usd is not None:
            costs[model] = reply.usd
    judged = None not in scores.values()
    row: Row = {
        "question": whole_text(first.question),
        "reference": whole_text(first.reference),
        "answers": answers,
    }
    if judged:
        row["scores"] = scores
    row["meta"] = {"split": split_of(first.question), "task": first.task}
    if judged:
        row["meta"]["metric"] = RECORDED
    row["meta"].update(meta)
    if costs:
        row["meta"]["usd"] = costs
    return row


def sample(rows: Iterable[Row], limit: int | None) -> list[Row]:
    """Rows split by split in the order of their digests, at most `limit` of each.

    The digest shuffles, so that the first N of a split are a fair sample of it.
    """
    by_split: dict[str, list[tuple[str, Row]]] = {split: [] for split in SPLITS}
    for row in rows:
        by_split[row["meta"]["split"]].append((digest_of(row["question"]), row))
    out: list[Row] = []
    for of_split in by_split.values():
        of_split.sort(key=lambda pair: pair[0])
        out.extend(row for _, row in of_split[:limit])
    return out


def write_rows(path: Path, rows: Iterable[Row]) -> str:
    """Write JSONL in one step, so that an earlier file stays whole if this fails.

    Returns its SHA-256.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    data = b"".join(_lines(rows))
    write_atomically(path, data)
    return hashlib.sha256(data).hexdigest()


def _lines(rows: Iterable[Row]) -> Iterator[bytes]:
    for row in rows:
        yield (json.dumps(row, ensure_ascii=False) + "\n").encode()


def accuracies(rows: Iterable[Row]) -> dict[str, dict[str, float]]:
    """Mean score of each model, and of "any": the best score of each question.

    By model, then by "all" and each task; empty without scores.
    """
    sums: dict[str, Counter[str]] = {}
    counts: Counter[str] = Counter()
    for row in rows:
        if "scores" not in row:
            continue
        scores = row["scores"] | {"any": max(row["scores"].values())}
        for group in ("all", row["meta"]["task"]):
            counts[group] += 1
            for model, score in scores.items():
                sums.setdefault(model, Counter())[group] += score
    means: dict[str, dict[str, float]] = {}
    for model, of_model in sums.items():
        means[model] = {}
        for group, total in sorted(of_model.items()):
            means[model][group] = total / counts[group]
    return means
