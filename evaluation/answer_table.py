"""Every expert's first answer to every question, as arrays: what plain rules are fitted on.

A rule that asks each expert the bare question can be tried on these arrays without asking anybody
again. It gives `Choices`: whom it asked, in order, and whose answer it submits. Only at the end do
they become routes, which a report can show.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from backends.answer_store import Answer
from belief.features import Said
from config import EnvConfig, RewardConfig
from der_env import Episode, Step
from experts import ExpertPool, Request
from metrics.agreement import choose_similarity, compares_free_text, group_question_answers
from metrics.registry import score_answers
from questions import SIMILARITY, Question
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
        places = np.arange(len(order))
        is_made = places[None, :] < num_calls[:, None]  # (N, T)
        asked = np.where(is_made, np.array(order)[None, :], -1)
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
        """The name of each question's task (N,)."""
        return np.array([question.task for question in self.questions])

    def sealed(self) -> AnswerTable:
        """The same without qualities and references, for rules to choose on."""
        unknown = np.full_like(self.quality, np.nan)
        return replace(self, questions=self._sealed_questions, quality=unknown)

    @cached_property
    def _sealed_questions(self) -> list[Question]:
        return [question.sealed() for question in self.questions]

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

    def said_by(self, expert_idx: int) -> list[Said]:
        """What one expert answered to each question, and how sure it was."""
        return [Said.of(row[expert_idx]) for row in self.answers]

    def mean_charges(self) -> np.ndarray:
        """C of a call of each expert (K,), averaged over the questions."""
        # A copy of each column: the sum of a strided one may be rounded in another order.
        return np.array([np.mean(column.copy()) for column in self.charge.T])

    def returns(self, alpha: float) -> np.ndarray:
        """(N, K): what asking one expert alone returns."""
        return self.quality - alpha * self.charge

    def submitted_quality(self, choices: Choices) -> np.ndarray:
        """(N,)"""
        rows = np.arange(len(self))
        return self.quality[rows, choices.submitted]

    def spent(self, choices: Choices) -> np.ndarray:
        """C of all calls (N,)."""
        is_made = choices.order >= 0
        asked = np.where(is_made, choices.order, 0)
        charges = np.take_along_axis(self.charge, asked, axis=1)
        return np.where(is_made, charges, 0.0).sum(axis=1)

    def mean_return(self, choices: Choices, alpha: float) -> float:
        returns = self.submitted_quality(choices) - alpha * self.spent(choices)
        return float(np.mean(returns))

    def routes(self, choices: Choices) -> list[Route]:
        """The choices as played routes, scored where this table is."""
        return [self._route(row, choices) for row in range(len(self))]

    def _route(self, row: int, choices: Choices) -> Route:
        order = choices.order[row]
        asked = order[order >= 0].tolist()
        episode = Episode(self._sealed_questions[row], len(order))
        decisions = []
        for place, expert_idx in enumerate(asked):
            episode.hear(self._step(row, expert_idx))
            episode.submissions.append(place)
            decisions.append(Decision(expert_idx))
        submitted = int(choices.submitted[row])
        episode.submissions[-1] = asked.index(submitted)
        is_full = len(asked) == episode.t_max
        episode.stop_reason = "t_max" if is_full else "stopped"
        return Route(episode, decisions)

    def _step(self, row: int, expert_idx: int) -> Step:
        answer, cost = self.answers[row][expert_idx], self.costs[row][expert_idx]
        quality = float(self.quality[row, expert_idx])
        return Step(expert_idx, answer, cost, None if np.isnan(quality) else quality)


def settled_similarity(
    questions: Sequence[Question], pool: ExpertPool, env: EnvConfig, reward: RewardConfig
) -> float:
    """From which similarity free texts agree: as set, else chosen on everybody's answers to these
    questions. Nobody is asked where the questions are of no free text.
    """
    if env.similarity is not None:
        return env.similarity
    free = [question for question in questions if compares_free_text(question)]
    if not free:
        return SIMILARITY
    table = ask_all(free, pool, reward)
    texts = []
    for row in table.answers:
        texts.append([answer.text for answer in row])
    return choose_similarity(free, texts, table.quality >= env.p0)


def ask_all(questions: Sequence[Question], pool: ExpertPool, reward: RewardConfig) -> AnswerTable:
    """Ask every expert every question once, all at the same time, and score the answers.

    Questions hold their references. Raises what `pool.answer` and `score_answers` raise.
    """
    rows: list[list[Answer]] = [[] for _ in questions]
    costs: list[list[Cost]] = [[] for _ in questions]
    quality = np.zeros((len(questions), len(pool)))
    charges = np.zeros_like(quality)
    for expert_idx, answers in enumerate(_ask_each(questions, pool)):
        texts = []
        for row, answer in enumerate(answers):
            cost = pool.cost(expert_idx, answer)
            rows[row].append(answer)
            costs[row].append(cost)
            charges[row, expert_idx] = charge(cost, reward)
            texts.append(answer.text)
        names = [pool.names[expert_idx]] * len(texts)
        quality[:, expert_idx] = score_answers(questions, texts, names)
    groups = group_rows(questions, rows)
    return AnswerTable(list(questions), rows, costs, charges, groups, quality)


def _ask_each(questions: Sequence[Question], pool: ExpertPool) -> list[list[Answer]]:
    """The answers of each expert, [K][N]."""
    requests = []
    for expert_idx in range(len(pool)):
        for question in questions:
            requests.append(Request(expert_idx, question.text))
    answers = pool.answer(requests)
    columns = []
    for expert_idx in range(len(pool)):
        start = expert_idx * len(questions)
        columns.append(answers[start : start + len(questions)])
    return columns


def group_rows(questions: Sequence[Question], rows: Sequence[Sequence[Answer]]) -> np.ndarray:
    """Agreement groups (N, K) of the answers to each question, -1 for what cannot be read."""
    groups = np.full((len(rows), len(rows[0]) if rows else 0), -1)
    for row, question in enumerate(questions):
        texts = [answer.text for answer in rows[row]]
        for place, group in enumerate(group_question_answers(question, texts)):
            if group is not None:
                groups[row, place] = group
    return groups


def pick_best(table: AnswerTable) -> Choices:
    """Every expert is asked, and the best answer is picked with the reference.

    This is what perfect selection would give, at full cost. Of equal answers the first counts.
    """
    order = np.tile(np.arange(table.num_experts), (len(table), 1))
    return Choices(order, table.quality.argmax(axis=1))
