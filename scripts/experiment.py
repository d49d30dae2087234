"""Train and evaluate several seeds, and optionally several values of a setting, and report them
together.

    python scripts/experiment.py --name main --seeds 0,1,2 --eval.full true
    python scripts/experiment.py --name alphas --seeds 0,1,2 --sweep reward.alpha=0.02,0.1,0.5

Runs land in runs/NAME-s0, ... (with a sweep runs/NAME-0.02-s0, ...); finished ones are reused,
unfinished ones continued. The common report lands in runs/NAME/report (with a sweep one per value,
and runs/NAME/report with all values in one trade-off). All runs share the configuration's answer
store, so that later ones ask little. Other settings are passed on: --train.epochs 12.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

os.environ.setdefault("NUMBA_DISABLE_JIT", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


from config import Config, RewardConfig
from evaluation.route_log import Record, read_records, reprice
from report.page import write_report_files
from report.results import Sheet
from report.schema import read_results, to_json
from report.trade_off import trade_off
from runtime.command_line import load_config, parse, run_command, validate
from runtime.errors import ConfigError
from runtime.files import write_atomically
from runtime.run_folder import num_epochs, read_metrics


def train(config_path: Path, name: str, seed: int, overrides: Sequence[str]) -> Path:
    """The finished run of this name and seed: reused, continued or trained.

    Raises ConfigError when it has other settings.
    """
    run, arguments = (
        Path("runs") / f"{name}-s{seed}",
        [
            *overrides,
            "--seed",
            str(seed),
            "--name",
            f"{name}-s{seed}",
        ],
    )
    wanted = load_config(config_path, arguments)
    if not (run / "config.yaml").is_file():
        _python("train_ppo_multi.py", "--config", str(config_path), *arguments)
    elif differing := trained_otherwise(load_config(run / "config.yaml"), wanted):
        raise ConfigError(
            f"{run} was trained with other settings ({', '.join(differing)}): choose another"
            " --name, or delete it"
        )
    elif num_epochs(run) < wanted.train.epochs:
        limit = wanted.train.max_expert_calls
        _python(
            "train_ppo_multi.py",
            "--resume",
            str(run),
            *(["--train.max_expert_calls", str(limit)] if limit is not None else []),
        )
    else:
        print(f"{run}: trained before", flush=True)
    return run


def trained_otherwise(found: Config, wanted: Config) -> list[str]:
    """Sections that training depends on and that differ; a run's budget may be raised."""
    found, wanted = (
        c.model_copy(update={"train": c.train.model_copy(update={"max_expert_calls": None})})
        for c in (found, wanted)
    )
    return [
        name
        for name in ("data", "pool", "env", "reward", "agent", "ppo", "train", "terminator")
        if getattr(found, name) != getattr(wanted, name)
    ]


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
    print(f"\n$ python {script} {' '.join(arguments)}", flush=True)
    said = ""
    with (
        subprocess.Popen(
            [sys.executable, str(ROOT / script), *arguments], stderr=subprocess.PIPE
        ) as process,
        ended_with_us(process),
    ):
        while chunk := process.stderr.read1().decode(
            errors="replace"
        ):  # shown at once, progress bars too; the end is kept for the message
            sys.stderr.write(chunk)
            sys.stderr.flush()
            said = (said + chunk)[-10_000:]
    if code := process.returncode:
        why = (said.strip().splitlines() or ["it said nothing"])[-1].removeprefix("error: ")
        raise ConfigError(
            f"{script} ended with exit status {code}: {why}. What was trained and answered is kept:"
            " mend the cause and run the same command again"
        )


def parse_sweep(text: str) -> tuple[str, list[str]]:
    """`reward.alpha=0.02,0.1` -> ("reward.alpha", ["0.02", "0.1"])."""
    key, equals, values = text.partition("=")
    if not equals or not values:
        raise ConfigError(
            f"--sweep {text}: expected KEY=VALUE,VALUE, for example reward.alpha=0.02,0.1"
        )
    try:
        listed = yaml.compose(f"[{values}]").value
    except yaml.YAMLError as error:
        raise ConfigError(
            f"--sweep {text}: the values are not YAML with commas between ({error})"
        ) from error
    return key.strip(), [
        values[value.start_mark.index - 1 : value.end_mark.index - 1] for value in listed
    ]  # as written: they name the runs


def one_part(value: str) -> str:
    """A value as a part of a path: what would begin a folder of its own is replaced."""
    return value.replace("/", "_").replace("\\", "_")


def sweep(
    config_path: Path,
    name: str,
    seeds: Sequence[int],
    key: str,
    values: Sequence[str],
    overrides: Sequence[str],
) -> None:
    """Train and evaluate every value, then put all agents in the trade-off of the report of the
    configuration's own value (else the first).
    """
    for value in values:  # a typo is refused before anything is trained
        load_config(config_path, [*overrides, f"--{key}", value])
    reports = {}
    for value in values:
        of_value = [*overrides, f"--{key}", value]
        part = one_part(value)
        runs = [train(config_path, f"{name}-{part}", seed, of_value) for seed in seeds]
        reports[value] = evaluate(runs, Path("runs") / name / part, of_value)
    own = load_config(config_path, list(overrides))
    base = next(
        (
            value
            for value in values
            if load_config(config_path, [*overrides, f"--{key}", value]) == own
        ),
        values[0],
    )
    results, folder = reports[base], Path("runs") / name
    config = validate(results["evaluation"]["config"], f"{folder / base}")
    routes = {value: read_records(folder / one_part(value) / "routes.jsonl") for value in values}
    points = [point for point in results["tradeoff"]["points"] if point["kind"] != "der"] + family(
        routes, config.reward
    )
    results["tradeoff"] = trade_off(points, key)
    results["notes"].append(
        f"Table and figures: {key} = {base}. Trade-off: {key} = {', '.join(values)}, every agent"
        f" charged as at {base}."
    )
    (folder / "report").mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "report" / "results.json", to_json(results))
    curves = {}
    for seed in seeds:
        run = Path("runs") / f"{name}-{one_part(base)}-s{seed}"
        curves[seed] = read_metrics(run / "metrics.jsonl")
    write_report_files(folder / "report", results, routes[base], curves)
    show(results["tradeoff"])
    print(f"Report: {folder / 'report' / 'report.html'}")


def family(routes: Mapping[Any, Sequence[Record]], reward: RewardConfig) -> list[dict[str, Any]]:
    """The agents' points in the trade-off from the route log of each value, all priced alike.

    Raises ReportError where the logs differ in questions.
    """
    der = {
        value: reprice([record for record in records if record["kind"] == "der"], reward)
        for value, records in routes.items()
    }
    questions = list(
        dict.fromkeys(record["question"] for records in der.values() for record in records)
    )
    return [
        Sheet(records[0]["policy"], records, questions).point(str(value))
        for value, records in der.items()
    ]


def show(found: Mapping[str, Any]) -> None:
    """Print the agents of a trade-off and the area under their hull."""
    span = "{mean:.3f} [{lo:.3f}, {hi:.3f}]"
    print(f"\n{found['setting']:<20} {'quality':^22} {'cost C':^22}")
    for point in found["points"]:
        if point["kind"] == "der":
            print(
                f"{point['value']:<20} {span.format(**point['quality']):<22}"
                f" {span.format(**point['cost']):<22}"
            )
    if found["area"] is not None:
        least, most = found["bounds"]
        print(
            f"area under the agents' hull, over costs {least:.3g} to {most:.3g}:"
            f" {found['area']:.3f} (single experts' hull: {found['area_experts']:.3f})"
        )


def parse_seeds(text: str) -> list[int]:
    """`0,1,2`. Raises ConfigError."""
    try:
        return [int(seed) for seed in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"--seeds {text}: expected whole numbers with commas between") from error


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", type=Path, default=Path("configs/quickstart.yaml"))
    parser.add_argument("--name", required=True, help="of the experiment: runs/NAME")
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated")
    parser.add_argument("--sweep", metavar="KEY=V1,V2", help="a setting to vary")
    options, overrides = parse(parser, arguments)
    seeds = parse_seeds(options.seeds)
    # A typo, in the name too, is refused before anything is trained.
    load_config(options.config, [*overrides, f"--name={json.dumps(options.name)}"])
    if options.sweep:
        sweep(options.config, options.name, seeds, *parse_sweep(options.sweep), overrides)
    else:
        evaluate(
            [train(options.config, options.name, seed, overrides) for seed in seeds],
            Path("runs") / options.name,
            overrides,
        )


if __name__ == "__main__":
    run_command(main)
