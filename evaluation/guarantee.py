"""A threshold with a promise: how often the reference is right and the route is wrong.

That loss is 0 or 1 on every question. Learn then Test (Angelopoulos, Bates, Candes, Jordan and Lei
2021) finds the cheapest threshold whose mean loss is at most `max_loss` with a stated confidence.
Thresholds are tested one after another, from the most conservative to the cheapest, until a test
fails (fixed-sequence testing). A test passes if the exact binomial upper limit of the loss
(Clopper and Pearson 1934) is at most `max_loss`. So all thresholds that passed hold together.

The calibration questions must come from where the policy will be used. They must not have been
used to fit or to choose anything, the candidate thresholds included.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.stats import beta

from config import RewardConfig
from reward import charge
from rollout import Route
from runtime.errors import GuaranteeError
from terminator import NEVER, cut_at

NUM_THRESHOLDS = 100
MOST_QUESTIONS = 10**9  # no data set is larger


@dataclass(frozen=True)
class Guarantee:
    """What is promised, and what it rests on."""

    threshold: float
    max_loss: float
    confidence: float
    reference: str
    loss: float  # mean over the calibration questions
    limit: float  # upper confidence limit of the loss
    questions: int  # for calibration


def upper_limit(num_lost: int, num_questions: int, confidence: float) -> float:
    """One-sided upper limit of a share, exact (Clopper and Pearson 1934)."""
    if num_lost >= num_questions:
        return 1.0
    return float(beta.ppf(confidence, num_lost + 1, num_questions - num_lost))


def fewest_questions(max_loss: float, confidence: float) -> int:
    """Calibration questions below which nothing can be promised, even without any loss.

    (1 - max_loss)^n <= 1 - confidence.
    """
    return math.ceil(math.log(1 - confidence) / math.log(1 - max_loss) - 1e-9)


def questions_needed(loss: float, max_loss: float, confidence: float) -> int | None:
    """Calibration questions that would do if their mean loss were `loss`; None if none would."""
    if loss == 0:
        return fewest_questions(max_loss, confidence)

    def excess(num_questions: float) -> float:
        lost = loss * num_questions
        return float(beta.ppf(confidence, lost + 1, num_questions - lost)) - max_loss

    if loss >= max_loss or excess(MOST_QUESTIONS) > 0:
        return None
    return math.ceil(brentq(excess, 1.0, MOST_QUESTIONS))


@dataclass(frozen=True)
class Promise:
    """What is asked for: a mean loss of at most `max_loss` with this confidence."""

    max_loss: float
    confidence: float

    def check_size(self, num_questions: int) -> None:
        """Raises GuaranteeError where so few calibration questions can promise nothing."""
        fewest = fewest_questions(self.max_loss, self.confidence)
        if num_questions < fewest:
            raise GuaranteeError(
                f"terminator.max_loss = {self.max_loss:g} with confidence {self.confidence:g}:"
                f" {num_questions} calibration questions promise nothing; at least {fewest} are"
                " needed, and more where anything is lost"
            )


@functools.cache
def max_losses(num_questions: int, promise: Promise) -> int:
    """The most losses at which a test passes; -1 where not even none would do."""
    num_losses = -1
    while (
        num_losses < num_questions
        and upper_limit(num_losses + 1, num_questions, promise.confidence) <= promise.max_loss
    ):
        num_losses += 1
    return num_losses


def last_that_holds(num_lost: Sequence[int], num_questions: int, promise: Promise) -> int | None:
    """Index of the last threshold that passes, by fixed-sequence testing; None if the first fails.

    num_lost: losses under each threshold, from the most conservative to the cheapest.
    """
    allowed = max_losses(num_questions, promise)
    last = None
    for place, lost in enumerate(num_lost):
        if lost > allowed:
            break
        last = place
    return last


def candidate_thresholds(routes: Sequence[Route]) -> np.ndarray:
    """NEVER, then falling quantiles of the stop probabilities on routes that nobody ended.

    The routes are those of other questions than the calibration's.
    """
    p_stops = []
    for route in routes:
        p_stops += [step.p_stop for step in route.episode.steps]
    quantiles = np.quantile(np.array(p_stops), np.linspace(0, 1, NUM_THRESHOLDS))
    return np.append(NEVER, np.unique(quantiles)[::-1])


@dataclass(frozen=True)
class Outcomes:
    """What each threshold gives on N questions: loss and cost C (N, T)."""

    lost: np.ndarray
    cost: np.ndarray

    @classmethod
    def of(
        cls,
        routes: Sequence[Route],
        reference_is_right: Sequence[bool],
        thresholds: np.ndarray,
        p0: float,
        reward: RewardConfig,
    ) -> Outcomes:
        """From scored routes that nobody ended. reference_is_right: for each route."""
        lost = np.zeros((len(routes), len(thresholds)), dtype=bool)
        cost = np.zeros(lost.shape)
        for row, (route, is_right) in enumerate(zip(routes, reference_is_right, strict=True)):
            is_wrong, charged = _after_each_call(route, p0, reward)
            calls = [len(cut_at(route, float(t)).episode.steps) - 1 for t in thresholds]
            lost[row] = is_wrong[calls] & is_right
            cost[row] = charged[calls]
        return cls(lost, cost)


def _after_each_call(
    route: Route, p0: float, reward: RewardConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Whether the answer that would be submitted is wrong, and C of all calls so far (T,)."""
    is_wrong = []
    charged = []
    for num_calls, step in enumerate(route.episode.steps, start=1):
        quality = route.episode.submitted_after(num_calls).quality
        if quality is None:
            raise ValueError(f"question {route.episode.question.id} has not been scored")
        is_wrong.append(quality < p0)
        charged.append(charge(step.cost, reward))
    return np.array(is_wrong), np.cumsum(charged)


def guarantee(
    outcomes: Outcomes, thresholds: np.ndarray, promise: Promise, reference: str
) -> Guarantee:
    """The cheapest threshold that keeps the promise.

    Raises GuaranteeError, with the number of questions that would be needed, where none does.
    """
    num_questions = len(outcomes.lost)
    num_lost = outcomes.lost.sum(axis=0)
    place = last_that_holds(num_lost.tolist(), num_questions, promise)
    if place is None:
        raise GuaranteeError(_refusal(int(num_lost[0]), num_questions, promise, reference))
    return Guarantee(
        threshold=float(thresholds[place]),
        max_loss=promise.max_loss,
        confidence=promise.confidence,
        reference=reference,
        loss=float(num_lost[place]) / num_questions,
        limit=upper_limit(int(num_lost[place]), num_questions, promise.confidence),
        questions=num_questions,
    )


def _refusal(num_lost: int, num_questions: int, promise: Promise, reference: str) -> str:
    loss = num_lost / num_questions
    limit = upper_limit(num_lost, num_questions, promise.confidence)
    needed = questions_needed(loss, promise.max_loss, promise.confidence)
    said = (
        f"terminator.max_loss = {promise.max_loss:g} cannot be promised with confidence"
        f" {promise.confidence:g}: even routes that never stop early lose {num_lost} of"
        f" {num_questions} calibration questions against {reference}, at most {limit:.4f}"
    )
    if needed is None:
        return f"{said}; no number of questions would do at this loss: allow a higher max_loss"
    return f"{said}; at this loss, {needed} calibration questions would be needed"
