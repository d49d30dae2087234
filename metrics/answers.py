"""Metrics `exact_match` and `short_answer`: answers of a few words."""

from __future__ import annotations

import re

from metrics.base import normalise
from metrics.marks import STRICT_MARKS, before_next_question, marked_parts


def exact_match(prediction: str, reference: str) -> float:
    """1 when equal after `normalise`."""
    return float(normalise(prediction) == normalise(reference))


FILLER = re.compile(
    r"^(?:(?:also|known as|called|named|located|situated|found|part"
    r"|in|on|as|the|a|an|country|continent|city|of)\s+)+",
    re.IGNORECASE,
)


# What a sentence says its answer is stands after one of these
SAYS = re.compile(
    r"\s(?:is|are|was|called)\s|^(?:it|that|this|he|she|they)['\u2019](?:s|re)\s", re.IGNORECASE
)


def short_answer_in(text: str) -> str | None:
    """The name or word that an answer gives, whether alone or in a sentence; None when there is
    none.

    Of the first line's first sentence, what follows the last "is", "are", "was", "called" or an
    opening "It's": a quoted string if there is one, else what precedes a comma, without leading
    filler. What is marked (metrics/marks.py) goes before the first line. More than four words are
    no short answer.
    """
    text = before_next_question(text)
    for part in [*marked_parts(text, STRICT_MARKS), text.strip().partition("\n")[0]]:
        found = _name_in(part)
        if found is not None:
            return found
    return None


def _name_in(line: str) -> str | None:
    sentence = re.split(r"(?<=[a-z)\"\u201d])[.!;](?:\s|$)", line)[0].strip()
    tail = SAYS.split(sentence)[-1]
    if quoted := re.findall(r"[\"\u201c]([^\"\u201c\u201d]+?)[.,]?[\"\u201d]", tail):
        return quoted[-1]
    found = FILLER.sub("", tail.partition(", ")[0]).strip(" .!\"'*")
    return found if 0 < len(found.split()) <= 4 else None


def read_short_answer(answer: str) -> str | None:
    """What `short_answer` compares: the name or word given, after `normalise`."""
    found = short_answer_in(answer)
    return None if found is None else normalise(found)


def short_answer(prediction: str, reference: str) -> float:
    """1 when the short answer given equals the reference after `normalise`; no answer found scores
    0.
    """
    found = short_answer_in(prediction)
    return 0.0 if found is None else exact_match(found, reference)
