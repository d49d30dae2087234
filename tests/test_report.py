"""From routes to results: rows, comparisons, words, prices and the trade-off by hand; baselines by
hand.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends.answer_store import Answer
from config import Config, RewardConfig
from der_env import Episode, Step
from evaluation.policies import FixedRoute
from evaluation.route_log import Overhead, PolicyRoutes, read_records, reprice, route_records
from evaluation.stats import interval, paired_difference
from questions import Question
from report.console import WIDTH, show, table
from report.policies import policies_of
from report.results import build_results, compare, oracle_figures
from report.routes import route_statistics
from report.summary import few_of
from reward import Cost
from rollout import Decision, NeverSatisfied, Route, play, score_routes
from runtime.errors import ReportError

CONFIG = Config(seed=3, reward=RewardConfig(alpha=0.1))
EXPERTS = [
    {"name": "e0", "params_b": 1.0},
    {"name": "e1", "params_b": 2.0},
    {"name": "e2", "params_b": 3.0},
]


# Of the names that tests give their policies; best fixed: ... is best_single
ROLES = {
    "DER": "der",
    "per-task lookup": "task_lookup",
    "random with KTP": "random",
    "full-information": "full_information",
    "all once, oracle's pick": "oracle_pick",
    "DER, oracle stop": "der_oracle",
    "full-information, oracle stop": "full_information_oracle",
    "optimum (hindsight)": "optimum",
}


def role_of(policy: str, kind: str) -> str:
    return "best_single" if policy.startswith("best fixed") else ROLES.get(policy, kind)


def made_step(expert_idx: int, quality: float, **cost: float) -> Step:
    return Step(
        expert_idx,
        Answer(f"answer of {expert_idx}", 3, 2, 0.5),
        Cost(**{"params_b": expert_idx + 1.0, **cost}),
        quality,
    )


def made_route(question: Question, *steps: Step) -> Route:
    return Route(
        Episode(question, 3, list(steps), "t_max"),
        [Decision(step.expert_idx, 0.25, 0.5) for step in steps],
    )


def one_call_routes(
    qualities: Sequence[Sequence[float]], tasks: Sequence[str]
) -> list[list[Route]]:
    """[expert][question] routes of one call; expert e costs e + 1 billion parameters."""
    questions = [Question(f"q{i}", f"question {i}", task=task) for i, task in enumerate(tasks)]
    return [
        [made_route(q, made_step(e, quality)) for q, quality in zip(questions, row, strict=True)]
        for e, row in enumerate(qualities)
    ]


@pytest.fixture
def logged(make_pool: Callable) -> Callable[..., list[dict[str, Any]]]:
    """`logged(policy, kind, routes, ...)`: the lines of a route log, over a pool of three
    experts.
    """
    pool = make_pool([lambda q, a: "x"] * 3)

    def log(
        policy: str,
        kind: str,
        routes: list[Route],
        overheads: list[Overhead] | None = None,
        seed: int = 3,
        role: str | None = None,
    ) -> list[dict[str, Any]]:
        references = {route.episode.question.id: "yes" for route in routes}
        role = role or role_of(policy, kind)
        played = PolicyRoutes(policy, kind, routes, overheads, seed, role=role)
        return list(route_records(played, pool, CONFIG, references))

    return log


def constant(qualities: Sequence[Sequence[int]], experts: Sequence[int]) -> list[Route]:
    """Routes of 1, 2, ... calls with these qualities, each call to the same expert."""
    questions = [
        Question(f"q{i}", f"question {i}", task="even" if i % 2 == 0 else "odd")
        for i in range(len(qualities))
    ]
    return [
        made_route(question, *(made_step(k, q) for q in row))
        for question, row, k in zip(questions, qualities, experts, strict=True)
    ]


def test_a_result_row_by_hand(logged: Callable) -> None:
    first, second = Question("a", "one", task="t"), Question("b", "two", task="u")
    routes = [
        made_route(
            first,
            made_step(
                0, 0.0, flops=10.0, prompt_tokens=3, completion_tokens=2, latency_s=0.5, usd=0.1
            ),
        ),
        made_route(
            second,
            made_step(
                0, 1.0, flops=20.0, prompt_tokens=5, completion_tokens=1, latency_s=0.25, usd=0.2
            ),
            made_step(
                1, 0.5, flops=40.0, prompt_tokens=9, completion_tokens=4, latency_s=1.25, usd=0.3
            ),
        ),
    ]
    best = [made_route(first, made_step(1, 1.0)), made_route(second, made_step(1, 1.0))]
    der, single = policies_of(
        [
            *logged("DER", "der", routes, [Overhead(0.5, 3.0, 0.01), Overhead(0.25, 1.0, 0.03)]),
            *logged("best fixed: e1", "static", best),
        ]
    )
    row = der.row(single)
    assert (row["policy"], row["kind"], row["charge"]) == ("DER", "der", 2.0)
    assert row["overhead"] == pytest.approx({"params_b": 0.375, "flops": 2.0, "latency_s": 0.02})
    assert row["quality"]["mean"] == 0.25  # the final answers' 0 and .5
    assert row["calls"]["mean"] == 1.5
    assert row["return"]["mean"] == pytest.approx(0.05)  # (0 - .1 x 1 + .5 - .1 x (1 + 2)) / 2
    expected = {
        "params_b": 2.0,
        "flops": 35.0,
        "prompt_tokens": 8.5,
        "completion_tokens": 3.5,
        "latency_s": 1.0,
        "usd": 0.3,
    }
    # Sums of a route, means over routes: (1 + 1 + 2) / 2 parameters, ...
    assert row["cost"] == pytest.approx(expected)
    assert row["vs_best_single"]["diff"] == pytest.approx(-0.75)  # -1 and -.5
    assert row["by_task"] == {"t": {"quality": 0.0, "n": 1}, "u": {"quality": 0.5, "n": 1}}
    unpriced = made_route(first, made_step(0, 0.0, usd=None))
    assert (
        policies_of(logged("x", "single", [unpriced, routes[1]]))[0].row(single)["cost"]["usd"]
        is None
    )


def test_seeds_are_rows_and_an_untrained_policy_is_one(logged: Callable) -> None:
    rng = np.random.default_rng(0)
    outcomes = (rng.random((3, 60)) < [[0.8], [0.9], [0.85]]).astype(float)
    records = [
        record
        for seed, row in enumerate(outcomes)
        for record in logged("DER", "der", constant([[q] for q in row], [0] * 60), seed=seed)
    ]
    fixed = (rng.random(60) < 0.5).astype(float)
    records += logged("best fixed: e1", "static", constant([[q] for q in fixed], [1] * 60), seed=0)
    der, best = policies_of(records)
    assert (
        der.seeds == [0, 1, 2]
        and der.quality == pytest.approx(outcomes)
        and best.quality.shape == (1, 60)
    )
    row = der.row(best)
    assert row["quality"]["mean"] == pytest.approx(outcomes.mean()) and row["by_seed"]["1"][
        "quality"
    ] == pytest.approx(outcomes[1].mean())
    assert row["vs_best_single"]["diff"] == pytest.approx(outcomes.mean() - fixed.mean())
    assert (
        row["quality"]["hi"] - row["quality"]["lo"] > 0
        and best.row(best)["vs_best_single"]["verdict"] == "not separable"
    )
    alone = policies_of(logged("DER", "der", constant([[q] for q in outcomes[0]], [0] * 60)))[
        0
    ].row(best)["quality"]
    assert [alone[name] for name in ("lo", "hi")] == [
        interval(outcomes[0])[name] for name in ("lo", "hi")
    ]
    compared = compare([der, best])
    assert [(c["a"], c["b"], c["measure"]) for c in compared] == [
        ("DER", "best fixed: e1", "quality"),
        ("DER", "best fixed: e1", "return"),
    ]
    assert compared[0]["wins"] + compared[0]["ties"] + compared[0]["losses"] == 60
    # One comparison a measure: nothing to adjust for
    assert all(c["p_adjusted"] == c["p"] for c in compared)


def test_p_is_adjusted_among_the_agents_comparisons_and_among_the_others(logged: Callable) -> None:
    # The first so many of 40 questions are right
    hits = {
        "DER": 30,
        "best fixed: e0": 22,
        "per-task lookup": 26,
        "random with KTP": 12,
    }
    kinds = {"DER": "der", "random with KTP": "random"}
    played = {
        name: logged(
            name, kinds.get(name, "static"), constant([[float(i < n)] for i in range(40)], [0] * 40)
        )
        for name, n in hits.items()
    }
    compared = [
        c
        for c in compare(policies_of([line for lines in played.values() for line in lines]))
        if c["measure"] == "quality"
    ]
    own = {c["b"]: c for c in compared if c["a"] == "DER"}
    p = {
        name: paired_difference(
            *([float(i < n) for i in range(40)] for n in (hits["DER"], hits[name]))
        )["p"]
        for name in own
    }
    first, second, third = sorted(p, key=p.get)
    # Holm's factors
    assert [own[name]["p_adjusted"] for name in (first, second, third)] == pytest.approx(
        [3 * p[first], 2 * p[second], p[third]]
    )
    others = [c for c in compared if c["a"] != "DER"]
    assert [(c["a"], c["b"]) for c in others] == [
        ("per-task lookup", "best fixed: e0"),
        ("per-task lookup", "random with KTP"),
        ("random with KTP", "best fixed: e0"),
    ]
    assert min(c["p_adjusted"] for c in others) == pytest.approx(3 * min(c["p"] for c in others))


def test_runs_that_saw_other_questions_are_not_mixed(logged: Callable) -> None:
    records = [
        *logged("DER", "der", constant([[1], [0]], [0, 0]), seed=0),
        *logged("DER", "der", constant([[1]], [0]), seed=1),
    ]
    with pytest.raises(ReportError, match=r"policy DER, seed 1: 1 routes for 2 questions"):
        policies_of(records)


def test_the_route_log_holds_what_was_sent_and_answered_and_can_be_read_back(
    make_pool: Callable, tmp_path: Path
) -> None:
    pool = make_pool([lambda q, a: "no", lambda q, a: "yes"])
    question = Question("a", "question one", task="t", _reference="yes")
    routes = play([question], FixedRoute([0, 1]), pool, NeverSatisfied(), 2)
    score_routes(routes, [question], pool.names)
    lines = [
        json.dumps(record)
        for record in route_records(
            PolicyRoutes("DER", "der", routes, seed=3), pool, CONFIG, {"a": "yes"}
        )
    ]
    (tmp_path / "routes.jsonl").write_text("\n".join(lines) + "\n")
    (record,) = read_records(tmp_path / "routes.jsonl")
    assert {
        key: record[key]
        for key in (
            "policy",
            "kind",
            "seed",
            "split",
            "question",
            "text",
            "reference",
            "task",
            "stop_reason",
            "quality",
            "return",
        )
    } == {
        "policy": "DER",
        "kind": "der",
        "seed": 3,
        "split": "test",
        "question": "a",
        "text": "question one",
        "reference": "yes",
        "task": "t",
        "stop_reason": "t_max",
        "quality": 1.0,
        "return": pytest.approx(0.7),  # 1 - .1 x (1 + 2)
    }
    assert [
        (step["expert"], step["answer"], step["quality"], step["charge"])
        for step in record["steps"]
    ] == [("e0", "no", 0.0, 1.0), ("e1", "yes", 1.0, 2.0)]
    # Really sent
    assert [step["prompt_hash"] for step in record["steps"]] == [
        short_hash(prompt) for expert in pool.experts for prompt in expert.prompts
    ]
    assert (
        record["steps"][0]["prompt"] == "question one"
        and "another student: no" in record["steps"][1]["prompt"]
    )
    (tmp_path / "routes.jsonl").write_text(lines[0] + "\n{broken\n")
    with pytest.raises(
        ReportError, match=r"routes\.jsonl:2: not valid JSON.*evaluate the run again"
    ):
        read_records(tmp_path / "routes.jsonl")
    with pytest.raises(ReportError, match=r"evaluate the run first"):
        read_records(tmp_path / "none" / "routes.jsonl")


def short_hash(prompt: str) -> str:
    return hashlib.sha256(prompt.encode()).hexdigest()[:16]


def test_routes_are_priced_again_from_the_log_alone(logged: Callable) -> None:
    routes = [
        made_route(
            Question("a", "one"),
            made_step(0, 0.0, flops=2e12, usd=None),
            made_step(1, 1.0, flops=3e12, usd=0.5),
        )
    ]
    records = logged("DER", "der", routes)
    assert records[0]["return"] == pytest.approx(0.7)
    (again,) = reprice(records, RewardConfig(alpha=0.1, cost_unit="TFLOP"))
    assert [step["charge"] for step in again["steps"]] == [2.0, 3.0] and again[
        "return"
    ] == pytest.approx(0.5)  # 1 - .1 x 5 of 1e12
    assert reprice(records, CONFIG.reward) == records
    with pytest.raises(ReportError, match="e0 has no price"):
        reprice(records, RewardConfig(cost_unit="USD"))


def der_and_rivals(logged: Callable, der: list[Route], fixed: list[Route]) -> dict[str, Any]:
    records = [
        *logged("DER", "der", der),
        *logged("best fixed: e2", "static", fixed),
        *logged("per-task lookup", "static", fixed),
    ]
    return build_results(records, CONFIG, EXPERTS, {})


def test_a_collapsed_agent_is_called_that(logged: Callable) -> None:
    qualities = [[i % 2] for i in range(40)]
    same = constant(qualities, [2] * 40)
    words = "\n".join(der_and_rivals(logged, same, same)["summary"])
    assert (
        "COLLAPSED, seed 3: 100% of the questions go to e2 first" in words
        and "0.00 bits" in words
        and "-0.00" not in words
    )
    assert "NO BETTER than a constant choice" in words and "NO BETTER than a table" in words
    assert (
        "minus alpha = 0.1 times the experts' cost C in billion parameters; intervals 95%"
        in der_and_rivals(logged, same, same)["notes"][0]
    )
    routed = constant([[1]] * 40, [i % 3 for i in range(40)])
    words = "\n".join(der_and_rivals(logged, routed, same)["summary"])
    assert "COLLAPSED" not in words and "NO BETTER" not in words and "DER beats" in words
    assert "33% of the parameters of asking every expert once" in words  # (1 + 2 + 3) / 3 of 6


def test_a_sentence_names_three_policies_and_counts_the_others() -> None:
    assert few_of(["a"]) == "a" and few_of(["a", "b", "c"]) == "a, b and c"
    assert few_of(["a", "b", "c", "d"]) == "a, b, c and 1 other"
    assert few_of(["a", "b", "c", "d", "e"]) == "a, b, c and 2 others"


def test_the_strongest_rivals_are_named(logged: Callable) -> None:
    hits = {"best fixed: e2": 10, "weak": 5, "strong": 20, "per-task lookup": 15, "weakest": 1}
    records = logged("DER", "der", constant([[1]] * 40, [0, 1] * 20))
    for name, count in hits.items():
        routes = constant([[float(i < count)] for i in range(40)], [0] * 40)
        records += logged(name, "static", routes)
    summary = build_results(records, CONFIG, EXPERTS, {})["summary"]
    (sentence,) = [line for line in summary if line.startswith("In return DER beats")]
    # Returns: DER 1 - .1 x 1.5 = .85; the others hits / 40 - .1, so e2 has .15
    assert sentence.index("strong (") < sentence.index("per-task lookup (")
    assert sentence.endswith("best fixed: e2 (+0.700) and 2 others.")


def test_policies_are_found_by_their_roles_whatever_they_are_called(logged: Callable) -> None:
    routes = {quality: constant([[quality]] * 10, [0] * 10) for quality in (0, 1)}
    records = [
        *logged("my agent", "der", routes[1], role="der"),
        *logged("best fixed: DER, oracle stop", "single", routes[1], role="single"),
        *logged("DER", "single", routes[1], role="single"),
        *logged("random with KTP", "static", routes[0], role="best_single"),
        *logged("optimum (hindsight)", "oracle", routes[0], role="der_oracle"),
    ]
    results = build_results(records, CONFIG, EXPERTS, {})
    assert [row["vs_best_single"]["diff"] for row in results["rows"]] == [1, 1, 1, 0, 0]
    assert results["oracle"].keys() == {"oracle_stop"}
    assert [(c["a"], c["b"]) for c in results["comparisons"]] == [
        ("my agent", "random with KTP"),
        ("optimum (hindsight)", "random with KTP"),
    ] * 2
    assert "NO BETTER" not in " ".join(results["summary"])


def test_a_log_without_roles_is_refused(logged: Callable) -> None:
    records = logged("DER", "der", constant([[1]] * 2, [0] * 2))
    del records[1]["role"]
    with pytest.raises(ReportError, match=r"older version: policy DER has no role\. Evaluate"):
        policies_of(records)


def test_a_log_without_the_agent_is_refused(logged: Callable) -> None:
    records = logged("best fixed: e0", "static", constant([[1]] * 2, [0] * 2))
    with pytest.raises(ReportError, match="lacks the agent"):
        build_results(records, CONFIG, EXPERTS, {})


def test_what_is_printed_fits_120_columns(logged: Callable) -> None:
    long_name = "best fixed route: " + " > ".join(["an-expert-with-a-long-name"] * 4)
    records = [
        *logged("DER", "der", constant([[1]] * 10, [0] * 10), [Overhead(1234.5)] * 10),
        *logged("best fixed: e0", "static", constant([[0]] * 10, [0] * 10)),
        *logged(long_name, "static", constant([[0]] * 10, [2] * 10)),
    ]
    text = show(build_results(records, CONFIG, EXPERTS, {}))
    assert max(map(len, text.splitlines())) <= WIDTH == 120
    lines = text.splitlines()
    assert lines[1].split()[-2:] == ["1,234,500", "better"]
    assert lines[3].startswith("best fixed route: an-expert-wit... ")


def test_answers_that_no_server_gave_are_noted(logged: Callable) -> None:
    records = [
        line
        for policy, kind in (("DER", "der"), ("best fixed: e2", "static"))
        for line in logged(policy, kind, constant([[1]] * 4, [2] * 4))
    ]

    def notes(failed):
        return "\n".join(
            build_results(records, CONFIG, EXPERTS, {"evaluation": {"answers_failed": failed}})[
                "notes"
            ]
        )

    assert "7 requests to experts failed for good and count as empty answers" in notes(
        7
    ) and "failed" not in notes(0)


def test_answers_that_did_not_end_by_themselves_are_counted_for_each_expert(
    logged: Callable,
) -> None:
    records = []
    for policy, kind in (("DER", "der"), ("best fixed: e2", "static")):
        records += logged(policy, kind, constant([[1]] * 4, [2] * 4))
    finishes = ("length", "length", "refusal", "stop")
    for number, record in enumerate(records):  # 4 questions of two policies, the same answers
        for step in record["steps"]:
            assert (step["finish"], step["logprob_mean"], step["logprob_min"]) == ("", None, None)
            step["finish"] = finishes[number % 4]
    results = build_results(records, CONFIG, EXPERTS, {})
    asked = [step["expert"] for record in records for step in record["steps"]]
    (name,) = set(asked)
    by_name = {expert["name"]: expert["endings"] for expert in results["experts"]}
    assert by_name[name] == {"answers": 4, "length": 2, "content_filter": 0, "refusal": 1}
    others = set(by_name) - {name}
    assert all(not any(by_name[other].values()) for other in others)
    note = f"Answers that did not end by themselves: {name} 2 out of tokens (max_new_tokens), 1"
    assert any(line.startswith(f"{note} refused of 4.") for line in results["notes"])
    for record in records:  # a log from before they were noted
        for step in record["steps"]:
            del step["finish"]
    results = build_results(records, CONFIG, EXPERTS, {})
    assert not any("by themselves" in line for line in results["notes"])


def test_a_collapse_is_looked_for_seed_by_seed(logged: Callable) -> None:
    # Of two agents each asks one expert, and not the same
    experts = {
        0: [0] * 40,
        1: [1] * 40,
        2: [2, 0] * 20,
    }
    records = [
        line
        for seed, asked in experts.items()
        for line in logged("DER", "der", constant([[1]] * 40, asked), seed=seed)
    ]
    found = build_results(
        [*records, *logged("best fixed: e2", "static", constant([[1]] * 40, [2] * 40))],
        CONFIG,
        EXPERTS,
        {},
    )
    words = "\n".join(found["summary"])
    assert (
        "seed 0: 100% of the questions go to e0" in words
        and "seed 1: 100% of the questions go to e1" in words
        and words.count("COLLAPSED") == 2
    )
    assert found["routes"]["entropy"] == pytest.approx(1 / 3)  # 0, 0 and 1 bit


def test_whom_the_agent_asks_by_hand(logged: Callable) -> None:
    question = lambda i: Question(f"q{i}", f"question {i}")  # noqa: E731
    routes = [
        made_route(question(0), made_step(0, 1)),
        made_route(question(1), made_step(0, 1)),
        made_route(question(2), made_step(0, 0), made_step(1, 1)),
    ]
    routes.append(made_route(question(3), made_step(2, 1), made_step(1, 0.5)))
    found = route_statistics(policies_of(logged("DER", "der", routes))[0], ["e0", "e1", "e2"])
    assert found["share"] == pytest.approx({"e0": 3 / 6, "e1": 2 / 6, "e2": 1 / 6})
    assert found["by_position"] == [
        {"e0": 0.75, "e1": 0.0, "e2": 0.25},
        {"e0": 0.0, "e1": 1.0, "e2": 0.0},
    ]
    # Routes 0, 0, 01, 21: 1/2 x 1 + 1/4 x 2 + 1/4 x 2 bits
    assert found["entropy"] == pytest.approx(1.5)
    assert {(f["step"], f["from"], f["to"]): f["count"] for f in found["flows"]} == {
        (1, "start", "e0"): 3,
        (1, "start", "e2"): 1,
        (2, "e0", "stop"): 2,
        (2, "e0", "e1"): 1,
        (2, "e2", "e1"): 1,
        (3, "e1", "stop"): 2,
    }
    # (+1 - .5) / 2
    assert found["further_calls"] == [{"call": 2, "routes": 2, "gain": 0.25, "charge": 2.0}]


def test_results_hold_the_gap_to_the_optimum_in_three_parts(logged: Callable) -> None:
    def of(policy: str, kind: str, hits: int) -> list[dict[str, Any]]:
        return logged(policy, kind, constant([[float(i < hits)] for i in range(10)], [0] * 10))

    records = [
        *of("DER", "der", 4),
        *of("best fixed: e0", "static", 3),
        *of("full-information", "learned", 5),
        *of("all once, oracle's pick", "oracle", 9),
    ]
    records += [
        *of("DER, oracle stop", "oracle", 6),
        *of("full-information, oracle stop", "oracle", 7),
        *of("optimum (hindsight)", "oracle", 9),
    ]
    results = build_results(records, CONFIG, EXPERTS, {"terminator": {"threshold": 0.5}})
    # .9 - .7, .7 - .6, .6 - .4
    assert results["oracle"]["gap"] == pytest.approx(
        {"information": 0.2, "learning": 0.1, "stopping": 0.2}
    )
    # .9 - .5, .5 - .6
    assert results["oracle"]["gap_own_stop"] == pytest.approx(
        {"information": 0.4, "learning": -0.1, "stopping": 0.2}
    )
    assert "gap" not in oracle_figures(policies_of(records[:-10]))  # without the optimum
    # An oracle is no rival
    assert not [c for c in results["comparisons"] if c["b"] == "full-information, oracle stop"]
    assert results["oracle"]["optimum"] == pytest.approx({"quality": 0.9, "return": 0.8})
    assert (
        results["terminator"] == {"threshold": 0.5} and json.loads(json.dumps(results)) == results
    )
    lines = table(results).splitlines()
    # 1 of 6 billion parameters
    assert len(lines) == 8 and "0.400" in lines[1] and "17%" in lines[1]
