"""Plan or fixed order: cross-validation decides, for each weight of cost.

A plan fits some 50 numbers for each number of calls. Where that many cannot be learned, a fixed
order with a threshold does better on new questions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from belief.order import OrderTable, plan_of, tabulate_orders
from belief.planner import Plan, fit_plan, follow
from belief.state import Asked, Belief

NUM_FOLDS = 5


@dataclass(frozen=True)
class Planner:
    """Fits plans on N questions, and tells what they return on questions held out.

    Arrays as in `belief.planner.fit_plan`. Where the agent stops by itself (`can_stop`), the best
    fixed order takes a plan's place if it returns more on held-out folds: it stops by a threshold
    of its own. Where the Terminator stops, no order can.
    """

    beliefs: dict[Asked, Belief]
    before: np.ndarray
    good: np.ndarray
    costs: np.ndarray
    t_max: int
    seed: int
    can_stop: bool = True

    def fit(self, alpha: float) -> Plan:
        """A plan, or the order that takes its place."""
        plan = fit_plan(self.beliefs, self.before, self.good, self.costs, alpha, self.t_max)
        if not self.can_stop or self._of_orders(alpha) <= self._of_plans(alpha):
            return plan
        best = self._orders.orders[self._orders.best(alpha, np.arange(NUM_FOLDS))]
        return plan_of(best, self.costs, alpha, plan.sizes)

    def expected(self, alpha: float) -> float:
        """Summed return, on questions held out, of what `fit` chooses."""
        of_plans = self._of_plans(alpha)
        return max(of_plans, self._of_orders(alpha)) if self.can_stop else of_plans

    def returned(self, plan: Plan, alpha: float) -> float:
        """Summed return of a plan that was fitted elsewhere."""
        return self._returned(plan, alpha, np.ones(len(self.good), dtype=bool))

    @cached_property
    def _folds(self) -> np.ndarray:
        return np.random.default_rng(self.seed).permutation(len(self.good)) % NUM_FOLDS

    @cached_property
    def _orders(self) -> OrderTable:
        return tabulate_orders(self.beliefs, self.good, self.costs, self.t_max, self._folds)

    def _of_plans(self, alpha: float) -> float:
        """Summed return on each fold of the plan that is fitted on the other folds."""
        total = 0.0
        for fold in range(NUM_FOLDS):
            total += self._held_out(alpha, self._folds == fold)
        return total

    def _of_orders(self, alpha: float) -> float:
        """Summed return on each fold of the order that does best on the other folds."""
        total = 0.0
        for fold in range(NUM_FOLDS):
            others = np.delete(np.arange(NUM_FOLDS), fold)
            total += self._orders.returns(self._orders.best(alpha, others), alpha)[fold]
        return total

    def _held_out(self, alpha: float, is_held_out: np.ndarray) -> float:
        """Summed return on the questions held out (N,) of a plan fitted on the others."""
        rest = ~is_held_out
        fitted_on = {asked: belief.take(rest) for asked, belief in self.beliefs.items()}
        before, good = self.before[rest], self.good[rest]
        plan = fit_plan(fitted_on, before, good, self.costs, alpha, self.t_max)
        return self._returned(plan, alpha, is_held_out)

    def _returned(self, plan: Plan, alpha: float, rows: np.ndarray) -> float:
        """Summed return of a plan on some of the questions (N,)."""
        beliefs = {asked: belief.take(rows) for asked, belief in self.beliefs.items()}
        order, submitted = follow(plan, beliefs, self.before[rows], self.costs, alpha)
        quality = self.good[rows][np.arange(len(order)), submitted]
        spent = np.where(order >= 0, self.costs[order], 0.0).sum()
        return float(quality.sum() - alpha * spent)
