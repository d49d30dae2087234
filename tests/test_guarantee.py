"""The promise of a threshold: its statistics, and what a run makes of it."""

from __future__ import annotations

import gc
import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest
from test_belief_agent import config_path  # noqa: F401  (a fixture)

import train_ppo_multi
from backends.answer_store import Answer
from config import RewardConfig
from der_env import Episode, Step
from evaluation.guarantee import (
    Outcomes,
    Promise,
    candidate_thresholds,
    fewest_questions,
    guarantee,
    last_that_holds,
    max_losses,
    questions_needed,
    upper_limit,
)
from questions import Question
from reward import Cost
from rollout import Decision, Route
from runtime.command_line import load_config
from runtime.errors import ConfigError, GuaranteeError
from terminator import NEVER

PROMISE = Promise(max_loss=0.02, confidence=0.95)


def test_without_a_loss_the_limit_is_what_hand_arithmetic_gives() -> None:
    assert upper_limit(0, 100, 0.95) == pytest.approx(1 - 0.05 ** (1 / 100))  # 0.0295


@pytest.mark.parametrize(("lost", "asked"), [(0, 20), (1, 20), (7, 500), (19, 20)])
def test_the_limit_is_scipys_exact_one_sided_limit(lost: int, asked: int) -> None:
    exact = binomtest(lost, asked, alternative="less").proportion_ci(0.95, method="exact")
    assert upper_limit(lost, asked, 0.95) == pytest.approx(exact.high)


def test_all_lost_bounds_nothing() -> None:
    assert upper_limit(5, 5, 0.95) == 1.0


def test_the_fewest_questions_are_where_luck_alone_gets_rare() -> None:
    # 0.98^148 = 0.0503 and 0.98^149 = 0.0493
    assert fewest_questions(0.02, 0.95) == 149
    assert questions_needed(0.0, 0.02, 0.95) == 149


def test_the_questions_needed_are_just_enough() -> None:
    needed = questions_needed(0.01, 0.02, 0.95)
    assert needed is not None
    enough = round(needed, -2) + 100  # a multiple of 100: the loss is a whole number of questions
    assert upper_limit(enough // 100, enough, 0.95) <= 0.02
    too_few = enough - 200
    assert upper_limit(too_few // 100, too_few, 0.95) > 0.02


def test_no_number_of_questions_helps_where_too_much_is_lost() -> None:
    assert questions_needed(0.02, 0.02, 0.95) is None
    assert questions_needed(0.3, 0.02, 0.95) is None


def test_testing_ends_at_the_first_threshold_that_fails() -> None:
    # Of 500 questions 4 may be lost: the limit is 0.0182, with 5 it is 0.0209.
    assert upper_limit(4, 500, 0.95) < 0.02 < upper_limit(5, 500, 0.95)
    assert max_losses(500, PROMISE) == 4
    assert max_losses(148, PROMISE) == -1
    assert last_that_holds([0, 2, 4, 5, 1], 500, PROMISE) == 2
    assert last_that_holds([5, 0, 0], 500, PROMISE) is None


def route(qualities: list[float], p_stops: list[float], submissions: list[int]) -> Route:
    """A scored route whose call number i costs i."""
    episode = Episode(Question("q", "?"), len(qualities))
    for place, (quality, p) in enumerate(zip(qualities, p_stops, strict=True)):
        cost = Cost(params_b=place + 1.0)
        episode.hear(Step(place, Answer(f"answer {place}", 0, 0, 0.0), cost, quality, p))
    episode.submissions = submissions
    return Route(episode, [Decision(step.expert_idx) for step in episode.steps])


def test_a_threshold_is_charged_and_judged_where_it_ends_the_route() -> None:
    routes = [
        route([0.0, 1.0], [0.4, 0.9], [0, 1]),  # wrong until the second call
        route([1.0, 0.0], [0.6, 0.7], [0, 0]),  # the second answer is not submitted
        route([0.0, 0.0], [0.8, 0.8], [0, 0]),  # the reference is wrong, too
    ]
    thresholds = np.array([NEVER, 0.5, 0.3])
    found = Outcomes.of(routes, [True, True, False], thresholds, 1.0, RewardConfig())
    lost = [[False, False, True], [False, False, False], [False, False, False]]
    assert found.lost.tolist() == lost
    assert found.cost.tolist() == [[3, 3, 1], [3, 1, 1], [3, 1, 1]]


def test_candidates_run_from_never_down_to_the_lowest_estimate() -> None:
    thresholds = candidate_thresholds([route([1.0, 1.0], [0.25, 0.75], [0, 1])])
    assert thresholds[0] == NEVER
    assert thresholds[-1] == 0.25
    assert (np.diff(thresholds) < 0).all()


def test_a_refusal_names_the_number_of_questions_that_would_do() -> None:
    lost = np.zeros((200, 2), dtype=bool)
    lost[:2] = True  # 1% is lost: the limit is 0.0311
    outcomes = Outcomes(lost, np.zeros((200, 2)))
    needed = questions_needed(0.01, 0.02, 0.95)
    with pytest.raises(GuaranteeError, match=rf"lose 2 of 200 .* {needed} calibration questions"):
        guarantee(outcomes, np.array([NEVER, 0.5]), PROMISE, "large")
    lost[:8] = True
    with pytest.raises(GuaranteeError, match="no number of questions would do"):
        guarantee(outcomes, np.array([NEVER, 0.5]), PROMISE, "large")


def test_the_promise_is_broken_in_at_most_one_of_twenty_draws() -> None:
    rng = np.random.default_rng(0)
    losses = np.array([0.0, 0.01, 0.019, 0.0205, 0.03, 0.1])  # of six thresholds
    broken = 0
    for _ in range(2000):
        hardness = rng.random(500)
        num_lost = (hardness[:, None] < losses).sum(axis=0)
        place = last_that_holds(num_lost.tolist(), 500, PROMISE)
        broken += place is not None and losses[place] > PROMISE.max_loss
    # 0.05 and three standard errors of 2,000 draws
    assert broken / 2000 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 2000)
    assert broken > 0  # a promise that is never near its limit would be too careful


# --- in a run ---


def train(config: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> Path:
    monkeypatch.chdir(folder)
    options = ["--env.stop", "terminator", "--train.epochs", "1", "--name", "kept", *more]
    path = train_ppo_multi.main(["--config", str(config), *options])
    gc.collect()
    return folder / path


def test_a_run_keeps_what_it_promises_beside_its_threshold(
    config_path: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    run = train(config_path, tmp_path, monkeypatch, "--terminator.max_loss", "0.6")
    spec = json.loads((run / "terminator" / "config.json").read_text())
    promise = spec["promise"]
    assert promise["threshold"] == spec["threshold"]
    assert promise["questions"] == 7  # every other one of 15
    lost = round(promise["loss"] * 7)
    assert promise["limit"] == pytest.approx(upper_limit(lost, 7, 0.95))
    assert promise["limit"] <= 0.6


def test_too_few_validation_questions_are_refused_before_anything_is_learned(
    config_path: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    with pytest.raises(
        GuaranteeError, match="7 calibration questions promise nothing; at least 29"
    ):
        train(config_path, tmp_path, monkeypatch, "--terminator.max_loss", "0.1")
    assert not (tmp_path / "runs" / "kept" / "agent").exists()


def test_a_refused_promise_leaves_an_agent_that_never_stops_early(
    config_path: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("evaluation.guarantee.last_that_holds", lambda *_: None)
    with pytest.raises(GuaranteeError, match="cannot be promised"):
        train(config_path, tmp_path, monkeypatch, "--terminator.max_loss", "0.6")
    spec = json.loads((tmp_path / "runs/kept/terminator/config.json").read_text())
    assert spec["threshold"] == NEVER
    assert spec["promise"] is None


def test_a_promise_needs_an_agent_whose_threshold_ends_routes(
    config_path: Path,  # noqa: F811
) -> None:
    with pytest.raises(ConfigError, match=r"needs agent\.reads: belief and env\.stop: terminator"):
        load_config(config_path, ["--terminator.max_loss", "0.1"])
    with pytest.raises(ConfigError, match="'nobody' is not in the pool: small, adder"):
        load_config(config_path, ["--terminator.reference", "nobody"])
