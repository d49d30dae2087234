"""The agent that reads text, as the paper's: a Hugging Face encoder under a policy head and a value
head.

The encoder reads the state text; a frozen one is run once per distinct state and cached. One
encoder pass serves policy and value.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from belief.budget import Dial
from config import AgentConfig, EnvConfig
from der_env import Episode, Observer, Reader, TextObserver
from encoder import ENCODE_ROWS, StateEncoder, position_offset
from prompts import StateTokenizer
from questions import SIMILARITY
from rollout import Decision
from runtime.errors import AgentError
from runtime.model_folder import check_shapes


class StateHead(nn.Module):
    """Encoder and perceptron: observation rows -> (B, outputs).

    Parameters are named as in Tianshou's networks, which agent folders and checkpoints hold.
    """

    def __init__(self, encoder: StateEncoder, num_outputs: int, hidden_sizes: Sequence[int]):
        super().__init__()
        self.preprocess = encoder
        width = encoder.output_dim
        layers: list[nn.Module] = []
        for size in hidden_sizes:
            layers += [nn.Linear(width, size), nn.ReLU()]
            width = size
        layers.append(nn.Linear(width, num_outputs))
        self.last = nn.ModuleDict({"model": nn.Sequential(*layers)})

    def outputs(self, obs: Any) -> torch.Tensor:
        features, _ = self.preprocess(obs)
        outputs: torch.Tensor = self.last["model"](features)
        return outputs


class TextActor(StateHead):
    """Logits (B, N) of the experts."""

    def forward(self, obs: Any, state: Any = None, info: Any = None) -> tuple[torch.Tensor, Any]:
        del info
        return self.outputs(obs), state


class TextCritic(StateHead):
    """Values (B, 1) of the states."""

    def forward(self, obs: Any, state: Any = None, info: Any = None) -> torch.Tensor:
        del state, info
        return self.outputs(obs)


class Agent:
    """Encoder and heads together. As a `rollout.Policy` it takes the most probable action."""

    actor: Any  # a network: observations -> logits (B, actions), and a state that is passed on
    critic: Any  # a network: observations -> values (B, 1)
    similarity: float | None = None  # from which free texts agree, as training has settled it

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
        # An encoder shorter than max_tokens reads what it can
        self.state_tokenizer = StateTokenizer(tokenizer, limit)
        self.observer: Observer = TextObserver(self.state_tokenizer)
        self.encoder = StateEncoder(config, model, tokenizer, t_max)
        self.actor = TextActor(self.encoder, num_experts, config.hidden_sizes)
        self.critic = TextCritic(self.encoder, 1, config.hidden_sizes)
        last = [m for m in self.actor.last.modules() if isinstance(m, nn.Linear)][-1]
        with torch.no_grad():
            last.weight.mul_(0.01)  # start near the uniform policy
            last.bias.zero_()

    @property
    def num_actions(self) -> int:
        """One for each expert; more where the agent can do something else."""
        return self.num_experts

    def to(self, device: torch.device) -> Agent:
        self.actor.to(device)
        self.critic.to(device)
        return self

    @torch.no_grad()
    def scores(self, episodes: Sequence[Episode]) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (B, actions) of the policy, and values (B,) of the states."""
        obs = self.observer.observe(episodes)
        logits, _ = self.actor(obs)
        return logits, self.critic(obs).flatten()

    def act(self, episodes: Sequence[Episode]) -> list[Decision]:
        """The most probable action for each episode, with value and policy entropy (nats)."""
        logits, values = self.scores(episodes)
        entropies = torch.distributions.Categorical(logits=logits).entropy()
        decisions = []
        for action, value, entropy in zip(logits.argmax(1), values, entropies, strict=True):
            is_stop = int(action) == self.num_experts
            expert_idx = None if is_stop else int(action)
            decisions.append(Decision(expert_idx, float(value), float(entropy)))
        return decisions

    @torch.no_grad()
    def row_features(self, rows: np.ndarray) -> torch.Tensor:
        """Standardised features (B, D) of observation rows, without calls left; no gradient."""
        # A frozen encoder batches by itself what is not cached
        size = 16 * ENCODE_ROWS if self.config.freeze_encoder else ENCODE_ROWS
        parts = []
        for start in range(0, len(rows), size):
            features, _ = self.encoder(rows[start : start + size])
            parts.append(features)
        return torch.cat(parts)[:, : self.encoder.width]

    def learned_state(self) -> dict[str, torch.Tensor]:
        """Everything learned, by name; a frozen encoder is left out, being its source's."""
        parts = {
            "actor": self.actor.last.state_dict(),
            "critic": self.critic.last.state_dict(),
            "features": {"mean": self.encoder.mean, "scale": self.encoder.scale},
        }
        if not self.config.freeze_encoder:
            parts["encoder"] = self.encoder.model.state_dict()
        state = {}
        for part, tensors in parts.items():
            for name, tensor in tensors.items():
                state[f"{part}.{name}"] = tensor.detach().cpu().contiguous().clone()
        return state

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

    @property
    def alpha_range(self) -> tuple[float, float] | None:
        """The weights of cost that it can be asked with; None: the one that it has learned."""
        return None

    def ask_with(self, alpha: float) -> None:
        """Weigh cost by alpha from now on: nothing to do, since this agent has learned one."""
        del alpha

    def spend(self, budget: float) -> Dial:
        """Raises AgentError: this agent has no weight of cost to set."""
        raise AgentError(
            f"budget {budget:g}: an agent that reads text has learned one weight of cost; train one"
            " with agent.reads belief and reward.alphas"
        )

    def similarity_under(self, env: EnvConfig) -> float:
        """From which similarity free texts agree: as set, else as training has settled it."""
        return env.similarity or self.similarity or SIMILARITY

    def forget(self, max_questions: int) -> None:
        """Let go of what is kept of questions, where it is of more than `max_questions`.

        It can be computed again. For processes that meet new questions without end.
        """
        if len(self.encoder.cache) > max_questions:
            self.encoder.cache.clear()

    def settings(self) -> dict[str, Any]:
        """What of the agent is kept as JSON beside `learned_state`."""
        return {"similarity": self.similarity}

    def check_learned_state(self, state: dict[str, torch.Tensor], folder: Path) -> None:
        """Raises AgentError where names or shapes are not those of this agent."""
        check_shapes(state, self.learned_state(), folder, AgentError)

    def load_learned_state(
        self, state: dict[str, torch.Tensor], settings: dict[str, Any] | None = None
    ) -> None:
        """Take over what `learned_state` and `settings` kept."""
        self.similarity = (settings or {}).get("similarity")
        parts: dict[str, dict[str, torch.Tensor]] = {"features": {}, "encoder": {}}
        for key, tensor in state.items():
            part, _, name = key.partition(".")
            parts.setdefault(part, {})[name] = tensor
        self.actor.last.load_state_dict(parts["actor"])
        self.critic.last.load_state_dict(parts["critic"])
        self.encoder.load_state_dict(parts["features"], strict=False)
        if parts["encoder"]:
            self.encoder.model.load_state_dict(parts["encoder"])
