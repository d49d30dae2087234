"""Estimates from logged routes: exact where every route is enumerated, refused where blind."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_belief_agent import config_path, run  # noqa: F401  (fixtures)

from agent import load_agent
from belief.budget import PlannedAlphas
from belief.exploration import GREEDY, Exploration
from belief_agent import BeliefAgent
from der_env import Episode
from evaluation.ground import Ground
from evaluation.logged_routes import TargetPolicy
from evaluation.off_policy import (
    LoggedRoute,
    check_support,
    direct,
    doubly_robust,
    effective_sample_size,
    ips,
    mean_estimate,
    snips,
)
from experts import build_pool
from questions import load_splits
from runtime.command_line import load_config
from runtime.errors import ConfigError, ReportError
from scripts import estimate_policy, explore_run
from terminator import EstimateTerminator

# Two decisions of two actions each: action 1 of the first decision ends the route with 0.4. The
# second decision ends it with 1 or 0; each first call costs 0.1.
LOGGING = {"first": [0.7, 0.3], "second": [0.6, 0.4]}
TARGET = {"first": [0.2, 0.8], "second": [0.9, 0.1]}
SECOND_REWARD = [1.0, 0.0]
# By hand: 0.8 * 0.4 + 0.2 * (-0.1 + 0.9 * 1) = 0.48
TRUTH = 0.48
MODEL = {"first": [0.3, -0.2], "second": [0.5, 0.7]}  # a wrong one


def all_routes() -> list[tuple[float, LoggedRoute]]:
    """Every route with its probability under the logging policy."""
    values = {name: float(np.dot(TARGET[name], MODEL[name])) for name in TARGET}
    ended = LoggedRoute(
        np.array([0.3]),
        np.array([0.8]),
        np.array([0.4]),
        np.array([MODEL["first"][1]]),
        np.array([values["first"]]),
    )
    routes = [(0.3, ended)]
    for action in (0, 1):
        logged = [0.7, LOGGING["second"][action]]
        target = [0.2, TARGET["second"][action]]
        route = LoggedRoute(
            np.array(logged),
            np.array(target),
            np.array([-0.1, SECOND_REWARD[action]]),
            np.array([MODEL["first"][0], MODEL["second"][action]]),
            np.array([values["first"], values["second"]]),
        )
        routes.append((math.prod(logged), route))
    return routes


def test_doubly_robust_and_weighted_returns_are_exact_on_average_with_a_wrong_model() -> None:
    routes = all_routes()
    assert sum(p for p, _ in routes) == pytest.approx(1)
    assert sum(p * route.weight for p, route in routes) == pytest.approx(1)
    assert sum(p * route.weight * route.total for p, route in routes) == pytest.approx(TRUTH)
    assert sum(p * route.corrected for p, route in routes) == pytest.approx(TRUTH)


def test_the_direct_method_believes_its_model() -> None:
    routes = [route for _, route in all_routes()]
    assert direct(routes).mean == pytest.approx(0.2 * 0.3 + 0.8 * -0.2)


def test_with_a_right_model_each_correction_is_only_noise() -> None:
    """The correction of a decision has a mean of 0: the model already says what comes."""
    model = {"first": [-0.1 + 0.9, 0.4], "second": SECOND_REWARD}
    for actions in itertools.product((0, 1), repeat=2):
        route = LoggedRoute(
            np.array([0.7, LOGGING["second"][actions[1]]]),
            np.array([0.2, TARGET["second"][actions[1]]]),
            np.array([-0.1, SECOND_REWARD[actions[1]]]),
            np.array([model["first"][0], model["second"][actions[1]]]),
            np.array([TRUTH, 0.9]),
        )
        assert route.corrected == pytest.approx(TRUTH)


def simple(logged: float, target: float, reward: float) -> LoggedRoute:
    one = np.array([logged]), np.array([target]), np.array([reward])
    return LoggedRoute(*one, np.array([0.0]), np.array([0.0]))


def test_means_and_effective_routes_are_what_hand_arithmetic_gives() -> None:
    routes = [simple(0.5, 1.0, 1.0), simple(0.5, 0.0, 1.0), simple(0.5, 0.5, 0.0)]
    # weights 2, 0, 1
    assert ips(routes).mean == pytest.approx(2 / 3)
    assert snips(routes).mean == pytest.approx(2 / 3)
    assert effective_sample_size(routes) == pytest.approx(9 / 5)
    # no model: the correction is the weighted reward
    assert doubly_robust(routes).mean == pytest.approx(2 / 3)
    estimate = mean_estimate(np.array([0.0, 1.0, 2.0, 3.0]))
    # standard deviation 1.29099, over the root of 4, times 1.95996
    assert estimate.hi - estimate.mean == pytest.approx(1.26513, abs=1e-4)


def test_a_log_of_a_policy_that_never_does_otherwise_is_refused() -> None:
    same = simple(1.0, 1.0, 0.5)
    check_support([same, same, same])
    with pytest.raises(ReportError, match="on 1 of 3 logged routes the logging policy never did"):
        check_support([same, same, simple(1.0, 0.4, 0.5)])


def test_a_certain_decision_that_the_target_never_comes_to_does_no_harm() -> None:
    route = LoggedRoute(
        np.array([0.5, 1.0]),
        np.array([0.0, 0.0]),
        np.array([0.0, 1.0]),
        np.zeros(2),
        np.zeros(2),
    )
    others = [simple(0.5, 1.0, 1.0)] * 30
    check_support([route] * 30 + others)
    reached = replace(route, target=np.array([0.5, 0.0]))
    with pytest.raises(ReportError, match="the logging policy never did"):
        check_support([reached] * 30 + others)


def test_a_log_of_which_few_routes_carry_the_weight_is_refused() -> None:
    routes = [simple(0.01, 1.0, 1.0)] + [simple(0.99, 0.0, 1.0)] * 99  # the weights' mean is 1
    with pytest.raises(ReportError, match=r"100 logged routes are worth 1\.0 of this policy"):
        check_support(routes)


def test_weights_far_below_one_on_average_are_refused() -> None:
    routes = [simple(0.5, 0.1, 1.0)] * 50 + [simple(0.5, 0.2, 1.0)] * 50
    with pytest.raises(ReportError, match=r"weights have a mean of 0\.300"):
        check_support(routes)


# --- on a run ---


@pytest.fixture(scope="module")
def log(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    out = tmp_path_factory.mktemp("logs") / "explored.jsonl"
    arguments = ["--run", str(run), "--share", "0.6", "--temperature", "0.1", "--out", str(out)]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(run.parents[1])
        return explore_run.main(arguments)


def records_of(log: Path) -> list[dict]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def test_every_step_of_an_explored_run_has_its_probability(log: Path) -> None:
    records = records_of(log)
    probabilities = []
    for record in records:
        probabilities += [step["probability"] for step in record["steps"]]
        assert (record["stop_probability"] is None) == (record["stop_reason"] == "t_max")
    assert all(0 < p <= 1 for p in probabilities)
    assert min(probabilities) < 0.5  # something was drawn that is not the best


def test_a_policy_that_is_its_own_target_is_estimated_by_its_plain_mean(
    run: Path,  # noqa: F811
    log: Path,
) -> None:
    arguments = ["--log", str(log), "--run", str(run), "--share", "0.6", "--temperature", "0.1"]
    found = estimate_policy.main(arguments)
    records = records_of(log)
    mean = np.mean([record["return"] for record in records])
    assert found["effective_routes"] == pytest.approx(len(records))
    assert found["ips"]["mean"] == pytest.approx(mean)
    assert found["snips"]["mean"] == pytest.approx(mean)


def test_logged_answers_are_read_with_their_log_probabilities(
    run: Path,  # noqa: F811
    log: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They are inputs of the outcome model: without them the target decides otherwise."""
    reader = estimate_policy.log_reader(Ground([run], []), GREEDY)
    seen: list[Episode] = []
    judge = TargetPolicy.judge

    def noted(target: TargetPolicy, states: list[Episode]) -> tuple[np.ndarray, np.ndarray]:
        seen.extend(states)
        return judge(target, states)

    monkeypatch.setattr(TargetPolicy, "judge", noted)
    record = records_of(log)[0]
    for step in record["steps"]:
        step["logprob_mean"], step["logprob_min"] = -0.25, -1.5
    reader.read([record])
    answers = [step.answer for step in seen[-1].steps]
    assert len(answers) == len(record["steps"]) > 0
    assert {(answer.logprob_mean, answer.logprob_min) for answer in answers} == {(-0.25, -1.5)}


def test_doubly_robust_estimates_of_the_greedy_policy_average_to_what_it_returns(
    run: Path,  # noqa: F811
) -> None:
    ground = Ground([run], [])
    test = ground.splits.test
    greedy = explore_run.explore(ground, test, GREEDY, 0)
    truth = np.mean([record["return"] for record in greedy])
    reader = estimate_policy.log_reader(ground, GREEDY)
    values = []
    for seed in range(60):
        records = explore_run.explore(ground, test, Exploration(0.5, 0.1), seed)
        values.append(doubly_robust(reader.read(records)).mean)
    error = np.std(values, ddof=1) / np.sqrt(len(values))
    assert abs(np.mean(values) - truth) < 3 * error
    assert error < 0.02
    assert {step["probability"] for record in greedy for step in record["steps"]} == {1.0}


def test_a_fixed_order_is_valued_by_estimates_and_not_by_its_scores(
    run: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Scores of an order only rank. The first call is worth its prior less its cost."""
    config = load_config(run / "config.yaml")
    agent = load_agent(run / "agent", build_pool(config))
    assert isinstance(agent, BeliefAgent)
    states = [Episode(question.sealed(), 3) for question in load_splits(config.data).test]
    monkeypatch.setattr(agent.reader, "planned", PlannedAlphas((0.2,), (True,)))
    _, values = TargetPolicy(agent, EstimateTerminator()).judge(states)
    priors = 1 / (1 + np.exp(-agent.reader.priors([state.question for state in states])))
    assert np.allclose(values[:, :4], priors - 0.2 * agent.reader.costs)


def test_logs_that_cannot_tell_are_refused_with_the_reason(
    run: Path,  # noqa: F811
    log: Path,
    tmp_path: Path,
) -> None:
    records = records_of(log)
    del records[3]["steps"][0]["probability"]
    bare = tmp_path / "bare.jsonl"
    bare.write_text("".join(json.dumps(record) + "\n" for record in records))
    with pytest.raises(ReportError, match="does not say with which probability each step"):
        estimate_policy.main(["--log", str(bare), "--run", str(run)])
    greedy = tmp_path / "greedy.jsonl"
    explore_run.main(["--run", str(run), "--share", "0", "--out", str(greedy)])
    with pytest.raises(ReportError, match="support is missing"):
        estimate_policy.main(
            ["--log", str(greedy), "--run", str(run), "--share", "0.6", "--temperature", "0.1"]
        )
    draws = ["--run", str(run), "--share", "0.5", "--out", str(greedy)]
    with pytest.raises(ConfigError, match="--temperature nan: a temperature is above 0"):
        explore_run.main([*draws, "--temperature", "nan"])
    with pytest.raises(ConfigError, match="a share is from 0 to 1"):
        explore_run.main(["--run", str(run), "--share", "2", "--out", str(greedy)])
