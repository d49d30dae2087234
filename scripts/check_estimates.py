"""Measures the errors of estimates from logged routes, where recorded answers give the truth:
python scripts/check_estimates.py --run runs/NAME [--repeats 20]

A pair is a logging and a target policy, both of the run's agent, which must have been trained for
several alphas. The logging policy explores on a random half of the test questions. The target
policy is greedy, and its truth is its mean return on all test questions, played. Each of the
`--repeats` draws other questions and other actions. Columns: the mean effective number of routes,
the root mean square error of each estimator, how often the 95% interval of the doubly robust one
holds the truth, and how many draws were refused for lack of support.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runtime.command_line import count, run_command


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--repeats", type=count, default=20)
    parser.add_argument("--out", type=Path, help="write the rows as JSON, too")
    return parser


if __name__ == "__main__":  # --help and mistakes, before the imports that take seconds
    run_command(make_parser().parse_args)

import numpy as np

from belief.exploration import GREEDY, Exploration
from evaluation.ground import Ground
from evaluation.off_policy import ESTIMATORS
from evaluation.route_log import Record
from questions import Question
from runtime.errors import ReportError
from scripts.estimate_policy import estimate, log_reader
from scripts.explore_run import explore


@dataclass(frozen=True)
class Pair:
    """A logging policy, and the alpha of the greedy target."""

    alpha: float
    exploration: Exploration
    target: float


LITTLE = Exploration(share=0.3, temperature=0.02)
MUCH = Exploration(share=0.6, temperature=0.02)
PAIRS = (
    Pair(0.02, LITTLE, 0.02),
    Pair(0.02, LITTLE, 0.05),
    Pair(0.02, MUCH, 0.05),
    Pair(0.05, LITTLE, 0.02),
    Pair(0.05, LITTLE, 0.05),
    Pair(0.05, MUCH, 0.02),
    Pair(0.05, MUCH, 0.1),
    Pair(0.1, LITTLE, 0.1),
    Pair(0.1, MUCH, 0.05),
    Pair(0.1, MUCH, 0.2),
)


@dataclass
class Found:
    """What the repeats of a pair gave: estimates less the truth, and the rest of a row."""

    errors: dict[str, list[float]] = field(
        default_factory=lambda: {name: [] for name in ESTIMATORS}
    )
    effective: list[float] = field(default_factory=list)
    holds: list[bool] = field(default_factory=list)
    refused: int = 0

    def row(self, pair: Pair, truth: float) -> dict[str, float]:
        row = {"logs at": pair.alpha, "share": pair.exploration.share}
        row["target"] = pair.target
        row["truth"] = truth
        row["effective"] = float(np.mean(self.effective))
        for name, errors in self.errors.items():
            row[name] = float(np.sqrt(np.mean(np.square(errors))))
        row["dr first"] = self.errors["dr"][0]
        row["first holds"] = float(self.holds[0])
        row["dr holds"] = float(np.mean(self.holds))
        row["refused"] = self.refused
        return row


class Checker:
    """One run at several alphas."""

    def __init__(self, run: Path):
        self.ground = Ground([run], [])

    def ask_with(self, alpha: float) -> None:
        """Agent, prices and returns at this alpha."""
        config = self.ground.config
        reward = config.reward.model_copy(update={"alpha": alpha})
        self.ground.config = config.model_copy(update={"reward": reward})
        self.ground.agent.ask_with(alpha)

    def truth(self, alpha: float) -> float:
        """The mean return of the greedy policy on all test questions."""
        self.ask_with(alpha)
        records = explore(self.ground, self.ground.splits.test, GREEDY, 0)
        return float(np.mean([record["return"] for record in records]))

    def log(self, alpha: float, exploration: Exploration, seed: int) -> list[Record]:
        """A random half of the test questions, explored."""
        self.ask_with(alpha)
        test = self.ground.splits.test
        rows = np.random.default_rng(seed).permutation(len(test))[: len(test) // 2]
        questions: list[Question] = [test[row] for row in rows]
        return explore(self.ground, questions, exploration, seed)

    def check(self, logs: list[list[Record]], target: float, truth: float) -> Found:
        self.ask_with(target)
        reader = log_reader(self.ground, GREEDY)
        found = Found()
        for records in logs:
            try:
                estimates = estimate(reader.read(records))
            except ReportError:
                found.refused += 1
                continue
            found.effective.append(estimates["effective_routes"])
            for name in ESTIMATORS:
                found.errors[name].append(estimates[name]["mean"] - truth)
            found.holds.append(estimates["dr"]["lo"] <= truth <= estimates["dr"]["hi"])
        return found


def table(rows: list[dict[str, float]]) -> str:
    columns = list(rows[0])
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        lines.append("| " + " | ".join(f"{row[name]:.3g}" for name in columns) + " |")
    return "\n".join(lines)


def main(arguments: list[str]) -> list[dict[str, float]]:
    options = make_parser().parse_args(arguments)
    checker = Checker(options.run)
    logs: dict[tuple[float, Exploration], list[list[Record]]] = {}
    rows = []
    for pair in PAIRS:
        logged = (pair.alpha, pair.exploration)
        if logged not in logs:
            logs[logged] = [checker.log(*logged, seed) for seed in range(options.repeats)]
        truth = checker.truth(pair.target)
        found = checker.check(logs[logged], pair.target, truth)
        if found.holds:  # else there is nothing to average
            rows.append(found.row(pair, truth))
        else:
            print(f"{pair}: refused in all repeats")
    print(table(rows))
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1) + "\n")
    return rows


if __name__ == "__main__":
    run_command(main)
