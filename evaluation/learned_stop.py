"""A fixed order of experts that goes on while going on is expected to pay; `belief/stopping.py`
tells how that is fitted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from belief.order import NUM_SCREENED
from belief.stopping import fit_stops, stop_inputs
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
    """The rule's mean return on the table is taken with the same worth as it is fitted on."""
    inputs = []
    worth = []
    for num_calls in range(1, len(order) + 1):
        begun = order[:num_calls]
        inputs.append(stop_inputs(estimates.beliefs[known_to(begun)]))
        worth.append(_worth(table, estimates, begun))
    stops = fit_stops(inputs, worth, table.charge[:, list(order)], alpha)
    rule = LearnedStop(order, stops.gains, table.charge.mean(axis=0), alpha)
    return Fitted(rule, float(stops.returns.mean()))


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
