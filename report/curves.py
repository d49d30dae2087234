"""Quality against cost over several values of alpha: upper hulls, the area under them, and paired
bootstrap intervals.

A policy that is trained or chosen at several alphas gives a point (mean cost, mean quality) at
each. Choosing between two of them at random reaches every point of the line between, so what the
policy offers is its upper hull (RouterBench, Hu et al. 2024, section 3), with the cheapest expert
alone as one more choice. The area under the hull is taken from the mean cost of the cheapest expert
to that of the most expensive one, and divided by that range: it reads as a mean quality.

The bootstrap draws questions, the same ones for all policies, and computes everything again from
them: points, cost range and hulls. Each seed of a policy has its own hull; the areas are averaged.
The intervals hold for other questions of the same kind, not for other training runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from evaluation.stats import verdict_of

RESAMPLES = 5000
CHUNK = 100  # samples at once
TAIL = 2.5  # per cent on either side of a 95% interval


@dataclass(frozen=True)
class Curve:
    """A policy's outcomes: quality in [0, 1] and cost C, each (alphas, seeds, questions)."""

    quality: np.ndarray
    cost: np.ndarray


@dataclass(frozen=True)
class CostRange:
    """The experts between whose mean costs the area is taken; each array is (questions,)."""

    cheapest_quality: np.ndarray
    cheapest_cost: np.ndarray
    most_expensive_cost: np.ndarray


def upper_hull(points: np.ndarray) -> np.ndarray:
    """Corners of the smallest concave, non-decreasing function above all points.

    Args:
        points: (N, 2) of cost and quality, N at least 1.

    Returns:
        (M, 2) by rising cost, from the cheapest point to the best. Left of the first corner the
        function is not defined, right of the last it is flat.
    """
    corners: list[np.ndarray] = []
    for point in points[np.lexsort((-points[:, 1], points[:, 0]))]:
        if corners and point[1] <= corners[-1][1]:
            continue  # no better than a cheaper one
        while len(corners) > 1 and _slope(corners[-2], corners[-1]) <= _slope(corners[-2], point):
            corners.pop()
        corners.append(point)
    return np.array(corners)


def _slope(start: np.ndarray, end: np.ndarray) -> float:
    return (end[1] - start[1]) / (end[0] - start[0])


def area_under(points: np.ndarray, min_cost: ArrayLike, max_cost: ArrayLike) -> np.ndarray:
    """Mean height of the points' upper hull over the costs from `min_cost` to `max_cost`.

    Args:
        points: (..., N, 2) of cost and quality, one of them at `min_cost` or below. Points above
            `max_cost` shape the hull; the area ends at `max_cost`.
        min_cost, max_cost: (...).

    Returns:
        (...).
    """
    cost, quality = points[..., 0], points[..., 1]
    at = cost.min(axis=-1)
    height = quality.max(axis=-1, where=cost == at[..., None], initial=-np.inf)
    total = np.zeros(at.shape)
    for _ in range(cost.shape[-1]):
        slope, corner = _next_corner(points, at, height)
        end = np.where(slope > 0, corner, np.maximum(at, max_cost))  # flat beyond the last corner
        left, right = np.clip([at, end], min_cost, max_cost)
        middle = height + slope * ((left + right) / 2 - at)
        total += (right - left) * middle
        height = height + slope * (end - at)
        at = end
    return total / np.subtract(max_cost, min_cost)


def _next_corner(
    points: np.ndarray, at: np.ndarray, height: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """From a corner of each hull (...), the steepest slope to a point on its right, and the cost of
    that point; the slope is 0 where no point there is higher.
    """
    run = points[..., 0] - at[..., None]
    rise = points[..., 1] - height[..., None]
    slopes = np.divide(rise, run, out=np.zeros(run.shape), where=run > 0)
    steepest = slopes.argmax(axis=-1)[..., None]
    slope = np.take_along_axis(slopes, steepest, axis=-1)[..., 0]
    corner = np.take_along_axis(points[..., 0], steepest, axis=-1)[..., 0]
    return slope.clip(0), corner


def areas(curves: Mapping[str, Curve], experts: CostRange, seed: int = 0) -> dict[str, np.ndarray]:
    """The area of each policy on the questions, then on RESAMPLES bootstrap samples of them.

    Returns:
        Name -> (1 + RESAMPLES,). Entry i of every policy belongs to the same sample.
    """
    num_questions = experts.cheapest_cost.size
    rng = np.random.default_rng(seed)
    found: dict[str, list[float]] = {name: [] for name in curves}
    weights = np.full((1, num_questions), 1 / num_questions)
    for _ in range(1 + RESAMPLES // CHUNK):
        for name, curve in curves.items():
            found[name] += _areas(curve, weights, experts)
        drawn = rng.integers(num_questions, size=(CHUNK, num_questions))
        weights = np.stack([np.bincount(row, minlength=num_questions) for row in drawn])
        weights = weights / num_questions
    return {name: np.array(values) for name, values in found.items()}


def _areas(curve: Curve, weights: np.ndarray, experts: CostRange) -> list[float]:
    """For each row of weights (samples, questions), the mean over the seeds of the area."""
    cost = curve.cost @ weights.T  # (alphas, seeds, samples)
    quality = curve.quality @ weights.T
    cheapest_cost = weights @ experts.cheapest_cost
    cheapest_quality = weights @ experts.cheapest_quality
    max_cost = weights @ experts.most_expensive_cost
    cheapest = np.stack([cheapest_cost, cheapest_quality], axis=-1)  # (samples, 2)
    points = np.stack([cost, quality], axis=-1)  # (alphas, seeds, samples, 2)
    points = np.concatenate([points, np.broadcast_to(cheapest, (1, *points.shape[1:]))])
    by_seed = area_under(np.moveaxis(points, 0, -2), cheapest_cost, max_cost)  # (seeds, samples)
    found: list[float] = by_seed.mean(axis=0).tolist()
    return found


def area_span(samples: np.ndarray) -> dict[str, float]:
    """The area with its 95% percentile interval, from what `areas` returns for a policy."""
    lo, hi = np.percentile(samples[1:], [TAIL, 100 - TAIL])
    mean = float(samples[0])
    return {"mean": mean, "lo": min(float(lo), mean), "hi": max(float(hi), mean)}


def area_difference(samples: np.ndarray, baseline: np.ndarray) -> dict[str, Any]:
    """The paired difference of two policies' areas, with interval, verdict and two-sided p.

    The p-value is twice the share of samples on the other side of 0, with one added to both counts
    (Davison and Hinkley 1997, section 4.2), so that it is never 0.
    """
    differences = samples - baseline
    span = area_span(differences)
    resampled = differences[1:]
    fewer = min(int((resampled <= 0).sum()), int((resampled >= 0).sum()))
    p = min(1.0, 2 * (fewer + 1) / (len(resampled) + 1))
    verdict = verdict_of(span["lo"], span["hi"])
    return {"diff": span["mean"], "lo": span["lo"], "hi": span["hi"], "p": p, "verdict": verdict}


def stack(by_alpha: Sequence[np.ndarray]) -> np.ndarray:
    """Arrays (seeds, questions), one for each alpha, to (alphas, seeds, questions).

    A policy without training has one seed at every alpha; one that has one seed at some alphas
    only keeps that row for all seeds.
    """
    num_seeds = max(map(len, by_alpha))
    num_questions = by_alpha[0].shape[1]
    rows = [np.broadcast_to(values, (num_seeds, num_questions)) for values in by_alpha]
    return np.stack(rows)
