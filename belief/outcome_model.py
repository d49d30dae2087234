"""How likely an expert's answer is right: before it is asked, and after its answer is read.

Two logistic regressions. The prior reads the question, the reader also the answer. Experts share
coefficients and have deviations of their own, which are shrunk harder. What belongs to a question
that the model was fitted on is estimated by a model that has not seen it (cross-fitting): a policy
that learns from estimates must meet them as good and as bad as they will be on new questions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from belief.features import (
    Said,
    answer_features,
    certainty_features,
    feature_matrix,
    question_features,
)
from belief.regression import Logistic, Standardiser, sigmoid
from metrics.agreement import read_answer
from metrics.registry import is_ours
from questions import Question
from runtime.errors import AgentError, DataError
from runtime.remembered import Remembered

NUM_FOLDS = 10  # with 4, the models of the folds are visibly less sure than the one in use
PRIOR_STRENGTH = 0.01  # C of the logistic regressions; chosen by cross-validation on four sets
READER_STRENGTH = 0.03
DEVIATION = 0.5  # scale of an expert's own inputs: the smaller, the harder they are shrunk
TASK_DEVIATION = 0.7
EMBEDDING_SCALE = 0.15  # of the encoder's features beside the counted ones

counted = Remembered(limit=1 << 18)  # counted features of answers, a fifth of a kilobyte each


@dataclass(frozen=True)
class Outcomes:
    """Judged first answers of every expert to N questions, as features.

    question: counted features (N, F). embedding: of an encoder (N, D), D may be 0. task: index into
    the model's tasks (N,), -1 for an unknown one. answer: features (N, K, G). good: whether
    the answer is right (N, K).
    """

    question: np.ndarray
    embedding: np.ndarray
    task: np.ndarray
    answer: np.ndarray
    good: np.ndarray

    def take(self, rows: np.ndarray) -> Outcomes:
        return Outcomes(
            self.question[rows],
            self.embedding[rows],
            self.task[rows],
            self.answer[rows],
            self.good[rows],
        )

    def of_expert(self, expert_idx: int) -> Outcomes:
        """One expert's answers alone: answer (N, 1, G), good (N, 1)."""
        answer = self.answer[:, [expert_idx]]
        return replace(self, answer=answer, good=self.good[:, [expert_idx]])

    def flat(self) -> JudgedAnswers:
        """The same answers, one a row: all experts' to a question after each other."""
        num_questions, num_experts = self.good.shape
        good = self.good.ravel()
        return JudgedAnswers(
            np.repeat(self.question, num_experts, axis=0),
            np.repeat(self.embedding, num_experts, axis=0),
            np.repeat(self.task, num_experts),
            np.tile(np.arange(num_experts), num_questions),
            self.answer.reshape(len(good), -1),
            good,
        )


@dataclass(frozen=True)
class JudgedAnswers:
    """Judged answers, one a row.

    question (N, F), embedding (N, D), task (N,) and answer (N, G) as in `Outcomes`. expert (N,):
    who answered. good (N,): whether the answer is right.
    """

    question: np.ndarray
    embedding: np.ndarray
    task: np.ndarray
    expert: np.ndarray
    answer: np.ndarray
    good: np.ndarray

    def __len__(self) -> int:
        return len(self.good)

    def take(self, rows: np.ndarray) -> JudgedAnswers:
        return JudgedAnswers(*(getattr(self, field.name)[rows] for field in fields(self)))

    def with_others(self, others: JudgedAnswers) -> JudgedAnswers:
        """These rows, then the others'."""
        columns = []
        for field in fields(self):
            columns.append(np.concatenate([getattr(self, field.name), getattr(others, field.name)]))
        return JudgedAnswers(*columns)


def count_questions(questions: Sequence[Question]) -> np.ndarray:
    """Counted features (N, F) of questions."""
    return np.stack([_count_question(question.text) for question in questions])


def count_answers(questions: Sequence[Question], answers: Sequence[Said]) -> np.ndarray:
    """Features (N, G) of one answer to each question: what is counted, and certainty."""
    counted = count_texts(questions, [answer.text for answer in answers])
    return np.hstack([counted, certainties(answers)])


def certainties(answers: Sequence[Said]) -> np.ndarray:
    """The last features (N, 3) of answers: whether and how sure their models were."""
    return feature_matrix([certainty_features(answer) for answer in answers])


def count_texts(questions: Sequence[Question], texts: Sequence[str]) -> np.ndarray:
    """Counted features (N, G - 3) of one text to each question."""
    rows = []
    for question, text in zip(questions, texts, strict=True):
        rows.append(_count_text(question.text, question.agreement_metric, text))
    return np.stack(rows)


def num_reader_inputs() -> int:
    """Features that the reader reads of an answer and its question together."""
    question = Question("", "")
    return count_questions([question]).size + count_answers([question], [Said("")]).size


def check_inputs(num_inputs: int, place: str) -> None:
    """Raises AgentError where a saved reader has other inputs than this version's."""
    wanted = num_reader_inputs()
    if num_inputs != wanted:
        raise AgentError(
            f"{place}: its reader has {num_inputs} inputs, that of this version has {wanted}. It is"
            " of another version of DER: train again"
        )


@functools.lru_cache(maxsize=1 << 16)
def _count_question(question: str) -> np.ndarray:
    """Counted features (F,). Every answer to a question is read with them."""
    return feature_matrix([question_features(question)])[0]


def _count_text(question: str, metric: str, answer: str) -> np.ndarray:
    """Counted features (G - 3,). Each answer is counted once."""

    def count() -> np.ndarray:
        features = answer_features(question, answer, read_answer(metric, answer))
        return feature_matrix([features])[0]

    return counted.find((question, metric, answer), count, is_lasting=is_ours(metric))


def one_hot(indices: np.ndarray, size: int) -> np.ndarray:
    """(N,) -> (N, size); a row of zeros for -1."""
    return (indices[:, None] == np.arange(size)).astype(np.float64)


def products(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Every product of a column of (N, A) with one of (N, B): (N, A * B)."""
    return (left[:, :, None] * right[:, None, :]).reshape(len(left), -1)


class ExpertRegression:
    """Logistic regression whose inputs are shared by experts that deviate: log-odds of an answer.

    Inputs are counted features (N, F), the embedding (N, D), task and expert (N,).
    """

    def __init__(
        self, num_experts: int, num_tasks: int, inputs: Standardiser, embedding: Standardiser
    ):
        self.num_experts = num_experts
        self.num_tasks = num_tasks
        self.inputs = inputs
        self.embedding = embedding
        self.logistic = Logistic(np.zeros(0), 0.0)

    @classmethod
    def fit(
        cls,
        num_experts: int,
        num_tasks: int,
        inputs: np.ndarray,
        embedding: np.ndarray,
        task: np.ndarray,
        expert: np.ndarray,
        good: np.ndarray,
        strength: float,
    ) -> ExpertRegression:
        model = cls(num_experts, num_tasks, Standardiser.fit(inputs), Standardiser.fit(embedding))
        rows = model._rows(inputs, embedding, task, expert)
        model.logistic = Logistic.fit(rows, good, strength)
        return model

    def _rows(
        self, inputs: np.ndarray, embedding: np.ndarray, task: np.ndarray, expert: np.ndarray
    ) -> np.ndarray:
        plain = self.inputs(inputs)
        who = one_hot(expert, self.num_experts)
        parts = [plain, who, DEVIATION * products(who, plain)]
        if embedding.shape[1]:
            parts.append(EMBEDDING_SCALE * self.embedding(embedding))
        if self.num_tasks > 1:
            about = one_hot(task, self.num_tasks)
            parts += [about, TASK_DEVIATION * products(who, about)]
        return np.hstack(parts).astype(np.float32)

    def log_odds(
        self, inputs: np.ndarray, embedding: np.ndarray, task: np.ndarray, expert: np.ndarray
    ) -> np.ndarray:
        """Log-odds (N,) that the expert's answer is right."""
        return self.logistic(self._rows(inputs, embedding, task, expert))


class OutcomeModel:
    """Prior and reader over K experts and the tasks met in training."""

    def __init__(self, prior: ExpertRegression, reader: ExpertRegression):
        self.prior = prior
        self.reader = reader

    @property
    def num_experts(self) -> int:
        return self.prior.num_experts

    @classmethod
    def fit(cls, outcomes: Outcomes, num_tasks: int) -> OutcomeModel:
        """Fit both regressions on all judged answers."""
        return cls.fit_answers(outcomes.flat(), outcomes.good.shape[1], num_tasks)

    @classmethod
    def fit_answers(cls, answers: JudgedAnswers, num_experts: int, num_tasks: int) -> OutcomeModel:
        """Fit both regressions on answers of which a question may have any number."""
        prior = ExpertRegression.fit(
            num_experts,
            num_tasks,
            answers.question,
            answers.embedding,
            answers.task,
            answers.expert,
            answers.good,
            PRIOR_STRENGTH,
        )
        reader = ExpertRegression.fit(
            num_experts,
            num_tasks,
            np.hstack([answers.answer, answers.question]),
            answers.embedding[:, :0],
            answers.task,
            answers.expert,
            answers.good,
            READER_STRENGTH,
        )
        return cls(prior, reader)

    def before(self, question: np.ndarray, embedding: np.ndarray, task: np.ndarray) -> np.ndarray:
        """Log-odds (N, K) that each expert will answer a question rightly."""
        columns = []
        for expert_idx in range(self.num_experts):
            expert = np.full(len(question), expert_idx)
            columns.append(self.prior.log_odds(question, embedding, task, expert))
        return np.column_stack(columns)

    def after(
        self, question: np.ndarray, task: np.ndarray, expert: np.ndarray, answer: np.ndarray
    ) -> np.ndarray:
        """Log-odds (N,) that one read answer to each question is right, agreement aside."""
        inputs = np.hstack([answer, question])
        return self.reader.log_odds(inputs, np.zeros((len(inputs), 0)), task, expert)

    def after_all(self, outcomes: Outcomes) -> np.ndarray:
        """`after` (N, K) of the answers of every expert."""
        columns = []
        for expert_idx in range(self.num_experts):
            expert = np.full(len(outcomes.question), expert_idx)
            answer = outcomes.answer[:, expert_idx]
            columns.append(self.after(outcomes.question, outcomes.task, expert, answer))
        return np.column_stack(columns)


@dataclass(frozen=True)
class CrossFitted:
    """A model of all training questions, and estimates for these by models that had not seen them.

    before, after: log-odds (N, K).
    """

    model: OutcomeModel
    before: np.ndarray
    after: np.ndarray


def cross_fit(outcomes: Outcomes, num_tasks: int, seed: int) -> CrossFitted:
    """Fit the outcome model, and estimate every training question from the other folds."""
    return cross_fit_by(lambda part: OutcomeModel.fit(part, num_tasks), outcomes, seed)


def cross_fit_by(
    fit: Callable[[Outcomes], OutcomeModel], outcomes: Outcomes, seed: int
) -> CrossFitted:
    """The same for another way to fit. Raises DataError where there are no others."""
    num_questions, num_experts = outcomes.good.shape
    if num_questions < 2:
        raise DataError(
            f"{num_questions} training question: an agent over beliefs needs at least 2, since each"
            " is estimated from the others; give more (data.train)"
        )
    folds = np.random.default_rng(seed).permutation(num_questions) % NUM_FOLDS
    before = np.zeros((num_questions, num_experts))
    after = np.zeros((num_questions, num_experts))
    for fold in range(NUM_FOLDS):
        held = np.flatnonzero(folds == fold)
        if not len(held):
            continue
        model = fit(outcomes.take(np.flatnonzero(folds != fold)))
        part = outcomes.take(held)
        before[held] = model.before(part.question, part.embedding, part.task)
        after[held] = model.after_all(part)
    return CrossFitted(fit(outcomes), before, after)


__all__ = ["CrossFitted", "OutcomeModel", "Outcomes", "cross_fit", "sigmoid"]
