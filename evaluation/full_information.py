"""The full-information router: what an agent could know without hindsight.

It reads what the agent reads, but was fitted on the exact outcome of every action in every state of
the training questions' trees, where the agent has only seen the routes it tried. Its distance to
hindsight is what the question does not tell; the agent's distance to it is what the agent has
failed to learn.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from config import RewardConfig
from der_env import Episode, encode_states
from evaluation.route_tree import RouteTree, optimal_values
from experts import ExpertPool
from questions import Question
from rollout import Decision
from runtime.errors import ConfigError
from runtime.files import write_atomically
from text_agent import Agent

HIDDEN, DROPOUT, LR, WEIGHT_DECAY, BATCH = 256, 0.3, 1e-3, 1e-2, 256
STEPS, CHECK_EVERY, PATIENCE = (
    3000,
    100,
    600,
    # Of one fit; how often its error on the fold left out is looked at, and how long it may fail to
    # fall
)
CHECKED = 3000  # states that this error is taken over
NUM_FOLDS = 4
# Weight of states in which the oracle has ended the route; above 0, as there may be no others
NEVER_ASKED = 1e-12
OFF_ROUTE = 0.03  # weight of the states beside hindsight's routes, as a share of those on them


class ReturnNetwork(nn.Module):
    """Features (B, D) -> values (B, K + 1) of asking each expert and of stopping, between the least
    and the highest target seen.
    """

    low: torch.Tensor  # (K + 1,), the least target seen
    span: torch.Tensor  # (K + 1,), from there to the highest

    def __init__(self, width: int, num_values: int):
        super().__init__()
        self.net = nn.Sequential(
            nn.Dropout(DROPOUT),
            nn.Linear(width, HIDDEN),
            nn.ReLU(),
            nn.Dropout(DROPOUT),
            nn.Linear(HIDDEN, num_values),
        )
        self.register_buffer("low", torch.zeros(num_values))
        self.register_buffer("span", torch.ones(num_values))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.net(features)) * self.span + self.low

    def loss(self, features: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Cross-entropy (B,) with targets scaled to [0, 1]: a return is nearly binary, and its mean
        is what this fits.
        """
        scaled = ((targets - self.low) / self.span).clamp(0, 1)
        return nn.functional.binary_cross_entropy_with_logits(
            self.net(features), scaled, reduction="none"
        ).mean(1)


class FullInformationRouter:
    """Per number of calls made, networks whose values are averaged. A `rollout.Policy`.

    `cross_fitted`: mean return on the questions it was fitted on, each routed by networks that had
    not seen it.
    """

    def __init__(
        self, agent: Agent, networks: Sequence[Sequence[ReturnNetwork]], cross_fitted: float
    ):
        self.agent, self.cross_fitted = agent, cross_fitted
        self.networks = [
            [network.to(agent.encoder.device).eval() for network in members] for members in networks
        ]

    @torch.no_grad()
    def act(self, episodes: Sequence[Episode]) -> list[Decision]:
        features = self.agent.row_features(encode_states(episodes, self.agent.state_tokenizer))
        decisions = []
        for episode, row in zip(episodes, features, strict=True):
            members = self.networks[len(episode.steps)]
            values = torch.stack([network(row[None]) for network in members]).mean(0).cpu().numpy()
            action = int(choose(values, len(episode.steps))[0])
            decisions.append(
                Decision(
                    None if action == values.shape[1] - 1 else action, float(values[0, action])
                )
            )
        return decisions

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        states = [[network.state_dict() for network in members] for members in self.networks]
        torch.save({"networks": states, "cross_fitted": self.cross_fitted}, data := io.BytesIO())
        write_atomically(path, data.getvalue())

    @classmethod
    def load(cls, path: Path, agent: Agent) -> FullInformationRouter:
        saved = torch.load(path, weights_only=True)
        return cls(
            agent,
            [[_network(state) for state in members] for members in saved["networks"]],
            saved["cross_fitted"],
        )


def _network(state: dict[str, torch.Tensor]) -> ReturnNetwork:
    network = ReturnNetwork(state["net.1.weight"].shape[1], len(state["low"]))
    network.load_state_dict(state)
    return network


def choose(values: np.ndarray, depth: int) -> np.ndarray:
    """Best column (N,) of values (N, K + 1); the last one, stopping, is not allowed before the
    first call.
    """
    return (values[:, :-1] if depth == 0 else values).argmax(axis=1)


def fit_key(
    agent: Agent,
    questions: Sequence[Question],
    pool: ExpertPool,
    t_max: int,
    reward: RewardConfig,
    over: float | None,
    submits: str = "last",
) -> str:
    """Name of a fit: equal for equal questions and references, pool, encoder, prices, number of
    calls, stop, submitted answer and settings of the fit.
    """
    settings = [
        HIDDEN,
        DROPOUT,
        LR,
        WEIGHT_DECAY,
        BATCH,
        STEPS,
        CHECK_EVERY,
        PATIENCE,
        CHECKED,
        NUM_FOLDS,
        OFF_ROUTE,
    ]
    about = [
        settings,
        agent.config.encoder,
        agent.config.max_tokens,
        agent.config.pooling,
        agent.t_max,
        t_max,
        reward.model_dump(mode="json"),
        over,
    ]
    about += [[q.id, q.text, q.task, q.metric, q.reference] for q in questions]
    about += [
        pool.fingerprint(),
        pool.ktp,
        [
            [e.config.usd_per_million_prompt_tokens, e.config.usd_per_million_completion_tokens]
            for e in pool.experts
        ],
    ]
    about += [
        agent.encoder_hash(),
        agent.encoder.mean.tolist(),
        agent.encoder.scale.tolist(),
    ]  # a trained encoder is each run's own
    if submits != "last":  # fits from before there was a choice keep their names
        about.append(submits)
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]


def fit_full_information(
    agent: Agent, tree: RouteTree, reward: RewardConfig, over: float | None = None, seed: int = 0
) -> FullInformationRouter:
    """Policy search by dynamic programming (Bagnell et al. 2003) with fitted action values, on all
    states of full trees.

    `over`: quality at which an oracle ends a route; none: the router alone decides when to stop.

    Fits backward from the last call. The target of an action is its cost and what the router's own
    later choices really led to, not the best that was there: that would be hindsight. Those choices
    come from networks fitted on other questions, so that they are not flattered. The method asks
    for the states of a good policy; hindsight's routes are the best there is. Weighing all states
    alike, the router never learns a chain of two experts that few questions need: whatever it then
    asks second is wrong, and so is asking the first.
    """
    fold_of_question = np.random.default_rng(seed).permutation(len(tree.questions)) % NUM_FOLDS
    if len(tree.questions) < NUM_FOLDS:
        raise ConfigError(
            f"the full-information router needs at least {NUM_FOLDS} training questions, got"
            f" {len(tree.questions)}: raise eval.tree_questions"
        )
    visits = _hindsight_visits(tree, reward)
    outcome = tree.levels[-1].quality
    networks: list[list[ReturnNetwork]] = []
    for depth in reversed(range(tree.t_max)):
        level = tree.levels[depth]
        is_over = (
            (level.quality >= over) & (depth > 0)
            if over is not None
            else np.zeros(len(level.quality), dtype=bool)
        )
        weights = visits[depth] / max(visits[depth].sum(), 1.0) + OFF_ROUTE / len(visits[depth])
        weights[is_over] = NEVER_ASKED
        targets = np.column_stack(
            [tree.action_values(depth, reward, outcome), level.quality]
        )  # (N, K + 1)
        members, values = _cross_fit(
            _features(agent, tree, depth), targets, weights, fold_of_question[level.question], seed
        )
        chosen = targets[np.arange(len(targets)), choose(values, depth)]
        outcome = np.where(is_over, level.quality, chosen)
        networks.insert(0, members)
    return FullInformationRouter(agent, networks, float(outcome.mean()))


def _features(agent: Agent, tree: RouteTree, depth: int) -> torch.Tensor:
    level = tree.levels[depth]
    questions = [tree.questions[q].sealed().text for q in level.question]
    return agent.row_features(
        agent.state_tokenizer.encode(
            questions, level.answers, [tree.t_max - depth] * len(questions)
        )
    ).cpu()


def _hindsight_visits(tree: RouteTree, reward: RewardConfig) -> list[np.ndarray]:
    """How many questions' best routes meet each node (N,) of each level but the last."""
    values, here = optimal_values(tree, reward), np.arange(len(tree.questions))
    visits = []
    for depth in range(tree.t_max):
        level = tree.levels[depth]
        visits.append(np.bincount(here, minlength=len(level.answers)).astype(float))
        actions = tree.action_values(depth, reward, values[depth + 1])[here]
        goes_on = (actions.max(axis=1) > level.quality[here]) | (depth == 0)
        here = level.child[here[goes_on], actions[goes_on].argmax(axis=1)]
    return visits


def _cross_fit(
    features: torch.Tensor, targets: np.ndarray, weights: np.ndarray, fold_of: np.ndarray, seed: int
) -> tuple[list[ReturnNetwork], np.ndarray]:
    """A network per fold, fitted without it, and each row's values (N, K + 1) by the network that
    did not see its question.
    """
    members, values = [], np.zeros_like(targets)
    for fold in range(NUM_FOLDS):
        outside = fold_of == fold
        members.append(
            _fit(
                features,
                targets,
                np.where(outside, 0.0, weights),
                np.where(outside, weights, 0.0),
                seed + fold,
            )
        )
        with torch.no_grad():
            values[outside] = members[-1](features[outside]).numpy()
    return members, values


def _fit(
    features: torch.Tensor, targets: np.ndarray, weights: np.ndarray, check: np.ndarray, seed: int
) -> ReturnNetwork:
    """A network fitted on rows drawn by `weights` (N,), as it was when its loss on rows drawn by
    `check` (N,) was least.
    """
    rng, goal = np.random.default_rng(seed), torch.from_numpy(targets.astype(np.float32))
    drawn = torch.from_numpy(
        rng.choice(len(targets), size=(STEPS, BATCH), p=weights / weights.sum())
    )
    held_out = torch.from_numpy(rng.choice(len(targets), size=CHECKED, p=check / check.sum()))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = ReturnNetwork(features.shape[1], targets.shape[1])
        network.low.copy_(goal.min(0).values)
        network.span.copy_((goal.max(0).values - network.low).clamp_min(1e-6))
        optimizer = torch.optim.AdamW(network.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
        least, best_step, best = np.inf, 0, network.state_dict()
        for step, rows in enumerate(drawn, start=1):
            loss = network.loss(features[rows], goal[rows]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % CHECK_EVERY == 0:
                network.eval()
                with torch.no_grad():
                    error = float(network.loss(features[held_out], goal[held_out]).mean())
                network.train()
                if error < least:
                    least, best_step, best = (
                        error,
                        step,
                        {name: value.clone() for name, value in network.state_dict().items()},
                    )
                elif step - best_step >= PATIENCE:
                    break
    network.load_state_dict(best)
    return network.eval()
