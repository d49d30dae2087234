"""When to stop on the way through a fixed order of experts, learned from what going on brings.

The gain of going on is fitted by backward induction, from the last call to the first, by ridge
regression on six inputs: too few to be fooled by (Longstaff and Schwartz 2001 price options so).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from belief.regression import Ridge
from belief.state import Belief

STOP_PENALTY = 5.0  # of the ridge regressions, in rows


@dataclass(frozen=True)
class Stops:
    """gains: entry t, by `stop_inputs`, is the gain in quality of going on after t + 1 calls; the
    cost of calls after the next one is taken off. returns (N,): what the order then returns.
    """

    gains: tuple[np.ndarray, ...]
    returns: np.ndarray


def stop_inputs(belief: Belief) -> np.ndarray:
    """Inputs (N, 6) of the gain of going on: 1, the estimate of the answer to submit, how unsure it
    is, the next best candidate's, whether two agree on it, whether three or more answers differ.
    """
    ones = np.ones(len(belief.p))
    unsure = 4.0 * belief.p * (1.0 - belief.p)
    columns = [ones, belief.p, unsure, belief.second, belief.size > 1, belief.distinct > 2]
    return np.column_stack(columns).astype(np.float64)


def fit_stops(
    inputs: Sequence[np.ndarray], worth: Sequence[np.ndarray], charges: np.ndarray, alpha: float
) -> Stops:
    """Regress what going on really brings, under the stops fitted so far, on the inputs.

    inputs: entry t (N, 6) after t + 1 calls. worth: entry t (N,) is the worth of the answer that
    would then be submitted. charges (N, L): C of each call of the order.
    """
    value = worth[-1]
    gains: list[np.ndarray] = []
    for place in range(charges.shape[1] - 1, 0, -1):
        known = inputs[place - 1]
        now = worth[place - 1]
        ridge = Ridge(known.shape[1])
        ridge.add(known, value - now)
        gains.insert(0, ridge.solve(STOP_PENALTY))
        goes_on = known @ gains[0] > alpha * charges[:, place].mean()
        value = np.where(goes_on, value - alpha * charges[:, place], now)
    return Stops(tuple(gains), value - alpha * charges[:, 0])
