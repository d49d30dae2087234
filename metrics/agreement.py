"""Which answers to one question agree, found without a reference.

Answers agree when a metric reads the same in them (`Metric.read`). An answer in which it can read
nothing agrees with none, not even with its copy. Groups are numbered in the order in which they
first appear: readings 7, 9, 7.0 and none give 0, 1, 0, None.

Free texts agree from a similarity on, which `choose_similarity` chooses.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from metrics.base import read_words
from metrics.registry import get_metric, is_ours
from questions import SIMILARITY, Question
from runtime.remembered import Remembered

SIMILARITIES = tuple(step / 20 for step in range(4, 20))  # those to choose from: 0.2 to 0.95
REMEMBERED = 1 << 18  # readings
HALF = 0.5  # likeness from which a metric's `same` said yes

compared = Remembered(limit=1 << 20)  # likeness (1,) of pairs of readings


def group_answers(
    metric_name: str, answers: Sequence[str], similarity: float = SIMILARITY
) -> list[int | None]:
    """The group of each answer by the reading of a metric; None where it can read nothing.

    An answer joins the first group whose first answer it agrees with. `similarity`, a ROUGE-L F1
    in [0, 1], counts for metrics of free text only. Raises MetricError for an unknown metric.
    """
    agrees = _comparison(metric_name, similarity)
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


def group_question_answers(question: Question, answers: Sequence[str]) -> list[int | None]:
    """`group_answers` by the metric and the similarity that the question names for it."""
    return group_answers(question.agreement_metric, answers, question.similarity)


def compares_free_text(question: Question) -> bool:
    """Whether agreement between answers to a question is a matter of degree."""
    return getattr(get_metric(question.agreement_metric), "is_free_text", False)


def choose_similarity(
    questions: Sequence[Question], answers: Sequence[Sequence[str]], good: np.ndarray
) -> float:
    """The similarity whose agreement best foretells that two answers are both good.

    Agreement splits all pairs of answers to a question in two. Taken is the similarity under which
    the shares of good pairs in both parts make the outcomes likeliest; of equals the highest.
    SIMILARITY where pairs that agree are never good more often than the others.

    Args:
        answers: [N][K], K answers to each question. Those in no free text are left out.
        good: (N, K), whether an answer is good.
    """
    pairs = list(_pairs(questions, answers, good))
    similarities = np.array([similarity for similarity, _ in pairs])
    are_good = np.array([is_good for _, is_good in pairs], dtype=bool)
    chosen = SIMILARITY
    best = -np.inf
    for similarity in SIMILARITIES:
        agree = similarities >= similarity
        if agree.all() or not agree.any():
            continue
        agreeing = are_good[agree]
        apart = are_good[~agree]
        likelihood = _log_likelihood(agreeing) + _log_likelihood(apart)
        if agreeing.mean() > apart.mean() and likelihood >= best:
            best = likelihood
            chosen = similarity
    return chosen


def _pairs(
    questions: Sequence[Question], answers: Sequence[Sequence[str]], good: np.ndarray
) -> Iterator[tuple[float, bool]]:
    """(similarity, whether both are good) of every two answers to a question of free text."""
    for row, question in enumerate(questions):
        if not compares_free_text(question):
            continue
        metric_name = question.agreement_metric
        readings = [read_answer(metric_name, answer) for answer in answers[row]]
        for first, second in itertools.combinations(range(len(readings)), 2):
            a, b = readings[first], readings[second]
            if a is not None and b is not None:
                yield compare(metric_name, a, b), bool(good[row, first] and good[row, second])


def _log_likelihood(is_good: np.ndarray) -> float:
    """Log-likelihood of the outcomes (P,) of pairs under the share of good ones.

    To find the share one good pair and one other are added, so that it is never 0 or 1.
    """
    num_good = int(is_good.sum())
    num_other = len(is_good) - num_good
    share = (num_good + 1) / (len(is_good) + 2)
    return float(num_good * np.log(share) + num_other * np.log(1 - share))


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


def _comparison(metric_name: str, similarity: float) -> Callable[[str, str], bool]:
    metric = get_metric(metric_name)
    if getattr(metric, "is_free_text", False):
        return lambda a, b: compare(metric_name, a, b) >= similarity
    if getattr(metric, "same", None) is not None:
        return lambda a, b: compare(metric_name, a, b) >= HALF
    return lambda a, b: a == b


def compare(metric_name: str, a: str, b: str) -> float:
    """How alike two readings are, from 0 to 1; each pair is compared once, in one order.

    Of free text the ROUGE-L F1, which is symmetric; else 1 where the metric's `same` says so.
    """
    if a == b:
        return 1.0
    a, b = min(a, b), max(a, b)

    def measure() -> np.ndarray:
        return np.array([_likeness(metric_name, a, b)])

    return float(compared.find((metric_name, a, b), measure, is_lasting=is_ours(metric_name))[0])


def _likeness(metric_name: str, a: str, b: str) -> float:
    metric: Any = get_metric(metric_name)
    if getattr(metric, "is_free_text", False):
        return _rouge().score(a, b)["rougeL"].fmeasure
    return float(metric.same(a, b))


@functools.cache
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=True)
