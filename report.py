"""From scored routes to numbers: result rows, intervals, the table on the screen, the route log."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import wilcoxon

from config import Config
from experts import ExpertPool
from reward import charge
from rollout import Route
from run_folder import write_atomically


@dataclass(frozen=True)
class Overhead:
    """What deciding took per question, beside the experts: agent and Terminator."""

    params_b: float = 0.0  # encoder parameters (billions) summed over its passes
    flops: float = 0.0
    latency_s: float = 0.0


@dataclass
class Played:
    """A policy's scored routes on the test split, one per question in the split's order."""

    policy: str
    kind: str  # der | single | static | random | learned | ensemble | oracle
    routes: list[Route]
    overhead: Overhead = field(default_factory=Overhead)


def interval(values: Sequence[float], resamples: int, seed: int = 0) -> dict[str, float]:
    """Mean with its 95% percentile-bootstrap interval over questions (Efron and Tibshirani 1993)."""
    data = np.asarray(values, dtype=float)
    rng = np.random.default_rng(seed)
    means = np.array([data[rng.integers(len(data), size=len(data))].mean() for _ in range(resamples)])
    lo, hi = np.quantile(means, [0.025, 0.975])
    return {"mean": float(data.mean()), "lo": float(lo), "hi": float(hi)}


def paired_difference(values: Sequence[float], baseline: Sequence[float], resamples: int) -> dict[str, Any]:
    """Mean paired difference with its 95% interval; `not separable` when that holds 0."""
    found = interval(np.asarray(values) - np.asarray(baseline), resamples)
    verdict = "better" if found["lo"] > 0 else "worse" if found["hi"] < 0 else "not separable"
    return {"diff": found["mean"], "lo": found["lo"], "hi": found["hi"], "verdict": verdict}


def comparison(played: Played, other: Played, measure: str, config: Config) -> dict[str, Any]:
    """One paired comparison of results.json, in `quality` or `return`. `p`: two-sided Wilcoxon signed-rank test (scipy)."""
    values, baseline = ([r.quality if measure == "quality" else r.value_under(config.reward) for r in p.routes] for p in (played, other))
    differences = np.asarray(values) - np.asarray(baseline)
    counts = {"wins": int((differences > 0).sum()), "ties": int((differences == 0).sum()), "losses": int((differences < 0).sum())}
    p = float(wilcoxon(differences).pvalue) if differences.any() else 1.0
    return {"a": played.policy, "b": other.policy, "measure": measure, **paired_difference(values, baseline, config.eval.bootstrap), "p": p, **counts}


def route_shares(played: Played, names: Sequence[str]) -> dict[str, Any]:
    """Which experts a policy calls: share of all calls, and at each position of the route."""
    positions = max(len(route.episode.steps) for route in played.routes)
    by_position = [[route.episode.steps[t].expert_idx for route in played.routes if len(route.episode.steps) > t] for t in range(positions)]
    return {"policy": played.policy, "share": _shares([*itertools.chain(*by_position)], names), "by_position": [_shares(calls, names) for calls in by_position]}


def _shares(calls: Sequence[int], names: Sequence[str]) -> dict[str, float]:
    return {name: list(calls).count(idx) / len(calls) for idx, name in enumerate(names)}


def result_row(played: Played, best_single: Played, config: Config) -> dict[str, Any]:
    """One row of results.json. `vs_best_single` compares quality."""
    n = config.eval.bootstrap
    costs = [route.episode.cost for route in played.routes]
    units = {name: float(np.mean([getattr(cost, name) for cost in costs])) for name in ("params_b", "flops", "prompt_tokens", "completion_tokens", "latency_s")}
    prices = [cost.usd for cost in costs]
    qualities = [route.quality for route in played.routes]
    return {
        "policy": played.policy,
        "kind": played.kind,
        "quality": interval(qualities, n),
        "return": interval([route.value_under(config.reward) for route in played.routes], n),
        "calls": interval([len(route.episode.steps) for route in played.routes], n),
        "cost": {**units, "usd": None if None in prices else float(np.mean(prices))},
        "overhead": asdict(played.overhead),
        "vs_best_single": paired_difference(qualities, [route.quality for route in best_single.routes], n),
    }


def table(rows: Sequence[dict[str, Any]], pool: ExpertPool) -> str:
    """The rows as aligned text: quality and return with intervals, calls, experts' and deciding parameters, share of asking all."""
    lines = [f"{'policy':<26} {'quality':^20} {'return':^22} {'calls':>5} {'params (M)':>10} {'of all':>6} {'tokens':>7} {'s':>7} {'vs best single':>16}"]
    for row in rows:
        quality, value, cost = row["quality"], row["return"], row["cost"]
        lines.append(
            f"{row['policy']:<26} {quality['mean']:.3f} [{quality['lo']:.3f}, {quality['hi']:.3f}] {value['mean']:>6.3f} [{value['lo']:>6.3f}, {value['hi']:>6.3f}] "
            f"{row['calls']['mean']:>5.2f} {1000 * cost['params_b']:>10.3f} {cost['params_b'] / pool.total_params_b:>6.0%} "
            f"{cost['prompt_tokens'] + cost['completion_tokens']:>7.1f} {cost['latency_s']:>7.4f} {row['vs_best_single']['verdict']:>16}"
        )
    return "\n".join(lines)


def route_record(played: Played, route: Route, pool: ExpertPool, config: Config, split: str) -> dict[str, Any]:
    """One line of routes.jsonl."""
    steps, previous = [], None
    for step, decision in zip(route.episode.steps, route.decisions, strict=True):
        prompt = pool.experts[step.expert_idx].render(route.episode.question.text, previous, pool.ktp)
        steps.append(
            {
                "expert": pool.names[step.expert_idx],
                "prompt_hash": hashlib.sha256(prompt.encode()).hexdigest()[:16],
                "answer": step.answer.text,
                "quality": step.quality,
                "prompt_cut": step.answer.prompt_cut,
                "cost": asdict(step.cost),
                "charge": charge(step.cost, config.reward),
                "value": decision.value,
                "entropy": decision.entropy,
                "p_stop": step.p_stop,
            }
        )
        previous = None if played.kind == "oracle" else step.answer.text  # asking everyone hands nothing on
    question = route.episode.question
    return {
        "policy": played.policy,
        "kind": played.kind,
        "seed": config.seed,
        "split": split,
        "question": question.id,
        "task": question.task,
        "stop_reason": route.episode.stop_reason,
        "quality": route.quality,
        "return": route.value_under(config.reward),
        "steps": steps,
    }


def write_report(folder: Path, played: Sequence[Played], rows: Sequence[dict[str, Any]], pool: ExpertPool, config: Config, extra: dict[str, Any]) -> None:
    """routes.jsonl and report/results.json of a run."""
    records = (route_record(p, route, pool, config, "test") for p in played for route in p.routes)
    write_atomically(folder / "routes.jsonl", "".join(json.dumps(record) + "\n" for record in records).encode())
    results = {
        "split": "test",
        "num_questions": len(played[0].routes),
        "seeds": [config.seed],
        "reward": config.reward.kind,
        "alpha": config.reward.alpha,
        "cost_unit": config.reward.cost,
        "rows": list(rows),
        **extra,
    }
    (folder / "report").mkdir(exist_ok=True)
    write_atomically(folder / "report" / "results.json", json.dumps(results, indent=2).encode())
