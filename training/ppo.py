"""Tianshou's PPO as the agents are trained by it. Only training needs Tianshou."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from tianshou.algorithm import PPO
from tianshou.algorithm.modelfree.reinforce import DiscreteActorPolicy
from tianshou.algorithm.optim import OptimizerFactory
from tianshou.data import Batch, ReplayBuffer
from torch import nn

from config import PPOConfig
from text_agent import Agent

VALUE_WEIGHT = 0.5  # of the value loss beside the policy loss
MAX_GRAD_NORM = 0.5  # a longer gradient is scaled to it


class DERPolicy(DiscreteActorPolicy):
    """Tianshou's categorical policy that stores log-probability and value with every collected
    transition.
    """

    def __init__(self, actor: nn.Module, critic: nn.Module, num_actions: int):
        # The actor gives logits; with a softmax in the actor, it would be applied twice.
        super().__init__(actor=actor, action_space=gym.spaces.Discrete(num_actions))
        # In a list, as the critic's parameters belong to the algorithm, not to the policy.
        self.value_head = [critic]

    def forward(self, batch: Any, state: Any = None, **kwargs: Any) -> Any:
        if "logp_old" in batch:  # a gradient step
            return super().forward(batch, state, **kwargs)
        with torch.no_grad():  # Tianshou's Collector would build a graph
            out = super().forward(batch, state, **kwargs)
            out.policy = Batch(
                logp=out.dist.log_prob(out.act), value=self.value_head[0](batch.obs).flatten()
            )
        return out


class DERPPO(PPO):
    """PPO that reuses the log-probabilities and values of collection instead of encoding every
    state three more times.

    Needs whole episodes (`n_episode` collection): V(s') is then the stored value of the next
    transition, or nothing at an end.
    """

    def _preprocess_batch(self, batch: Any, buffer: ReplayBuffer, indices: np.ndarray) -> Any:
        if len(buffer.unfinished_index()):
            raise RuntimeError("DERPPO needs whole episodes: collect with n_episode")
        value = np.asarray(batch.policy.value, dtype=np.float32)  # (N,)
        place = np.full(buffer.maxsize, -1)
        place[indices] = np.arange(len(indices))
        # At the end of an episode next() is the index itself; compute_episodic_return masks it.
        value_next = value[place[buffer.next(indices)]]
        returns, advantages = self.compute_episodic_return(
            batch, buffer, indices, value_next, value, gamma=self.gamma, gae_lambda=self.gae_lambda
        )
        batch.v_s = torch.as_tensor(value, dtype=torch.float32)
        batch.returns = torch.as_tensor(returns, dtype=torch.float32)
        batch.adv = torch.as_tensor(advantages, dtype=torch.float32)
        batch.act = torch.as_tensor(batch.act)
        batch.logp_old = torch.as_tensor(np.asarray(batch.policy.logp), dtype=torch.float32)
        # Minibatches would copy these.
        batch.obs_next = Batch()
        batch.info = Batch()
        batch.policy = Batch()
        device = next(self.policy.actor.parameters()).device
        for name in ("v_s", "returns", "adv", "act", "logp_old"):
            batch[name] = batch[name].to(device)
        return batch


class TwoRates(OptimizerFactory):
    """Adam with one learning rate for the heads and one for a trainable encoder, both falling
    linearly to zero if asked to.
    """

    def __init__(self, ppo: PPOConfig, num_updates: int | None):
        super().__init__()
        self.ppo = ppo
        self.num_updates = num_updates

    def _create_optimizer_for_params(self, params: Any) -> torch.optim.Optimizer:
        return torch.optim.Adam(params, lr=self.ppo.lr, eps=1e-5)

    def create_instances(self, module: nn.Module) -> tuple[torch.optim.Optimizer, Any]:
        encoder: list[nn.Parameter] = []
        heads: list[nn.Parameter] = []
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                group = encoder if ".preprocess." in name else heads
                group.append(parameter)
        groups = [{"params": heads, "lr": self.ppo.lr}]
        if encoder:
            groups.append({"params": encoder, "lr": self.ppo.lr_encoder})
        optimizer = self._create_optimizer_for_params(groups)
        num_updates = self.num_updates
        if num_updates is None:
            return optimizer, None
        return optimizer, torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda update: max(0.0, 1 - update / num_updates)
        )


def build_ppo(agent: Agent, config: PPOConfig, discount: float, num_updates: int | None) -> DERPPO:
    """PPO over an agent's networks; its learning rates fall to zero over `num_updates`, if any."""
    return DERPPO(
        policy=DERPolicy(agent.actor, agent.critic, agent.num_actions),
        critic=agent.critic,
        optim=TwoRates(config, num_updates),
        eps_clip=config.eps_clip,
        vf_coef=VALUE_WEIGHT,
        ent_coef=config.ent_coef,
        max_grad_norm=MAX_GRAD_NORM,
        gae_lambda=config.gae_lambda,
        gamma=discount,
    )
