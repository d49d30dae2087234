"""The agent's policy as the server follows it: greedy or exploring, within a request's budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from belief_agent import FORBIDDEN, BeliefAgent
from config import RewardConfig
from der_env import Episode
from experts import ExpertPool
from reward import Cost, charge
from rollout import Decision
from text_agent import Agent

IS_FORBIDDEN = FORBIDDEN / 2  # a score below it belongs to an action that cannot be taken


@dataclass
class Limits:
    """What one request allows, and what the policy did under it."""

    max_cost: float | None = None
    probabilities: list[float] = field(default_factory=list)  # of each action taken
    is_out_of_budget: bool = False  # the policy wanted another call
    is_last_call: bool = False  # of the action taken last: no call can follow it


class ServingPolicy:
    """A `rollout.Policy`. `limits` holds those of every open request, by the question's id.

    `temperature` 0 takes the best action. Above it actions are drawn from the softmax of the
    policy's logits over the temperature: 1 is the policy that PPO trained.
    """

    def __init__(
        self,
        agent: Agent,
        prices: np.ndarray,
        reward: RewardConfig,
        limits: Mapping[str, Limits],
        temperature: float = 0.0,
        seed: int = 0,
    ):
        self.agent = agent
        self.prices = prices  # (K,): expected C of a call
        self.reward = reward
        self.limits = limits
        self.temperature = temperature
        self.rng = np.random.default_rng(seed)

    def act(self, episodes: Sequence[Episode]) -> list[Decision]:
        logits, values = self.agent.scores(episodes)
        rows = logits.cpu().double().numpy()
        decisions = []
        for episode, row, value in zip(episodes, rows, values.tolist(), strict=True):
            limits = self.limits[episode.question.id]
            decisions.append(Decision(self._choose(episode, row, limits), value))
        return decisions

    def _choose(self, episode: Episode, scores: np.ndarray, limits: Limits) -> int | None:
        """The next expert, or None to stop; its probability is noted."""
        wanted = int(scores.argmax())
        allowed = self._affordable(episode, scores, limits)
        if not (allowed > IS_FORBIDDEN).any():
            limits.is_out_of_budget = scores[wanted] > IS_FORBIDDEN
            limits.probabilities.append(1.0)
            return None
        action, probability = self._draw(allowed)
        limits.probabilities.append(probability)
        if action < self.agent.num_experts:
            limits.is_last_call = self._is_last_call(episode, action, scores, limits)
            return action
        limits.is_out_of_budget = wanted < self.agent.num_experts and allowed[wanted] < IS_FORBIDDEN
        return None

    def _affordable(self, episode: Episode, scores: np.ndarray, limits: Limits) -> np.ndarray:
        """The scores (A,), without experts that are expected to cost more than is left.

        Nothing is affordable after a call that was said to be the last.
        """
        if limits.is_last_call:
            return np.full(len(scores), FORBIDDEN)
        if limits.max_cost is None:
            return scores
        left = limits.max_cost - charge(episode.cost, self.reward)
        return self._without_dear_ones(scores, left)

    def _without_dear_ones(self, scores: np.ndarray, left: float) -> np.ndarray:
        out = scores.copy()
        out[: len(self.prices)][self.prices > left + 1e-9] = FORBIDDEN
        return out

    def _is_last_call(
        self, episode: Episode, expert_idx: int, scores: np.ndarray, limits: Limits
    ) -> bool:
        """Whether no call can follow this one, whatever its answer is."""
        if episode.calls_left == 1:
            return True
        later = scores[: self.agent.num_experts].copy()
        if isinstance(self.agent, BeliefAgent):  # it asks no expert twice
            later[expert_idx] = FORBIDDEN
        if limits.max_cost is not None and self.reward.cost == "params":  # known before the call
            spent = charge(episode.cost, self.reward) + self.prices[expert_idx]
            later = self._without_dear_ones(later, limits.max_cost - spent)
        return not (later > IS_FORBIDDEN).any()

    def _draw(self, scores: np.ndarray) -> tuple[int, float]:
        """An action and the probability that it had."""
        if self.temperature == 0:
            return int(scores.argmax()), 1.0
        weights = np.exp((scores - scores.max()) / self.temperature)
        probabilities = weights / weights.sum()
        action = int(self.rng.choice(len(probabilities), p=probabilities))
        return action, float(probabilities[action])


def expected_prices(agent: Agent, pool: ExpertPool, reward: RewardConfig) -> np.ndarray:
    """C of a call of each expert (K,), as far as it is known before the call.

    An agent over beliefs has met the mean. Otherwise parameters are known, and other units count 0:
    a budget then ends a route only after it has been spent.
    """
    if isinstance(agent, BeliefAgent):
        return agent.reader.costs
    prices = np.zeros(len(pool))
    if reward.cost == "params":
        for expert_idx, expert in enumerate(pool.experts):
            prices[expert_idx] = charge(Cost(params_b=expert.config.params_b), reward)
    return prices
