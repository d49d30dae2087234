"""Evaluate a trained run on the test split, against every simple way of using the same experts.

    python test_ppo_multi.py                                          # the newest run
    # several seeds of one configuration, in one table
    python test_ppo_multi.py --run runs/s0 runs/s1 --out runs/both
    # every baseline, the exact optimum, the transfer audit
    python test_ppo_multi.py --run runs/NAME --eval.full true
    # the transfer audit alone: what second calls gain from the answer they are handed
    python test_ppo_multi.py --run runs/NAME --eval.transfer true
    # quality against cost: agents of several alphas, every baseline chosen again at each
    python test_ppo_multi.py --alphas 0,.05,.2 --run runs/a0 runs/a05 runs/a2 --out runs/curves
    # the same routes in another unit; asks no expert
    python test_ppo_multi.py --run runs/NAME --reprice flops
    # with an expert more, fitted on 200 training questions, or one less; the policy is not trained
    python test_ppo_multi.py --run runs/NAME --add_expert experts.yaml --out runs/more
    python test_ppo_multi.py --run runs/NAME --drop_expert EXPERT --out runs/less

No policy sees a reference: routes are played first and scored afterwards. Rows of kind `oracle` are
the exception and say so. Prints a table; writes routes.jsonl and report/ (results.json, report.md,
report.html, figures) to the run's folder, or to --out. With --alphas, --out has a folder of these
for each alpha, and its own report/ has the curves.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.signals import watch_signals

if __name__ == "__main__":  # before the imports that take seconds
    watch_signals()

from config import TOKEN_UNITS, Config
from report.console import show
from report.schema import read_results, to_json
from runtime.command_line import (
    current,
    load_config,
    merge,
    overrides_from,
    parse,
    run_command,
    validate,
)
from runtime.errors import ConfigError, ReportError
from runtime.files import refuse_links, write_atomically
from settings.units import RAW_UNITS, CostKind, in_units

# What plays and draws loads libraries for seconds. It is imported where it is used, so that --help
# and a mistake in a setting are answered at once.
if TYPE_CHECKING:
    from evaluation.route_log import Record
    from evaluation.runner import Evaluation
    from experts import ExpertPool
    from rollout import Route


@dataclass
class Report:
    """results.json and the route log it was made from."""

    results: dict[str, Any]
    records: list[Record]


# Playing


def evaluate(evaluation: Evaluation, budgets: Sequence[float] | None = None) -> Report:
    """Play everything on the test split; the agent at `budgets` as well, a sweep where empty."""
    from evaluation.budgets import budget_section, check_budgets
    from evaluation.route_log import route_records
    from questions import repeats_line
    from report.results import build_results

    start = time.perf_counter()
    config = evaluation.config
    pool = evaluation.pool
    references = {question.id: question.reference for question in evaluation.splits.test}
    records: list[Record] = []
    if budgets is not None:
        check_budgets(evaluation, budgets)
    for played in evaluation.played():
        records += route_records(played, pool, config, references)
    extra: dict[str, Any] = {"terminator": evaluation.terminator_section()}
    if config.eval.full or config.eval.transfer:
        extra["transfer"] = evaluation.transfer_section()
    if budgets is not None:
        extra["budgets"] = budget_section(evaluation, budgets)
    extra["evaluation"] = {
        "runs": [str(run.path) for run in evaluation.runs],
        "seconds": time.perf_counter() - start,
        "answers_generated": pool.stats.generated,
        "answers_failed": pool.stats.failed,
        "config": config.model_dump(mode="json"),
    }
    results = build_results(records, config, sizes_of(pool), extra)
    if evaluation.splits.num_merged:
        results["notes"].append(repeats_line(evaluation.splits))
    return Report(results, records)


def sizes_of(pool: ExpertPool) -> list[dict[str, Any]]:
    """Name and billions of parameters of each expert."""
    sizes = []
    for expert in pool.experts:
        sizes.append({"name": expert.config.name, "params_b": expert.config.params_b})
    return sizes


def evaluate_runs(
    runs: Sequence[Path],
    out: Path | None,
    overrides: Sequence[str],
    *,
    other_pool: bool,
    budgets: Sequence[float] | None = None,
) -> Report:
    """Evaluate runs of one configuration and write their report.

    Args:
        out: None: the folder of the only run, whose report of other settings is not replaced.

    Raises:
        DERError: the runs do not belong together, or cannot be evaluated so.
    """
    from evaluation.runner import Evaluation

    evaluation = Evaluation(runs, overrides, other_pool=other_pool, say=say)
    if out is None:
        refuse_to_replace(runs[0], evaluation.config)
    report = evaluate(evaluation, budgets)
    write_report(report, out or runs[0])
    return report


def say(text: str) -> None:
    print(text, flush=True)


# Budgets and several alphas


def parse_budgets(text: str) -> list[float]:
    """`5,10.5` in rising order; nothing for `all`, a sweep. Raises ConfigError."""
    if text == "all":
        return []
    try:
        budgets = sorted(float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(
            f"--budget {text}: expected numbers with commas between, or all"
        ) from error
    if not (budgets[0] > 0 and math.isfinite(budgets[-1])):
        raise ConfigError(f"--budget {text}: expected finite numbers above 0")
    return budgets


def parse_alphas(text: str) -> list[float]:
    """`0,.02,.1` in rising order. Raises ConfigError."""
    try:
        alphas = sorted(float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(
            f"--alphas {text}: expected numbers with commas between, for example 0,.05,.2"
        ) from error
    if len(set(alphas)) < max(2, len(alphas)) or alphas[0] < 0:
        raise ConfigError(f"--alphas {text}: expected two or more different numbers, none below 0")
    return alphas


def evaluate_alphas(
    groups: Mapping[float, Sequence[Path]],
    out: Path,
    overrides: Sequence[str],
    *,
    other_pool: bool,
) -> Report:
    """Evaluate each alpha's runs into a folder of `out`, then report all curves in `out` itself.

    The table and the other figures of the common report are those of the middle alpha.
    """
    from evaluation.runner import Evaluation
    from terminator import pooled_figures

    reports = {}
    routes: list[list[Route]] = []
    before: Evaluation | None = None
    for alpha, runs in groups.items():
        say(f"\nalpha {alpha:g}")
        at_alpha = [*overrides, "--reward.alpha", f"{alpha!r}"]
        evaluation = Evaluation(runs, at_alpha, other_pool=other_pool, say=say)
        if before is not None:
            evaluation.take_over(before)
        reports[alpha] = evaluate(evaluation)
        routes += evaluation.agent_routes()
        write_report(reports[alpha], out / f"alpha_{alpha:g}")
        before = evaluation
    say("\ncurves over all alphas")
    report = common_report(reports)
    p0 = report.results["evaluation"]["config"]["env"]["p0"]
    report.results["curves"]["terminator"] = pooled_figures(routes, p0)
    write_report(report, out)
    return report


def common_report(reports: Mapping[float, Report]) -> Report:
    """The report of the middle alpha, with the curves of all."""
    from report.policies import policies_of
    from report.quality_cost import curves_section

    alphas = sorted(reports)
    middle = alphas[len(alphas) // 2]
    results = dict(reports[middle].results)
    policies = {alpha: policies_of(report.records) for alpha, report in reports.items()}
    results["curves"] = curves_section(policies)
    results["evaluation"] = dict(results["evaluation"])
    for name in ("seconds", "answers_generated", "answers_failed"):
        facts = [report.results["evaluation"][name] for report in reports.values()]
        results["evaluation"][name] = sum(facts)
    note = (
        f"Table and figures: alpha {middle:g}. Curves: every alpha, with the rules chosen again at"
        " each. The intervals of areas allow for other questions, not for other training runs."
    )
    results["notes"] = [*results["notes"], note]
    return Report(results, reports[middle].records)


# Other prices


def repriced(folder: Path, unit: CostKind, overrides: list[str]) -> Report:
    """A finished evaluation in another cost unit, from the folder's own results and route log.

    Without the optimum, which was searched with the old prices.
    """
    from evaluation.route_log import read_records, reprice
    from evaluation.route_schema import check_complete
    from report.results import build_results
    from report.summary import uncounted

    records = read_records(folder / "routes.jsonl")
    before = read_results(folder / "report" / "results.json")
    check_complete(records, before, folder / "routes.jsonl")
    config = _priced_config(before, folder, unit, overrides)
    names = uncounted(records, config) if unit in TOKEN_UNITS else []
    if names:
        raise ReportError(
            f"{folder}: the recorded answers of {', '.join(names)} were not counted, so they have"
            f" no price in {unit}: give meta.tokens or a tokenizer and evaluate again"
        )
    extra = _kept_sections(before, config)
    records = reprice(records, config.reward)
    chosen_for = validate(before["evaluation"]["config"], f"{folder}, as evaluated").reward
    if config.reward == chosen_for:
        return Report(build_results(records, config, before["experts"], extra), records)
    records = [record for record in records if record["role"] != "optimum"]
    results = build_results(records, config, before["experts"], extra)
    results["notes"].append(
        "Priced again: every policy acts as it was trained, fitted or chosen for alpha ="
        f" {chosen_for.alpha} and C {in_units(chosen_for.cost_unit)}. The optimum in hindsight"
        " would take other routes at these prices and is left out."
    )
    return Report(results, records)


def _priced_config(
    before: Mapping[str, Any], folder: Path, unit: CostKind, overrides: list[str]
) -> Config:
    """The evaluation's configuration with other prices. Raises ConfigError for other changes."""
    options = overrides_from(["--reward.cost_unit", RAW_UNITS[unit], *overrides])
    other = options.keys() - {"reward", "threads", "device"}
    if other:
        raise ConfigError(
            f"--{min(other)}: routes that were played are only priced again, by --reward settings;"
            " evaluate again to change what is played"
        )
    played = current(before["evaluation"]["config"], f"{folder}, as evaluated")
    return validate(merge(played, options), f"{folder}, priced in {unit}")


def _kept_sections(before: Mapping[str, Any], config: Config) -> dict[str, Any]:
    """The sections that other prices do not change."""
    kept = {}
    for name in ("terminator", "transfer", "evaluation"):
        if name in before:
            kept[name] = dict(before[name])
    kept["evaluation"]["config"] = config.model_dump(mode="json")
    kept["terminator"].pop("thresholds", None)  # their costs are in the old unit
    return kept


# Writing


def refuse_to_replace(folder: Path, config: Config) -> None:
    """Raises ConfigError where the folder's report has other settings than `config`.

    A full evaluation may replace one that was not, and one with the transfer audit.
    """
    try:
        before = validate(read_results(folder / "report" / "results.json")["evaluation"]["config"])
    except (ReportError, ConfigError):  # none there, or of another version
        return
    other = []
    for name in ("data", "env", "reward"):
        if getattr(before, name) != getattr(config, name):
            other.append(name)
    if before.pool.experts != config.pool.experts:
        other.append("pool.experts")
    more = {"full": before.eval.full or config.eval.full}
    more["transfer"] = before.eval.transfer or config.eval.transfer
    if before.eval.model_copy(update=more) != config.eval:
        other.append("eval")
    if other:
        raise ConfigError(
            f"{folder}/report is of other settings ({', '.join(other)}): keep it and give this one"
            f" --out FOLDER, or replace it with --out {folder}"
        )


def write_report(report: Report, out: Path, name: str = "report") -> Path:
    """Write OUT/routes.jsonl and OUT/NAME/; returns the latter."""
    from report.page import write_report_files

    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    if name == "report":
        lines = [json.dumps(record) + "\n" for record in report.records]
        write_atomically(out / "routes.jsonl", "".join(lines).encode())
    write_atomically(folder / "results.json", to_json(report.results))
    runs = report.results["evaluation"]["runs"]
    write_report_files(folder, report.results, report.records, learning_curves(runs))
    return folder


def learning_curves(runs: Sequence[str]) -> dict[int, list[Record]]:
    """metrics.jsonl of each run that still has one, by seed. Raises RunError for a damaged one."""
    from runtime.run_folder import load_run_config, read_metrics

    curves = {}
    for run in map(Path, runs):
        if (run / "metrics.jsonl").is_file():
            curves[load_run_config(run).seed] = read_metrics(run / "metrics.jsonl")
    return curves


def print_report(results: Mapping[str, Any], out: Path, folder: Path) -> None:
    """The table and what it says; where the report lies comes last."""
    seeds = ", ".join(map(str, results["seeds"]))
    cost = in_units(results["cost_unit"])
    facts = f"seed {seeds}, alpha {results['alpha']:g}, cost C {cost}"
    say(f"\n{out}: {results['num_questions']} test questions, {facts}\n")
    say(show(results))
    played = results["evaluation"]
    say(
        f"\nPlayed in {played['seconds']:.0f} s, {played['answers_generated']} answers generated."
        f"\nNumbers: {folder / 'results.json'}\nReport: {folder / 'report.html'}"
    )


# The command


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument(
        "--run",
        type=Path,
        nargs="+",
        help="folders of runs that differ in their seed; default: the newest run",
    )
    made.add_argument(
        "--out",
        type=Path,
        help="folder of the report; default: the run's own, needed for several runs",
    )
    made.add_argument(
        "--alphas",
        metavar="A,B,...",
        help="the runs differ in reward.alpha, too: report quality against cost over these values",
    )
    made.add_argument(
        "--budget",
        metavar="B,...",
        help="also hold the agent to a mean cost C of a question; all: sweep 20 budgets",
    )
    made.add_argument(
        "--reprice",
        choices=list(RAW_UNITS),
        help="only price the played routes again in this unit",
    )
    made.add_argument(
        "--other_pool",
        action="store_true",
        help="evaluate although the pool differs from the one trained on",
    )
    made.add_argument(
        "--add_expert",
        type=Path,
        metavar="YAML",
        help="evaluate the run with the experts of this file's list `experts` added, in --out",
    )
    made.add_argument(
        "--examples",
        type=int,
        default=200,
        help="training questions that an added expert answers first",
    )
    made.add_argument(
        "--drop_expert", metavar="NAME", help="evaluate the run without this expert, in --out"
    )
    return made


def check_options(options: argparse.Namespace, num_runs: int) -> None:
    """Raises ConfigError for options that do not go together."""
    if options.out is None and num_runs > 1:
        raise ConfigError("several runs need --out FOLDER for their common report")
    if options.budget and (options.alphas or options.reprice):
        raise ConfigError("--budget goes with neither --alphas nor --reprice: evaluate apart")
    if options.reprice and options.alphas:
        raise ConfigError("--reprice prices one alpha: give it --out FOLDER/alpha_VALUE")


def changed_run(options: argparse.Namespace) -> Path | None:
    """The run in --out whose pool is changed as the options say; None where they change nothing."""
    if options.add_expert is None and options.drop_expert is None:
        return None
    if options.add_expert and options.drop_expert:
        raise ConfigError("--add_expert and --drop_expert: change a pool in one way at a time")
    if len(options.run or []) != 1 or options.out is None:
        raise ConfigError("a pool is changed for one --run RUN, in a new --out FOLDER")
    from training.changed_pool import with_expert, without_expert

    if options.drop_expert:
        return without_expert(options.run[0], options.drop_expert, options.out)
    return with_expert(options.run[0], options.add_expert, options.examples, options.out)


def played(
    options: argparse.Namespace,
    runs: list[Path],
    alphas: list[float],
    budgets: list[float] | None,
    overrides: list[str],
) -> Report:
    """Evaluate runs as the options want it."""
    from evaluation.alphas import runs_by_alpha
    from evaluation.kept import kept_readings

    other_pool = options.other_pool
    with kept_readings():
        if alphas:
            groups = runs_by_alpha(runs, alphas)
            return evaluate_alphas(groups, options.out or runs[0], overrides, other_pool=other_pool)
        return evaluate_runs(runs, options.out, overrides, other_pool=other_pool, budgets=budgets)


def main(arguments: list[str]) -> Path:
    """Run the command; returns the path of results.json."""
    options, overrides = parse(parser(), arguments)
    alphas = parse_alphas(options.alphas) if options.alphas else []
    from runtime.run_folder import newest_run

    runs = options.run or [newest_run()]
    for run in runs:
        if (run / "config.yaml").is_file():
            load_config(run / "config.yaml", overrides)  # a mistake is told before torch is loaded
    check_options(options, len(runs))
    changed = changed_run(options)
    if changed is not None:
        runs = [changed]
    budgets = parse_budgets(options.budget) if options.budget else None
    out = options.out or runs[0]
    refuse_links(out, ReportError)
    learning_curves([str(run) for run in runs])  # damage is named before anything is played
    folder = out / "report"
    if options.reprice:
        report = repriced(out, options.reprice, overrides)
        folder = write_report(report, out, f"report/in_{options.reprice}")
    else:
        report = played(options, runs, alphas, budgets, overrides)
    print_report(report.results, out, folder)
    return folder / "results.json"


if __name__ == "__main__":
    run_command(main)
