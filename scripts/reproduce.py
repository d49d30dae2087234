"""Put a table of the paper beside what this project measures: paper value, ours with its 95%
interval, difference, or why it was not run.

    bash scripts/reproduce.sh embedded  # trains and evaluates 3 seeds: minutes on two CPU cores
    bash scripts/reproduce.sh embedded --reuse runs/s0 runs/s1 runs/s2    # trains nothing
    # the paper's ablations on another pool
    bash scripts/reproduce.sh ablations --config configs/quickstart.yaml
    bash scripts/reproduce.sh table1  # MixInstruct: eleven experts of 6 to 16 billion parameters

Tables and the paper's numbers are in docs/paper_tables.yaml, where they are from in docs/paper.md.
Runs land in runs/NAME-s0, ..., their common evaluation in runs/NAME, ablations in
runs/NAME-SETTING; finished ones are reused. Settings are passed on: --train.epochs 12. What cannot
be run here is said and is no failure.
"""

from __future__ import annotations

import argparse
import functools
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import yaml

from runtime.command_line import load_config, overrides_from, parse, run_command, validate

TABLES = ROOT / "docs" / "paper_tables.yaml"


def read_tables() -> dict[str, Any]:
    """The tables of the paper, by name."""
    tables: dict[str, Any] = yaml.safe_load(TABLES.read_text(encoding="utf-8"))
    return tables


def make_parser() -> argparse.ArgumentParser:
    tables = read_tables()
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("table", choices=tables, metavar="TABLE", help=", ".join(tables))
    parser.add_argument("--config", type=Path, help="another configuration than the table's")
    parser.add_argument(
        "--name", help="of the runs: runs/NAME-s0, ...; default: paper-CONFIGURATION"
    )
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated")
    parser.add_argument(
        "--reuse",
        type=Path,
        nargs="+",
        default=[],
        metavar="RUN",
        help="finished runs of several seeds to evaluate instead of training",
    )
    return parser


if __name__ == "__main__":  # --help and mistakes, before the imports that take seconds
    run_command(lambda arguments: parse(make_parser(), arguments))

import numpy as np
import torch
from huggingface_hub import constants, try_to_load_from_cache

from backends.model_source import resolve_source
from backends.placement import weights_gb
from config import Config, HFExpertConfig, RayExpertConfig, RecordedExpertConfig
from evaluation.route_log import read_records
from evaluation.stats import interval
from metrics.registry import get_metric
from report.policies import PolicyResults, policies_of
from report.schema import read_results
from runtime.errors import ConfigError, DERError, NotRunError, ReportError
from runtime.machine import pick_device
from runtime.run_folder import TRAINING_SECTIONS
from scripts.experiment import evaluate, parse_seeds, train, trained_otherwise

LARGEST_ON_CPU_B = 3.0  # billion parameters; a larger expert would take days without a GPU


# --- what is missing here ---


def missing(config: Config) -> Iterator[str]:
    """What this machine lacks to train and evaluate a configuration: files, memory, weights."""
    for split in (config.data.train, config.data.validation, config.data.test):
        path = Path(split.path)
        if path.suffix == ".jsonl" and not path.is_file():
            yield f"{path} is missing (python scripts/prepare_data.py {path.parent.name})"
    for name in recorded_files(config):
        if not Path(name).is_file():
            yield f"{name} is missing: recorded answers"
    largest = None
    models = []
    for expert in config.pool.experts:
        if not isinstance(expert, HFExpertConfig):
            continue
        models.append((expert.source, expert.revision))
        if isinstance(expert, RayExpertConfig):  # its weights lie on the cluster's machines
            continue
        if largest is None or expert.params_b > largest.params_b:
            largest = expert
    if largest and (reason := too_large(largest, config.device)):
        yield reason
    if reason := not_here(models):
        yield f"weights of experts: {reason}"
    if reason := not_here([(config.agent.encoder, config.agent.revision)]):
        yield f"the agent's encoder: {reason}"


def recorded_files(config: Config) -> list[str]:
    """The files of recorded answers that the experts name, each once."""
    files: list[str] = []
    for expert in config.pool.experts:
        named = expert.path if isinstance(expert, RecordedExpertConfig) else expert.first_answers
        for name in (named,) if isinstance(named, str) else named or ():
            if name not in files:
                files.append(name)
    return files


def too_large(expert: HFExpertConfig, device_name: str) -> str | None:
    """Why this expert, the pool's largest, cannot be run on the device; None if it can."""
    try:
        device = pick_device(device_name)
    except ConfigError as error:
        return str(error)
    size = weights_gb(expert)
    if device.type == "cpu" and expert.params_b > LARGEST_ON_CPU_B:
        return (
            f"no CUDA device: {expert.name} has {expert.params_b:g} billion parameters, {size:.0f}"
            " GB of weights"
        )
    if (
        device.type == "cuda"
        and expert.device_map is None
        and size > (memory := torch.cuda.get_device_properties(device).total_memory / 1e9)
    ):
        return (
            f"{expert.name} has {size:.0f} GB of weights, {device} {memory:.0f} GB: set"
            " quantization or device_map"
        )
    return None


def not_here(models: Sequence[tuple[str, str | None]]) -> str | None:
    """Which of these models are neither in a folder nor in the hub's cache, if the hub cannot be
    reached either; None otherwise.
    """
    missing_models = []
    for source, revision in models:
        is_folder = Path(resolve_source(source)).is_dir()
        if (
            not is_folder
            and try_to_load_from_cache(source, "config.json", revision=revision) is None
        ):
            missing_models.append(source)
    if not missing_models or (problem := hub_problem()) is None:
        return None
    num_more = len(missing_models) - 3
    more = f" and {num_more} more" if num_more > 0 else ""
    return f"{', '.join(missing_models[:3])}{more} not on this machine, {problem}"


@functools.cache
def hub_problem() -> str | None:
    """Why the Hugging Face hub cannot be reached; None if it can."""
    if constants.HF_HUB_OFFLINE:
        return "and HF_HUB_OFFLINE forbids to fetch them"
    try:
        urllib.request.urlopen(constants.ENDPOINT, timeout=10).close()
    except urllib.error.HTTPError:
        return None  # it answers
    except OSError as error:
        return f"and the hub does not answer ({constants.ENDPOINT}: {error})"
    return None


# --- runs ---


@dataclass(frozen=True, eq=False)
class Evaluated:
    """A finished evaluation: results.json and its folder."""

    folder: Path
    results: Mapping[str, Any]

    @functools.cached_property
    def policies(self) -> dict[str, PolicyResults]:
        records = read_records(self.folder / "routes.jsonl")
        return {policy.name: policy for policy in policies_of(records)}

    def row(self, pattern: str) -> Mapping[str, Any]:
        """The row whose whole policy name matches. Raises NotRunError when there is none."""
        found = [row for row in self.results["rows"] if re.fullmatch(pattern, row["policy"])]
        if not found:
            raise NotRunError(
                f"no policy named {pattern!r} in {self.folder / 'report' / 'results.json'}"
            )
        return found[0]

    @functools.cache  # noqa: B019 (lives as long as the command)
    def scores(self, metric: str, policy: str) -> np.ndarray:
        """The metric's own values (S, Q) of a policy's final answers.

        Raises NotRunError where its weights cannot be had.
        """
        scorer = get_metric(metric)
        if (model := getattr(scorer, "model", None)) and (reason := not_here([(model, None)])):
            raise NotRunError(f"metric {metric}: {reason}")
        score = getattr(scorer, "raw", scorer.compute)
        scores = []
        for records in self.policies[policy].records:
            predictions = []
            references = []
            for record in records:
                submitted = record["steps"][record.get("submitted", -1)]
                predictions.append(submitted["answer"])
                references.append(record["reference"])
            scores.append(score(predictions=predictions, references=references))
        return np.array(scores)


class Runs:
    """The evaluations of one configuration and its variants, made when first asked for."""

    def __init__(
        self,
        config: Path,
        name: str,
        seeds: Sequence[int],
        reuse: Sequence[Path],
        settings: Sequence[str],
    ):
        self.config = config
        self.name = name
        self.seeds = seeds
        self.reuse = reuse
        self.settings = list(settings)
        self.found: dict[str, Evaluated | NotRunError] = {}

    def evaluated(self, row: Mapping[str, Any]) -> Evaluated:
        """The evaluation that a row of a table wants. Raises NotRunError."""
        training = options_of(row.get("train", {}))
        evaluation = options_of(row.get("evaluate", {}))
        variant = variant_of(row.get("train", {})) + variant_of(row.get("evaluate", {}))
        if self._load(training + evaluation) == self._load([]):
            training, evaluation, variant = [], [], ""
        if variant not in self.found:
            try:
                self.found[variant] = self._evaluate(training, evaluation, variant)
            except DERError as error:
                self.found[variant] = (
                    error if isinstance(error, NotRunError) else NotRunError(str(error))
                )
        if isinstance(found := self.found[variant], NotRunError):
            raise found
        return found

    def _load(self, overrides: Sequence[str]) -> Config:
        try:
            return load_config(self.config, [*self.settings, *overrides])
        except ConfigError as error:
            raise NotRunError(str(error)) from error

    def _evaluate(self, training: list[str], evaluation: list[str], variant: str) -> Evaluated:
        folder, settings = Path("runs") / f"{self.name}{variant}", [*self.settings, *training]
        reused = list(self.reuse) if not training else []
        if reused:
            settings = left_to_evaluation(settings)
        trained_name = f"{self.name}{variant}" if training else self.name
        runs = reused
        if not reused:
            runs = [Path("runs") / f"{trained_name}-s{seed}" for seed in self.seeds]
        wanted = self._load([*training, *evaluation])
        results = finished(folder, runs, [*settings, *evaluation], None if reused else wanted)
        if results is None:
            if reasons := list(missing(wanted)):
                raise NotRunError(*reasons)
            if not reused:
                runs = [train(self.config, trained_name, seed, settings) for seed in self.seeds]
            results = evaluate(runs, folder, [*settings, *evaluation])
        return Evaluated(folder, results)


def options_of(settings: Mapping[str, Any]) -> list[str]:
    """Settings by dotted name, as command-line options."""
    options = []
    for key, value in settings.items():
        options += [f"--{key}", str(value)]
    return options


def variant_of(settings: Mapping[str, Any]) -> str:
    """What a folder's name says of settings that differ: `-t_max_1`."""
    parts = []
    for key, value in settings.items():
        parts.append(f"-{key.rpartition('.')[2]}_{value}")
    return "".join(parts)


def left_to_evaluation(settings: list[str]) -> list[str]:
    """The options without those that training has settled: finished runs have their own."""
    options = []
    for name, part in overrides_from(settings).items():
        if name not in TRAINING_SECTIONS:
            value = yaml.safe_dump(part, default_flow_style=True, allow_unicode=True)
            options.append(f"--{name}={value}")
    return options


def finished(
    folder: Path, runs: Sequence[Path], settings: Sequence[str], wanted: Config | None
) -> dict[str, Any] | None:
    """results.json of an evaluation of these runs under these settings; None when it has to be made
    (again), or the runs were not trained as `wanted`.
    """
    path = folder / "report" / "results.json"
    if not path.is_file() or not all((run / "config.yaml").is_file() for run in runs):
        return None
    try:
        results = read_results(path)
        evaluated = validate(results["evaluation"]["config"], str(path))
    except (ReportError, ConfigError) as error:  # of an older format or older settings, or damaged
        print(error, flush=True)
        return None
    if results["evaluation"]["runs"] != list(map(str, runs)):
        return None
    if evaluated != load_config(runs[0] / "config.yaml", list(settings)):
        return None
    if wanted is not None and trained_otherwise(evaluated, wanted):
        return None
    return results


# --- the table ---


def figure(
    measure: Mapping[str, Any], evaluated: Evaluated, row: Mapping[str, Any]
) -> tuple[float, ...]:
    """A measure of a row of results.json: mean, and its interval where there is one.

    Raises NotRunError.
    """
    kind, _, metric = measure["of"].partition(":")
    match kind:
        case "quality" | "return" | "calls":
            span = row[kind]
        case "gain":
            span = {"mean": row["vs_best_single"]["diff"], **row["vs_best_single"]}
        case "metric":
            span = interval(evaluated.scores(metric, row["policy"]))
        case "params_b":
            return (row["cost"]["params_b"],)
        case "share":
            all_params_b = sum(expert["params_b"] for expert in evaluated.results["experts"])
            return (row["cost"]["params_b"] / all_params_b,)
        case "latency_s":
            return (row["cost"]["latency_s"] + row["overhead"]["latency_s"],)
        case _:
            raise ConfigError(f"{TABLES}: no figure {measure['of']!r}")
    scale = measure.get("scale", 1)
    return (scale * span["mean"], scale * span["lo"], scale * span["hi"])


def lines(table: Mapping[str, Any], runs: Runs, *, comparable: bool) -> Iterator[str]:
    """The table, a measure a line, then every reason why something was not run."""
    width = max(map(len, table["measures"]))
    yield f"{'method':<40} {'measure':<{width}} {'paper':>20} {'ours':>26} {'difference':>10}"
    reasons: dict[str, None] = {}
    for row in table["rows"]:
        method = row["method"]
        said_before: tuple[Any, ...] | None = None
        for name, paper in row["paper"].items():
            measure = table["measures"][name]
            start = f"{method:<40} {name:<{width}} {paper_value(measure, paper):>20} "
            method = ""  # named on its first line only
            try:
                values = measured(measure, row, runs)
            except NotRunError as error:
                reasons.update(dict.fromkeys(error.args))
                is_new = error.args != said_before
                yield f"{start} not run" + (f": {why_line(error)}" if is_new else "")
                said_before = error.args
            else:
                compared = paper if comparable else None
                yield start + formatted(values, compared, measure.get("decimals", 2))
    if reasons:
        yield from ["", "Not run, because:", *(f"  - {reason}" for reason in reasons)]


def paper_value(measure: Mapping[str, Any], paper: float | str) -> str:
    """The paper's figure with the decimals of its measure."""
    return paper if isinstance(paper, str) else f"{paper:.{measure.get('decimals', 2)}f}"


def measured(measure: Mapping[str, Any], row: Mapping[str, Any], runs: Runs) -> tuple[float, ...]:
    """The figure of a row, and its limits if it has any. Raises NotRunError."""
    if why_not := row.get("why_not") or measure.get("why_not"):
        raise NotRunError(why_not)
    evaluated = runs.evaluated(row)
    return figure(measure, evaluated, evaluated.row(row["policy"]))


def why_line(error: NotRunError) -> str:
    """The first reason, and how many others there are."""
    first, *more = error.args
    return f"{first} (and {len(more)} more, below)" if more else f"{first}"


def formatted(values: Sequence[float], paper: float | str | None, decimals: int) -> str:
    """`0.851 [0.820, 0.880]    +0.011`."""
    mean, *limits = (f"{value:.{decimals}f}" for value in values)
    ours = f"{mean} [{', '.join(limits)}]" if limits else mean
    difference = f"{values[0] - paper:+.{decimals}f}" if isinstance(paper, int | float) else ""
    return f"{ours:>26} {difference:>10}".rstrip()


def main(arguments: list[str]) -> None:
    options, settings = parse(make_parser(), arguments)
    table = read_tables()[options.table]
    config = options.config or Path(table["config"])
    runs = Runs(
        config,
        options.name or f"paper-{config.stem}",
        parse_seeds(options.seeds),
        options.reuse,
        settings,
    )
    text = list(lines(table, runs, comparable=options.config is None))
    print(f"\n{options.table}: {table['title']}\n{config}, intervals 95%\n")
    print("\n".join(text))
    for run in options.reuse:
        found = load_config(run / "config.yaml")
        if differing := trained_otherwise(
            found, load_config(config, [*settings, "--pool.store", found.pool.store])
        ):
            print(f"{run} was trained with other settings than {config}: {', '.join(differing)}")


if __name__ == "__main__":
    run_command(main)
