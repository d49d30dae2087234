"""An expert joins or leaves a trained run: the others' estimates stay, and the policy goes on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from test_belief_agent import EXPERTS, config_path, run  # noqa: F401  (fixtures)

import test_ppo_multi
from agent import load_agent, save_agent
from belief.order import plan_of, threshold_gains
from belief.outcome_model import ExpertRegression
from belief.planner import Order
from belief.pool_change import (
    Coefficients,
    add_to_candidates,
    fit_own,
    fit_with_offset,
    move_blocks,
)
from belief.regression import Logistic, Standardiser
from belief.state import CandidateModel, believe, describe_candidates, hear
from belief_agent import BeliefAgent
from der_env import Episode
from experts import build_pool
from questions import load_splits
from runtime.command_line import load_config
from runtime.errors import ConfigError
from training.changed_pool import with_expert, without_expert


def agent_of(folder: Path) -> BeliefAgent:
    agent = load_agent(folder / "agent", build_pool(load_config(folder / "config.yaml")))
    assert isinstance(agent, BeliefAgent)
    return agent


def test_blocks_of_experts_move_with_them() -> None:
    values = np.array([9.0, 1, 2, 3, 10, 20, 30])  # one shared, two blocks of three experts
    assert move_blocks(values, 2, 3, [0, 2], 0.0).tolist() == [9, 1, 3, 10, 30]
    assert move_blocks(values, 2, 3, [0, 1, 2, -1], 7.0).tolist() == [9, 1, 2, 3, 7, 10, 20, 30, 7]


def test_a_level_beside_known_log_odds_makes_the_mean_right() -> None:
    """With one free weight the mean of the estimates is the share of right answers."""
    offset = np.array([-1.0, 0.0, 1.0, 2.0] * 25)
    good = np.array([True, True, True, False] * 25)
    level = fit_with_offset(np.ones((100, 1)), offset, good, strength=1.0)
    estimates = 1 / (1 + np.exp(-(offset + level[0])))
    assert estimates.mean() == pytest.approx(0.75, abs=0.01)


def test_a_new_expert_changes_no_estimate_of_the_others() -> None:
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(60, 3))
    expert = np.arange(60) % 2
    task = np.arange(60) % 3
    nothing = np.zeros((60, 0))
    good = inputs[:, 0] + 0.5 * expert > 0
    model = ExpertRegression.fit(2, 3, inputs, nothing, task, expert, good, 0.5)
    more = fit_own(model, inputs, nothing, task, inputs[:, 1] > 0, 10.0)
    for expert_idx in (0, 1):
        who = np.full(60, expert_idx)
        before = model.log_odds(inputs, nothing, task, who)
        assert np.allclose(more.log_odds(inputs, nothing, task, who), before)
    newcomer = more.log_odds(inputs, nothing, task, np.full(60, 2))
    assert ((newcomer > 0) == (inputs[:, 1] > 0)).mean() > 0.9


def test_candidates_learn_what_a_new_expert_is_worth() -> None:
    """Estimates say even odds of everybody. The new expert is always right, the old one never."""
    before, after = np.zeros((40, 2)), np.zeros((40, 2))
    good = np.array([[False, True]] * 40)
    same = np.eye(2, dtype=bool)[None].repeat(40, axis=0)
    features = describe_candidates(hear((0, 1), before, after, same)).features
    size = features.shape[2]
    plain = CandidateModel(Standardiser(np.zeros(size), np.ones(size)), Logistic(np.zeros(size), 0))
    fitted = add_to_candidates(plain, before, after, same, good, 2, expert_idx=1)
    moved = np.flatnonzero(fitted.logistic.weights)
    assert moved.tolist() == [size - 3, size - 1]  # blocks of two: members, then rivals
    old, new = fitted.log_odds(features)[0]
    assert old < -1 and new > 1
    assert believe(hear((0, 1), before, after, same), plain).submitted.tolist() == [0] * 40
    assert believe(hear((0, 1), before, after, same), fitted).submitted.tolist() == [1] * 40


def test_coefficients_are_read_and_written_in_one_order() -> None:
    standard = Standardiser(np.zeros(2), np.ones(2))
    embedding = Standardiser(np.zeros(4), np.ones(4))
    model = ExpertRegression(3, 2, standard, embedding)
    size = 2 + 3 + 6 + 4 + 2 + 6
    object.__setattr__(model.logistic, "weights", np.arange(float(size)))
    found = Coefficients.of(model)
    assert found.in_order().tolist() == list(range(size))
    assert found.own.tolist() == [[5, 6], [7, 8], [9, 10]]
    assert found.embedding.tolist() == [11, 12, 13, 14]


def test_a_dropped_expert_is_never_called_and_the_others_keep_their_estimates(
    run: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    out = tmp_path / "less"
    test_ppo_multi.main(["--run", str(run), "--drop_expert", "adder", "--out", str(out)])
    records = [json.loads(line) for line in (out / "routes.jsonl").read_text().splitlines()]
    asked = {step["expert"] for record in records for step in record["steps"]}
    assert asked == {"small", "speller", "large"}
    questions = load_splits(load_config(run / "config.yaml").data).test
    before = agent_of(run).reader.priors(questions)
    after = agent_of(out).reader.priors(questions)
    assert np.allclose(after, before[:, [0, 2, 3]], atol=1e-5)


@pytest.mark.parametrize("name", ["speller", "adder"])
def test_an_order_is_not_followed_to_an_expert_that_left(
    run: Path,  # noqa: F811
    tmp_path: Path,
    name: str,
) -> None:
    """Without its second expert an order would end there; without its first nobody has a turn."""
    ordered = tmp_path / "ordered"
    shutil.copytree(run, ordered)
    agent = agent_of(run)
    costs = agent.reader.costs
    experts = (2, 1, 3)  # speller, adder, large
    gains = threshold_gains(experts, 0.78, costs, 0.2)
    agent.set_plans([plan_of(Order(experts, 0.78), gains, costs, 0.2, 3)])
    agent.actor.learned.data.zero_()
    save_agent(agent, ordered / "agent", build_pool(load_config(run / "config.yaml")))
    out = tmp_path / "less"
    test_ppo_multi.main(["--run", str(ordered), "--drop_expert", name, "--out", str(out)])
    rows = json.loads((out / "report" / "results.json").read_text())["rows"]
    returns = {row["policy"]: row["return"]["mean"] for row in rows}
    single = max(returns[expert] for expert in EXPERTS if expert != name)
    assert returns["DER"] > single + 0.1


def leave_and_join(run: Path, folder: Path, params_b: float) -> tuple[Path, Path]:  # noqa: F811
    """A run without its expert "large", and one that it has joined again at another size."""
    less = without_expert(run, "large", folder / "less")
    config = yaml.safe_load((run / "config.yaml").read_text())
    listed = [expert for expert in config["pool"]["experts"] if expert["name"] == "large"]
    listed[0]["params_b"] = params_b
    experts = folder / "experts.yaml"
    experts.write_text(yaml.safe_dump({"experts": listed}))
    return less, with_expert(less, experts, 60, folder / "more")


def test_an_expert_that_left_can_join_again(
    run: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    less, more = leave_and_join(run, tmp_path, params_b=8.0)
    questions = load_splits(load_config(run / "config.yaml").data).test
    agent = agent_of(more)
    priors = agent.reader.priors(questions)
    assert np.allclose(priors[:, :3], agent_of(less).reader.priors(questions), atol=1e-5)
    assert agent.reader.costs[3] == pytest.approx(1.0)  # 8 billion parameters at 0.125
    known = agent_of(run).reader.priors(questions)[:, 3]
    assert np.corrcoef(priors[:, 3], known)[0, 1] > 0.5


def test_a_new_expert_that_is_best_and_cheap_is_asked_first(
    run: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    """The old policy asks the others only: plans are fitted anew on the examples."""
    _, more = leave_and_join(run, tmp_path, params_b=1.0)
    config = load_config(more / "config.yaml")
    agent = agent_of(more)
    questions = [question.sealed() for question in load_splits(config.data).test]
    decisions = agent.act([Episode(question, 3) for question in questions])
    assert [decision.expert_idx for decision in decisions].count(3) > 0.5 * len(questions)
    assert agent.actor.learned.abs().max() == 0.0


def test_what_cannot_be_changed_is_refused(
    run: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    out = ["--out", str(tmp_path / "out")]
    with pytest.raises(ConfigError, match=r"--drop_expert nobody: the pool of .* has small, adder"):
        test_ppo_multi.main(["--run", str(run), "--drop_expert", "nobody", *out])
    with pytest.raises(ConfigError, match="in a new --out FOLDER"):
        test_ppo_multi.main(["--run", str(run), "--drop_expert", "adder"])
    empty = tmp_path / "experts.yaml"
    empty.write_text("experts: []")
    with pytest.raises(ConfigError, match="expected a list of experts"):
        test_ppo_multi.main(["--run", str(run), "--add_expert", str(empty), *out])


@pytest.mark.parametrize("number", ["0", "1", "1000"])
def test_too_few_and_too_many_examples_are_refused(
    run: Path,  # noqa: F811
    tmp_path: Path,
    number: str,
) -> None:
    less = without_expert(run, "large", tmp_path / "less")
    experts = tmp_path / "experts.yaml"
    listed = yaml.safe_load((run / "config.yaml").read_text())["pool"]["experts"]
    experts.write_text(yaml.safe_dump({"experts": listed[-1:]}))
    command = ["--run", str(less), "--add_expert", str(experts), "--out", str(tmp_path / "more")]
    with pytest.raises(ConfigError, match=rf"--examples {number}: must be from 2 to [0-9]+"):
        test_ppo_multi.main([*command, "--examples", number])
