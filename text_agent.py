"""The agent that reads text, as the paper's: a Hugging Face encoder under a policy head and a value
head, trained by Tianshou's PPO.

The encoder reads the state text; a frozen one is run once per distinct state and cached. One
encoder pass serves policy and value.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from tianshou.algorithm import PPO
from tianshou.algorithm.modelfree.reinforce import DiscreteActorPolicy
from tianshou.algorithm.optim import OptimizerFactory
from tianshou.data import Batch, ReplayBuffer
from tianshou.utils.net.discrete import DiscreteActor, DiscreteCritic
from torch import nn

from config import AgentConfig, PPOConfig
from der_env import Episode, Observer, Reader, TextObserver, encode_states
from encoder import ENCODE_ROWS, StateEncoder, position_offset
from prompts import StateTokenizer
from rollout import Decision
from runtime.errors import AgentError
from runtime.model_folder import check_shapes


class DERPolicy(DiscreteActorPolicy):
    """Tianshou's categorical policy that stores log-probability and value with every collected
    transition.
    """

    def __init__(self, actor: DiscreteActor, critic: DiscreteCritic, num_experts: int):
        # softmax_output=False in the actor and a distribution from logits: with both, the softmax
        # would be applied twice.
        super().__init__(actor=actor, action_space=gym.spaces.Discrete(num_experts))
        self.value_head = [
            critic
        ]  # in a list: the critic's parameters belong to the algorithm, not to the policy

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
        value_next = value[
            place[buffer.next(indices)]
        ]  # at an end, next() is the index itself; the mask below drops it
        returns, advantages = self.compute_episodic_return(
            batch, buffer, indices, value_next, value, gamma=self.gamma, gae_lambda=self.gae_lambda
        )
        batch.v_s, batch.returns, batch.adv = (
            torch.as_tensor(x, dtype=torch.float32) for x in (value, returns, advantages)
        )
        batch.act = torch.as_tensor(batch.act)
        batch.logp_old = torch.as_tensor(np.asarray(batch.policy.logp), dtype=torch.float32)
        batch.obs_next = batch.info = batch.policy = Batch()  # minibatches would copy them
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
        self.ppo, self.num_updates = ppo, num_updates

    def _create_optimizer_for_params(self, params: Any) -> torch.optim.Optimizer:
        return torch.optim.Adam(params, lr=self.ppo.lr, eps=1e-5)

    def create_instances(self, module: nn.Module) -> tuple[torch.optim.Optimizer, Any]:
        encoder = [
            p for n, p in module.named_parameters() if ".preprocess." in n and p.requires_grad
        ]
        heads = [
            p for n, p in module.named_parameters() if ".preprocess." not in n and p.requires_grad
        ]
        groups = [{"params": heads, "lr": self.ppo.lr}] + (
            [{"params": encoder, "lr": self.ppo.lr_encoder}] if encoder else []
        )
        optimizer = self._create_optimizer_for_params(groups)
        num_updates = self.num_updates
        if num_updates is None:
            return optimizer, None
        return optimizer, torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda update: max(0.0, 1 - update / num_updates)
        )


class Agent:
    """Encoder, heads and PPO together. As a `rollout.Policy` it takes the most probable expert."""

    def __init__(
        self, config: AgentConfig, model: nn.Module, tokenizer: Any, num_experts: int, t_max: int
    ):
        self.config, self.tokenizer, self.num_experts, self.t_max = (
            config,
            tokenizer,
            num_experts,
            t_max,
        )
        limit = min(
            config.max_tokens,
            getattr(model.config, "max_position_embeddings", config.max_tokens)
            - position_offset(model, tokenizer),
        )
        self.state_tokenizer = StateTokenizer(
            tokenizer, limit
        )  # an encoder shorter than max_tokens reads what it can
        self.observer: Observer = TextObserver(self.state_tokenizer)
        self.encoder = StateEncoder(config, model, tokenizer, t_max)
        self.actor = DiscreteActor(
            preprocess_net=self.encoder,
            action_shape=num_experts,
            hidden_sizes=config.hidden_sizes,
            softmax_output=False,
        )
        self.critic = DiscreteCritic(preprocess_net=self.encoder, hidden_sizes=config.hidden_sizes)
        last = [m for m in self.actor.last.modules() if isinstance(m, nn.Linear)][-1]
        with torch.no_grad():
            last.weight.mul_(0.01)  # start near the uniform policy
            last.bias.zero_()
        self.policy = DERPolicy(self.actor, self.critic, num_experts)

    def to(self, device: torch.device) -> Agent:
        self.policy.to(device)
        self.critic.to(device)
        return self

    def ppo(self, config: PPOConfig, discount: float, num_updates: int | None) -> DERPPO:
        """The PPO algorithm over this agent's networks."""
        return DERPPO(
            policy=self.policy,
            critic=self.critic,
            optim=TwoRates(config, num_updates),
            eps_clip=config.eps_clip,
            vf_coef=config.vf_coef,
            ent_coef=config.ent_coef,
            max_grad_norm=config.max_grad_norm,
            gae_lambda=config.gae_lambda,
            gamma=discount,
        )

    @torch.no_grad()
    def act(self, episodes: Sequence[Episode]) -> list[Decision]:
        """The most probable expert for each episode, with value and policy entropy (nats)."""
        obs = encode_states(episodes, self.state_tokenizer)
        logits, _ = self.actor(obs)  # (B, N)
        values = self.critic(obs).flatten()
        entropies = torch.distributions.Categorical(logits=logits).entropy()
        return [
            Decision(int(a), float(v), float(h))
            for a, v, h in zip(logits.argmax(1), values, entropies, strict=True)
        ]

    @torch.no_grad()
    def row_features(self, rows: np.ndarray) -> torch.Tensor:
        """Standardised features (B, D) of observation rows, without calls left; no gradient."""
        size = (
            16 * ENCODE_ROWS if self.config.freeze_encoder else ENCODE_ROWS
        )  # a frozen encoder batches by itself what is not cached
        parts = [self.encoder(rows[start : start + size])[0] for start in range(0, len(rows), size)]
        return torch.cat(parts)[:, : self.encoder.width]

    def learned_state(self) -> dict[str, torch.Tensor]:
        """Everything learned, by name; a frozen encoder is left out, being its source's."""
        state = {f"actor.{k}": v for k, v in self.actor.last.state_dict().items()} | {
            f"critic.{k}": v for k, v in self.critic.last.state_dict().items()
        }
        state |= {"features.mean": self.encoder.mean, "features.scale": self.encoder.scale}
        if not self.config.freeze_encoder:
            state |= {f"encoder.{k}": v for k, v in self.encoder.model.state_dict().items()}
        return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}

    def encoder_hash(self) -> str:
        """Hash of the encoder's weights: of the first 4,096 numbers of each tensor, a retrained
        model differing everywhere.

        Without the pooler, which is not used here and drawn anew at each load where the checkpoint
        has none.
        """
        digest = hashlib.sha256()
        for name, tensor in self.encoder.model.state_dict().items():
            if "pooler" in name:
                continue
            digest.update(
                f"{name}{tuple(tensor.shape)}".encode()
                + tensor.flatten()[:4096].cpu().float().numpy().tobytes()
            )
        return digest.hexdigest()[:16]

    @property
    def reader(self) -> Reader | None:
        """Who estimates the answers on a route; nobody here."""
        return None

    def ask_with(self, alpha: float) -> None:
        """Weigh cost by alpha from now on: nothing to do, since this agent has learned one."""
        del alpha

    def settings(self) -> dict[str, Any]:
        """What of the agent is kept as JSON beside `learned_state`; nothing here."""
        return {}

    def check_learned_state(self, state: dict[str, torch.Tensor], folder: Path) -> None:
        """Raises AgentError where names or shapes are not those of this agent."""
        check_shapes(state, self.learned_state(), folder, AgentError)

    def load_learned_state(
        self, state: dict[str, torch.Tensor], settings: dict[str, Any] | None = None
    ) -> None:
        """Take over what `learned_state` and `settings` kept."""
        del settings

        def part(prefix: str) -> dict[str, torch.Tensor]:
            return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}

        self.actor.last.load_state_dict(part("actor."))
        self.critic.last.load_state_dict(part("critic."))
        self.encoder.load_state_dict({k: v for k, v in part("features.").items()}, strict=False)
        if encoder := part("encoder."):
            self.encoder.model.load_state_dict(encoder)
