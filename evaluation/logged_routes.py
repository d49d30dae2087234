"""Logged routes as a target policy sees them: routes.jsonl to `off_policy.LoggedRoute`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from backends.answer_store import Answer
from belief.exploration import GREEDY, Exploration
from belief.regression import sigmoid
from belief_agent import BeliefAgent
from config import Config
from der_env import Episode, Step
from evaluation.off_policy import LoggedRoute
from evaluation.route_log import Record
from questions import Question, text_key
from reward import Cost, charge
from runtime.errors import ReportError
from terminator import EstimateTerminator

LOG_PROBABILITIES = "log it with probabilities: python scripts/explore_run.py --run RUN"


@dataclass(frozen=True)
class TargetPolicy:
    """The policy to estimate: an agent over beliefs, greedy or exploring."""

    agent: BeliefAgent
    terminator: EstimateTerminator
    exploration: Exploration = GREEDY

    def judge(self, states: Sequence[Episode]) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities of all actions (B, K + 1), the last to stop, and their values (B, K + 1).

        A value is the return that the agent expects after the action, what was spent before aside.
        """
        num_experts = self.agent.num_experts
        scores = self.agent.promised(states)
        estimates = estimates_of(states, self.agent)
        probabilities = np.zeros((len(states), num_experts + 1))
        probabilities[:, : scores.shape[1]] = self.exploration.probabilities(scores)
        if not self.agent.actor.can_stop:
            probabilities[estimates >= self.terminator.threshold] = np.eye(num_experts + 1)[-1]
        values = np.repeat(estimates[:, None], num_experts + 1, axis=1)
        values[:, :num_experts] += self._gains(states, scores[:, :num_experts], estimates)
        return probabilities, values

    def _gains(
        self, states: Sequence[Episode], scores: np.ndarray, estimates: np.ndarray
    ) -> np.ndarray:
        """What each call gains in return (B, K), by the agent's scores (B, K).

        The scores of a fixed order only rank. There a call gains what the expert's prior is above
        the estimate (B,) of what would be submitted, minus its cost; calls after it are left out.
        """
        reader = self.agent.reader
        alphas = reader.alphas_of(states)
        is_order = np.array([reader.planned.follows_order(alpha) for alpha in alphas])
        priors = sigmoid(reader.priors([state.question for state in states]))
        gains = np.maximum(priors - estimates[:, None], 0.0) - alphas[:, None] * reader.costs
        return np.where(is_order[:, None], gains, scores)


def estimates_of(states: Sequence[Episode], agent: BeliefAgent) -> np.ndarray:
    """The agent's estimate (B,) of what it would submit in each state; 0 before the first call."""
    agent.reader.estimate(states)
    estimates = np.zeros(len(states))
    for row, state in enumerate(states):
        if state.steps:
            state.choose_submission()
            estimates[row] = state.estimates[state.submitted_idx]
    return estimates


class LogReader:
    """Reads the lines of a route log for a target policy, which may submit another answer."""

    def __init__(
        self,
        target: TargetPolicy,
        config: Config,
        experts: Sequence[str],
        questions: Sequence[Question],
    ):
        self.target = target
        self.config = config
        self.experts = list(experts)
        self.t_max = config.env.t_max
        self.known = {text_key(question.text): question.sealed() for question in questions}

    def read(self, records: Sequence[Record]) -> list[LoggedRoute]:
        """Raises ReportError for a line without probabilities, or of other experts or questions."""
        states: list[Episode] = []
        starts = []
        for record in records:
            starts.append(len(states))
            states += self._states(record)
        probabilities, values = self.target.judge(states)
        routes = []
        for record, start in zip(records, starts, strict=True):
            end = start + len(record["steps"]) + 1
            rows = slice(start, end)
            route = self._route(record, states[end - 1], probabilities[rows], values[rows])
            routes.append(route)
        return routes

    def _check_end(self, record: Record) -> None:
        """Raises ReportError where a route ran out of calls that this run would still have."""
        num_calls = len(record["steps"])
        if record["stop_reason"] == "t_max" and num_calls < self.t_max:
            raise ReportError(
                f"question {record['question']}: the logged policy had {num_calls} calls, the run"
                f" has {self.t_max}: evaluate it with --env.t_max {num_calls}"
            )

    def _states(self, record: Record) -> list[Episode]:
        """The states before every call of a route, and after the last."""
        question = self.known.get(text_key(record["text"]))
        if question is None:
            raise ReportError(f"question {record['question']} of the log is not one of the run's")
        steps = [self._step(step, record) for step in record["steps"]]
        if len(steps) > self.t_max:
            raise ReportError(
                f"question {record['question']}: {len(steps)} calls, the run makes {self.t_max} at"
                " most"
            )
        states = []
        for num_calls in range(len(steps) + 1):
            state = Episode(question, self.t_max, submits=self.config.env.submits)
            state.steps = steps[:num_calls]
            states.append(state)
        return states

    def _step(self, step: Record, record: Record) -> Step:
        name = step["expert"]
        if name not in self.experts:
            raise ReportError(
                f"question {record['question']}: expert {name} is not in the run's pool"
            )
        answer = Answer(
            step["answer"],
            0,
            0,
            0.0,
            logprob_mean=step.get("logprob_mean"),
            logprob_min=step.get("logprob_min"),
        )
        cost = Cost(**step["cost"])
        return Step(self.experts.index(name), answer, cost, step["quality"])

    def _route(
        self, record: Record, last: Episode, probabilities: np.ndarray, values: np.ndarray
    ) -> LoggedRoute:
        """probabilities, values: rows of the states of `_states`; last: the last of these."""
        self._check_end(record)
        actions = [step.expert_idx for step in last.steps]
        logged = [step.get("probability") for step in record["steps"]]
        reward = self.config.reward
        rewards = [-reward.alpha * charge(step.cost, reward) for step in last.steps]
        quality = last.submitted.quality or 0.0
        if len(actions) == self.t_max:
            rewards[-1] += quality
        else:
            actions.append(len(self.experts))
            logged.append(record.get("stop_probability"))
            rewards.append(quality)
        if None in logged or 0 in logged:
            raise ReportError(
                f"question {record['question']}: the log does not say with which probability each"
                f" step was taken, so no other policy can be estimated from it; {LOG_PROBABILITIES}"
            )
        rows = np.arange(len(actions))
        means = (probabilities * np.where(probabilities > 0, values, 0.0)).sum(axis=1)
        return LoggedRoute(
            logged=np.array(logged, dtype=np.float64),
            target=probabilities[rows, actions],
            reward=np.array(rewards),
            action_value=values[rows, actions],
            state_value=means[rows],
        )
