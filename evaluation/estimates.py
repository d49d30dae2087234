"""What an outcome model says of the answers in a table: the ground that reading rules decide on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from belief.outcome_model import (
    OutcomeModel,
    Outcomes,
    certainties,
    count_questions,
    count_texts,
    cross_fit,
)
from belief.regression import sigmoid
from belief.state import (
    Asked,
    Belief,
    CandidateModel,
    agreement,
    believe_sets,
    fit_candidates,
)
from evaluation.answer_table import AnswerTable

SURE = 1e-4  # estimates are kept this far from 0 and 1, where log-odds are infinite


@dataclass(frozen=True)
class Estimates:
    """Probabilities that answers are right, on N questions.

    before (N, K): before the calls, from the question. after (N, K): each answer read alone.
    beliefs: for every set of asked experts up to t_max, what is thought of its answers, agreement
    included (`Belief.p` of the one to submit, `Belief.submitted` whose it is).
    """

    before: np.ndarray
    after: np.ndarray
    beliefs: dict[Asked, Belief]

    @property
    def log_odds_before(self) -> np.ndarray:
        return log_odds(self.before)


class Estimator:
    """Estimates fitted on one table, for that table and others.

    `own` are estimates of the questions it was fitted on, each by models that had not seen it. So a
    rule that is fitted on `own` meets estimates as good and as bad as on new questions.
    """

    def __init__(
        self, table: AnswerTable, features: TableFeatures, p0: float, t_max: int, seed: int
    ):
        self.t_max = t_max
        self.tasks = sorted(set(table.tasks))
        outcomes = self._outcomes(table, features, table.quality >= p0)
        fitted = cross_fit(outcomes, len(self.tasks), seed)
        self.model: OutcomeModel = fitted.model
        self.candidates: CandidateModel = fit_candidates(
            fitted.before, fitted.after, agreement(table.groups), outcomes.good, t_max, seed
        )
        self.own = self._estimates(fitted.before, fitted.after, table.groups)

    def estimate(self, table: AnswerTable, features: TableFeatures) -> Estimates:
        """Of other questions; their qualities are not looked at."""
        outcomes = self._outcomes(table, features, np.zeros(table.charge.shape, dtype=bool))
        before = self.model.before(outcomes.question, outcomes.embedding, outcomes.task)
        return self._estimates(before, self.model.after_all(outcomes), table.groups)

    def _outcomes(self, table: AnswerTable, features: TableFeatures, good: np.ndarray) -> Outcomes:
        known = {task: index for index, task in enumerate(self.tasks)}
        tasks = np.array([known.get(task, -1) for task in table.tasks])
        return Outcomes(features.question, features.embedding, tasks, features.answer, good)

    def _estimates(self, before: np.ndarray, after: np.ndarray, groups: np.ndarray) -> Estimates:
        """From log-odds (N, K) and agreement groups (N, K)."""
        beliefs = believe_sets(before, after, agreement(groups), self.candidates, self.t_max)
        return Estimates(sigmoid(before), sigmoid(after), beliefs)


@dataclass(frozen=True)
class TableFeatures:
    """What is counted in the questions (N, F) and answers (N, K, G) of a table, and an encoder's
    features of the questions (N, D), where D may be 0.
    """

    question: np.ndarray
    embedding: np.ndarray
    answer: np.ndarray

    @classmethod
    def of(cls, table: AnswerTable, embedding: np.ndarray | None = None) -> TableFeatures:
        if embedding is None:
            embedding = np.zeros((len(table), 0))
        counted = _count_all(table)
        columns = []
        for expert_idx in range(table.num_experts):
            columns.append(certainties(table.said_by(expert_idx)))
        answer = np.concatenate([counted, np.stack(columns, axis=1)], axis=2)
        return cls(count_questions(table.questions), embedding, answer)

    def joined(self, other: TableFeatures) -> TableFeatures:
        return TableFeatures(
            np.concatenate([self.question, other.question]),
            np.concatenate([self.embedding, other.embedding]),
            np.concatenate([self.answer, other.answer]),
        )


def _count_all(table: AnswerTable) -> np.ndarray:
    """Counted features (N, K, G - 3) of all answers, which depend on their texts alone."""
    columns = []
    for expert_idx in range(table.num_experts):
        texts = [row[expert_idx].text for row in table.answers]
        columns.append(count_texts(table.questions, texts))
    return np.stack(columns, axis=1)


def known_to(order: Sequence[int]) -> Asked:
    """The set of experts in an order, as `Estimates.beliefs` names it."""
    return tuple(sorted(order))


def log_odds(p: np.ndarray) -> np.ndarray:
    kept = np.clip(p, SURE, 1.0 - SURE)
    return np.log(kept / (1.0 - kept))
