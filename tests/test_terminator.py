"""The Terminator: what it learns from, what it learns, when it stops a route."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from agent import build_agent
from backends.answer_store import Answer
from config import AgentConfig, Config, RewardConfig, TerminatorConfig
from der_env import Episode, Step, encode_states
from questions import Question
from reward import Cost
from rollout import Decision, NeverSatisfied, Route, play
from terminator import (
    NEVER,
    Terminator,
    TerminatorData,
    TerminatorJudge,
    answer_shape,
    calibration_error,
    choose_threshold,
    cut_at,
    load_terminator,
    save_terminator,
    terminator_figures,
)
from text_agent import Agent

T_MAX = 3
QUESTIONS = [
    Question(f"q{i}", f"what is the sum of {a} and {b}", _reference="yes")
    for i, (a, b) in enumerate((a, b) for a in "abcdefgh" for b in "abcdef")
]
CPU = torch.device("cpu")


@pytest.fixture
def agent(bert_encoder: Path) -> Agent:
    made = build_agent(AgentConfig(encoder=str(bert_encoder), max_tokens=32), 2, T_MAX)
    made.encoder.calibrate(
        encode_states(
            [Episode(question.sealed(), T_MAX) for question in QUESTIONS], made.state_tokenizer
        )
    )
    return made


def judged_states(
    agent: Agent, questions: Sequence[Question], answers: Sequence[str]
) -> np.ndarray:
    return agent.state_tokenizer.encode(
        [question.text for question in questions], answers, [2] * len(questions)
    )


def toy_data(agent: Agent, questions: Sequence[Question]) -> TerminatorData:
    """Expert 0 is always right, expert 1 never, whatever they say."""
    data = TerminatorData()
    for expert_idx in (0, 1):
        data.add(
            judged_states(agent, questions, ["yes"] * len(questions)),
            [expert_idx] * len(questions),
            [expert_idx == 0] * len(questions),
        )
    return data


def new_terminator(agent: Agent) -> Terminator:
    return Terminator(agent.encoder.width, 2, T_MAX, hidden_size=16, dropout=0.1)


@pytest.mark.slow
def test_it_learns_a_separable_rule_and_applies_it_to_new_questions(agent: Agent) -> None:
    terminator = new_terminator(agent)
    loss = terminator.fit(
        agent, toy_data(agent, QUESTIONS[:24]), TerminatorConfig(steps=1000), seed=0
    )
    unseen = QUESTIONS[24:]
    rows = judged_states(agent, unseen, ["yes"] * len(unseen))
    hits = [
        *(terminator.probabilities(agent, rows, [0] * len(unseen)) > 0.5),
        *(terminator.probabilities(agent, rows, [1] * len(unseen)) < 0.5),
    ]
    assert np.mean(hits) > 0.95
    assert loss < np.log(2) / 4  # a coin's cross-entropy is ln 2


@pytest.mark.slow
def test_it_learns_from_the_answer_too(agent: Agent) -> None:
    data, texts = TerminatorData(), ["paris", "backward"]
    for text in texts:
        data.add(
            judged_states(agent, QUESTIONS[:24], [text] * 24), [0] * 24, [text == "paris"] * 24
        )
    terminator = new_terminator(agent)
    terminator.fit(agent, data, TerminatorConfig(steps=1500), seed=0)
    good, bad = (
        terminator.probabilities(agent, judged_states(agent, QUESTIONS[24:], [text] * 24), [0] * 24)
        for text in texts
    )
    assert np.mean([*(good > 0.5), *(bad < 0.5)]) > 0.95


def test_fitting_is_repeatable_and_leaves_the_global_random_state_alone(agent: Agent) -> None:
    data, config = toy_data(agent, QUESTIONS[:10]), TerminatorConfig(steps=20)
    weights = []
    for global_seed, seed in ((1, 5), (2, 5), (2, 6)):
        torch.manual_seed(global_seed)
        terminator = new_terminator(agent)
        before = torch.get_rng_state()
        terminator.fit(agent, data, config, seed)
        assert torch.equal(torch.get_rng_state(), before)
        weights.append(torch.cat([p.flatten() for p in terminator.parameters()]))
    # Its own seed decides, not the weights it was made with
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_fitting_again_starts_from_scratch(agent: Agent) -> None:
    once, twice = new_terminator(agent), new_terminator(agent)
    config = TerminatorConfig(steps=20)
    twice.fit(agent, toy_data(agent, QUESTIONS[:20]), config, 0)
    twice.fit(agent, toy_data(agent, QUESTIONS[:10]), config, 0)
    once.fit(agent, toy_data(agent, QUESTIONS[:10]), config, 0)
    assert all(
        torch.equal(a, b) for a, b in zip(once.parameters(), twice.parameters(), strict=True)
    )


def test_data_keeps_each_state_once_and_survives_a_checkpoint(agent: Agent) -> None:
    data = TerminatorData()
    rows = judged_states(agent, QUESTIONS[:3], ["yes", "no", "yes"])
    data.add(rows, [0, 0, 1], [True, False, True])
    data.add(rows, [0, 0, 1], [True, False, True])
    assert len(data) == 3
    # Another expert is another state: it may be right where the first was lucky
    data.add(rows[:1], [1], [False])
    shorter = rows[:1].copy()
    shorter[0, 0] = 1  # so are fewer calls left
    data.add(shorter, [0], [True])
    assert len(data) == 5
    rows[:] = 0  # what was handed in is copied
    restored = TerminatorData()
    restored.load_state(data.state())
    assert len(restored) == 5
    for ours, theirs in zip(restored.arrays(100), data.arrays(100), strict=True):
        assert ours.dtype == theirs.dtype and np.array_equal(ours, theirs)
    # Newest last
    assert data.arrays(100)[2].tolist() == [1, 0, 1, 0, 1] and data.arrays(2)[1].tolist() == [
        1,
        0,
    ]
    restored.add(judged_states(agent, QUESTIONS[:1], ["yes"]), [0], [True])
    assert len(restored) == 5  # still known
    empty = TerminatorData()
    empty.load_state(TerminatorData().state())
    assert len(empty) == 0


def route(*steps: tuple[float, float], params_b: float = 1.0) -> Route:
    """A scored route of (stop probability, quality) steps."""
    made = [
        Step(0, Answer("x", 1, 1, 0.1), Cost(params_b=params_b), quality, p_stop)
        for p_stop, quality in steps
    ]
    return Route(Episode(QUESTIONS[0], len(made), made, "t_max"), [Decision(0)] * len(made))


def test_a_route_is_cut_at_the_first_step_that_reaches_the_threshold() -> None:
    played = route((0.2, 0.0), (0.6, 1.0), (0.9, 0.0))
    assert [
        len(cut_at(played, threshold).episode.steps)
        for threshold in (0.1, 0.2, 0.21, 0.6, 0.61, 0.9, 0.91, NEVER)
    ] == [1, 1, 2, 2, 3, 3, 3, 3]
    assert cut_at(played, 0.6).quality == 1.0


def test_the_threshold_is_the_one_with_the_best_mean_return() -> None:
    # Right after the first call at .7 and never again; and right after the second at .8, where
    # stopping at .4 would be too soon.
    routes = [route((0.7, 1.0), (0.9, 0.0)), route((0.4, 0.0), (0.8, 1.0))]
    reward = RewardConfig(alpha=0.1)
    # Means: up to .4: (.9 - .1) / 2 = .40;  .4 to .7: (.9 + .8) / 2 = .85;  .7 to .8: (-.2 + .8) /
    # 2 = .30;  beyond the same.
    threshold = choose_threshold(routes, reward, max_threshold=0.95)
    assert 0.4 < threshold <= 0.7
    assert np.mean([cut_at(r, threshold).return_under(reward) for r in routes]) == pytest.approx(
        0.85
    )
    # A call that costs 2 is never worth a second one: (1 - 2 + 0 - 2) / 2 beats (1 - 2 + 1 - 4) /
    # 2.
    assert choose_threshold(routes, RewardConfig(alpha=2.0), max_threshold=0.95) <= 0.4


def test_of_equal_returns_the_higher_threshold_wins_up_to_the_most() -> None:
    good_at_once = [route((0.6, 1.0))]
    assert choose_threshold(good_at_once, RewardConfig(), max_threshold=0.95) == 0.95
    certain = [route((0.99, 1.0))]
    assert choose_threshold(certain, RewardConfig(), max_threshold=0.95) == 0.95
    # A second call that helps only once the probability passes .95 is out of reach: the validation
    # routes end at .95.
    assert (
        choose_threshold(
            [route((0.97, 0.0), (0.99, 1.0))], RewardConfig(alpha=0.0), max_threshold=0.95
        )
        <= 0.95
    )


def test_how_well_it_tells_good_answers_by_hand() -> None:
    routes = [route((0.9, 1.0)), route((0.2, 0.0), (0.6, 0.0)), route((0.4, 1.0))]
    config = Config(reward=RewardConfig(alpha=0.1))
    found = terminator_figures(routes, [QUESTIONS[0]] * 3, {QUESTIONS[0].task: {"a"}}, config)
    # Good .9 and .4 against bad .2 and .6: three of four pairs in order. Every answer is "x", of
    # the form "a".
    assert (
        found["auroc"] == found["auroc_well_formed"] == 0.75
        and found["well_formed"] == 1.0
        and found["answers"] == 4
    )
    assert found["brier"] == pytest.approx((0.01 + 0.04 + 0.36 + 0.36) / 4)
    assert found["ece"] == pytest.approx((0.1 + 0.2 + 0.6 + 0.6) / 4)  # one answer a bin
    at = {round(point["threshold"], 2): point for point in found["thresholds"]}
    assert at[0.2]["cost"] == 1.0 and at[0.2]["quality"] == pytest.approx(2 / 3)
    assert at[0.95]["cost"] == pytest.approx(4 / 3) and at[0.95]["return"] == pytest.approx(
        2 / 3 - 0.1 * 4 / 3
    )
    # Nothing to tell apart
    assert terminator_figures(routes[:1], QUESTIONS[:1], {}, config)["auroc"] is None
    # Nothing well-formed
    assert terminator_figures(routes, [QUESTIONS[0]] * 3, {}, config)["auroc_well_formed"] is None


@pytest.mark.parametrize(
    ("text", "shape"),
    [("12 b", "0 a"), ("  Tokyo  Bay ", "a a"), ("-3.5", "-0.0"), ("Zürich", "a"), ("", "")],
)
def test_the_form_of_an_answer(text: str, shape: str) -> None:
    assert answer_shape(text) == shape


@pytest.mark.slow
def test_the_judge_never_asks_for_a_reference(
    agent: Agent, make_pool: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    class AskExpert0:
        def act(self, episodes: Sequence[Episode]) -> list[Decision]:
            return [Decision(0)] * len(episodes)

    def asked(question: Question) -> str:
        raise AssertionError("asked for the reference")

    monkeypatch.setattr(Question, "reference", property(asked))
    terminator = new_terminator(agent)
    terminator.fit(agent, toy_data(agent, QUESTIONS[:10]), TerminatorConfig(steps=500), seed=0)
    pool = make_pool([lambda q, a: "yes", lambda q, a: "no"])
    for threshold, calls, reason in (
        (0.0, 1, "satisfied"),
        (0.5, 1, "satisfied"),
        (NEVER, T_MAX, "t_max"),
    ):
        routes = play(
            QUESTIONS[10:14],
            AskExpert0(),
            pool,
            TerminatorJudge(agent, terminator, threshold),
            T_MAX,
        )
        assert [(len(r.episode.steps), r.episode.stop_reason) for r in routes] == [
            (calls, reason)
        ] * 4
        assert all(0.5 < step.p_stop <= 1 for r in routes for step in r.episode.steps[:1])
    terminator.threshold = 0.5
    assert TerminatorJudge(agent, terminator).threshold == 0.5  # its own, where none is given


def test_the_judge_reads_the_state_that_the_agent_reads_next(
    agent: Agent, make_pool: Callable
) -> None:
    routes = play(
        QUESTIONS[:5],
        agent,
        make_pool([lambda q, a: "yes", lambda q, a: "no"]),
        NeverSatisfied(),
        T_MAX,
    )
    judge, encoded = TerminatorJudge(agent, new_terminator(agent)), agent.encoder.num_rows
    # The agent went on from the states after them, so the encoder has nothing to do
    for calls in (
        1,
        2,
    ):
        after = [Episode(r.episode.question, T_MAX, r.episode.steps[:calls]) for r in routes]
        last = [episode.steps[-1] for episode in after]
        found = judge.judge(after)
        assert agent.encoder.num_rows == encoded
        expected = judge.terminator.probabilities(
            agent, encode_states(after, agent.state_tokenizer), [step.expert_idx for step in last]
        )
        assert [judgement.p_stop for judgement in found] == pytest.approx(
            expected.tolist(), abs=1e-6
        )


def test_a_saved_terminator_judges_as_before(agent: Agent, tmp_path: Path) -> None:
    terminator = new_terminator(agent)
    terminator.fit(agent, toy_data(agent, QUESTIONS[:10]), TerminatorConfig(steps=20), seed=0)
    terminator.threshold = 0.375
    save_terminator(terminator, tmp_path / "terminator")
    loaded = load_terminator(tmp_path / "terminator", CPU)
    rows = judged_states(agent, QUESTIONS[:6], ["yes", "no"] * 3)
    assert np.array_equal(
        loaded.probabilities(agent, rows, [0, 1] * 3),
        terminator.probabilities(agent, rows, [0, 1] * 3),
    )
    assert loaded.threshold == 0.375


def test_the_calibration_error_of_twenty_answers_by_hand():
    """Ten bins of two answers. Nine bins say .5 and have one good answer; the last says 1 and has
    none: 2 of 20 answers, each 1 away.
    """
    p = np.array([0.5] * 18 + [1.0] * 2)
    good = np.array([True, False] * 9 + [False, False])
    assert calibration_error(p, good) == pytest.approx(2 / 20)
