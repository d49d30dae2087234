"""Which answer of a route counts: by hand, in rewards, judges, environments and route trees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from transformers import AutoTokenizer

from backends.answer_store import Answer
from config import Config, EnvConfig, RewardConfig
from der_env import DEREnv, Episode, Judgement, OracleJudge, Step, TextObserver, step_reward
from evaluation.route_log import PolicyRoutes, route_records
from evaluation.route_tree import grow, optimal_routes, optimal_values
from prompts import StateTokenizer
from questions import Question
from reward import Cost
from rollout import Decision, NeverSatisfied, Route, play, score_routes

SUM = Question("sum", "What is 3 + 4?", metric="numeric_match", _reference="7")


def made_episode(
    texts: Sequence[str],
    *,
    estimates: Sequence[float] | None = None,
    submits: str = "agreed",
    t_max: int = 9,
) -> Episode:
    """Call t is answered by expert t with texts[t] and costs t + 1; 7 is right."""
    episode = Episode(SUM, t_max, submits=submits)
    for idx, text in enumerate(texts):
        episode.hear(Step(idx, Answer(text, 0, 0, 0.0), Cost(idx + 1.0)))
        if estimates is not None:
            episode.estimates = list(estimates[: idx + 1])
        episode.choose_submission()
        episode.settle(Judgement(False, quality=float("7" in text)))
    return episode


# The hand-made routes: answers, estimates of each, index of the answer that counts.
BY_HAND = [
    (["7"], None, 0),
    (["7", "8"], None, 1),  # no two agree: the latest
    (["7", "8"], [0.6, 0.4], 0),  # no two agree: the one estimated best
    (["7", "8"], [0.5, 0.5], 1),  # equal estimates: the latest
    (["It is 7.", "8", "7.0 of them"], None, 2),  # 7 and 7.0 agree; the latest of the two
    (["It is 7.", "8", "7.0 of them"], [0.9, 0.99, 0.1], 0),  # agreement goes before estimates
    (["7", "8", "7", "8"], None, 3),  # two and two: the latest
    (["7", "8", "7", "8"], [0.2, 0.1, 0.7, 0.6], 2),  # two and two: the best estimate of the four
    (["7", "I do not know", "no idea"], None, 0),  # what cannot be read agrees with nothing
    (["no", "no"], None, 1),  # not even with its copy; of two unreadable ones the latest
    (["no", "7"], [0.9, 0.1], 1),  # and it yields to an answer, however sure it looks
]


@pytest.mark.parametrize(("texts", "estimates", "expected"), BY_HAND)
def test_the_answer_most_agreed_upon_counts(
    texts: list[str], estimates: list[float] | None, expected: int
) -> None:
    episode = made_episode(texts, estimates=estimates)
    assert episode.submitted is episode.steps[expected]
    assert Route(episode, []).quality == float("7" in texts[expected])


def test_the_last_answer_counts_in_the_papers_setting() -> None:
    for texts, estimates, _ in BY_HAND:
        episode = made_episode(texts, estimates=estimates, submits="last")
        assert episode.submitted is episode.steps[-1]


def test_the_answer_estimated_best_counts_and_agreement_breaks_ties() -> None:
    surest = made_episode(["7", "8", "8"], estimates=[0.9, 0.5, 0.5], submits="best")
    assert surest.submitted_idx == 0
    equal = made_episode(["8", "7", "8", "9"], estimates=[0.5, 0.5, 0.5, 0.5], submits="best")
    assert equal.submitted_idx == 2  # two agree on 8; the latest of them


def test_the_return_is_that_of_the_submitted_answer_and_of_every_call() -> None:
    route = Route(made_episode(["7", "7", "8"]), [Decision(0)] * 3)
    # 1 - .1 x (1 + 2 + 3)
    assert route.return_under(RewardConfig(alpha=0.1)) == pytest.approx(0.4)
    cut = Route(made_episode(["7", "8", "8"]), [Decision(0)] * 3).cut(1)
    assert cut.quality == 1.0 and cut.return_under(RewardConfig(alpha=0.1)) == pytest.approx(0.9)


def test_what_counts_after_each_call_is_what_would_count_had_the_route_ended_there() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        texts = [str(number) for number in rng.integers(0, 3, 6)]
        estimates = rng.integers(0, 3, 6).tolist()
        episode = made_episode(texts, estimates=estimates)
        for number in range(1, 7):
            shorter = made_episode(texts[:number], estimates=estimates[:number])
            assert episode.submissions[number - 1] == shorter.submitted_idx


# --- rewards and judges ---


def test_rewards_pay_the_submitted_answer_by_hand() -> None:
    reward = RewardConfig(kind="final", alpha=0.1, discount=0.5)
    # The first call: 0.5 x 1 (potential) - 0 - .1 x 1
    assert step_reward(made_episode(["7"]), 1.0, reward) == pytest.approx(0.4)
    # The second call, no two agree, the latest counts: 0.5 x 0 - 1 - .1 x 2
    assert step_reward(made_episode(["7", "8"]), 1.0, reward) == pytest.approx(-1.2)
    # The first estimated best: it counts on, and the potential stays: 0.5 x 1 - 1 - .1 x 2
    surer = made_episode(["7", "8"], estimates=[0.9, 0.1])
    assert step_reward(surer, 1.0, reward) == pytest.approx(-0.7)
    # The end after three calls: 7 counts, though the last answer is wrong: 1 - 1 - .1 x 3
    ended = made_episode(["7", "7", "8"], t_max=3)
    assert ended.is_over and step_reward(ended, 1.0, reward) == pytest.approx(-0.3)


def test_the_papers_reward_goes_by_the_submitted_answer_too() -> None:
    reward = RewardConfig(kind="paper", alpha=0.1, beta=5.0, gamma_bonus=2.0)
    # 7, 7, 8: P = 1 before and after the third call, p0 reached: 1 + 5 x 0 - .1 x 3 + 2
    assert step_reward(made_episode(["7", "7", "8"]), 1.0, reward) == pytest.approx(2.7)


def test_the_oracle_is_satisfied_when_the_submitted_answer_is_right() -> None:
    judge = OracleJudge([SUM], 1.0, [f"e{idx}" for idx in range(4)])
    cases = [
        (["7", "7", "8"], True),  # 7 counts on
        (["8", "8", "7"], False),  # a right answer that does not count
        (["8", "7"], True),
        (["7"], True),
    ]
    for texts, satisfied in cases:
        (word,) = judge.judge([made_episode(texts)])
        assert word.is_satisfied is satisfied and word.quality == float(texts[-1] == "7")


# --- environment and play ---


@pytest.fixture
def observer(bert_encoder: Path) -> TextObserver:
    return TextObserver(StateTokenizer(AutoTokenizer.from_pretrained(bert_encoder), 32))


def test_gymnasiums_checker_finds_nothing_where_agreement_decides(
    make_pool: Callable, observer: TextObserver
) -> None:
    env = EnvConfig(t_max=3, submits="agreed")
    pool = make_pool([lambda q, a: "7", lambda q, a: "8"])
    judge = OracleJudge([SUM], 1.0, pool.names)
    check_env(DEREnv([SUM], pool, judge, observer, env, RewardConfig()))


class InTurn:
    def act(self, episodes: Sequence[Episode]) -> list[Decision]:
        return [Decision(len(episode.steps)) for episode in episodes]


def test_played_routes_submit_what_the_setting_says(make_pool: Callable) -> None:
    pool = make_pool([lambda q, a: "7", lambda q, a: "it is 7", lambda q, a: "8"])
    for submits, expected in (("agreed", 1.0), ("last", 0.0)):
        routes = play([SUM.sealed()], InTurn(), pool, NeverSatisfied(), 3, submits=submits)
        score_routes(routes, [SUM], pool.names)
        assert routes[0].quality == expected


def test_the_route_log_names_the_answer_that_counts(make_pool: Callable) -> None:
    pool = make_pool([lambda q, a: "7", lambda q, a: "it is 7", lambda q, a: "8"])
    routes = play([SUM.sealed()], InTurn(), pool, NeverSatisfied(), 3, submits="agreed")
    score_routes(routes, [SUM], pool.names)
    played = PolicyRoutes("three in turn", "static", routes)
    (record,) = route_records(played, pool, Config(), {SUM.id: SUM.reference})
    assert record["submitted"] == 1 and record["quality"] == 1.0
    assert record["steps"][record["submitted"]]["answer"] == "it is 7"


# --- route trees ---


def test_a_tree_knows_what_every_route_would_submit(make_pool: Callable) -> None:
    def build_on(question: str, previous: str | None) -> str:
        return "8" if previous == "7" else "7"

    pool = make_pool([lambda q, a: "7", build_on, lambda q, a: "9"])
    tree = grow([SUM], pool, 3, expand_solved=True, submits="agreed")
    reward = RewardConfig(alpha=0.0)
    met = set()
    for first in range(3):
        for second in range(3):
            for third in range(3):
                node = 0
                for depth, expert in enumerate((first, second, third)):
                    node = int(tree.levels[depth].child[node, expert])
                experts = (first, second, third)
                (route,) = play(
                    [SUM.sealed()], Fixed(experts), pool, NeverSatisfied(), 3, submits="agreed"
                )
                score_routes([route], [SUM], pool.names)
                assert tree.levels[3].quality[node] == route.quality
                last = route.episode.steps[-1].quality
                assert tree.levels[3].answer_quality[node] == last
                met.add((route.quality, last))
    assert {(1.0, 0.0), (0.0, 1.0), (1.0, 1.0)} <= met  # submitted and last differ both ways
    (best,) = optimal_routes(tree, reward)
    assert best.quality == 1.0 == optimal_values(tree, reward)[0][0]


class Fixed:
    def __init__(self, experts: Sequence[int]):
        self.experts = experts

    def act(self, episodes: Sequence[Episode]) -> list[Decision]:
        return [Decision(self.experts[len(episode.steps)]) for episode in episodes]
