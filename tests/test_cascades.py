"""Rules on answer tables against brute force: every order, question by question, in plain loops."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from backends.answer_store import Answer
from belief.state import Belief, agreement, asked_sets
from belief.stopping import stop_inputs
from config import RewardConfig
from evaluation.answer_table import AnswerTable, Choices, ask_all, pick_best
from evaluation.cascade_routing import CascadeRouting, fit_cascade_routing
from evaluation.cascades import (
    AgreementCascade,
    ThresholdCascade,
    candidate_orders,
    fit_agreement_cascade,
    fit_threshold_cascade,
    read_all,
    read_each,
    read_last,
)
from evaluation.estimates import Estimates, Estimator, TableFeatures
from evaluation.learned_stop import LearnedStop, fit_learned_stop
from evaluation.planned import fit_planned
from questions import Question
from reward import Cost

ALPHA, T_MAX = 0.07, 3
NUM_QUESTIONS, NUM_EXPERTS = 60, 4


def made_table(
    seed: int, num_questions: int = NUM_QUESTIONS, num_experts: int = NUM_EXPERTS
) -> AnswerTable:
    """Answers are numbers from 0 to 3 or unreadable; 0 is right; costs rise with the expert."""
    rng = np.random.default_rng(seed)
    given = rng.integers(-1, 4, (num_questions, num_experts))
    is_right = rng.random((num_questions, num_experts)) < 0.3 + 0.1 * np.arange(num_experts)
    given[is_right] = 0
    questions, answers, costs = [], [], []
    for row, numbers in enumerate(given):
        questions.append(Question(f"q{row}", f"question {row}", _reference="0"))
        texts = ["no idea" if number < 0 else str(number) for number in numbers]
        answers.append([Answer(text, 0, 0, 0.0) for text in texts])
        costs.append([Cost(expert_idx + 1.0) for expert_idx in range(num_experts)])
    charge = np.tile(np.arange(num_experts) + 1.0, (num_questions, 1))
    return AnswerTable(questions, answers, costs, charge, given, (given == 0).astype(float))


def made_estimates(table: AnswerTable, seed: int) -> Estimates:
    """Estimates that know something of the qualities, and beliefs in the answer estimated best."""
    rng = np.random.default_rng(seed)
    shape = table.quality.shape
    after = np.clip(0.3 * table.quality + 0.7 * rng.random(shape), 0.02, 0.98)
    beliefs = {}
    for asked in itertools.chain.from_iterable(asked_sets(shape[1], T_MAX)[1:]):
        members = np.array(asked)
        estimates = after[:, members]
        best = estimates.argmax(axis=1)
        same = table.groups[:, members] == table.groups[np.arange(shape[0]), members[best]][:, None]
        beliefs[asked] = Belief(
            asked=asked,
            p=estimates.max(axis=1),
            second=np.sort(estimates, axis=1)[:, -2] if len(asked) > 1 else np.zeros(shape[0]),
            size=same.sum(axis=1).astype(float),
            distinct=np.array([len(set(row)) for row in table.groups[:, members]], dtype=float),
            submitted=members[best],
            estimates=estimates,
        )
    return Estimates(np.full(shape, 0.5), after, beliefs)


def every_order(num_experts: int = NUM_EXPERTS, t_max: int = T_MAX) -> list[tuple[int, ...]]:
    return [o for n in range(1, t_max + 1) for o in itertools.permutations(range(num_experts), n)]


def value(table: AnswerTable, row: int, asked: Sequence[int], submitted: int) -> float:
    """Return of one question."""
    spent = sum(table.charge[row, expert] for expert in asked)
    return float(table.quality[row, submitted] - ALPHA * spent)


# --- tables ---


def test_choices_become_routes_of_the_same_quality_and_return() -> None:
    table = made_table(0)
    order = np.tile([2, 0, -1], (len(table), 1))
    order[::2, 2] = 3
    choices = Choices(order, np.full(len(table), 2))
    routes = table.routes(choices)
    reward = RewardConfig(alpha=ALPHA)
    for row, route in enumerate(routes):
        asked = [2, 0, 3] if row % 2 == 0 else [2, 0]
        assert [step.expert_idx for step in route.episode.steps] == asked
        assert route.quality == table.quality[row, 2] and route.episode.submitted_idx == 0
        assert route.return_under(reward) == pytest.approx(value(table, row, asked, 2))
        assert route.episode.stop_reason == ("t_max" if row % 2 == 0 else "stopped")
    expected = np.mean([route.return_under(reward) for route in routes])
    assert table.mean_return(choices, ALPHA) == pytest.approx(expected)


def test_a_sealed_table_holds_neither_qualities_nor_references() -> None:
    sealed = made_table(0).sealed()
    assert np.isnan(sealed.quality).all()
    assert sealed.questions == [question.sealed() for question in sealed.questions]
    assert (
        sealed.routes(Choices.of_one(np.zeros(len(sealed), dtype=int)))[0].episode.steps[0].quality
        is None
    )


def test_a_pool_is_asked_once_and_its_answers_are_scored_and_grouped(make_pool: Callable) -> None:
    question = Question("sum", "What is 3 + 4?", metric="numeric_match", _reference="7")
    pool = make_pool([lambda q, a: "7", lambda q, a: "It is 8.", lambda q, a: "7.0 exactly"])
    table = ask_all([question], pool, RewardConfig(cost_unit="0.5 billion parameters"))
    assert table.quality.tolist() == [[1.0, 0.0, 1.0]]
    assert table.groups.tolist() == [[0, 1, 0]]
    assert table.charge.tolist() == [[2.0, 4.0, 6.0]]  # 1, 2 and 3 billion parameters x 2
    again = ask_all([question], pool, RewardConfig())
    assert pool.stats.generated == 3 and again.answers == table.answers


def test_the_oracles_pick_is_the_best_answer_at_full_cost() -> None:
    table = made_table(1)
    choices = pick_best(table)
    assert table.submitted_quality(choices).tolist() == table.quality.max(axis=1).tolist()
    assert table.spent(choices).tolist() == [1.0 + 2.0 + 3.0 + 4.0] * len(table)


# --- agreement cascades ---


def agreement_by_hand(
    table: AnswerTable, row: int, order: Sequence[int], fallback: int
) -> tuple[list[int], int]:
    asked: list[int] = []
    for expert in order:
        group = table.groups[row, expert]
        agrees = group >= 0 and group in [table.groups[row, other] for other in asked]
        asked.append(expert)
        if agrees:
            return asked, expert
    return asked, fallback


@pytest.mark.parametrize("falls_back_on_best", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_an_agreement_cascade_is_the_best_of_all_orders(
    seed: int, falls_back_on_best: bool
) -> None:
    table = made_table(seed)
    best, highest = None, -np.inf
    for order in every_order():
        fallback = order[-1]
        if falls_back_on_best:
            qualities = [float(table.quality[:, expert].mean()) for expert in order]
            fallback = order[int(np.argmax(qualities))]
        values = []
        for row in range(len(table)):
            values.append(value(table, row, *agreement_by_hand(table, row, order, fallback)))
        if np.mean(values) > highest + 1e-9:
            best, highest = (order, fallback), np.mean(values)
    rule = fit_agreement_cascade(table, ALPHA, T_MAX, falls_back_on_best=falls_back_on_best)
    assert (rule.order, rule.fallback) == best
    choices = rule.choose(table.sealed())
    assert table.mean_return(choices, ALPHA) == pytest.approx(highest)
    for row in range(len(table)):
        asked, submitted = agreement_by_hand(table, row, rule.order, rule.fallback)
        assert [expert for expert in choices.order[row] if expert >= 0] == asked
        assert choices.submitted[row] == submitted


def test_every_agreement_cascade_stops_at_the_first_two_that_agree() -> None:
    table = made_table(4)
    for order in every_order(t_max=4):
        choices = AgreementCascade(order, order[0]).choose(table.sealed())
        for row in range(len(table)):
            asked, submitted = agreement_by_hand(table, row, order, order[0])
            assert [expert for expert in choices.order[row] if expert >= 0] == asked
            assert choices.submitted[row] == submitted


def test_where_calls_are_dear_an_agreement_cascade_asks_one_expert_once() -> None:
    table = made_table(0)
    rule = fit_agreement_cascade(table, 10.0, T_MAX, falls_back_on_best=True)
    assert rule.order == (0,)


def test_unreadable_answers_never_agree() -> None:
    table = replace(made_table(0), groups=np.full((NUM_QUESTIONS, NUM_EXPERTS), -1))
    choices = AgreementCascade((0, 1, 2), 1).choose(table)
    assert (choices.order >= 0).all() and set(choices.submitted) == {1}


# --- threshold cascades ---


def threshold_by_hand(
    estimates: Estimates, row: int, rule: ThresholdCascade
) -> tuple[list[int], int]:
    asked: list[int] = []
    for expert in rule.order:
        asked.append(expert)
        looks = estimates.after[row]
        best = max(asked, key=lambda other: looks[other])
        # Of the made beliefs: the answer that looks best, with its own estimate
        estimate = looks[best] if rule.reader is read_all else looks[expert]
        submitted = best if rule.reader is read_all else expert
        if estimate >= rule.threshold:
            return asked, submitted
    return asked, asked[-1] if rule.reader is read_last else best


@pytest.mark.parametrize("reader", [read_last, read_each, read_all])
@pytest.mark.parametrize("seed", range(2))
def test_a_threshold_cascade_is_the_best_of_all_orders_and_thresholds(
    seed: int, reader: Callable
) -> None:
    table = made_table(seed)
    estimates = made_estimates(table, seed + 10)
    rule = fit_threshold_cascade(table, estimates, ALPHA, T_MAX, reader=reader)
    choices = rule.choose(table.sealed(), estimates)
    for row in range(len(table)):
        asked, submitted = threshold_by_hand(estimates, row, rule)
        assert [expert for expert in choices.order[row] if expert >= 0] == asked
        assert choices.submitted[row] == submitted
    reached = table.mean_return(choices, ALPHA)
    thresholds = [*np.unique(estimates.after)[::6].tolist(), 0.0, 2.0]
    for order, threshold in itertools.product(every_order(), thresholds):
        other = ThresholdCascade(order, threshold, reader)
        values = []
        for row in range(len(table)):
            values.append(value(table, row, *threshold_by_hand(estimates, row, other)))
        # The rule tries quantiles only: another threshold may be a little better
        assert np.mean(values) <= reached + 0.02


def test_the_search_over_thresholds_returns_what_each_rule_returns() -> None:
    from evaluation.cascades import rank_threshold_cascades

    table = made_table(3)
    estimates = made_estimates(table, 4)
    ranked = rank_threshold_cascades(table, estimates, ALPHA, T_MAX, reader=read_each)
    assert {one.rule.order for one in ranked} == set(every_order())
    for one in ranked:
        choices = one.rule.choose(table.sealed(), estimates)
        assert one.mean_return == pytest.approx(table.mean_return(choices, ALPHA), abs=1e-6)


# --- a learned stop ---


def test_a_learned_stop_goes_on_where_going_on_pays() -> None:
    """Expert 0 costs .1 and is right with .2 or .9, as its estimate says; expert 1 costs .3 and is
    right with .95. Going on gains .75 or .05, for .3.
    """
    rng = np.random.default_rng(0)
    num = 4000
    looks = np.where(rng.random(num) < 0.5, 0.2, 0.9)
    after = np.column_stack([looks, np.full(num, 0.95)])
    quality = (rng.random((num, 2)) < after).astype(float)
    table = made_table(0, num, 2)
    table = replace(table, quality=quality, charge=np.tile([0.1, 0.3], (num, 1)))
    ones, zeros = np.ones(num), np.zeros(num)
    beliefs = {
        (0,): Belief((0,), looks, zeros, ones, ones, zeros.astype(int), after[:, :1]),
        (1,): Belief((1,), after[:, 1], zeros, ones, ones, ones.astype(int), after[:, 1:]),
        (0, 1): Belief((0, 1), after[:, 1], looks, ones, 2 * ones, ones.astype(int), after),
    }
    estimates = Estimates(after, after, beliefs)
    rule = fit_learned_stop(table, estimates, 1.0, 2)
    assert rule.order == (0, 1)  # 0.5 x (.9 - .1) + 0.5 x (.95 - .4) = .675; 1 alone: .65
    choices = rule.choose(table.sealed(), estimates)
    assert ((choices.order[:, 1] == 1) == (looks < 0.5)).all()
    assert (choices.submitted == np.where(looks < 0.5, 1, 0)).all()
    assert table.mean_return(choices, 1.0) == pytest.approx(0.675, abs=0.02)


def test_a_learned_stop_is_followed_question_by_question() -> None:
    table = made_table(5)
    estimates = made_estimates(table, 6)
    # The gain falls as the estimate rises: on below about .8 after one call, below .7 after two
    weights = (np.array([0.8, -1, 0, 0, 0, 0.1]), np.array([0.9, -1, 0.1, 0.1, -0.1, 0]))
    rule = LearnedStop((3, 0, 2), weights, table.charge.mean(axis=0), ALPHA)
    choices = rule.choose(table.sealed(), estimates)
    lengths = set()
    for row in range(len(table)):
        asked = [3]
        for expert, weight in zip((0, 2), weights, strict=True):
            gain = stop_inputs(estimates.beliefs[tuple(sorted(asked))])[row] @ weight
            if gain <= ALPHA * (expert + 1.0):
                break
            asked.append(expert)
        lengths.add(len(asked))
        assert [expert for expert in choices.order[row] if expert >= 0] == asked
        assert choices.submitted[row] == estimates.beliefs[tuple(sorted(asked))].submitted[row]
    assert lengths == {1, 2, 3}


# --- cascade routing ---


@pytest.mark.parametrize("looks_ahead", [1, 3])
def test_cascade_routing_asks_while_the_expected_gain_exceeds_the_price(looks_ahead: int) -> None:
    table = made_table(8)
    estimates = made_estimates(table, 9)
    rng = np.random.default_rng(10)
    before = rng.uniform(0.1, 0.9, table.quality.shape)
    estimates = Estimates(before, estimates.after, estimates.beliefs)
    scatter = rng.normal(size=(NUM_EXPERTS, 5))
    charges = table.charge.mean(axis=0)
    rule = CascadeRouting(scatter, charges, ALPHA, T_MAX, looks_ahead)
    choices = rule.choose(table.sealed(), estimates)
    lengths = set()
    for row in range(len(table)):
        asked = route_by_hand(estimates, row, rule)
        lengths.add(len(asked))
        assert [expert for expert in choices.order[row] if expert >= 0] == asked
        assert choices.submitted[row] == estimates.beliefs[tuple(sorted(asked))].submitted[row]
    assert len(lengths) > 1


def route_by_hand(estimates: Estimates, row: int, rule: CascadeRouting) -> list[int]:
    asked: list[int] = []
    while len(asked) < rule.t_max:
        now = estimates.beliefs[tuple(sorted(asked))].p[row] if asked else 0.0
        others = [expert for expert in range(NUM_EXPERTS) if expert not in asked]
        best, highest = None, 0.0 if asked else -np.inf
        for size in range(1, min(rule.looks_ahead, rule.t_max - len(asked)) + 1):
            for members in itertools.combinations(others, size):
                total = 0.0
                for draw in range(rule.scatter.shape[1]):
                    seen = [now]
                    for expert in members:
                        odds = estimates.before[row, expert] / (1 - estimates.before[row, expert])
                        drawn = odds * np.exp(rule.scatter[expert, draw])
                        seen.append(drawn / (1 + drawn))
                    total += max(seen)
                gain = total / rule.scatter.shape[1] - now
                gain -= rule.price * sum(expert + 1.0 for expert in members)
                if gain > highest + 1e-9:
                    best, highest = members[0], gain  # experts cost more the higher their number
        if best is None:
            break
        asked.append(best)
    return asked


def test_a_fitted_router_returns_no_less_than_at_its_own_price() -> None:
    table = made_table(11, 300)
    estimates = made_estimates(table, 12)
    rule = fit_cascade_routing(table, estimates, ALPHA, T_MAX, looks_ahead=1)
    plain = replace(rule, price=ALPHA)
    values = []
    for one in (rule, plain):
        values.append(table.mean_return(one.choose(table.sealed(), estimates), ALPHA))
    assert values[0] >= values[1]


# --- all rules ---


def fitted_rules(table: AnswerTable, estimates: Estimates) -> list:
    rules = []
    for falls_back_on_best in (False, True):
        rules.append(
            fit_agreement_cascade(table, ALPHA, T_MAX, falls_back_on_best=falls_back_on_best)
        )
    for reader in (read_last, read_each, read_all):
        rules.append(fit_threshold_cascade(table, estimates, ALPHA, T_MAX, reader=reader))
    rules.append(fit_learned_stop(table, estimates, ALPHA, T_MAX))
    for looks_ahead in (1, 3):
        rules.append(fit_cascade_routing(table, estimates, ALPHA, T_MAX, looks_ahead=looks_ahead))
    rules.append(fit_planned(table, estimates, ALPHA, T_MAX, p0=1.0, seed=0))
    return rules


def test_scrambled_qualities_of_new_questions_change_no_choice() -> None:
    table, new = made_table(13, 120), made_table(14, 120)
    scrambled = replace(new, quality=np.random.default_rng(0).permutation(new.quality, axis=0))
    estimator = Estimator(table, TableFeatures.of(table), 1.0, T_MAX, seed=0)
    features = TableFeatures.of(new.sealed())
    estimates = [estimator.estimate(one, features) for one in (new.sealed(), new, scrambled)]
    for rule in fitted_rules(table, estimator.own):
        chosen = []
        for one, estimate in zip((new.sealed(), new, scrambled), estimates, strict=True):
            chosen.append(rule.choose(one, estimate))
        for other in chosen[1:]:
            assert (other.order == chosen[0].order).all()
            assert (other.submitted == chosen[0].submitted).all()


def test_more_experts_than_can_be_tried_are_cut_to_the_most_promising() -> None:
    table = made_table(15, 30, 30)
    orders = candidate_orders(table, 0.0, 4)
    tried = {expert for order in orders for expert in order}
    assert 1_000 < len(orders) <= 8_000
    returns = table.returns(0.0).mean(axis=0)
    assert min(returns[list(tried)]) >= max(np.delete(returns, list(tried)))


def test_a_rule_says_what_it_is() -> None:
    names = ["a", "b", "c", "d"]
    assert AgreementCascade((1, 0), 0).describe(names) == "b > a, else a"
    assert AgreementCascade((1,), 1).describe(names) == "b"
    assert ThresholdCascade((1, 2), 0.5, read_last).describe(names) == "b > c, until 0.50"
    assert agreement(np.array([[0, 0, -1]])).tolist() == [
        [[True, True, False], [True, True, False], [False, False, True]]
    ]
