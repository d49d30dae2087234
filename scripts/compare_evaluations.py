"""Compares the agents of two evaluations of the same questions, paired by question: python
scripts/compare_evaluations.py runs/A runs/B

A and B are --out folders of test_ppo_multi.py with the same --alphas and seeds, for example one
agent for all cost weights against one agent a weight. Printed is A minus B in return, at each alpha
and as the mean over them, with 95% intervals; and the mean cost of both.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runtime.command_line import run_command


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("a", type=Path)
    parser.add_argument("b", type=Path)
    parser.add_argument("--role", default="der", help="of the policy compared in A; default: der")
    parser.add_argument("--other_role", help="of the policy in B; default: that of A")
    return parser


if __name__ == "__main__":  # --help and mistakes, before the imports that take seconds
    run_command(make_parser().parse_args)

import numpy as np

from evaluation.route_log import read_records
from evaluation.stats import paired_difference
from report.policies import PolicyResults
from report.schema import read_results
from runtime.errors import ReportError


@dataclass(frozen=True)
class Compared:
    """One alpha of two evaluations: returns (S, Q) of their agents, and mean costs."""

    alpha: float
    returns: tuple[np.ndarray, np.ndarray]
    costs: tuple[float, float]

    @property
    def difference(self) -> dict[str, Any]:
        return paired_difference(*self.returns)


def read_agents(folder: Path, role: str) -> dict[float, PolicyResults]:
    """By alpha, the policy of a role in a folder of test_ppo_multi.py --alphas.

    Raises ReportError where there is none.
    """
    agents = {}
    for path in sorted(folder.glob("alpha_*")):
        alpha = read_results(path / "report" / "results.json")["alpha"]
        records = read_records(path / "routes.jsonl")
        found = [record for record in records if record["role"] == role]
        if not found:
            raise ReportError(f"{path}: no policy of the role {role}")
        questions = list(dict.fromkeys(record["question"] for record in found))
        agents[alpha] = PolicyResults(found[0]["policy"], found, sorted(questions))
    if not agents:
        raise ReportError(f"{folder}: no alpha_* folders; make them with --alphas and --out")
    return agents


def compare(
    ours: Mapping[float, PolicyResults], theirs: Mapping[float, PolicyResults]
) -> list[Compared]:
    """Pair the alphas. Raises ReportError where alphas, seeds or questions differ."""
    if ours.keys() != theirs.keys():
        raise ReportError(f"the alphas differ: {sorted(ours)} and {sorted(theirs)}")
    compared = []
    for alpha in sorted(ours):
        a, b = ours[alpha], theirs[alpha]
        same_seeds = a.seeds == b.seeds or 1 in (len(a.seeds), len(b.seeds))
        if not same_seeds or a.returns.shape[1] != b.returns.shape[1]:
            raise ReportError(f"alpha {alpha:g}: seeds or numbers of questions differ")
        costs = (float(a.cost.mean()), float(b.cost.mean()))
        compared.append(Compared(alpha, (a.returns, b.returns), costs))
    return compared


def lines(compared: Sequence[Compared]) -> list[str]:
    """The table, and the mean over the alphas."""
    out = [f"{'alpha':>6} {'A':>7} {'B':>7}  {'A - B':<24} cost A, B"]
    for one in compared:
        means = [returns.mean() for returns in one.returns]
        costs = f"{one.costs[0]:.3f}, {one.costs[1]:.3f}"
        words = shown(one.difference)
        out.append(f"{one.alpha:>6g} {means[0]:>7.3f} {means[1]:>7.3f}  {words:<24} {costs}")
    ours = np.mean([one.returns[0] for one in compared], axis=0)  # (S, Q)
    theirs = np.mean([one.returns[1] for one in compared], axis=0)
    words = shown(paired_difference(ours, theirs))
    out.append(f"{'mean':>6} {ours.mean():>7.3f} {theirs.mean():>7.3f}  {words}")
    return out


def shown(difference: Mapping[str, Any]) -> str:
    return f"{difference['diff']:+.4f} [{difference['lo']:+.4f}, {difference['hi']:+.4f}]"


def main(arguments: list[str]) -> None:
    options = make_parser().parse_args(arguments)
    ours = read_agents(options.a, options.role)
    theirs = read_agents(options.b, options.other_role or options.role)
    print("\n".join(lines(compare(ours, theirs))))


if __name__ == "__main__":
    run_command(main)
