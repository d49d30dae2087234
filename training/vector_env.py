"""Many environments for Tianshou, stepped together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tianshou.env import BaseVectorEnv
from tianshou.env.worker import DummyEnvWorker

from der_env import DEREnv, advance
from questions import QuestionSampler


class DERVectorEnv(BaseVectorEnv):
    """Many DEREnvs for Tianshou, stepped together.

    A step is one pool call, one judgement and one tokenisation for all environments. Questions come
    from one sampler without replacement. Tianshou resets more often than it plays, so an
    environment that is reset before it was stepped gives its question back.
    """

    def __init__(self, envs: Sequence[DEREnv], rng: np.random.Generator):
        super().__init__([lambda env=env: env for env in envs], DummyEnvWorker)
        self.envs = list(envs)
        self.rng = rng  # decides which episodes run on past p0
        self.sampler = QuestionSampler(len(envs[0].questions), rng)
        self._drawn: dict[int, int] = {}  # environment -> question handed out but not acted on

    def reset(self, env_id: Any = None, **kwargs: Any) -> tuple[np.ndarray, np.ndarray]:
        """Observations and infos of the chosen environments, each on its next question."""
        ids = list(map(int, self._wrap_id(env_id)))
        for i in ids:
            if i in self._drawn:
                self.sampler.give_back(self._drawn.pop(i))
        for i in ids:
            self._drawn[i] = self.sampler.draw()
            self.envs[i].begin(self._drawn[i])
        return self._observe(ids), self._infos(ids)

    def step(
        self, action: Any, id: Any = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """One step of the chosen environments; `action` in the order of `id`."""
        ids = list(map(int, self._wrap_id(id)))
        actions = list(map(int, action))
        envs = []
        for i in ids:
            env = self.envs[i]
            if self._drawn.pop(i, None) is not None:
                env.episode.ignores_judge = bool(self.rng.random() < env.config.continue_past_p0)
            envs.append(env)
        advance(envs, actions)
        rewards = []
        are_over = []
        for env, expert_idx in zip(envs, actions, strict=True):
            reward, is_over, *_ = env.outcome(expert_idx)
            rewards.append(reward)
            are_over.append(is_over)
        terminated = np.array(are_over)
        truncated = np.zeros_like(terminated)
        return self._observe(ids), np.array(rewards), terminated, truncated, self._infos(ids)

    def seed(self, seed: int | list[int] | None = None) -> list[list[int] | None]:
        raise NotImplementedError(
            "seed the generator handed to DERVectorEnv instead: all environments share its question"
            " sampler"
        )

    def sampler_state(self) -> dict[str, Any]:
        """The question sampler as the next reset of all environments will find it."""
        state = self.sampler.state()
        for i in range(len(self.envs)):
            if i in self._drawn:
                state["waiting"].append(self._drawn[i])
        return state

    def _observe(self, ids: list[int]) -> np.ndarray:
        return self.envs[0].observer.observe([self.envs[i].episode for i in ids])

    def _infos(self, ids: list[int]) -> np.ndarray:
        infos = np.empty(len(ids), dtype=object)
        for row, i in enumerate(ids):
            infos[row] = {**self.envs[i].info(), "env_id": i}
        return infos
