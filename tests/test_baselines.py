"""Baselines by hand: constants, lookups, routers and votes on tables; policies; what deciding
takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from agent import build_agent
from backends.answer_store import Answer
from config import AgentConfig, RewardConfig
from der_env import Episode, Step
from evaluation.answer_table import AnswerTable, pick_best
from evaluation.baselines import (
    cheapest_first,
    fit_best_single,
    fit_task_lookup,
    highest_mean,
    logistic,
    nearest_neighbours,
    vote,
)
from evaluation.overheads import overheads
from evaluation.policies import RandomRouting, RoundRobin
from evaluation.views import FittedRule, View, Views, choose_variant
from questions import Question
from reward import Cost
from rollout import Decision, Route

NAMES = ["e0", "e1", "e2"]


def made_table(
    qualities: Sequence[Sequence[float]],
    tasks: Sequence[str],
    texts: Sequence[Sequence[str]] | None = None,
    groups: Sequence[Sequence[int]] | None = None,
) -> AnswerTable:
    """Row k of qualities is of expert k, who costs k + 1."""
    quality = np.array(qualities, dtype=float).T
    num_questions, num_experts = quality.shape
    questions = [Question(f"q{i}", f"question {i}", task=task) for i, task in enumerate(tasks)]
    said = texts or [[f"answer of {k}" for k in range(num_experts)]] * num_questions
    answers, costs = [], []
    for row in said:
        answers.append([Answer(text, 3, 2, 0.5) for text in row])
        costs.append([Cost(params_b=k + 1.0) for k in range(num_experts)])
    charge = np.tile(np.arange(num_experts) + 1.0, (num_questions, 1))
    grouped = np.tile(np.arange(num_experts), (num_questions, 1))
    if groups is not None:
        grouped = np.array(groups)
    return AnswerTable(questions, answers, costs, charge, grouped, quality)


def view_of(table: AnswerTable) -> View:
    return View(table, lambda: pytest.fail("nothing to read"), lambda: pytest.fail("no estimates"))


def picks(rule: FittedRule, table: AnswerTable) -> list[int]:
    return rule.choose(view_of(table.sealed())).submitted.tolist()


def test_the_best_single_expert_is_best_in_quality_or_in_return() -> None:
    table = made_table([[1, 0, 0, 0], [1, 1, 1, 0], [0, 0, 1, 1]], ["t"] * 4)
    assert highest_mean(table.quality) == 1  # .25, .75, .5
    close = view_of(made_table([[0.5], [0.5625]], ["t"]))
    assert fit_best_single(close, 0.0, NAMES).description == "e1"
    assert fit_best_single(close, 0.1, NAMES).description == "e0"  # .4, .3625
    assert picks(fit_best_single(close, 0.0, NAMES), table) == [1] * 4
    dear_first = made_table([[0, 0], [0, 0], [0, 0]], ["t", "t"])
    dear_first.charge[:] = [3.0, 1.0, 2.0]
    assert cheapest_first(dear_first) == [1, 2, 0]


def test_the_lookup_asks_whom_the_task_pays() -> None:
    tasks = ["sums", "sums", "spell", "spell"]
    table = made_table([[1, 0, 0, 0], [1, 1, 1, 0], [0, 0, 1, 1]], tasks)
    # Costs 1, 2, 3. sums: .5 - .1, 1 - .2, 0 - .3; spell: 0 - .1, .5 - .2, 1 - .3
    assert picks(fit_task_lookup(view_of(table), 0.1, NAMES, 0.0), table) == [1, 1, 2, 2]
    # At alpha .6 only the cheapest pays: sums .5 - .6, 1 - 1.2, -1.8; spell -.6, .5 - 1.2, 1 - 1.8
    assert picks(fit_task_lookup(view_of(table), 0.6, NAMES, 0.0), table) == [0] * 4
    # Drawn to the overall means (.15, .55, .2) by 10 questions, spell goes to expert 1, too:
    # (2 x -.1 + 1.5) / 12, (2 x .3 + 5.5) / 12, (2 x .7 + 2) / 12
    assert picks(fit_task_lookup(view_of(table), 0.1, NAMES, 10.0), table) == [1] * 4


def test_a_task_that_was_never_seen_goes_to_the_best_expert_over_all() -> None:
    table = made_table([[1, 0, 0, 0], [1, 1, 1, 0], [0, 0, 1, 1]], ["sums"] * 2 + ["spell"] * 2)
    new = made_table([[0], [0], [0]], ["capitals"])
    assert picks(fit_task_lookup(view_of(table), 0.1, NAMES, 0.0), new) == [1]


def test_asking_all_takes_the_best_answer_at_everyones_cost() -> None:
    table = made_table([[1.0, 0.0], [0.25, 0.5], [0.0, 0.75]], ["t", "t"])
    routes = table.routes(pick_best(table))
    assert [route.quality for route in routes] == [1.0, 0.75]
    returns = [route.return_under(RewardConfig(alpha=0.1)) for route in routes]
    assert returns == pytest.approx([0.4, 0.15])  # minus .1 x (1 + 2 + 3)
    assert [route.episode.submitted.expert_idx for route in routes] == [0, 2]


def test_the_vote_goes_to_the_most_agreed_and_ties_to_the_best_expert() -> None:
    def winner(groups: list[int], best: int) -> int:
        table = made_table([[0.0]] * len(groups), ["t"], groups=[groups])
        choices = vote(table.sealed(), best)
        assert (choices.order == np.arange(len(groups))).all()  # all are paid for
        return int(choices.submitted[0])

    assert winner([0, 1, 0], 1) == 0
    assert winner([0, 1, 2], 2) == 2
    assert winner([0, 1, 1, 0, 2], 4) == 0  # a tie without the best expert: the earliest
    assert winner([-1, -1, 0], 0) == 2  # what cannot be read is no vote
    assert winner([-1, -1, -1], 1) == 1


def test_fitted_routers_find_who_knows_what() -> None:
    rng = np.random.default_rng(0)
    kind = rng.integers(2, size=200)
    features = rng.normal(size=(200, 8)) + 4 * (2 * kind[:, None] - 1) * np.eye(8)[0]
    quality = np.column_stack([kind == 0, kind == 1, np.ones(200)]).astype(float)
    costs = np.array([1.0, 2.0, 3.0])
    known, new = features[:150], features[150:]

    def routed(alpha: float) -> list[np.ndarray]:
        returns = quality[:150] - alpha * costs
        by_neighbours = nearest_neighbours(known, returns, 10)
        by_regression = logistic(known, quality[:150] >= 1.0, alpha * costs, 1.0)
        return [by_neighbours(new).argmax(axis=1), by_regression(new).argmax(axis=1)]

    for choice in routed(0.1):
        # Expert 2 knows everything, but at .1 a billion the specialist that knows is better: 1 - .1
        # and 1 - .2 against 1 - .3.
        assert np.mean(choice == kind[150:]) > 0.95
    for choice in routed(2.0):
        # At 2 nothing is worth its cost, and the cheapest loses least: 1 - 4 against 0 - 2 where
        # expert 1 alone knows.
        assert (choice == 0).all()


def test_a_variant_is_chosen_on_validation_and_fitted_again_on_all_that_is_known() -> None:
    training = made_table([[1] * 4, [0] * 4, [0] * 4], ["t"] * 4)
    validation = made_table([[0] * 6, [0] * 6, [1] * 6], ["t"] * 6)
    test = made_table([[0], [1], [0]], ["t"])
    seen: list[int] = []

    def always_last(view: View) -> FittedRule:
        seen.append(len(view.table))
        return fit_best_single(view_of(validation), 0.0, NAMES)

    def best(view: View) -> FittedRule:
        return fit_best_single(view, 0.0, NAMES)

    embed = lambda table: pytest.fail("nothing is read")  # noqa: E731
    views = Views(training, validation, test, embed, 1.0, 2)
    chosen = choose_variant(views, [best, always_last], 0.0)
    assert chosen.validation_return == 1.0 and chosen.choices.submitted.tolist() == [2]
    assert seen == [4, 10]  # training, then both
    # Without answers to training questions the first variant learns from validation questions
    views = Views(None, validation, test, embed, 1.0, 2)
    assert choose_variant(views, [best], 0.0).choices.submitted.tolist() == [2]


def test_what_is_chosen_on_does_not_hold_the_qualities() -> None:
    table = made_table([[1, 0], [0, 1], [1, 1]], ["t", "t"])

    def look(view: View) -> FittedRule:
        def choose(other: View):
            assert np.isnan(other.table.quality).all()
            return fit_best_single(view, 0.0, NAMES).choose(other)

        return FittedRule("looks", choose)

    views = Views(table, table, table, lambda t: pytest.fail("nothing is read"), 1.0, 2)
    choose_variant(views, [look], 0.0)


# --- policies ---


def asked(*expert_idxs: int) -> list[Step]:
    return [Step(k, Answer("x", 1, 1, 0.1), Cost(), 0.0) for k in expert_idxs]


def test_round_robin_takes_turns_over_questions_and_calls() -> None:
    questions = [Question(f"q{i}", "x") for i in range(4)]
    policy = RoundRobin(3, [q.id for q in questions])
    assert [d.expert_idx for d in policy.act([Episode(q, 3) for q in questions[::-1]])] == [
        0,
        2,
        1,
        0,
    ]
    assert [d.expert_idx for d in policy.act([Episode(q, 3, asked(0)) for q in questions])] == [
        1,
        2,
        0,
        1,
    ]


def test_random_routing_is_uniform_and_does_not_depend_on_the_order_of_play() -> None:
    questions = [Question(f"family-{i % 7}-{i:04d}", f"question {i}") for i in range(600)]
    episodes = [
        Episode(question, 3, asked(*[0] * calls)) for question in questions for calls in (0, 1)
    ]
    policy = RandomRouting(4, seed=0)
    drawn = [decision.expert_idx for decision in policy.act(episodes)]
    assert [decision.expert_idx for decision in RandomRouting(4, seed=0).act(episodes[::-1])][
        ::-1
    ] == drawn
    assert [policy.act([episode])[0].expert_idx for episode in episodes] == drawn
    assert stats.chisquare(np.bincount(drawn)).pvalue > 0.001  # 1200 draws over four experts
    pairs = np.array(drawn[0::2]) * 4 + np.array(drawn[1::2])
    # The second call is independent of the first
    assert stats.chisquare(np.bincount(pairs, minlength=16)).pvalue > 0.001
    assert drawn != [decision.expert_idx for decision in RandomRouting(4, seed=1).act(episodes)]


def test_random_routing_tells_questions_apart_by_their_whole_id() -> None:
    policy = RandomRouting(1000, seed=0)
    first, second = (
        policy.act([Episode(Question(f"{family}/question-000001", "x"), 3)])[0].expert_idx
        for family in ("sums", "spell")
    )
    assert first != second


def test_overhead_counts_one_encoder_pass_per_state_read(bert_encoder: Path) -> None:
    agent = build_agent(AgentConfig(encoder=str(bert_encoder), max_tokens=32), 2, 3)
    question = Question("a", "what is the sum")  # 4 tokens, 7 with [CLS] and two [SEP]
    step = Step(0, Answer("yes", 1, 1, 0.1), Cost(), 1.0)  # one token more: 8
    routes = []
    for steps in ([step], [step, step]):
        routes.append(Route(Episode(question, 3, steps), [Decision(0)] * len(steps)))
    params = sum(p.numel() for p in agent.encoder.model.parameters())
    # DER reads the bare question and the state after each call: 2 and 3 passes, 7 + 8 and 7 + 8 + 8
    # tokens.
    der = overheads(agent, routes, 0.5)
    assert [o.params_b for o in der] == pytest.approx([2 * params / 1e9, 3 * params / 1e9])
    assert [o.flops for o in der] == pytest.approx([2 * params * 15, 2 * params * 23])
    assert [o.latency_s for o in der] == [1.0, 1.5]
    # The Terminator alone does not read the bare question; a router that asks once reads nothing
    # else.
    assert [o.flops for o in overheads(agent, routes, 0.5, reads_question=False)] == pytest.approx(
        [2 * params * 8, 2 * params * 16]
    )
    assert [o.flops for o in overheads(agent, routes, 0.5, reads_answers=False)] == pytest.approx(
        [2 * params * 7, 2 * params * 7]
    )
    known = {("what is the sum", None): 100}  # what is known is not counted again
    again = overheads(agent, routes, 0.5, known)
    assert [o.flops for o in again] == pytest.approx([2 * params * 108, 2 * params * 116])
    assert known["what is the sum", "yes"] == 8
