"""The routes of a policy as arrays, and its row of results.json.

A policy is found by its role. Its name is for readers: an expert may have any name, even `DER`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from evaluation.route_log import Record
from evaluation.stats import interval, paired_difference
from runtime.errors import ReportError

COST_UNITS = ("params_b", "flops", "prompt_tokens", "completion_tokens", "latency_s")
DECIDING_UNITS = ("params_b", "flops", "latency_s")


class PolicyResults:
    """One policy's records, and its outcomes as arrays of shape (S seeds, Q questions).

    Raises ReportError where a seed has other questions than `questions`.
    """

    def __init__(self, name: str, records: Sequence[Record], questions: Sequence[str]):
        self.name = name
        self.seeds = sorted({record["seed"] for record in records})
        self.records = [_in_order(name, seed, records, questions) for seed in self.seeds]
        first = self.records[0]
        self.role: str = first[0]["role"]
        self.kind: str = first[0]["kind"]
        self.tasks = np.array([record["task"] for record in first])
        self.quality = self._array(lambda record: record["quality"])
        self.returns = self._array(lambda record: record["return"])
        self.calls = self._array(lambda record: len(record["steps"]))
        self.cost = self._array(total_charge)

    @property
    def question_ids(self) -> list[str]:
        """The questions, in order."""
        return [record["question"] for record in self.records[0]]

    def _array(self, figure: Callable[[Record], float]) -> np.ndarray:
        values = np.empty((len(self.seeds), len(self.records[0])))
        for seed, row in enumerate(self.records):
            values[seed] = list(map(figure, row))
        return values

    @property
    def validation_return(self) -> float | None:
        """Mean over the seeds; None where the policy was not played on validation questions."""
        by_seed = []
        for row in self.records:
            value = row[0].get("validation_return")
            if value is None:
                return None
            by_seed.append(value)
        return float(np.mean(by_seed))

    @property
    def all_records(self) -> list[Record]:
        """The records of all seeds."""
        everything: list[Record] = []
        for row in self.records:
            everything += row
        return everything

    def measure(self, name: str) -> np.ndarray:
        return self.quality if name == "quality" else self.returns

    def row(self, best_single: PolicyResults) -> dict[str, Any]:
        """The policy's row of results.json."""
        versus = paired_difference(self.quality, best_single.quality)
        costs: dict[str, float | None] = {}
        for unit in COST_UNITS:
            costs[unit] = self.mean_cost(unit)
        costs["usd"] = self.mean_usd()
        return {
            "policy": self.name,
            "role": self.role,
            "kind": self.kind,
            "quality": span(self.quality),
            "return": span(self.returns),
            "validation_return": self.validation_return,
            "calls": span(self.calls, counted=True),
            "charge": float(self.cost.mean()),
            "cost": costs,
            "overhead": self._deciding_cost(),
            "vs_best_single": {
                "diff": versus["diff"],
                "lo": versus["lo"],
                "hi": versus["hi"],
                "verdict": versus["verdict"],
            },
            "by_task": self._by_task(),
            "by_seed": self._by_seed(),
        }

    def point(self, value: str | None = None) -> dict[str, Any]:
        """The policy's point in the trade-off.

        Args:
            value: of the swept setting, for an agent that was trained with it.
        """
        return {
            "policy": self.name,
            "kind": self.kind,
            "value": value,
            "cost": span(self.cost, counted=True),
            "quality": span(self.quality),
        }

    def mean_cost(self, unit: str) -> float:
        """What the experts cost for a question in one of COST_UNITS, on average."""
        total = 0.0
        for record in self.all_records:
            for step in record["steps"]:
                total += step["cost"][unit]
        return total / self.quality.size

    def mean_usd(self) -> float | None:
        """The same in US dollars; None where an expert has no price."""
        total = 0.0
        for record in self.all_records:
            for step in record["steps"]:
                if step["cost"]["usd"] is None:
                    return None
                total += step["cost"]["usd"]
        return total / self.quality.size

    def _deciding_cost(self) -> dict[str, float]:
        means = {}
        for unit in DECIDING_UNITS:
            means[unit] = float(np.mean([r["overhead"][unit] for r in self.all_records]))
        return means

    def _by_task(self) -> dict[str, dict[str, float]]:
        figures = {}
        for task in sorted(set(self.tasks)):
            chosen = self.tasks == task
            quality = float(self.quality[:, chosen].mean())
            figures[str(task)] = {"quality": quality, "n": int(chosen.sum())}
        return figures

    def _by_seed(self) -> dict[str, dict[str, float]]:
        figures = {}
        for idx, seed in enumerate(self.seeds):
            quality = float(self.quality[idx].mean())
            figures[str(seed)] = {"quality": quality, "return": float(self.returns[idx].mean())}
        return figures


def _in_order(
    policy: str, seed: int, records: Sequence[Record], questions: Sequence[str]
) -> list[Record]:
    """The records of a seed in the order of the questions."""
    of_seed = [record for record in records if record["seed"] == seed]
    by_question = {record["question"]: record for record in of_seed}
    if by_question.keys() != set(questions) or len(of_seed) != len(questions):
        raise ReportError(
            f"policy {policy}, seed {seed}: {len(of_seed)} routes for {len(questions)} questions;"
            " the runs were evaluated on other questions"
        )
    return [by_question[question] for question in questions]


def total_charge(record: Record) -> float:
    """The cost C of a route."""
    return sum(step["charge"] for step in record["steps"])


def span(values: np.ndarray, *, counted: bool = False) -> dict[str, float]:
    """Mean with its 95% interval."""
    found = interval(values, counted=counted)
    return {"mean": found["mean"], "lo": found["lo"], "hi": found["hi"]}


def policies_of(records: Sequence[Record]) -> list[PolicyResults]:
    """The policies of a route log (of one or several runs), in the order they were played.

    Raises ReportError when they do not fit together, or the log is of an older version.
    """
    grouped: dict[str, list[Record]] = {}
    questions: dict[str, None] = {}  # in order
    for record in records:
        if "role" not in record:
            raise ReportError(
                f"the route log is of an older version: policy {record['policy']} has no role."
                " Evaluate the run again: python test_ppo_multi.py --run RUN"
            )
        grouped.setdefault(record["policy"], []).append(record)
        questions[record["question"]] = None
    order = list(questions)
    return [PolicyResults(name, lines, order) for name, lines in grouped.items()]


def with_role(policies: Sequence[PolicyResults], role: str) -> PolicyResults | None:
    """The policy of this role; None where it was not played."""
    for policy in policies:
        if policy.role == role:
            return policy
    return None
