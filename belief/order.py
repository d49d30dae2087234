"""A fixed order of experts that stops at a threshold: the rule that a plan must beat.

Few numbers are chosen, so it holds on new questions where there is little to learn. It is written
as a `Plan`: the agent acts by it as by any other, and PPO can go on from it.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from belief.planner import NUM_SHARED, Order, Plan
from belief.state import Asked, Belief

NEVER = 2.0  # an estimate that no answer reaches
THRESHOLDS = (*(round(0.30 + 0.04 * step, 2) for step in range(18)), NEVER)
MAX_ORDERS = 5_000  # where a pool has more, the longest orders are left out
# Scores are as large as a plan's gains: PPO explores an order as much as a plan.
SLOPE = 0.05
OF_ESTIMATE = 1  # place of Belief.p among the inputs of an action


def plan_of(order: Order, costs: np.ndarray, alpha: float, sizes: np.ndarray) -> Plan:
    """The same decisions as weights (T, F) of a plan; costs (K,): C of a call.

    An agent takes alpha times its cost off an expert's gain. The weights put it back, so that the
    next expert in turn scores SLOPE (threshold - p) and every other one less than 0.
    """
    weights = np.zeros(sizes.shape)
    named = slice(NUM_SHARED, NUM_SHARED + len(costs))
    weights[1:, OF_ESTIMATE] = -SLOPE
    weights[:, named] = alpha * costs - SLOPE * NEVER
    for num_asked, expert_idx in enumerate(order.experts):
        score = SLOPE * order.threshold if num_asked else 0.0
        weights[num_asked, NUM_SHARED + expert_idx] = score + alpha * costs[expert_idx]
    return Plan(weights, sizes, order)


@dataclass(frozen=True)
class OrderTable:
    """What every order brings: sums of quality and of cost (M, folds) over a fold's questions."""

    orders: list[Order]
    quality: np.ndarray
    cost: np.ndarray

    def best(self, alpha: float, folds: np.ndarray) -> int:
        """The order of the highest return on these folds; of equals the shortest."""
        returns = self.quality[:, folds].sum(1) - alpha * self.cost[:, folds].sum(1)
        return int(np.round(returns, 9).argmax())

    def returns(self, place: int, alpha: float) -> np.ndarray:
        """Summed return (folds,) of one order."""
        return self.quality[place] - alpha * self.cost[place]


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
            orders.append(Order(experts, threshold))
            quality.append(rights[np.arange(len(good)), calls - 1] @ membership)
            cost.append(paid[calls - 1] @ membership)
    return OrderTable(orders, np.array(quality), np.array(cost))


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
