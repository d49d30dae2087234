"""An expert joins or leaves: what was fitted for the others stays as it is.

Experts share coefficients and deviate from them by their own (`outcome_model.py`). A new expert
gets the shared ones, and its own are fitted on a few judged answers while all others are held
fixed. The same holds for the weights of candidates. In a plan it starts as an expert without
deviations: what sets it apart there is its estimate and its cost. Leaving takes an expert's own
coefficients away.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from belief.outcome_model import (
    DEVIATION,
    EMBEDDING_SCALE,
    PRIOR_STRENGTH,
    READER_STRENGTH,
    TASK_DEVIATION,
    ExpertRegression,
    OutcomeModel,
    Outcomes,
    one_hot,
)
from belief.planner import NUM_SHARED
from belief.regression import Logistic, Standardiser, sigmoid
from belief.state import Asked, CandidateModel, asked_sets, describe_candidates, hear

PLAN_BLOCKS = 5  # of inputs that name an expert (`planner.action_inputs`)
CANDIDATE_BLOCKS = 2  # members, rivals (`state.describe_candidates`)


@dataclass(frozen=True)
class Coefficients:
    """The weights of an `ExpertRegression` by what they belong to, in its order.

    shared (F,), level (K,), own (K, F), embedding (D,), task (T,), own_task (K, T); T is 0 for one
    task.
    """

    shared: np.ndarray
    level: np.ndarray
    own: np.ndarray
    embedding: np.ndarray
    task: np.ndarray
    own_task: np.ndarray

    @classmethod
    def of(cls, model: ExpertRegression) -> Coefficients:
        width = len(model.inputs.mean)
        num_experts = model.num_experts
        num_tasks = model.num_tasks if model.num_tasks > 1 else 0
        sizes = [width, num_experts, num_experts * width, len(model.embedding.mean), num_tasks]
        parts = np.split(model.logistic.weights, np.cumsum(sizes))
        shared, level, own, embedding, task, own_task = parts
        return cls(
            shared,
            level,
            own.reshape(num_experts, width),
            embedding,
            task,
            own_task.reshape(num_experts, num_tasks),
        )

    def in_order(self) -> np.ndarray:
        parts = [self.shared, self.level, self.own.ravel(), self.embedding, self.task]
        return np.concatenate([*parts, self.own_task.ravel()])


def with_experts(model: ExpertRegression, coefficients: Coefficients) -> ExpertRegression:
    """The same regression with these coefficients, for as many experts as they have."""
    num_experts = len(coefficients.level)
    made = ExpertRegression(num_experts, model.num_tasks, model.inputs, model.embedding)
    made.logistic = Logistic(coefficients.in_order(), model.logistic.bias)
    return made


def fit_own(
    model: ExpertRegression,
    inputs: np.ndarray,
    embedding: np.ndarray,
    task: np.ndarray,
    good: np.ndarray,
    strength: float,
) -> ExpertRegression:
    """The regression with one expert more, whose own coefficients are fitted on N judged answers.

    The penalty is that of the joint fit; the expert's level is free. Inputs (N, F), embedding
    (N, D), task and good (N,).
    """
    known = Coefficients.of(model)
    num_tasks = len(known.task)
    plain = model.inputs(inputs)
    about = one_hot(task, num_tasks) if num_tasks else np.zeros((len(plain), 0))
    offset = model.logistic.bias + plain @ known.shared + about @ known.task
    if len(known.embedding):
        offset += EMBEDDING_SCALE * model.embedding(embedding) @ known.embedding
    rows = np.hstack([np.ones((len(plain), 1)), DEVIATION * plain, TASK_DEVIATION * about])
    fitted = fit_with_offset(rows, offset, good, strength)
    width = plain.shape[1]
    extended = Coefficients(
        known.shared,
        np.append(known.level, fitted[0]),
        np.vstack([known.own, fitted[1 : width + 1]]),
        known.embedding,
        known.task,
        np.vstack([known.own_task, fitted[width + 1 :]]),
    )
    return with_experts(model, extended)


def fit_with_offset(
    rows: np.ndarray, offset: np.ndarray, good: np.ndarray, strength: float
) -> np.ndarray:
    """Weights (F,) of a logistic regression beside known log-odds (N,); the first is not penalised.

    A rate of 0 or 1 would drive the first to infinity: half an answer of either kind is added.
    """
    extra = rows.mean(axis=0, keepdims=True)
    rows = np.vstack([rows, extra, extra])
    offset = np.append(offset, [offset.mean()] * 2)
    labels = np.append(good.astype(np.float64), [0.0, 1.0])
    counts = np.append(np.ones(len(good)), [0.5, 0.5])

    def objective(weights: np.ndarray) -> tuple[float, np.ndarray]:
        log_odds = offset + rows @ weights
        penalised = weights.copy()
        penalised[0] = 0.0
        losses = np.logaddexp(0.0, log_odds) - labels * log_odds
        value = strength * (counts * losses).sum() + 0.5 * (penalised**2).sum()
        slope = strength * rows.T @ (counts * (sigmoid(log_odds) - labels)) + penalised
        return float(value), slope

    found = minimize(objective, np.zeros(rows.shape[1]), jac=True, method="L-BFGS-B")
    weights: np.ndarray = found.x
    return weights


def add_expert(model: OutcomeModel, outcomes: Outcomes) -> OutcomeModel:
    """The outcome model with one expert more, from its answers: `answer` (N, 1, G), `good` (N, 1).

    Estimates for the other experts stay exactly as they are.
    """
    good = outcomes.good[:, 0]
    prior = fit_own(
        model.prior, outcomes.question, outcomes.embedding, outcomes.task, good, PRIOR_STRENGTH
    )
    inputs = np.hstack([outcomes.answer[:, 0], outcomes.question])
    nothing = outcomes.embedding[:, :0]
    reader = fit_own(model.reader, inputs, nothing, outcomes.task, good, READER_STRENGTH)
    return OutcomeModel(prior, reader)


def drop_experts(model: OutcomeModel, dropped: list[int]) -> OutcomeModel:
    """The outcome model without some experts."""
    parts = []
    for regression in (model.prior, model.reader):
        known = Coefficients.of(regression)
        left = Coefficients(
            known.shared,
            np.delete(known.level, dropped),
            np.delete(known.own, dropped, axis=0),
            known.embedding,
            known.task,
            np.delete(known.own_task, dropped, axis=0),
        )
        parts.append(with_experts(regression, left))
    return OutcomeModel(*parts)


def move_blocks(
    values: np.ndarray, num_blocks: int, num_experts: int, kept: list[int], fill: float
) -> np.ndarray:
    """Values (..., S + B * K) whose last B blocks name experts, for another pool.

    kept: for each expert of the new pool its index in the old one, -1 for a new one, which gets
    `fill`.
    """
    start = values.shape[-1] - num_blocks * num_experts
    blocks = [values[..., :start]]
    for block in range(num_blocks):
        first = start + block * num_experts
        for expert_idx in kept:
            if expert_idx < 0:
                blocks.append(np.full((*values.shape[:-1], 1), fill))
            else:
                place = first + expert_idx
                blocks.append(values[..., place : place + 1])
    return np.concatenate(blocks, axis=-1)


def move_candidates(
    candidates: CandidateModel, num_experts: int, kept: list[int]
) -> CandidateModel:
    """The weights of candidates for another pool; a new expert has none of its own."""

    def move(values: np.ndarray, fill: float) -> np.ndarray:
        return move_blocks(values, CANDIDATE_BLOCKS, num_experts, kept, fill)

    inputs = Standardiser(move(candidates.inputs.mean, 0.0), move(candidates.inputs.scale, 1.0))
    weights = move(candidates.logistic.weights, 0.0)
    return CandidateModel(inputs, Logistic(weights, candidates.logistic.bias))


def add_to_candidates(
    moved: CandidateModel,
    before: np.ndarray,
    after: np.ndarray,
    same: np.ndarray,
    good: np.ndarray,
    t_max: int,
    expert_idx: int,
) -> CandidateModel:
    """The weights of candidates with those that name a new expert fitted on N questions: of a
    candidate that it is for, and of one that it is against.

    moved: of `move_candidates`. Arrays (N, K) as in `state.fit_candidates`, same (N, K, K). A
    question counts once, however many sets of experts it is looked at with.
    """
    num_experts = before.shape[1]
    # The last blocks name members and rivals
    places = [expert_idx - 2 * num_experts, expert_idx - num_experts]
    named = []
    offset = []
    labels = []
    sets = _sets_with(expert_idx, num_experts, t_max)
    for asked in sets:
        candidates = describe_candidates(hear(asked, before, after, same))
        features = candidates.features[candidates.is_first]
        named.append(features[:, places])
        offset.append(moved.log_odds(features))
        labels.append(good[:, list(asked)][candidates.is_first])
    inputs = np.pad(np.concatenate(named), ((0, 0), (1, 0)))  # the level, not penalised, stays
    weight = 1.0 / len(sets)
    fitted = fit_with_offset(inputs, np.concatenate(offset), np.concatenate(labels), weight)
    weights = moved.logistic.weights.copy()
    weights[places] = fitted[1:]
    return CandidateModel(moved.inputs, Logistic(weights, moved.logistic.bias))


def _sets_with(expert_idx: int, num_experts: int, t_max: int) -> list[Asked]:
    """The sets of at most `t_max` experts that hold one of them."""
    sets = itertools.chain.from_iterable(asked_sets(num_experts, t_max))
    return [asked for asked in sets if expert_idx in asked]


def move_plan(values: np.ndarray, num_experts: int, kept: list[int]) -> np.ndarray:
    """Weights of a plan (..., F), or what PPO has learned beside them, for another pool."""
    assert values.shape[-1] == NUM_SHARED + PLAN_BLOCKS * num_experts
    return move_blocks(values, PLAN_BLOCKS, num_experts, kept, 0.0)
