"""Train and evaluate several seeds, and optionally several values of a setting, and report them
together.

    python scripts/experiment.py --name main --seeds 0,1,2 --eval.full true
    python scripts/experiment.py --name alphas --seeds 0,1,2 --sweep reward.alpha=0,0.05,0.2

Runs land in runs/NAME-s0, ... (with a sweep runs/NAME-0.05-s0, ...); finished ones are reused,
unfinished ones continued. The common report lands in runs/NAME/report. A sweep of reward.alpha
reports quality against cost with every baseline at every alpha (test_ppo_multi.py --alphas). A
sweep of another setting has a report for each value, and all agents in one trade-off. All runs
share the configuration's answer store, so that later ones ask little. Other settings are passed on:
--train.epochs 12.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from runtime.signals import watch_signals

if __name__ == "__main__":  # before the imports that take seconds
    watch_signals()

from runtime.command_line import load_config, parse, run_command, validate


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", type=Path, default=Path("configs/quickstart.yaml"))
    parser.add_argument("--name", required=True, help="of the experiment: runs/NAME")
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated")
    parser.add_argument("--sweep", metavar="KEY=V1,V2", help="a setting to vary")
    return parser


if __name__ == "__main__":  # --help and mistakes, before the imports that take seconds
    run_command(lambda arguments: parse(make_parser(), arguments))

from config import Config, RewardConfig
from evaluation.route_log import Record, read_records, reprice
from report.page import write_report_files
from report.policies import PolicyResults
from report.schema import read_results, to_json
from report.trade_off import trade_off
from runtime.errors import ConfigError
from runtime.files import write_atomically
from runtime.run_folder import num_epochs, read_metrics

TRAINING_SECTIONS = ("data", "pool", "env", "reward", "agent", "ppo", "train", "terminator")


def train(config_path: Path, name: str, seed: int, overrides: Sequence[str]) -> Path:
    """The finished run of this name and seed: reused, continued or trained.

    Raises ConfigError when it has other settings.
    """
    run = Path("runs") / f"{name}-s{seed}"
    arguments = [*overrides, "--seed", str(seed), "--name", f"{name}-s{seed}"]
    wanted = load_config(config_path, arguments)
    if not (run / "config.yaml").is_file():
        _python("train_ppo_multi.py", "--config", str(config_path), *arguments)
        return run
    differing = trained_otherwise(load_config(run / "config.yaml"), wanted)
    if differing:
        raise ConfigError(
            f"{run} was trained with other settings ({', '.join(differing)}): choose another"
            " --name, or delete it"
        )
    if num_epochs(run) >= wanted.train.epochs:
        print(f"{run}: trained before", flush=True)
        return run
    budget = []
    if wanted.train.max_expert_calls is not None:
        budget = ["--train.max_expert_calls", str(wanted.train.max_expert_calls)]
    _python("train_ppo_multi.py", "--resume", str(run), *budget)
    return run


def trained_otherwise(found: Config, wanted: Config) -> list[str]:
    """Sections that training depends on and that differ; a run's budget may be raised."""
    differing = []
    for name in TRAINING_SECTIONS:
        one = getattr(found, name)
        other = getattr(wanted, name)
        if name == "train":
            one = one.model_copy(update={"max_expert_calls": other.max_expert_calls})
        if one != other:
            differing.append(name)
    return differing


def evaluate(runs: Sequence[Path], out: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Evaluate runs that differ in their seed into one report; returns its results.json."""
    _python("test_ppo_multi.py", "--run", *map(str, runs), "--out", str(out), *overrides)
    return read_results(out / "report" / "results.json")


@contextmanager
def ended_with_us(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Tell the process to end where this one is told to."""
    try:
        yield
    except BaseException:
        process.terminate()
        raise


def _python(script: str, *arguments: str) -> None:
    """Run a command; what it prints is shown at once. Raises ConfigError when it fails."""
    print(f"\n$ python {script} {' '.join(arguments)}", flush=True)
    said = ""
    command = [sys.executable, str(ROOT / script), *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process, ended_with_us(process):
        pipe = cast(io.BufferedReader, process.stderr)
        # The end is kept for the message.
        while chunk := pipe.read1().decode(errors="replace"):
            sys.stderr.write(chunk)
            sys.stderr.flush()
            said = (said + chunk)[-10_000:]
    if process.returncode:
        raise ConfigError(
            f"{script} ended with exit status {process.returncode}: {last_line(said)}. What was"
            " trained and answered is kept: correct the cause and run the same command again"
        )


def last_line(text: str) -> str:
    """The last line of what a command said, without the progress bar before it."""
    lines = text.replace("\r", "\n").strip().splitlines()
    return lines[-1].removeprefix("error: ") if lines else "it said nothing"


def parse_sweep(text: str) -> tuple[str, list[str]]:
    """`reward.alpha=0.02,0.1` -> ("reward.alpha", ["0.02", "0.1"])."""
    key, equals, values = text.partition("=")
    if not equals or not values:
        raise ConfigError(
            f"--sweep {text}: expected KEY=VALUE,VALUE, for example reward.alpha=0.02,0.1"
        )
    try:
        listed = yaml.compose(f"[{values}]").value  # type: ignore[union-attr]  # a list
    except yaml.YAMLError as error:
        raise ConfigError(
            f"--sweep {text}: the values are not YAML with commas between ({error})"
        ) from error
    written = []  # as they were written: they name the runs
    for value in listed:
        written.append(values[value.start_mark.index - 1 : value.end_mark.index - 1])
    return key.strip(), written


def one_part(value: str) -> str:
    """A value as a part of a path: what would begin a folder of its own is replaced."""
    return value.replace("/", "_").replace("\\", "_")


@dataclass(frozen=True)
class Sweep:
    """The values of a setting, as they were written, and what all runs share."""

    config_path: Path
    name: str
    seeds: Sequence[int]
    key: str
    values: Sequence[str]
    overrides: Sequence[str]

    def options(self, value: str) -> list[str]:
        return [*self.overrides, f"--{self.key}", value]

    def check(self) -> None:
        """Raises ConfigError for a value that the setting cannot have."""
        for value in self.values:
            load_config(self.config_path, self.options(value))

    def train(self, value: str) -> list[Path]:
        """The runs of a value, one for each seed."""
        runs = []
        for seed in self.seeds:
            options = self.options(value)
            runs.append(train(self.config_path, self.run_name(value), seed, options))
        return runs

    def run_name(self, value: str) -> str:
        """Of the runs of this value, before the seed."""
        return f"{self.name}-{one_part(value)}"

    @property
    def folder(self) -> Path:
        return Path("runs") / self.name

    def report_folder(self, value: str) -> Path:
        return self.folder / one_part(value)

    @property
    def own_value(self) -> str:
        """The value that the configuration has by itself; the first where it is not listed."""
        own = load_config(self.config_path, list(self.overrides))
        for value in self.values:
            if load_config(self.config_path, self.options(value)) == own:
                return value
        return self.values[0]


def sweep_alphas(sweep: Sweep) -> None:
    """Train every alpha, then evaluate all of them into one report with curves."""
    runs: list[str] = []
    for value in sweep.values:
        runs += map(str, sweep.train(value))
    alphas = ["--alphas", ",".join(sweep.values), "--run", *runs, "--out", str(sweep.folder)]
    _python("test_ppo_multi.py", *alphas, *sweep.overrides)


def sweep_setting(sweep: Sweep) -> None:
    """Train and evaluate every value, then put all agents into one trade-off.

    It stands in the report of the configuration's own value.
    """
    for value in sweep.values:
        evaluate(sweep.train(value), sweep.report_folder(value), sweep.options(value))
    base = sweep.own_value
    results = read_results(sweep.report_folder(base) / "report" / "results.json")
    config = validate(results["evaluation"]["config"], str(sweep.report_folder(base)))
    routes = {}
    for value in sweep.values:
        routes[value] = read_records(sweep.report_folder(value) / "routes.jsonl")
    points = [point for point in results["tradeoff"]["points"] if point["kind"] != "der"]
    points += family(routes, config.reward)
    results["tradeoff"] = trade_off(points, sweep.key)
    results["notes"].append(
        f"Table and figures: {sweep.key} = {base}. Trade-off: {sweep.key} ="
        f" {', '.join(sweep.values)}, every agent charged as at {base}."
    )
    curves = learning_curves(sweep, base)
    report = sweep.folder / "report"
    report.mkdir(parents=True, exist_ok=True)
    write_atomically(report / "results.json", to_json(results))
    write_report_files(report, results, routes[base], curves)
    show(results["tradeoff"])
    print(f"Report: {report / 'report.html'}")


def learning_curves(sweep: Sweep, value: str) -> dict[int, list[Record]]:
    """metrics.jsonl of the runs of one value, by seed."""
    curves = {}
    for seed in sweep.seeds:
        run = Path("runs") / f"{sweep.run_name(value)}-s{seed}"
        curves[seed] = read_metrics(run / "metrics.jsonl")
    return curves


def family(routes: Mapping[Any, Sequence[Record]], reward: RewardConfig) -> list[dict[str, Any]]:
    """The agents' points in the trade-off from the route log of each value, all priced alike.

    Raises ReportError where the logs differ in questions.
    """
    agents = {}
    questions: dict[str, None] = {}  # in order
    for value, records in routes.items():
        agents[value] = reprice([r for r in records if r["role"] == "der"], reward)
        for record in agents[value]:
            questions[record["question"]] = None
    points = []
    for value, records in agents.items():
        agent = PolicyResults(records[0]["policy"], records, list(questions))
        points.append(agent.point(str(value)))
    return points


def show(found: Mapping[str, Any]) -> None:
    """Print the agents of a trade-off and the area under their hull."""
    span = "{mean:.3f} [{lo:.3f}, {hi:.3f}]"
    print(f"\n{found['setting']:<20} {'quality':^22} {'cost C':^22}")
    for point in found["points"]:
        if point["kind"] == "der":
            quality = span.format(**point["quality"])
            cost = span.format(**point["cost"])
            print(f"{point['value']:<20} {quality:<22} {cost:<22}")
    if found["area"] is not None:
        lowest, highest = found["bounds"]
        print(
            f"area under the agents' hull, over costs {lowest:.3g} to {highest:.3g}:"
            f" {found['area']:.3f} (single experts' hull: {found['area_experts']:.3f})"
        )


def parse_seeds(text: str) -> list[int]:
    """`0,1,2`. Raises ConfigError."""
    try:
        return [int(seed) for seed in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"--seeds {text}: expected whole numbers with commas between") from error


def main(arguments: list[str]) -> None:
    options, overrides = parse(make_parser(), arguments)
    seeds = parse_seeds(options.seeds)
    # A typo, in the name too, is refused before anything is trained.
    load_config(options.config, [*overrides, f"--name={json.dumps(options.name)}"])
    if options.sweep:
        key, values = parse_sweep(options.sweep)
        sweep = Sweep(options.config, options.name, seeds, key, values, overrides)
        sweep.check()
        if key == "reward.alpha":
            sweep_alphas(sweep)
        else:
            sweep_setting(sweep)
        return
    runs = [train(options.config, options.name, seed, overrides) for seed in seeds]
    evaluate(runs, Path("runs") / options.name, overrides)


if __name__ == "__main__":
    run_command(main)
