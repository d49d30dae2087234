"""The decision process: Gymnasium's contract, rewards by hand, one pool call per vector step, every
question once per pass.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from tianshou.data import Collector, VectorReplayBuffer
from transformers import AutoTokenizer

from agent import build_agent
from config import AgentConfig, EnvConfig, PPOConfig, RewardConfig
from der_env import STOP_REASONS, DEREnv, Episode, OracleJudge, TextObserver
from experts import ExpertPool, Request
from prompts import StateTokenizer
from questions import Question
from runtime.errors import ReferenceSealedError
from training.ppo import build_ppo
from training.vector_env import DERVectorEnv

QUESTIONS = [
    Question(f"q{i}", f"question {letter}", _reference=letter)
    for i, letter in enumerate("abcdefgh")
]
NEVER_RIGHT = EnvConfig(t_max=3, continue_past_p0=0.0)
FREE = RewardConfig(alpha=0.0)


def echo(question: str, previous: str | None) -> str:
    """Always right: the reference of `question x` is `x`."""
    return question[-1]


def wrong(question: str, previous: str | None) -> str:
    return "no"


class CountedPool:
    """Stands in front of a pool and keeps the requests of every `answer` call."""

    def __init__(self, pool: ExpertPool):
        self.pool, self.calls = pool, []

    def __len__(self) -> int:
        return len(self.pool)

    def __getattr__(self, name: str) -> object:
        return getattr(self.pool, name)

    def answer(self, requests: Sequence[Request]) -> list:
        self.calls.append(list(requests))
        return self.pool.answer(requests)


@pytest.fixture
def state_tokenizer(bert_encoder: Path) -> StateTokenizer:
    return StateTokenizer(AutoTokenizer.from_pretrained(bert_encoder), 32)


@pytest.fixture
def make_env(make_pool: Callable, state_tokenizer: StateTokenizer) -> Callable[..., DEREnv]:
    """`make_env(experts, env=, reward=, questions=)`; the oracle judges."""

    def make(
        experts: Sequence,
        env: EnvConfig = NEVER_RIGHT,
        reward: RewardConfig = FREE,
        questions: Sequence[Question] = QUESTIONS,
        **options: object,
    ) -> DEREnv:
        pool = make_pool(experts)
        return DEREnv(
            questions,
            pool,
            OracleJudge(questions, env.p0, pool.names),
            TextObserver(state_tokenizer),
            env,
            reward,
            **options,
        )

    return make


@pytest.fixture
def make_vector_env(make_env: Callable) -> Callable[..., tuple[DERVectorEnv, CountedPool]]:
    def make(
        num_envs: int, *arguments: object, **options: object
    ) -> tuple[DERVectorEnv, CountedPool]:
        envs = [make_env(*arguments, **options) for _ in range(num_envs)]
        pool = CountedPool(envs[0].pool)
        for env in envs:
            env.pool = pool
        return DERVectorEnv(envs, np.random.default_rng(0)), pool

    return make


@pytest.mark.parametrize("t_max", [1, 3])
@pytest.mark.parametrize("num_experts", [1, 2])
def test_gymnasium_finds_nothing_to_warn_of(
    make_env: Callable, t_max: int, num_experts: int
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(
            make_env([echo, wrong][:num_experts], EnvConfig(t_max=t_max, continue_past_p0=0.5)),
            skip_render_check=True,
        )


def test_gym_make_builds_a_checked_environment(
    make_pool: Callable, state_tokenizer: StateTokenizer
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pool = make_pool([echo, wrong])
        judge = OracleJudge(QUESTIONS, 1.0, pool.names)
        env = gym.make(
            "DER-v0",
            questions=QUESTIONS,
            pool=pool,
            judge=judge,
            observer=TextObserver(state_tokenizer),
            env=NEVER_RIGHT,
            reward=FREE,
        )
        check_env(env.unwrapped, skip_render_check=True)
        env.reset(seed=0)
        # Through Gymnasium's own passive checker
        _, reward, terminated, truncated, info = env.step(0)
    assert (reward, terminated, truncated, STOP_REASONS[info["stop_reason"]]) == (
        1.0,
        True,
        False,
        "satisfied",
    )


def test_two_environments_on_one_seed_agree(make_env: Callable) -> None:
    config, runs = EnvConfig(t_max=3, continue_past_p0=0.5), []
    for env in (make_env([echo, wrong], config), make_env([echo, wrong], config)):
        obs, info = env.reset(seed=7)
        seen = [obs.tolist(), info]
        for action in np.random.default_rng(0).integers(2, size=60):
            obs, reward, terminated, truncated, info = env.step(action)
            seen += [obs.tolist(), reward, terminated, truncated, info]
            if terminated:
                seen.append(env.reset()[0].tolist())
        runs.append(seen)
    assert runs[0] == runs[1]
    # Different questions were drawn
    assert len({info["question_idx"] for info in runs[0] if isinstance(info, dict)}) > 3


@pytest.mark.parametrize("expert, reason", [(echo, "satisfied"), (wrong, "t_max")])
def test_one_call_from_a_pool_of_one_ends_as_terminated(
    make_env: Callable, expert: Callable, reason: str
) -> None:
    env = make_env([expert], EnvConfig(t_max=1))
    env.reset(seed=0)
    _, _, terminated, truncated, info = env.step(0)
    assert terminated and not truncated
    assert STOP_REASONS[info["stop_reason"]] == reason
    with pytest.raises(gym.error.ResetNeeded):
        env.step(0)


@pytest.mark.parametrize("share, calls, reason", [(0.0, 1, "satisfied"), (1.0, 3, "t_max")])
def test_a_share_of_the_episodes_runs_on_past_a_good_answer(
    make_env: Callable, make_vector_env: Callable, share: float, calls: int, reason: str
) -> None:
    config = EnvConfig(t_max=3, continue_past_p0=share)
    env = make_env([echo], config)
    env.reset(seed=0)
    terminated = False
    while not terminated:
        _, _, terminated, _, info = env.step(0)
    assert (len(env.episode.steps), STOP_REASONS[info["stop_reason"]]) == (calls, reason)
    venv, pool = make_vector_env(2, [echo], config)
    venv.reset()
    while not venv.envs[0].episode.is_over:
        venv.step([0, 0])
    assert [len(e.episode.steps) for e in venv.envs] == [calls, calls] == [len(pool.calls)] * 2


def rewards_of(env: DEREnv, actions: Sequence[int]) -> list[float]:
    env.reset(seed=0, options={"question_idx": 0})
    out = [env.step(action) for action in actions]
    assert [step[2] for step in out] == [False] * (len(actions) - 1) + [True]
    return [step[1] for step in out]


def test_the_papers_reward_of_an_episode_by_hand(make_env: Callable) -> None:
    # Experts cost 1 and 2 billion parameters; alpha .1, beta 5, bonus 2. The second call turns
    # quality 0 into 1.
    reward = RewardConfig(kind="paper", alpha=0.1, beta=5.0, gamma_bonus=2.0, discount=0.95)
    # t=0: P - alpha C = 0 - .1;  t=1: P + beta (1 - 0) - alpha C + bonus = 1 + 5 - .2 + 2
    assert rewards_of(make_env([wrong, echo], reward=reward), [0, 1]) == pytest.approx([-0.1, 7.8])
    # Never right: -.1, then 0 + 0 - .1, then 0 + 0 - .1 - 2 for reaching T_max
    assert rewards_of(make_env([wrong, echo], reward=reward), [0, 0, 0]) == pytest.approx(
        [-0.1, -0.1, -2.1]
    )
    # Right at once: 1 - .2 + 2
    assert rewards_of(make_env([wrong, echo], reward=reward), [1]) == pytest.approx([2.8])


def test_the_final_reward_of_an_episode_by_hand(make_env: Callable) -> None:
    always_on = EnvConfig(t_max=3, continue_past_p0=1.0)
    # Discount .5, alpha .1: right, wrong, right again, at costs 2, 1, 2. Phi is P of the current
    # answer, 0 before and at the end. t=0: -.2 + .5 x 1 - 0 = .3;  t=1: -.1 + .5 x 0 - 1 = -1.1;
    # t=2: 1 - .2 + 0 - 0 = .8
    reward = RewardConfig(kind="final", alpha=0.1, discount=0.5)
    assert rewards_of(make_env([wrong, echo], always_on, reward), [1, 0, 1]) == pytest.approx(
        [0.3, -1.1, 0.8]
    )
    # At discount 1 the shaping cancels: the sum is 1 - .1 x (2 + 1 + 2)
    assert sum(
        rewards_of(make_env([wrong, echo], always_on, RewardConfig(alpha=0.1)), [1, 0, 1])
    ) == pytest.approx(0.5)


def test_an_environment_holds_no_references_and_a_judge_cannot_get_at_them(
    make_env: Callable,
) -> None:
    class CheatingJudge:
        def judge(self, episodes: Sequence) -> list:
            return [episode.question.reference for episode in episodes]

    env = make_env([echo])
    env.judge = CheatingJudge()
    env.reset(seed=0)
    with pytest.raises(ReferenceSealedError):
        env.step(0)
    assert [vars(question)["_reference"] for question in env.questions] == [None] * len(QUESTIONS)


def test_a_vector_step_is_one_pool_call_for_any_subset_in_any_order(
    make_vector_env: Callable, make_env: Callable
) -> None:
    venv, pool = make_vector_env(4, [wrong, echo])
    obs, infos = venv.reset()
    texts = [env.episode.question.text for env in venv.envs]
    assert (
        obs.dtype == np.int32
        and infos.dtype == object
        and [info["env_id"] for info in infos] == [0, 1, 2, 3]
    )
    keys = infos[0].keys()

    obs, rewards, terminated, truncated, infos = venv.step([0, 1, 0], id=[3, 1, 0])
    assert [[request.question for request in call] for call in pool.calls] == [
        [texts[3], texts[1], texts[0]]
    ]
    assert [request.expert_idx for request in pool.calls[0]] == [0, 1, 0]
    assert (
        rewards.tolist() == [0.0, 1.0, 0.0]
        and terminated.tolist() == [False, True, False]
        and not truncated.any()
    )
    assert infos.dtype == object and [info["env_id"] for info in infos] == [3, 1, 0]
    assert all(
        info.keys() == keys and {type(info[k]) for k in keys} <= {int, float} for info in infos
    )
    calls_left = obs[:, 0].tolist()
    # Environment 2 was not touched
    assert calls_left == [2, 2, 2] and venv.envs[2].episode.calls_left == 3

    _, infos = venv.reset([1])
    assert [info["env_id"] for info in infos] == [1] and infos[0].keys() == keys
    venv.step(np.array([0, 0, 0, 0]))
    assert len(pool.calls) == 2 and len(pool.calls[1]) == 4
    assert [request.previous_answer for request in pool.calls[1]] == ["no", None, None, "no"]


def test_a_vector_environment_pays_and_shows_what_single_ones_do(
    make_vector_env: Callable, make_env: Callable
) -> None:
    reward = RewardConfig(kind="paper", alpha=0.1)
    venv, _ = make_vector_env(3, [wrong, echo], reward=reward)
    venv.reset()
    obs, rewards, *_ = venv.step([0, 1, 0])
    for i in range(3):
        single = make_env([wrong, echo], reward=reward)
        single.reset(options={"question_idx": venv.envs[i].question_idx})
        expected_obs, expected_reward, *_ = single.step([0, 1, 0][i])
        assert np.array_equal(obs[i], expected_obs) and rewards[i] == pytest.approx(expected_reward)


def test_a_reset_before_a_step_gives_the_question_back(make_vector_env: Callable) -> None:
    venv, pool = make_vector_env(2, [wrong], EnvConfig(t_max=1))
    for _ in range(4):  # 4 x 2 = the 8 questions, each reset three times over, as Tianshou does
        venv.reset()
        venv.reset([1])
        venv.reset()
        venv.step([0, 0])
    assert sorted(request.question for call in pool.calls for request in call) == [
        question.text for question in QUESTIONS
    ]


@pytest.mark.slow
@pytest.mark.parametrize("num_envs, per_collect", [(1, 4), (3, 4), (4, 8), (5, 5), (8, 8)])
def test_tianshou_plays_every_question_once_per_pass(
    make_vector_env: Callable, bert_encoder: Path, num_envs: int, per_collect: int
) -> None:
    played: list[str] = []
    slow = {question.text for question in QUESTIONS[::3]}  # episodes of different lengths

    def sometimes(question: str, previous: str | None) -> str:
        return "no" if question in slow and previous is None else question[-1]

    def on_step(episode: Episode) -> None:
        if episode.is_over:
            played.append(episode.question.id)

    venv, _ = make_vector_env(num_envs, [sometimes], on_step=on_step)
    agent = build_agent(AgentConfig(encoder=str(bert_encoder), max_tokens=32), 1, 3)
    policy = build_ppo(agent, PPOConfig(), 1.0, None).policy
    collector = Collector(policy, venv, VectorReplayBuffer(100 * num_envs, num_envs))
    passes = 15
    while len(played) < passes * len(QUESTIONS):
        collector.reset(reset_stats=False)  # one more reset than Tianshou's own, as in training
        collector.collect(n_episode=per_collect)
    # Where a pass ends, a question of the next may be played before the last ones of this; the
    # counts never drift apart by more.
    times = [played.count(question.id) for question in QUESTIONS]
    assert passes - 1 <= min(times) and max(times) <= passes + 1, times


def test_a_saved_sampler_goes_on_with_the_same_questions(make_vector_env: Callable) -> None:
    def played(venv: DERVectorEnv, steps: int) -> list[list[int]]:
        out = []
        for _ in range(steps):
            venv.reset()
            out.append([env.question_idx for env in venv.envs])
            venv.step([0, 0, 0])
        return out

    config = EnvConfig(t_max=1, continue_past_p0=0.5)
    one, _ = make_vector_env(3, [wrong], config)
    other, _ = make_vector_env(3, [wrong], config)
    played(one, 2)
    one.reset()  # questions handed out but not acted on, as after a collection
    other.sampler.load_state(one.sampler_state())
    assert played(other, 7) == played(one, 7)
