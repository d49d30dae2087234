"""A fixed order of experts that goes on while going on is expected to pay.

The gain of going on is fitted by backward induction, from the last call to the first, by ridge
regression on six inputs: too few to be fooled by (Longstaff and Schwartz 2001 price options so).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from belief.regression import Ridge
from belief.state import Belief
from evaluation.answer_table import AnswerTable, Choices
from evaluation.cascades import (
    Fitted,
    Order,
    Walk,
    first_best,
    path_of,
    rank_threshold_cascades,
    read_all,
)
from evaluation.estimates import Estimates, known_to

NUM_SCREENED = 100  # orders that a stop is fitted for, the best by a single threshold
STOP_PENALTY = 5.0  # of the ridge regressions, in rows


@dataclass(frozen=True)
class LearnedStop:
    """Ask in order while the expected gain in quality exceeds the cost of the next call.

    weights: entry t, by `stop_inputs`, of the gain of going on after t + 1 calls, the cost of calls
    after the next one taken off. charges (K,): mean C of a call. The answer estimated best counts.
    """

    order: Order
    weights: tuple[np.ndarray, ...]
    charges: np.ndarray
    alpha: float

    def choose(self, table: AnswerTable, estimates: Estimates) -> Choices:
        walk = Walk(self.order, len(table))
        for num_calls, weights in enumerate(self.weights, start=1):
            belief = estimates.beliefs[known_to(self.order[:num_calls])]
            gain = stop_inputs(belief) @ weights
            price = self.alpha * self.charges[self.order[num_calls]]
            walk.stop(gain <= price, num_calls, belief.submitted)
        return walk.choices(read_all(estimates, self.order).submitted)

    def describe(self, names: Sequence[str]) -> str:
        return path_of(self.order, names)


def stop_inputs(belief: Belief) -> np.ndarray:
    """Inputs (N, 6) of the gain of going on: 1, the estimate of the answer to submit, how unsure it
    is, the next best candidate's, whether two agree on it, whether three or more answers differ.
    """
    ones = np.ones(len(belief.p))
    unsure = 4.0 * belief.p * (1.0 - belief.p)
    columns = [ones, belief.p, unsure, belief.second, belief.size > 1, belief.distinct > 2]
    return np.column_stack(columns).astype(np.float64)


def fit_learned_stop(
    table: AnswerTable, estimates: Estimates, alpha: float, t_max: int
) -> LearnedStop:
    """The best order with a stop that is fitted by backward induction.

    It is one of the NUM_SCREENED orders that do best with a single threshold.
    """
    screened = rank_threshold_cascades(table, estimates, alpha, t_max, reader=read_all)
    rules = []
    returns = []
    for one in screened[:NUM_SCREENED]:
        fitted = _fit_stop(table, estimates, alpha, one.rule.order)
        rules.append(fitted.rule)
        returns.append(fitted.mean_return)
    return rules[first_best(returns)]


def _fit_stop(
    table: AnswerTable, estimates: Estimates, alpha: float, order: Order
) -> Fitted[LearnedStop]:
    """Backward over the calls: regress what going on really brings, under the stops fitted so far.

    The rule's mean return on the table is taken with the same worth as the targets.
    """
    charges = table.charge.mean(axis=0)
    value = _worth(table, estimates, order)
    weights: list[np.ndarray] = []
    for num_calls in range(len(order) - 1, 0, -1):
        expert_idx = order[num_calls]
        begun = order[:num_calls]
        inputs = stop_inputs(estimates.beliefs[known_to(begun)])
        now = _worth(table, estimates, begun)
        ridge = Ridge(inputs.shape[1])
        ridge.add(inputs, value - now)
        weights.insert(0, ridge.solve(STOP_PENALTY))
        goes_on = inputs @ weights[0] > alpha * charges[expert_idx]
        going_on = value - alpha * table.charge[:, expert_idx]
        value = np.where(goes_on, going_on, now)
    returns = value - alpha * table.charge[:, order[0]]
    rule = LearnedStop(order, tuple(weights), charges, alpha)
    return Fitted(rule, float(returns.mean()))


def _worth(table: AnswerTable, estimates: Estimates, order: Order) -> np.ndarray:
    """Worth (N,) of the answer that counts after these calls: its quality.

    Where answers are right or wrong, half of it is the estimate: the mean is the same, the noise
    less.
    """
    belief = estimates.beliefs[known_to(order)]
    quality = table.quality[np.arange(len(table)), belief.submitted]
    if not np.isin(quality, (0.0, 1.0)).all():
        return quality
    return 0.5 * quality + 0.5 * belief.p
