"""The Terminator: is this answer good enough to stop, judged without a reference?

A small network over the agent's features of (question, answer), the expert that answered and the
number of calls made. It learns from the states and qualities that training met anyway, so it costs
no expert call. Its threshold is chosen on the validation split.
# Deviation: the paper trains a classifier for this but does not describe it; ours is described
here.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from config import MAX_CALLS, MAX_SIZE, Config, RewardConfig, TerminatorConfig
from der_env import Episode, Judgement, Reader, encode_states
from questions import Question
from reward import charge
from rollout import Route
from runtime.errors import AgentError
from runtime.model_folder import ModelSpec, check_shapes, read_model_folder, write_model_folder
from text_agent import Agent

NEVER = 2.0  # a threshold no probability reaches
LR = 2e-3  # of a fit
WEIGHT_DECAY = 1e-2
FIT_BATCH = 256


class TerminatorData:
    """Distinct judged states.

    Each has the observation row after the call, the expert that answered, and whether the quality
    reached p0.
    """

    def __init__(self) -> None:
        self.rows: dict[tuple[bytes, int], tuple[np.ndarray, int, bool]] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def add(self, rows: np.ndarray, expert_idxs: Sequence[int], is_good: Sequence[bool]) -> None:
        for row, expert_idx, good in zip(rows, expert_idxs, is_good, strict=True):
            key = (row.tobytes(), int(expert_idx))
            self.rows.setdefault(key, (row.copy(), int(expert_idx), bool(good)))

    def arrays(self, newest: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows (N, L), expert indices (N,) and labels (N,) of the newest N states."""
        rows, experts, good = zip(*list(self.rows.values())[-newest:], strict=True)
        return np.stack(rows), np.array(experts), np.array(good, dtype=np.float32)

    def state(self) -> dict[str, torch.Tensor]:
        """All states as tensors: `rows` (N, L), `experts` (N,) and `good` (N,)."""
        if not self.rows:
            return {}
        rows, experts, good = self.arrays(len(self.rows))
        return {
            "rows": torch.from_numpy(rows),
            "experts": torch.from_numpy(experts),
            "good": torch.from_numpy(good),
        }

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Replace all states by those of `state`."""
        self.rows.clear()
        if state:
            good = state["good"].bool().tolist()
            self.add(state["rows"].numpy(), state["experts"].tolist(), good)


class Terminator(nn.Module):
    """Features (B, D), expert (B,), calls left (B,) -> logit that quality >= p0."""

    def __init__(
        self, width: int, num_experts: int, t_max: int, hidden_size: int, dropout: float = 0.0
    ):
        super().__init__()
        self.width = width
        self.hidden_size = hidden_size
        self.num_experts = num_experts
        self.t_max = t_max
        self.dropout = dropout
        self.reads = (width, num_experts, t_max)
        self.net = nn.Sequential(
            nn.Linear(width + num_experts + t_max, hidden_size),
            nn.ReLU(),
            nn.Linear(hidden_size, 1),
        )
        self.threshold = NEVER
        self.eval()

    def forward(
        self, features: torch.Tensor, expert_idxs: torch.Tensor, calls_left: torch.Tensor
    ) -> torch.Tensor:
        known = [
            nn.functional.one_hot(expert_idxs, self.num_experts),
            nn.functional.one_hot(calls_left.clamp(0, self.t_max - 1), self.t_max),
        ]
        first, relu, last = self.net
        inputs = nn.functional.dropout(
            torch.cat([features, *known], dim=1).float(), self.dropout, self.training
        )
        hidden = nn.functional.dropout(relu(first(inputs)), self.dropout, self.training)
        logits: torch.Tensor = last(hidden)  # (B, 1)
        return logits[:, 0]

    def fit(self, agent: Agent, data: TerminatorData, config: TerminatorConfig, seed: int) -> float:
        """Train from scratch on the data with binary cross-entropy; returns the last loss.

        Leaves the global random state alone.
        """
        rows, experts, good = data.arrays(config.max_states)
        features = agent.row_features(rows)
        device = features.device
        expert_idxs = torch.from_numpy(experts).to(device)
        calls_left = _calls_left(rows, device)
        labels = torch.from_numpy(good).to(device)
        generator = torch.Generator().manual_seed(seed)
        self._reset_weights(generator)
        optimizer = torch.optim.AdamW(self.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
        self.train()
        with torch.random.fork_rng():
            torch.manual_seed(seed)  # dropout draws from the global generator
            for _ in range(config.steps):
                size = (min(FIT_BATCH, len(labels)),)
                batch = torch.randint(len(labels), size, generator=generator).to(device)
                logits = self(features[batch], expert_idxs[batch], calls_left[batch])
                loss = nn.functional.binary_cross_entropy_with_logits(logits, labels[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        self.eval()
        return loss.item()

    @torch.no_grad()
    def _reset_weights(self, generator: torch.Generator) -> None:
        for layer in self.net:
            if isinstance(layer, nn.Linear):
                bound = layer.in_features**-0.5
                weight = torch.empty(layer.weight.shape)
                layer.weight.copy_(weight.uniform_(-bound, bound, generator=generator))
                layer.bias.zero_()

    @torch.no_grad()
    def probabilities(
        self, agent: Agent, rows: np.ndarray, expert_idxs: Sequence[int]
    ) -> np.ndarray:
        """P(quality >= p0) for observation rows taken after a call."""
        features = agent.row_features(rows)
        calls_left = _calls_left(rows, features.device)
        experts = torch.as_tensor(expert_idxs, device=features.device)
        logits = self(features, experts, calls_left)
        return torch.sigmoid(logits).cpu().numpy()


def _calls_left(rows: np.ndarray, device: torch.device) -> torch.Tensor:
    """The first column (N,) of observation rows."""
    return torch.from_numpy(rows[:, 0].astype(np.int64)).to(device)


class TerminatorJudge:
    """Ends a route when the stop probability reaches the threshold. Holds no reference."""

    def __init__(self, agent: Agent, terminator: Terminator, threshold: float | None = None):
        shape = (agent.encoder.width, agent.num_experts, agent.t_max)
        if terminator.reads != shape:
            raise AgentError(
                f"the Terminator reads (features, experts, calls) of {terminator.reads}, the agent"
                f" has {shape}: take both from the same run"
            )
        self.agent = agent
        self.terminator = terminator
        self.threshold = terminator.threshold if threshold is None else threshold

    def judge(self, episodes: Sequence[Episode]) -> list[Judgement]:
        # The agent will read the same text if the route goes on, so the encoder's work is shared.
        rows = encode_states(episodes, self.agent.state_tokenizer)
        expert_idxs = [episode.steps[-1].expert_idx for episode in episodes]
        judgements = []
        for p in self.terminator.probabilities(self.agent, rows, expert_idxs):
            judgements.append(Judgement(bool(p >= self.threshold), p_stop=float(p)))
        return judgements


class EstimateTerminator:
    """The Terminator of an agent that holds beliefs: a threshold.

    The agent's estimate of the answer that would be submitted is held against it. The threshold
    is NEVER where the agent stops by an action of its own.
    """

    def __init__(self, threshold: float = NEVER, promise: dict[str, Any] | None = None):
        self.threshold = threshold
        self.promise = promise  # of `terminator.max_loss`, and what it rests on


class EstimateJudge:
    """Ends a route when the estimate of the submitted answer reaches the threshold."""

    def __init__(self, reader: Reader, threshold: float):
        self.reader = reader
        self.threshold = threshold

    def judge(self, episodes: Sequence[Episode]) -> list[Judgement]:
        unread = [e for e in episodes if len(e.estimates) != len(e.steps)]
        if unread:  # routes of a policy that reads nothing
            self.reader.estimate(unread)
        judgements = []
        for episode in episodes:
            p = episode.estimates[episode.submitted_idx]
            judgements.append(Judgement(p >= self.threshold, p_stop=p))
        return judgements


AnyTerminator = Terminator | EstimateTerminator
LearnedJudge = TerminatorJudge | EstimateJudge


def make_judge(
    agent: Agent, terminator: AnyTerminator, threshold: float | None = None
) -> LearnedJudge:
    """The judge that ends an agent's routes; another threshold than the Terminator's if given."""
    if isinstance(terminator, EstimateTerminator):
        if agent.reader is None:
            raise AgentError("an agent that reads text has no estimates to end its routes by")
        threshold = terminator.threshold if threshold is None else threshold
        return EstimateJudge(agent.reader, threshold)
    return TerminatorJudge(agent, terminator, threshold)


def cut_at(route: Route, threshold: float) -> Route:
    """The route as the Terminator would have ended it at this threshold."""
    for number, step in enumerate(route.episode.steps, start=1):
        if step.p_stop is not None and step.p_stop >= threshold:
            return route.cut(number)
    return route


@dataclass(frozen=True)
class Endings:
    """What it would give to end N scored routes after each of their up to T calls.

    p_stop (N, T): -inf where there is no probability, and beyond a route's end. quality, returns
    and cost (N, T): of the whole route beyond its end.
    """

    p_stop: np.ndarray
    quality: np.ndarray
    returns: np.ndarray
    cost: np.ndarray

    @classmethod
    def of(cls, routes: Sequence[Route], reward: RewardConfig) -> Endings:
        longest = max(len(route.episode.steps) for route in routes)
        p_stop = np.full((len(routes), longest), -np.inf)
        outcomes = np.empty((3, len(routes), longest))
        for row, route in enumerate(routes):
            steps = route.episode.steps
            for place in range(longest):
                if place < len(steps) and steps[place].p_stop is not None:
                    p_stop[row, place] = steps[place].p_stop
                ended = route.cut(place + 1) if place + 1 < len(steps) else route
                cost = charge(ended.episode.cost, reward)
                outcomes[:, row, place] = (ended.quality, ended.return_under(reward), cost)
        return cls(p_stop, *outcomes)

    def at(self, threshold: float) -> tuple[np.ndarray, np.ndarray]:
        """Index of the outcome of each route (N,), (N,) that `cut_at` gives."""
        reaches = self.p_stop >= threshold
        reaches[:, -1] = True
        return np.arange(len(reaches)), reaches.argmax(axis=1)


def choose_threshold(routes: Sequence[Route], reward: RewardConfig, max_threshold: float) -> float:
    """The threshold with the highest mean return on scored routes.

    The routes were not ended below `max_threshold`. Candidates are up to 200 quantiles of the stop
    probabilities seen, at most `max_threshold`. Of equal returns the higher threshold wins.
    """
    p_stops = []
    for route in routes:
        p_stops += [step.p_stop for step in route.episode.steps]
    candidates = _thresholds_up_to(max_threshold, np.array(p_stops), 200)
    endings = Endings.of(routes, reward)
    returns = [endings.returns[endings.at(threshold)].mean() for threshold in candidates]
    return float(candidates[len(returns) - 1 - int(np.argmax(returns[::-1]))])


def _thresholds_up_to(max_threshold: float, p_stops: np.ndarray, count: int) -> np.ndarray:
    """`count` quantiles of stop probabilities up to `max_threshold`, and this, in rising order."""
    quantiles = np.quantile(p_stops, np.linspace(0, 1, count))
    thresholds = np.unique(np.append(quantiles, max_threshold))
    return thresholds[thresholds <= max_threshold]


def terminator_figures(
    routes: Sequence[Route],
    questions: Sequence[Question],
    shapes: Mapping[str, set[str]],
    config: Config,
) -> dict[str, Any]:
    """How well the stop probability tells good answers.

    The routes are scored and ran past the threshold, to `max_threshold`. shapes: the forms
    (`answer_shape`) that training references of each task have. `auroc` is over all answers,
    `auroc_well_formed` over those of such a form; they are None where only one class occurs.
    `calibration` has ten bins of equal count, `ece` their mean absolute gap (Naeini et al. 2015).
    `brier` is the mean squared error. `thresholds`: what each threshold would have given.
    """
    p, quality, formed = _submitted_answers(routes, questions, shapes)
    good = quality >= config.env.p0
    calibration = _calibration(p, good)
    endings = Endings.of(routes, config.reward)
    thresholds = []
    for threshold in _thresholds_up_to(config.terminator.max_threshold, p, 41):
        ended = endings.at(threshold)
        means = {
            "quality": float(endings.quality[ended].mean()),
            "return": float(endings.returns[ended].mean()),
            "cost": float(endings.cost[ended].mean()),
        }
        thresholds.append({"threshold": float(threshold), **means})
    return {
        "answers": len(p),
        "auroc": _auroc(good, p),
        "auroc_well_formed": _auroc(good[formed], p[formed]),
        "well_formed": float(formed.mean()),
        "brier": float(np.mean((p - good) ** 2)),
        "ece": calibration_error(p, good),
        "calibration": calibration,
        "thresholds": thresholds,
    }


def pooled_figures(groups: Sequence[Sequence[Route]], p0: float) -> dict[str, Any]:
    """The same over all routes of several groups, such as one for each alpha.

    `ece_of_calibrated`: 95% interval of the calibration error of a calibrated model of this size,
    whose answers are good with just the probability that it states.
    """
    p_stops = []
    goods = []
    for routes in groups:
        for route in routes:
            for num_calls, step in enumerate(route.episode.steps, start=1):
                quality = route.episode.submitted_after(num_calls).quality
                p_stops.append(step.p_stop)
                goods.append(quality is not None and quality >= p0)
    p, good = np.array(p_stops, dtype=float), np.array(goods)
    rng = np.random.default_rng(0)
    simulated = [calibration_error(p, rng.random(len(p)) < p) for _ in range(200)]
    return {
        "answers": len(p),
        "auroc": _auroc(good, p),
        "ece": calibration_error(p, good),
        "ece_of_calibrated": np.quantile(simulated, [0.025, 0.975]).tolist(),
    }


def calibration_error(p: np.ndarray, good: np.ndarray) -> float:
    """Mean absolute gap over ten bins of equal count (Naeini et al. 2015)."""
    gaps = 0.0
    for one in _calibration(p, good):
        gaps += one["count"] * abs(one["p"] - one["good"])
    return gaps / len(p)


def _submitted_answers(
    routes: Sequence[Route], questions: Sequence[Question], shapes: Mapping[str, set[str]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the answer that would be submitted after each call (N,).

    The arrays are its stop probability, its quality, and whether its form is one of `shapes`.
    """
    p_stops = []
    qualities = []
    is_formed = []
    for route, question in zip(routes, questions, strict=True):
        known = shapes.get(question.task, set())
        for num_calls, step in enumerate(route.episode.steps, start=1):
            submitted = route.episode.submitted_after(num_calls)
            p_stops.append(step.p_stop)
            qualities.append(submitted.quality)
            is_formed.append(answer_shape(submitted.answer.text) in known)
    return np.array(p_stops), np.array(qualities, dtype=float), np.array(is_formed)


def _calibration(p: np.ndarray, good: np.ndarray) -> list[dict[str, Any]]:
    """Mean probability and share of good answers, in ten bins of equal count by probability."""
    bins = []
    for rows in np.array_split(np.argsort(p, kind="stable"), 10):
        if len(rows):
            mean = float(p[rows].mean())
            bins.append({"p": mean, "good": float(good[rows].mean()), "count": len(rows)})
    return bins


@functools.lru_cache(maxsize=1 << 17)  # the same answers come back at every alpha
def answer_shape(text: str) -> str:
    """The form of an answer: each run of letters, digits or spaces becomes one sign.

    Every other sign stays as it is. "12 b" -> "0 a".
    """
    shape = re.sub(r"[^\W\d_]+", "a", text.strip())
    shape = re.sub(r"\d+", "0", shape)
    return re.sub(r"\s+", " ", shape)


def _auroc(good: np.ndarray, p: np.ndarray) -> float | None:
    from sklearn.metrics import roc_auc_score  # it takes seconds, and asking needs no figures

    if good.all() or not good.any():
        return None
    return float(roc_auc_score(good, p))


class TerminatorSpec(ModelSpec):
    """config.json of a terminator folder."""

    kind: Literal["network", "estimate"] = "network"
    width: int = Field(1, ge=1, le=MAX_SIZE)
    num_experts: int = Field(1, ge=1, le=MAX_SIZE)
    t_max: int = Field(1, ge=1, le=MAX_CALLS)
    hidden_size: int = Field(1, ge=1, le=MAX_SIZE)
    threshold: float
    promise: dict[str, Any] | None = None


def save_terminator(terminator: AnyTerminator, folder: Path) -> None:
    """Write the terminator folder: config.json, model.safetensors."""
    if isinstance(terminator, EstimateTerminator):
        threshold = torch.tensor([terminator.threshold])
        spec = {
            "kind": "estimate",
            "threshold": terminator.threshold,
            "promise": terminator.promise,
        }
        write_model_folder(folder, spec, {"threshold": threshold})
        return
    width, num_experts, t_max = terminator.reads
    spec = {
        "width": width,
        "num_experts": num_experts,
        "t_max": t_max,
        "hidden_size": terminator.net[0].out_features,
        "threshold": terminator.threshold,
    }
    write_model_folder(folder, spec, terminator.net.state_dict())


def load_terminator(folder: Path, device: torch.device) -> AnyTerminator:
    """The Terminator of a folder, threshold included. Raises AgentError for a damaged one."""
    spec, tensors = read_model_folder(folder, TerminatorSpec, AgentError)
    if spec.kind == "estimate":
        return EstimateTerminator(spec.threshold, spec.promise)
    terminator = Terminator(spec.width, spec.num_experts, spec.t_max, spec.hidden_size)
    check_shapes(tensors, terminator.net.state_dict(), folder, AgentError)
    terminator.net.load_state_dict(tensors)
    terminator.threshold = spec.threshold
    return terminator.to(device)
