"""The full-information router: what an agent could know without hindsight.

It reads what the agent reads, but was fitted on the exact outcome of every action in every state of the training questions' trees,
where the agent has only seen the routes it tried. Its distance to hindsight is what the question does not tell; the agent's
distance to it is what the agent has failed to learn.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from agent import Agent
from config import RewardConfig
from der_env import Episode, encode_states
from rollout import Decision
from route_tree import RouteTree

HIDDEN, DROPOUT, LR, WEIGHT_DECAY, BATCH = 256, 0.5, 1e-3, 1e-2, 256
STEPS, CHECK_EVERY, PATIENCE = 2000, 50, 500  # of one fit; how often its error on the other fold is looked at, and how long it may fail to fall
ROUNDS = 5
OFF_ROUTE = 0.1  # share of a fit's weight on states that the router does not visit
NUM_FOLDS = 2


class ReturnNetwork(nn.Module):
    """Features (B, D) -> values (B, K + 1) of asking each expert and of stopping, between the least and the highest target seen."""

    def __init__(self, width: int, num_values: int):
        super().__init__()
        self.net = nn.Sequential(nn.Dropout(DROPOUT), nn.Linear(width, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, num_values))
        self.register_buffer("low", torch.zeros(num_values))
        self.register_buffer("span", torch.ones(num_values))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.net(features)) * self.span + self.low

    def loss(self, features: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Cross-entropy (B,) with targets scaled to [0, 1]: a return is nearly binary, and its mean is what this fits."""
        scaled = ((targets - self.low) / self.span).clamp(0, 1)
        return nn.functional.binary_cross_entropy_with_logits(self.net(features), scaled, reduction="none").mean(1)


class FullInformationRouter:
    """One network per number of calls made. A `rollout.Policy`."""

    def __init__(self, agent: Agent, networks: Sequence[ReturnNetwork]):
        self.agent, self.networks = agent, [network.to(agent.encoder.device).eval() for network in networks]

    @torch.no_grad()
    def act(self, episodes: Sequence[Episode]) -> list[Decision]:
        features = self.agent.row_features(encode_states(episodes, self.agent.state_tokenizer))
        decisions = []
        for episode, row in zip(episodes, features, strict=True):
            values = self.networks[len(episode.steps)](row[None]).cpu().numpy()
            action = int(choose(values, len(episode.steps))[0])
            decisions.append(Decision(None if action == values.shape[1] - 1 else action, float(values[0, action])))
        return decisions

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save([network.state_dict() for network in self.networks], path)

    @classmethod
    def load(cls, path: Path, agent: Agent) -> FullInformationRouter:
        networks = []
        for state in torch.load(path, weights_only=True):
            network = ReturnNetwork(state["net.1.weight"].shape[1], len(state["low"]))
            network.load_state_dict(state)
            networks.append(network)
        return cls(agent, networks)


def choose(values: np.ndarray, depth: int) -> np.ndarray:
    """Best column (N,) of values (N, K + 1); the last one, stopping, is not allowed before the first call."""
    return (values[:, :-1] if depth == 0 else values).argmax(axis=1)


def fit_key(agent: Agent, question_ids: Sequence[str], fingerprint: object, reward: RewardConfig) -> str:
    """Name of a fit: equal for equal questions, pool, encoder, prices and settings of the fit."""
    settings = [HIDDEN, DROPOUT, LR, WEIGHT_DECAY, BATCH, STEPS, CHECK_EVERY, PATIENCE, ROUNDS, OFF_ROUTE, NUM_FOLDS]
    about = [settings, agent.config.encoder, agent.config.max_tokens, agent.config.pooling, agent.t_max, list(question_ids), fingerprint, reward.model_dump(mode="json")]
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    digest.update(agent.encoder.mean.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def fit_full_information(agent: Agent, tree: RouteTree, reward: RewardConfig, seed: int = 0, on_round: Callable[[int, float], None] | None = None) -> FullInformationRouter:
    """Policy search by dynamic programming (Bagnell et al. 2003) with fitted action values, on all states of full trees.

    Each round fits backward from the last call. The target of an action is its cost and what the router's own later choices really
    led to, not the best that was there: that would be hindsight. Those choices come from networks fitted on the other half of the
    questions, so that they are not flattered. The next round weighs states by how often the router visits them: how good an answer is
    likely to be depends on how well its expert was chosen. `on_round(round, mean return)` is told each round's cross-fitted return.
    """
    folds = np.random.default_rng(seed).integers(NUM_FOLDS, size=len(tree.questions))
    features = [_features(agent, tree, depth) for depth in range(tree.t_max)]
    weights = [np.ones(len(level.answers)) for level in tree.levels[:-1]]
    best: tuple[float, list[ReturnNetwork]] = (-np.inf, [])
    for number in range(ROUNDS):
        outcome, networks, choices = tree.levels[-1].quality, [], []
        for depth in reversed(range(tree.t_max)):
            level = tree.levels[depth]
            targets = np.column_stack([tree.action_values(depth, reward, outcome), level.quality])  # (N, K + 1)
            chosen, network = _cross_fit(features[depth], targets, weights[depth], folds[level.question], depth, seed)
            outcome = targets[np.arange(len(targets)), chosen]
            networks.insert(0, network)
            choices.insert(0, chosen)
        if on_round is not None:
            on_round(number + 1, float(outcome.mean()))
        if outcome.mean() > best[0]:
            best = float(outcome.mean()), networks
        weights = _visits(tree, choices)
    return FullInformationRouter(agent, best[1])


def _features(agent: Agent, tree: RouteTree, depth: int) -> torch.Tensor:
    level = tree.levels[depth]
    questions = [tree.questions[q].sealed().text for q in level.question]
    return agent.row_features(agent.state_tokenizer.encode(questions, level.answers, [tree.t_max - depth] * len(questions))).cpu()


def _visits(tree: RouteTree, choices: Sequence[np.ndarray]) -> list[np.ndarray]:
    """How often each node (N,) of each level is met when every question follows the choices, a little added for all."""
    here = np.arange(len(tree.questions))
    weights = [np.ones(len(here))]
    for depth in range(tree.t_max - 1):
        actions = choices[depth][here]
        goes_on = actions < tree.num_experts
        here = tree.levels[depth].child[here[goes_on], actions[goes_on]]
        size = len(tree.levels[depth + 1].answers)
        weights.append(np.full(size, OFF_ROUTE * max(len(here), 1) / size) + np.bincount(here, minlength=size))
    return weights


def _cross_fit(features: torch.Tensor, targets: np.ndarray, weights: np.ndarray, fold_of: np.ndarray, depth: int, seed: int) -> tuple[np.ndarray, ReturnNetwork]:
    """Choices (N,) by networks that did not see the question, and a network fitted on all for as many steps as served those best."""
    chosen, steps = np.zeros(len(targets), dtype=int), []
    for fold in range(NUM_FOLDS):
        outside = fold_of == fold
        network, best_step = _fit(features, targets, np.where(outside, 0.0, weights), seed + fold, check=np.where(outside, weights, 0.0))
        steps.append(best_step)
        with torch.no_grad():
            chosen[outside] = choose(network(features[outside]).numpy(), depth)
    return chosen, _fit(features, targets, weights, seed, steps=max(CHECK_EVERY, int(np.mean(steps))))[0]


def _fit(features: torch.Tensor, targets: np.ndarray, weights: np.ndarray, seed: int, *, check: np.ndarray | None = None, steps: int = STEPS) -> tuple[ReturnNetwork, int]:
    """A network fitted on rows drawn by weight; with `check`, as it was when the loss weighted by that was least, and after how many steps."""
    goal = torch.from_numpy(targets.astype(np.float32))
    drawn = torch.from_numpy(np.random.default_rng(seed).choice(len(targets), size=(steps, BATCH), p=weights / weights.sum()))
    held_out = torch.from_numpy(np.flatnonzero(check)) if check is not None else torch.empty(0)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = ReturnNetwork(features.shape[1], targets.shape[1])
        network.low.copy_(goal.min(0).values)
        network.span.copy_((goal.max(0).values - network.low).clamp_min(1e-6))
        optimizer = torch.optim.AdamW(network.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
        best = (np.inf, steps, network.state_dict())
        for step, rows in enumerate(drawn, start=1):
            loss = network.loss(features[rows], goal[rows]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if len(held_out) and step % CHECK_EVERY == 0:
                network.eval()
                with torch.no_grad():
                    error = float(torch.from_numpy(check[held_out.numpy()]).float() @ network.loss(features[held_out], goal[held_out]))
                network.train()
                if error < best[0]:
                    best = (error, step, {name: value.clone() for name, value in network.state_dict().items()})
                elif step - best[1] >= PATIENCE:
                    break
    if len(held_out):
        network.load_state_dict(best[2])
    return network.eval(), best[1]
