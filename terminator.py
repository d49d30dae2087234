"""The Terminator: is this answer good enough to stop, judged without a reference?

A small network over the agent's features of (question, answer), the expert that answered and the
number of calls made. It learns from the states and qualities that training met anyway, so it costs
no expert call. Its threshold is chosen on the validation split.
# Deviation: the paper trains a classifier for this but does not describe it; ours is described
here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
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
FIT_BATCH = 256


class TerminatorData:
    """Distinct judged states: observation row after the call, expert that answered, whether the
    quality reached p0.
    """

    def __init__(self) -> None:
        self.rows: dict[tuple[bytes, int], tuple[np.ndarray, int, bool]] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def add(self, rows: np.ndarray, expert_idxs: Sequence[int], is_good: Sequence[bool]) -> None:
        for row, expert_idx, good in zip(rows, expert_idxs, is_good, strict=True):
            self.rows.setdefault(
                (row.tobytes(), int(expert_idx)), (row.copy(), int(expert_idx), bool(good))
            )

    def arrays(self, newest: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows (N, L), expert indices (N,) and labels (N,) of the newest N states."""
        rows, experts, good = zip(*list(self.rows.values())[-newest:], strict=True)
        return np.stack(rows), np.array(experts), np.array(good, dtype=np.float32)

    def state(self) -> dict[str, torch.Tensor]:
        """All states as tensors: `rows` (N, L), `experts` (N,) and `good` (N,)."""
        if not self.rows:
            return {}
        arrays = self.arrays(len(self.rows))
        names = ("rows", "experts", "good")
        return {name: torch.from_numpy(array) for name, array in zip(names, arrays, strict=True)}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Replace all states by those of `state`."""
        self.rows.clear()
        if state:
            rows, good = state["rows"].numpy(), state["good"].bool()
            self.add(rows, state["experts"].tolist(), good.tolist())


class Terminator(nn.Module):
    """Features (B, D), expert (B,), calls left (B,) -> logit that quality >= p0."""

    def __init__(
        self, width: int, num_experts: int, t_max: int, hidden_size: int, dropout: float = 0.0
    ):
        super().__init__()
        self.width, self.hidden_size = width, hidden_size
        self.num_experts, self.t_max, self.dropout = num_experts, t_max, dropout
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
        inputs = (
            features,
            torch.from_numpy(experts).to(features.device),
            torch.from_numpy(rows[:, 0].astype(np.int64)).to(features.device),
        )
        labels = torch.from_numpy(good).to(features.device)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for layer in self.net:
                if not isinstance(layer, nn.Linear):
                    continue
                bound = layer.in_features**-0.5
                layer.weight.copy_(
                    torch.empty(layer.weight.shape).uniform_(-bound, bound, generator=generator)
                )
                layer.bias.zero_()
        optimizer = torch.optim.AdamW(
            self.parameters(), lr=config.lr, weight_decay=config.weight_decay
        )
        self.train()
        with torch.random.fork_rng():
            torch.manual_seed(seed)  # of dropout
            for _ in range(config.steps):
                batch = torch.randint(
                    len(labels), (min(FIT_BATCH, len(labels)),), generator=generator
                ).to(features.device)
                loss = nn.functional.binary_cross_entropy_with_logits(
                    self(*(x[batch] for x in inputs)), labels[batch]
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        self.eval()
        return loss.item()

    @torch.no_grad()
    def probabilities(
        self, agent: Agent, rows: np.ndarray, expert_idxs: Sequence[int]
    ) -> np.ndarray:
        """P(quality >= p0) for observation rows taken after a call."""
        features = agent.row_features(rows)
        left = torch.from_numpy(rows[:, 0].astype(np.int64)).to(features.device)
        return (
            torch.sigmoid(
                self(features, torch.as_tensor(expert_idxs, device=features.device), left)
            )
            .cpu()
            .numpy()
        )


class TerminatorJudge:
    """Ends a route when the stop probability reaches the threshold. Holds no reference."""

    def __init__(self, agent: Agent, terminator: Terminator, threshold: float | None = None):
        if terminator.reads != (agent.encoder.width, agent.num_experts, agent.t_max):
            raise AgentError(
                f"the Terminator reads (features, experts, calls) of {terminator.reads}, the agent"
                f" has {(agent.encoder.width, agent.num_experts, agent.t_max)}: take both from the"
                " same run"
            )
        self.agent, self.terminator = agent, terminator
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
    """The Terminator of an agent that holds beliefs: its estimate of the answer that would be
    submitted, and a threshold. NEVER where the agent stops by an action of its own.
    """

    def __init__(self, threshold: float = NEVER):
        self.threshold = threshold


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


def choose_threshold(routes: Sequence[Route], reward: RewardConfig, most: float) -> float:
    """The threshold with the highest mean return on scored routes that were not ended below `most`.

    Candidates are up to 200 quantiles of the stop probabilities seen, `most` at most. Of equal
    returns the higher threshold wins.
    """
    seen = np.array([step.p_stop for route in routes for step in route.episode.steps])
    candidates = np.unique(np.append(np.quantile(seen, np.linspace(0, 1, 200)), most))
    candidates = candidates[candidates <= most]
    returns = [
        np.mean([cut_at(route, threshold).value_under(reward) for route in routes])
        for threshold in candidates
    ]
    return float(candidates[len(returns) - 1 - int(np.argmax(returns[::-1]))])


def terminator_figures(
    routes: Sequence[Route],
    questions: Sequence[Question],
    shapes: Mapping[str, set[str]],
    config: Config,
) -> dict[str, Any]:
    """How well the stop probability tells good answers, on scored routes that ran past the
    threshold (to `max_threshold`).

    `auroc` over all answers met, `auroc_well_formed` over those of a form that training references
    of the task have (`answer_shape`); null where only one class occurs. `calibration`: ten bins of
    equal count, `ece` their mean absolute gap (Naeini et al. 2015), `brier` the mean squared error.
    `thresholds`: what each threshold would have given.
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
    p = np.array(p_stops)
    good = np.array(qualities, dtype=float) >= config.env.p0
    formed = np.array(is_formed)
    bins = [b for b in np.array_split(np.argsort(p, kind="stable"), 10) if len(b)]
    calibration = [
        {"p": float(p[b].mean()), "good": float(good[b].mean()), "count": len(b)} for b in bins
    ]
    thresholds = []
    for threshold in np.unique(
        np.append(np.quantile(p, np.linspace(0, 1, 41)), config.terminator.max_threshold)
    ):
        if threshold <= config.terminator.max_threshold:
            ended = [cut_at(route, threshold) for route in routes]
            means = {
                "quality": [route.quality for route in ended],
                "return": [route.value_under(config.reward) for route in ended],
                "cost": [charge(route.episode.cost, config.reward) for route in ended],
            }
            thresholds.append(
                {
                    "threshold": float(threshold),
                    **{name: float(np.mean(values)) for name, values in means.items()},
                }
            )
    return {
        "answers": len(p),
        "auroc": _auroc(good, p),
        "auroc_well_formed": _auroc(good[formed], p[formed]),
        "well_formed": float(formed.mean()),
        "brier": float(np.mean((p - good) ** 2)),
        "ece": sum(c["count"] * abs(c["p"] - c["good"]) for c in calibration) / len(p),
        "calibration": calibration,
        "thresholds": thresholds,
    }


def answer_shape(text: str) -> str:
    """The form of an answer: runs of letters, digits and spaces as one sign each, everything else
    as it is.

    "12 b" -> "0 a".
    """
    return re.sub(r"\s+", " ", re.sub(r"\d+", "0", re.sub(r"[^\W\d_]+", "a", text.strip())))


def _auroc(good: np.ndarray, p: np.ndarray) -> float | None:
    from sklearn.metrics import roc_auc_score  # seconds; asking needs no figures

    return float(roc_auc_score(good, p)) if good.any() and not good.all() else None


class TerminatorSpec(ModelSpec):
    """config.json of a terminator folder."""

    kind: Literal["network", "estimate"] = "network"
    width: int = Field(1, ge=1, le=MAX_SIZE)
    num_experts: int = Field(1, ge=1, le=MAX_SIZE)
    t_max: int = Field(1, ge=1, le=MAX_CALLS)
    hidden_size: int = Field(1, ge=1, le=MAX_SIZE)
    threshold: float


def save_terminator(terminator: AnyTerminator, folder: Path) -> None:
    """Write the terminator folder: config.json, model.safetensors."""
    if isinstance(terminator, EstimateTerminator):
        threshold = torch.tensor([terminator.threshold])
        spec = {"kind": "estimate", "threshold": terminator.threshold}
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
        return EstimateTerminator(spec.threshold)
    terminator = Terminator(spec.width, spec.num_experts, spec.t_max, spec.hidden_size)
    check_shapes(tensors, terminator.net.state_dict(), folder, AgentError)
    terminator.net.load_state_dict(tensors)
    terminator.threshold = spec.threshold
    return terminator.to(device)
