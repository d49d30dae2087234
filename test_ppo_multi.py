"""Evaluate a trained run on the test split, against every simple way of using the same experts.

    python test_ppo_multi.py                        # the newest run
    python test_ppo_multi.py --run runs/NAME --eval.bootstrap 10000

No policy sees a reference: routes are played first and scored afterwards. Rows of kind `oracle` are the exception and say so.
Prints a table; writes runs/NAME/routes.jsonl and runs/NAME/report/results.json.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("NUMBA_DISABLE_JIT", "1")

import numpy as np
import torch

from agent import Agent, load_agent
from baselines import FixedRoute, RandomRouting, TaskLookup, ask_all_pick_best, best_by_task, best_single_expert
from config import Config, load_config, run_command
from der_env import Judge
from encoder import ENCODE_ROWS
from experts import ExpertPool, build_pool, pick_device
from questions import Question, load_splits
from report import Overhead, Played, comparison, result_row, route_shares, table, write_report
from reward import check_metrics
from rollout import NeverSatisfied, Policy, Route, play, score_routes
from run_folder import newest_run
from terminator import TerminatorJudge, load_terminator


class Evaluation:
    """A run's agent, Terminator and pool, ready to play the splits."""

    def __init__(self, run: Path, overrides: Sequence[str], *, other_pool: bool = False):
        self.run, self.config = run, load_config(run / "config.yaml", list(overrides))
        if self.config.threads is not None:
            torch.set_num_threads(self.config.threads)
        self.device = pick_device(self.config.device)
        self.pool = build_pool(self.config)
        self.agent = load_agent(run / "agent", self.pool, device=self.device, other_pool=other_pool)
        self.terminator = load_terminator(run / "terminator", self.device)
        self.judge = TerminatorJudge(self.agent, self.terminator)

    def play(self, questions: Sequence[Question], policy: Policy, judge: Judge, t_max: int) -> list[Route]:
        """Play sealed copies of the questions, then score the routes."""
        routes = play([q.sealed() for q in questions], policy, self.pool, judge, t_max)
        score_routes(routes, questions)
        return routes

    def singles(self, questions: Sequence[Question]) -> list[list[Route]]:
        """Every expert alone on every question: [expert][question]."""
        return [self.play(questions, FixedRoute([idx]), NeverSatisfied(), 1) for idx in range(len(self.pool))]

    def overhead(self, routes: Sequence[Route], *, uses_agent: bool) -> Overhead:
        """Deciding per question: one encoder pass per state read. The Terminator shares the pass over a state with the agent."""
        return overhead(self.agent, self.config.env.t_max, routes, uses_agent=uses_agent)


def overhead(agent: Agent, t_max: int, routes: Sequence[Route], *, uses_agent: bool) -> Overhead:
    """Mean encoder work per route: the question (agent only), then the state after each call (Terminator, and agent where it goes on)."""
    questions, answers, left = [], [], []
    for route in routes:
        states = ([None] if uses_agent else []) + [step.answer.text for step in route.episode.steps]
        questions += [route.episode.question.text] * len(states)
        answers += states
        left += [t_max - (index + (0 if uses_agent else 1)) for index in range(len(states))]
    rows = agent.state_tokenizer.encode(questions, answers, left)
    tokens = int((rows[:, agent.state_tokenizer.HEADER :] != agent.state_tokenizer.pad_id).sum())
    params = sum(p.numel() for p in agent.encoder.model.parameters())
    return Overhead(len(rows) * params / 1e9 / len(routes), 2 * params * tokens / len(routes), len(rows) / len(routes) * seconds_per_row(agent, rows))


def seconds_per_row(agent: Agent, rows: np.ndarray) -> float:
    """Wall seconds of the encoder for one state, measured on a full batch, not taken from the cache."""
    sample = rows[:ENCODE_ROWS]
    with torch.inference_mode():
        agent.encoder.pooled(sample)
        start = time.perf_counter()
        agent.encoder.pooled(sample)
        return (time.perf_counter() - start) / len(sample)


def play_all(evaluation: Evaluation) -> list[Played]:
    """Every policy on the test split. What has to be chosen is chosen on validation."""
    config, pool, t_max = evaluation.config, evaluation.pool, evaluation.config.env.t_max
    splits = load_splits(config.data)
    check_metrics([*splits.validation, *splits.test])
    validation_singles, test_singles = evaluation.singles(splits.validation), evaluation.singles(splits.test)
    best = best_single_expert(validation_singles)
    lookup = TaskLookup(best_by_task(validation_singles, config.reward), best)
    der = evaluation.play(splits.test, evaluation.agent, evaluation.judge, t_max)
    random = evaluation.play(splits.test, RandomRouting(len(pool), config.seed), evaluation.judge, t_max)
    return [
        Played("DER", "der", der, evaluation.overhead(der, uses_agent=True)),
        Played(f"best fixed: {pool.names[best]}", "static", test_singles[best]),
        Played("per-task lookup", "static", evaluation.play(splits.test, lookup, NeverSatisfied(), 1)),
        Played("random with KTP", "random", random, evaluation.overhead(random, uses_agent=False)),
        *(Played(name, "single", routes) for name, routes in zip(pool.names, test_singles, strict=True)),
        Played("all once, oracle's pick", "oracle", ask_all_pick_best(test_singles)),
    ]


def comparisons(played: Sequence[Played], config: Config) -> list[dict[str, Any]]:
    """DER against the policies that could replace it, paired by question, in quality and return."""
    others = [p for p in played[1:] if p.kind in ("static", "random")]
    return [comparison(played[0], other, measure, config) for other in others for measure in ("quality", "return")]


def summary(rows: Sequence[dict[str, Any]], compared: Sequence[dict[str, Any]], pool: ExpertPool, cut: int, empty: int) -> str:
    """What the table says, in words, with the footnotes."""
    der, all_params = rows[0], pool.total_params_b
    lines = [f"DER minus {c['b']}: {c['measure']} {c['diff']:+.3f} [{c['lo']:+.3f}, {c['hi']:+.3f}], {c['verdict']}" for c in compared]
    lines.append(f"DER asks {der['cost']['params_b'] / all_params:.0%} of the parameters of asking every expert once ({1000 * all_params:.2f} M).")
    deciding = der["overhead"]
    took = f"{1000 * deciding['params_b']:.1f} M encoder parameters and {1000 * deciding['latency_s']:.1f} ms"
    lines.append(f"Deciding (agent and Terminator) adds {took} per question, not in the columns above.")
    lines.append("Intervals: 95% bootstrap over questions. Return: quality of the final answer minus alpha times the experts' cost. 's': first generation, batched.")
    if cut or empty:
        lines.append(f"{cut} prompts were longer than an expert's context and lost their middle; {empty} answers were empty.")
    return "\n".join(lines)


def main(arguments: list[str]) -> Path:
    """Run the command; returns the path of results.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--run", type=Path, help="folder of the run; default: the newest")
    parser.add_argument("--other_pool", action="store_true", help="evaluate although the pool differs from the one trained on")
    options, overrides = parser.parse_known_args(arguments)
    evaluation = Evaluation(options.run or newest_run(), overrides, other_pool=options.other_pool)
    start = time.perf_counter()
    played = play_all(evaluation)
    config, pool = evaluation.config, evaluation.pool
    rows = [result_row(p, played[1], config) for p in played]
    compared = comparisons(played, config)
    extra = {
        "comparisons": compared,
        "oracle": {row["policy"]: row["quality"] for row in rows if row["kind"] == "oracle"},
        "terminator": {"threshold": evaluation.terminator.threshold},
        "routes": route_shares(played[0], pool.names),
    }
    write_report(evaluation.run, played, rows, pool, config, extra)
    print(f"{evaluation.run}: {len(played[0].routes)} test questions, alpha {config.reward.alpha}, cost in {config.reward.cost}, seed {config.seed}\n")
    print(table(rows, pool), summary(rows, compared, pool, pool.stats.cut_prompts, pool.stats.empty_answers), sep="\n\n")
    results = evaluation.run / "report" / "results.json"
    print(f"\n{time.perf_counter() - start:.0f} s, {pool.stats.generated} answers generated. Routes: {evaluation.run / 'routes.jsonl'}. Numbers: {results}")
    return results


if __name__ == "__main__":
    run_command(main)
