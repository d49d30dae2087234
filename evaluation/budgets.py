"""Budgets asked for, and what the agent spends on the test questions when it is held to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from evaluation.ground import Ground
from evaluation.stats import interval
from reward import charge

NUM_SWEPT = 20  # budgets of a sweep


def budget_section(ground: Ground, budgets: Sequence[float]) -> list[dict[str, Any]]:
    """results.json's `budgets`: the first run's agent, held to each budget in turn.

    Where none is named: NUM_SWEPT of them, from the mean cost of the cheapest expert to that of the
    most expensive one. Raises AgentError for a budget that the agent cannot meet.
    """
    run, reward = ground.runs[0], ground.config.reward
    if not budgets:
        costs = ground.test_table.charge.mean(axis=0)
        budgets = np.linspace(costs.min(), costs.max(), NUM_SWEPT).tolist()
    section = []
    for budget in budgets:
        ground.say(f"DER at a budget of {budget:.4g}")
        dial = run.agent.spend(budget)
        routes = ground.play(ground.splits.test, run.agent, run.judge, ground.t_max)
        spent = np.array([charge(route.episode.cost, reward) for route in routes])
        low, high = dial.interval(len(routes))
        met = interval(spent, counted=True)
        section.append(
            {
                "budget": budget,
                "alphas": [dial.alpha, dial.higher],
                "share": dial.share,
                "expected": {"mean": dial.cost, "lo": low, "hi": high},
                "cost": met,
                "quality": interval(np.array([route.quality for route in routes])),
                "is_met": bool(low <= met["mean"] <= high),
            }
        )
    run.agent.ask_with(reward.alpha)
    return section
