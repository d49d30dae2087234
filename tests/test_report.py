"""From routes to numbers: intervals against scipy, rows and baselines by hand."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

import test_ppo_multi
from agent import build_agent
from answer_store import Answer
from baselines import FixedRoute, RandomRouting, TaskLookup, ask_all_pick_best, best_by_task, best_single_expert
from config import AgentConfig, Config, EvalConfig, RewardConfig
from der_env import Episode, Step
from questions import Question
from report import Overhead, Played, interval, paired_difference, result_row, route_record, table, write_report
from reward import Cost
from rollout import Decision, NeverSatisfied, Route, play

CONFIG = Config(seed=3, reward=RewardConfig(alpha=0.1), eval=EvalConfig(bootstrap=200))


def made_step(expert_idx: int, quality: float, **cost: float) -> Step:
    return Step(expert_idx, Answer(f"answer of {expert_idx}", 3, 2, 0.5), Cost(**{"params_b": expert_idx + 1.0, **cost}), quality)


def made_route(question: Question, *steps: Step) -> Route:
    return Route(Episode(question, 3, list(steps), "t_max"), [Decision(step.expert_idx, 0.25, 0.5) for step in steps])


def one_call_routes(qualities: Sequence[Sequence[float]], tasks: Sequence[str]) -> list[list[Route]]:
    """[expert][question] routes of one call; expert e costs e + 1 billion parameters."""
    questions = [Question(f"q{i}", f"question {i}", task=task) for i, task in enumerate(tasks)]
    return [[made_route(q, made_step(e, quality)) for q, quality in zip(questions, row, strict=True)] for e, row in enumerate(qualities)]


def test_an_interval_is_scipys_percentile_bootstrap() -> None:
    values = np.random.default_rng(0).beta(2, 1, size=200)
    found = interval(values, resamples=4000)
    expected = stats.bootstrap((values,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(1)).confidence_interval
    assert found["mean"] == pytest.approx(values.mean())
    # Both are Monte Carlo: an end differs by about its own sampling error, a few percent of the standard error of the mean.
    error = values.std() / np.sqrt(200)
    assert found["lo"] == pytest.approx(expected.low, abs=0.2 * error)
    assert found["hi"] == pytest.approx(expected.high, abs=0.2 * error)
    assert found["hi"] - found["lo"] == pytest.approx(2 * 1.96 * error, rel=0.08)  # and the normal approximation
    assert interval(values, resamples=200) == interval(values, resamples=200)


def test_paired_differences_use_the_pairing_and_say_what_they_show() -> None:
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 10, size=50)  # questions differ far more than policies do
    assert paired_difference(hard + 0.5 + rng.normal(0, 0.1, 50), hard, 500)["verdict"] == "better"
    assert paired_difference(hard - 0.5 + rng.normal(0, 0.1, 50), hard, 500)["verdict"] == "worse"
    noisy = paired_difference([1, 0, 1, 0], [0, 1, 0, 1], 500)
    assert noisy["verdict"] == "not separable" and noisy["diff"] == 0 and noisy["lo"] <= 0 <= noisy["hi"]
    assert paired_difference([1, 1], [1, 1], 200) == {"diff": 0.0, "lo": 0.0, "hi": 0.0, "verdict": "not separable"}  # with itself
    assert paired_difference([0.5, 1.0, 1.0], [0.25, 0.5, 0.75], 200)["diff"] == pytest.approx(1 / 3)  # (.25 + .5 + .25) / 3


def test_a_result_row_by_hand() -> None:
    first, second = Question("a", "one"), Question("b", "two")
    routes = [
        made_route(first, made_step(0, 0.0, flops=10.0, prompt_tokens=3, completion_tokens=2, latency_s=0.5, usd=0.1)),
        made_route(
            second,
            made_step(0, 1.0, flops=20.0, prompt_tokens=5, completion_tokens=1, latency_s=0.25, usd=0.2),
            made_step(1, 0.5, flops=40.0, prompt_tokens=9, completion_tokens=4, latency_s=1.25, usd=0.3),
        ),
    ]
    best_single = Played("best", "static", [made_route(first, made_step(1, 1.0)), made_route(second, made_step(1, 1.0))])
    row = result_row(Played("DER", "der", routes, Overhead(0.5, 3.0, 0.01)), best_single, CONFIG)
    assert (row["policy"], row["kind"], row["overhead"]) == ("DER", "der", {"params_b": 0.5, "flops": 3.0, "latency_s": 0.01})
    assert row["quality"]["mean"] == 0.25  # the final answers' 0 and .5
    assert row["calls"]["mean"] == 1.5
    assert row["return"]["mean"] == pytest.approx(0.05)  # (0 - .1 x 1 + .5 - .1 x (1 + 2)) / 2
    expected = {"params_b": 2.0, "flops": 35.0, "prompt_tokens": 8.5, "completion_tokens": 3.5, "latency_s": 1.0, "usd": 0.3}
    assert row["cost"] == pytest.approx(expected)  # sums of a route, means over routes: (1 + 1 + 2) / 2 parameters, ...
    assert row["vs_best_single"]["diff"] == pytest.approx(-0.75) and row["vs_best_single"]["verdict"] == "worse"  # -1 and -.5
    unpriced = made_route(first, made_step(0, 0.0, usd=None))
    assert result_row(Played("x", "single", [unpriced, routes[1]]), best_single, CONFIG)["cost"]["usd"] is None


def test_the_routes_of_a_report_can_be_read_back(make_pool: Callable, tmp_path: Path) -> None:
    pool = make_pool([lambda q, a: "no", lambda q, a: "yes"])
    question = Question("a", "question one", task="t", _reference="yes")
    routes = play([question], FixedRoute([0, 1]), pool, NeverSatisfied(), 2)
    test_ppo_multi.score_routes(routes, [question])
    played = Played("fixed", "static", routes)
    rows = [result_row(played, played, CONFIG)]
    write_report(tmp_path, [played], rows, pool, CONFIG, {"comparisons": []})
    record = json.loads((tmp_path / "routes.jsonl").read_text())
    assert {key: record[key] for key in ("policy", "kind", "seed", "split", "question", "task", "stop_reason", "quality", "return")} == {
        "policy": "fixed",
        "kind": "static",
        "seed": 3,
        "split": "test",
        "question": "a",
        "task": "t",
        "stop_reason": "t_max",
        "quality": 1.0,
        "return": pytest.approx(0.7),  # 1 - .1 x (1 + 2)
    }
    assert [(step["expert"], step["answer"], step["quality"], step["charge"]) for step in record["steps"]] == [("e0", "no", 0.0, 1.0), ("e1", "yes", 1.0, 2.0)]
    hashes = [short_hash(prompt) for expert in pool.experts for prompt in expert.prompts]  # of what the experts were really sent
    assert [step["prompt_hash"] for step in record["steps"]] == hashes
    assert json.loads((tmp_path / "report" / "results.json").read_text())["rows"] == rows
    line = table(rows, pool).splitlines()[1]
    assert "1.000 [1.000, 1.000]" in line and "100%" in line and "not separable" in line  # 3 of the pool's 3 billion parameters


def short_hash(prompt: str) -> str:
    return hashlib.sha256(prompt.encode()).hexdigest()[:16]


def test_the_best_single_expert_is_best_in_quality_and_the_lookup_in_return() -> None:
    tasks = ["sums", "sums", "spell", "spell"]
    singles = one_call_routes([[1, 0, 0, 0], [1, 1, 1, 0], [0, 0, 1, 1]], tasks)  # means .25, .75, .5
    assert best_single_expert(singles) == 1
    assert best_single_expert(one_call_routes([[0.5], [0.5625]], ["t"])) == 1  # whatever it costs
    # Costs 1, 2, 3. sums: .5 - .1, 1 - .2, 0 - .3; spell: 0 - .1, .5 - .2, 1 - .3
    assert best_by_task(singles, RewardConfig(alpha=0.1)) == {"sums": 1, "spell": 2}
    # At alpha .6 only the cheapest pays: sums .5 - .6, 1 - 1.2, -1.8; spell -.6, .5 - 1.2, 1 - 1.8
    assert best_by_task(singles, RewardConfig(alpha=0.6)) == {"sums": 0, "spell": 0}


def test_asking_all_takes_the_best_answer_at_everyones_cost(make_pool: Callable) -> None:
    singles = one_call_routes([[1.0, 0.0], [0.25, 0.5], [0.0, 0.75]], ["t", "t"])
    routes = ask_all_pick_best(singles)
    assert [route.quality for route in routes] == [1.0, 0.75]
    assert [route.episode.steps[-1].expert_idx for route in routes] == [0, 2]
    assert [route.value_under(RewardConfig(alpha=0.1)) for route in routes] == pytest.approx([0.4, 0.15])  # minus .1 x (1 + 2 + 3)
    assert [sorted(step.expert_idx for step in route.episode.steps) for route in routes] == [[0, 1, 2]] * 2
    # The route log shows the prompts really sent: everyone was asked the bare question.
    pool = make_pool([lambda q, a: "x"] * 3)
    record = route_record(Played("all", "oracle", routes), routes[0], pool, CONFIG, "test")
    assert {step["prompt_hash"] for step in record["steps"]} == {short_hash("question 0")}


def test_a_task_that_validation_never_saw_goes_to_the_fallback() -> None:
    lookup = TaskLookup({"sums": 2}, fallback=1)
    fresh = [Episode(Question("a", "x", task=task), 3) for task in ("sums", "new")]
    assert [decision.expert_idx for decision in lookup.act(fresh)] == [2, 1]
    asked = [Episode(e.question, 3, [made_step(2, 1.0)]) for e in fresh]
    assert [decision.expert_idx for decision in lookup.act(asked)] == [None, None]


def test_random_routing_is_uniform_and_does_not_depend_on_the_order_of_play() -> None:
    questions = [Question(f"family-{i % 7}-{i:04d}", f"question {i}") for i in range(600)]
    episodes = [Episode(question, 3, [made_step(0, 0.0)] * calls) for question in questions for calls in (0, 1)]
    policy = RandomRouting(4, seed=0)
    drawn = [decision.expert_idx for decision in policy.act(episodes)]
    assert [decision.expert_idx for decision in RandomRouting(4, seed=0).act(episodes[::-1])][::-1] == drawn
    assert [policy.act([episode])[0].expert_idx for episode in episodes] == drawn
    assert stats.chisquare(np.bincount(drawn)).pvalue > 0.001  # 1200 draws over four experts
    pairs = np.array(drawn[0::2]) * 4 + np.array(drawn[1::2])
    assert stats.chisquare(np.bincount(pairs, minlength=16)).pvalue > 0.001  # the second call is independent of the first
    assert drawn != [decision.expert_idx for decision in RandomRouting(4, seed=1).act(episodes)]


def test_random_routing_tells_questions_apart_by_their_whole_id() -> None:
    policy = RandomRouting(1000, seed=0)
    first, second = (policy.act([Episode(Question(f"{family}/question-000001", "x"), 3)])[0].expert_idx for family in ("sums", "spell"))
    assert first != second


def test_overhead_counts_one_encoder_pass_per_state_read(bert_encoder: Path) -> None:
    agent = build_agent(AgentConfig(encoder=str(bert_encoder), max_tokens=32), 2, 3)
    question = Question("a", "what is the sum")  # 4 tokens, 7 with [CLS] and two [SEP]
    step = Step(0, Answer("yes", 1, 1, 0.1), Cost(), 1.0)  # one token more: 8
    routes = [made_route(question, step), made_route(question, step, step)]
    params = sum(p.numel() for p in agent.encoder.model.parameters())
    # DER reads the bare question and the state after each call: 2 and 3 passes, 7 + 8 and 7 + 8 + 8 tokens.
    der = test_ppo_multi.overhead(agent, 3, routes, uses_agent=True)
    assert der.params_b == pytest.approx(2.5 * params / 1e9)
    assert der.flops == pytest.approx(2 * params * (15 + 23) / 2)
    # The Terminator alone does not read the bare question: 1 and 2 passes.
    terminator = test_ppo_multi.overhead(agent, 3, routes, uses_agent=False)
    assert terminator.params_b == pytest.approx(1.5 * params / 1e9)
    assert terminator.flops == pytest.approx(2 * params * (8 + 16) / 2)
    assert terminator.latency_s > 0 and der.latency_s > 0
