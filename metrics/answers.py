"""Metrics that read an answer out of a text: a number, a letter, a name."""

from __future__ import annotations

import re

from metrics.base import TYPESET_MINUS, normalise
from runtime.errors import MetricError

NUMBER = re.compile(
    r"(?<![\w.])(-?)[$€£]?"  # not inside a word or a longer number
    # 1,234 or 12,34,567 or .5 or 1e-5; "1,2" are two numbers
    r"((?:\d+(?:,\d{2,3})*,\d{3}(?!\d)|\d++|(?=\.\d))(?:\.\d++)?+(?:[eE][+-]?\d++)?+)"
    r"(?!\w*[\d_]|(?i:x|st|nd|rd|th)\b)"  # a unit may be attached: 72km, but neither 3x2 nor 2nd
)


def numbers_in(text: str) -> list[float]:
    """All numbers of a text, thousands separators, currency signs and units removed: "1,234.5kg and
    -$3" -> [1234.5, -3.0].
    """
    return [
        float(sign + digits.replace(",", ""))
        for sign, digits in NUMBER.findall(text.replace(TYPESET_MINUS, "-"))
    ]


CHOICE = re.compile(
    r"(?i:(?:answer|choice|option)\s*(?:is\s*:?|:)\s*(?:(?:option|choice)\s+)?)"
    r"[(\[]?([A-HJ]\b|[A-Ja-j](?=[.,:)\]]|\s*$))"  # not the words "a" and "I"
)


def choice_in(text: str) -> str | None:
    """The letter of a multiple-choice answer, quotes and marks of Markdown and LaTeX aside.

    The last one boxed or after "answer is", "choice is" or "option is" (or ":"), else one that
    opens the text and is closed by . : ) ] or the end of its line.
    """
    plain = re.sub(
        r"\\text(?:bf)?|\\(?=[()\[\]])|[*`${}\"']", "", text.replace(r"\boxed", "answer is ")
    )
    if matches := CHOICE.findall(plain):
        return matches[-1].upper()
    match = re.match(r"(?:Option\s+)?[(\[]?([A-J])(?:[.:)\]]|\s*$)", plain.strip(), re.MULTILINE)
    return match[1] if match else None


def exact_match(prediction: str, reference: str) -> float:
    """1 when equal after `normalise`."""
    return float(normalise(prediction) == normalise(reference))


def numeric_match(prediction: str, reference: str) -> float:
    """1 when the last number of the answer equals the reference's to 1e-6 relative; "112" does not
    contain "12".
    """
    found, wanted = numbers_in(prediction), numbers_in(reference)
    if not wanted:
        raise MetricError(f"numeric_match: no number in the reference {reference!r}")
    return float(bool(found) and abs(found[-1] - wanted[-1]) <= 1e-6 * max(1.0, abs(wanted[-1])))


def read_number(answer: str) -> str | None:
    """The number that `numeric_match` compares, as text: "1,234.50" -> "1234.5"."""
    found = numbers_in(answer)
    return f"{found[-1]:.12g}" if found else None


def same_number(a: str, b: str) -> bool:
    """Whether two readings are equal to 1e-6 relative, as `numeric_match` compares them."""
    first, second = float(a), float(b)
    return abs(first - second) <= 1e-6 * max(1.0, abs(first), abs(second))


FILLER = re.compile(
    r"^(?:(?:also|known as|called|named|located|situated|found|part"
    r"|in|on|as|the|a|an|country|continent|city|of)\s+)+",
    re.IGNORECASE,
)


def short_answer_in(text: str) -> str | None:
    """The name or word that an answer gives, whether alone or in a sentence; None when there is
    none.

    Of the first line's first sentence, what follows the last "is", "are", "was" or "called": a
    quoted string if there is one, else what precedes a comma, without leading filler. More than
    four words are no short answer.
    """
    first_line = text.strip().partition("\n")[0]
    sentence = re.split(r"(?<=[a-z)\"”])[.!;](?:\s|$)", first_line)[0].strip()
    tail = re.split(r"\s(?:is|are|was|called)\s", sentence)[-1]
    if quoted := re.findall(r"[\"“]([^\"“”]+?)[.,]?[\"”]", tail):
        return quoted[-1]
    found = FILLER.sub("", tail.partition(", ")[0]).strip(" .\"'*")
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


def multiple_choice(prediction: str, reference: str) -> float:
    """1 when the letter chosen is the reference's.

    Raises MetricError for a reference without one.
    """
    wanted = choice_in(reference.upper())
    if wanted is None:
        raise MetricError(f"multiple_choice: no letter A to J in the reference {reference!r}")
    return float(choice_in(prediction) == wanted)
