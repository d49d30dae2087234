"""Write played routes as files of a public leaderboard, every call charged:
python scripts/export_routes.py --run runs/NAME --format routerarena --router my-router --out FOLDER

routerarena     router_inference/config/ROUTER.json and router_inference/predictions/ROUTER.json of
                RouterArena. The id of a question must be its global index, the text its prompt. The
                board prices the tokens of a row at the submitted model's prices. A route has other
                calls, too: their tokens are added, and where a call's model is dearer they count by
                the ratio of the prices. So no route is charged less than it cost. `calls` holds
                each call as it was.
llmrouterbench  results/bench/DATASET/SPLIT/ROUTER/*.json of LLMRouterBench, one file for each task.
                Tokens and cost of a row are sums over all calls; `extra_fields` holds the route.

The experts need prices (usd_per_million_completion_tokens and usd_per_million_prompt_tokens) and
counted tokens. --name EXPERT=MODEL says how a board calls an expert.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runtime.command_line import run_command

FORMATS = ("llmrouterbench", "routerarena")


def name_pair(text: str) -> tuple[str, str]:
    expert, sign, model = text.partition("=")
    if not sign or not model:
        raise argparse.ArgumentTypeError(f"{text!r}: expected EXPERT=MODEL")
    return expert, model


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True, help="an evaluated run")
    parser.add_argument("--log", type=Path, help="default: RUN/routes.jsonl")
    parser.add_argument("--policy", help="label in the log; default: the agent's routes")
    parser.add_argument("--format", choices=FORMATS, required=True)
    parser.add_argument("--router", required=True, help="what the board calls this router")
    parser.add_argument(
        "--name", type=name_pair, action="append", default=[], metavar="EXPERT=MODEL"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    return parser


if __name__ == "__main__":  # --help and mistakes, before the imports that take seconds
    run_command(make_parser().parse_args)

from config import Config, ExpertConfig
from evaluation.route_log import Record, read_records
from runtime.errors import ConfigError, ReportError
from runtime.files import refuse_links, write_atomically
from runtime.run_folder import load_run_config
from scripts.estimate_policy import policy_of


@dataclass(frozen=True)
class Model:
    """An expert as a board knows it, with USD per million tokens."""

    name: str
    prompt_price: float
    completion_price: float


class Exporter:
    """Turns lines of a route log into rows of a board."""

    def __init__(self, router: str, config: Config, names: dict[str, str]):
        self.router = router
        self.config = config
        self.models: dict[str, Model] = {}
        for expert in config.pool.experts:
            self.models[expert.name] = model_of(expert, names.get(expert.name, expert.name))
        if unknown := sorted(names.keys() - self.models.keys()):
            raise ConfigError(f"--name {unknown[0]}: no such expert in the run's pool")

    def submitted(self, record: Record) -> Record:
        """The step whose answer counts."""
        place = record["submitted"]
        step: Record = record["steps"][-1 if place is None else place]
        return step

    def dollars(self, record: Record) -> float:
        """What all calls of a route cost. Raises ReportError for one without a price."""
        total = 0.0
        for step in record["steps"]:
            usd = step["cost"]["usd"]
            if usd is None:
                raise ReportError(
                    f"question {record['question']}: the call to {step['expert']} has no price;"
                    " give the expert its prices and evaluate again"
                )
            total += usd
        return total

    def calls(self, record: Record) -> list[dict[str, Any]]:
        """Every call as it was: model, tokens and USD."""
        calls = []
        for step in record["steps"]:
            cost = step["cost"]
            calls.append(
                {
                    "model": self.models[step["expert"]].name,
                    "input_tokens": cost["prompt_tokens"],
                    "output_tokens": cost["completion_tokens"],
                    "usd": cost["usd"],
                }
            )
        return calls

    # --- RouterArena ---

    def arena_config(self) -> dict[str, Any]:
        names = [model.name for model in self.models.values()]
        parameters = {"router_name": self.router, "router_cls_name": "DER", "models": names}
        return {"pipeline_params": parameters}

    def arena_row(self, record: Record) -> dict[str, Any]:
        """One entry of the prediction file."""
        step = self.submitted(record)
        model = self.models[step["expert"]]
        usage = self.charged_tokens(record, model)
        generated = {
            "generated_answer": step.get("whole_answer", step["answer"]),
            "success": bool(step["answer"].strip()),
            "token_usage": usage,
            "model_used": model.name,
            "provider": "der",
            "error": None,
            "calls": self.calls(record),
        }
        return {
            "global index": record["question"],
            "prompt": record["text"],
            "prediction": model.name,
            "generated_result": generated,
            "cost": self.dollars(record),
            "accuracy": None,
            "for_optimality": False,
        }

    def charged_tokens(self, record: Record, submitted: Model) -> dict[str, int]:
        """Tokens of all calls that, at the submitted model's prices, cost no less than they did."""
        tokens_in = 0
        tokens_out = 0
        for step in record["steps"]:
            model = self.models[step["expert"]]
            cost = step["cost"]
            ratio_in = price_ratio(model.prompt_price, submitted.prompt_price)
            ratio_out = price_ratio(model.completion_price, submitted.completion_price)
            tokens_in += math.ceil(cost["prompt_tokens"] * ratio_in)
            tokens_out += math.ceil(cost["completion_tokens"] * ratio_out)
        return {
            "input_tokens": tokens_in,
            "output_tokens": tokens_out,
            "total_tokens": tokens_in + tokens_out,
        }

    # --- LLMRouterBench ---

    def bench_record(self, index: int, record: Record) -> dict[str, Any]:
        step = self.submitted(record)
        reference = record["reference"]
        truth = reference if isinstance(reference, str) else json.dumps(reference)
        costs = [one["cost"] for one in record["steps"]]
        return {
            "index": index,
            "origin_query": record["text"],
            "prompt": record["text"],
            "prompt_tokens": sum(cost["prompt_tokens"] for cost in costs),
            "completion_tokens": sum(cost["completion_tokens"] for cost in costs),
            "cost": self.dollars(record),
            "score": record["quality"],
            "prediction": step["answer"],
            "ground_truth": truth,
            "raw_output": step.get("whole_answer", step["answer"]),
            "extra_fields": {"submitted": step["expert"], "calls": self.calls(record)},
        }

    def bench_result(self, task: str, records: Sequence[Record]) -> dict[str, Any]:
        """The result file of a task."""
        rows = [self.bench_record(index, record) for index, record in enumerate(records, start=1)]
        seconds = 0.0
        for record in records:
            seconds += sum(step["cost"]["latency_s"] for step in record["steps"])
        return {
            "performance": sum(row["score"] for row in rows) / len(rows),
            "time_taken": seconds,
            "prompt_tokens": sum(row["prompt_tokens"] for row in rows),
            "completion_tokens": sum(row["completion_tokens"] for row in rows),
            "cost": sum(row["cost"] for row in rows),
            "counts": len(rows),
            "model_name": self.router,
            "dataset_name": task,
            "split": records[0]["split"],
            "demo": False,
            "extra_metrics": {},
            "data_fingerprint": "",
            "records": rows,
        }


def model_of(expert: ExpertConfig, name: str) -> Model:
    """Raises ConfigError for an expert without a price."""
    completion_price = expert.usd_per_million_completion_tokens
    if completion_price is None:
        raise ConfigError(
            f"expert {expert.name} has no usd_per_million_completion_tokens: a leaderboard charges"
            " every call, so every expert needs its price"
        )
    return Model(name, expert.usd_per_million_prompt_tokens or 0.0, completion_price)


def price_ratio(price: float, submitted: float) -> float:
    """How many of the submitted model's tokens a token is charged as; 1 at least.

    Raises ConfigError where a free model would have to carry the price of another.
    """
    if price <= submitted:
        return 1.0
    if submitted == 0:
        raise ConfigError(
            "a submitted answer of a free model cannot carry the price of other calls"
        )
    return price / submitted


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
    return path


def write_arena(exporter: Exporter, records: Sequence[Record], out: Path) -> list[Path]:
    rows = [exporter.arena_row(record) for record in records]
    folder = out / "router_inference"
    name = f"{exporter.router}.json"
    return [
        write_json(folder / "config" / name, exporter.arena_config()),
        write_json(folder / "predictions" / name, rows),
    ]


def write_bench(exporter: Exporter, records: Sequence[Record], out: Path) -> list[Path]:
    by_task: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_task[record["task"]].append(record)
    stamp = time.strftime("%Y%m%d_%H%M%S")
    paths = []
    for task, of_task in by_task.items():
        dataset = re.sub(r"[^\w-]+", "_", task)  # a task may have any name
        split = of_task[0]["split"]
        folder = out / "results" / "bench" / dataset / split / exporter.router
        path = folder / f"{dataset}-{split}-{exporter.router}-{stamp}.json"
        paths.append(write_json(path, exporter.bench_result(task, of_task)))
    return paths


def one_seed(records: list[Record]) -> list[Record]:
    """Raises ReportError where the log holds several seeds of the policy."""
    seeds = {record["seed"] for record in records}
    if len(seeds) > 1:
        raise ReportError(
            f"the log holds {len(seeds)} seeds of this policy, a board takes one: export the log of"
            " one run"
        )
    return records


def main(arguments: list[str]) -> list[Path]:
    options = make_parser().parse_args(arguments)
    refuse_links(options.out, ReportError)
    if not options.router.replace("-", "").replace("_", "").isalnum():
        raise ConfigError(f"--router {options.router!r}: letters, digits, - and _ only")
    log = options.log or options.run / "routes.jsonl"
    records = one_seed(policy_of(read_records(log), options.policy, log))
    exporter = Exporter(options.router, load_run_config(options.run), dict(options.name))
    if options.format == "routerarena":
        paths = write_arena(exporter, records, options.out)
    else:
        paths = write_bench(exporter, records, options.out)
    print(f"{len(records)} routes: {', '.join(map(str, paths))}")
    return paths


if __name__ == "__main__":
    run_command(main)
