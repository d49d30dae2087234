"""Intervals and tests for policies played with several training seeds on the same questions.

Model: X[s, q] = mean + seed[s] + question[q] + rest[s, q], seeds and questions both random (Searle,
Casella and McCulloch 1992, *Variance Components*, chapter 4). The variance of the mean has two
parts: MS_seed / (S Q) of the seeds and max(MS_question - MS_rest, 0) / (S Q) of the questions.
Test: the mean over its standard error has a t distribution with S - 1 degrees of freedom where
seeds make up the error, and Q - 1 where questions do. In between the two tail probabilities are
averaged, weighted by the parts; the interval holds the means that are not rejected.
Scale: limits are made on the logit scale of the possible range and carried back (delta method).
Least error: no error is taken for less than range / (2 Q), half a question more at the other end.
MS_seed has a floor too, so that seeds that agree by luck do not make the error 0.
docs/statistics.md says why, what else was tried, and how well the intervals cover the truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize.elementwise import find_root
from scipy.special import expit, logit, stdtr
from scipy.stats import f, t

LEVEL = 0.95
FEW_SEEDS = 5


def interval(values: ArrayLike, *, counted: bool = False) -> dict[str, Any]:
    """Mean of a policy with its 95% interval.

    Args:
        values: (S, Q) or (Q,) of one seed. Equal rows are a policy without training; they give
            the interval of one row.
        counted: calls or costs, which may be equal on all questions there are: no least error.

    Returns:
        `mean`, `lo`, `hi` in the unit of the values; `covers`: "seeds and questions", or
        "questions" with S = 1, where the interval says nothing about another training run.

    Raises:
        ValueError: fewer than two questions, no seed, more than two axes, or values that are
            not finite.
    """
    matrix = _matrix(values)
    mean, lo, hi = limits(_distinct(matrix), *_range(matrix), counted=counted)
    return {"mean": float(mean), "lo": float(lo), "hi": float(hi), "covers": _covers(matrix)}


def paired_difference(values: ArrayLike, baseline: ArrayLike) -> dict[str, Any]:
    """Mean difference `values - baseline` on the same questions, with its 95% interval and test.

    Args:
        values: (S, Q) or (Q,).
        baseline: of the same shape, row s trained with the seed number of row s; or (1, Q) or
            (Q,), a policy without training.

    Returns:
        `diff`, `lo`, `hi` in the unit of the values; `p`, two-sided, below 0.05 exactly if the
        interval leaves out 0; `verdict`: better, worse or not separable; `wins`, `ties`, `losses`:
        questions by the sign of the difference of the seeds' means; `covers` as in `interval`.

    Raises:
        ValueError: as in `interval`, or shapes that do not fit.
    """
    ours = _matrix(values)
    theirs = _matrix(baseline)
    seeds_fit = len(ours) == len(theirs) or 1 in (len(ours), len(theirs))
    if ours.shape[1] != theirs.shape[1] or not seeds_fit:
        raise ValueError(
            f"shapes {ours.shape} and {theirs.shape} do not fit: the questions must be the same,"
            " and the seeds unless one policy has one row"
        )
    differences = ours - theirs
    lower, upper = _possible_differences(ours, theirs)
    diff, lo, hi = limits(_distinct(differences), lower, upper)
    # Rounded: returns that cancel leave 1e-17 behind.
    signs = np.sign(differences.mean(axis=0).round(12))
    return {
        "diff": float(diff),
        "lo": float(lo),
        "hi": float(hi),
        "p": _p_value(_distinct(differences), lower, upper),
        "verdict": verdict_of(float(lo), float(hi)),
        "wins": int((signs > 0).sum()),
        "ties": int((signs == 0).sum()),
        "losses": int((signs < 0).sum()),
        "covers": _covers(differences),
    }


def verdict_of(lo: float, hi: float) -> str:
    """What the interval of a difference says: better, worse or not separable."""
    if lo > 0:
        return "better"
    return "worse" if hi < 0 else "not separable"


def _possible_differences(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    """The range in which the difference of the means must lie for other seeds and questions.

    Beside a trained policy, one without training stays where it is: only seeds are new. With one
    row on either side, the questions are new.
    """
    lower, upper = _range(np.concatenate([ours, theirs]))
    we_are_fixed = len(_distinct(ours)) == 1
    they_are_fixed = len(_distinct(theirs)) == 1
    if we_are_fixed == they_are_fixed:
        return lower - upper, upper - lower
    if we_are_fixed:
        return ours.mean() - upper, ours.mean() - lower
    return lower - theirs.mean(), upper - theirs.mean()


def adjust(p_values: Sequence[float]) -> list[float]:
    """p-values after Holm's correction (1979), in the order given: with 0.05 as bar, the chance of
    any false claim in the family is at most 0.05.

    The family is all the comparisons one statement picks from: one policy against every baseline,
    in one measure.
    """
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1)
    return adjusted.tolist()


def few_seeds_note(seeds: int) -> str | None:
    """What to say beside an interval from so few seeds; None from five on."""
    if seeds == 1:
        return (
            "One seed: the intervals cover the choice of questions only, not another training run."
        )
    if seeds < FEW_SEEDS:
        return (
            f"{seeds} seeds: Student's quantile with {seeds - 1} degrees of freedom makes the"
            " intervals wide, and the spread between seeds is hardly known."
        )
    return None


def limits(
    values: np.ndarray, lower: ArrayLike, upper: ArrayLike, *, counted: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and 95% limits of many evaluations at once: what the intervals here are made of, and
    what the simulation checks.

    Args:
        values: (..., S, Q).
        lower, upper: (...), the range in which the mean for other seeds and questions must lie.
        counted: as in `interval`.

    Returns:
        Mean, lower and upper limit, each (...).
    """
    seeds, questions = values.shape[-2:]
    least_error = 0.0 if counted else _half_a_question(lower, upper, questions)
    mean, error, share = _mean_and_error(values, least_error)
    half_width = error * _quantile(share, seeds, questions)
    start, width, centre, slope = _logit_scale(mean, lower, upper, questions)
    lo = start + width * expit(centre - slope * half_width)
    hi = start + width * expit(centre + slope * half_width)
    # Rounding must not put the mean outside.
    lo = np.minimum(np.clip(lo, lower, upper), mean)
    hi = np.maximum(np.clip(hi, lower, upper), mean)
    return mean, lo, hi


def _p_value(values: np.ndarray, lower: float, upper: float) -> float:
    """Two-sided p-value of a mean of 0 for one evaluation (S, Q).

    It is below 0.05 exactly if 0 is outside `limits`.
    """
    seeds, questions = values.shape
    mean, error, share = _mean_and_error(values, _half_a_question(lower, upper, questions))
    start, width, centre, slope = _logit_scale(mean, lower, upper, questions)
    distance = abs(centre - logit(-start / width)) / slope
    return float(_tails(distance / error, share, seeds, questions))


def _quantile(share: np.ndarray, seeds: int, questions: int) -> np.ndarray:
    """How many errors from the mean the limits lie (...), so that `_tails` is 1 - LEVEL there."""
    tail = (1 - LEVEL) / 2
    if seeds == 1:
        return np.asarray(t.isf(tail, questions - 1))

    def too_likely(ratio: np.ndarray, share: np.ndarray) -> np.ndarray:
        return _tails(ratio, share, seeds, questions) - (1 - LEVEL)

    highest = 1 + t.isf(tail, 1)  # no quantile is above that of one degree of freedom
    found: np.ndarray = find_root(too_likely, (0, highest), args=(share,)).x
    return found


def _tails(ratio: np.ndarray, share: np.ndarray, seeds: int, questions: int) -> np.ndarray:
    """Two-sided tail probability of a mean's distance over its error.

    Args:
        share: of the error's square that seeds make up.
    """
    of_seeds = 2 * stdtr(max(seeds - 1, 1), -ratio)
    of_questions = 2 * stdtr(questions - 1, -ratio)
    return share * of_seeds + (1 - share) * of_questions


def _mean_and_error(
    values: np.ndarray, min_error: ArrayLike
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(..., S, Q) to three arrays (...).

    The mean; its standard error, never below `min_error`; the seeds' share of the error's square.
    """
    seeds, questions = values.shape[-2:]
    by_seed = values.mean(axis=-1)
    by_question = values.mean(axis=-2)
    mean = by_seed.mean(axis=-1)
    ms_question = seeds * by_question.var(axis=-1, ddof=1)
    if seeds == 1:
        error = np.sqrt(ms_question / questions)
        return mean, np.maximum(error, min_error), np.zeros_like(mean)
    ms_seed = questions * by_seed.var(axis=-1, ddof=1)
    freedom = (seeds - 1) * (questions - 1)
    ms_rest = _sum_of_squares_left(values) / freedom
    # Seeds that agree by luck must not make the error 0. Equally strong ones agree this well one
    # time in twenty.
    ms_seed = np.maximum(ms_seed, ms_rest * f.ppf(0.05, seeds - 1, freedom))
    total = ms_seed + np.maximum(ms_question - ms_rest, 0)
    error = np.sqrt(total / (seeds * questions))
    return mean, np.maximum(error, min_error), ms_seed / total


def _sum_of_squares_left(values: np.ndarray) -> np.ndarray:
    """(..., S, Q) to (...): what the means of seeds and of questions leave unexplained."""
    by_seed = values.mean(axis=-1, keepdims=True)
    by_question = values.mean(axis=-2, keepdims=True)
    mean = values.mean(axis=(-2, -1), keepdims=True)
    return ((values - by_seed - by_question + mean) ** 2).sum(axis=(-2, -1))


def _half_a_question(lower: ArrayLike, upper: ArrayLike, questions: int) -> np.ndarray:
    """How far half a question that goes from one end of the range to the other moves the mean."""
    return (np.asarray(upper) - np.asarray(lower)) / (2 * questions)


def _logit_scale(
    mean: np.ndarray, lower: ArrayLike, upper: ArrayLike, questions: int
) -> tuple[np.ndarray, ...]:
    """Start and width of the range, the mean's logit in it, and the logit's slope there.

    The range gets half a question on either side, so that a mean at its bound has a finite logit
    (Anscombe 1956).
    """
    margin = _half_a_question(lower, upper, questions)
    lowest = np.asarray(lower) - margin
    highest = np.asarray(upper) + margin
    width = highest - lowest
    slope = width / ((mean - lowest) * (highest - mean))
    return lowest, width, logit((mean - lowest) / width), slope


def _matrix(values: ArrayLike) -> np.ndarray:
    matrix = np.atleast_2d(np.asarray(values, dtype=float))
    if matrix.ndim != 2 or len(matrix) == 0:
        raise ValueError(
            f"values must be of shape (seeds, questions) or (questions,), not {np.shape(values)}"
        )
    if matrix.shape[1] < 2:
        raise ValueError(f"an interval needs at least two questions, got {matrix.shape[1]}")
    if not np.isfinite(matrix).all():
        raise ValueError("values hold NaN or infinity")
    return matrix


def _distinct(matrix: np.ndarray) -> np.ndarray:
    """One row if all are equal: no training, no spread between seeds."""
    return matrix[:1] if (matrix == matrix[0]).all() else matrix


def _range(matrix: np.ndarray) -> tuple[float, float]:
    """Bounds of the values: those of qualities, or further out where returns are."""
    return min(0.0, matrix.min()), max(1.0, matrix.max())


def _covers(matrix: np.ndarray) -> str:
    return "seeds and questions" if len(matrix) > 1 else "questions"
