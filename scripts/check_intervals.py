"""Measures whether the 95% intervals of evaluation/stats.py cover the truth 95% of the time: python
scripts/check_intervals.py [--repetitions 10000] [--seed 0]

Each repetition trains a handful of agents, or one, and draws 681 new questions, or few; qualities
are 0 or 1. An agent answers a question if a standard normal variable stays under a threshold: the
sum of the agent's strength, the question's ease and chance. The mean over all agents and questions
is then exact, qualities stay within [0, 1], and the spread of the agents' true means has a closed
form (Owen 1956). Three claims are checked:

    mean      the interval of one policy's mean covers it
    paired    so does that of its difference to a baseline without training, 0.1 weaker
    separate  two methods of equal mean, each with its own agents, are called different in at
            most 5% of repetitions

Exits with 1 if a coverage is outside 0.93 to 0.97, or `separate` is above 0.05 by more than three
Monte-Carlo standard errors (its true value may be 0.05). One seed on few questions may cover more,
as the mean of few answers takes few values, and a difference down to 0.90, as it may come from
three questions. With far fewer repetitions a coverage can be outside by chance. The last columns
are the contrast, in 500 repetitions: the percentile bootstrap that draws seeds and questions with
replacement.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runtime.command_line import count


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=count, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    return parser


if __name__ == "__main__":  # --help and mistakes, before the imports that take seconds
    make_parser().parse_args()

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtri, owens_t

from evaluation.stats import limits

QUESTIONS = 681
# Share of a question's ease in ease and chance: rest / (questions + rest) is 0.18 to 0.21, as
# between seeds 0, 1 and 2 of the embedded pool
EASE = 0.96
LEAD = 0.1
LIKENESS = 0.6  # correlation of the baseline's and the agents' ease
# Questions and mean of the rows with one seed.
ONE_SEED = (
    (20, 0.5),
    (20, 0.95),
    (32, 0.95),
    (60, 0.85),
    (100, 0.98),
    (QUESTIONS, 0.95),
)
CHUNK = 250  # repetitions at once
BOOTSTRAPS = 400
CONTRAST = 500  # repetitions of the bootstrap


def spread(mean: float, strength: float) -> float:
    """Standard deviation of agents' true means when strength has this share of the variance."""
    # The chance that two agents are right, which are alike in nothing but strength.
    both = mean - 2 * owens_t(ndtri(mean), np.sqrt((1 - strength) / (1 + strength)))
    return float(np.sqrt(max(both - mean**2, 0)))


def strength_for(mean: float, wanted: float) -> float:
    """Strength's share of the variance that gives this spread."""
    return brentq(lambda share: spread(mean, share) - wanted, 0, 0.99) if wanted else 0.0


def answers(
    rng: np.random.Generator, mean: float, strength: float, ease: np.ndarray, seeds: int
) -> np.ndarray:
    """Qualities (R, S, Q) of newly trained agents on questions of this ease (R, Q), standard
    normal.
    """
    repetitions, questions = ease.shape
    agent = np.sqrt(strength) * rng.standard_normal((repetitions, seeds, 1), dtype=np.float32)
    question = np.sqrt((1 - strength) * EASE) * ease[:, None, :]
    chance = np.sqrt((1 - strength) * (1 - EASE)) * rng.standard_normal(
        (repetitions, seeds, questions), dtype=np.float32
    )
    return (agent + question + chance < ndtri(mean)).astype(float)


def bootstrap(rng: np.random.Generator, values: np.ndarray) -> np.ndarray:
    """Percentile limits (2, R) from resampled seeds and questions.

    The same draws serve all repetitions.
    """
    seeds, questions = values.shape[1:]
    of_seeds = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=BOOTSTRAPS) / seeds
    of_questions = (
        rng.multinomial(questions, np.full(questions, 1 / questions), size=BOOTSTRAPS) / questions
    )
    means = ((values @ of_questions.T) * of_seeds.T).sum(axis=1)
    return np.quantile(means, [0.025, 0.975], axis=1)


def covered(lo: np.ndarray, hi: np.ndarray, truth: float) -> np.ndarray:
    return (lo <= truth) & (truth <= hi)


def check(
    rng: np.random.Generator,
    mean: float,
    seeds: int,
    wanted: float,
    repetitions: int,
    questions: int = QUESTIONS,
) -> dict[str, float]:
    """One row of the table."""
    strength = strength_for(mean, wanted)
    parts: dict[str, list[np.ndarray]] = defaultdict(list)
    for start in range(0, repetitions, CHUNK):
        ease = rng.standard_normal((min(CHUNK, repetitions - start), questions), dtype=np.float32)
        ours = answers(rng, mean, strength, ease, seeds)
        others = answers(rng, mean, strength, ease, seeds)
        baseline = baseline_answers(rng, mean, ease)
        results = check_limits(ours, others, baseline, mean)
        if start < CONTRAST:
            lo, hi = bootstrap(rng, ours)
            results["boot_mean"] = covered(lo, hi, mean)
            lo, hi = bootstrap(rng, ours - baseline)
            results["boot_paired"] = covered(lo, hi, LEAD)
        for name, values in results.items():
            parts[name].append(values)
    return {"spread": spread(mean, strength), **mean_of_parts(parts)}


def mean_of_parts(parts: dict[str, list[np.ndarray]]) -> dict[str, float]:
    """The mean of each figure over all repetitions."""
    means = {}
    for name, arrays in parts.items():
        means[name] = float(np.concatenate(arrays).mean())
    return means


def baseline_answers(rng: np.random.Generator, mean: float, ease: np.ndarray) -> np.ndarray:
    """Qualities (R, 1, Q) of a policy without training, whose mean is LEAD below the agents'."""
    chance = rng.standard_normal(ease.shape, dtype=np.float32)
    is_right = LIKENESS * ease + np.sqrt(1 - LIKENESS**2) * chance < ndtri(mean - LEAD)
    return is_right.astype(float)[:, None, :]


def check_limits(
    ours: np.ndarray, others: np.ndarray, baseline: np.ndarray, mean: float
) -> dict[str, np.ndarray]:
    """Whether each interval covers the truth (R,), and its half-width (R,)."""
    results = {}
    _, lo, hi = limits(ours, 0, 1)
    results["mean"] = covered(lo, hi, mean)
    results["half"] = (hi - lo) / 2
    # The range of the difference is the one that paired_difference uses.
    level = baseline.mean(axis=(1, 2))
    lower, upper = (-level, 1 - level) if ours.shape[1] > 1 else (-1, 1)
    _, lo, hi = limits(ours - baseline, lower, upper)
    results["paired"] = covered(lo, hi, LEAD)
    results["half_paired"] = (hi - lo) / 2
    _, lo, hi = limits(ours - others, -1, 1)
    results["separate"] = ~covered(lo, hi, 0)
    return results


def list_cases() -> list[tuple[int, int, float, float]]:
    """Questions, seeds, mean and spread of each row of the table."""
    cases: list[tuple[int, int, float, float]] = []
    for mean, seeds, wanted in itertools.product((0.85, 0.5), (3, 5), (0, 0.03, 0.1)):
        cases.append((QUESTIONS, seeds, mean, wanted))
    for questions, mean in ONE_SEED:
        cases.append((questions, 1, mean, 0))
    return cases


def is_outside(row: dict[str, float], seeds: int, bar: float) -> bool:
    """Whether a coverage of a row misses its bounds. bar: the most false claims."""
    lowest, highest = (0.93, 0.97) if seeds > 1 else (0.90, 1.0)
    mean_holds = 0.93 <= row["mean"] <= highest
    paired_holds = lowest <= row["paired"] <= highest
    return not (mean_holds and paired_holds and row["separate"] <= bar)


def main() -> int:
    args = make_parser().parse_args()
    bar = 0.05 + 3 * np.sqrt(0.05 * 0.95 / args.repetitions)
    rng = np.random.default_rng(args.seed)
    failed = 0
    print(
        f"{'questions':>9} {'seeds':>5} {'mean':>5} {'spread':>7} | {'mean':>6} {'paired':>6}"
        f" {'separate':>8} | {'half-width':>10} {'of paired':>9} | bootstrap: mean paired"
    )
    for questions, seeds, mean, wanted in list_cases():
        row = check(rng, mean, seeds, wanted, args.repetitions, questions)
        wrong = is_outside(row, seeds, bar)
        failed += wrong
        print(
            f"{questions:>9} {seeds:>5} {mean:>5} {row['spread']:>7.4f} | {row['mean']:>6.3f}"
            f" {row['paired']:>6.3f} {row['separate']:>8.3f} | {row['half']:>10.3f}"
            f" {row['half_paired']:>9.3f} | {row['boot_mean']:>15.3f}"
            f" {row['boot_paired']:>6.3f}{'  OUTSIDE' if wrong else ''}",
            flush=True,
        )
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
