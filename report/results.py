"""From the route log to results.json: its rows, comparisons and oracle figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from config import Config
from evaluation.route_log import Record
from evaluation.stats import adjust, paired_difference
from report.policies import PolicyResults, policies_of, with_role
from report.roles import ANCHOR_ROLES, ORACLE_ROLES, RIVAL_KINDS
from report.routes import endings, route_statistics
from report.summary import notes, summarise
from report.trade_off import trade_off
from report.view import values_of
from runtime.errors import ReportError
from runtime.version import VERSION

Pair = tuple[PolicyResults, PolicyResults]


def compare(policies: Sequence[PolicyResults]) -> list[dict[str, Any]]:
    """Paired differences in quality and return, p adjusted (Holm).

    Two questions, each with its own adjustment in each measure: the agent against every policy that
    could replace it; and every other policy, single experts aside, against the anchors, each pair
    once.

    Args:
        policies: the agent first.

    Raises:
        ReportError: two trained policies were played with other seeds.
    """
    own, others = _pairs(policies)
    comparisons = []
    for measure in ("quality", "return"):
        comparisons += _tested(own, measure)
        comparisons += _tested(others, measure)
    return comparisons


def _pairs(policies: Sequence[PolicyResults]) -> tuple[list[Pair], list[Pair]]:
    """The agent's pairs, and those of the other policies with the anchors."""
    agent = policies[0]
    own, rest = [], []
    others, anchors = [], []
    for policy in policies[1:]:
        if policy.kind == "single":
            continue
        others.append(policy)
        if policy.kind in RIVAL_KINDS:
            own.append((agent, policy))
            if policy.role in ANCHOR_ROLES:
                anchors.append(policy)
    for policy in others:
        for idx, anchor in enumerate(anchors):
            if policy not in anchors[: idx + 1]:  # two anchors meet once
                rest.append((policy, anchor))
    return own, rest


def _tested(pairs: Sequence[Pair], measure: str) -> list[dict[str, Any]]:
    """A comparison for each pair; their p-values are adjusted together."""
    family = []
    for a, b in pairs:
        if a.seeds != b.seeds and len(a.seeds) > 1 and len(b.seeds) > 1:
            raise ReportError(
                f"{a.name} was played with seeds {a.seeds}, {b.name} with {b.seeds}: evaluate the"
                " runs again"
            )
        names = {"a": a.name, "b": b.name, "measure": measure}
        family.append({**names, **paired_difference(a.measure(measure), b.measure(measure))})
    adjusted = adjust(values_of(family, "p"))
    for comparison, p in zip(family, adjusted, strict=True):
        comparison["p_adjusted"] = p
    return family


def oracle_figures(policies: Sequence[PolicyResults]) -> dict[str, Any]:
    """results.json's `oracle`: what knows more than the agent.

    Where all of them were played, the agent's distance to the optimum is split into parts that add
    up.
    """
    found: dict[str, Any] = {}
    for entry, role in ORACLE_ROLES.items():
        policy = with_role(policies, role)
        if policy is not None:
            quality = float(policy.quality.mean())
            found[entry] = {"quality": quality, "return": float(policy.returns.mean())}
    if len(found) == len(ORACLE_ROLES):
        agent = float(policies[0].returns.mean())
        found["gap"] = _gap(found, "full_information_oracle_stop", agent)
        found["gap_own_stop"] = _gap(found, "full_information", agent)
    return found


def _gap(oracle: Mapping[str, Any], router: str, agent: float) -> dict[str, float]:
    optimum = oracle["optimum"]["return"]
    informed = oracle[router]["return"]
    stopped = oracle["oracle_stop"]["return"]
    return {
        "information": optimum - informed,
        "learning": informed - stopped,
        "stopping": stopped - agent,
    }


def build_results(
    records: Sequence[Record],
    config: Config,
    experts: Sequence[Mapping[str, Any]],
    extra: Mapping[str, Any],
) -> dict[str, Any]:
    """results.json (report/schema.py) from the route log of one or several runs.

    Args:
        experts: name and params_b of the pool.
        extra: sections that are computed elsewhere.

    Raises:
        ReportError: the records do not fit together, or lack the agent's or the best single
            expert's.
    """
    policies = policies_of(records)
    agent = policies[0]
    best_single = with_role(policies, "best_single")
    if agent.role != "der" or best_single is None:
        raise ReportError(
            "the route log lacks the agent (role der, first) or the best single expert (role"
            " best_single): evaluate the run again"
        )
    rows = [policy.row(best_single) for policy in policies]
    points = [policy.point() for policy in policies if policy.kind != "oracle"]
    comparisons = compare(policies)
    routes = route_statistics(agent, values_of(experts, "name"))
    oracle = oracle_figures(policies)
    counted = _with_endings(experts, records)
    all_params_b = sum(values_of(experts, "params_b"))
    failed = extra.get("evaluation", {}).get("answers_failed", 0)
    return {
        **_settings(agent, config),
        "experts": counted,
        "rows": rows,
        "comparisons": comparisons,
        "oracle": oracle,
        "routes": routes,
        "tradeoff": trade_off(points),
        "summary": summarise(policies, comparisons, routes, oracle, all_params_b),
        "notes": notes(config, records, agent.name, len(agent.seeds), failed, counted),
        **extra,
    }


def _with_endings(
    experts: Sequence[Mapping[str, Any]], records: Sequence[Record]
) -> list[dict[str, Any]]:
    """The experts, each with how its answers ended."""
    counted = []
    for expert, ends in zip(experts, endings(records, values_of(experts, "name")), strict=True):
        counted.append({**expert, "endings": ends})
    return counted


def _settings(agent: PolicyResults, config: Config) -> dict[str, Any]:
    """What was evaluated, and how it was rewarded."""
    return {
        "version": VERSION,
        "split": "test",
        "num_questions": agent.quality.shape[1],
        "seeds": agent.seeds,
        "reward": config.reward.kind,
        "alpha": config.reward.alpha,
        "cost_unit": config.reward.cost_unit,
    }
