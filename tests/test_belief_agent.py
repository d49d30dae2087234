"""The agent over beliefs: trained on recorded answers, killed and resumed, loaded and asked."""

from __future__ import annotations

import gc
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from recordings import make_rows, write_rows
from safetensors.torch import load_file, save_file

import test_ppo_multi
import train_ppo_multi
from agent import load_agent
from belief.budget import PlannedAlphas
from belief.outcome_model import count_questions
from belief_agent import BeliefActor, BeliefAgent
from config import EnvConfig
from der_env import Episode
from encoder import StateEncoder
from evaluation.budgets import swept
from evaluation.policies import FixedRoute
from experts import build_pool
from questions import Question, load_splits
from rollout import NeverSatisfied, play
from runtime.command_line import load_config
from runtime.errors import AgentError, ConfigError, DataError
from scripts.compare_evaluations import compare, lines, read_agents
from terminator import load_terminator, make_judge
from training.belief_trainer import BeliefTrainer, warn_of_handing_on

EXPERTS = {"small": 1.0, "adder": 2.0, "speller": 2.0, "large": 8.0}
SETTINGS = {
    "threads": 1,
    "device": "cpu",
    "env": {"t_max": 3, "submits": "best", "stop": "action", "continue_past_p0": 0},
    "reward": {"alpha": 0.2, "cost_unit": "8 billion parameters"},
    "agent": {"reads": "belief", "max_tokens": 32},
    "ppo": {"lr": 1e-4, "batch_size": 16, "repeats": 1},
    "train": {"epochs": 2, "updates_per_epoch": 2, "episodes_per_update": 16, "num_envs": 8},
}


@pytest.fixture(scope="module")
def config_path(tmp_path_factory: pytest.TempPathFactory, bert_encoder: Path) -> Path:
    root = tmp_path_factory.mktemp("belief")
    path = write_rows(root / "answers.jsonl", make_rows(150))
    experts = []
    for name, params_b in EXPERTS.items():
        expert = {"name": name, "kind": "recorded", "path": str(path), "params_b": params_b}
        experts.append(expert)
    data = {}
    for split in ("train", "validation", "test"):
        data[split] = {"path": str(path), "split": split}
    settings = SETTINGS | {
        "data": data,
        "pool": {"experts": experts, "store": str(root / "answers.sqlite")},
        "agent": SETTINGS["agent"] | {"encoder": str(bert_encoder)},
    }
    (root / "belief.yaml").write_text(yaml.safe_dump(settings))
    return root / "belief.yaml"


@pytest.fixture(scope="module")
def run(config_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        path = train_ppo_multi.main(["--config", str(config_path), "--name", "whole"])
    gc.collect()
    return folder / path


def metrics(run: Path) -> list[dict]:
    """The log without wall times and hit rates."""
    records = []
    for line in (run / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        kept = {k: v for k, v in record.items() if not k.startswith(("time/", "pool/"))}
        records.append(kept)
    return records


def test_the_plan_is_validated_before_the_first_update(run: Path) -> None:
    first = metrics(run)[0]
    assert (first["epoch"], first["update"]) == (0, 0)
    assert first["eval/is_best"] == 1.0


def test_a_route_over_beliefs_is_no_longer_than_the_pool(config_path: Path) -> None:
    """Nobody is asked twice: with calls left and a Terminator, somebody would have to be."""
    stops = ["--env.stop", "terminator", "--env.t_max"]
    assert load_config(config_path, [*stops, "9"]).env.t_max == len(EXPERTS)
    assert load_config(config_path, [*stops, "3"]).env.t_max == 3
    reads_text = ["--agent.reads", "text", "--env.submits", "last", *stops, "9"]
    assert load_config(config_path, reads_text).env.t_max == 9


@pytest.mark.slow
def test_a_resumed_run_repeats_an_uninterrupted_one(
    run: Path, config_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    one_epoch = ["--config", str(config_path), "--name", "cut", "--train.lr_decay", "false"]
    whole = train_ppo_multi.main([*one_epoch[:2], "--name", "all", "--train.lr_decay", "false"])
    gc.collect()

    class KilledError(Exception):
        pass

    update = BeliefTrainer.update

    def update_twice(trainer):
        if trainer.update_idx == 3:
            raise KilledError
        return update(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(BeliefTrainer, "update", update_twice)
        with pytest.raises(KilledError):
            train_ppo_multi.main(one_epoch)
    gc.collect()
    resumed = train_ppo_multi.main(["--resume", "runs/cut"])
    assert metrics(tmp_path / resumed) == metrics(tmp_path / whole)
    one = (tmp_path / whole / "agent" / "model.safetensors").read_bytes()
    assert (tmp_path / resumed / "agent" / "model.safetensors").read_bytes() == one


def test_a_loaded_agent_decides_within_its_limits(run: Path) -> None:
    config = load_config(run / "config.yaml")
    pool = build_pool(config)
    agent = load_agent(run / "agent", pool)
    assert isinstance(agent, BeliefAgent)
    judge = make_judge(agent, load_terminator(run / "terminator", torch.device("cpu")))
    questions = [question.sealed() for question in load_splits(config.data).test]
    routes = play(questions, agent, pool, judge, 3, submits="best", reader=agent.reader)
    for route in routes:
        asked = [step.expert_idx for step in route.episode.steps]
        assert 1 <= len(asked) <= 3
        assert len(set(asked)) == len(asked)  # nobody is asked twice
        estimates = route.episode.estimates
        assert estimates[route.episode.submitted_idx] == max(estimates)
    again = play(
        questions,
        load_agent(run / "agent", pool),
        pool,
        judge,
        3,
        submits="best",
        reader=agent.reader,
    )
    assert [r.episode.answers for r in again] == [r.episode.answers for r in routes]


def test_the_belief_and_the_route_submit_the_same_answer(run: Path) -> None:
    """Of answers that agree the best-looking is submitted, by the plan and on the route alike."""
    config = load_config(run / "config.yaml")
    pool = build_pool(config)
    agent = load_agent(run / "agent", pool)
    questions = [question.sealed() for question in load_splits(config.data).test]
    everyone = FixedRoute([3, 0, 2])
    routes = play(
        questions, everyone, pool, NeverSatisfied(), 3, submits="best", reader=agent.reader
    )
    episodes = [route.episode for route in routes]
    for rows, belief in agent.reader.beliefs(episodes):
        for place, row in enumerate(rows):
            assert episodes[row].submitted.expert_idx == belief.submitted[place]


def test_the_first_call_cannot_be_left_out(run: Path) -> None:
    config = load_config(run / "config.yaml")
    agent = load_agent(run / "agent", build_pool(config))
    question = load_splits(config.data).test[0].sealed()
    logits, _ = agent.actor(agent.reader.observe([Episode(question, 3)]))
    assert logits[0, -1] < -1e8
    assert torch.isfinite(logits[0, :-1]).all()


def test_scrambled_test_labels_change_nothing(
    run: Path, config_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = yaml.safe_load(config_path.read_text())
    source = Path(settings["data"]["test"]["path"])
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    for row in rows:
        if row["meta"]["split"] == "test":
            row["reference"] = "nothing that anybody says"
    scrambled = write_rows(tmp_path / "answers.jsonl", rows)
    settings["data"]["test"]["path"] = str(scrambled)
    (tmp_path / "scrambled.yaml").write_text(yaml.safe_dump(settings))
    other = train_ppo_multi.main(["--config", "scrambled.yaml", "--name", "scrambled"])
    assert metrics(tmp_path / other) == metrics(run)


def test_an_agent_that_reads_text_cannot_stop_by_itself(config_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"env\.stop: action is for agents that hold beliefs"):
        load_config(config_path, ["--agent.reads", "text"])


def test_a_second_training_reads_the_encodings_of_the_first(
    config_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("evaluation.kept.WORTH_ENCODING", 1)
    passes: list[int] = []
    encode = StateEncoder.pooled_here

    def counted(encoder: StateEncoder, rows: np.ndarray) -> torch.Tensor:
        passes.append(len(rows))
        return encode(encoder, rows)

    monkeypatch.setattr(StateEncoder, "pooled_here", counted)
    learned = []
    for name in ("first", "second"):
        options = ["--train.epochs", "1", "--name", name]
        path = train_ppo_multi.main(["--config", str(config_path), *options])
        learned.append((path / "agent" / "model.safetensors").read_bytes())
        if name == "first":
            assert sum(passes) > 0
            passes.clear()
    assert passes == []
    assert learned[0] == learned[1]


def test_beliefs_are_of_bare_questions_unless_a_prompt_is_named(config_path: Path) -> None:
    assert load_config(config_path).env.ktp == "none-v1"
    assert load_config(config_path, ["--env.ktp", "all-v1"]).env.ktp == "all-v1"
    text = ["--agent.reads", "text", "--env.stop", "terminator", "--env.submits", "last"]
    assert load_config(config_path, text).env.ktp == "paper-v1"


def test_a_pool_with_too_many_sets_of_experts_is_refused_with_the_length_that_fits(
    config_path: Path,
) -> None:
    settings = yaml.safe_load(config_path.read_text())
    expert = settings["pool"]["experts"][0]
    many = [expert | {"name": f"e{number}"} for number in range(24)]
    options = ["--pool.experts", json.dumps(many), "--env.t_max", "4"]
    # 24 + 276 + 2,024 sets of up to three experts, and 10,626 of four
    with pytest.raises(ConfigError, match=r"12,950 here, at most 3,000; set env\.t_max to 3"):
        load_config(config_path, options)
    assert load_config(config_path, [*options[:2], "--env.t_max", "3"]).env.t_max == 3


def test_few_training_questions_are_enough_and_one_is_refused(
    config_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["--config", str(config_path), "--train.epochs", "1", "--data.train.limit"]
    run = train_ppo_multi.main([*command, "3", "--name", "three"])
    assert (run / "agent").is_dir()
    with pytest.raises(DataError, match=r"1 training question: .* needs at least 2"):
        train_ppo_multi.main([*command, "1", "--name", "one"])


def test_plans_are_fitted_on_a_sample_of_the_questions_where_there_are_many_routes(
    config_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("belief.state.MAX_SET_ROWS", 30 * (1 + 4 + 6 + 4))  # sets of 0 to 3 of four
    options = ["--reward.alphas", "[0, 0.2]", "--train.epochs", "1", "--name", "sampled"]
    path = train_ppo_multi.main(["--config", str(config_path), *options])
    config = load_config(path / "config.yaml")
    assert load_agent(path / "agent", build_pool(config)).num_spent == 30


@pytest.mark.slow
def test_a_terminator_may_stop_the_agent_instead(
    config_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--env.stop", "terminator", "--train.epochs", "1", "--name", "ended"]
    path = train_ppo_multi.main(["--config", str(config_path), *options])
    threshold = load_terminator(tmp_path / path / "terminator", torch.device("cpu")).threshold
    assert 0 < threshold <= 0.95


def test_the_best_epoch_keeps_its_threshold(
    config_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    validate = BeliefTrainer.validate

    def validate_worse_each_time(trainer):
        figures = validate(trainer)
        trainer.validated = trainer.validated - trainer.epoch
        trainer.terminator.threshold = figures["terminator/threshold"] = 0.5 - trainer.epoch / 10
        return figures

    monkeypatch.setattr(BeliefTrainer, "validate", validate_worse_each_time)
    options = ["--env.stop", "terminator", "--train.epochs", "1", "--name", "best"]
    path = train_ppo_multi.main(["--config", str(config_path), *options])
    assert load_terminator(tmp_path / path / "terminator", torch.device("cpu")).threshold == 0.5


@pytest.mark.slow
@pytest.mark.parametrize("changes", [False, True])
def test_what_ppo_learned_is_kept_beside_the_plans_it_was_validated_with(
    changes: bool, config_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    validate = BeliefTrainer.validate

    def validate_better_each_time(trainer):
        figures = validate(trainer)
        trainer.validated = trainer.validated + trainer.epoch
        return figures

    monkeypatch.setattr(BeliefTrainer, "validate", validate_better_each_time)
    orders = itertools.count() if changes else itertools.repeat(0)
    monkeypatch.setattr("training.belief_trainer.orders_of", lambda plans: next(orders))
    options = ["--train.epochs", "1", "--name", "refitted"]
    path = train_ppo_multi.main(["--config", str(config_path), *options])
    agent = load_agent(tmp_path / path / "agent", build_pool(load_config(path / "config.yaml")))
    assert bool(agent.actor.learned.any()) == (not changes)


def test_a_gain_at_several_alphas_counts_once_a_question(config_path: Path) -> None:
    trainer = object.__new__(BeliefTrainer)
    trainer.config = load_config(config_path, ["--reward.alphas", "[0, 0.1, 0.2, 0.3, 0.4]"])
    of_questions = np.array([0.9, -0.1, 0.3, -0.5])  # mean 0.15, standard error 0.297
    trainer.best_validated = np.zeros(20)
    trainer.validated = np.tile(of_questions, 5)  # as 20 samples: standard error 0.119
    assert not trainer.is_best({})


@pytest.mark.slow
def test_one_agent_serves_all_alphas_it_was_trained_for_and_those_between(
    config_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--reward.alphas", "[0, 0.2, 1]", "--train.epochs", "1", "--name", "dial"]
    path = tmp_path / train_ppo_multi.main(["--config", str(config_path), *options])
    assert {f"eval/return/alpha_{alpha}" for alpha in ("0", "0.2", "1")} <= metrics(path)[0].keys()
    config = load_config(path / "config.yaml")
    pool = build_pool(config)
    agent = load_agent(path / "agent", pool)
    judge = make_judge(agent, load_terminator(path / "terminator", torch.device("cpu")))
    questions = [question.sealed() for question in load_splits(config.data).test]
    spent = []
    for alpha in (0.0, 0.1, 0.5, 1.0):
        agent.ask_with(alpha)
        routes = play(questions, agent, pool, judge, 3, submits="best", reader=agent.reader)
        spent.append(sum(route.episode.cost.params_b for route in routes))
    assert spent == sorted(spent, reverse=True)
    with pytest.raises(AgentError, match="trained for 0 to 1"):
        agent.ask_with(2.0)


def test_between_two_alphas_the_plans_are_interpolated() -> None:
    actor = BeliefActor(2, 2, [0.0, 0.2, 1.0], can_stop=True)
    shares = actor.shares(torch.tensor([0.0, 0.1, 0.6, 1.0]))
    expected = torch.tensor([[1, 0, 0], [0.5, 0.5, 0], [0, 0.5, 0.5], [0, 0, 1]])
    torch.testing.assert_close(shares, expected)


def test_beside_an_order_each_question_is_asked_with_one_weight_or_the_other(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights of an order and of a plan mean nothing halfway. With such weights an agent for code
    returned 0.78 between 0 and 0.02, and 0.84 with a share of the questions for each plan.
    """
    config = load_config(run / "config.yaml")
    reader = load_agent(run / "agent", build_pool(config)).reader
    episodes = [Episode(question.sealed(), 3) for question in load_splits(config.data).test]
    monkeypatch.setattr(reader, "planned", PlannedAlphas((0.0, 0.2, 1.0), (True, False, False)))
    reader.alpha = 0.05
    decided = reader.alphas_of(episodes).tolist()
    assert set(decided) == {0.0, 0.2}
    assert [reader.alpha_of(episode) for episode in episodes] == [0.05] * len(episodes)
    assert reader.observe(episodes)[:, -1].tolist() == pytest.approx(decided)
    reader.alpha = 0.2
    assert set(reader.alphas_of(episodes).tolist()) == {0.2}
    episodes[0].alpha = 1.0
    assert reader.alphas_of(episodes)[:2].tolist() == [1.0, 0.2]
    reader.alpha = 0.5  # between two plans
    assert reader.alphas_of(episodes)[:2].tolist() == [1.0, 0.5]


@pytest.mark.slow
def test_agents_over_beliefs_are_evaluated_at_every_alpha(
    config_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--reward.alphas", "[0, 0.2, 1]", "--train.epochs", "1", "--name", "curve"]
    train_ppo_multi.main(["--config", str(config_path), *options])
    arguments = ["--alphas", "0,0.2,1", "--run", "runs/curve", "--out", "runs/curves"]
    test_ppo_multi.main(arguments)
    results = json.loads((tmp_path / "runs/curves/report/results.json").read_text())
    assert results["curves"]["alphas"] == [0, 0.2, 1]
    assert results["curves"]["terminator"]["answers"] >= 3 * results["num_questions"]
    assert any(row["role"] == "plan" for row in results["rows"])
    agent = next(row for row in results["curves"]["rows"] if row["role"] == "der")
    spent = [point["cost"] for point in agent["points"]]
    assert spent == sorted(spent, reverse=True)
    evaluations = read_agents(tmp_path / "runs/curves", "der")
    plans = read_agents(tmp_path / "runs/curves", "plan")
    compared = compare(evaluations, plans)
    for one, point in zip(compared, agent["points"], strict=True):
        assert one.returns[0].mean() == pytest.approx(point["return"]["mean"])
        gap = one.returns[0].mean() - one.returns[1].mean()
        assert one.difference["diff"] == pytest.approx(gap)
    same = lines(compare(evaluations, evaluations))
    assert "+0.0000 [-" in same[-1]  # with the least error that so few questions allow
    test_ppo_multi.main(["--run", "runs/curve", "--out", "runs/budgets", "--budget", "all"])
    results = json.loads((tmp_path / "runs/budgets/report/results.json").read_text())
    budgets = results["budgets"]
    assert len(budgets) == 20
    costs = [one["cost"]["mean"] for one in budgets]
    expected = [one["expected"]["mean"] for one in budgets]
    assert expected == sorted(expected)  # a higher budget is expected to spend more
    # A question that changes to the lower weight may cost less there, by one call at most
    assert np.diff(costs).min() > -1 / results["num_questions"]
    assert costs[-1] > costs[0]
    assert sum(one["is_met"] for one in budgets) >= 18
    assert (tmp_path / "runs/budgets/report/budgets.png").is_file()


def test_a_budget_that_cannot_be_met_is_refused_before_anything_is_played(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """This agent has learned one weight of cost: neither a budget nor a sweep can be asked for."""
    for budget in ("5", "all"):
        command = ["--run", str(run), "--budget", budget, "--out", str(tmp_path / "out")]
        with pytest.raises(AgentError, match=r"train\.refit true and reward\.alphas"):
            test_ppo_multi.main(command)
    assert "DER, seed 0" not in capsys.readouterr().out


def test_the_same_text_is_estimated_for_each_task_that_it_is_asked_for(run: Path) -> None:
    """A server's clients name tasks: what one has asked must not change another's estimates."""
    text = "What is 2 plus 3?"
    pool = build_pool(load_config(run / "config.yaml"))
    fresh = []
    for task in ("add", "last"):
        agent = load_agent(run / "agent", pool)
        fresh.append(agent.reader.priors([Question("q", text, task=task)]))
    assert not np.allclose(fresh[0], fresh[1])
    agent = load_agent(run / "agent", pool)
    for task, expected in zip(("add", "last"), fresh, strict=True):
        assert np.allclose(agent.reader.priors([Question("q", text, task=task)]), expected)


def test_one_validation_question_does_not_replace_the_plan(config_path: Path) -> None:
    trainer = object.__new__(BeliefTrainer)
    trainer.config = load_config(config_path)
    trainer.best_validated = np.array([0.5])
    trainer.validated = np.array([0.9])
    assert not trainer.is_best({})


def test_a_sweep_starts_where_the_agent_can_follow() -> None:
    """Test questions may be cheaper than those of training, which tell what can be spent."""
    budgets = swept(np.array([0.5, 2.0, 3.0]), least=0.6)
    assert (budgets[0], budgets[-1], len(budgets)) == (0.6, 3.0, 20)
    assert swept(np.array([0.5, 2.0, 3.0]), least=0.4)[0] == 0.5


def test_however_dear_calls_are_an_expert_is_asked_first(run: Path) -> None:
    """At the least budget a call may weigh millions; stopping before it has to weigh more."""
    agent = load_agent(run / "agent", build_pool(load_config(run / "config.yaml")))
    agent.reader.costs = agent.reader.costs * 1e6
    agent.reader.alpha = 1e3
    questions = load_splits(load_config(run / "config.yaml").data).test
    decisions = agent.act([Episode(question.sealed(), 3) for question in questions])
    assert {decision.expert_idx for decision in decisions} == {0}  # the cheapest


def test_an_agent_of_a_version_that_read_fewer_features_is_refused(
    run: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(run / "agent", tmp_path / "agent"))
    state = load_file(folder / "model.safetensors")
    for name in ("belief.reader.mean", "belief.reader.scale"):
        state[name] = state[name][:-3].contiguous()
    save_file(state, folder / "model.safetensors")
    spec = json.loads((folder / "config.json").read_text())
    del spec["sha256"]
    (folder / "config.json").write_text(json.dumps(spec))
    pool = build_pool(load_config(run / "config.yaml"))
    num_inputs = len(state["belief.reader.mean"])
    expected = rf"its reader has {num_inputs} inputs, .* has {num_inputs + 3}.*: train again"
    with pytest.raises(AgentError, match=expected):
        load_agent(folder, pool)


def test_where_no_log_probability_is_known_none_has_a_weight(run: Path) -> None:
    agent = load_agent(run / "agent", build_pool(load_config(run / "config.yaml")))
    assert isinstance(agent, BeliefAgent)
    reader = agent.reader.model.reader
    num_inputs = len(reader.inputs.mean)
    weights = reader.logistic.weights
    places = [list(range(num_inputs))]  # of the shared inputs, then of each expert's own
    for expert_idx in range(len(EXPERTS)):
        start = num_inputs + len(EXPERTS) + expert_idx * num_inputs
        places.append(list(range(start, start + num_inputs)))
    question_size = count_questions([Question("q", "what?")]).size
    last = num_inputs - question_size
    for inputs in places:
        assert weights[inputs[last - 3 : last]].tolist() == [0.0, 0.0, 0.0]
        assert weights[inputs].any()


def test_who_hands_answers_on_to_experts_that_read_them_is_warned(
    run: Path, make_pool: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = make_pool([lambda question, previous: "yes"] * 2)
    assert "--env.ktp none-v1" in warn_of_handing_on(live, EnvConfig(t_max=2))
    assert warn_of_handing_on(live, EnvConfig(t_max=2, ktp="none-v1")) == ""
    assert warn_of_handing_on(live, EnvConfig(t_max=1)) == ""
    monkeypatch.chdir(run.parents[1])
    recorded = build_pool(load_config(run / "config.yaml", []))
    assert warn_of_handing_on(recorded, EnvConfig(t_max=2)) == ""
