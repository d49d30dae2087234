"""Compares a run to which an expert was added with one that was trained with it from the start:
python scripts/check_changed_pool.py --run runs/all --base runs/without --expert NAME --out FOLDER

--base was trained on the pool of --run without that expert. It is added with the answers to 50, 100
and 200 training questions, and each agent plays the test questions of --run. Differences of return
are paired by question, with 95% intervals.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runtime.command_line import run_command


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True, help="trained with the expert")
    parser.add_argument("--base", type=Path, required=True, help="trained without it")
    parser.add_argument("--expert", required=True)
    parser.add_argument("--out", type=Path, required=True, help="a new folder for the changed runs")
    return parser


if __name__ == "__main__":  # --help and mistakes, before the imports that take seconds
    run_command(make_parser().parse_args)

import numpy as np

from belief.exploration import GREEDY
from evaluation.ground import Ground
from evaluation.stats import paired_difference
from runtime.errors import ConfigError
from runtime.run_folder import load_run_config
from scripts.explore_run import explore
from training.changed_pool import with_expert


def played(run: Path) -> dict[str, np.ndarray]:
    """Return, quality and calls (N,) of a run's agent, question by question."""
    ground = Ground([run], [])
    columns: dict[str, list[float]] = {"return": [], "quality": [], "calls": []}
    for record in explore(ground, ground.splits.test, GREEDY, 0):
        columns["return"].append(record["return"])
        columns["quality"].append(record["quality"])
        columns["calls"].append(len(record["steps"]))
    return {name: np.array(values) for name, values in columns.items()}


def expert_file(run: Path, name: str, out: Path) -> Path:
    """One expert of a run as a file for --add_expert."""
    for expert in load_run_config(run).pool.experts:
        if expert.name == name:
            path = out / "experts.yaml"  # JSON is YAML
            path.write_text(json.dumps({"experts": [expert.model_dump(mode="json")]}))
            return path
    raise ConfigError(f"--expert {name}: {run} has no such expert")


def line(label: str, one: dict[str, np.ndarray], reference: dict[str, np.ndarray]) -> str:
    """A row of the table."""
    means = [f"{values.mean():.4f}" for values in one.values()]
    found = paired_difference(one["return"], reference["return"])
    difference = f"{found['diff']:+.4f} [{found['lo']:+.4f}, {found['hi']:+.4f}]"
    return f"| {label} | {' | '.join(means)} | {difference} |"


def main(arguments: list[str]) -> None:
    options = make_parser().parse_args(arguments)
    options.out.mkdir(parents=True)
    experts = expert_file(options.run, options.expert, options.out)
    reference = played(options.run)
    print("| agent | return | quality | calls | return less that of training with it |")
    print("|---|---|---|---|---|")
    print(line("trained with it", reference, reference), flush=True)
    print(line("without it", played(options.base), reference), flush=True)
    for num_examples in (50, 100, 200):
        changed = with_expert(
            options.base, experts, num_examples, options.out / f"with_{num_examples}"
        )
        print(line(f"added, {num_examples} examples", played(changed), reference), flush=True)


if __name__ == "__main__":
    run_command(main)
