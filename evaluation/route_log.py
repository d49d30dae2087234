"""The route log: routes.jsonl has a line for each policy, seed and question.

Everything in a report is computed from it. So a finished evaluation can be priced again in another
unit, and several runs can be reported together, without asking an expert.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from config import Config, RewardConfig
from der_env import Step
from evaluation.route_schema import read_routes
from experts import ExpertPool, Request
from reward import Cost, charge
from rollout import Route
from runtime.errors import ReportError

Record = dict[str, Any]  # one line of routes.jsonl

Role = Literal[
    "der",
    "best_single",
    "best_single_return",
    "best_route",
    "task_lookup",
    "random",
    "random_without_ktp",
    "round_robin",
    "cascade",
    "agreement_cascade",
    "threshold_cascade",
    "learned_stop",
    "cascade_routing",
    "knn_router",
    "logistic_router",
    "plan",
    "full_information",
    "vote",
    "ranker",
    "single",
    "oracle_pick",
    "der_oracle",
    "full_information_oracle",
    "optimum",
    "custom",  # a user's own, named by import path
]
ROLES: tuple[str, ...] = get_args(Role)

# Labels of logs that were written before records had a role. Each is the start of a label.
LABELLED_ROLES: dict[str, Role] = {
    "best fixed in return: ": "best_single_return",
    "best fixed route: ": "best_route",
    "best fixed: ": "best_single",
    "per-task lookup": "task_lookup",
    "random with KTP": "random",
    "random without KTP": "random_without_ktp",
    "round-robin": "round_robin",
    "cascade, cheapest first": "cascade",
    "k-NN router": "knn_router",
    "logistic router": "logistic_router",
    "majority vote of all": "vote",
    "pairwise ranker of all": "ranker",
    "all once, oracle's pick": "oracle_pick",
    "DER, oracle stop": "der_oracle",
    "full-information, oracle stop": "full_information_oracle",
    "full-information": "full_information",
    "optimum (hindsight)": "optimum",
}


@dataclass(frozen=True)
class Overhead:
    """What deciding took, beside the experts: agent and Terminator."""

    params_b: float = 0.0  # encoder parameters (billions) summed over its passes
    flops: float = 0.0
    latency_s: float = 0.0


@dataclass
class PolicyRoutes:
    """A policy's scored routes on a split, one per question, in the split's order.

    `policy` is a label for readers. Programs go by `role`: an expert may have any name.
    """

    policy: str
    kind: str  # der | single | static | random | cascade | learned | ensemble | oracle
    routes: list[Route]
    overheads: list[Overhead] | None = None  # one per route; none: nothing had to be computed
    seed: int = 0
    passes_answers: bool = True  # whether each call is given the answer before it
    role: Role = "custom"
    validation_return: float | None = None  # mean return on the validation questions, if known


def route_records(
    played: PolicyRoutes,
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
        question = route.episode.question
        yield {
            "policy": played.policy,
            "role": played.role,
            "kind": played.kind,
            "seed": played.seed,
            "split": split,
            "question": question.id,
            "text": question.text,
            "reference": references[question.id],
            "task": question.task,
            "stop_reason": route.episode.stop_reason,
            "stop_probability": stop_probability(route),
            "submitted": route.episode.submitted_idx,
            "quality": route.quality,
            "return": route.return_under(config.reward),
            "validation_return": played.validation_return,
            "overhead": dict(vars(overhead)),
            "steps": _step_records(played, route, pool, config.reward),
        }


def _step_records(
    played: PolicyRoutes, route: Route, pool: ExpertPool, reward: RewardConfig
) -> list[Record]:
    """What the route log keeps of each call of a route."""
    text = route.episode.question.text
    records = []
    handed: list[str] = []
    for step, decision in zip(route.episode.steps, route.decisions, strict=True):
        previous = handed[-1] if handed else None
        request = Request(step.expert_idx, text, previous, tuple(handed[:-1]))
        prompt = pool.render(request)
        record: Record = {
            "expert": pool.names[step.expert_idx],
            "prompt_hash": _hash(prompt),
        }
        if played.kind == "der":
            is_recorded = pool.is_recorded[step.expert_idx]
            record["prompt"] = text if is_recorded else pool.content(request)
        record |= _answer_record(step, reward)
        record["value"] = decision.value
        record["entropy"] = decision.entropy
        record["p_stop"] = step.p_stop
        record["probability"] = decision.probability
        records.append(record)
        if played.passes_answers:
            handed.append(step.answer.text)
    return records


def _answer_record(step: Step, reward: RewardConfig) -> Record:
    """What was answered, how good it is and what it cost."""
    record: Record = {"answer": step.answer.text}
    if step.answer.whole_text is not None:
        record["whole_answer"] = step.answer.whole_text
    record["quality"] = step.quality
    record["prompt_cut"] = step.answer.prompt_cut
    record["finish"] = step.answer.finish
    record["logprob_mean"] = step.answer.logprob_mean
    record["logprob_min"] = step.answer.logprob_min
    record["cost"] = dict(vars(step.cost))
    record["charge"] = charge(step.cost, reward)
    return record


def stop_probability(route: Route) -> float | None:
    """With which probability the route ended where it did; None: not known, or out of calls."""
    if route.episode.stop_reason == "satisfied":
        return 1.0  # a judge draws no lots
    return None if route.stop is None else route.stop.probability


def _hash(prompt: str) -> str:
    return hashlib.sha256(prompt.encode()).hexdigest()[:16]


def read_records(path: Path) -> list[Record]:
    """The lines of a route log; those without a role get theirs from their label.

    Raises ReportError naming file and line.
    """
    if not path.is_file():
        raise ReportError(
            f"{path}: no route log here; evaluate the run first: python test_ppo_multi.py --run"
            f" {path.parent}"
        )
    records = read_routes(path)
    for record in records:
        record.setdefault("role", role_of(record))
    return records


def role_of(record: Record) -> Role:
    """The role of a record from before records had one, by its kind and the start of its label."""
    kind = record["kind"]
    if kind in ("der", "single"):
        return kind
    for start, role in LABELLED_ROLES.items():
        if record["policy"].startswith(start):
            return role
    return "custom"


def reprice(records: Sequence[Record], reward: RewardConfig) -> list[Record]:
    """The same routes charged in another unit or with another alpha.

    Raises ReportError where a cost is unknown.
    """
    repriced = []
    for record in records:
        steps = []
        total = 0.0
        for step in record["steps"]:
            step_charge = _charge(step, reward, record)
            steps.append({**step, "charge": step_charge})
            total += step_charge
        new_record = {
            **record,
            "steps": steps,
            "validation_return": None,  # the mean return on validation was of the old prices
            "return": record["quality"] - reward.alpha * total,
        }
        repriced.append(new_record)
    return repriced


def _charge(step: Record, reward: RewardConfig, record: Record) -> float:
    cost = Cost(**step["cost"])
    if reward.cost == "usd" and cost.usd is None:
        raise ReportError(
            f"expert {step['expert']} has no price, so the routes of {record['policy']} cannot be"
            " priced in USD"
        )
    return charge(cost, reward)
