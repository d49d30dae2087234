"""The route log: routes.jsonl, a line per policy, seed and question, from which everything in a
report is computed.

A finished evaluation can therefore be priced again in another unit, and the logs of several runs be
reported together, without asking an expert.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from config import Config, RewardConfig
from experts import ExpertPool, Request
from prompts import content
from reward import Cost, charge
from rollout import Route
from runtime.errors import ReportError

Record = dict[str, Any]  # one line of routes.jsonl


@dataclass(frozen=True)
class Overhead:
    """What deciding took, beside the experts: agent and Terminator."""

    params_b: float = 0.0  # encoder parameters (billions) summed over its passes
    flops: float = 0.0
    latency_s: float = 0.0


@dataclass
class Played:
    """A policy's scored routes on a split, one per question, in the split's order."""

    policy: str
    kind: str  # der | single | static | random | cascade | learned | ensemble | oracle
    routes: list[Route]
    overheads: list[Overhead] | None = None  # one per route; none: nothing had to be computed
    seed: int = 0
    hands_on: bool = True  # whether each call is given the answer before it


def route_records(
    played: Played,
    pool: ExpertPool,
    config: Config,
    references: Mapping[str, Any],
    split: str = "test",
) -> Iterable[Record]:
    """The lines of routes.jsonl for a policy.

    Prompts are kept in full for the agent's own routes, as hashes for the others.
    """
    overheads = played.overheads or [Overhead()] * len(played.routes)
    for route, overhead in zip(played.routes, overheads, strict=True):
        question, steps, previous = route.episode.question, [], None
        for step, decision in zip(route.episode.steps, route.decisions, strict=True):
            prompt = pool.render(Request(step.expert_idx, question.text, previous))
            steps.append(
                {
                    "expert": pool.names[step.expert_idx],
                    "prompt_hash": hashlib.sha256(prompt.encode()).hexdigest()[:16],
                    **(
                        {
                            "prompt": (
                                question.text
                                if pool.is_recorded[step.expert_idx]
                                else content(question.text, previous, pool.ktp)
                            )
                        }
                        if played.kind == "der"
                        else {}
                    ),
                    "answer": step.answer.text,
                    **(
                        {}
                        if step.answer.whole_text is None
                        else {"whole_answer": step.answer.whole_text}
                    ),
                    "quality": step.quality,
                    "prompt_cut": step.answer.prompt_cut,
                    "cost": asdict(step.cost),
                    "charge": charge(step.cost, config.reward),
                    "value": decision.value,
                    "entropy": decision.entropy,
                    "p_stop": step.p_stop,
                }
            )
            previous = step.answer.text if played.hands_on else None
        yield {
            "policy": played.policy,
            "kind": played.kind,
            "seed": played.seed,
            "split": split,
            "question": question.id,
            "text": question.text,
            "reference": references[question.id],
            "task": question.task,
            "stop_reason": route.episode.stop_reason,
            "quality": route.quality,
            "return": route.value_under(config.reward),
            "overhead": asdict(overhead),
            "steps": steps,
        }


def read_records(path: Path) -> list[Record]:
    """The lines of a route log. Raises ReportError naming file and line."""
    if not path.is_file():
        raise ReportError(
            f"{path}: no route log here; evaluate the run first: python test_ppo_multi.py --run"
            f" {path.parent}"
        )
    records = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise ReportError(
                    f"{path}:{number}: not a JSON line ({error}); evaluate the run again"
                ) from error
    return records


def reprice(records: Sequence[Record], reward: RewardConfig) -> list[Record]:
    """The same routes charged in another unit or with another alpha.

    Raises ReportError where a cost is unknown.
    """
    out = []
    for record in records:
        steps = [{**step, "charge": _charge(step, reward, record)} for step in record["steps"]]
        out.append(
            {
                **record,
                "steps": steps,
                "return": record["quality"] - reward.alpha * sum(step["charge"] for step in steps),
            }
        )
    return out


def _charge(step: Record, reward: RewardConfig, record: Record) -> float:
    cost = Cost(**step["cost"])
    if reward.cost == "usd" and cost.usd is None:
        raise ReportError(
            f"expert {step['expert']} has no price, so the routes of {record['policy']} cannot be"
            " priced in USD"
        )
    return charge(cost, reward)
