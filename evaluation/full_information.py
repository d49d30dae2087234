"""The full-information router: what an agent could know without hindsight.

It reads what the agent reads, but was fitted on the exact outcome of every action in every state of
the training questions' trees, where the agent has only seen the routes it tried. Its distance to
hindsight is what the question does not tell; the agent's distance to it is what the agent has
failed to learn.
"""

from __future__ import annotations

import copy
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

HIDDEN = 256
DROPOUT = 0.3
LR = 1e-3
WEIGHT_DECAY = 1e-2
BATCH = 256
STEPS = 3000  # the most gradient steps of a fit
CHECK_EVERY = 100  # steps between two looks at the error on the fold that was left out
PATIENCE = 600  # steps without a lower error, after which a fit ends
CHECKED = 3000  # states that the error on the fold that was left out is averaged over
NUM_FOLDS = 4
# Weight of states in which the oracle has ended the route. It is above 0, as there may be no
# other states.
NEVER_ASKED = 1e-12
# Weight of all states, as a share of the weight of those on the routes chosen with hindsight.
OFF_ROUTE = 0.03


class ReturnNetwork(nn.Module):
    """Features (B, D) -> values (B, K + 1) of asking each expert and of stopping.

    Values lie between the least and the highest target seen.
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
        """Cross-entropy (B,) with targets scaled to [0, 1].

        A return is nearly binary, and cross-entropy fits its mean.
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
        self.agent = agent
        self.cross_fitted = cross_fitted
        self.networks = []
        for members in networks:
            self.networks.append([network.to(agent.encoder.device).eval() for network in members])

    @torch.no_grad()
    def act(self, episodes: Sequence[Episode]) -> list[Decision]:
        features = self.agent.row_features(encode_states(episodes, self.agent.state_tokenizer))
        decisions = []
        for episode, row in zip(episodes, features, strict=True):
            members = self.networks[len(episode.steps)]
            outputs = torch.stack([network(row[None]) for network in members])
            values = outputs.mean(0).cpu().numpy()  # (1, K + 1)
            action = int(choose(values, len(episode.steps))[0])
            is_stop = action == values.shape[1] - 1
            expected_return = float(values[0, action])
            decisions.append(Decision(None if is_stop else action, expected_return))
        return decisions

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        states = []
        for members in self.networks:
            states.append([network.state_dict() for network in members])
        data = io.BytesIO()
        torch.save({"networks": states, "cross_fitted": self.cross_fitted}, data)
        write_atomically(path, data.getvalue())

    @classmethod
    def load(cls, path: Path, agent: Agent) -> FullInformationRouter:
        saved = torch.load(path, weights_only=True)
        networks = []
        for members in saved["networks"]:
            networks.append([_network(state) for state in members])
        return cls(agent, networks, saved["cross_fitted"])


def _network(state: dict[str, torch.Tensor]) -> ReturnNetwork:
    network = ReturnNetwork(state["net.1.weight"].shape[1], len(state["low"]))
    network.load_state_dict(state)
    return network


def choose(values: np.ndarray, depth: int) -> np.ndarray:
    """Best column (N,) of values (N, K + 1); the last one is to stop.

    Stopping is not allowed before the first call (depth 0).
    """
    if depth == 0:
        return values[:, :-1].argmax(axis=1)
    return values.argmax(axis=1)


def fit_key(
    agent: Agent,
    questions: Sequence[Question],
    pool: ExpertPool,
    t_max: int,
    reward: RewardConfig,
    stop_quality: float | None,
    submits: str = "last",
) -> str:
    """Name of a fit. Two fits have the same name only if they would be equal.

    The name covers questions and references, pool, encoder, prices, number of calls, stop,
    submitted answer and settings of the fit.
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
        stop_quality,
    ]
    about += [[q.id, q.text, q.task, q.metric, q.reference] for q in questions]
    prices = []
    for expert in pool.experts:
        prompt_price = expert.config.usd_per_million_prompt_tokens
        prices.append([prompt_price, expert.config.usd_per_million_completion_tokens])
    about += [pool.fingerprint(), pool.ktp, prices]
    # Each run has an encoder of its own where that is trained.
    about += [agent.encoder_hash(), agent.encoder.mean.tolist(), agent.encoder.scale.tolist()]
    if submits != "last":  # fits from before there was a choice keep their names
        about += [submits, [q.similarity for q in questions]]
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]


def fit_full_information(
    agent: Agent,
    tree: RouteTree,
    reward: RewardConfig,
    stop_quality: float | None = None,
    seed: int = 0,
) -> FullInformationRouter:
    """Policy search by dynamic programming (Bagnell et al. 2003) on all states of full trees.

    Action values are fitted backward from the last call. The target of an action is its cost and
    what the router's own later choices led to. The best later choice would be hindsight. The
    choices come from networks that were fitted on other questions, so they are not too good.

    States count by how often a good policy meets them: here, the routes chosen with hindsight.
    With equal weights the router never learns a chain of two experts that few questions need. It
    then asks a wrong second expert, so asking the first one is wrong too.

    Args:
        stop_quality: at which an oracle ends a route; None: the router alone decides when to stop.

    Raises:
        ConfigError: fewer questions than folds.
    """
    fold_of_question = _folds(len(tree.questions), seed)
    visits = _hindsight_visits(tree, reward)
    outcome = tree.levels[-1].quality
    networks: list[list[ReturnNetwork]] = []
    for depth in reversed(range(tree.t_max)):
        level = tree.levels[depth]
        is_over = np.zeros(len(level.quality), dtype=bool)
        if stop_quality is not None and depth:
            is_over = level.quality >= stop_quality
        weights = _weights(visits[depth], is_over)
        action_values = tree.action_values(depth, reward, outcome)
        targets = np.column_stack([action_values, level.quality])  # (N, K + 1)
        folds = fold_of_question[level.question]
        features = _features(agent, tree, depth)
        members, values = _cross_fit(features, targets, weights, folds, seed)
        chosen = targets[np.arange(len(targets)), choose(values, depth)]
        outcome = np.where(is_over, level.quality, chosen)
        networks.insert(0, members)
    return FullInformationRouter(agent, networks, float(outcome.mean()))


def _folds(num_questions: int, seed: int) -> np.ndarray:
    """The fold (N,) of each question, by chance."""
    if num_questions < NUM_FOLDS:
        raise ConfigError(
            f"the full-information router needs at least {NUM_FOLDS} training questions, got"
            f" {num_questions}: raise eval.tree_questions"
        )
    return np.random.default_rng(seed).permutation(num_questions) % NUM_FOLDS


def _weights(visits: np.ndarray, is_over: np.ndarray) -> np.ndarray:
    """Weights (N,) of states: their share of the visits (N,), and a little of their own."""
    weights = visits / max(visits.sum(), 1.0) + OFF_ROUTE / len(visits)
    weights[is_over] = NEVER_ASKED
    return weights


def _features(agent: Agent, tree: RouteTree, depth: int) -> torch.Tensor:
    level = tree.levels[depth]
    questions = [tree.questions[q].sealed().text for q in level.question]
    calls_left = [tree.t_max - depth] * len(questions)
    rows = agent.state_tokenizer.encode(questions, level.answers, calls_left)
    return agent.row_features(rows).cpu()


def _hindsight_visits(tree: RouteTree, reward: RewardConfig) -> list[np.ndarray]:
    """How many questions' best routes meet each node (N,) of each level but the last."""
    values = optimal_values(tree, reward)
    here = np.arange(len(tree.questions))
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
    """A network per fold, fitted without it, and values (N, K + 1) of all rows.

    The values of a row come from the network that did not see its question.
    """
    members = []
    values = np.zeros_like(targets)
    for fold in range(NUM_FOLDS):
        outside = fold_of == fold
        fit_weights = np.where(outside, 0.0, weights)
        check_weights = np.where(outside, weights, 0.0)
        network = _fit(features, targets, fit_weights, check_weights, seed + fold)
        with torch.no_grad():
            values[outside] = network(features[outside]).numpy()
        members.append(network)
    return members, values


def _fit(
    features: torch.Tensor, targets: np.ndarray, weights: np.ndarray, check: np.ndarray, seed: int
) -> ReturnNetwork:
    """A network fitted on rows drawn by `weights` (N,).

    It is the one whose loss on rows drawn by `check` (N,) was least.
    """
    rng = np.random.default_rng(seed)
    goal = torch.from_numpy(targets.astype(np.float32))
    drawn = rng.choice(len(targets), size=(STEPS, BATCH), p=weights / weights.sum())
    held_out = rng.choice(len(targets), size=CHECKED, p=check / check.sum())
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = ReturnNetwork(features.shape[1], targets.shape[1])
        network.low.copy_(goal.min(0).values)
        network.span.copy_((goal.max(0).values - network.low).clamp_min(1e-6))
        _descend(network, features, goal, torch.from_numpy(drawn), torch.from_numpy(held_out))
    return network.eval()


def _descend(
    network: ReturnNetwork,
    features: torch.Tensor,
    goal: torch.Tensor,
    drawn: torch.Tensor,
    held_out: torch.Tensor,
) -> None:
    """Train a network on batches of rows, and put it back to its best state.

    features (N, D), goal (N, K + 1). drawn (STEPS, BATCH) and held_out (CHECKED,): indices of rows.
    """
    optimizer = torch.optim.AdamW(network.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
    least = np.inf
    best_step = 0
    best = network.state_dict()
    for step, rows in enumerate(drawn, start=1):
        loss = network.loss(features[rows], goal[rows]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % CHECK_EVERY:
            continue
        network.eval()
        with torch.no_grad():
            error = float(network.loss(features[held_out], goal[held_out]).mean())
        network.train()
        if error < least:
            least = error
            best_step = step
            best = copy.deepcopy(network.state_dict())
        elif step - best_step >= PATIENCE:
            break
    network.load_state_dict(best)
