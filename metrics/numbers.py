"""Metric `numeric_match`: the number that an answer gives as its result (docs/metrics.md)."""

from __future__ import annotations

import math
import re

from metrics.base import TYPESET_MINUS
from metrics.marks import MARKS, before_next_question, marked_parts
from runtime.errors import MetricError

# Where the statement of a result ends and a remark on it begins
END_OF_CLAUSE = re.compile(r"[.!?;]\s|,\s|\s\(|\s(?i:because|since|which|as)\s")
BOLD_NUMBER = re.compile(r"\*\*([^*\n]*\d[^*\n]*)\*\*")
# A minus that stands apart and opens a box, a line after #### or a result. In a list it is a mark
SIGN_APART = re.compile(
    rf"((?:boxed\s*\{{|####|=)[^\S\n]*\\?\$?)(?:-|{TYPESET_MINUS})[^\S\n]+(?=[\\$€£]*\.?\d)"
)
TOLERANCE = 1e-6  # relative, and absolute below 1
SAYS_ALL = ("box", "hashes")  # marks of the whole result: without a number in them there is none
ORDINAL = re.compile(r"(?<![\w.])(\d{1,9})(?:st|nd|rd|th)\b")
REMARK = re.compile(
    r"\([^()]*\)|,\s(?:which(?!\s(?:equals?|gives|makes|totals)\b)|since|because)\b"
    r"(?:[^\n.!?]|[.!?](?=\S))*"
)
# What may follow the last statement
POLITE = re.compile(
    r"(?i)\W*(?:let me know|i hope|hope th(?:is|at)|feel free|please|if you (?:have|need|want))\b"
)
UNKNOWN = re.compile(
    r"(?i)\b(?:however|cannot|can not|unknown|impossible|(?:do|does|did|is|are) not"
    r"|(?:ca|do|does|did|is|are)n['\u2019]t)\b"
)

# How LaTeX writes what numbers need, and what stands for it: (pattern, replacement, example)
TYPESETTING = (
    (re.compile(r"\\[!,;:>]|\{,\}(?=\d)"), "", r"70{,}000 and 70\,000"),
    (re.compile(r"(?<=\d)\\[dt]?frac"), r" \\frac", r"2\frac{1}{2}"),
    (
        re.compile(r"\\[dt]?frac\s*(?:\{(\d+)\}|(\d))\s*(?:\{(\d+)\}|(\d))"),
        r"\1\2/\3\4",
        r"\frac{1}{2} and \frac12",
    ),
    (re.compile(r"\\(?:times|cdot)"), "\u00d7", r"5 \times 10^3"),
    (re.compile(r"\\(?:text|mathrm|mathbf|textbf)\s*\{"), "{ ", r"72\text{ km}"),
    (re.compile(r"\^\s*\{\s*(-?\d+)\s*\}"), r"^\1", "10^{5}"),
    (re.compile(r"\\(?=[$%&#])"), "", r"\$72 and 72\%"),
    (re.compile(TYPESET_MINUS), "-", "\u22125"),
    (re.compile(r"\b(\d{1,4})/(\d{1,2})/(\d{1,4})\b"), r"\1 \2 \3", "12/31/1999, no fraction"),
)

SCALES = {"hundred": 1e2, "thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12}

NUMBER = re.compile(
    r"""
    (?<![\w.^])(?P<sign>-?)[$€£]?  # not inside a word, a longer number, an exponent
    (?:(?P<whole>\d+)\s(?=\d+/\d))?  # 2 1/2
    # 1,234 or 12,34,567 or .5; "1,2" are two numbers
    (?P<digits>(?:\d+(?:,\d{2,3})*,\d{3}(?!\d)|\d++|(?=\.\d))(?:\.\d++)?+(?:[eE][+-]?\d++)?+)
    (?:/(?P<below>[1-9]\d*+)(?!\.\d))?  # 1/2
    (?:\^(?P<power>-?\d{1,3}))?
    (?:\s?[\u00d7x*]\s?10\^(?P<ten>-?\d{1,3}))?  # 1.5 x 10^6
    (?!\w*[\d_]|(?i:x|st|nd|rd|th)\b)  # a unit may be attached: 72km, but neither 3x2 nor 2nd
    (?:[\s-](?P<scale>(?i:hundred|thousand|million|billion|trillion))\b)?
    """,
    re.VERBOSE,
)

ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
    " sixteen seventeen eighteen nineteen"
).split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
WORD = re.compile(
    rf"\b(?:({'|'.join(TENS)})(?:[\s-]({'|'.join(ONES[1:10])}))?|({'|'.join(ONES)}))\b"
    rf"(?!\s(?:{'|'.join(SCALES)})\b)"
)


def plain_numbers(text: str) -> str:
    """The text with its numbers typed as a keyboard would: "\\frac{1}{2}" -> "1/2"."""
    for pattern, replacement, _ in TYPESETTING:
        text = pattern.sub(replacement, text)
    return text


def numbers_in(text: str) -> list[float]:
    """All numbers written in digits, thousands separators, currency signs and units removed:
    "1,234.5kg, -$3 and 1.5 million" -> [1234.5, -3.0, 1500000.0].
    """
    values = []
    for match in NUMBER.finditer(plain_numbers(text)):
        value = _value(match)
        if math.isfinite(value):
            values.append(value)
    return values


def _value(match: re.Match[str]) -> float:
    """The number a match of NUMBER stands for; infinite where it is too large."""
    value = float(match["digits"].replace(",", ""))
    if match["below"]:
        value /= float(match["below"])
    if match["whole"]:
        value += float(match["whole"])
    try:
        if match["power"]:
            value **= int(match["power"])
        if match["ten"]:
            value *= 10.0 ** int(match["ten"])
    except (OverflowError, ZeroDivisionError):
        return math.inf
    if match["scale"]:
        value *= SCALES[match["scale"].lower()]
    return -value if match["sign"] else value


def _word_in(text: str) -> float | None:
    """The value of the only number word from zero to ninety-nine in a short text."""
    found = list(WORD.finditer(text.lower()))
    if len(found) != 1 or len(text.split()) > 4:
        return None
    tens, ones, alone = found[0].groups()
    if alone:
        return float(ONES.index(alone))
    return 10.0 * (TENS.index(tens) + 2) + (ONES.index(ones) if ones else 0)


def _number_in_part(part: str) -> float | None:
    """Of a marked part, up to the end of its first clause: the number that is bold, else the one
    after its last "=", else the one it opens with, else its last.
    """
    bold = BOLD_NUMBER.search(part)
    part = bold[1] if bold else part
    part = END_OF_CLAUSE.split(part, maxsplit=1)[0]
    part = part.rpartition("=")[2]
    numbers = numbers_in(part) or [float(digits) for digits in ORDINAL.findall(part)]
    if not numbers:
        return _word_in(part)
    opens = re.match(r"[\s$€£*_`({\\\[-]*\.?\d", plain_numbers(part))
    return numbers[0] if opens else numbers[-1]


def last_number(text: str) -> float | None:
    """The last number of a text, remarks aside: what stands in parentheses, and a clause after a
    comma that opens with "which" and names no result.
    """
    for candidate in (REMARK.sub(" ", text), text):
        numbers = numbers_in(candidate)
        if numbers:
            return numbers[-1]
    return _word_in(text)


def _ends_unknown(text: str) -> bool:
    """Whether the last statement holds no number and says that something is not known."""
    statements = [line for line in text.splitlines() if line.strip() and not POLITE.match(line)]
    if not statements or numbers_in(statements[-1]):
        return False
    return UNKNOWN.search(statements[-1]) is not None


def number_in(answer: str) -> float | None:
    """The number an answer gives as its result; None where it holds none.

    What is marked (metrics/marks.py) goes before what is merely last.
    """
    text = SIGN_APART.sub(r"\1-", before_next_question(answer))
    for mark in MARKS:
        is_marked = False
        for part in marked_parts(text, [mark]):
            is_marked = True
            number = _number_in_part(part)
            if number is not None:
                return number
        if is_marked and mark[0] in SAYS_ALL:
            return None
    return None if _ends_unknown(text) else last_number(text)


def read_number(answer: str) -> str | None:
    """The number that `numeric_match` compares, as text: "1,234.50" -> "1234.5"."""
    number = number_in(answer)
    return None if number is None else f"{number:.12g}"


def same_number(a: str, b: str) -> bool:
    """Whether two readings are equal as `numeric_match` compares them."""
    first, second = float(a), float(b)
    return abs(first - second) <= TOLERANCE * max(1.0, abs(first), abs(second))


def numeric_match(prediction: str, reference: str) -> float:
    """1 when the answer's number equals the reference's to 1e-6 relative; "112" does not contain
    "12".

    Raises MetricError for a reference without a number.
    """
    wanted = number_in(reference)
    if wanted is None:
        raise MetricError(f"numeric_match: no number in the reference {reference!r}")
    found = number_in(prediction)
    if found is None:
        return 0.0
    return float(abs(found - wanted) <= TOLERANCE * max(1.0, abs(wanted)))
