"""Metric `math`: whether two mathematical expressions mean the same (docs/metrics.md).

Readings are LaTeX in one spelling. Equal spellings and equal plain numbers need no mathematics;
everything else is compared by the library math-verify, in a process of its own
(metrics/math_worker.py).
"""

from __future__ import annotations

import functools
import re
from fractions import Fraction

from metrics.base import TYPESET_MINUS
from metrics.marks import before_next_question, last_line, marked_parts
from metrics.math_worker import compare
from metrics.numbers import END_OF_CLAUSE, last_number
from runtime.errors import MetricError

TOLERANCE = Fraction(1, 10**6)
REMEMBERED = 1 << 17  # pairs compared
MAX_LENGTH = 500  # characters of an expression; a longer one is no result

# One spelling of LaTeX: (pattern, replacement, example)
SPELLING = (
    (re.compile(TYPESET_MINUS), "-", "\u22121"),
    (re.compile(r"(?<=\d)(?:,\s*\\!|\{,\})\s*(?=\d{3})"), "", r"50,\!625 and 50{,}625"),
    (re.compile(r"\\[$%]|\$|\\[()\[\]]|%"), "", r"\$5, 25\% and \(x\)"),
    (
        re.compile(r"\\(?:left|right|[bB]igg?[lr]?|displaystyle)(?![A-Za-z])"),
        "",
        r"\left( x \right)",
    ),
    (re.compile(r"(?<!\\)\\[!,;: ]|~"), " ", r"50,\!625 and 5\, x"),
    (re.compile(r"\\[dtc]frac"), r"\\frac", r"\dfrac{1}{2}"),
    (re.compile(r"\\frac\s*(\d)\s*(?=[\d{])"), r"\\frac{\1}", r"\frac12"),
    (re.compile(r"(\\frac\{[^{}]*\})\s*(\d)"), r"\1{\2}", r"\frac{1}2"),
    (re.compile(r"\\sqrt\s*(\d)"), r"\\sqrt{\1}", r"\sqrt2"),
    (re.compile(r"\^\s*(?:\\circ|\{\s*\\circ\s*\})|\\degree|\u00b0"), "", r"90^\circ"),
    (
        re.compile(
            r"(?<=[\d}])\s*\\(?:text|mbox|mathrm|textbf)\{(?!\s*[ap]\.?m)[^{}]*\}(?:\^\{?\d\}?)?$"
        ),
        "",
        r"5\text{ cm}^2",
    ),
    (re.compile(r"^\\(?:text|mbox|mathrm|textbf)\{([^{}]*)\}$"), r"\1", r"\text{even}"),
    (re.compile(r"^\(([A-Z])\)$"), r"\1", "(A)"),
    (re.compile(r"\\text\{\s*([ap]\.?m\b)\.?\s*\}"), r" \1", r"4:30 \text{ p.m.}"),
    (re.compile(r"(?<![\d.])\.(?=\d)"), "0.", ".5"),
    (re.compile(r"\s*([-+*/=,(){}\[\]^_<>|&])\s*"), r"\1", "x + 1"),
    (re.compile(r"\s+"), " ", ""),
)
THOUSANDS = re.compile(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
PLAIN_NUMBER = re.compile(r"(-?)(?:\\frac\{(\d+)\}\{(\d+)\}|(\d+)/(\d+)|(\d+(?:\.\d+)?))")
IN_BASE = re.compile(r"([\d.A-F]+)(?:_\{?(\d+)\}?)?")
CLOCK_OR_RATIO = re.compile(r"\d:\d")
SEGMENT = re.compile(
    r"\$\$(.+?)\$\$|(?<!\\)\$((?:\\.|[^$\\\n])+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL
)
WORDS = re.compile(r"\\text\s*\{[^{}]*\}|\\[A-Za-z]+")
FINISHED = re.compile(r"[.!?)\]}$*\"'\d]\s*$")
PROSE = re.compile(r"[A-Za-z]{2,}[,:]?\s+[A-Za-z]{2,}")
# What an expression may only ask for: \cot\frac{3\pi}{2} says which value, not that it is 0
UNDONE = re.compile(
    r"\\(?:sum|prod|int|lim|log|ln|lg|(?:arc)?(?:sin|cos|tan)|cot|sec|csc|det)(?![A-Za-z])"
)
SUBSCRIPT = re.compile(r"_\{[^{}]*\}")
PAIR = re.compile(r"[(\[][^()\[\]]*,[^()\[\]]*[)\]]")  # an interval or a point
VALUES = re.compile(r"[^()\[\]{}|]*,[^()\[\]{}|]*")  # several values


def spell(expression: str) -> str:
    """LaTeX in one spelling: without sizes, spaces, units, degree and percent signs."""
    for pattern, replacement, _ in SPELLING:
        expression = pattern.sub(replacement, expression.strip())
    expression = expression.strip().rstrip(".")
    return expression.replace(",", "") if THOUSANDS.fullmatch(expression) else expression


def expression_in(answer: str) -> str | None:
    """The expression an answer gives as its result, as written; None where it holds none.

    What is marked (metrics/marks.py) goes first, then an answer that is nothing but an expression,
    then the last expression typeset in its last line, then the last number there.
    """
    text = before_next_question(answer).strip()
    for part in marked_parts(text):
        found = _expression_in_part(part)
        if found is not None:
            return found
    if text and not _is_sentence(text) and not _is_prose(text) and len(text) <= MAX_LENGTH:
        return text
    line = last_line(text)
    if _is_cut_off(line) or text.count(r"\[") > text.count(r"\]"):
        return None  # its last formula is a step on the way
    segments = _segments(line)
    if segments:
        return segments[-1]
    number = last_number(line)
    return None if number is None else f"{number:.12g}"


def _segments(text: str) -> list[str]:
    """What stands between the signs of LaTeX mathematics."""
    found = []
    for match in SEGMENT.finditer(text):
        found.append(next(group for group in match.groups() if group is not None))
    return found


def _is_cut_off(line: str) -> bool:
    """Whether a line ends before its sentence or its formula does."""
    is_open = line.count("(") > line.count(")")
    return is_open or line.count("$") % 2 == 1 or FINISHED.search(line) is None


def _is_sentence(text: str) -> bool:
    """Whether words stand around what is typeset in a text."""
    around = WORDS.sub(" ", SEGMENT.sub(" ", text))
    return SEGMENT.search(text) is not None and re.search("[A-Za-z]", around) is not None


def _is_prose(text: str) -> bool:
    """Whether two words stand side by side outside LaTeX's commands."""
    return PROSE.search(WORDS.sub(" ", text)) is not None


def _expression_in_part(part: str) -> str | None:
    """A part that is an expression; of a sentence the one that opens it, else the last typeset in
    its first clause; of prose what follows its last "=" or ":", None where that is prose, too.
    """
    if _is_sentence(part):
        in_clause = _segments(END_OF_CLAUSE.split(part)[0])
        opens = SEGMENT.match(part) is not None
        return _segments(part)[0] if opens or not in_clause else in_clause[-1]
    for candidate in (part, re.split(r"[=:]", part)[-1]):
        candidate = candidate.strip(" \t\n*_`")
        if candidate and not _is_prose(candidate) and len(candidate) <= MAX_LENGTH:
            return candidate
    return None


def read_expression(answer: str) -> str | None:
    """The expression that `math` compares, in one spelling; None where there is none."""
    found = expression_in(answer)
    return None if found is None else spell(found) or None


def _plain_value(expression: str) -> Fraction | None:
    """The value of a number or a fraction of whole numbers; None for anything else."""
    match = PLAIN_NUMBER.fullmatch(expression)
    if match is None:
        return None
    sign, top, below, left, right, decimal = match.groups()
    if decimal is None and int(below or right) == 0:
        return None
    value = Fraction(decimal) if decimal else Fraction(int(top or left), int(below or right))
    return -value if sign else value


@functools.lru_cache(maxsize=REMEMBERED)
def equals(wanted: str, found: str) -> bool:
    """Whether an expression means what is wanted; both in one spelling.

    Decimals count as equal to 1e-6 relative.
    """
    first, second = wanted.replace(" ", ""), found.replace(" ", "")
    if first == second:
        return True
    if CLOCK_OR_RATIO.search(first) or CLOCK_OR_RATIO.search(second):
        return False  # 4:30 and 3:1 are no expressions: texts count
    if _are_unlike(first, second) or PROSE.search(WORDS.sub(" ", found)):
        return False
    value, other = _plain_value(first), _plain_value(second)
    if value is not None and other is not None:
        is_decimal = "." in first or "." in second
        allowed = TOLERANCE * max(Fraction(1), abs(value)) if is_decimal else Fraction(0)
        return abs(value - other) <= allowed
    digits, other_digits = IN_BASE.fullmatch(first), IN_BASE.fullmatch(second)
    if digits and other_digits:  # the base may go without saying
        bases = {digits[2], other_digits[2]} - {None}
        return digits[1] == other_digits[1] and len(bases) == 1
    return compare(wanted, found)


def _are_unlike(wanted: str, found: str) -> bool:
    """Whether one is an interval or a point and the other several values, or a value is wanted and
    what is found only says which.
    """
    for one, other in ((wanted, found), (found, wanted)):
        if PAIR.fullmatch(one) and VALUES.fullmatch(other):
            return True
    result = SUBSCRIPT.sub("", found).rpartition("=")[2]
    return UNDONE.search(result) is not None and UNDONE.search(wanted) is None


def same_expression(a: str, b: str) -> bool:
    """Whether two readings mean the same; the library's comparison is not symmetric."""
    return equals(a, b) or equals(b, a)


def math_match(prediction: str, reference: str) -> float:
    """1 when the expression given means the reference's: 1/2 for 0.5, (x+1)^2 for x^2+2x+1.

    Raises MetricError for a reference without an expression.
    """
    wanted = read_expression(reference)
    if wanted is None:
        raise MetricError(f"math: no expression in the reference {reference!r}")
    found = read_expression(prediction)
    return 0.0 if found is None else float(equals(wanted, found))
