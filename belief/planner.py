"""Whom to ask next and when to stop, by fitted dynamic programming over beliefs.

The value of asking expert k on a route is the gain in quality that it brings, later calls
included, minus its cost. It is fitted backward from the last call by ridge regression on a few
inputs. Targets are half the estimate of the answer that would be submitted and half whether it was
right: estimates are less noisy, outcomes less biased.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from belief.regression import Ridge, sigmoid
from belief.state import Asked, Belief, asked_sets

PENALTY = 30.0  # of the ridge regressions, in rows
SOFTNESS = 0.5  # share of the estimates in the targets; the rest are outcomes
NUM_SHARED = 14  # inputs that do not name an expert


def action_inputs(belief: Belief | None, before: np.ndarray, expert_idx: int) -> np.ndarray:
    """Inputs (N, F) of asking one expert: NUM_SHARED of the state and its prior, then four blocks
    of K that name the expert and those asked before.

    belief is None before the first call. before: prior log-odds (N, K).
    """
    num_questions, num_experts = before.shape
    prior = sigmoid(before[:, expert_idx])
    ease = sigmoid(before).mean(1)
    ones = np.ones(num_questions)
    named = np.zeros((num_questions, num_experts))
    named[:, expert_idx] = 1.0
    asked = np.zeros((num_questions, num_experts))
    if belief is None:
        zeros = np.zeros(num_questions)
        shared = [ones, *[zeros] * 8, prior, zeros, zeros, ease, zeros]
        blocks = [named, named * (prior - 0.5)[:, None], asked, asked, asked]
        return np.column_stack([*shared, *blocks])
    asked[:, list(belief.asked)] = 0.5
    doubt = 1.0 - belief.p
    unsure = 4.0 * belief.p * doubt
    shared = [
        ones,
        belief.p,
        unsure,
        belief.second,
        belief.second * doubt,
        belief.size > 1,
        belief.size > 2,
        belief.distinct == 1,
        belief.distinct > 2,
        prior,
        prior * doubt,
        prior * unsure,
        ease,
        ease * doubt,
    ]
    blocks = [
        named,
        named * doubt[:, None],
        named * unsure[:, None],
        asked,
        asked * doubt[:, None],
    ]
    return np.column_stack([*shared, *blocks]).astype(np.float64)


def num_inputs(num_experts: int) -> int:
    return NUM_SHARED + 5 * num_experts


@dataclass(frozen=True)
class Plan:
    """Weights (T, F): entry t values a call after t answers, in quality beyond stopping, before
    its own cost. sizes (T, F): root mean square of the inputs that they were fitted on.
    """

    weights: np.ndarray
    sizes: np.ndarray

    def gains(self, belief: Belief | None, before: np.ndarray, expert_idx: int) -> np.ndarray:
        """Expected gain in quality (N,) of asking an expert, minus the cost of calls after it."""
        num_asked = 0 if belief is None else len(belief.asked)
        return action_inputs(belief, before, expert_idx) @ self.weights[num_asked]


@dataclass
class Value:
    """The value (N,) of following the plan from a state: by estimates, and by what was right."""

    estimated: np.ndarray
    actual: np.ndarray

    @property
    def target(self) -> np.ndarray:
        return SOFTNESS * self.estimated + (1 - SOFTNESS) * self.actual


def fit_plan(
    beliefs: dict[Asked, Belief],
    before: np.ndarray,
    good: np.ndarray,
    costs: np.ndarray,
    alpha: float,
    t_max: int,
) -> Plan:
    """Backward induction over all sets of asked experts.

    beliefs: of every set of one to t_max experts, over the N training questions. good (N, K):
    whether each answer is right. costs (K,): C of a call. A state's value is that of following the
    plan fitted so far, never the largest of its estimates, which would be too high.
    """
    num_questions, num_experts = before.shape
    sets = asked_sets(num_experts, t_max)
    last = len(sets) - 1
    weights = np.zeros((last, num_inputs(num_experts)))
    sizes = np.zeros_like(weights)
    stopped = {asked: stop_value(belief, good) for asked, belief in beliefs.items()}
    stopped[()] = Value(np.zeros(num_questions), np.zeros(num_questions))
    values = {asked: stopped[asked] for asked in sets[last]}
    for num_asked in range(last - 1, -1, -1):
        ridge = Ridge(num_inputs(num_experts))
        for asked in sets[num_asked]:
            belief = beliefs.get(asked)
            for expert_idx in set(range(num_experts)) - set(asked):
                after = values[_with(asked, expert_idx)]
                inputs = action_inputs(belief, before, expert_idx)
                ridge.add(inputs, after.target - stopped[asked].target)
        weights[num_asked] = ridge.solve(PENALTY * len(sets[num_asked]))
        sizes[num_asked] = ridge.root_mean_square
        plan = Plan(weights, sizes)
        for asked in sets[num_asked]:
            advantage = advantages(plan, beliefs.get(asked), before, costs, alpha)
            action = choose(advantage, num_asked)
            values[asked] = _follow(action, asked, stopped[asked], values, alpha * costs)
    return Plan(weights, sizes)


def stop_value(belief: Belief, good: np.ndarray) -> Value:
    """The value of submitting the best answer now."""
    rows = np.arange(len(good))
    return Value(belief.p, good[rows, belief.submitted].astype(np.float64))


def _with(asked: Asked, expert_idx: int) -> Asked:
    return tuple(sorted((*asked, expert_idx)))


def advantages(
    plan: Plan, belief: Belief | None, before: np.ndarray, costs: np.ndarray, alpha: float
) -> np.ndarray:
    """Value (N, K) of asking each expert beyond stopping; -inf for those asked before."""
    num_questions, num_experts = before.shape
    out = np.full((num_questions, num_experts), -np.inf)
    asked = () if belief is None else belief.asked
    for expert_idx in range(num_experts):
        if expert_idx not in asked:
            gain = plan.gains(belief, before, expert_idx)
            out[:, expert_idx] = gain - alpha * costs[expert_idx]
    return out


def choose(advantage: np.ndarray, num_asked: int) -> np.ndarray:
    """The expert to ask (N,), or -1 to stop, which the first call cannot."""
    best = advantage.argmax(1)
    if num_asked == 0:
        return best
    return np.where(advantage.max(1) > 0, best, -1)


def _follow(
    action: np.ndarray,
    asked: Asked,
    stopped: Value,
    values: dict[Asked, Value],
    charges: np.ndarray,
) -> Value:
    """The value of a state in which `action` (N,) is taken, -1 being to stop."""
    value = Value(stopped.estimated.copy(), stopped.actual.copy())
    for expert_idx in np.unique(action[action >= 0]):
        rows = action == expert_idx
        after = values[_with(asked, int(expert_idx))]
        value.estimated[rows] = after.estimated[rows] - charges[expert_idx]
        value.actual[rows] = after.actual[rows] - charges[expert_idx]
    return value
