"""Plan or fixed order: cross-validation decides, for each weight of cost.

A plan fits some 50 numbers for each number of calls. Where that many cannot be learned, a fixed
order with a threshold does better on new questions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from belief.order import OrderTable, plan_of, tabulate_orders
from belief.planner import Plan, fit_plan, follow
from belief.state import Asked, Belief

NUM_FOLDS = 5


def fit_guarded_plans(
    beliefs: dict[Asked, Belief],
    before: np.ndarray,
    good: np.ndarray,
    costs: np.ndarray,
    alphas: Sequence[float],
    t_max: int,
    seed: int,
) -> list[Plan]:
    """For each alpha the plan, or the best fixed order where that returns more on held-out folds.

    Arrays as in `belief.planner.fit_plan`.
    """
    folds = np.random.default_rng(seed).permutation(len(good)) % NUM_FOLDS
    orders = tabulate_orders(beliefs, good, costs, t_max, folds)
    plans = []
    for alpha in alphas:
        plan = fit_plan(beliefs, before, good, costs, alpha, t_max)
        of_plan = 0.0
        for fold in range(NUM_FOLDS):
            of_plan += _held_out_return(beliefs, before, good, costs, alpha, t_max, folds == fold)
        if _return_of_orders(orders, alpha) > of_plan:
            best = orders.orders[orders.best(alpha, np.arange(NUM_FOLDS))]
            plan = plan_of(best, costs, alpha, plan.sizes)
        plans.append(plan)
    return plans


def _held_out_return(
    beliefs: dict[Asked, Belief],
    before: np.ndarray,
    good: np.ndarray,
    costs: np.ndarray,
    alpha: float,
    t_max: int,
    is_held_out: np.ndarray,
) -> float:
    """Summed return on the questions held out (N,) of a plan fitted on the others."""
    fitted_on = {asked: belief.take(~is_held_out) for asked, belief in beliefs.items()}
    plan = fit_plan(fitted_on, before[~is_held_out], good[~is_held_out], costs, alpha, t_max)
    new = {asked: belief.take(is_held_out) for asked, belief in beliefs.items()}
    order, submitted = follow(plan, new, before[is_held_out], costs, alpha)
    quality = good[is_held_out][np.arange(len(order)), submitted]
    spent = np.where(order >= 0, costs[order], 0.0).sum()
    return float(quality.sum() - alpha * spent)


def _return_of_orders(table: OrderTable, alpha: float) -> float:
    """Summed return on each fold of the order that does best on the other folds."""
    total = 0.0
    for fold in range(NUM_FOLDS):
        others = np.delete(np.arange(NUM_FOLDS), fold)
        total += table.returns(table.best(alpha, others), alpha)[fold]
    return total
