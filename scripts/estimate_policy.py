"""Estimate what a run's agent would have returned on routes that another policy took:
python scripts/estimate_policy.py --log runs/explored.jsonl --run runs/NAME

The log must hold the probability of every step, as scripts/explore_run.py writes it. Settings of
the run may follow: --reward.alpha 0.1 estimates the agent at that cost weight. Estimators and
intervals are those of evaluation/off_policy.py. A log without probabilities is refused, and so is
one whose policy never did what the agent would do.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runtime.command_line import parse, run_command


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--log", type=Path, required=True, help="a route log with probabilities")
    parser.add_argument("--run", type=Path, required=True, help="whose policy is estimated")
    parser.add_argument("--policy", help="label in the log; default: the agent's routes")
    parser.add_argument(
        "--share", type=float, default=0.0, help="the estimated policy explores as much"
    )
    parser.add_argument("--temperature", type=float, default=0.05, help="of that exploration")
    parser.add_argument("--out", type=Path, help="write the estimates as JSON, too")
    return parser


if __name__ == "__main__":  # --help and mistakes, before the imports that take seconds
    run_command(lambda arguments: parse(make_parser(), arguments))

from belief.exploration import Exploration
from evaluation.ground import Ground
from evaluation.logged_routes import LogReader, TargetPolicy
from evaluation.off_policy import (
    ESTIMATORS,
    LoggedRoute,
    check_support,
    effective_sample_size,
)
from evaluation.route_log import Record, read_records
from runtime.errors import ReportError
from scripts.explore_run import belief_agent_of, exploration_of
from terminator import EstimateTerminator


def target_policy(ground: Ground, exploration: Exploration) -> TargetPolicy:
    """The policy of a run. Raises ConfigError for an agent that reads text."""
    agent = belief_agent_of(ground)
    threshold = ground.runs[0].terminator.threshold
    return TargetPolicy(agent, EstimateTerminator(threshold), exploration)


def log_reader(ground: Ground, exploration: Exploration) -> LogReader:
    """Reads routes as the run's policy sees them, at the run's prices and alpha."""
    splits = ground.splits
    questions = [*splits.train, *splits.validation, *splits.test]
    target = target_policy(ground, exploration)
    return LogReader(target, ground.config, ground.pool.names, questions)


def policy_of(records: list[Record], label: str | None, log: Path) -> list[Record]:
    """The lines of one policy: of a label, or the agent's own. Raises ReportError for none."""
    chosen = []
    for record in records:
        is_wanted = record["role"] == "der" if label is None else record["policy"] == label
        if is_wanted:
            chosen.append(record)
    if not chosen:
        known = sorted({record["policy"] for record in records})
        raise ReportError(f"{log}: no routes of that policy; --policy may be {', '.join(known)}")
    return chosen


def estimate(routes: list[LoggedRoute]) -> dict[str, Any]:
    """All estimates as plain numbers. Raises ReportError where support is missing."""
    check_support(routes)
    found: dict[str, Any] = {"routes": len(routes)}
    found["effective_routes"] = effective_sample_size(routes)
    for name, estimator in ESTIMATORS.items():
        found[name] = asdict(estimator(routes))
    return found


def main(arguments: list[str]) -> dict[str, Any]:
    options, overrides = parse(make_parser(), arguments)
    exploration = exploration_of(options.share, options.temperature)
    records = policy_of(read_records(options.log), options.policy, options.log)
    ground = Ground([options.run], overrides)
    found = estimate(log_reader(ground, exploration).read(records))
    alpha = ground.config.reward.alpha
    print(
        f"{options.run} at alpha {alpha:g}, from {found['routes']} routes of {options.log}, worth"
        f" {found['effective_routes']:.0f} of its own"
    )
    for name in ESTIMATORS:
        one = found[name]
        print(f"{name:>7}  {one['mean']:.4f} [{one['lo']:.4f}, {one['hi']:.4f}]")
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    return found


if __name__ == "__main__":
    run_command(main)
