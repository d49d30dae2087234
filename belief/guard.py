"""Plan or fixed order: cross-validation decides, for each weight of cost.

A plan fits some 50 numbers for each number of calls. Where that many cannot be learned, a fixed
order does better on new questions. It stops by one threshold, or by six numbers for each call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from belief.order import OrderTable, StopLearner, plan_of, tabulate_orders, threshold_gains
from belief.planner import Order, Plan, fit_plan, follow
from belief.state import Asked, Belief

NUM_FOLDS = 5
ALL_FOLDS = np.arange(NUM_FOLDS)


@dataclass(frozen=True)
class Planner:
    """Fits plans on N questions, and tells what they return on questions held out.

    Arrays as in `belief.planner.fit_plan`. Where the agent stops by itself (`can_stop`), the best
    fixed order takes a plan's place if it returns more on held-out folds: it stops by a threshold
    of its own, or by what it learned. Where the Terminator stops, no order can.
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
        if len(self._ways) == 1:
            return self._plan(ALL_FOLDS, alpha)
        return self.choose(alpha)[0]

    def choose(self, alpha: float) -> tuple[Plan, float]:
        """What `fit` gives, and its summed return on questions held out."""
        plan = self._plan(ALL_FOLDS, alpha)
        returned = self._held_out(alpha)
        best = int(np.argmax(returned))
        if best > 0:
            plan = replace(self._ways[best](ALL_FOLDS, alpha), sizes=plan.sizes)
        return plan, returned[best]

    def returned(self, plan: Plan, alpha: float) -> float:
        """Summed return of a plan that was fitted elsewhere."""
        return self._returned(plan, alpha, np.ones(len(self.good), dtype=bool))

    def _held_out(self, alpha: float) -> list[float]:
        """For each way, the summed return on every fold of what is fitted on the other folds."""
        sums = []
        for way in self._ways:
            total = 0.0
            for fold in ALL_FOLDS:
                plan = way(np.delete(ALL_FOLDS, fold), alpha)
                total += self._returned(plan, alpha, self._folds == fold)
            sums.append(round(total, 6))  # of equals the first: rounding errors decide nothing
        return sums

    @property
    def _ways(self) -> list[Callable[[np.ndarray, float], Plan]]:
        """What fits a plan on some folds (M,) for a weight of cost; no orders where a fold would be
        empty.
        """
        if not self.can_stop or len(self.good) < NUM_FOLDS:
            return [self._plan]
        return [self._plan, self._order, self._learned_order]

    def _plan(self, folds: np.ndarray, alpha: float) -> Plan:
        rows = np.isin(self._folds, folds)
        fitted_on = {asked: belief.take(rows) for asked, belief in self.beliefs.items()}
        before, good = self.before[rows], self.good[rows]
        return fit_plan(fitted_on, before, good, self.costs, alpha, self.t_max)

    def _order(self, folds: np.ndarray, alpha: float) -> Plan:
        experts, threshold = self._orders.orders[self._orders.best(alpha, folds)]
        gains = threshold_gains(experts, threshold, self.costs, alpha)
        return plan_of(Order(experts, threshold), gains, self.costs, alpha, self._horizon)

    def _learned_order(self, folds: np.ndarray, alpha: float) -> Plan:
        rows = np.isin(self._folds, folds)
        candidates = self._orders.screened(alpha, folds)
        order, stops = self._learner.best(candidates, rows, alpha)
        return plan_of(order, stops.gains, self.costs, alpha, self._horizon)

    @property
    def _horizon(self) -> int:
        return min(self.t_max, len(self.costs))

    @cached_property
    def _folds(self) -> np.ndarray:
        return np.random.default_rng(self.seed).permutation(len(self.good)) % NUM_FOLDS

    @cached_property
    def _orders(self) -> OrderTable:
        return tabulate_orders(self.beliefs, self.good, self.costs, self.t_max, self._folds)

    @cached_property
    def _learner(self) -> StopLearner:
        return StopLearner(self.beliefs, self.good, self.costs)

    def _returned(self, plan: Plan, alpha: float, rows: np.ndarray) -> float:
        """Summed return of a plan on some of the questions (N,)."""
        beliefs = {asked: belief.take(rows) for asked, belief in self.beliefs.items()}
        order, submitted = follow(plan, beliefs, self.before[rows], self.costs, alpha)
        quality = self.good[rows][np.arange(len(order)), submitted]
        spent = np.where(order >= 0, self.costs[order], 0.0).sum()
        return float(quality.sum() - alpha * spent)
