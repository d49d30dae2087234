"""Evaluate a trained run on the test split, against every simple way of using the same experts.

    python test_ppo_multi.py                                          # the newest run
    # several seeds of one configuration, in one table
    python test_ppo_multi.py --run runs/s0 runs/s1 --out runs/both
    # every baseline, the exact optimum, the transfer audit
    python test_ppo_multi.py --run runs/NAME --eval.full true
    # the same routes in another unit; asks no expert
    python test_ppo_multi.py --run runs/NAME --reprice flops

No policy sees a reference: routes are played first and scored afterwards. Rows of kind `oracle` are
the exception and say so. Prints a table; writes routes.jsonl and report/ (results.json, report.md,
report.html, figures) to the run's folder, or to --out.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("NUMBA_DISABLE_JIT", "1")

from config import TOKEN_UNITS, Config
from evaluation.route_log import Record, read_records, reprice, route_records
from evaluation.route_schema import check_complete
from evaluation.runner import Evaluation
from questions import repeats_line
from report.page import write_report_files
from report.results import YARDSTICKS, build_results, cost_words, table, uncounted
from report.schema import read_results, to_json
from runtime.command_line import merge, overrides_from, parse, run_command, validate
from runtime.errors import ConfigError, ReportError
from runtime.files import refuse_links, write_atomically
from runtime.run_folder import load_run_config, newest_run, read_metrics


def evaluate(evaluation: Evaluation) -> tuple[dict[str, Any], list[Record]]:
    """Play everything: results.json and the route log."""
    start, config, pool = time.perf_counter(), evaluation.config, evaluation.pool
    references = {question.id: question.reference for question in evaluation.splits.test}
    records = [
        record
        for played in evaluation.played()
        for record in route_records(played, pool, config, references)
    ]
    extra: dict[str, Any] = {"terminator": evaluation.terminator_section()}
    if config.eval.full:
        extra["transfer"] = evaluation.transfer_section()
    extra["evaluation"] = {
        "runs": [str(run.path) for run in evaluation.runs],
        "seconds": time.perf_counter() - start,
        "answers_generated": pool.stats.generated,
        "answers_failed": pool.stats.failed,
        "config": config.model_dump(mode="json"),
    }
    experts = [
        {"name": expert.config.name, "params_b": expert.config.params_b} for expert in pool.experts
    ]
    results = build_results(records, config, experts, extra)
    if evaluation.splits.num_merged:
        results["notes"].append(repeats_line(evaluation.splits))
    return results, records


def repriced(folder: Path, unit: str, overrides: list[str]) -> tuple[dict[str, Any], list[Record]]:
    """A finished evaluation in another cost unit: results.json and route log, from the folder's
    own, without the optimum of the old prices.
    """
    records = read_records(folder / "routes.jsonl")
    before = read_results(folder / "report" / "results.json")
    check_complete(records, before, folder / "routes.jsonl")
    given = overrides_from([*overrides, "--reward.cost", unit])
    if other := given.keys() - {"reward", "threads", "device"}:
        raise ConfigError(
            f"--{min(other)}: routes that were played are only priced again, by --reward settings;"
            " evaluate anew to change what is played"
        )
    config = validate(merge(before["evaluation"]["config"], given), f"{folder}, priced in {unit}")
    if unit in TOKEN_UNITS and (names := uncounted(records, config)):
        raise ReportError(
            f"{folder}: the recorded answers of {', '.join(names)} were not counted, so they have"
            f" no price in {unit}: give meta.tokens or a tokenizer and evaluate again"
        )
    kept = {
        name: before[name] for name in ("terminator", "transfer", "evaluation") if name in before
    }
    kept["evaluation"] = kept["evaluation"] | {"config": config.model_dump(mode="json")}
    kept["terminator"] = {
        name: value for name, value in kept["terminator"].items() if name != "thresholds"
    }  # their costs are in the old unit
    records = reprice(records, config.reward)
    chosen_for = validate(before["evaluation"]["config"], f"{folder}, as evaluated").reward
    if config.reward == chosen_for:
        return build_results(records, config, before["experts"], kept), records
    records = [
        record for record in records if record["policy"] != YARDSTICKS["optimum"]
    ]  # searched with other prices, it is no optimum in these
    results = build_results(records, config, before["experts"], kept)
    results["notes"].append(
        "Priced again: every policy acts as it was trained, fitted or chosen for alpha ="
        f" {chosen_for.alpha} and C = {cost_words(chosen_for.cost, chosen_for.cost_scale)}. The"
        " optimum in hindsight would take other routes at these prices and is left out."
    )
    return results, records


def refuse_to_replace(folder: Path, config: Config) -> None:
    """Raises ConfigError where the folder's report has other settings than `config`; a full
    evaluation may replace one that was not.
    """
    try:
        before = validate(read_results(folder / "report" / "results.json")["evaluation"]["config"])
    except (ReportError, ConfigError):  # none there, or of another version
        return
    other = [
        name for name in ("data", "env", "reward") if getattr(before, name) != getattr(config, name)
    ]
    other += ["pool.experts"] if before.pool.experts != config.pool.experts else []
    other += (
        ["eval"]
        if before.eval.model_copy(update={"full": before.eval.full or config.eval.full})
        != config.eval
        else []
    )
    if other:
        raise ConfigError(
            f"{folder}/report is of other settings ({', '.join(other)}): keep it and give this one"
            f" --out FOLDER, or replace it with --out {folder}"
        )


def learning_curves(runs: list[str]) -> dict[int, list[Record]]:
    """metrics.jsonl of each run that still has one, by seed. Raises RunError for a damaged one."""
    curves = {}
    for run in map(Path, runs):
        if (run / "metrics.jsonl").is_file():
            curves[load_run_config(run).seed] = read_metrics(run / "metrics.jsonl")
    return curves


def show(results: dict[str, Any]) -> str:
    """The table and what it says."""
    return "\n".join([table(results), "", *results["words"], "", *results["notes"]])


def main(arguments: list[str]) -> Path:
    """Run the command; returns the path of results.json."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--run",
        type=Path,
        nargs="+",
        help="folders of runs that differ in their seed; default: the newest run",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="folder of the report; default: the run's own, needed for several runs",
    )
    parser.add_argument(
        "--reprice",
        choices=["params", "flops", "tokens", "latency", "usd"],
        help="only price the played routes again in this unit",
    )
    parser.add_argument(
        "--other_pool",
        action="store_true",
        help="evaluate although the pool differs from the one trained on",
    )
    options, overrides = parse(parser, arguments)
    runs = options.run or [newest_run()]
    if options.out is None and len(runs) > 1:
        raise ConfigError("several runs need --out FOLDER for their common report")
    out = options.out or runs[0]
    refuse_links(out, ReportError)
    learning_curves([str(run) for run in runs])  # damage is named before anything is played
    if options.reprice:
        results, records = repriced(out, options.reprice, overrides)
        folder = out / "report" / f"in_{options.reprice}"
    else:
        evaluation = Evaluation(
            runs, overrides, other_pool=options.other_pool, say=lambda text: print(text, flush=True)
        )
        if options.out is None:
            refuse_to_replace(out, evaluation.config)
        results, records = evaluate(evaluation)
        folder = out / "report"
    folder.mkdir(parents=True, exist_ok=True)
    as_json = to_json(results)
    if not options.reprice:
        write_atomically(
            out / "routes.jsonl", "".join(json.dumps(record) + "\n" for record in records).encode()
        )
    write_atomically(folder / "results.json", as_json)
    write_report_files(folder, results, records, learning_curves(results["evaluation"]["runs"]))
    cost = cost_words(results["cost_unit"], results["cost_scale"])
    print(
        f"\n{out}: {results['num_questions']} test questions, seed"
        f" {', '.join(map(str, results['seeds']))}, alpha {results['alpha']}, cost C = {cost}\n"
    )
    print(show(results))
    took = results["evaluation"]
    print(
        f"\nPlayed in {took['seconds']:.0f} s, {took['answers_generated']} answers generated."
        f" Report: {folder / 'report.html'}. Numbers: {folder / 'results.json'}"
    )
    return folder / "results.json"


if __name__ == "__main__":
    run_command(main)
