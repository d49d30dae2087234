"""Measures how often `terminator.max_loss` keeps its promise, where recorded answers say what is
true: python scripts/check_guarantee.py --run runs/math [--shift runs/gsm8k] [--splits 1000]

The run's agent, fitted once, plays all test questions of the run without an early end. Each split
draws calibration questions among them, the threshold is chosen on these, and the loss is then taken
over all test questions. Candidate thresholds come from the validation questions. Columns:

    refused       splits on which no threshold could be promised
    broken        of all splits, those whose threshold loses more than promised, with its interval
    broken iid    the same where calibration questions are drawn with replacement: then the test
                  questions are the whole population, and the promise is tested at its hardest
    saved         cost saved against routes that never end early, on splits that were not refused
    given up      share of the saving that the cheapest threshold with a true loss of at most
                  max_loss would bring, had it been known
    cost ratio    cost of the routes over that of asking the reference alone

With --shift, an agent of other questions is calibrated on its own test questions and its threshold
is used on those of --run: nothing is promised then.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runtime.command_line import count, run_command


def numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True, help="whose test questions are used")
    parser.add_argument("--shift", type=Path, help="another run, whose agent is used there")
    parser.add_argument("--max_loss", type=numbers, default=[0.02, 0.03, 0.05])
    parser.add_argument("--confidence", type=float, default=0.95)
    parser.add_argument("--calibration", type=numbers, default=[500, 1000])
    parser.add_argument("--splits", type=count, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the rows as JSON, too")
    return parser


if __name__ == "__main__":  # --help and mistakes, before the imports that take seconds
    run_command(make_parser().parse_args)

import numpy as np
from scipy.stats import binomtest

from agent import load_agent
from belief_agent import BeliefAgent
from config import Config
from evaluation.guarantee import (
    Outcomes,
    Promise,
    candidate_thresholds,
    last_that_holds,
)
from experts import ExpertPool, Request, build_pool
from questions import Question, Splits, load_splits
from reward import charge
from runtime.errors import ConfigError
from runtime.machine import pick_device, set_threads
from runtime.run_folder import load_run_config
from training.promise import is_right, reference_expert, unended_routes


@dataclass
class Place:
    """A run's configuration, experts and questions."""

    path: Path
    config: Config
    pool: ExpertPool
    splits: Splits

    @classmethod
    def of(cls, path: Path) -> Place:
        config = load_run_config(path)
        set_threads(config.threads)
        return cls(path, config, build_pool(config), load_splits(config.data))


@dataclass(frozen=True)
class Measured:
    """An agent on test questions: what thresholds give, and C of asking the reference alone."""

    outcomes: Outcomes
    thresholds: np.ndarray
    reference: str
    reference_cost: float


def load_belief_agent(home: Place, pool: ExpertPool) -> BeliefAgent:
    """The agent of a run, for a pool of the same experts."""
    if pool.names != home.pool.names:
        raise ConfigError(f"{home.path}: its experts are not those of the other run")
    device = pick_device(home.config.device)
    agent = load_agent(home.path / "agent", pool, device=device, other_pool=pool is not home.pool)
    if not isinstance(agent, BeliefAgent):
        raise ConfigError(f"{home.path}: a promise needs agent.reads: belief")
    return agent


def measure(home: Place, place: Place, questions: list[Question]) -> Measured:
    """The agent of `home` on questions of `place`. Reference and thresholds are those of home."""
    own_agent = load_belief_agent(home, home.pool)
    chosen_on = unended_routes(own_agent, home.pool, home.splits.validation, home.config)
    thresholds = candidate_thresholds(chosen_on)
    reference = reference_expert(home.config, home.pool, home.splits.train)
    agent = load_belief_agent(home, place.pool)
    routes = unended_routes(agent, place.pool, questions, home.config)
    p0 = home.config.env.p0
    right = is_right(questions, place.pool, reference, p0)
    outcomes = Outcomes.of(routes, right.tolist(), thresholds, p0, home.config.reward)
    cost = mean_cost(place.pool, questions, reference, home.config)
    return Measured(outcomes, thresholds, place.pool.names[reference], cost)


def mean_cost(pool: ExpertPool, questions: list[Question], expert: int, config: Config) -> float:
    """C of one call to an expert, averaged over questions."""
    charges = []
    for answer in pool.answer([Request(expert, question.text) for question in questions]):
        charges.append(charge(pool.cost(expert, answer), config.reward))
    return float(np.mean(charges))


def choose(lost: np.ndarray, rows: np.ndarray, promise: Promise) -> int | None:
    """Index of the threshold promised on calibration questions `rows` of all (N, T)."""
    return last_that_holds(lost[rows].sum(axis=0).tolist(), len(rows), promise)


def count_broken(
    measured: Measured, true_loss: np.ndarray, size: int, promise: Promise, splits: int, seed: int
) -> tuple[list[int | None], int]:
    """Chosen thresholds of `splits` draws without replacement, and how many drawn with replacement
    lose more than promised.
    """
    rng = np.random.default_rng(seed)
    lost = measured.outcomes.lost
    chosen = []
    broken_iid = 0
    for _ in range(splits):
        order = rng.permutation(len(lost))
        chosen.append(choose(lost, order[:size], promise))
        place = choose(lost, rng.integers(len(lost), size=size), promise)
        broken_iid += place is not None and true_loss[place] > promise.max_loss
    return chosen, broken_iid


def summarise(
    calibrated: Measured, used: Measured, size: int, promise: Promise, splits: int, seed: int
) -> dict[str, object]:
    """One row: thresholds chosen on questions of `calibrated`, judged on those of `used`."""
    true_loss = used.outcomes.lost.mean(axis=0)
    cost = used.outcomes.cost.mean(axis=0)
    chosen, broken_iid = count_broken(calibrated, true_loss, size, promise, splits, seed)
    kept = [place for place in chosen if place is not None]
    broken = sum(true_loss[place] > promise.max_loss for place in kept)
    row: dict[str, object] = {
        "max_loss": promise.max_loss,
        "calibration": size,
        "refused": (splits - len(kept)) / splits,
        "broken": broken / splits,
        "broken_interval": interval(int(broken), splits),
        "broken_iid": broken_iid / splits,
        "broken_iid_interval": interval(broken_iid, splits),
    }
    if kept:
        mean_cost_kept = float(np.mean(cost[kept]))
        row["loss"] = float(np.mean(true_loss[kept]))
        row["saved"] = 1 - mean_cost_kept / float(cost[0])
        row["given_up"] = given_up(mean_cost_kept, cost, true_loss, promise.max_loss)
        row["cost_ratio"] = mean_cost_kept / used.reference_cost
    return row


def given_up(
    mean_cost_kept: float, cost: np.ndarray, true_loss: np.ndarray, max_loss: float
) -> float | None:
    """Share of the possible saving that certainty costs; None where nothing can be saved."""
    allowed = cost[true_loss <= max_loss]
    if not len(allowed) or allowed.min() >= cost[0]:
        return None
    possible = cost[0] - allowed.min()
    return float(1 - (cost[0] - mean_cost_kept) / possible)


def interval(count: int, total: int) -> list[float]:
    """Exact 95% interval of a share."""
    exact = binomtest(count, total).proportion_ci(0.95, method="exact")
    return [float(exact.low), float(exact.high)]


def cell(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, list):
        return f"[{value[0]:.3f}, {value[1]:.3f}]"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def table(rows: list[dict[str, object]]) -> str:
    columns = list(max(rows, key=lambda row: len(list(row))))
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        lines.append("| " + " | ".join(cell(row.get(column)) for column in columns) + " |")
    return "\n".join(lines)


def main(arguments: list[str]) -> list[dict[str, object]]:
    options = make_parser().parse_args(arguments)
    place = Place.of(options.run)
    home = Place.of(options.shift) if options.shift else place
    used = measure(home, place, place.splits.test)
    calibrated = measure(home, home, home.splits.test) if options.shift else used
    num_questions = len(used.outcomes.lost)
    print(f"{num_questions} test questions of {options.run}, reference {used.reference}")
    rows = []
    for max_loss in options.max_loss:
        promise = Promise(max_loss, options.confidence)
        for size in map(int, options.calibration):
            if size < len(calibrated.outcomes.lost):
                row = summarise(calibrated, used, size, promise, options.splits, options.seed)
                rows.append(row)
    print(table(rows))
    never = used.outcomes.lost[:, 0].mean()
    print(f"Routes that never end early lose {never:.4f}.")
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1) + "\n")
    return rows


if __name__ == "__main__":
    run_command(main)
