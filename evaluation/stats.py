"""Intervals and tests for policies evaluated with several training seeds on the same test
questions.

An evaluation is a matrix X of shape (S, Q): what the agent trained with seed s got on question q, a
quality in [0, 1] or a return. A claim about the method, not about these S agents and Q questions,
has to allow for both samples. X is a two-way layout without replication, seeds crossed with
questions, both random: X[s, q] = mean + seed[s] + question[q] + rest[s, q] (Searle, Casella and
McCulloch 1992, *Variance Components*, chapter 4).

Variance of the mean, from the mean squares of seeds, questions and rest:

    seeds + questions,   seeds = MS_seed / (S Q),
    questions = max(MS_question - MS_rest, 0) / (S Q)

Test: the mean over its standard error has a t distribution with S - 1 degrees of freedom when seeds
make up the error and with Q - 1 when questions do. Between, the two tail probabilities are averaged
with the parts as weights, and the interval holds the means that are not rejected. This is the
weighted t of Cochran and Cox (*Experimental Designs*, 2nd ed. 1957) with tail probabilities in
place of quantiles, which brings the coverage a little nearer to 95%. Satterthwaite's number of
degrees of freedom (1946) gives too narrow intervals: it is itself estimated from the few seeds.

Scale: a mean of bounded values cannot be symmetric near its bound. Agents at 0.85 +- 0.10 are
skewed, and three good ones do not show it; nor do twenty questions that were all answered. The
limits are therefore made on the logit scale of the possible range and carried back (delta method).

Least error: values that agree do not make it 0. Half a question more, at the other end of the
range, would move the mean by range / (2 Q), and no error is taken for less. So 5 right answers of 5
leave a quality of 0.32 to 1, 30 of 30 one of 0.90 to 1 (Clopper and Pearson 1934: 0.48 and 0.88),
and all of 6 questions won are not yet a better policy, of 7 they are. Where answers are right or
wrong this matters only when none or one differs from the rest; graded values that hardly vary
(standard deviation below 0.05 on 100 questions, of a difference below 0.1) get wider intervals than
they need.

`scripts/check_intervals.py` measures the coverage: 0.94 to 0.97 with 3 and 5 seeds, whose agents
are equally strong or differ by 0.03 or 0.10. Without the logit scale it falls to 0.91, with
Satterthwaite's degrees of freedom to 0.92, with resampled seeds and questions (percentile
bootstrap) to 0.74. Two methods of equal mean are called different in 3.7% to 5.1% of the cases
(worst cell, 40,000 repetitions: 5.07% +- 0.11%: there the seeds make up the error, the test is
Student's with two degrees of freedom, and agents' means are not normal). A higher floor under
MS_seed (its 10% or 15% point) or the weighted quantiles of Cochran and Cox leave that at 5.0% to
5.1% and push other cells out of the band: coverage to 0.972, or the difference of equally strong
methods to 1.8%. One seed on 20 to 100 questions, 0.85 to 0.98 of them right, has 0.96 to 0.98,
where Student's interval has 0.64 to 0.95. Still to be read with care: two seeds; agents very near
the bound (0.95 +- 0.05), where a mean is covered 93% of the time; and a difference that comes from
a handful of questions: with one seed, where 3 of 100 differ and all for the better, it is covered
80% of the time (equal policies are told apart in less than 5% all the same).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize.elementwise import find_root
from scipy.special import expit, logit
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
            "questions" with S = 1, where the interval
        says nothing about another training run.

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
            interval leaves out 0; `verdict`: better, worse or
        not separable; `wins`, `ties`, `losses`: questions by the sign of the difference of the
            seeds' means; `covers` as in `interval`.

    Raises:
        ValueError: as in `interval`, or shapes that do not fit.
    """
    ours, theirs = _matrix(values), _matrix(baseline)
    if ours.shape[1] != theirs.shape[1] or (
        len(ours) != len(theirs) and 1 not in (len(ours), len(theirs))
    ):
        raise ValueError(
            f"shapes {ours.shape} and {theirs.shape} do not fit: the questions must be the same,"
            " and the seeds unless one policy has one row"
        )
    differences = ours - theirs
    lower, upper = _range(np.concatenate([ours, theirs]))
    # What the difference could be for other seeds: a policy without training stays where it is.
    # With one seed on either side, for other questions.
    one_row = [len(_distinct(m)) == 1 for m in (ours, theirs)]
    bounds = [
        (m.mean(), m.mean()) if one and not all(one_row) else (lower, upper)
        for m, one in zip((ours, theirs), one_row, strict=True)
    ]
    (our_least, our_most), (their_least, their_most) = bounds
    possible = our_least - their_most, our_most - their_least

    diff, lo, hi = limits(_distinct(differences), *possible)
    signs = np.sign(
        differences.mean(axis=0).round(12)
    )  # rounded: returns that cancel leave 1e-17 behind
    return {
        "diff": float(diff),
        "lo": float(lo),
        "hi": float(hi),
        "p": _p_value(_distinct(differences), *possible),
        "verdict": "better" if lo > 0 else "worse" if hi < 0 else "not separable",
        "wins": int((signs > 0).sum()),
        "ties": int((signs == 0).sum()),
        "losses": int((signs < 0).sum()),
        "covers": _covers(differences),
    }


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
    mean, error, share = _mean_and_error(
        values, 0.0 if counted else _half_a_question(lower, upper, questions)
    )
    highest = 1 + t.isf((1 - LEVEL) / 2, 1)  # no quantile is above that of one degree of freedom
    half = (
        error
        * find_root(
            lambda ratio, share: _tails(ratio, share, seeds, questions) - (1 - LEVEL),
            (0, highest),
            args=(share,),
        ).x
    )
    start, width, centre, slope = _logit_scale(mean, lower, upper, questions)
    lo, hi = (
        np.clip(start + width * expit(centre + sign * slope * half), lower, upper)
        for sign in (-1, 1)
    )
    return mean, np.minimum(lo, mean), np.maximum(hi, mean)  # but for rounding they hold the mean


def _p_value(values: np.ndarray, lower: float, upper: float) -> float:
    """Two-sided p-value of a mean of 0 for one evaluation (S, Q); below 0.05 exactly if 0 is
    outside `limits`.
    """
    questions = values.shape[1]
    mean, error, share = _mean_and_error(values, _half_a_question(lower, upper, questions))
    start, width, centre, slope = _logit_scale(mean, lower, upper, questions)
    return float(_tails(abs(centre - logit(-start / width)) / slope / error, share, *values.shape))


def _tails(ratio: np.ndarray, share: np.ndarray, seeds: int, questions: int) -> np.ndarray:
    """Two-sided tail probability of a mean's distance over its error, when seeds make up this share
    of the error's square.
    """
    of_seeds, of_questions = (2 * t.sf(ratio, max(count - 1, 1)) for count in (seeds, questions))
    return share * of_seeds + (1 - share) * of_questions


def _mean_and_error(
    values: np.ndarray, least: ArrayLike
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, its standard error, never below `least` (...), and the seeds' share of the error's
    square. (..., S, Q) to three times (...).
    """
    seeds, questions = values.shape[-2:]
    of_seeds, of_questions = values.mean(axis=-1), values.mean(axis=-2)
    mean = of_seeds.mean(axis=-1)
    ms_question = seeds * of_questions.var(axis=-1, ddof=1)
    if seeds == 1:
        return mean, np.maximum(np.sqrt(ms_question / questions), least), np.zeros_like(mean)
    ms_seed = questions * of_seeds.var(axis=-1, ddof=1)
    rest = values - of_seeds[..., :, None] - of_questions[..., None, :] + mean[..., None, None]
    freedom = (seeds - 1) * (questions - 1)
    ms_rest = (rest**2).sum(axis=(-2, -1)) / freedom
    # Seeds that agree by luck must not make the error 0: equally strong ones agree this well one
    # time in twenty.
    ms_seed = np.maximum(ms_seed, ms_rest * f.ppf(0.05, seeds - 1, freedom))
    total = ms_seed + np.maximum(ms_question - ms_rest, 0)
    return mean, np.maximum(np.sqrt(total / (seeds * questions)), least), ms_seed / total


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
    lower, upper = lower - margin, upper + margin
    width = upper - lower
    return lower, width, logit((mean - lower) / width), width / ((mean - lower) * (upper - mean))


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
