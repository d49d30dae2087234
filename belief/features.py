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
from typing import NamedTuple

import numpy as np

from backends.answer_store import Answer
from belief.arithmetic import Equations, check_equations
from metrics.numbers import numbers_in
from questions import Question

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
STEP = re.compile(r"^\W{0,20}(?:step|\d+[.)])", re.IGNORECASE | re.MULTILINE)
ENDINGS = (".", "!", "?", "}", "$", ")", "]", "`", "*", "\\")
VALUE_FEATURES = (
    "reading_is_number",
    "reading_is_whole",
    "reading_is_negative",
    "reading_size",
    "reading_is_round",
    "reading_is_fine",
)
LEAST_LOGPROB = -20.0  # a server's -9999 says no more than this
TAIL = 300  # characters at the end of an answer, where its conclusion stands


class Said(NamedTuple):
    """What is read of an answer: its text, and how sure the model was of it.

    Log-probabilities are rounded to hundredths: their last digits depend on the batch that an
    answer was generated in, and a run that was killed and resumed must fit the same model.
    """

    text: str
    logprob_mean: float | None = None
    logprob_min: float | None = None

    @classmethod
    def of(cls, answer: Answer) -> Said:
        return cls(answer.text, answer.logprob_mean, answer.logprob_min).rounded()

    def rounded(self) -> Said:
        return Said(self.text, _rounded(self.logprob_mean), _rounded(self.logprob_min))


Reading = tuple[str, str, str]


def reading_of(question: Question) -> Reading:
    """What an estimate depends on of a question: its text, its task, and how answers are read."""
    return question.text, question.task, question.agreement_metric


def _rounded(logprob: float | None) -> float | None:
    return None if logprob is None else round(max(logprob, LEAST_LOGPROB), 2)


def certainty_features(said: Said) -> dict[str, float]:
    """Named features of how sure the model was; all 0 where that is not known."""
    is_known = said.logprob_mean is not None and said.logprob_min is not None
    return {
        "has_logprob": float(is_known),
        "logprob_mean": said.logprob_mean or 0.0,
        "logprob_min": said.logprob_min or 0.0,
    }


def log_count(count: float) -> float:
    return math.log1p(count)


def question_features(question: str) -> dict[str, float]:
    """Named features of a question alone."""
    numbers = numbers_in(question)
    words = question.split()
    has_decimals = any(number % 1 for number in numbers if abs(number) < 1e15)
    conditions = re.findall(r"\b(?:if|each|every|times|more|less|than|half|twice)\b", question)
    return {
        "question_length": log_count(len(question)),
        "question_words": log_count(len(words)),
        "question_lines": log_count(question.count("\n")),
        "question_sentences": log_count(question.count(".") + question.count("?")),
        "question_numbers": log_count(len(numbers)),
        "question_distinct_numbers": log_count(len(set(numbers))),
        "question_largest_number": log_count(min(_largest(numbers), 1e300)),
        "question_has_decimals": float(has_decimals),
        "question_has_percent": float("%" in question or "percent" in question),
        "question_latex": log_count(question.count("\\") + question.count("$")),
        "question_has_drawing": float("[asy]" in question),
        "question_options": log_count(len(re.findall(r"\n\(?[A-J][).]", question))),
        "question_negation": float(bool(re.search(r"\b(?:not|except|false|never)\b", question))),
        "question_code": log_count(len(re.findall(r"\b(?:def|assert|return)\b", question))),
        "question_conditions": log_count(len(conditions)),
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
    gives_up = DOUBT_PATTERNS["cannot"].search(tail)
    corrects = DOUBT_PATTERNS["mistake"].search(tail)
    features["doubt_at_the_end"] = float(bool(gives_up or corrects))
    features["perhaps_at_the_end"] = float(bool(DOUBT_PATTERNS["perhaps"].search(tail)))
    return features


def _numbers(question: str, answer: str, reading: str | None) -> dict[str, float]:
    """Equations and numbers of an answer, beside those of its question and its reading."""
    asked = numbers_in(question)
    written = numbers_in(answer)
    equations = check_equations(answer)
    features = _equation_features(equations)
    features.update(_number_features(answer, asked, written))
    value = _as_number(reading)
    last_number = written[-1] if written else None
    features["reads_last_result"] = float(_is_near(equations.last, value))
    features["reads_last_number"] = float(_is_near(last_number, value))
    features["reads_number_of_question"] = float(value is not None and value in asked)
    repeated = 0 if value is None else written.count(value)
    features["reading_repeated"] = log_count(repeated)
    return features


def _equation_features(equations: Equations) -> dict[str, float]:
    checked = equations.right + equations.wrong
    return {
        "equations_right": log_count(equations.right),
        "equations_wrong": log_count(equations.wrong),
        "any_equation_wrong": float(equations.wrong > 0),
        "share_equations_wrong": (equations.wrong + 0.2) / (checked + 1),
        "no_equation": float(checked == 0),
    }


def _number_features(answer: str, asked: list[float], written: list[float]) -> dict[str, float]:
    """asked: the numbers of the question. written: those of the answer."""
    different_asked = set(asked)
    different_written = set(written)
    used = different_asked & different_written
    size_asked = log_count(min(_largest(asked), 1e300))
    size_written = log_count(min(_largest(written), 1e300))
    return {
        "numbers": log_count(len(written)),
        "distinct_numbers": log_count(len(different_written)),
        "share_of_question_used": len(used) / max(1, len(different_asked)),
        "question_numbers_unused": log_count(len(different_asked) - len(used)),
        "growth": size_written - size_asked,
        "long_decimals": log_count(len(re.findall(r"\d\.\d{3,}", answer))),
    }


def _largest(numbers: list[float]) -> float:
    """The largest absolute value; 0 if there are no numbers."""
    return max(map(abs, numbers), default=0.0)


def _is_near(number: float | None, value: float | None) -> bool:
    """Whether both are known and equal up to rounding."""
    if number is None or value is None:
        return False
    return abs(number - value) < 1e-6


def _as_number(reading: str | None) -> float | None:
    try:
        value = float(reading) if reading else None
    except ValueError:
        return None
    return value if value is None or math.isfinite(value) else None


def _reading_form(question: str, answer: str, reading: str | None) -> dict[str, float]:
    """The form of what the metric reads in an answer, and of the box or option that holds it."""
    text = reading or ""
    value = _as_number(reading)
    features = {"reading_length": log_count(len(text))}
    features.update(_value_features(value))
    without_commands = re.sub(r"\\[a-z]+", "", text)
    features["reading_has_letters"] = float(bool(re.search("[a-z]", without_commands)))
    features["reading_has_root"] = float("sqrt" in text)
    features["reading_has_fraction"] = float("frac" in text or "/" in text)
    box = answer.rfind("\\boxed")
    features.update(_box_features(answer, box))
    features["reading_is_tiny"] = float(value in (0.0, 1.0, 2.0))
    features["text_after_box"] = log_count(len(answer) - box) if box >= 0 else 0.0
    letter = text if len(text) == 1 and text in "ABCDEFGHIJ" else ""
    features.update(_option_features(question, answer, letter))
    return features


def _value_features(value: float | None) -> dict[str, float]:
    """The form of a reading as a number; all 0 if it is not one."""
    if value is None:
        return dict.fromkeys(VALUE_FEATURES, 0.0)
    magnitude = min(abs(value), 1e300)
    is_whole = magnitude < 1e15 and value == int(value)
    return {
        "reading_is_number": 1.0,
        "reading_is_whole": float(is_whole),
        "reading_is_negative": float(value < 0),
        "reading_size": log_count(magnitude),
        "reading_is_round": float(value != 0 and value % 10 == 0),
        "reading_is_fine": float(value != round(value, 2)),
    }


def _box_features(answer: str, box: int) -> dict[str, float]:
    r"""The last \boxed of an answer, which starts at `box`; -1 if there is none."""
    boxed = BOX.match(answer[box:]) if box >= 0 else None
    content = boxed[1] if boxed else ""
    return {
        "boxes": log_count(answer.count("\\boxed")),
        "box_is_bare_number": float(bool(BARE_NUMBER.fullmatch(content))),
        "box_has_words": float(bool(re.search("[a-zA-Z]{2,}", content))),
    }


def _option_features(question: str, answer: str, letter: str) -> dict[str, float]:
    """The option that the reading names by its letter; an empty letter names none."""
    option = _option(question, letter)
    lowered = option.lower()
    return {
        "option": (ord(letter) - ord("A")) / 9 if letter else 0.0,
        "option_length": log_count(len(option)),
        "option_is_quoted": float(bool(option) and lowered[:60] in answer.lower()),
        "option_is_all_or_none": float("none of" in lowered or "all of" in lowered),
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
    matrix = []
    for row in rows:
        matrix.append([row[name] for name in names])
    return np.array(matrix, dtype=np.float32)
