"""Cascade routing: after every answer, ask on while the expected gain exceeds the cost.

Whom to ask next is chosen anew after every answer, from the question and from what was answered
(Dekoninck et al., "A Unified Approach to Routing and Cascading for LLMs", 2024). The expected
quality of a set of experts is the mean of the highest estimate among their answers. What an answer
will look like is drawn around its estimate before the call, as training answers scattered around
theirs.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from belief.regression import sigmoid
from belief.state import Asked
from evaluation.answer_table import AnswerTable, Choices
from evaluation.estimates import Estimates, known_to

NUM_DRAWS = 25  # of what each answer may look like
PRICES = (0.25, 0.5, 1.0, 2.0, 4.0)  # of a unit of C, as multiples of alpha; the best is taken
SURE = 1e-4  # estimates are kept this far from 0 and 1, where log-odds are infinite


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
        before = _log_odds(estimates.before)
        order = np.full((len(table), self.t_max), -1)
        for num_asked in range(self.t_max):
            for asked, rows in _by_asked(order, num_asked):
                now = np.zeros(len(rows))
                if asked:
                    now = estimates.beliefs[asked].p[rows]
                order[rows, num_asked] = self._next(before[rows], asked, now)
        submitted = np.zeros(len(table), dtype=int)
        for num_asked in range(1, self.t_max + 1):
            for asked, rows in _by_asked(order, num_asked):
                submitted[rows] = estimates.beliefs[asked].submitted[rows]
        return Choices(order, submitted)

    def _next(self, before: np.ndarray, asked: Sequence[int], now: np.ndarray) -> np.ndarray:
        """The expert to ask (N,), or -1 to stop. now (N,): estimate of the answer at hand."""
        others = [k for k in range(before.shape[1]) if k not in asked]
        others.sort(key=lambda expert_idx: self.charges[expert_idx])
        looks = {}
        for expert_idx in others:
            looks[expert_idx] = sigmoid(before[:, [expert_idx]] + self.scatter[expert_idx])
        best_gain = np.zeros(len(before)) if asked else np.full(len(before), -np.inf)
        choice = np.full(len(before), -1)
        most = min(self.looks_ahead, self.t_max - len(asked))
        for size in range(1, most + 1):
            for members in itertools.combinations(others, size):
                highest = np.maximum(now[:, None], looks[members[0]])
                for expert_idx in members[1:]:
                    highest = np.maximum(highest, looks[expert_idx])
                gain = highest.mean(axis=1) - now
                gain -= self.price * self.charges[list(members)].sum()
                is_better = gain > best_gain + 1e-12
                best_gain[is_better] = gain[is_better]
                choice[is_better] = members[0]  # the cheapest of the set
        return choice

    def describe(self, names: Sequence[str]) -> str:
        return "a set" if self.looks_ahead > 1 else "one call ahead"


def _by_asked(order: np.ndarray, num_asked: int) -> list[tuple[Asked, np.ndarray]]:
    """Sets of `num_asked` experts and the questions (M,) on which exactly these were asked."""
    made = (order >= 0).sum(axis=1)
    rows = np.flatnonzero(made == num_asked)
    groups: dict[Asked, list[int]] = {}
    for row in rows:
        groups.setdefault(known_to(order[row, :num_asked].tolist()), []).append(int(row))
    return [(asked, np.array(members)) for asked, members in groups.items()]


def fit_cascade_routing(
    table: AnswerTable, estimates: Estimates, alpha: float, t_max: int, *, looks_ahead: int
) -> CascadeRouting:
    """With the price among PRICES x alpha that returns most on the table."""
    rng = np.random.default_rng(0)
    scattered = _log_odds(estimates.after) - _log_odds(estimates.before)
    levels = (np.arange(NUM_DRAWS) + 0.5) / NUM_DRAWS
    draws = []
    for expert_idx in range(table.num_experts):
        draws.append(rng.permutation(np.quantile(scattered[:, expert_idx], levels)))
    horizon = min(t_max, table.num_experts)
    rule = CascadeRouting(np.array(draws), table.charge.mean(axis=0), alpha, horizon, looks_ahead)
    rules, returns = [], []
    for multiple in PRICES:
        rules.append(replace(rule, price=alpha * multiple))
        returns.append(table.mean_return(rules[-1].choose(table.sealed(), estimates), alpha))
    return rules[int(np.argmax(returns))]


def _log_odds(p: np.ndarray) -> np.ndarray:
    kept = np.clip(p, SURE, 1.0 - SURE)
    return np.log(kept / (1.0 - kept))
