"""The decision process: an episode, the judge that ends it, and the environments around both.

`Episode` is one question on its route. `DEREnv` is a Gymnasium environment over one episode,
`DERVectorEnv` steps many with one call to the expert pool; `rollout.play` walks the same episodes
outside training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import gymnasium as gym
import numpy as np
from tianshou.env import BaseVectorEnv
from tianshou.env.worker import DummyEnvWorker

from backends.answer_store import Answer
from config import EnvConfig, RewardConfig
from experts import ExpertPool, Request
from metrics.registry import score_answers
from prompts import StateTokenizer
from questions import Question, QuestionSampler
from reward import Cost, charge, final_reward, paper_reward

STOP_REASONS = ("running", "satisfied", "t_max")  # info["stop_reason"] is an index into these


@dataclass(frozen=True)
class Step:
    """Call t of a route."""

    expert_idx: int
    answer: Answer
    cost: Cost
    quality: float | None = None  # None where no reference is at hand
    p_stop: float | None = None  # the Terminator's probability that the answer is good enough


@dataclass
class Episode:
    """A question on its route: what has been asked and answered. Holds no reference."""

    question: Question
    t_max: int
    steps: list[Step] = field(default_factory=list)
    stop_reason: str = "running"
    runs_on: bool = False  # to T_max, whatever the judge says

    @property
    def answer(self) -> str | None:
        """The current answer; None before the first call."""
        return self.steps[-1].answer.text if self.steps else None

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
        """The call that action `expert_idx` asks for: the bare question first, with the current
        answer afterwards.
        """
        return Request(int(expert_idx), self.question.text, self.answer)

    def apply(self, step: Step, *, is_satisfied: bool) -> None:
        """Append an answered and judged call.

        Both ends are terminal: the horizon is finite and the agent can see it.
        """
        self.steps.append(step)
        if is_satisfied and not self.runs_on:
            self.stop_reason = "satisfied"
        elif self.calls_left == 0:
            self.stop_reason = "t_max"


@dataclass(frozen=True)
class Judgement:
    """A judge's word on one answer: good enough to stop, and what it knows of quality or stop
    probability.
    """

    is_satisfied: bool
    quality: float | None = None
    p_stop: float | None = None


class Judge(Protocol):
    """Decides after every call whether the answer is good enough.

    Only the oracle judge has references.
    """

    def judge(
        self, episodes: Sequence[Episode], expert_idxs: Sequence[int], answers: Sequence[str]
    ) -> list[Judgement]: ...


class OracleJudge:
    """Knows the references: used in training, and in evaluation rows of kind `oracle` only."""

    def __init__(self, questions: Sequence[Question], p0: float, experts: Sequence[str]):
        self.p0, self.experts = p0, list(experts)  # their names, in the pool's order
        self._with_reference = {question.id: question for question in questions}

    def judge(
        self, episodes: Sequence[Episode], expert_idxs: Sequence[int], answers: Sequence[str]
    ) -> list[Judgement]:
        qualities = score_answers(
            [self._with_reference[e.question.id] for e in episodes],
            answers,
            [self.experts[idx] for idx in expert_idxs],
        )
        return [Judgement(quality >= self.p0, quality=quality) for quality in qualities]


def step_episodes(
    episodes: Sequence[Episode], expert_idxs: Sequence[int], pool: ExpertPool, judge: Judge
) -> None:
    """Advance every episode by one call: one `pool.answer`, one `judge.judge` for all of them."""
    take_answers(
        episodes,
        expert_idxs,
        pool.answer(
            [episode.propose(idx) for episode, idx in zip(episodes, expert_idxs, strict=True)]
        ),
        pool,
        judge,
    )


def take_answers(
    episodes: Sequence[Episode],
    expert_idxs: Sequence[int],
    answers: Sequence[Answer],
    pool: ExpertPool,
    judge: Judge,
) -> None:
    """Append an answered call to every episode: one `judge.judge` for all of them."""
    judgements = judge.judge(episodes, expert_idxs, [answer.text for answer in answers])
    for episode, idx, answer, judgement in zip(
        episodes, expert_idxs, answers, judgements, strict=True
    ):
        step = Step(
            int(idx), answer, pool.cost(int(idx), answer), judgement.quality, judgement.p_stop
        )
        episode.apply(step, is_satisfied=judgement.is_satisfied)


def step_reward(episode: Episode, p0: float, reward: RewardConfig) -> float:
    """Reward of the episode's last call. Without references only its cost is known."""
    step, step_idx = episode.steps[-1], len(episode.steps) - 1
    cost = charge(step.cost, reward)
    if step.quality is None:
        return -reward.alpha * cost
    previous = episode.steps[-2].quality if step_idx else 0.0
    if reward.kind == "paper":
        return paper_reward(
            step_idx,
            step.quality,
            previous,
            cost,
            is_satisfied=step.quality >= p0,
            is_last=episode.calls_left == 0,
            reward=reward,
        )
    return final_reward(step.quality, previous, cost, is_end=episode.is_over, reward=reward)


class DEREnv(gym.Env):
    """Dynamic ensemble reasoning: which LLM expert to ask next.

    ## Description A question and a pool of LLM experts. Each step asks one expert; from the second
    call on it is handed the current answer in a Knowledge Transfer Prompt, and its own answer
    becomes the current one (paper section 3).

    ## Action Space
    `Discrete(N)`: the expert to ask. There is no stop action; a judge ends the episode.

    ## Observation Space `Box(int32)` of shape (2 + max_tokens,): calls left, start of the answer
    segment, token ids of "question, current answer", padding. See `prompts.StateTokenizer`.

    ## Rewards `reward.kind: final` pays the quality of the final answer once, minus alpha C at
    every step, with potential-based shaping; `paper` is the paper's reward. See `reward.py`. With a
    judge that holds no references only the cost is paid.

    ## Starting State A question drawn from `questions` by the environment's random generator, or
    `options={"question_idx": i}`. No answer yet.

    ## Episode End `terminated` when the judge is satisfied or after T_max calls (a finite horizon
    that the agent can see); `info["stop_reason"]` tells which. A share `continue_past_p0` of the
    episodes runs on past the judge's satisfaction. Never `truncated`.

    ## Information `quality` (-1 before the first call or where unknown), `cost` (C of the step),
    `stop_reason` (index into `STOP_REASONS`), `question_idx`. Numeric only: texts belong to the
    route log.

    ## Arguments `pool`, `judge` and `state_tokenizer` are handed in. `on_step(episode)` is called
    after every step.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}

    def __init__(
        self,
        questions: Sequence[Question],
        pool: ExpertPool,
        judge: Judge,
        state_tokenizer: StateTokenizer,
        env: EnvConfig,
        reward: RewardConfig,
        on_step: Callable[[Episode], None] | None = None,
    ):
        if not questions:
            raise ValueError("DEREnv: no questions to draw from")
        self.questions = [question.sealed() for question in questions]
        (
            self.pool,
            self.judge,
            self.state_tokenizer,
            self.config,
            self.reward_config,
            self.on_step,
        ) = (pool, judge, state_tokenizer, env, reward, on_step)
        self.action_space = gym.spaces.Discrete(len(pool))
        length = StateTokenizer.HEADER + state_tokenizer.max_tokens
        self.observation_space = gym.spaces.Box(0, np.iinfo(np.int32).max, (length,), np.int32)
        self.begin(0)

    def begin(self, question_idx: int, *, runs_on: bool = False) -> None:
        """Start an episode on a question; `runs_on` makes it ignore the judge's satisfaction."""
        self.question_idx = question_idx
        self.episode = Episode(self.questions[question_idx], self.config.t_max, runs_on=runs_on)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        drawn = int(self.np_random.integers(len(self.questions)))
        runs_on = bool(self.np_random.random() < self.config.continue_past_p0)
        self.begin((options or {}).get("question_idx", drawn), runs_on=runs_on)
        return encode_states([self.episode], self.state_tokenizer)[0], self.info()

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if self.episode.is_over:
            raise gym.error.ResetNeeded("this episode has ended: call reset() first")
        step_episodes([self.episode], [int(action)], self.pool, self.judge)
        return encode_states([self.episode], self.state_tokenizer)[0], *self.outcome()

    def outcome(self) -> tuple[float, bool, bool, dict[str, Any]]:
        """Reward, terminated, truncated and info of the step just taken."""
        if self.on_step is not None:
            self.on_step(self.episode)
        return (
            step_reward(self.episode, self.config.p0, self.reward_config),
            self.episode.is_over,
            False,
            self.info(),
        )

    def info(self) -> dict[str, Any]:
        """The same keys and types at every step: Tianshou's buffer keeps the type it saw first."""
        last = self.episode.steps[-1] if self.episode.steps else None
        return {
            "quality": -1.0 if last is None or last.quality is None else float(last.quality),
            "cost": 0.0 if last is None else float(charge(last.cost, self.reward_config)),
            "stop_reason": STOP_REASONS.index(self.episode.stop_reason),
            "question_idx": self.question_idx,
        }


def encode_states(episodes: Sequence[Episode], state_tokenizer: StateTokenizer) -> np.ndarray:
    """Observations (N, 2 + max_tokens) of the episodes' current states."""
    return state_tokenizer.encode(
        [e.question.text for e in episodes],
        [e.answer for e in episodes],
        [e.calls_left for e in episodes],
    )


class DERVectorEnv(BaseVectorEnv):
    """Many DEREnvs for Tianshou, stepped with one pool call, one judgement and one tokenisation for
    all.

    Questions come from one sampler without replacement. An environment that is reset before it was
    stepped gives its question back: Tianshou resets more often than it plays.
    """

    def __init__(self, envs: Sequence[DEREnv], rng: np.random.Generator):
        super().__init__([lambda env=env: env for env in envs], DummyEnvWorker)
        self.envs = list(envs)
        self.rng = rng  # decides which episodes run on past p0
        self.sampler = QuestionSampler(len(envs[0].questions), rng)
        self._drawn: dict[int, int] = {}  # environment -> question handed out but not acted on

    def reset(self, env_id: Any = None, **kwargs: Any) -> tuple[np.ndarray, np.ndarray]:
        """Observations and infos of the chosen environments, each on its next question."""
        ids = [int(i) for i in self._wrap_id(env_id)]
        for i in ids:
            if i in self._drawn:
                self.sampler.give_back(self._drawn.pop(i))
        for i in ids:
            self._drawn[i] = self.sampler.draw()
            self.envs[i].begin(self._drawn[i])
        return self._observe(ids), self._infos(ids)

    def step(
        self, action: Any, id: Any = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """One step of the chosen environments; `action` in the order of `id`."""
        ids = [int(i) for i in self._wrap_id(id)]
        envs = [self.envs[i] for i in ids]
        for i, env in zip(ids, envs, strict=True):
            if self._drawn.pop(i, None) is not None:
                env.episode.runs_on = bool(self.rng.random() < env.config.continue_past_p0)
        step_episodes(
            [env.episode for env in envs], [int(a) for a in action], envs[0].pool, envs[0].judge
        )
        rewards, terminated, truncated, _ = zip(*(env.outcome() for env in envs), strict=True)
        return (
            self._observe(ids),
            np.array(rewards),
            np.array(terminated),
            np.array(truncated),
            self._infos(ids),
        )

    def seed(self, seed: int | list[int] | None = None) -> list[list[int] | None]:
        raise NotImplementedError(
            "seed the generator handed to DERVectorEnv instead: all environments share its question"
            " sampler"
        )

    def sampler_state(self) -> dict[str, Any]:
        """The question sampler as the next reset of all environments will find it."""
        state = self.sampler.state()
        state["waiting"] += [self._drawn[i] for i in range(len(self.envs)) if i in self._drawn]
        return state

    def _observe(self, ids: list[int]) -> np.ndarray:
        return encode_states([self.envs[i].episode for i in ids], self.envs[0].state_tokenizer)

    def _infos(self, ids: list[int]) -> np.ndarray:
        infos = np.empty(len(ids), dtype=object)
        infos[:] = [{**self.envs[i].info(), "env_id": i} for i in ids]
        return infos


gym.register("DER-v0", entry_point="der_env:DEREnv")
