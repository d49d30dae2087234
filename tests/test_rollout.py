"""Playing a list of questions: once each, in order, without references."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from backends.answer_store import Answer
from config import RewardConfig
from der_env import Episode, Judgement, OracleJudge, Step
from questions import Question
from reward import Cost
from rollout import Decision, NeverSatisfied, Route, play, score_routes
from runtime.errors import ReferenceSealedError

QUESTIONS = [Question(f"q{i}", f"question {i}", _reference=str(i)) for i in range(7)]


def right_if_even(question: str, previous: str | None) -> str:
    number = int(question.split()[-1])
    return str(number) if number % 2 == 0 else "none"


def improve(question: str, previous: str | None) -> str:
    """Right only on top of an answer that it is handed."""
    return "guess" if previous is None else question.split()[-1]


class Alternate:
    """Expert 0, 1, 0, 1 ...; remembers which questions it decided on in which call."""

    def __init__(self) -> None:
        self.seen: list[list[str]] = []

    def act(self, episodes: Sequence[Episode]) -> list[Decision]:
        self.seen.append([episode.question.id for episode in episodes])
        return [Decision(len(episode.steps) % 2) for episode in episodes]


def texts(routes: Sequence[Route]) -> list[list[tuple[int, str]]]:
    return [
        [(step.expert_idx, step.answer.text) for step in route.episode.steps] for route in routes
    ]


@pytest.mark.parametrize("width", [1, 3, 256])
def test_each_question_is_played_once_in_order_whatever_the_width(
    make_pool: Callable, width: int
) -> None:
    policy, judge = Alternate(), OracleJudge(QUESTIONS, 1.0, ["e0", "e1"])
    routes = play(
        QUESTIONS, policy, make_pool([right_if_even, improve]), judge, 3, max_in_flight=width
    )
    assert [route.episode.question.id for route in routes] == [f"q{i}" for i in range(7)]
    # Even questions end after the first call, odd ones when expert 1 improves on "none".
    assert texts(routes) == [
        [(0, str(i))] if i % 2 == 0 else [(0, "none"), (1, str(i))] for i in range(7)
    ]
    assert all(len(ids) <= width for ids in policy.seen)
    decided = [question_id for ids in policy.seen for question_id in ids]
    assert [decided.count(f"q{i}") for i in range(7)] == [1, 2, 1, 2, 1, 2, 1]
    assert all(len(route.decisions) == len(route.episode.steps) for route in routes)


def test_playing_twice_gives_the_same_and_one_pool_call_serves_all_questions(
    make_pool: Callable,
) -> None:
    pool = make_pool([right_if_even, improve])
    first = play(QUESTIONS, Alternate(), pool, NeverSatisfied(), 2)
    # Two rounds of seven, one call each
    assert [expert.num_answer_calls for expert in pool.experts] == [
        1,
        1,
    ]
    assert texts(play(QUESTIONS, Alternate(), pool, NeverSatisfied(), 2)) == texts(first)
    assert [route.episode.stop_reason for route in first] == ["t_max"] * 7


def test_a_policy_that_looks_at_the_reference_is_stopped(make_pool: Callable) -> None:
    class Cheat:
        def act(self, episodes: Sequence[Episode]) -> list[Decision]:
            return [Decision(0 if episode.question.reference == "0" else 1) for episode in episodes]

    with pytest.raises(ReferenceSealedError, match="q0"):
        play(QUESTIONS, Cheat(), make_pool([right_if_even, improve]), NeverSatisfied(), 2)


def test_a_judge_that_looks_at_the_reference_is_stopped(make_pool: Callable) -> None:
    class Cheat:
        def judge(self, episodes: Sequence[Episode]) -> list[Judgement]:
            return [Judgement(e.question.reference == e.answer) for e in episodes]

    with pytest.raises(ReferenceSealedError):
        play(QUESTIONS, Alternate(), make_pool([right_if_even, improve]), Cheat(), 2)


def test_played_routes_hold_no_quality_until_they_are_scored(make_pool: Callable) -> None:
    routes = play(QUESTIONS, Alternate(), make_pool([right_if_even, improve]), NeverSatisfied(), 3)
    assert all(step.quality is None for route in routes for step in route.episode.steps)
    with pytest.raises(ValueError, match="q0"):
        _ = routes[0].quality
    with pytest.raises(ReferenceSealedError):
        score_routes(routes, [question.sealed() for question in QUESTIONS], ["e0", "e1"])
    score_routes(routes, QUESTIONS, ["e0", "e1"])
    # Calls: expert 0 (right on even numbers), expert 1 (right, being handed something), expert 0
    # again.
    assert [[step.quality for step in route.episode.steps] for route in routes] == [
        [1.0, 1.0, 1.0] if i % 2 == 0 else [0.0, 1.0, 0.0] for i in range(7)
    ]


def test_the_value_of_a_route_by_hand() -> None:
    def step(quality: float, params_b: float, tokens: int) -> Step:
        return Step(
            0,
            Answer("x", 1, 1, 0.5),
            Cost(params_b=params_b, prompt_tokens=tokens, completion_tokens=1, latency_s=0.5),
            quality,
        )

    route = Route(
        Episode(QUESTIONS[0], 4, [step(0.25, 7.0, 9), step(0.75, 13.0, 29)]),
        [Decision(0), Decision(1)],
    )
    # The authors' unit: .75 - 2 x (7 + 13) x .001
    assert route.return_under(
        RewardConfig(alpha=2.0, cost_unit="trillion parameters")
    ) == pytest.approx(0.71)
    # Thousands of tokens: .75 - 2 x (9 + 1 + 29 + 1) / 1000; neither shaping nor discount nor bonus
    # enter
    assert route.return_under(
        RewardConfig(kind="paper", alpha=2.0, cost_unit="thousand tokens", discount=0.5)
    ) == pytest.approx(0.67)
    # .75 - .1 x (.5 + .5)
    assert route.return_under(RewardConfig(alpha=0.1, cost_unit="seconds")) == pytest.approx(0.65)
    assert route.cut(1).return_under(
        RewardConfig(alpha=2.0, cost_unit="trillion parameters")
    ) == pytest.approx(0.236)  # .25 - 2 x .007
    assert len(route.episode.steps) == 2  # cutting leaves the route as it was


def test_an_empty_answer_goes_on_in_words_and_scores_nothing(make_pool: Callable) -> None:
    pool = make_pool([lambda question, previous: "", improve])
    routes = play(QUESTIONS[:1], Alternate(), pool, NeverSatisfied(), 2)
    assert "There is an answer from another student: (no answer)\n" in pool.experts[1].prompts[0]
    score_routes(routes, QUESTIONS[:1], pool.names)
    assert [step.quality for step in routes[0].episode.steps] == [0.0, 1.0]


def test_a_policy_may_stop_but_not_before_its_first_call(make_pool: Callable) -> None:
    class StopAfter:
        def __init__(self, calls: int):
            self.calls = calls

        def act(self, episodes: Sequence[Episode]) -> list[Decision]:
            return [
                Decision(0 if len(episode.steps) < self.calls else None) for episode in episodes
            ]

    pool = make_pool([right_if_even])
    routes = play(QUESTIONS, StopAfter(2), pool, NeverSatisfied(), 4, max_in_flight=2)
    assert (
        [len(route.episode.steps) for route in routes]
        == [2] * 7
        == [len(route.decisions) for route in routes]
    )
    with pytest.raises(ValueError, match="StopAfter stopped before the first call"):
        play(QUESTIONS, StopAfter(0), pool, NeverSatisfied(), 4)


def test_playing_uses_no_random_numbers(make_pool: Callable) -> None:
    np.random.seed(1)
    before = np.random.get_state()[1].tolist()
    play(QUESTIONS, Alternate(), make_pool([right_if_even, improve]), NeverSatisfied(), 2)
    assert np.random.get_state()[1].tolist() == before
