"""Quality metrics, the cost of a call, and the two rewards.

Metrics share one interface, `compute(predictions=, references=)`, and return one score in [0, 1] per answer. They are named in the
data (`metric` of a question) as one of `METRICS`, `bertscore:MODEL:LAYERS`, `bartscore:MODEL`, `bleurt:MODEL` (text_metrics.py),
`reasoning_gym:NAME`, `evaluate:NAME[/KEY]`, or the import path `package.module:name`; `recorded` takes the scores that came with the answers.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import re
import string
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from config import CostUnit, DERError, ExpertConfig, RecordedExpertConfig, RewardConfig
from questions import RECORDED, Question, Reference

PUNCTUATION = re.escape(string.punctuation)
TYPESET_MINUS = "\u2212"


class MetricError(DERError):
    """A metric that does not exist or cannot judge what it was given."""


class Metric(Protocol):
    """Scores answers against references."""

    def compute(self, *, predictions: Sequence[str], references: Sequence[Reference]) -> list[float]:
        """One score in [0, 1] per prediction."""


def normalise(text: str) -> str:
    """Lower case, no accents, no punctuation at the ends of words, no articles, single spaces (after SQuAD's evaluation script).

    A minus sign or decimal point of a number stays, and a text of nothing but punctuation or articles is kept as it is.
    """
    plain = "".join(char for char in unicodedata.normalize("NFKD", text) if not unicodedata.combining(char)).lower().replace(TYPESET_MINUS, "-").replace("-$", "-")
    words = (re.sub(rf"^(?:(?!-\.?\d|\.\d)[{PUNCTUATION}])+|[{PUNCTUATION}]+$", "", word) for word in plain.split())
    return " ".join(word for word in words if word not in ("a", "an", "the", "")) or plain.strip()


NUMBER = re.compile(
    r"(?<![\w.])(-?)[$€£]?"  # not inside a word or a longer number
    r"((?:\d+(?:,\d{2,3})*,\d{3}(?!\d)|\d++|(?=\.\d))(?:\.\d++)?+(?:[eE][+-]?\d++)?+)"  # 1,234 or 12,34,567 or .5 or 1e-5; "1,2" are two numbers
    r"(?!\w*[\d_]|(?i:x|st|nd|rd|th)\b)"  # a unit may be attached: 72km, but neither 3x2 nor 2nd
)


def numbers_in(text: str) -> list[float]:
    """All numbers of a text, thousands separators, currency signs and units removed: "1,234.5kg and -$3" -> [1234.5, -3.0]."""
    return [float(sign + digits.replace(",", "")) for sign, digits in NUMBER.findall(text.replace(TYPESET_MINUS, "-"))]


CHOICE = re.compile(
    r"(?i:(?:answer|choice|option)\s*(?:is\s*:?|:)\s*(?:(?:option|choice)\s+)?)"
    r"[(\[]?([A-HJ]\b|[A-Ja-j](?=[.,:)\]]|\s*$))"  # not the words "a" and "I"
)


def choice_in(text: str) -> str | None:
    """The letter of a multiple-choice answer, quotes and marks of Markdown and LaTeX aside.

    The last one boxed or after "answer is", "choice is" or "option is" (or ":"), else one that opens the text and is closed by . : ) ] or the
    end of its line.
    """
    plain = re.sub(r"\\text(?:bf)?|\\(?=[()\[\]])|[*`${}\"']", "", text.replace(r"\boxed", "answer is "))
    if matches := CHOICE.findall(plain):
        return matches[-1].upper()
    match = re.match(r"(?:Option\s+)?[(\[]?([A-J])(?:[.:)\]]|\s*$)", plain.strip(), re.MULTILINE)
    return match[1] if match else None


def accepted(reference: Reference) -> list[str]:
    """The texts that count as right. Raises MetricError where the reference is an object."""
    if isinstance(reference, dict):
        raise MetricError("this metric compares texts; the reference is an object (reasoning_gym:NAME reads those)")
    return reference if isinstance(reference, list) else [reference]


@dataclass(frozen=True)
class PairMetric:
    """A metric that scores one answer against one accepted reference at a time; the best accepted reference counts."""

    score: Callable[[str, str], float]

    def compute(self, *, predictions: Sequence[str], references: Sequence[Reference]) -> list[float]:
        return [max(self.score(p, r) for r in accepted(reference)) for p, reference in zip(predictions, references, strict=True)]


def exact_match(prediction: str, reference: str) -> float:
    """1 when equal after `normalise`."""
    return float(normalise(prediction) == normalise(reference))


def numeric_match(prediction: str, reference: str) -> float:
    """1 when the last number of the answer equals the reference's to 1e-6 relative; "112" does not contain "12"."""
    found, wanted = numbers_in(prediction), numbers_in(reference)
    if not wanted:
        raise MetricError(f"numeric_match: no number in the reference {reference!r}")
    return float(bool(found) and abs(found[-1] - wanted[-1]) <= 1e-6 * max(1.0, abs(wanted[-1])))


FILLER = re.compile(r"^(?:(?:also|known as|called|named|located|situated|found|part|in|on|as|the|a|an|country|continent|city|of)\s+)+", re.IGNORECASE)


def short_answer_in(text: str) -> str | None:
    """The name or word that an answer gives, whether alone or in a sentence; None when there is none.

    Of the first line's first sentence, what follows the last "is", "are", "was" or "called": a quoted string if there is one, else what
    precedes a comma, without leading filler. More than four words are no short answer.
    """
    first_line = text.strip().partition("\n")[0]
    sentence = re.split(r"(?<=[a-z)\"”])[.!;](?:\s|$)", first_line)[0].strip()
    tail = re.split(r"\s(?:is|are|was|called)\s", sentence)[-1]
    if quoted := re.findall(r"[\"“]([^\"“”]+?)[.,]?[\"”]", tail):
        return quoted[-1]
    found = FILLER.sub("", tail.partition(", ")[0]).strip(" .\"'*")
    return found if 0 < len(found.split()) <= 4 else None


def short_answer(prediction: str, reference: str) -> float:
    """1 when the short answer given equals the reference after `normalise`; no answer found scores 0."""
    found = short_answer_in(prediction)
    return 0.0 if found is None else exact_match(found, reference)


def multiple_choice(prediction: str, reference: str) -> float:
    """1 when the letter chosen is the reference's. Raises MetricError for a reference without one."""
    wanted = choice_in(reference.upper())
    if wanted is None:
        raise MetricError(f"multiple_choice: no letter A to J in the reference {reference!r}")
    return float(choice_in(prediction) == wanted)


def rouge(kind: str) -> PairMetric:
    """F1 of rouge1, rouge2 or rougeL with stemming, by package rouge-score."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer([kind], use_stemmer=True)
    return PairMetric(lambda prediction, reference: scorer.score(reference, prediction)[kind].fmeasure)


def text_metric(name: str, *arguments: Any) -> Metric:
    """bertscore, bartscore or bleurt; text_metrics.py brings transformers and is imported when one is first named."""
    import text_metrics

    return {"bertscore": text_metrics.BertScore, "bartscore": text_metrics.BartScore, "bleurt": text_metrics.Bleurt}[name](*arguments)


class ReasoningGymMetric:
    """reasoning-gym's own scorer of a data set; the reference is the generated entry, or accepted answers alone where the scorer needs no more."""

    def __init__(self, name: str):
        import reasoning_gym
        from reasoning_gym.factory import DATASETS

        if name not in DATASETS:
            near = difflib.get_close_matches(name, DATASETS, n=1)
            raise MetricError(f"reasoning_gym:{name}: no such data set{f'; did you mean {near[0]}?' if near else ''}")
        self.name, self._scorer = name, reasoning_gym.get_score_answer_fn(name)

    def _score(self, prediction: str, entry: dict[str, Any]) -> float:
        try:
            return float(self._scorer(prediction, entry))
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            if isinstance(error, KeyError) and not entry.get("metadata"):
                raise MetricError(f"reasoning_gym:{self.name}: the reference has no {error}; its scorer needs the whole generated entry") from error
            return 0.0  # some scorers read well-formed answers only

    def compute(self, *, predictions: Sequence[str], references: Sequence[Reference]) -> list[float]:
        entries = [[r] if isinstance(r, dict) else [{"answer": text, "metadata": {}} for text in accepted(r)] for r in references]
        return [max(self._score(p, entry) for entry in any_of) for p, any_of in zip(predictions, entries, strict=True)]


def evaluate_metric(name: str) -> PairMetric:
    """MODULE or MODULE/KEY of Hugging Face `evaluate`: that key of what the module returns, by default the one of its name. Needs the hub once, to fetch the module's code."""
    import evaluate

    name, _, key = name.partition("/")
    key = key or name
    try:
        module = evaluate.load(name)
    except (FileNotFoundError, ConnectionError, OSError) as error:
        raise MetricError(f"evaluate:{name}: could not be fetched ({error}). Offline, use one of {', '.join(METRICS)}") from error

    def score(prediction: str, reference: str) -> float:
        result = module.compute(predictions=[prediction], references=[reference])  # modules average over what they get: one at a time
        if key not in result:
            raise MetricError(f"evaluate:{name}: no {key!r} in what it returns; name one of {', '.join(result)}, as in evaluate:{name}/{next(iter(result))}")
        value = result[key]
        return float(value[0] if isinstance(value, list) else value)

    return PairMetric(score)


METRICS: dict[str, Callable[[], Metric]] = {
    "exact_match": lambda: PairMetric(exact_match),
    "short_answer": lambda: PairMetric(short_answer),
    "numeric_match": lambda: PairMetric(numeric_match),
    "multiple_choice": lambda: PairMetric(multiple_choice),
    "rouge_1": lambda: rouge("rouge1"),
    "rouge_2": lambda: rouge("rouge2"),
    "rouge_l": lambda: rouge("rougeL"),
    "bertscore": lambda: text_metric("bertscore"),
    "bartscore": lambda: text_metric("bartscore"),
    "bleurt": lambda: text_metric("bleurt"),
}


@functools.cache
def get_metric(name: str) -> Metric:
    """The metric of that name. Raises MetricError naming the known ones."""
    if name in METRICS:
        return METRICS[name]()
    kind, _, rest = name.partition(":")
    if kind == "reasoning_gym" and rest:
        return ReasoningGymMetric(rest)
    if kind == "evaluate" and rest:
        return evaluate_metric(rest)
    if kind == "bertscore" and rest:
        model, _, layers = rest.rpartition(":")
        if not model or not layers.isdigit():
            raise MetricError(f"{name}: expected bertscore:MODEL:LAYERS")
        return text_metric("bertscore", model, int(layers))
    if kind in ("bartscore", "bleurt") and rest:
        return text_metric(kind, rest)
    if rest:
        try:
            return getattr(importlib.import_module(kind), rest)()
        except (ImportError, AttributeError, TypeError) as error:
            raise MetricError(f"metric {name!r}: {error}. It must be a class, made without arguments, with compute(predictions=, references=)") from error
    known = [*METRICS, RECORDED, "bertscore:MODEL:LAYERS", "bartscore:MODEL", "bleurt:MODEL", "reasoning_gym:NAME", "evaluate:NAME[/KEY]", "package.module:name"]
    raise MetricError(f"unknown metric {name!r}; known: {', '.join(known)}")


def check_metrics(questions: Sequence[Question], experts: Sequence[ExpertConfig]) -> None:
    """Raise MetricError for a metric that does not exist, cannot read a reference or lacks a score of these experts, before anything is spent on answers."""
    for question in questions:
        if question.metric == RECORDED:
            _check_recorded(question, experts)
        else:
            _check_reference(question)


def _check_reference(question: Question) -> None:
    metric, kind = get_metric(question.metric), question.metric.partition(":")[0]
    try:
        if kind in ("numeric_match", "multiple_choice", "reasoning_gym"):  # they must find something in it
            own = question.reference.get("answer") if isinstance(question.reference, dict) else accepted(question.reference)[0]
            metric.compute(predictions=[str(own)], references=[question.reference])
        elif kind in METRICS or kind == "evaluate":
            accepted(question.reference)
    except MetricError as error:
        raise MetricError(f"question {question.id}: {error}") from error


def _check_recorded(question: Question, experts: Sequence[ExpertConfig]) -> None:
    for expert in experts:
        if not isinstance(expert, RecordedExpertConfig):
            raise MetricError(f"question {question.id}: metric recorded judges experts of kind recorded only; nobody has scored what {expert.name} will answer")
        if expert.name not in question.scores:
            raise MetricError(f"question {question.id} ({question.text[:60]!r}): metric recorded, but no score of expert {expert.name}")


def score_answers(questions: Sequence[Question], answers: Sequence[str], experts: Sequence[str]) -> list[float]:
    """Quality in [0, 1] of each answer by its question's metric, one `compute` call per metric; `experts` names who gave each.

    Empty answers score 0, except under metric `recorded`: there a text may be missing where its score is known.
    """
    out = [0.0] * len(answers)
    groups: dict[str, list[int]] = {}
    for index, (question, answer, expert) in enumerate(zip(questions, answers, experts, strict=True)):
        if question.metric == RECORDED:
            out[index] = question.scores[expert]
        elif answer.strip():
            groups.setdefault(question.metric, []).append(index)
    for name, rows in groups.items():
        scores = get_metric(name).compute(predictions=[answers[i] for i in rows], references=[questions[i].reference for i in rows])
        for row, score in zip(rows, scores, strict=True):
            if not 0.0 <= score <= 1.0:
                raise MetricError(f"{name}: score {score} of question {questions[row].id} is outside [0, 1]")
            out[row] = score
    return out


@dataclass(frozen=True)
class Cost:
    """What calls took, in every unit. Costs add up."""

    params_b: float = 0.0  # billions of parameters
    prompt_tokens: int = 0
    completion_tokens: int = 0
    flops: float = 0.0  # 2 x parameters x tokens
    latency_s: float = 0.0
    usd: float | None = 0.0  # None: some call has no price

    def __add__(self, other: Cost) -> Cost:
        usd = None if self.usd is None or other.usd is None else self.usd + other.usd
        sums = [getattr(self, name) + getattr(other, name) for name in ("params_b", "prompt_tokens", "completion_tokens", "flops", "latency_s")]
        return Cost(*sums, usd=usd)

    def in_unit(self, unit: CostUnit) -> float:
        """Raw units: billions of parameters, 1e12 FLOPs, thousands of tokens, seconds, USD."""
        if unit == "params":
            return self.params_b
        if unit == "flops":
            return self.flops / 1e12
        if unit == "tokens":
            return (self.prompt_tokens + self.completion_tokens) / 1000
        if unit == "latency":
            return self.latency_s
        if self.usd is None:
            raise MetricError("a call without a price cannot be charged in usd")
        return self.usd


def call_cost(expert: ExpertConfig, prompt_tokens: int, completion_tokens: int, latency_s: float) -> Cost:
    """Cost of one call. A stored answer is charged as if it had just been generated."""
    tokens, usd = prompt_tokens + completion_tokens, None
    if expert.usd_per_million_completion_tokens is not None:
        prompt_price = expert.usd_per_million_prompt_tokens or 0.0
        usd = (prompt_tokens * prompt_price + completion_tokens * expert.usd_per_million_completion_tokens) / 1e6
    return Cost(expert.params_b, prompt_tokens, completion_tokens, 2 * expert.params_b * 1e9 * tokens, latency_s, usd)


def charge(cost: Cost, reward: RewardConfig) -> float:
    """C of the paper: raw units x cost_scale."""
    return cost.in_unit(reward.cost) * reward.cost_scale


def paper_reward(step_idx: int, quality: float, previous_quality: float, cost: float, *, is_satisfied: bool, is_last: bool, reward: RewardConfig) -> float:
    """The paper's reward of one step (section 3; formula as retold, see docs/paper.md).

    P_0 - alpha C_0 at t = 0, P_t + beta (P_t - P_{t-1}) - alpha C_t after; gamma_bonus more at P_t >= p0, less at T_max without.
    """
    gained = reward.beta * (quality - previous_quality) if step_idx > 0 else 0.0
    bonus = reward.gamma_bonus if is_satisfied else (-reward.gamma_bonus if is_last else 0.0)
    return quality + gained - reward.alpha * cost + bonus


def final_reward(quality: float, previous_quality: float, cost: float, *, is_end: bool, reward: RewardConfig) -> float:
    """Quality of the final answer once, minus alpha C at every step, plus potential-based shaping (Ng et al. 1999).

    Phi is the quality of the current answer, 0 before the first and at the end, so the shaping sums to nothing over an episode.
    # Deviation: the paper pays quality at every step, which rewards delaying success (README, deviations).
    """
    potential = 0.0 if is_end else quality
    return (quality if is_end else 0.0) - reward.alpha * cost + reward.discount * potential - previous_quality
