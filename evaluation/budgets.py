"""Budgets asked for, and what the agent spends on the test questions when it is held to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from belief_agent import BeliefAgent
from evaluation.ground import Ground
from evaluation.stats import interval
from reward import charge

NUM_SWEPT = 20  # budgets of a sweep


def check_budgets(ground: Ground, budgets: Sequence[float]) -> None:
    """Raises AgentError for a budget that the agent cannot meet, before anything is played."""
    agent = ground.runs[0].agent
    for budget in budgets or [np.inf]:  # of a sweep: that it can be held to any
        agent.spend(budget)
    agent.ask_with(ground.config.reward.alpha)


def swept(costs: np.ndarray, least: float) -> list[float]:
    """Budgets from the cheapest expert to the most expensive one, by their mean costs (K,), none
    below the least that the agent was found to spend in training.
    """
    lowest = max(costs.min(), least)
    budgets: list[float] = np.linspace(lowest, max(costs.max(), lowest), NUM_SWEPT).tolist()
    return budgets


def budget_section(ground: Ground, budgets: Sequence[float]) -> list[dict[str, Any]]:
    """results.json's `budgets`: the first run's agent, held to each budget in turn.

    Where none is named: those of `swept`.
    """
    run, reward = ground.runs[0], ground.config.reward
    agent = run.agent
    assert isinstance(agent, BeliefAgent)  # checked: no other can be held to a budget
    if not budgets:
        budgets = swept(ground.test_table.charge.mean(axis=0), agent.spent[-1].cost)
    section = []
    for budget in budgets:
        ground.say(f"DER at a budget of {budget:.4g}")
        dial = agent.spend(budget)
        routes = ground.play(ground.splits.test, agent, run.judge, ground.t_max)
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
    agent.ask_with(reward.alpha)
    return section
