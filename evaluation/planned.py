"""The plan of fitted dynamic programming, on the evaluation's own estimates.

It is fitted on the outcome of every action in every state of the known questions: what a policy
over this belief can learn from full information. The agent's PPO starts from such a plan, so their
difference is what PPO has changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from belief.guard import Planner
from belief.planner import Plan, follow
from evaluation.answer_table import AnswerTable, Choices
from evaluation.estimates import Estimates


@dataclass(frozen=True)
class Planned:
    """Follow a plan. charges (K,): mean C of a call."""

    plan: Plan
    charges: np.ndarray
    alpha: float

    def choose(self, table: AnswerTable, estimates: Estimates) -> Choices:
        before = estimates.log_odds_before
        return Choices(*follow(self.plan, estimates.beliefs, before, self.charges, self.alpha))

    def describe(self, names: Sequence[str]) -> str:
        """Whether a fixed order stands for the plan."""
        if self.plan.order is None:
            return "by states"
        return " > ".join(names[expert_idx] for expert_idx in self.plan.order.experts)


def fit_planned(
    table: AnswerTable, estimates: Estimates, alpha: float, t_max: int, p0: float, seed: int
) -> Planned:
    """As the agent's own plan is fitted (`belief.guard.Planner`)."""
    charges = table.charge.mean(axis=0)
    good = table.quality >= p0
    horizon = min(t_max, table.num_experts)
    before = estimates.log_odds_before
    plan = Planner(estimates.beliefs, before, good, charges, horizon, seed).fit(alpha)
    return Planned(plan, charges, alpha)
