"""The full-information router: what an agent could know without hindsight.

It reads what the agent reads, but was fitted on the exact outcome of every action in every state of the training questions' trees,
where the agent has only seen the routes it tried. Its distance to hindsight is what the question does not tell; the agent's
distance to it is what the agent has failed to learn.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from agent import Agent
from config import RewardConfig
from der_env import Episode, encode_states
from rollout import Decision
from route_tree import RouteTree

HIDDEN, STEPS, CHECK_EVERY, BATCH, LR, WEIGHT_DECAY = 128, 4000, 200, 256, 1e-3, 1e-2
NUM_FOLDS = 2


class FullInformationRouter:
    """One network per number of calls made: features (B, D) -> values (B, K + 1) of asking each expert and of stopping. A `rollout.Policy`."""

    def __init__(self, agent: Agent, networks: Sequence[nn.Module]):
        self.agent, self.networks = agent, list(networks)

    @torch.no_grad()
    def act(self, episodes: Sequence[Episode]) -> list[Decision]:
        features = self.agent.row_features(encode_states(episodes, self.agent.state_tokenizer))
        decisions = []
        for episode, row in zip(episodes, features, strict=True):
            depth = len(episode.steps)
            action, value = choose(self.networks[depth](row[None]).cpu().numpy(), depth)
            stops = action[0] == self.networks[depth][-1].out_features - 1
            decisions.append(Decision(None if stops else int(action[0]), float(value[0])))
        return decisions


def choose(values: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """Best column and its value for each row of values (N, K + 1); the last column, stopping, is not allowed before the first call."""
    allowed = values[:, :-1] if depth == 0 else values
    return allowed.argmax(axis=1), allowed.max(axis=1)


def fit_full_information(agent: Agent, tree: RouteTree, reward: RewardConfig, seed: int = 0) -> FullInformationRouter:
    """Fitted Q iteration (Ernst, Geurts and Wehenkel 2005), backward from the last call, on all states of a full tree.

    The target of an action is its cost and what the router's own later choices really led to, not the best that was there: the best
    would be hindsight. Those choices come from networks fitted on the other half of the questions, so that they are not flattered.
    """
    folds = np.random.default_rng(seed).integers(NUM_FOLDS, size=len(tree.questions))
    sealed = [question.sealed() for question in tree.questions]
    networks: list[nn.Module] = []
    outcome = tree.levels[-1].quality  # (N,) of the next level's nodes, under the router's choices
    for depth in reversed(range(tree.t_max)):
        level = tree.levels[depth]
        rows = agent.state_tokenizer.encode([sealed[q].text for q in level.question], level.answers, [tree.t_max - depth] * len(level.answers))
        features = agent.row_features(rows).cpu()
        targets = np.column_stack([tree.action_values(depth, reward, outcome), level.quality])  # (N, K + 1)
        fold_of = folds[level.question]
        chosen, best_steps = np.zeros(len(targets), dtype=int), []
        for fold in range(NUM_FOLDS):
            inside = fold_of != fold
            network, steps = _fit(features, targets, inside, seed + fold)
            best_steps.append(steps)
            with torch.no_grad():
                chosen[~inside] = choose(network(features[~inside]).numpy(), depth)[0]
        outcome = targets[np.arange(len(targets)), chosen]
        networks.insert(0, _fit(features, targets, np.ones(len(targets), dtype=bool), seed, steps=int(np.mean(best_steps)))[0].to(agent.encoder.device))
    return FullInformationRouter(agent, networks)


def _fit(features: torch.Tensor, targets: np.ndarray, inside: np.ndarray, seed: int, steps: int | None = None) -> tuple[nn.Module, int]:
    """Least squares on the rows `inside`. Without `steps`, stops where the error on the other rows was least; returns that number too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Linear(features.shape[1], HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, targets.shape[1]))
    goal = torch.from_numpy(targets.astype(np.float32))
    optimizer = torch.optim.AdamW(network.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
    rows, outside = torch.from_numpy(np.flatnonzero(inside)), torch.from_numpy(np.flatnonzero(~inside))
    best = (np.inf, 0, None)
    for step in range(1, (steps or STEPS) + 1):
        batch = rows[torch.randint(len(rows), (min(BATCH, len(rows)),), generator=generator)]
        loss = nn.functional.mse_loss(network(features[batch]), goal[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if steps is None and step % CHECK_EVERY == 0 and len(outside):
            with torch.no_grad():
                error = nn.functional.mse_loss(network(features[outside]), goal[outside]).item()
            if error < best[0]:
                best = (error, step, {name: value.clone() for name, value in network.state_dict().items()})
    if best[2] is not None:
        network.load_state_dict(best[2])
    return network, steps or best[1] or STEPS
