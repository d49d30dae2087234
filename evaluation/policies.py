"""Routing policies to compare the agent with that are played call by call: each call is handed the
answer before it, and a Terminator may stop them. Each implements `rollout.Policy`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from der_env import Episode
from rollout import Decision


class FixedRoute:
    """The same experts in the same order for every question, then stop. A single expert is a route
    of one.

    With a Terminator as judge and the experts ordered by cost it is a cascade.
    """

    def __init__(self, expert_idxs: Sequence[int]):
        self.expert_idxs = list(expert_idxs)

    def act(self, episodes: Sequence[Episode]) -> list[Decision]:
        decisions = []
        for episode in episodes:
            num_asked = len(episode.steps)
            is_open = num_asked < len(self.expert_idxs)
            decisions.append(Decision(self.expert_idxs[num_asked] if is_open else None))
        return decisions


class RoundRobin:
    """Experts in turn: question i of the list starts with expert i mod K, each further call goes to
    the next expert.
    """

    def __init__(self, num_experts: int, question_ids: Sequence[str]):
        self.num_experts = num_experts
        self.place = {name: place for place, name in enumerate(question_ids)}

    def act(self, episodes: Sequence[Episode]) -> list[Decision]:
        decisions = []
        for episode in episodes:
            turn = self.place[episode.question.id] + len(episode.steps)
            decisions.append(Decision(turn % self.num_experts))
        return decisions


class RandomRouting:
    """A uniformly random expert at every step, seeded per question, so that the order of play does
    not matter.
    """

    def __init__(self, num_experts: int, seed: int):
        self.num_experts, self.seed = num_experts, seed

    def act(self, episodes: Sequence[Episode]) -> list[Decision]:
        return [Decision(self._draw(episode)) for episode in episodes]

    def _draw(self, episode: Episode) -> int:
        digest = hashlib.sha256(episode.question.id.encode()).digest()
        question_number = int.from_bytes(digest[:8], "big")
        rng = np.random.default_rng([self.seed, question_number, len(episode.steps)])
        return int(rng.integers(self.num_experts))
