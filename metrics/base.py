"""What a metric is, and what most of them share."""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from prompts import answer_of
from questions import Reference
from runtime.errors import MetricError

PUNCTUATION = re.escape(string.punctuation)
# At the ends of a word, but for a number's minus sign or decimal point
PUNCTUATION_AROUND = re.compile(rf"^(?:(?!-\.?\d|\.\d)[{PUNCTUATION}])+|[{PUNCTUATION}]+$")
TYPESET_MINUS = "\u2212"


class Metric(Protocol):
    """Scores answers against references, and says what it reads in an answer.

    A metric of a user's own needs `compute` only: without `read` its answers are read by
    `read_words`. Two optional members say when readings agree (metrics/agreement.py):
    `same(a, b) -> bool` where readings of different texts can mean the same, and
    `is_free_text = True` where agreement is a matter of degree.
    """

    def compute(
        self, *, predictions: Sequence[str], references: Sequence[Reference]
    ) -> list[float]:
        """One score in [0, 1] per prediction."""

    def read(self, answer: str) -> str | None:
        """What the metric reads in an answer, in a form that equal answers share: a number as
        text, a letter, a name. None where it can read nothing.
        """


def normalise(text: str) -> str:
    """Lower case, no accents, no punctuation at the ends of words, no articles, single spaces
    (after SQuAD's evaluation script).

    A minus sign or decimal point of a number stays, and a text of nothing but punctuation or
    articles is kept as it is.
    """
    decomposed = unicodedata.normalize("NFKD", text)
    plain = "".join(char for char in decomposed if not unicodedata.combining(char))
    plain = plain.lower().replace(TYPESET_MINUS, "-").replace("-$", "-")
    words = []
    for word in plain.split():
        bare = PUNCTUATION_AROUND.sub("", word)
        if bare not in ("a", "an", "the", ""):
            words.append(bare)
    return " ".join(words) or plain.strip()


def read_words(answer: str) -> str | None:
    """The whole answer after `normalise`; None for an empty one."""
    return normalise(answer) or None


def accepted(reference: Reference) -> list[str]:
    """The texts that count as right. Raises MetricError where the reference is an object."""
    if isinstance(reference, dict):
        raise MetricError(
            "this metric compares texts; the reference is an object (reasoning_gym:NAME reads"
            " those)"
        )
    return reference if isinstance(reference, list) else [reference]


@dataclass(frozen=True)
class PairMetric:
    """A metric that scores one answer against one accepted reference at a time; the best accepted
    reference counts, and an empty answer scores 0.

    `reading` and `score` get what follows an answer's thinking part (`prompts.answer_of`).
    """

    score: Callable[[str, str], float]
    reading: Callable[[str], str | None] = read_words
    same: Callable[[str, str], bool] | None = None  # of readings; None: equal texts only
    is_free_text: bool = False

    def read(self, answer: str) -> str | None:
        return self.reading(answer_of(answer))

    def compute(
        self, *, predictions: Sequence[str], references: Sequence[Reference]
    ) -> list[float]:
        scores = []
        for prediction, reference in zip(predictions, references, strict=True):
            answer = answer_of(prediction)
            texts = accepted(reference)
            best = max(self.score(answer, text) for text in texts)
            scores.append(best if answer.strip() else 0.0)
        return scores
