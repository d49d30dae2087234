"""What can be counted in a question and an answer without a model.

A frozen sentence encoder hardly tells right answers from wrong ones. Lengths, written equations
that fail, numbers of the question that are never used and words of doubt tell more
(docs/results.md).
"""

from __future__ import annotations

import ast
import math
import re
import zlib

import numpy as np

from belief.arithmetic import check_equations
from metrics.numbers import numbers_in

DOUBT_WORDS = {
    "however": r"\bhowever\b|\bbut\b",
    "wait": r"\bwait\b|\bactually\b",
    "mistake": r"\b(?:mistake|error|incorrect|correction|apolog\w+|sorry|re-?check|reconsider)\b",
    "assume": r"\b(?:assum\w+|suppose)\b",
    "approximate": r"\b(?:approx\w*|about|roughly|nearest|estimate\w*|round\w*)\b",
    "cannot": (
        r"\b(?:cannot|can't|impossible|not possible|unclear|ambiguous|not enough|does not"
        r"|doesn't|not specified|no information|unknown|none of)\b"
    ),
    "perhaps": r"\b(?:seem\w*|likely|probably|perhaps|might|may|possibl\w+|closest|guess\w*)\b",
    "therefore": r"\b(?:thus|therefore|hence|so)\b",
    "because": r"\b(?:since|because)\b",
}
DOUBT_PATTERNS = {name: re.compile(words, re.IGNORECASE) for name, words in DOUBT_WORDS.items()}
CODE_BLOCK = re.compile(r"```(?:python)?\n(.*?)(?:```|$)", re.DOTALL)
BOX = re.compile(r"\\boxed\s*\{\s*([^{}]*)")
BARE_NUMBER = re.compile(r"\\?\$?-?[\d,]*\.?\d+\s*")
STEP = re.compile(r"^\W*(?:step|\d+[.)])", re.IGNORECASE | re.MULTILINE)
ENDINGS = (".", "!", "?", "}", "$", ")", "]", "`", "*", "\\")
TAIL = 300  # characters at the end of an answer, where its conclusion stands


def log_count(count: float) -> float:
    return math.log1p(count)


def question_features(question: str) -> dict[str, float]:
    """Named features of a question alone."""
    numbers = numbers_in(question)
    words = question.split()
    largest = max((abs(number) for number in numbers), default=0.0)
    return {
        "question_length": log_count(len(question)),
        "question_words": log_count(len(words)),
        "question_lines": log_count(question.count("\n")),
        "question_sentences": log_count(question.count(".") + question.count("?")),
        "question_numbers": log_count(len(numbers)),
        "question_distinct_numbers": log_count(len(set(numbers))),
        "question_largest_number": log_count(min(largest, 1e300)),
        "question_has_decimals": float(any(number % 1 for number in numbers if abs(number) < 1e15)),
        "question_has_percent": float("%" in question or "percent" in question),
        "question_latex": log_count(question.count("\\") + question.count("$")),
        "question_has_drawing": float("[asy]" in question),
        "question_options": log_count(len(re.findall(r"\n\(?[A-J][).]", question))),
        "question_negation": float(bool(re.search(r"\b(?:not|except|false|never)\b", question))),
        "question_code": log_count(len(re.findall(r"\b(?:def|assert|return)\b", question))),
        "question_conditions": log_count(
            len(re.findall(r"\b(?:if|each|every|times|more|less|than|half|twice)\b", question))
        ),
    }


def answer_features(question: str, answer: str, reading: str | None) -> dict[str, float]:
    """Named features of an answer to a question; `reading` is what its metric reads in it."""
    features = _form(question, answer, reading)
    features.update(_doubt(answer))
    features.update(_numbers(question, answer, reading))
    features.update(_reading_form(question, answer, reading))
    features.update(_code(answer))
    return features


def _form(question: str, answer: str, reading: str | None) -> dict[str, float]:
    encoded = answer.encode("utf-8", "replace")
    ending = answer.rstrip()
    return {
        "length": log_count(len(answer)),
        "words": log_count(len(answer.split())),
        "lines": log_count(answer.count("\n")),
        "relative_length": log_count(len(answer)) - log_count(len(question)),
        "is_empty": float(len(answer) < 3),
        "is_unread": float(reading is None),
        "ends_openly": float(not ending.endswith(ENDINGS)),
        "ends_with_colon": float(ending.endswith((":", ","))),
        "compressed": len(zlib.compress(encoded)) / (len(encoded) + 20),
        "foreign_letters": log_count(len(answer) - len(answer.encode("ascii", "ignore"))),
        "steps": log_count(len(STEP.findall(answer))),
        "bold": log_count(answer.count("**")),
        "latex": log_count(answer.count("\\")),
        "says_answer_is": log_count(answer.lower().count("answer is")),
        "goes_on": float("Question:" in answer),
    }


def _doubt(answer: str) -> dict[str, float]:
    features = {}
    for name, pattern in DOUBT_PATTERNS.items():
        features[f"doubt_{name}"] = log_count(len(pattern.findall(answer)))
    tail = answer[-TAIL:]
    in_tail = [name for name in ("cannot", "mistake") if DOUBT_PATTERNS[name].search(tail)]
    features["doubt_at_the_end"] = float(bool(in_tail))
    features["perhaps_at_the_end"] = float(bool(DOUBT_PATTERNS["perhaps"].search(tail)))
    return features


def _numbers(question: str, answer: str, reading: str | None) -> dict[str, float]:
    asked = numbers_in(question)
    written = numbers_in(answer)
    equations = check_equations(answer)
    checked = equations.right + equations.wrong
    used = set(asked) & set(written)
    value = _as_number(reading)
    largest_asked = max((abs(number) for number in asked), default=0.0)
    largest_written = max((abs(number) for number in written), default=0.0)
    return {
        "equations_right": log_count(equations.right),
        "equations_wrong": log_count(equations.wrong),
        "any_equation_wrong": float(equations.wrong > 0),
        "share_equations_wrong": (equations.wrong + 0.2) / (checked + 1),
        "no_equation": float(checked == 0),
        "numbers": log_count(len(written)),
        "distinct_numbers": log_count(len(set(written))),
        "share_of_question_used": len(used) / max(1, len(set(asked))),
        "question_numbers_unused": log_count(len(set(asked)) - len(used)),
        "growth": log_count(min(largest_written, 1e300)) - log_count(min(largest_asked, 1e300)),
        "long_decimals": log_count(len(re.findall(r"\d\.\d{3,}", answer))),
        "reads_last_result": float(
            value is not None and equations.last is not None and abs(equations.last - value) < 1e-6
        ),
        "reads_last_number": float(
            value is not None and bool(written) and abs(written[-1] - value) < 1e-6
        ),
        "reads_number_of_question": float(value is not None and value in asked),
        "reading_repeated": log_count(sum(number == value for number in written)),
    }


def _as_number(reading: str | None) -> float | None:
    try:
        value = float(reading) if reading else None
    except ValueError:
        return None
    return value if value is None or math.isfinite(value) else None


def _reading_form(question: str, answer: str, reading: str | None) -> dict[str, float]:
    text = reading or ""
    value = _as_number(reading)
    magnitude = 0.0 if value is None else min(abs(value), 1e300)
    is_small = value is not None and magnitude < 1e15
    box = answer.rfind("\\boxed")
    boxed = BOX.match(answer[box:]) if box >= 0 else None
    in_box = boxed[1] if boxed else ""
    letter = text if len(text) == 1 and text in "ABCDEFGHIJ" else ""
    option = _option(question, letter)
    return {
        "reading_length": log_count(len(text)),
        "reading_is_number": float(value is not None),
        "reading_is_whole": float(is_small and value == int(value or 0)),
        "reading_is_negative": float(value is not None and value < 0),
        "reading_size": log_count(magnitude),
        "reading_is_round": float(value is not None and value != 0 and value % 10 == 0),
        "reading_is_fine": float(value is not None and value != round(value, 2)),
        "reading_has_letters": float(bool(re.search("[a-z]", re.sub(r"\\[a-z]+", "", text)))),
        "reading_has_root": float("sqrt" in text),
        "reading_has_fraction": float("frac" in text or "/" in text),
        "boxes": log_count(answer.count("\\boxed")),
        "box_is_bare_number": float(bool(BARE_NUMBER.fullmatch(in_box))),
        "box_has_words": float(bool(re.search("[a-zA-Z]{2,}", in_box))),
        "reading_is_tiny": float(value in (0.0, 1.0, 2.0)),
        "text_after_box": log_count(len(answer) - box) if box >= 0 else 0.0,
        "option": (ord(letter) - ord("A")) / 9 if letter else 0.0,
        "option_length": log_count(len(option)),
        "option_is_quoted": float(bool(option) and option.lower()[:60] in answer.lower()),
        "option_is_all_or_none": float("none of" in option.lower() or "all of" in option.lower()),
    }


def _option(question: str, letter: str) -> str:
    """The text of the option that a letter names; empty where the question lists none."""
    if not letter:
        return ""
    match = re.search(rf"\n\(?{letter}[).] ([^\n]*)", question)
    return match[1].strip() if match else ""


def _code(answer: str) -> dict[str, float]:
    blocks = CODE_BLOCK.findall(answer)
    code = max(blocks, key=len) if blocks else answer
    looks_like_code = bool(blocks) or "def " in answer
    try:
        ast.parse(code)
        parses = True
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        parses = False
    return {
        "is_code": float(looks_like_code),
        "code_parses": float(looks_like_code and parses),
        "code_length": log_count(len(code)) if looks_like_code else 0.0,
        "code_functions": log_count(len(re.findall(r"\bdef \w+\(", code))),
        "code_loops": log_count(len(re.findall(r"\b(?:for|while)\b", code)) * looks_like_code),
        "code_branches": log_count(len(re.findall(r"\bif\b", code)) * looks_like_code),
        "prose_beside_code": log_count(len(answer) - len(code)) if looks_like_code else 0.0,
    }


def feature_matrix(rows: list[dict[str, float]]) -> np.ndarray:
    """Rows of named features as an array (N, F), in the order of the first row's names."""
    names = list(rows[0])
    return np.array([[row[name] for name in names] for row in rows], dtype=np.float32)
