"""results.json's `curves`: the agent and every rule at several alphas; where reading answers pays.

At each alpha the rules are chosen again. `The best rule` at an alpha is the deployable one with the
best return on validation questions; its curve joins what a careful user would have chosen at each
alpha. The same is done for the rules that ask one expert without reading its answer (one-shot), and
for those that read answers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluation.stats import adjust, paired_difference
from report.curves import (
    CostRange,
    Curve,
    area_difference,
    area_span,
    areas,
    stack,
    upper_hull,
)
from report.policies import PolicyResults, span, with_role
from report.roles import ONE_SHOT_ROLES, ROLE_NAMES, YARDSTICK_ROLES, is_deployable
from report.summary import few_of
from report.view import values_of
from runtime.errors import ReportError

BEST = "best rule"
BEST_ONE_SHOT = "best one-shot rule"
BEST_READING = "best rule that reads answers"
# Yardsticks with a sentence of their own
SPOKEN_ROLES = (
    "best_single_return",
    "task_lookup",
    "knn_router",
    "logistic_router",
    "agreement_cascade",
    "learned_stop",
)
SHARED_ROLES = ("single", "custom")  # roles of several policies, told apart by their names


Policies = Sequence[PolicyResults]  # all that were played at one alpha, the agent first


@dataclass(frozen=True)
class Line:
    """A policy over the alphas: its results at each, in their order."""

    name: str
    role: str
    results: list[PolicyResults]

    @property
    def kind(self) -> str:
        return self.results[0].kind

    @property
    def is_deployable(self) -> bool:
        return all(is_deployable(policy.role, policy.kind) for policy in self.results)

    @property
    def curve(self) -> Curve:
        quality = stack([policy.quality for policy in self.results])
        return Curve(quality, stack([policy.cost for policy in self.results]))


def curves_section(by_alpha: Mapping[float, Policies]) -> dict[str, Any]:
    """results.json's `curves`.

    Args:
        by_alpha: the agent first at every alpha, all of the same questions.

    Raises:
        ReportError: the alphas were evaluated on other questions or with other seeds.
    """
    alphas = sorted(by_alpha)
    played = [by_alpha[alpha] for alpha in alphas]
    lines = _lines(played)
    _check(lines[0])
    lines += _best_lines(played)
    experts, names = _experts(played[0])
    min_cost = float(experts.cheapest_cost.mean())
    max_cost = float(experts.most_expensive_cost.mean())
    samples: dict[str, np.ndarray] = {}
    if min_cost < max_cost:
        samples = areas({line.name: line.curve for line in lines}, experts)
    cells = _cells(alphas, lines, samples)
    return {
        "alphas": alphas,
        "cheapest": names[0],
        "most_expensive": names[1],
        "bounds": [min_cost, max_cost],
        "rows": [_row(line, alphas, samples) for line in lines],
        "cells": cells,
        "summary": list(_sentences(alphas, lines, cells, samples)),
    }


# Which policies, over the alphas


def _lines(played: Sequence[Policies]) -> list[Line]:
    """The policies that were played at every alpha, the agent first."""
    found: dict[str, list[PolicyResults]] = {}
    for at_alpha in played:
        for policy in at_alpha:
            found.setdefault(_key(policy, at_alpha), []).append(policy)
        constant = with_role(at_alpha, "best_single")
        if constant is not None and with_role(at_alpha, "best_single_return") is None:
            # The best expert in quality is the best in return, too: it is played once.
            found.setdefault("best_single_return", []).append(constant)
    lines = []
    for key, results in found.items():
        if len(results) == len(played):
            lines.append(Line(_name(key, results), key.partition(":")[0], results))
    return lines


def _name(key: str, results: Sequence[PolicyResults]) -> str:
    """The policy's own name where it is the same at every alpha, else a name for its role."""
    names = {policy.name for policy in results}
    if len(names) == 1 and key not in ROLE_NAMES:
        return names.pop()
    return ROLE_NAMES.get(key, key.replace("_", " "))


def _key(policy: PolicyResults, policies: Policies) -> str:
    """What a policy is known by at every alpha: its role, and its name where the role is shared."""
    of_role = [other for other in policies if other.role == policy.role]
    is_shared = policy.role in SHARED_ROLES or len(of_role) > 1
    return f"{policy.role}: {policy.name}" if is_shared else policy.role


def _check(agent: Line) -> None:
    first = agent.results[0]
    for policy in agent.results[1:]:
        if policy.question_ids != first.question_ids:
            raise ReportError("the alphas were evaluated on other questions: evaluate them again")
        if policy.seeds != first.seeds:
            raise ReportError(
                f"the alphas have other seeds ({first.seeds} and {policy.seeds}): give every alpha"
                " runs of the same seeds"
            )


def _best_lines(played: Sequence[Policies]) -> list[Line]:
    """The best rule of each alpha: of all, of the one-shot ones, of those that read answers."""
    groups: dict[str, Callable[[PolicyResults], bool]] = {
        BEST: lambda policy: True,
        BEST_ONE_SHOT: lambda policy: policy.role in ONE_SHOT_ROLES,
        BEST_READING: lambda policy: policy.role not in ONE_SHOT_ROLES,
    }
    lines = []
    for name, belongs in groups.items():
        chosen = []
        for at_alpha in played:
            best = _best(at_alpha, belongs)
            if best is not None:
                chosen.append(best)
        if len(chosen) == len(played):
            lines.append(Line(name, name.replace(" ", "_").replace("-", "_"), chosen))
    return lines


def _best(policies: Policies, belongs: Callable[[PolicyResults], bool]) -> PolicyResults | None:
    """The deployable rule with the best return on validation questions; the first of equal ones."""
    best = None
    best_return = -math.inf
    for policy in policies[1:]:
        value = policy.validation_return
        if value is None or not is_deployable(policy.role, policy.kind):
            continue
        if belongs(policy) and value > best_return:
            best = policy
            best_return = value
    return best


def _experts(policies: Policies) -> tuple[CostRange, tuple[str, str]]:
    """The cheapest and the most expensive single expert, and their names."""
    singles = [policy for policy in policies if policy.role == "single"]
    if not singles:
        raise ReportError("no single expert was played: an area needs the cheapest one's cost")
    by_cost = sorted(singles, key=lambda policy: float(policy.cost.mean()))
    cheapest = by_cost[0]
    dearest = by_cost[-1]
    experts = CostRange(
        cheapest_quality=cheapest.quality.mean(axis=0),
        cheapest_cost=cheapest.cost.mean(axis=0),
        most_expensive_cost=dearest.cost.mean(axis=0),
    )
    return experts, (cheapest.name, dearest.name)


# Numbers


def _row(line: Line, alphas: Sequence[float], samples: Mapping[str, np.ndarray]) -> dict[str, Any]:
    points = []
    places = []
    for alpha, policy in zip(alphas, line.results, strict=True):
        cost = float(policy.cost.mean())
        quality = float(policy.quality.mean())
        places.append([cost, quality])
        points.append(
            {
                "alpha": alpha,
                "policy": policy.name,
                "cost": cost,
                "quality": quality,
                "return": span(policy.returns),
                "validation_return": policy.validation_return,
            }
        )
    return {
        "policy": line.name,
        "role": line.role,
        "kind": line.kind,
        "deployable": line.is_deployable,
        "points": points,
        "hull": upper_hull(np.array(places)).tolist(),
        "area": area_span(samples[line.name]) if samples else None,
    }


def _cells(
    alphas: Sequence[float], lines: Sequence[Line], samples: Mapping[str, np.ndarray]
) -> list[dict[str, Any]]:
    """The agent against the best rules and the yardsticks: return at each alpha, and the area.

    Holm's correction is over all cells.
    """
    agent = lines[0]
    cells = []
    for line in _rivals(lines):
        names = {"a": agent.name, "b": line.name}
        for alpha, ours, theirs in zip(alphas, agent.results, line.results, strict=True):
            test = paired_difference(ours.returns, theirs.returns)
            cell = {
                "diff": test["diff"],
                "lo": test["lo"],
                "hi": test["hi"],
                "p": test["p"],
                "verdict": test["verdict"],
            }
            cells.append({**names, "alpha": alpha, **cell})
        if samples:
            difference = area_difference(samples[agent.name], samples[line.name])
            cells.append({**names, "alpha": None, **difference})
    adjusted = adjust(values_of(cells, "p"))
    for cell, p in zip(cells, adjusted, strict=True):
        cell["p_adjusted"] = p
    return cells


def _rivals(lines: Sequence[Line]) -> list[Line]:
    """The best rules, then the yardsticks in the order of their list."""
    best = []
    by_role: dict[str, list[Line]] = {}
    for line in lines:
        if line.name in (BEST, BEST_ONE_SHOT, BEST_READING):
            best.append(line)
        by_role.setdefault(line.role, []).append(line)
    rivals = best
    for role in YARDSTICK_ROLES:
        rivals += by_role.get(role, [])
    return rivals


# Words


def _sentences(
    alphas: Sequence[float],
    lines: Sequence[Line],
    cells: Sequence[Mapping[str, Any]],
    samples: Mapping[str, np.ndarray],
) -> list[str]:
    sentences = []
    if any(line.name == BEST_ONE_SHOT for line in lines):
        sentences += _where_reading_pays(lines[0].name, cells)
    sentences.append(
        "Differences in return below are paired by question; * marks an interval that leaves out 0."
    )
    for line in _rivals(lines):
        if line.name in (BEST, BEST_ONE_SHOT) or line.role in SPOKEN_ROLES:
            sentences.append(_against(lines[0].name, line.name, cells))
    if samples:
        sentences.append(_areas_sentence(lines, samples))
    return sentences


def _where_reading_pays(agent: str, cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """The agent against the best rule that reads no answer, alpha by alpha."""
    by_verdict: dict[str, list[str]] = {"better": [], "worse": [], "not separable": []}
    for cell in cells:
        if cell["b"] == BEST_ONE_SHOT and cell["alpha"] is not None:
            by_verdict[cell["verdict"]].append(f"{cell['alpha']:g}")
    sentences = []
    if by_verdict["better"]:
        sentences.append(
            f"Reading answers pays at alpha {_listed(by_verdict['better'])}: {agent} returns more"
            " than the best rule that asks one expert and reads nothing."
        )
    if by_verdict["worse"]:
        sentences.append(
            f"Reading answers does not pay at alpha {_listed(by_verdict['worse'])}: {agent} returns"
            " less than the best rule that asks one expert and reads nothing."
        )
    if by_verdict["not separable"]:
        sentences.append(
            f"At alpha {_listed(by_verdict['not separable'])} it cannot be told whether reading"
            f" answers pays: {agent} and the best rule that reads nothing are not separable."
        )
    return sentences


def _listed(values: Sequence[str]) -> str:
    if len(values) == 1:
        return values[0]
    return f"{', '.join(values[:-1])} and {values[-1]}"


def _against(agent: str, rival: str, cells: Sequence[Mapping[str, Any]]) -> str:
    """`DER minus task lookup: +0.031* at alpha 0, +0.002 at 0.1; area +0.012 [...]`."""
    parts: list[str] = []
    area = ""
    for cell in cells:
        if cell["b"] != rival:
            continue
        star = "" if cell["verdict"] == "not separable" else "*"
        if cell["alpha"] is None:
            area = f"; area {cell['diff']:+.3f}{star} [{cell['lo']:+.3f}, {cell['hi']:+.3f}]"
        else:
            alpha = f"{cell['alpha']:g}" if parts else f"alpha {cell['alpha']:g}"
            parts.append(f"{cell['diff']:+.3f}{star} at {alpha}")
    return f"{agent} minus {rival}: {', '.join(parts)}{area}."


def _areas_sentence(lines: Sequence[Line], samples: Mapping[str, np.ndarray]) -> str:
    """The areas of the deployable rules, the largest first."""
    agent = lines[0]
    rules = []
    for line in lines[1:]:
        if line.is_deployable and line.role != "single":
            rules.append(line)
    rules.sort(key=lambda line: -samples[line.name][0])
    named = []
    for line in rules:
        named.append(f"{line.name} {samples[line.name][0]:.3f}")
    own = area_span(samples[agent.name])
    return (
        f"Area under quality against cost: {agent.name} {own['mean']:.3f}"
        f" [{own['lo']:.3f}, {own['hi']:.3f}]" + (f"; {few_of(named)}." if named else ".")
    )
