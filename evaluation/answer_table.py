"""Every expert's first answer to every question, as arrays: what plain rules are fitted on.

A rule that asks each expert the bare question can be tried on these arrays without asking anybody
again. It gives `Choices`: whom it asked, in order, and whose answer it submits. Only at the end do
they become routes, which a report can show.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from backends.answer_store import Answer
from config import RewardConfig
from der_env import Episode, Step
from evaluation.kept import WORTH_KEEPING, kept
from experts import ExpertPool, Request
from metrics.agreement import group_question_answers
from metrics.registry import score_answers
from questions import Question
from reward import Cost, charge
from rollout import Decision, Route


@dataclass(frozen=True)
class Choices:
    """What a rule did on N questions.

    order (N, T): experts in the order they were asked, -1 after the last call. submitted (N,): the
    expert whose answer counts, one of those asked.
    """

    order: np.ndarray
    submitted: np.ndarray

    @classmethod
    def of_order(
        cls, order: Sequence[int], num_calls: np.ndarray, submitted: np.ndarray
    ) -> Choices:
        """The first `num_calls` (N,) experts of one order for all questions."""
        places = np.arange(len(order))[None, :]
        asked = np.where(places < num_calls[:, None], np.array(order)[None, :], -1)
        return cls(asked, submitted)

    @classmethod
    def of_one(cls, expert_idxs: np.ndarray) -> Choices:
        """One call a question, to `expert_idxs` (N,)."""
        return cls(expert_idxs[:, None], expert_idxs)


@dataclass(frozen=True)
class AnswerTable:
    """First answers of K experts to N questions.

    answers [N][K], costs [N][K]. charge (N, K): C. groups (N, K): answers of a question that agree
    have one number, -1 marks what nothing could be read in. quality (N, K): NaN in a sealed table.
    """

    questions: list[Question]
    answers: list[list[Answer]]
    costs: list[list[Cost]]
    charge: np.ndarray
    groups: np.ndarray
    quality: np.ndarray

    def __len__(self) -> int:
        return len(self.questions)

    @property
    def num_experts(self) -> int:
        return self.charge.shape[1]

    @property
    def tasks(self) -> np.ndarray:
        """(N,) names."""
        return np.array([question.task for question in self.questions])

    def sealed(self) -> AnswerTable:
        """The same without qualities and references, for rules to choose on."""
        questions = [question.sealed() for question in self.questions]
        return replace(self, questions=questions, quality=np.full_like(self.quality, np.nan))

    def take(self, rows: np.ndarray) -> AnswerTable:
        """The questions in `rows`, in that order."""
        return AnswerTable(
            [self.questions[row] for row in rows],
            [self.answers[row] for row in rows],
            [self.costs[row] for row in rows],
            self.charge[rows],
            self.groups[rows],
            self.quality[rows],
        )

    def joined(self, other: AnswerTable) -> AnswerTable:
        """This table's questions, then the other's."""
        return AnswerTable(
            [*self.questions, *other.questions],
            [*self.answers, *other.answers],
            [*self.costs, *other.costs],
            np.concatenate([self.charge, other.charge]),
            np.concatenate([self.groups, other.groups]),
            np.concatenate([self.quality, other.quality]),
        )

    def returns(self, alpha: float) -> np.ndarray:
        """(N, K): what asking one expert alone returns."""
        return self.quality - alpha * self.charge

    def submitted_quality(self, choices: Choices) -> np.ndarray:
        """(N,)"""
        return self.quality[np.arange(len(self)), choices.submitted]

    def spent(self, choices: Choices) -> np.ndarray:
        """C of all calls (N,)."""
        charges = np.take_along_axis(self.charge, np.maximum(choices.order, 0), axis=1)
        return np.where(choices.order >= 0, charges, 0.0).sum(axis=1)

    def mean_return(self, choices: Choices, alpha: float) -> float:
        return float(np.mean(self.submitted_quality(choices) - alpha * self.spent(choices)))

    def routes(self, choices: Choices) -> list[Route]:
        """The choices as played routes, scored where this table is."""
        return [self._route(row, choices) for row in range(len(self))]

    def _route(self, row: int, choices: Choices) -> Route:
        asked = [int(expert_idx) for expert_idx in choices.order[row] if expert_idx >= 0]
        steps = []
        for expert_idx in asked:
            quality = float(self.quality[row, expert_idx])
            known = None if np.isnan(quality) else quality
            cost = self.costs[row][expert_idx]
            steps.append(Step(expert_idx, self.answers[row][expert_idx], cost, known))
        episode = Episode(self.questions[row].sealed(), choices.order.shape[1], steps)
        episode.submissions = list(range(len(asked)))
        episode.submissions[-1] = asked.index(int(choices.submitted[row]))
        is_full = len(asked) == episode.t_max
        episode.stop_reason = "t_max" if is_full else "stopped"
        return Route(episode, [Decision(expert_idx) for expert_idx in asked])


def ask_all(questions: Sequence[Question], pool: ExpertPool, reward: RewardConfig) -> AnswerTable:
    """Ask every expert every question once, and score the answers.

    Questions hold their references. Raises what `pool.answer` and `score_answers` raise.
    """
    columns, qualities = [], []
    for expert_idx, name in enumerate(pool.names):
        answers = pool.answer([Request(expert_idx, question.text) for question in questions])
        texts = [answer.text for answer in answers]
        columns.append(answers)
        qualities.append(score_answers(questions, texts, [name] * len(texts)))
    rows = [list(row) for row in zip(*columns, strict=True)]
    costs = []
    for row in rows:
        costs.append([pool.cost(expert_idx, answer) for expert_idx, answer in enumerate(row)])
    charges = np.array([[charge(cost, reward) for cost in row] for row in costs])
    quality = np.array(qualities).T.reshape(len(rows), len(pool))
    return AnswerTable(list(questions), rows, costs, charges, group_rows(questions, rows), quality)


def group_rows(questions: Sequence[Question], rows: Sequence[Sequence[Answer]]) -> np.ndarray:
    """Agreement groups (N, K) of the answers to each question, -1 for what cannot be read.

    Those of many answers are kept: to compare mathematics takes 20 ms a pair.
    """
    if not can_be_kept(questions, sum(len(row) for row in rows)):
        return _group_rows(questions, rows)
    return kept("groups", texts_of(questions, rows), lambda: _group_rows(questions, rows))


def can_be_kept(questions: Sequence[Question], num_answers: int) -> bool:
    """Whether what is read in these answers is worth keeping, and read by code of this project."""
    if num_answers < WORTH_KEEPING:
        return False
    return not any(":" in question.agreement_metric for question in questions)


def texts_of(questions: Sequence[Question], rows: Sequence[Sequence[Answer]]) -> Iterator[str]:
    """Everything that readings depend on."""
    for question, row in zip(questions, rows, strict=True):
        yield question.agreement_metric
        yield question.text
        for answer in row:
            yield answer.text


def _group_rows(questions: Sequence[Question], rows: Sequence[Sequence[Answer]]) -> np.ndarray:
    groups = []
    for question, row in zip(questions, rows, strict=True):
        found = group_question_answers(question, [answer.text for answer in row])
        groups.append([-1 if group is None else group for group in found])
    return np.array(groups, dtype=np.int64).reshape(len(rows), -1)


def pick_best(table: AnswerTable) -> Choices:
    """Every expert asked, the best answer picked with the reference: what perfect selection would
    give, at full cost. Of equals the first.
    """
    order = np.tile(np.arange(table.num_experts), (len(table), 1))
    return Choices(order, table.quality.argmax(axis=1))
