"""The belief on a route: how sure the answer is that would be submitted, and what else was heard.

Answers that agree form a candidate. A logistic regression over candidates weighs what its members
look like, who they are, and what speaks against them. The candidate with the highest estimate is
the one to submit.

Arrays are over N questions on which the same experts were asked, S of the K experts of the pool.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from belief.regression import Logistic, Standardiser, sigmoid

CANDIDATE_STRENGTH = 0.1  # C of the logistic regression over candidates
MAX_SET_ROWS = 1_000_000  # questions times sets of experts that are looked at in a fit
MAX_CANDIDATES = 60_000  # rows it is fitted on; more are sampled
TIE = 1e-6  # between the estimates of answers that agree
NOTHING = -6.0  # log-odds that stand for "there is no other candidate"

Asked = tuple[int, ...]  # the experts that were asked, in rising order


def asked_sets(num_experts: int, t_max: int) -> list[list[Asked]]:
    """All sets of asked experts by their size: entry t holds those of t experts."""
    sizes = range(min(t_max, num_experts) + 1)
    return [list(itertools.combinations(range(num_experts), size)) for size in sizes]


def sample_questions(num_questions: int, num_experts: int, t_max: int, seed: int) -> np.ndarray:
    """The rows, in order, that a fit over all sets of experts has memory for."""
    num_sets = sum(map(len, asked_sets(num_experts, t_max)))
    most = max(MAX_SET_ROWS // num_sets, 1)
    if num_questions <= most:
        return np.arange(num_questions)
    return np.sort(np.random.default_rng(seed).permutation(num_questions)[:most])


def by_asked(order: np.ndarray, num_asked: int) -> list[tuple[Asked, np.ndarray]]:
    """Sets of `num_asked` experts and the questions (M,) on which exactly these were asked.

    order (N, T): whom each question's calls asked, -1 where none was made.
    """
    made = (order >= 0).sum(axis=1)
    groups: dict[Asked, list[int]] = {}
    for row in np.flatnonzero(made == num_asked).tolist():
        asked = tuple(sorted(order[row, :num_asked].tolist()))
        groups.setdefault(asked, []).append(row)
    return [(asked, np.array(rows)) for asked, rows in groups.items()]


def agreement(groups: np.ndarray) -> np.ndarray:
    """Which answers agree (N, S, S), from their groups (N, S). Group -1 is one of its own."""
    same = groups[:, :, None] == groups[:, None, :]
    same &= groups[:, :, None] >= 0
    return same | np.eye(groups.shape[1], dtype=bool)[None]


@dataclass(frozen=True)
class Heard:
    """What was answered: log-odds before (N, K) and after (N, S) the calls, agreement (N, S, S)."""

    asked: Asked
    before: np.ndarray
    after: np.ndarray
    same: np.ndarray

    @property
    def difficulty(self) -> np.ndarray:
        """Mean prior log-odds (N,) over the experts: how easy the question is."""
        return self.before.mean(1)


@dataclass(frozen=True)
class Candidates:
    """Per asked answer, features of the candidate it belongs to (N, S, F).

    is_first marks one answer of each candidate, the one that looks best; size counts its members,
    distinct (N,) the candidates.
    """

    features: np.ndarray
    is_first: np.ndarray
    size: np.ndarray
    distinct: np.ndarray


def describe_candidates(heard: Heard) -> Candidates:
    """Features of every candidate on a route."""
    looks = heard.after[:, None, :]  # (N, 1, S): of the answer that a member or rival gave
    best = np.where(heard.same, looks, -np.inf).max(2)
    is_first = _first_of_each(heard.after, best, heard.same)
    size = heard.same.sum(2).astype(np.float64)
    distinct = is_first.sum(1).astype(np.float64)
    columns = _candidate_columns(heard, best, size, distinct)
    numbers = np.stack(columns, axis=2)
    members = _mark_experts(heard, heard.same)
    rivals = _mark_experts(heard, ~heard.same)
    features = np.concatenate([numbers, members, rivals], axis=2)
    return Candidates(features, is_first, size, distinct)


def _candidate_columns(
    heard: Heard, best: np.ndarray, size: np.ndarray, distinct: np.ndarray
) -> list[np.ndarray]:
    """The features (N, S) that name no expert: of a candidate, its rivals and the question.

    best, size (N, S): highest log-odds and number of the members. distinct (N,): candidates.
    """
    num_asked = heard.after.shape[1]
    looks = heard.after[:, None, :]
    other = ~heard.same
    rival_size = np.where(other, size[:, None, :], 0.0).max(2)
    rival_best = _best_rival(heard)
    rival_is_as_large = rival_size >= size
    if num_asked == 1:  # a single answer has no rival
        rival_best = np.zeros_like(size)
        rival_is_as_large = np.zeros_like(size, dtype=bool)
    difficulty = np.repeat(heard.difficulty[:, None], num_asked, axis=1)
    supported = (size > 1).astype(np.float64)
    total = (heard.same * looks).sum(2)
    columns = [
        best,
        total,
        (other * looks).sum(2),
        supported,
        size > 2,
        size > 3,
        rival_size > 1,
        rival_size > 2,
        np.repeat(distinct[:, None] - 1, num_asked, axis=1),
        np.full_like(size, num_asked),
        difficulty,
        total / size,
        rival_best,
        supported * best,
        supported * difficulty,
        rival_is_as_large,
    ]
    return [np.asarray(column, dtype=np.float64) for column in columns]


def _best_rival(heard: Heard) -> np.ndarray:
    """The highest log-odds (N, S) outside an answer's candidate; at least NOTHING."""
    looks = np.where(~heard.same, heard.after[:, None, :], NOTHING)
    return np.maximum(looks.max(2), NOTHING)


def _mark_experts(heard: Heard, is_marked: np.ndarray) -> np.ndarray:
    """Spread marks of asked answers (N, S, S) over all experts: (N, S, K), 0 where not asked."""
    num_questions, num_asked = heard.after.shape
    marks = np.zeros((num_questions, num_asked, heard.before.shape[1]))
    for place, expert_idx in enumerate(heard.asked):
        marks[:, :, expert_idx] = is_marked[:, :, place]
    return marks


def _first_of_each(after: np.ndarray, best: np.ndarray, same: np.ndarray) -> np.ndarray:
    """(N, S): whether an answer looks best in its candidate; of equals the first asked."""
    is_first = after >= best - 1e-12
    for place in range(after.shape[1]):
        for earlier in range(place):
            is_first[:, place] &= ~(same[:, place, earlier] & is_first[:, earlier])
    return is_first


@dataclass(frozen=True)
class CandidateModel:
    """Candidate features (.., F) -> log-odds that the candidate is right."""

    inputs: Standardiser
    logistic: Logistic

    @classmethod
    def fit(cls, features: np.ndarray, good: np.ndarray, seed: int) -> CandidateModel:
        """From candidates (M, F) and whether each is right (M,)."""
        inputs = Standardiser.fit(features)
        rows = np.random.default_rng(seed).permutation(len(good))[:MAX_CANDIDATES]
        logistic = Logistic.fit(inputs(features[rows]), good[rows], CANDIDATE_STRENGTH)
        return cls(inputs, logistic)

    def log_odds(self, features: np.ndarray) -> np.ndarray:
        flat = features.reshape(-1, features.shape[-1])
        return self.logistic(self.inputs(flat)).reshape(features.shape[:-1])


def fit_candidates(
    before: np.ndarray, after: np.ndarray, same: np.ndarray, good: np.ndarray, t_max: int, seed: int
) -> CandidateModel:
    """Fit on every set of up to t_max experts. Arrays (N, K), same (N, K, K)."""
    rows = sample_questions(len(good), good.shape[1], t_max, seed)
    before, after, same, good = before[rows], after[rows], same[rows], good[rows]
    features = []
    labels = []
    for asked in itertools.chain.from_iterable(asked_sets(before.shape[1], t_max)[1:]):
        members = list(asked)
        heard = hear(asked, before, after, same)
        candidates = describe_candidates(heard)
        features.append(candidates.features[candidates.is_first])
        labels.append(good[:, members][candidates.is_first])
    return CandidateModel.fit(np.concatenate(features), np.concatenate(labels), seed)


def hear(asked: Asked, before: np.ndarray, after: np.ndarray, same: np.ndarray) -> Heard:
    """What is known once `asked` have answered, from arrays over all experts."""
    members = list(asked)
    return Heard(asked, before, after[:, members], same[:, members][:, :, members])


@dataclass(frozen=True)
class Belief:
    """What a policy decides by, over N questions with the same experts asked.

    p: estimate of the answer to submit. second: of the next best candidate. size: answers that
    agree with it. distinct: candidates. submitted: the expert that gave it. estimates (N, S): of
    every asked answer. Answers of one candidate differ by less than TIE, in the order of their own
    looks: a grader may accept one wording of a right answer and not another.
    """

    asked: Asked
    p: np.ndarray
    second: np.ndarray
    size: np.ndarray
    distinct: np.ndarray
    submitted: np.ndarray
    estimates: np.ndarray

    def take(self, rows: np.ndarray) -> Belief:
        """The belief on some of the questions."""
        return Belief(
            self.asked,
            self.p[rows],
            self.second[rows],
            self.size[rows],
            self.distinct[rows],
            self.submitted[rows],
            self.estimates[rows],
        )


def believe(heard: Heard, model: CandidateModel) -> Belief:
    """The belief after at least one answer."""
    candidates = describe_candidates(heard)
    rows = np.arange(len(heard.after))
    log_odds = model.log_odds(candidates.features)
    ranked = np.where(candidates.is_first, log_odds, -np.inf)
    best = ranked.argmax(1)
    without_best = ranked.copy()
    without_best[rows, best] = -np.inf
    second = np.maximum(without_best.max(1), NOTHING)
    of_candidate = np.where(heard.same, ranked[:, None], -np.inf)
    return Belief(
        asked=heard.asked,
        p=sigmoid(ranked[rows, best]),
        second=sigmoid(second),
        size=candidates.size[rows, best],
        distinct=candidates.distinct,
        submitted=np.array(heard.asked)[best],
        estimates=sigmoid(of_candidate.max(2)) + TIE * sigmoid(heard.after),
    )


def believe_sets(
    before: np.ndarray, after: np.ndarray, same: np.ndarray, model: CandidateModel, t_max: int
) -> dict[Asked, Belief]:
    """The belief after every set of one to t_max experts, from arrays over all experts.

    before, after: log-odds (N, K). same (N, K, K): which answers agree.
    """
    beliefs = {}
    for of_size in asked_sets(before.shape[1], t_max)[1:]:
        for asked in of_size:
            beliefs[asked] = believe(hear(asked, before, after, same), model)
    return beliefs
