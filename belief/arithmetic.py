"""Equations written out in an answer, checked by doing the arithmetic again.

check_equations("3 + 4 = 7, so 7 * 2 = 15")  ->  Equations(right=1, wrong=1, last=15.0)
"""

from __future__ import annotations

import ast
import itertools
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass

MAX_CHARACTERS = 80  # of an expression; longer ones are not arithmetic that anybody wrote out
TOLERANCE = 0.006  # relative and absolute: answers round to two decimals

OPERATORS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}

# LaTeX and typography to plain arithmetic, in this order. A pattern that repeats without a bound
# before something that may be missing takes quadratic time on thousands of digits.
REWRITES = (
    (r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}", r"((\1)/(\2))"),
    (r"\\(?:text|mathrm|textbf|mbox)\{[^{}]*\}", " "),
    ("\\\\times|\\\\cdot|\u00d7|\u00b7", "*"),
    (r"\\div|÷", "/"),
    (r"\u2212|\u2013", "-"),
    (r"≈|\\approx", "="),
    (r"(?<=\d),(?=\d{3})", ""),
    (r"(?<![\d.])(\d{1,15}(?:\.\d{0,15})?)\s{0,3}\\?%", r"(\1*0.01)"),
    (r"\\boxed|[$€£*]{2}|[$€£]", ""),
    (r"[{\[]", "("),
    (r"[}\]]", ")"),
    (r"(?<=[\d)])\s*[xX]\s*(?=[\d(])", "*"),
    (r"(?<=\d)\s*[A-Za-z]+\b(?=\s*[-+*/=)])", ""),  # a unit: 3 apples + 4 pears
    (r"[^\d\s.+\-*/()=]+", ";"),  # any other word or sign ends an expression
    (r"(?<=\d)\.(?!\d)", ";"),
)
COMPILED_REWRITES = [(re.compile(pattern), plain) for pattern, plain in REWRITES]
HAS_OPERATION = re.compile(r"\d\s*\)*\s*[-+*/]\s*\(*\s*-?\d")


@dataclass(frozen=True)
class Equations:
    """How many written equations hold and fail, and the last one's right side."""

    right: int
    wrong: int
    last: float | None


def evaluate(expression: str) -> float | None:
    """The value of sums and products of numbers; None for anything else."""
    if len(expression) > MAX_CHARACTERS:
        return None
    try:
        return _value(ast.parse(expression.strip(), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, OverflowError, MemoryError):
        return None


def _value(node: ast.expr) -> float:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return float(node.value)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        return OPERATORS[type(node.op)](_value(node.left), _value(node.right))
    raise ValueError("not arithmetic")


def plain_arithmetic(text: str) -> str:
    """The text with its arithmetic typed plainly and its words removed."""
    for pattern, plain in COMPILED_REWRITES:
        text = pattern.sub(plain, text)
    return text


def check_equations(text: str) -> Equations:
    """Every `expression = number` of a text, chains of equalities included."""
    right = 0
    wrong = 0
    last = None
    for line in plain_arithmetic(text).split("\n"):
        sides = line.split("=")
        for before, after in itertools.pairwise(sides):
            claim = _claim(before, after)
            if claim is None:
                continue
            value, claimed = claim
            if abs(value - claimed) <= TOLERANCE * max(1.0, abs(value)):
                right += 1
            else:
                wrong += 1
            last = claimed
    return Equations(right, wrong, last)


def _claim(before: str, after: str) -> tuple[float, float] | None:
    """The values of both sides of an equality sign; None where the left is no calculation."""
    left = before.rpartition(";")[2].strip().lstrip("*/+.) ")
    right = after.partition(";")[0].strip().rstrip("(+-*/. ")
    if len(left) > MAX_CHARACTERS or not HAS_OPERATION.search(left):
        return None
    value = evaluate(left)
    claimed = evaluate(right)
    if value is None or claimed is None:
        return None
    return value, claimed
