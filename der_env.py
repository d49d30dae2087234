"""The decision process: an episode, the judge that ends it, and the environments around both.

`Episode` is one question on its route. `DEREnv` is a Gymnasium environment over one episode.
`training.vector_env` steps many with one call to the expert pool, and `rollout.play` walks the same
episodes outside training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol

import gymnasium as gym
import numpy as np

from backends.answer_store import Answer
from config import EnvConfig, RewardConfig
from experts import ExpertPool, Request
from metrics.agreement import group_question_answers
from metrics.registry import score_answers
from prompts import StateTokenizer
from questions import Question
from reward import Cost, charge, final_reward, paper_reward

STOP_REASONS = ("running", "satisfied", "t_max", "stopped")  # info["stop_reason"] is an index


@dataclass(frozen=True)
class Step:
    """Call t of a route."""

    expert_idx: int
    answer: Answer
    cost: Cost
    quality: float | None = None  # None where no reference is at hand
    p_stop: float | None = None  # the Terminator's probability that the answer is good enough


def best_answer(submits: str, groups: Sequence[int | None], estimates: Sequence[float]) -> int:
    """Index of the answer to submit, from agreement groups and estimates of all answers.

    `agreed`: the one that most answers agree with, itself included; an answer that nothing could be
    read in (None) agrees with none and yields to every other. `best`: the one estimated best. The
    other of the two breaks ties, then the latest wins.
    """

    def merit(idx: int) -> tuple[float, float, int]:
        group = groups[idx]
        votes = 0 if group is None else groups.count(group)
        if submits == "agreed":
            return votes, estimates[idx], idx
        return estimates[idx], votes, idx

    return max(range(len(groups)), key=merit)


@dataclass
class Episode:
    """A question on its route: what has been asked and answered. Holds no reference.

    `estimates` are the probabilities that the answers are right, as last estimated. `submissions`
    holds, after each call, the step whose answer would be submitted.
    """

    question: Question
    t_max: int
    steps: list[Step] = field(default_factory=list)
    stop_reason: str = "running"
    ignores_judge: bool = False  # to T_max, whatever the judge says
    submits: str = "last"  # see EnvConfig.submits
    alpha: float | None = None  # weight of cost; None: the one that the agent was asked with
    estimates: list[float] = field(default_factory=list)
    submissions: list[int] = field(default_factory=list)

    @property
    def answer(self) -> str | None:
        """The current answer, which is handed on; None before the first call."""
        return self.steps[-1].answer.text if self.steps else None

    @property
    def answers(self) -> list[str]:
        return [step.answer.text for step in self.steps]

    @property
    def groups(self) -> list[int | None]:
        """Which answers agree, as the question's metric reads them; None agrees with nothing."""
        return group_question_answers(self.question, self.answers)

    @property
    def submitted_idx(self) -> int:
        """The step whose answer is submitted; the last where nothing else was chosen."""
        return self.submissions[-1] if self.submissions else len(self.steps) - 1

    @property
    def submitted(self) -> Step:
        return self.steps[self.submitted_idx]

    def submitted_after(self, num_calls: int) -> Step:
        """The step whose answer would have been submitted after so many calls."""
        if not self.submissions:
            return self.steps[num_calls - 1]
        return self.steps[self.submissions[num_calls - 1]]

    @property
    def calls_left(self) -> int:
        return self.t_max - len(self.steps)

    @property
    def is_over(self) -> bool:
        return self.stop_reason != "running"

    @property
    def cost(self) -> Cost:
        return sum((step.cost for step in self.steps), Cost())

    def propose(self, expert_idx: int) -> Request:
        """The call that action `expert_idx` asks for: the bare question first, with the answers so
        far afterwards.
        """
        question = self.question
        earlier = tuple(self.answers[:-1])
        return Request(int(expert_idx), question.text, self.answer, earlier, question.context)

    def hear(self, step: Step) -> None:
        """Append an answered call, not judged yet."""
        self.steps.append(step)

    def choose_submission(self) -> None:
        """Choose among the answers heard. Of equals the latest."""
        if self.submits == "last":
            self.submissions.append(len(self.steps) - 1)
            return
        estimates = self.estimates or [0.0] * len(self.steps)
        self.submissions.append(best_answer(self.submits, self.groups, estimates))

    def settle(self, judgement: Judgement) -> None:
        """Note the judgement of the last call. Both ends are terminal: the horizon is finite and
        the agent can see it.
        """
        self.steps[-1] = replace(self.steps[-1], quality=judgement.quality, p_stop=judgement.p_stop)
        if judgement.is_satisfied and not self.ignores_judge:
            self.stop_reason = "satisfied"
        elif self.calls_left == 0:
            self.stop_reason = "t_max"

    def stop(self) -> None:
        """End the route by the agent's own action."""
        self.stop_reason = "stopped"


@dataclass(frozen=True)
class Judgement:
    """A judge's word on one answer: good enough to stop, and what it knows of quality or stop
    probability.
    """

    is_satisfied: bool
    quality: float | None = None
    p_stop: float | None = None


class Judge(Protocol):
    """Decides after every call whether the route may end. Only the oracle judge has references.

    The last step of each episode is new and not judged yet.
    """

    def judge(self, episodes: Sequence[Episode]) -> list[Judgement]: ...


class Reader(Protocol):
    """Estimates how likely each answer of an episode is right (`Episode.estimates`)."""

    def estimate(self, episodes: Sequence[Episode]) -> None: ...


class OracleJudge:
    """Knows the references: used in training, and in evaluation rows of kind `oracle` only.

    Satisfied when the answer that would be submitted has quality p0; never with p0 None.
    """

    def __init__(self, questions: Sequence[Question], p0: float | None, experts: Sequence[str]):
        self.p0 = p0
        self.experts = list(experts)  # their names, in the pool's order
        self._with_reference = {question.id: question for question in questions}

    def judge(self, episodes: Sequence[Episode]) -> list[Judgement]:
        questions = [self._with_reference[episode.question.id] for episode in episodes]
        answers = [episode.steps[-1].answer.text for episode in episodes]
        experts = [self.experts[episode.steps[-1].expert_idx] for episode in episodes]
        judgements = []
        qualities = score_answers(questions, answers, experts)
        for episode, quality in zip(episodes, qualities, strict=True):
            is_last = episode.submitted_idx == len(episode.steps) - 1
            submitted = quality if is_last else episode.submitted.quality
            is_satisfied = self.p0 is not None and submitted is not None and submitted >= self.p0
            judgements.append(Judgement(is_satisfied, quality=quality))
        return judgements


def step_episodes(
    episodes: Sequence[Episode],
    expert_idxs: Sequence[int],
    pool: ExpertPool,
    judge: Judge,
    reader: Reader | None = None,
) -> None:
    """Advance every episode by one call: one `pool.answer`, one `judge.judge` for all of them."""
    requests = []
    for episode, expert_idx in zip(episodes, expert_idxs, strict=True):
        requests.append(episode.propose(expert_idx))
    take_answers(episodes, expert_idxs, pool.answer(requests), pool, judge, reader)


def take_answers(
    episodes: Sequence[Episode],
    expert_idxs: Sequence[int],
    answers: Sequence[Answer],
    pool: ExpertPool,
    judge: Judge,
    reader: Reader | None = None,
) -> None:
    """Append an answered call to every episode: read by one `reader.estimate`, judged by one
    `judge.judge`.
    """
    for episode, expert_idx, answer in zip(episodes, expert_idxs, answers, strict=True):
        cost = pool.cost(int(expert_idx), answer)
        episode.hear(Step(int(expert_idx), answer, cost))
    if reader is not None and episodes:
        reader.estimate(episodes)
    for episode in episodes:
        episode.choose_submission()
    for episode, judgement in zip(episodes, judge.judge(episodes), strict=True):
        episode.settle(judgement)


def step_reward(episode: Episode, p0: float, reward: RewardConfig) -> float:
    """Reward of the episode's last call. Without references only its cost is known.

    Quality is that of the answer that would be submitted.
    """
    step_idx = len(episode.steps) - 1
    cost = charge(episode.steps[-1].cost, reward)
    quality = episode.submitted.quality
    if quality is None:
        return -reward.alpha * cost
    previous = 0.0
    if step_idx > 0:
        previous = episode.steps[episode.submissions[-2]].quality or 0.0
    if reward.kind == "paper":
        return paper_reward(
            step_idx,
            quality,
            previous,
            cost,
            is_satisfied=quality >= p0,
            is_last=episode.calls_left == 0,
            reward=reward,
        )
    return final_reward(quality, previous, cost, is_end=episode.is_over, reward=reward)


def stop_reward(episode: Episode, reward: RewardConfig) -> float:
    """Reward of the stop action: the quality of the submitted answer, less the potential that was
    paid for it before (`final`); nothing (`paper`).
    """
    if not episode.steps or episode.submitted.quality is None or reward.kind == "paper":
        return 0.0
    quality = episode.submitted.quality
    return final_reward(quality, quality, 0.0, is_end=True, reward=reward)


class Observer(Protocol):
    """What the agent sees: observation rows of episodes, and the space they lie in."""

    @property
    def space(self) -> gym.spaces.Box: ...

    def observe(self, episodes: Sequence[Episode]) -> np.ndarray: ...


class TextObserver:
    """The paper's state: question and current answer as token ids, see `StateTokenizer`."""

    def __init__(self, state_tokenizer: StateTokenizer):
        self.state_tokenizer = state_tokenizer
        length = StateTokenizer.HEADER + state_tokenizer.max_tokens
        self.space: gym.spaces.Box = gym.spaces.Box(0, np.iinfo(np.int32).max, (length,), np.int32)

    def observe(self, episodes: Sequence[Episode]) -> np.ndarray:
        return encode_states(episodes, self.state_tokenizer)


class DEREnv(gym.Env):
    """Dynamic ensemble reasoning: which LLM expert to ask next.

    ## Description
    A question and a pool of LLM experts. Each step asks one expert. From the second call on it is
    handed the current answer in a Knowledge Transfer Prompt, and its own answer becomes the current
    one (paper section 3).

    ## Action Space
    `Discrete(N)`: the expert to ask. A judge ends the episode. With `env.stop: action` it is
    `Discrete(N + 1)`, and the last action ends the episode.

    ## Observation Space
    That of the observer that is handed in. `TextObserver`: `Box(int32)` of shape (2 + max_tokens,):
    calls left, start of the answer segment, token ids of "question, current answer", padding.

    ## Rewards
    `reward.kind: final` pays the quality of the submitted answer once, minus alpha C at every step,
    with potential-based shaping; `paper` is the paper's reward. See `reward.py`. With a judge that
    holds no references only the cost is paid.

    ## Starting State
    A question drawn from `questions` by the environment's random generator, or
    `options={"question_idx": i}`. No answer yet.

    ## Episode End
    `terminated` when the judge is satisfied, by the stop action, or after T_max calls (a finite
    horizon that the agent can see); `info["stop_reason"]` tells which. A share `continue_past_p0`
    of the episodes runs on past the judge's satisfaction. Never `truncated`.

    ## Information
    `quality` (of the last answer; -1 before the first call or where unknown), `cost` (C of the
    step), `stop_reason` (index into `STOP_REASONS`), `question_idx`. Numeric only: texts belong to
    the route log.

    ## Arguments
    `pool`, `judge`, `observer` and `reader` are handed in. The reader, where there is one,
    estimates how likely each answer is right. `on_step(episode)` is called after every call.
    """

    # Gymnasium declares it as an attribute of each environment.
    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}  # type: ignore[misc]

    def __init__(
        self,
        questions: Sequence[Question],
        pool: ExpertPool,
        judge: Judge,
        observer: Observer,
        env: EnvConfig,
        reward: RewardConfig,
        on_step: Callable[[Episode], None] | None = None,
        reader: Reader | None = None,
    ):
        if not questions:
            raise ValueError("DEREnv: no questions to draw from")
        self.questions = [question.sealed() for question in questions]
        self.pool = pool
        self.judge = judge
        self.observer = observer
        self.reader = reader
        self.config = env
        self.reward_config = reward
        self.on_step = on_step
        self.action_space = gym.spaces.Discrete(len(pool) + (env.stop == "action"))
        self.observation_space = observer.space
        self.begin(0)

    def begin(self, question_idx: int, *, ignores_judge: bool = False) -> None:
        """Start an episode on a question; `ignores_judge` lets it run on to T_max."""
        self.question_idx = question_idx
        self.episode = Episode(
            self.questions[question_idx],
            self.config.t_max,
            ignores_judge=ignores_judge,
            submits=self.config.submits,
            alpha=self.reward_config.alpha,
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        drawn = int(self.np_random.integers(len(self.questions)))
        ignores_judge = bool(self.np_random.random() < self.config.continue_past_p0)
        self.begin((options or {}).get("question_idx", drawn), ignores_judge=ignores_judge)
        return self.observer.observe([self.episode])[0], self.info()

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if self.episode.is_over:
            raise gym.error.ResetNeeded("this episode has ended: call reset() first")
        advance([self], [int(action)])
        return self.observer.observe([self.episode])[0], *self.outcome(int(action))

    def is_stop(self, action: int) -> bool:
        """Whether an action ends the route instead of asking an expert."""
        return action == len(self.pool)

    def outcome(self, action: int) -> tuple[float, bool, bool, dict[str, Any]]:
        """Reward, terminated, truncated and info of the step just taken."""
        if self.is_stop(action):
            reward = stop_reward(self.episode, self.reward_config)
        else:
            reward = step_reward(self.episode, self.config.p0, self.reward_config)
        return reward, self.episode.is_over, False, self.info()

    def info(self) -> dict[str, Any]:
        """The same keys and types at every step: Tianshou's buffer keeps the type it saw first."""
        last = self.episode.steps[-1] if self.episode.steps else None
        return {
            "quality": -1.0 if last is None or last.quality is None else float(last.quality),
            "cost": 0.0 if last is None else float(charge(last.cost, self.reward_config)),
            "stop_reason": STOP_REASONS.index(self.episode.stop_reason),
            "question_idx": self.question_idx,
        }


def advance(envs: Sequence[DEREnv], actions: Sequence[int]) -> None:
    """One step of several environments that share a pool, a judge and a reader."""
    asking = []
    expert_idxs = []
    for env, action in zip(envs, actions, strict=True):
        if env.is_stop(action):
            env.episode.stop()
        else:
            asking.append(env)
            expert_idxs.append(action)
    if asking:
        first = envs[0]
        episodes = [env.episode for env in asking]
        step_episodes(episodes, expert_idxs, first.pool, first.judge, first.reader)
    for env in envs:
        if env.on_step is not None:
            env.on_step(env.episode)


def encode_states(episodes: Sequence[Episode], state_tokenizer: StateTokenizer) -> np.ndarray:
    """Observations (N, 2 + max_tokens) of the episodes' current states."""
    return state_tokenizer.encode(
        [e.question.text for e in episodes],
        [e.answer for e in episodes],
        [e.calls_left for e in episodes],
    )


gym.register("DER-v0", entry_point="der_env:DEREnv")
