"""Cascade routing: after every answer, ask on while the expected gain exceeds the cost.

Which expert is asked next is chosen again after every answer, from the question and the answers so
far (Dekoninck et al., "A Unified Approach to Routing and Cascading for LLMs", 2024). The expected
quality of a set of experts is the mean of the highest estimate among their answers. What an answer
will look like is drawn around its estimate before the call, as training answers scattered around
theirs.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from belief.regression import sigmoid
from belief.state import by_asked
from evaluation.answer_table import AnswerTable, Choices
from evaluation.estimates import Estimates, log_odds

NUM_DRAWS = 25  # of what each answer may look like
PRICES = (0.25, 0.5, 1.0, 2.0, 4.0)  # of a unit of C, as multiples of alpha; the best is taken
TIE = 1e-12  # of two sets with the same gain the smaller, cheaper one is asked


@dataclass(frozen=True)
class CascadeRouting:
    """Asks for the set of further experts with the highest expected gain minus price, its cheapest
    first; stops where that set is empty. The answer estimated best counts.

    scatter (K, D): log-odds after the call minus before it. charges (K,): mean C of a call.
    price: of a unit of C. looks_ahead: the most experts of a set.
    """

    scatter: np.ndarray
    charges: np.ndarray
    price: float
    t_max: int
    looks_ahead: int

    def choose(self, table: AnswerTable, estimates: Estimates) -> Choices:
        before = estimates.log_odds_before
        order = np.full((len(table), self.t_max), -1)
        for num_asked in range(self.t_max):
            for asked, rows in by_asked(order, num_asked):
                now = np.zeros(len(rows))
                if asked:
                    now = estimates.beliefs[asked].p[rows]
                order[rows, num_asked] = self._next(before[rows], asked, now)
        submitted = np.zeros(len(table), dtype=int)
        for num_asked in range(1, self.t_max + 1):
            for asked, rows in by_asked(order, num_asked):
                submitted[rows] = estimates.beliefs[asked].submitted[rows]
        return Choices(order, submitted)

    def _next(self, before: np.ndarray, asked: Sequence[int], now: np.ndarray) -> np.ndarray:
        """The expert to ask (N,), or -1 to stop. now (N,): estimate of the answer at hand."""
        drawn = sigmoid(before[:, :, None] + self.scatter)  # (N, K, D): what answers may look like
        must_ask = not asked
        best_gain = np.full(len(before), -np.inf if must_ask else 0.0)
        choice = np.full(len(before), -1)
        for members in self._sets_beside(asked):
            highest = np.maximum(drawn[:, members].max(axis=1), now[:, None])
            gain = highest.mean(axis=1) - now - self.price * self.charges[members].sum()
            is_better = gain > best_gain + TIE
            best_gain[is_better] = gain[is_better]
            choice[is_better] = members[0]  # the cheapest of the set
        return choice

    def _sets_beside(self, asked: Sequence[int]) -> Iterator[list[int]]:
        """Sets of experts not asked yet, the cheapest of each first; small sets first."""
        others = [k for k in np.argsort(self.charges, kind="stable").tolist() if k not in asked]
        max_size = min(self.looks_ahead, self.t_max - len(asked))
        for size in range(1, max_size + 1):
            for members in itertools.combinations(others, size):
                yield list(members)

    def describe(self, names: Sequence[str]) -> str:
        return "a set" if self.looks_ahead > 1 else "one call ahead"


def fit_cascade_routing(
    table: AnswerTable, estimates: Estimates, alpha: float, t_max: int, *, looks_ahead: int
) -> CascadeRouting:
    """With the price among PRICES x alpha that returns most on the table."""
    scatter = draw_scatter(estimates)
    charges = table.charge.mean(axis=0)
    horizon = min(t_max, table.num_experts)
    rules = []
    returns = []
    for multiple in PRICES:
        rule = CascadeRouting(scatter, charges, alpha * multiple, horizon, looks_ahead)
        choices = rule.choose(table.sealed(), estimates)
        rules.append(rule)
        returns.append(table.mean_return(choices, alpha))
    return rules[int(np.argmax(returns))]


def draw_scatter(estimates: Estimates) -> np.ndarray:
    """Quantiles (K, D) of log-odds after the call minus before it, each expert's in an order of its
    own, so that experts look good independently.
    """
    rng = np.random.default_rng(0)
    levels = (np.arange(NUM_DRAWS) + 0.5) / NUM_DRAWS
    moved = log_odds(estimates.after) - estimates.log_odds_before
    draws = []
    for column in moved.T:
        draws.append(rng.permutation(np.quantile(column, levels)))
    return np.array(draws)
