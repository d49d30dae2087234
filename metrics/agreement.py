"""Which answers to one question agree, found without a reference.

Answers agree when a metric reads the same in them (`Metric.read`). An answer in which it can read
nothing agrees with none, not even with its copy. Groups are numbered in the order in which they
first appear: readings 7, 9, 7.0 and none give 0, 1, 0, None.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from metrics.base import read_words
from metrics.registry import get_metric
from questions import Question

AGREEING_SIMILARITY = 0.7  # ROUGE-L F1 from which two free texts agree
REMEMBERED = 1 << 18  # readings, and pairs compared


def group_answers(
    metric_name: str, answers: Sequence[str], threshold: float = AGREEING_SIMILARITY
) -> list[int | None]:
    """The group of each answer by the reading of a metric; None where it can read nothing.

    An answer joins the first group whose first answer it agrees with. `threshold`, a ROUGE-L F1 in
    [0, 1], counts for metrics of free text only. Raises MetricError for an unknown metric.
    """
    agrees = _comparison(metric_name, threshold)
    first_of_group: list[str] = []
    groups: list[int | None] = []
    for answer in answers:
        reading = read_answer(metric_name, answer)
        if reading is None:
            groups.append(None)
            continue
        group = _find_group(reading, first_of_group, agrees)
        if group == len(first_of_group):
            first_of_group.append(reading)
        groups.append(group)
    return groups


def group_question_answers(
    question: Question, answers: Sequence[str], threshold: float = AGREEING_SIMILARITY
) -> list[int | None]:
    """`group_answers` by the metric that the question names for it."""
    return group_answers(question.agreement_metric, answers, threshold)


@functools.lru_cache(maxsize=REMEMBERED)
def read_answer(metric_name: str, answer: str) -> str | None:
    """What a metric reads in an answer; None for nothing. Each answer is read once."""
    if not answer.strip():
        return None
    read = getattr(get_metric(metric_name), "read", read_words)
    return read(answer)


def _find_group(
    reading: str, first_of_group: Sequence[str], agrees: Callable[[str, str], bool]
) -> int:
    """The number of the group a reading belongs to; their count where it opens a new one."""
    if reading in first_of_group:  # equal texts need no comparison, which may be slow
        return first_of_group.index(reading)
    for group, first in enumerate(first_of_group):
        if agrees(first, reading):
            return group
    return len(first_of_group)


def _comparison(metric_name: str, threshold: float) -> Callable[[str, str], bool]:
    metric = get_metric(metric_name)
    if getattr(metric, "is_free_text", False):
        return lambda a, b: _similarity(a, b) >= threshold
    if getattr(metric, "same", None) is not None:
        return lambda a, b: _are_same(metric_name, a, b)
    return lambda a, b: a == b


@functools.lru_cache(maxsize=REMEMBERED)
def _are_same(metric_name: str, a: str, b: str) -> bool:
    metric: Any = get_metric(metric_name)
    return metric.same(a, b)


@functools.cache
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=True)


@functools.lru_cache(maxsize=REMEMBERED)
def _similarity(a: str, b: str) -> float:
    """ROUGE-L F1 of two texts, which is symmetric."""
    return _rouge().score(a, b)["rougeL"].fmeasure
