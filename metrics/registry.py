"""Metrics by name, and the scoring of answers.

Metrics share one interface, `compute(predictions=, references=)`, and return one score in [0, 1]
per answer. They are named in the data (`metric` of a question) as one of `METRICS`,
`bertscore:MODEL:LAYERS`, `bartscore:MODEL`, `bleurt:MODEL` (model_based.py), `reasoning_gym:NAME`,
`evaluate:NAME[/KEY]`, or the import path `package.module:name`; `recorded` takes the scores that
came with the answers.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any

from config import ExpertConfig, RecordedExpertConfig
from metrics.answers import exact_match, read_short_answer, short_answer
from metrics.base import Metric, PairMetric, accepted
from metrics.choices import choice_in, multiple_choice
from metrics.mathematics import math_match, read_expression, same_expression
from metrics.numbers import numeric_match, read_number, same_number
from metrics.programs import program_in, same_program
from questions import RECORDED, Question, Reference
from runtime.errors import MetricError


def rouge(kind: str) -> PairMetric:
    """F1 of rouge1, rouge2 or rougeL with stemming, by package rouge-score."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer([kind], use_stemmer=True)
    return PairMetric(
        lambda prediction, reference: scorer.score(reference, prediction)[kind].fmeasure,
        is_free_text=True,
    )


def text_metric(name: str, *arguments: Any) -> Metric:
    """bertscore, bartscore or bleurt; model_based.py brings transformers and is imported when one
    is first named.
    """
    from metrics import model_based

    return {
        "bertscore": model_based.BertScore,
        "bartscore": model_based.BartScore,
        "bleurt": model_based.Bleurt,
    }[name](*arguments)


class ReasoningGymMetric:
    """reasoning-gym's own scorer of a data set; the reference is the generated entry, or accepted
    answers alone where the scorer needs no more.
    """

    def __init__(self, name: str):
        import reasoning_gym
        from reasoning_gym.factory import DATASETS

        if name not in DATASETS:
            near = difflib.get_close_matches(name, DATASETS, n=1)
            raise MetricError(
                f"reasoning_gym:{name}: no such data"
                f" set{f'; did you mean {near[0]}?' if near else ''}"
            )
        self.name, self._scorer = name, reasoning_gym.get_score_answer_fn(name)

    def read(self, answer: str) -> str | None:
        """The text but for its white space: the scorers' own readings are not to be had."""
        return " ".join(answer.split()) or None

    def _score(self, prediction: str, entry: dict[str, Any]) -> float:
        if not prediction.strip():
            return 0.0
        try:
            return float(self._scorer(prediction, entry))
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            if isinstance(error, KeyError) and not entry.get("metadata"):
                raise MetricError(
                    f"reasoning_gym:{self.name}: the reference has no {error}; its scorer needs the"
                    " whole generated entry"
                ) from error
            return 0.0  # some scorers read well-formed answers only

    def compute(
        self, *, predictions: Sequence[str], references: Sequence[Reference]
    ) -> list[float]:
        scores = []
        for prediction, reference in zip(predictions, references, strict=True):
            if isinstance(reference, dict):
                entries = [reference]
            else:
                entries = [{"answer": text, "metadata": {}} for text in accepted(reference)]
            scores.append(max(self._score(prediction, entry) for entry in entries))
        return scores


def evaluate_metric(name: str) -> PairMetric:
    """MODULE or MODULE/KEY of Hugging Face `evaluate`: that key of what the module returns, by
    default the one of its name.

    Needs the hub once, to fetch the module's code.
    """
    import evaluate

    name, _, key = name.partition("/")
    key = key or name
    try:
        module = evaluate.load(name)
    except (FileNotFoundError, ConnectionError, OSError) as error:
        raise MetricError(
            f"evaluate:{name}: could not be fetched ({error}). Offline, use one of"
            f" {', '.join(METRICS)}"
        ) from error

    def score(prediction: str, reference: str) -> float:
        # Modules average over what they get: one at a time
        result = module.compute(predictions=[prediction], references=[reference])
        if key not in result:
            raise MetricError(
                f"evaluate:{name}: no {key!r} in what it returns; name one of {', '.join(result)},"
                f" as in evaluate:{name}/{next(iter(result))}"
            )
        value = result[key]
        return float(value[0] if isinstance(value, list) else value)

    return PairMetric(score)


def imported_metric(module: str, name: str) -> Metric:
    """A metric of a user's own. Its code runs here, so no data file may have named it
    (questions.py).

    Raises MetricError for what is not made, or cannot be asked, as a metric is.
    """
    try:
        factory = getattr(importlib.import_module(module), name)
        if not isinstance(factory, type):
            raise TypeError(f"{name} is no class")
        metric: Metric = factory()
        inspect.signature(metric.compute).bind(predictions=[], references=[])
    except Exception as error:  # whatever the code of others raises
        raise MetricError(
            f"metric {module}:{name}: {error}. It must be a class, made without arguments, with"
            " compute(predictions=, references=)"
        ) from error
    return metric


METRICS: dict[str, Callable[[], Metric]] = {
    "exact_match": lambda: PairMetric(exact_match),
    "short_answer": lambda: PairMetric(short_answer, read_short_answer),
    "numeric_match": lambda: PairMetric(numeric_match, read_number, same_number),
    "math": lambda: PairMetric(math_match, read_expression, same_expression),
    "multiple_choice": lambda: PairMetric(multiple_choice, choice_in),
    "rouge_1": lambda: rouge("rouge1"),
    "rouge_2": lambda: rouge("rouge2"),
    "rouge_l": lambda: rouge("rougeL"),
    "bertscore": lambda: text_metric("bertscore"),
    "bartscore": lambda: text_metric("bartscore"),
    "bleurt": lambda: text_metric("bleurt"),
    "code": lambda: PairMetric(same_program, program_in),
}


def is_ours(name: str) -> bool:
    """Whether only code of this project reads for a metric, so that a hash can vouch for it."""
    return ":" not in name


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
    if kind and rest:
        return imported_metric(kind, rest)
    known = [
        *METRICS,
        RECORDED,
        "bertscore:MODEL:LAYERS",
        "bartscore:MODEL",
        "bleurt:MODEL",
        "reasoning_gym:NAME",
        "evaluate:NAME[/KEY]",
        "package.module:name",
    ]
    raise MetricError(f"unknown metric {name!r}; known: {', '.join(known)}")


def check_metrics(questions: Sequence[Question], experts: Sequence[ExpertConfig]) -> None:
    """Raise MetricError for a metric that does not exist, cannot read a reference or lacks a score
    of these experts, before anything is spent on answers.
    """
    for name in {question.agreement for question in questions} - {None}:
        get_metric(name)
    for question in questions:
        if question.metric == RECORDED:
            _check_recorded(question, experts)
        else:
            _check_reference(question)


def _check_reference(question: Question) -> None:
    metric, kind = get_metric(question.metric), question.metric.partition(":")[0]
    try:
        # They must find something in it
        if kind in (
            "numeric_match",
            "math",
            "multiple_choice",
            "reasoning_gym",
        ):
            own = (
                question.reference.get("answer")
                if isinstance(question.reference, dict)
                else accepted(question.reference)[0]
            )
            metric.compute(predictions=[str(own)], references=[question.reference])
        elif kind in METRICS or kind == "evaluate":
            accepted(question.reference)
    except MetricError as error:
        raise MetricError(f"question {question.id}: {error}") from error


def _check_recorded(question: Question, experts: Sequence[ExpertConfig]) -> None:
    for expert in experts:
        if not isinstance(expert, RecordedExpertConfig):
            raise MetricError(
                f"question {question.id}: metric recorded judges experts of kind recorded only;"
                f" there are no scores of what {expert.name} will answer"
            )
        if expert.name not in question.scores:
            raise MetricError(
                f"question {question.id} ({question.text[:60]!r}): metric recorded, but no score of"
                f" expert {expert.name}"
            )


def score_answers(
    questions: Sequence[Question], answers: Sequence[str], experts: Sequence[str]
) -> list[float]:
    """Quality in [0, 1] of each answer by its question's metric, one `compute` call per metric;
    `experts` names who gave each.

    Empty answers score 0, except under metric `recorded`: there a text may be missing where its
    score is known.
    """
    out = [0.0] * len(answers)
    groups: dict[str, list[int]] = {}
    for index, (question, answer, expert) in enumerate(
        zip(questions, answers, experts, strict=True)
    ):
        if question.metric == RECORDED:
            out[index] = question.scores[expert]
        elif answer.strip():
            groups.setdefault(question.metric, []).append(index)
    for name, rows in groups.items():
        scores = get_metric(name).compute(
            predictions=[answers[i] for i in rows],
            references=[questions[i].reference for i in rows],
        )
        for row, score in zip(rows, scores, strict=True):
            if not 0.0 <= score <= 1.0:
                raise MetricError(
                    f"{name}: score {score} of question {questions[row].id} is outside [0, 1]"
                )
            out[row] = score
    return out
