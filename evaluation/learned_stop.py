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
from evaluation.cascades import Fitted, Order, best_of, rank_threshold_cascades, read_all
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
        num_calls = np.full(len(table), len(self.order))
        is_open = np.ones(len(table), dtype=bool)
        submitted = read_all(estimates, self.order).submitted.copy()
        for place, weights in enumerate(self.weights, start=1):
            belief = estimates.beliefs[known_to(self.order[:place])]
            price = self.alpha * self.charges[self.order[place]]
            stops = is_open & (stop_inputs(belief) @ weights <= price)
            num_calls[stops] = place
            submitted[stops] = belief.submitted[stops]
            is_open &= ~stops
        return Choices.of_order(self.order, num_calls, submitted)

    def describe(self, names: Sequence[str]) -> str:
        return " > ".join(names[expert_idx] for expert_idx in self.order)


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
    """The best order with a stop fitted by backward induction, of those that one threshold serves
    best.
    """
    screened = rank_threshold_cascades(table, estimates, alpha, t_max, reader=read_all)
    orders = [one.rule.order for one in screened[:NUM_SCREENED]]
    fitted = [_fit_stop(table, estimates, alpha, order) for order in orders]
    returns = [one.mean_return for one in fitted]
    return fitted[best_of(orders, returns)].rule


def _fit_stop(
    table: AnswerTable, estimates: Estimates, alpha: float, order: Order
) -> Fitted[LearnedStop]:
    """Backward over the calls: regress what going on really brings, under the stops fitted so far.

    The rule's mean return on the table is taken with the same worth as the targets.
    """
    rows, charges = np.arange(len(table)), table.charge.mean(axis=0)
    value = _worth(table, estimates, order)
    weights: list[np.ndarray] = []
    for place in range(len(order) - 1, 0, -1):
        belief = estimates.beliefs[known_to(order[:place])]
        now = _worth(table, estimates, order[:place])
        inputs = stop_inputs(belief)
        ridge = Ridge(inputs.shape[1])
        ridge.add(inputs, value - now)
        weights.insert(0, ridge.solve(STOP_PENALTY))
        price = alpha * charges[order[place]]
        goes_on = inputs @ weights[0] > price
        paid = value - alpha * table.charge[rows, order[place]]
        value = np.where(goes_on, paid, now)
    rule = LearnedStop(order, tuple(weights), charges, alpha)
    return Fitted(rule, float(np.mean(value - alpha * table.charge[:, order[0]])))


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
