"""Fixed orders of experts that stop by an estimate: the rules that a plan must beat.

Few numbers are chosen, so they hold on new questions where there is little to learn. An order is
written as a `Plan`: the agent acts by it as by any other, and PPO can go on from it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from belief.planner import NUM_SHARED, Order, Plan, num_inputs, stop_value
from belief.state import Asked, Belief
from belief.stopping import Stops, fit_stops, stop_inputs

NEVER = 2.0  # an estimate that no answer reaches
THRESHOLDS = (*(round(0.30 + 0.04 * step, 2) for step in range(18)), NEVER)
MAX_ORDERS = 5_000  # where a pool has more, the longest orders are left out
NUM_SCREENED = 100  # orders that stops are learned for, the best by a single threshold
# Scores are as large as a plan's gains: PPO explores an order as much as a plan.
SLOPE = 0.05
OUT_OF_TURN = 0.1  # by which an expert scores less than the one whose turn it is
OF_STOP = (0, 1, 2, 3, 5, 8)  # places of `stop_inputs` among the inputs of an action


def plan_of(
    order: Order, gains: Sequence[np.ndarray], costs: np.ndarray, alpha: float, t_max: int
) -> Plan:
    """The same decisions as weights (T, F) of a plan, sizes left at one; costs (K,): C of a call.

    gains: entry t, by `stop_inputs`, is the gain of going on after t + 1 calls. An agent takes
    alpha times its cost off an expert's gain, so the weights of those out of turn put it back.
    """
    weights = np.zeros((t_max, num_inputs(len(costs))))
    named = slice(NUM_SHARED, NUM_SHARED + len(costs))
    weights[:, named] = alpha * costs - OUT_OF_TURN
    for num_asked, expert_idx in enumerate(order.experts):
        price = alpha * costs[expert_idx]
        weights[num_asked, NUM_SHARED + expert_idx] = price
        if num_asked:
            weights[num_asked, named] -= price
            weights[num_asked, OF_STOP] = gains[num_asked - 1]
    return Plan(weights, np.ones_like(weights), order)


def threshold_gains(
    experts: Sequence[int], threshold: float, costs: np.ndarray, alpha: float
) -> list[np.ndarray]:
    """Gains that exceed the cost of the next call where the estimate is below the threshold."""
    gains = []
    for expert_idx in experts[1:]:
        at_zero = SLOPE * threshold + alpha * costs[expert_idx]
        gains.append(np.array([at_zero, -SLOPE, 0.0, 0.0, 0.0, 0.0]))
    return gains


@dataclass(frozen=True)
class OrderTable:
    """What every order brings: sums of quality and of cost (M, folds) over a fold's questions.

    orders: the experts of each and its threshold.
    """

    orders: list[tuple[tuple[int, ...], float]]
    quality: np.ndarray
    cost: np.ndarray

    def best(self, alpha: float, folds: np.ndarray) -> int:
        """The order of the highest return on these folds; of equals the shortest."""
        return int(self._summed(alpha, folds).argmax())

    def screened(self, alpha: float, folds: np.ndarray) -> list[tuple[int, ...]]:
        """The experts of the NUM_SCREENED best orders, each once."""
        ranked = np.argsort(-self._summed(alpha, folds), kind="stable")
        found = dict.fromkeys(self.orders[place][0] for place in ranked)
        return list(found)[:NUM_SCREENED]

    def _summed(self, alpha: float, folds: np.ndarray) -> np.ndarray:
        returns = self.quality[:, folds].sum(1) - alpha * self.cost[:, folds].sum(1)
        return np.round(returns, 9)


def tabulate_orders(
    beliefs: dict[Asked, Belief],
    good: np.ndarray,
    costs: np.ndarray,
    t_max: int,
    folds: np.ndarray,
) -> OrderTable:
    """Play every order with every threshold on all questions.

    beliefs: of every set of one to t_max experts over N questions. good (N, K): which answers are
    right. costs (K,). folds (N,): the fold of each question, from 0.
    """
    membership = np.zeros((len(good), folds.max() + 1))
    membership[np.arange(len(good)), folds] = 1.0
    orders = []
    quality = []
    cost = []
    for experts in all_orders(len(costs), t_max):
        estimates, rights = _along(experts, beliefs, good)
        for threshold in THRESHOLDS[-1:] if len(experts) == 1 else THRESHOLDS:
            calls = _num_calls(estimates, threshold)
            paid = np.cumsum(costs[list(experts)])
            orders.append((experts, threshold))
            quality.append(rights[np.arange(len(good)), calls - 1] @ membership)
            cost.append(paid[calls - 1] @ membership)
    return OrderTable(orders, np.array(quality), np.array(cost))


@dataclass(frozen=True)
class StopLearner:
    """Learns when to stop on the way through an order; arrays as in `tabulate_orders`."""

    beliefs: dict[Asked, Belief]
    good: np.ndarray
    costs: np.ndarray

    def best(
        self, candidates: Sequence[tuple[int, ...]], rows: np.ndarray, alpha: float
    ) -> tuple[Order, Stops]:
        """Of some orders, the one that returns most on the questions `rows` (N,) is learned on."""
        learned = [self._learn(experts, rows, alpha) for experts in candidates]
        returns = [stops.returns.mean() for stops in learned]
        best = int(np.round(returns, 9).argmax())
        return Order(candidates[best], None), learned[best]

    def _learn(self, experts: tuple[int, ...], rows: np.ndarray, alpha: float) -> Stops:
        inputs = []
        worth = []
        for length in range(1, len(experts) + 1):
            known = tuple(sorted(experts[:length]))
            inputs.append(self._inputs[known][rows])
            worth.append(self._worth[known][rows])
        charges = np.broadcast_to(self.costs[list(experts)], (len(worth[0]), len(experts)))
        return fit_stops(inputs, worth, charges, alpha)

    @cached_property
    def _inputs(self) -> dict[Asked, np.ndarray]:
        return {asked: stop_inputs(belief) for asked, belief in self.beliefs.items()}

    @cached_property
    def _worth(self) -> dict[Asked, np.ndarray]:
        worth = {}
        for asked, belief in self.beliefs.items():
            worth[asked] = stop_value(belief, self.good).target
        return worth


def all_orders(num_experts: int, t_max: int) -> list[tuple[int, ...]]:
    """Every order of up to t_max different experts, the shortest first, MAX_ORDERS at most."""
    orders: list[tuple[int, ...]] = []
    for length in range(1, min(t_max, num_experts) + 1):
        longer = list(itertools.permutations(range(num_experts), length))
        if len(orders) + len(longer) > MAX_ORDERS and orders:
            break
        orders.extend(longer)
    return orders


def _along(
    experts: tuple[int, ...], beliefs: dict[Asked, Belief], good: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """After each call of an order (N, L): the estimate, and whether the best answer is right."""
    rows = np.arange(len(good))
    estimates = []
    rights = []
    for length in range(1, len(experts) + 1):
        belief = beliefs[tuple(sorted(experts[:length]))]
        estimates.append(belief.p)
        rights.append(good[rows, belief.submitted].astype(np.float64))
    return np.column_stack(estimates), np.column_stack(rights)


def _num_calls(estimates: np.ndarray, threshold: float) -> np.ndarray:
    """Calls made (N,) until an estimate (N, L) reaches the threshold, L at most."""
    reaches = estimates >= threshold
    reaches[:, -1] = True
    return reaches.argmax(1) + 1
