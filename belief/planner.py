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
from belief.state import Asked, Belief, asked_sets, by_asked

PENALTY = 30.0  # of the ridge regressions, in rows
SOFTNESS = 0.5  # share of the estimates in the targets; the rest are outcomes
NUM_SHARED = 14  # inputs that do not name an expert
NUM_STATE_INPUTS = 5  # of the value head, for each number of calls made


def action_inputs(belief: Belief | None, before: np.ndarray, expert_idx: int) -> np.ndarray:
    """Inputs (N, F) of asking one expert.

    The first NUM_SHARED describe the state and the expert's prior. Five blocks of K follow, which
    name the expert and those asked before. belief is None before the first call. before: prior
    log-odds (N, K).
    """
    num_questions, num_experts = before.shape
    prior = sigmoid(before[:, expert_idx])
    ease = sigmoid(before).mean(1)
    named = np.zeros((num_questions, num_experts))
    named[:, expert_idx] = 1.0
    asked = np.zeros((num_questions, num_experts))
    shared = _shared_inputs(belief, prior, ease)
    if belief is None:
        blocks = [named, named * (prior - 0.5)[:, None], asked, asked, asked]
        return np.column_stack([*shared, *blocks])
    asked[:, list(belief.asked)] = 0.5
    doubt = (1.0 - belief.p)[:, None]
    unsure = 4.0 * belief.p[:, None] * doubt
    blocks = [named, named * doubt, named * unsure, asked, asked * doubt]
    return np.column_stack([*shared, *blocks]).astype(np.float64)


def _shared_inputs(belief: Belief | None, prior: np.ndarray, ease: np.ndarray) -> list[np.ndarray]:
    """The NUM_SHARED inputs (N,) that do not name an expert.

    prior (N,): of the expert that might be asked. ease (N,): mean prior of all experts.
    """
    ones = np.ones(len(prior))
    if belief is None:
        zeros = np.zeros(len(prior))
        return [ones, *[zeros] * 8, prior, zeros, zeros, ease, zeros]
    doubt = 1.0 - belief.p
    unsure = 4.0 * belief.p * doubt
    return [
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


def num_inputs(num_experts: int) -> int:
    return NUM_SHARED + 5 * num_experts


def value_inputs(belief: Belief | None, before: np.ndarray, alphas: np.ndarray) -> np.ndarray:
    """Inputs (N, NUM_STATE_INPUTS) of the value of a state; alpha (N,) is the last."""
    ease = sigmoid(before).mean(1)
    ones = np.ones(len(before))
    if belief is None:
        return np.column_stack([ones, ease, ones * 0, ones * 0, alphas])
    return np.column_stack([ones, ease, belief.p, belief.p * (1 - belief.p), alphas])


@dataclass(frozen=True)
class Order:
    """Ask the experts in turn until the estimate of the best answer reaches the threshold. None:
    until going on is not expected to pay, as fitted for each call.
    """

    experts: tuple[int, ...]
    threshold: float | None


@dataclass(frozen=True)
class Plan:
    """Weights (T, F): entry t values a call after t answers, in quality beyond stopping, before
    its own cost. sizes (T, F): root mean square of the inputs that they were fitted on. order: the
    fixed order that the weights stand for, if they do.
    """

    weights: np.ndarray
    sizes: np.ndarray
    order: Order | None = None

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
    width = num_inputs(before.shape[1])
    sets = asked_sets(before.shape[1], t_max)
    weights = np.zeros((len(sets) - 1, width))
    sizes = np.zeros_like(weights)
    plan = Plan(weights, sizes)  # sees what the loop below fills in
    stopped = _stop_values(beliefs, good)
    values = {asked: stopped[asked] for asked in sets[-1]}
    for num_asked in reversed(range(len(weights))):
        ridge = Ridge(width)
        for asked in sets[num_asked]:
            _add_calls(ridge, asked, beliefs.get(asked), before, stopped[asked], values)
        weights[num_asked] = ridge.solve(PENALTY * len(sets[num_asked]))
        sizes[num_asked] = ridge.root_mean_square
        for asked in sets[num_asked]:
            action = choose(advantages(plan, beliefs.get(asked), before, costs, alpha), num_asked)
            values[asked] = _follow(action, asked, stopped[asked], values, alpha * costs)
    return plan


def follow(
    plan: Plan, beliefs: dict[Asked, Belief], before: np.ndarray, costs: np.ndarray, alpha: float
) -> tuple[np.ndarray, np.ndarray]:
    """Whom a plan asks on N questions (N, T), -1 where it has stopped, and whose answer it submits
    (N,).
    """
    t_max = len(plan.weights)
    order = np.full((len(before), t_max), -1)
    for num_asked in range(t_max):
        for asked, rows in by_asked(order, num_asked):
            belief = beliefs[asked].take(rows) if asked else None
            scores = advantages(plan, belief, before[rows], costs, alpha)
            order[rows, num_asked] = choose(scores, num_asked)
    submitted = np.zeros(len(before), dtype=int)
    for num_asked in range(1, t_max + 1):
        for asked, rows in by_asked(order, num_asked):
            submitted[rows] = beliefs[asked].submitted[rows]
    return order, submitted


def _stop_values(beliefs: dict[Asked, Belief], good: np.ndarray) -> dict[Asked, Value]:
    """The value of stopping in every state; 0 before the first call."""
    stopped = {}
    for asked, belief in beliefs.items():
        stopped[asked] = stop_value(belief, good)
    stopped[()] = Value(np.zeros(len(good)), np.zeros(len(good)))
    return stopped


def _add_calls(
    ridge: Ridge,
    asked: Asked,
    belief: Belief | None,
    before: np.ndarray,
    stopped: Value,
    values: dict[Asked, Value],
) -> None:
    """Add what each further call gains beyond stopping. values: of the states after that call."""
    for expert_idx in set(range(before.shape[1])) - set(asked):
        after = values[_with(asked, expert_idx)]
        inputs = action_inputs(belief, before, expert_idx)
        ridge.add(inputs, after.target - stopped.target)


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
