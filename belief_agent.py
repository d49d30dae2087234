"""The DER-Agent that remembers: it decides over a belief instead of over the state text.

The outcome model estimates who will be right and which answers are; agreement between the answers
joins in; a linear policy over that belief scores every expert and stopping. The policy starts from
fitted dynamic programming (`belief.planner`), and PPO goes on from there. The encoder reads the
question; answers are read by counted features (`belief.features`).
# Deviation: the paper's state is the question and the last answer (`agent.reads: text`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import nn

from belief.budget import Dial, PlannedAlphas, Spent, dial_for
from belief.exploration import GREEDY, Exploration
from belief.features import Reading, Said, reading_of
from belief.outcome_model import (
    CrossFitted,
    OutcomeModel,
    check_inputs,
    count_answers,
    count_questions,
)
from belief.packing import arrays_under, pack_model, unpack_model
from belief.planner import NUM_STATE_INPUTS, Plan, action_inputs, num_inputs, value_inputs
from belief.state import Belief, CandidateModel, Heard, agreement, believe
from der_env import Episode, encode_states
from questions import Question
from rollout import Decision
from runtime.errors import AgentError
from text_agent import Agent

TEMPERATURE = 0.02  # of the policy, in units of return: differences below it are explored
FORBIDDEN = -1e30  # score of an action that cannot be taken: below any cost
ACTOR_PARTS = ("actor.plan", "actor.scale", "actor.learned", "critic.weights")


class BeliefReader:
    """Estimates answers and observes beliefs. Estimates once made are kept.

    `remember` puts cross-fitted estimates of the training questions in their place. The model has
    seen these answers, so its own estimates would be too sure.
    """

    def __init__(
        self,
        model: OutcomeModel,
        candidates: CandidateModel,
        tasks: Sequence[str],
        costs: np.ndarray,
        t_max: int,
        embed: Any,
        alpha: float,
    ):
        self.model = model
        self.candidates = candidates
        self.tasks = list(tasks)
        self.costs = np.asarray(costs, dtype=np.float64)  # (K,): C of a call, on average
        self.t_max = min(t_max, len(self.costs))
        self.embed = embed  # questions -> (N, D)
        self.alpha = alpha  # weight of cost on routes that bring none of their own
        self.planned = PlannedAlphas((), ())
        self.dial: Dial | None = None  # where a budget is to be met: the weight of each question
        self.before: dict[Reading, np.ndarray] = {}
        self.after: dict[tuple[Reading, int, Said], float] = {}
        row = self.num_experts * (num_inputs(self.num_experts) + 2)
        size = row + self.t_max + 1 + NUM_STATE_INPUTS
        self.space = gym.spaces.Box(-np.inf, np.inf, (size,), np.float32)

    @property
    def num_experts(self) -> int:
        return len(self.costs)

    def remember(
        self, questions: Sequence[Question], answers: Sequence[Sequence[Said]], fitted: CrossFitted
    ) -> None:
        """Keep the cross-fitted estimates of training questions; answers[expert][question]."""
        for row, question in enumerate(questions):
            reading = reading_of(question)
            self.before[reading] = fitted.before[row]
            for expert_idx in range(self.num_experts):
                answer = answers[expert_idx][row]
                self.after[reading, expert_idx, answer] = float(fitted.after[row, expert_idx])

    def _task_of(self, questions: Sequence[Question]) -> np.ndarray:
        """Index (N,) of each question's task; -1 where training had no such task."""
        task_idxs = dict(zip(self.tasks, range(len(self.tasks)), strict=True))
        return np.array([task_idxs.get(question.task, -1) for question in questions])

    def priors(self, questions: Sequence[Question]) -> np.ndarray:
        """Log-odds (N, K) that each expert will be right."""
        readings = [reading_of(question) for question in questions]
        found = dict(zip(readings, questions, strict=True))
        new = {reading: found[reading] for reading in found if reading not in self.before}
        if new:
            unread = list(new.values())
            counted = count_questions(unread)
            rows = self.model.before(counted, self.embed(unread), self._task_of(unread))
            self.before.update(zip(new, rows, strict=True))
        return np.stack([self.before[reading] for reading in readings])

    def read(self, episodes: Sequence[Episode]) -> None:
        """Estimate every answer that has not been read yet."""
        new: dict[tuple[Reading, int, Said], Question] = {}
        for episode in episodes:
            reading = reading_of(episode.question)
            for step in episode.steps:
                key = (reading, step.expert_idx, Said.of(step.answer))
                if key not in self.after:
                    new[key] = episode.question
        if not new:
            return
        questions = list(new.values())
        answers = count_answers(questions, [said for *_, said in new])
        experts = np.array([expert_idx for _, expert_idx, _ in new])
        counted = count_questions(questions)
        log_odds = self.model.after(counted, self._task_of(questions), experts, answers)
        self.after.update(zip(new, log_odds.tolist(), strict=True))

    def _heard(self, episodes: Sequence[Episode]) -> Heard:
        """What was heard on routes that asked the same experts.

        Where an expert was asked twice, its last answer counts.
        """
        asked = experts_asked(episodes[0])
        before = self.priors([episode.question for episode in episodes])
        after = np.zeros((len(episodes), len(asked)))
        groups = np.zeros((len(episodes), len(asked)), dtype=int)
        for row, episode in enumerate(episodes):
            group_of = episode.groups
            reading = reading_of(episode.question)
            for place, expert_idx in enumerate(asked):
                step_idx = last_call_of(episode, expert_idx)
                said = Said.of(episode.steps[step_idx].answer)
                after[row, place] = self.after[reading, expert_idx, said]
                group = group_of[step_idx]
                groups[row, place] = -1 if group is None else group
        return Heard(asked, before, after, agreement(groups))

    def beliefs(self, episodes: Sequence[Episode]) -> list[tuple[list[int], Belief | None]]:
        """Beliefs, each with the indices of its episodes.

        Episodes that asked the same experts share one belief.
        """
        self.read(episodes)
        rows_of: dict[tuple[int, ...], list[int]] = {}
        for row, episode in enumerate(episodes):
            rows_of.setdefault(experts_asked(episode), []).append(row)
        out: list[tuple[list[int], Belief | None]] = []
        for asked, rows in rows_of.items():
            if not asked:
                out.append((rows, None))
                continue
            heard = self._heard([episodes[row] for row in rows])
            out.append((rows, believe(heard, self.candidates)))
        return out

    def alpha_of(self, episode: Episode) -> float:
        """The weight of cost that a question is asked with."""
        if episode.alpha is not None:
            return episode.alpha
        return self.dial.alpha_of(episode.question.text) if self.dial else self.alpha

    def alphas_of(self, episodes: Sequence[Episode]) -> np.ndarray:
        """The weights of cost (N,) that decide."""
        alphas = []
        for episode in episodes:
            mix = self.planned.mix_at(self.alpha_of(episode))
            alphas.append(mix.alpha_of(episode.question.text))
        return np.array(alphas)

    def estimate(self, episodes: Sequence[Episode]) -> None:
        """Set the episodes' estimates: of each answer, that its candidate is right."""
        for rows, belief in self.beliefs(episodes):
            if belief is None:
                continue
            for place, row in enumerate(rows):
                by_expert = dict(zip(belief.asked, belief.estimates[place].tolist(), strict=True))
                steps = episodes[row].steps
                episodes[row].estimates = [by_expert[step.expert_idx] for step in steps]

    def observe(self, episodes: Sequence[Episode]) -> np.ndarray:
        """Observations (N, size).

        First come, for each expert, its inputs, its cost and whether it may be asked. Then come
        the number of calls made (one-hot) and the inputs of the value head.
        """
        num_experts = self.num_experts
        actions = np.zeros((len(episodes), num_experts, num_inputs(num_experts) + 2))
        state = np.zeros((len(episodes), self.t_max + 1 + NUM_STATE_INPUTS))
        actions[:, :, -2] = self.costs
        for rows, belief in self.beliefs(episodes):
            group = [episodes[row] for row in rows]
            before = self.priors([episode.question for episode in group])
            asked = () if belief is None else belief.asked
            for expert_idx in set(range(num_experts)) - set(asked):
                actions[rows, expert_idx, :-2] = action_inputs(belief, before, expert_idx)
                actions[rows, expert_idx, -1] = 1.0
            state[rows, min(len(asked), self.t_max)] = 1.0
            state[rows, self.t_max + 1 :] = value_inputs(belief, before, self.alphas_of(group))
        flat = np.concatenate([actions.reshape(len(episodes), -1), state], axis=1)
        return flat.astype(np.float32)


def experts_asked(episode: Episode) -> tuple[int, ...]:
    return tuple(sorted({step.expert_idx for step in episode.steps}))


def last_call_of(episode: Episode, expert_idx: int) -> int:
    return max(i for i, step in enumerate(episode.steps) if step.expert_idx == expert_idx)


class BeliefActor(nn.Module):
    """Scores of every expert and of stopping, from an observation of `BeliefReader`.

    An expert's score is the gain that it promises minus alpha times its cost, over a temperature;
    stopping scores 0. The gain is linear in the expert's inputs, with weights for each number of
    calls made: the plan's, and what PPO has learned beside them. There is a plan for each of
    `alphas`; between two of them weights are interpolated.
    """

    plan: torch.Tensor  # (A, T, F)
    scale: torch.Tensor  # (T, F)
    alphas: torch.Tensor  # (A,)

    def __init__(self, num_experts: int, t_max: int, alphas: Sequence[float], *, can_stop: bool):
        super().__init__()
        self.can_stop = can_stop  # else a Terminator ends the routes
        self.num_experts = num_experts
        self.t_max = t_max
        shape = (t_max, num_inputs(num_experts))
        self.register_buffer("alphas", torch.tensor(list(alphas)))
        self.register_buffer("plan", torch.zeros((len(alphas), *shape)))
        self.register_buffer("scale", torch.ones(shape))  # 1 / size of an input
        self.learned = nn.Parameter(torch.zeros(shape))

    def shares(self, alpha: torch.Tensor) -> torch.Tensor:
        """Shares (B, A) of the plans in the weights at each alpha (B,), by linear interpolation."""
        num_plans = len(self.alphas)
        if num_plans == 1:
            return torch.ones(len(alpha), 1, device=alpha.device)
        above = torch.searchsorted(self.alphas, alpha.contiguous()).clamp(1, num_plans - 1)
        low = self.alphas[above - 1]
        high = self.alphas[above]
        share = ((alpha - low) / (high - low)).clamp(0, 1)
        shares = torch.zeros(len(alpha), num_plans, device=alpha.device)
        rows = torch.arange(len(alpha), device=alpha.device)
        shares[rows, above - 1] = 1 - share
        shares[rows, above] = share
        return shares

    def split(self, obs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Per-expert inputs (B, K, F + 2) and the state's inputs (B, S) of observations."""
        rows = torch.as_tensor(np.asarray(obs), dtype=torch.float32, device=self.plan.device)
        width = self.num_experts * (self.plan.shape[2] + 2)
        experts = rows[:, :width].view(len(rows), self.num_experts, -1)
        return experts, rows[:, width:]

    def forward(self, obs: Any, state: Any = None, info: Any = None) -> tuple[torch.Tensor, Any]:
        """Logits (B, K + 1), the last of stopping; (B, K) where a Terminator stops."""
        del info
        experts, states = self.split(obs)
        calls_made = states[:, : self.t_max]  # (B, T), all zeros after the last call
        alpha = states[:, -1]  # (B,)
        plans = torch.einsum("ba,atf->btf", self.shares(alpha), self.plan)
        weights = plans + self.scale * self.learned  # (B, T, F)
        gains = torch.einsum("bkf,btf,bt->bk", experts[:, :, :-2], weights, calls_made)
        scores = (gains - alpha[:, None] * experts[:, :, -2]) / TEMPERATURE
        scores = scores.masked_fill(experts[:, :, -1] < 0.5, FORBIDDEN)
        if not self.can_stop:
            return scores, state
        is_first = calls_made[:, :1]
        return torch.cat([scores, FORBIDDEN * is_first], dim=1), state


class BeliefCritic(nn.Module):
    """The value of a state: linear in its inputs, with weights for each number of calls made."""

    def __init__(self, actor: BeliefActor):
        super().__init__()
        self.split_of = [actor]  # in a list: its parameters belong to the actor alone
        self.weights = nn.Parameter(torch.zeros(actor.t_max + 1, NUM_STATE_INPUTS))

    def forward(self, obs: Any, state: Any = None, info: Any = None) -> torch.Tensor:
        """Values (B, 1)."""
        del state, info
        _, states = self.split_of[0].split(obs)
        num_stages = len(self.weights)
        stage = states[:, :num_stages]
        return (states[:, num_stages:] * (stage @ self.weights)).sum(1, keepdim=True)


class BeliefAgent(Agent):
    """An agent over beliefs. As a `rollout.Policy` it takes the action of the highest score.

    `explore_with` makes it draw some actions by their scores instead.
    """

    exploration = GREEDY
    exploration_seed = 0
    beliefs: BeliefReader
    actor: BeliefActor
    critic: BeliefCritic
    spent: Sequence[Spent] = ()  # at rising weights of cost, as training has found it
    num_spent: int = 0  # on so many questions

    @property
    def reader(self) -> BeliefReader:
        """Who estimates the answers on a route."""
        return self.beliefs

    def question_embeddings(self, questions: Sequence[Question]) -> np.ndarray:
        """The encoder's features (N, D) of bare questions."""
        fresh = [Episode(question, self.t_max) for question in questions]
        return self.row_features(encode_states(fresh, self.state_tokenizer)).cpu().numpy()

    def set_reader(self, reader: BeliefReader, alphas: Sequence[float], *, can_stop: bool) -> None:
        """Build the policy over what a reader observes, for these weights of cost."""
        reader.planned = PlannedAlphas(tuple(alphas), (False,) * len(alphas))
        self.beliefs = reader
        self.observer = reader
        device = self.encoder.device
        actor = BeliefActor(self.num_experts, reader.t_max, alphas, can_stop=can_stop)
        self.actor = actor.to(device)
        self.critic = BeliefCritic(self.actor).to(device)

    @property
    def num_actions(self) -> int:
        """The experts, and stopping where that is an action."""
        return self.num_experts + int(self.actor.can_stop)

    @property
    def alpha_range(self) -> tuple[float, float]:
        return float(self.actor.alphas[0]), float(self.actor.alphas[-1])

    def forget(self, max_questions: int) -> None:
        super().forget(max_questions)
        if max(len(self.reader.before), len(self.reader.after)) > max_questions:
            self.reader.before.clear()
            self.reader.after.clear()

    def ask_with(self, alpha: float) -> None:
        """Weigh cost by alpha from now on. Raises AgentError outside what it was trained for."""
        min_alpha, max_alpha = self.alpha_range
        if not min_alpha - 1e-6 <= alpha <= max_alpha + 1e-6:  # kept in 32 bits
            raise AgentError(
                f"reward.alpha = {alpha:g}: this agent was trained for {min_alpha:g} to"
                f" {max_alpha:g}; train another one with reward.alphas"
            )
        self.reader.alpha = alpha
        self.reader.dial = None

    def spend(self, budget: float) -> Dial:
        """Spend `budget` a question from now on: mean cost C. Raises AgentError where that is less
        than the cheapest route costs, or where training has not found what is spent.
        """
        if not self.spent:
            raise AgentError(
                "no table of what is spent: a budget needs agent.reads belief, train.refit true"
                " and reward.alphas, such as [0, 0.02, 0.1]; train again"
            )
        dial = dial_for(budget, self.spent, self.num_spent)
        self.reader.dial = dial
        return dial

    def plan_at(self, alpha: float) -> Plan:
        """The policy's weights at a weight of cost, as a plan: what PPO has learned included."""
        with torch.no_grad():
            shares = self.actor.shares(torch.tensor([alpha], dtype=torch.float32))[0]
            plan = torch.einsum("a,atf->tf", shares, self.actor.plan.cpu())
            weights = plan + (self.actor.scale * self.actor.learned).cpu()
        return Plan(weights.numpy().astype(np.float64), np.ones(weights.shape))

    def explore_with(self, exploration: Exploration, seed: int) -> None:
        """Draw actions so from now on.

        What is drawn depends on the seed, the question and the calls made, not on the order of
        play.
        """
        self.exploration = exploration
        self.exploration_seed = seed

    @torch.no_grad()
    def promised(self, episodes: Sequence[Episode]) -> np.ndarray:
        """What each action promises beyond stopping (B, A), in units of return.

        The last action is to stop, where the agent can. What cannot be done scores far below 0.
        """
        logits, _ = self.scores(episodes)
        returns: np.ndarray = logits.double().cpu().numpy() * TEMPERATURE
        return returns

    def set_plans(self, plans: Sequence[Plan]) -> None:
        """Start the policy from fitted dynamic programming, a plan for each alpha."""
        is_order = tuple(plan.order is not None for plan in plans)
        self.reader.planned = replace(self.reader.planned, is_order=is_order)
        sizes = plans[0].sizes  # of the inputs: the same for every alpha
        with torch.no_grad():
            weights = np.stack([plan.weights for plan in plans])
            self.actor.plan.copy_(torch.as_tensor(weights, dtype=torch.float32))
            scale = np.where(sizes > 1e-6, 1.0 / np.maximum(sizes, 1e-6), 0.0)
            self.actor.scale.copy_(torch.as_tensor(scale, dtype=torch.float32))

    @torch.no_grad()
    def act(self, episodes: Sequence[Episode]) -> list[Decision]:
        """The action of the highest score, or with `explore_with` one drawn by the scores."""
        logits, values = self.scores(episodes)
        entropies = torch.distributions.Categorical(logits=logits).entropy().tolist()
        returns = logits.double().cpu().numpy() * TEMPERATURE
        probabilities = self.exploration.probabilities(returns)
        decisions = []
        for row, episode in enumerate(episodes):
            action = self._draw(probabilities[row], episode)
            expert_idx = None if action == self.num_experts else action
            probability = float(probabilities[row, action])
            decisions.append(Decision(expert_idx, float(values[row]), entropies[row], probability))
        return decisions

    def _draw(self, probabilities: np.ndarray, episode: Episode) -> int:
        """An action by its probability (A,); always the same one in the same state."""
        if self.exploration.share == 0:
            return int(probabilities.argmax())
        digest = hashlib.sha256(episode.question.text.encode()).digest()
        question_number = int.from_bytes(digest[:8], "big")
        rng = np.random.default_rng([self.exploration_seed, question_number, len(episode.steps)])
        return int(rng.choice(len(probabilities), p=probabilities))

    def learned_state(self) -> dict[str, torch.Tensor]:
        """Everything learned, by name. A frozen encoder is left out: its source has it."""
        state = {"features.mean": self.encoder.mean, "features.scale": self.encoder.scale}
        state["actor.plan"] = self.actor.plan
        state["actor.scale"] = self.actor.scale
        state["actor.learned"] = self.actor.learned
        state["critic.weights"] = self.critic.weights
        state["costs"] = torch.as_tensor(self.reader.costs)
        state |= pack_model(self.reader.model, self.reader.candidates, "belief.")
        for name, tensor in state.items():
            state[name] = tensor.detach().cpu().contiguous()
        return state

    def settings(self) -> dict[str, Any]:
        """What of the agent is kept as JSON beside `learned_state`."""
        return {
            "tasks": self.reader.tasks,
            "alpha": self.reader.alpha,
            "alphas": self.actor.alphas.tolist(),
            "is_order": list(self.reader.planned.is_order),
            "can_stop": self.actor.can_stop,
            "spent": [list(astuple(one)) for one in self.spent],
            "num_spent": self.num_spent,
            "similarity": self.similarity,
        }

    def check_learned_state(self, state: dict[str, torch.Tensor], folder: Path) -> None:
        """Raises AgentError where a part is missing, or the reader has other inputs."""
        wanted = {"features.mean", "features.scale", "costs", *ACTOR_PARTS}
        if missing := sorted(wanted - state.keys()):
            raise AgentError(f"{folder}/model.safetensors: {missing[0]} is missing")
        if "belief.reader.mean" in state:
            check_inputs(len(state["belief.reader.mean"]), f"{folder}/model.safetensors")

    def load_learned_state(
        self, state: dict[str, torch.Tensor], settings: dict[str, Any] | None = None
    ) -> None:
        settings = settings or self.settings()
        features = {"mean": state["features.mean"], "scale": state["features.scale"]}
        self.encoder.load_state_dict(features, strict=False)
        packed = arrays_under("belief.", state)
        tasks = settings["tasks"]
        model, candidates = unpack_model(packed, self.num_experts, len(tasks))
        costs = state["costs"].numpy()
        reader = BeliefReader(
            model,
            candidates,
            tasks,
            costs,
            self.t_max,
            self.question_embeddings,
            settings["alpha"],
        )
        self.set_reader(reader, settings["alphas"], can_stop=settings["can_stop"])
        if "is_order" in settings:  # an older agent interpolates everywhere
            reader.planned = replace(reader.planned, is_order=tuple(settings["is_order"]))
        self.spent = [Spent(*one) for one in settings.get("spent", [])]
        self.num_spent = settings.get("num_spent", 0)
        self.similarity = settings.get("similarity")
        with torch.no_grad():
            for name in ACTOR_PARTS:
                owner, part = name.split(".")
                getattr(getattr(self, owner), part).copy_(state[name])
