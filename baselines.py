"""Routing policies to compare the agent with. Each implements `rollout.Policy`; none sees a reference."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from config import RewardConfig
from der_env import Episode
from rollout import Decision, Route


class FixedRoute:
    """The same experts in the same order for every question, then stop. A single expert is a route of one."""

    def __init__(self, expert_idxs: Sequence[int]):
        self.expert_idxs = list(expert_idxs)

    def act(self, episodes: Sequence[Episode]) -> list[Decision]:
        return [Decision(self.expert_idxs[len(e.steps)] if len(e.steps) < len(self.expert_idxs) else None) for e in episodes]


class RandomRouting:
    """A uniformly random expert at every step, seeded per question, so that the order of play does not matter."""

    def __init__(self, num_experts: int, seed: int):
        self.num_experts, self.seed = num_experts, seed

    def act(self, episodes: Sequence[Episode]) -> list[Decision]:
        return [Decision(self._draw(episode)) for episode in episodes]

    def _draw(self, episode: Episode) -> int:
        digits = int.from_bytes(hashlib.sha256(episode.question.id.encode()).digest()[:8], "big")
        return int(np.random.default_rng([self.seed, digits, len(episode.steps)]).integers(self.num_experts))


class TaskLookup:
    """The expert that had the best mean return on this question's task in validation, asked once."""

    def __init__(self, best_by_task: Mapping[str, int], fallback: int):
        self.best_by_task, self.fallback = dict(best_by_task), fallback

    def act(self, episodes: Sequence[Episode]) -> list[Decision]:
        return [Decision(None if e.steps else self.best_by_task.get(e.question.task, self.fallback)) for e in episodes]


def best_single_expert(singles: Sequence[Sequence[Route]]) -> int:
    """The expert with the highest mean quality over scored one-call routes, `singles[expert][question]`."""
    return int(np.argmax([np.mean([route.quality for route in routes]) for routes in singles]))


def best_by_task(singles: Sequence[Sequence[Route]], reward: RewardConfig) -> dict[str, int]:
    """Task -> expert with the highest mean return, from scored one-call routes `singles[expert][question]`."""
    values: dict[str, list[list[float]]] = defaultdict(lambda: [[] for _ in singles])
    for expert_idx, routes in enumerate(singles):
        for route in routes:
            values[route.episode.question.task][expert_idx].append(route.value_under(reward))
    return {task: int(np.argmax([np.mean(v) for v in by_expert])) for task, by_expert in values.items()}


def ask_all_pick_best(singles: Sequence[Sequence[Route]]) -> list[Route]:
    """Every expert asked once, the best answer picked with the reference: what perfect selection would give, at full cost.

    The picked answer comes last in the route, so that the final answer's quality is the pick's.
    """
    out = []
    for routes in zip(*singles, strict=True):
        steps = sorted((route.episode.steps[0] for route in routes), key=lambda step: step.quality)
        first = routes[0].episode
        out.append(Route(Episode(first.question, len(steps), steps, "t_max"), [Decision(step.expert_idx) for step in steps]))
    return out
