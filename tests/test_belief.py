"""The belief: counted features, estimates, candidates, and the plan, against values by hand."""

from __future__ import annotations

import hashlib
import itertools
import time
from dataclasses import replace

import numpy as np
import pytest
import sklearn.linear_model

from backends.answer_store import Answer
from belief.arithmetic import check_equations, evaluate
from belief.budget import PlannedAlphas, Spent, dial_for, widest_step
from belief.features import Said, answer_features
from belief.guard import Planner
from belief.order import (
    OF_STOP,
    THRESHOLDS,
    StopLearner,
    plan_of,
    tabulate_orders,
    threshold_gains,
)
from belief.outcome_model import (
    OutcomeModel,
    Outcomes,
    certainties,
    count_answers,
    count_questions,
    cross_fit,
    num_reader_inputs,
)
from belief.planner import (
    Order,
    Plan,
    action_inputs,
    advantages,
    choose,
    fit_plan,
    follow,
    num_inputs,
)
from belief.regression import Logistic, Ridge, sigmoid
from belief.state import (
    Belief,
    CandidateModel,
    Heard,
    agreement,
    asked_sets,
    believe,
    describe_candidates,
    fit_candidates,
    hear,
    sample_questions,
)
from belief.stopping import stop_inputs
from metrics.agreement import read_answer
from questions import Question
from runtime.errors import AgentError


@pytest.mark.parametrize(
    ("text", "right", "wrong", "last"),
    [
        ("3 + 4 = 7, so 7 * 2 = 15", 1, 1, 15.0),
        (r"$12 \times 3 = $36 and \frac{36}{4} = 9.", 2, 0, 9.0),
        ("3 apples + 4 pears = 7 fruits. Then 2 x 5 = 11", 1, 1, 11.0),
        ("48 / 2 = <<48/2=24>>24 clips", 1, 0, 24.0),
        ("10% of nothing, and no equation", 0, 0, None),
        ("1 / 0 = 5", 0, 0, None),
    ],
)
def test_equations_are_calculated_again(text, right, wrong, last):
    found = check_equations(text)
    assert (found.right, found.wrong, found.last) == (right, wrong, last)


def test_only_arithmetic_is_evaluated():
    assert evaluate("2 * (3 + 4)") == 14
    for text in ("__import__('os')", "2 ** 9999", "a + 1", "9" * 200):
        assert evaluate(text) is None


def test_an_answer_that_skips_a_number_of_the_question_shows_it():
    question = "Tom has 3 apples, 4 pears and 5 plums. How many fruits?"
    whole = answer_features(question, "3 + 4 + 5 = 12\n#### 12", "12")
    partial = answer_features(question, "3 + 4 = 7\n#### 7", "7")
    assert whole["share_of_question_used"] == 1.0
    assert partial["share_of_question_used"] == pytest.approx(2 / 3)
    assert whole["reads_last_result"] == partial["reads_last_result"] == 1.0


def test_ridge_equals_its_closed_form():
    rng = np.random.default_rng(0)
    inputs, targets = rng.normal(size=(40, 3)), rng.normal(size=40)
    ridge = Ridge(3)
    ridge.add(inputs[:25], targets[:25])
    ridge.add(inputs[25:], targets[25:])
    scale = np.sqrt((inputs**2).mean(0)) + 1e-9
    scaled = inputs / scale
    expected = np.linalg.solve(scaled.T @ scaled + 2.0 * np.eye(3), scaled.T @ targets) / scale
    assert ridge.solve(2.0) == pytest.approx(expected)


def test_labels_that_are_all_alike_give_their_rate():
    model = Logistic.fit(np.zeros((9, 2)), np.ones(9, dtype=bool), 1.0)
    assert sigmoid(model(np.zeros((1, 2))))[0] == pytest.approx(9.5 / 10)


# --- candidates ---


def test_answers_that_agree_are_one_candidate():
    same = agreement(np.array([[0, 1, 0, -1, -1]]))
    heard = Heard((0, 1, 2, 3, 4), np.zeros((1, 5)), np.array([[0.1, 2.0, 0.5, 0.0, 0.0]]), same)
    candidates = describe_candidates(heard)
    assert candidates.size[0].tolist() == [2, 1, 2, 1, 1]  # unread answers agree with nobody
    assert candidates.distinct.tolist() == [4]
    assert candidates.is_first[0].tolist() == [False, True, True, True, True]


def test_the_best_candidate_is_submitted_by_its_best_looking_member():
    num_features = 16 + 2 * 3
    weights = np.zeros(num_features)
    weights[3] = 2.0  # agreement alone decides
    model = CandidateModel(_identity(num_features), Logistic(weights, -1.0))
    same = agreement(np.array([[0, 1, 1]]))
    belief = believe(Heard((0, 1, 2), np.zeros((1, 3)), np.array([[3.0, 0.2, 0.7]]), same), model)
    assert belief.submitted.tolist() == [2]
    assert belief.p == pytest.approx(sigmoid(np.array([1.0])))
    assert belief.estimates[0] == pytest.approx(sigmoid(np.array([-1.0, 1.0, 1.0])), abs=2e-6)
    assert (belief.size[0], belief.distinct[0]) == (2, 2)


def _identity(num_features):
    from belief.regression import Standardiser

    return Standardiser(np.zeros(num_features), np.ones(num_features))


# --- estimates ---


def made_outcomes(num_questions=80, num_experts=3, seed=0):
    """Questions with one telling feature: positive, and experts 0 and 1 are right."""
    rng = np.random.default_rng(seed)
    question = rng.normal(size=(num_questions, 2))
    answer = rng.normal(size=(num_questions, num_experts, 2))
    good = answer[:, :, 0] + question[:, :1] > 0
    nothing = np.zeros((num_questions, 0))
    return Outcomes(question, nothing, np.zeros(num_questions, dtype=int), answer, good)


def test_the_reader_learns_what_tells_right_answers():
    outcomes = made_outcomes(400)
    model = OutcomeModel.fit(outcomes.take(np.arange(300)), 1)
    held = outcomes.take(np.arange(300, 400))
    assert ((model.after_all(held) > 0) == held.good).mean() > 0.9


def test_a_training_question_is_estimated_by_models_that_have_not_seen_it():
    outcomes = made_outcomes()
    before = cross_fit(outcomes, 1, seed=0).after
    good = outcomes.good.copy()
    good[0] = ~good[0]
    changed = Outcomes(outcomes.question, outcomes.embedding, outcomes.task, outcomes.answer, good)
    after = cross_fit(changed, 1, seed=0).after
    assert after[0] == pytest.approx(before[0], abs=1e-12)
    assert not np.allclose(after[1:], before[1:])


def test_estimates_of_known_questions_are_as_sure_as_those_of_new_ones():
    # Budgets are found on known questions. There each fold's model knows a tenth less.
    new = made_outcomes(3000, seed=99)
    ratios = []
    for seed in range(5):
        fitted = cross_fit(made_outcomes(400, seed=seed), 1, seed=0)
        sure = np.abs(fitted.after).mean()
        ratios.append(sure / np.abs(fitted.model.after_all(new)).mean())
    assert 0.95 < np.mean(ratios) < 1.05


def with_columns(outcomes, columns):
    """The outcomes with further features (N, K, 3) of each answer."""
    answer = np.concatenate([outcomes.answer, columns], axis=2)
    return replace(outcomes, answer=answer)


def test_columns_that_never_vary_leave_every_estimate_as_it_is():
    outcomes = made_outcomes(200)
    nothing = np.zeros((200, 3, 3))
    plain = cross_fit(outcomes, 1, seed=0)
    wider = cross_fit(with_columns(outcomes, nothing), 1, seed=0)
    assert wider.before == pytest.approx(plain.before, abs=1e-6)
    assert wider.after == pytest.approx(plain.after, abs=1e-6)
    known = np.random.default_rng(1).uniform(-3, 0, nothing.shape)
    later = wider.model.after_all(with_columns(outcomes, known))  # known only where it plays
    assert later == pytest.approx(plain.model.after_all(outcomes), abs=1e-6)


def test_log_probabilities_that_tell_right_answers_are_learned():
    outcomes = made_outcomes(400)
    rng = np.random.default_rng(1)
    good = rng.random((400, 3)) < 0.5
    said = []
    for row in good:
        for is_right in row:
            mean = -0.2 if is_right else -0.6
            answer = Answer("x", 1, 1, 0.0, logprob_mean=mean + rng.normal(0, 0.1), logprob_min=-2)
            said.append(Said.of(answer))
    told = with_columns(replace(outcomes, good=good), certainties(said).reshape(400, 3, 3))
    model = OutcomeModel.fit(told.take(np.arange(300)), 1)
    held = told.take(np.arange(300, 400))
    # Means .4 apart, deviation .1: a threshold between them errs in 2.3% of the answers
    assert ((model.after_all(held) > 0) == held.good).mean() > 0.95


def test_what_is_read_of_an_answers_certainty():
    known = Answer("yes", 1, 1, 0.0, logprob_mean=-0.123456, logprob_min=-9999.0)
    nearly = Answer("yes", 1, 1, 0.0, logprob_mean=-0.1234561, logprob_min=-9999.0)
    unknown = Said.of(Answer("yes", 1, 1, 0.0))
    assert Said.of(known) == ("yes", -0.12, -20.0)
    assert Said.of(nearly) == Said.of(known)  # of another batch
    rows = certainties([Said.of(known), unknown])
    assert rows == pytest.approx(np.array([[1, -0.12, -20], [0, 0, 0]]))
    question = Question("q", "what?")
    features = count_answers([question], [unknown])
    assert features.shape[1] + count_questions([question]).shape[1] == num_reader_inputs()
    assert features[0, -3:].tolist() == [0, 0, 0]


# --- the plan ---


def planned(good, same, costs, alpha, t_max=2, logits=None):
    """Beliefs of every set and the plan, from estimates that say what is right, a little unsure."""
    after = np.where(good, 1.5, -1.5) if logits is None else logits
    before = np.zeros(good.shape)
    candidates = fit_candidates(before, after, same, good, t_max, seed=0)
    beliefs = {}
    for sets in asked_sets(good.shape[1], t_max)[1:]:
        for asked in sets:
            beliefs[asked] = believe(hear(asked, before, after, same), candidates)
    plan = fit_plan(beliefs, before, good, np.array(costs), alpha, t_max)
    return plan, beliefs, before


def test_where_all_are_always_right_the_cheapest_is_asked_and_nobody_else():
    good = np.ones((200, 3), dtype=bool)
    same = np.ones((200, 3, 3), dtype=bool)
    costs = [0.5, 0.1, 1.0]
    plan, beliefs, before = planned(good, same, costs, alpha=0.1)
    first = choose(advantages(plan, None, before, np.array(costs), 0.1), 0)
    assert set(first.tolist()) == {1}
    then = choose(advantages(plan, beliefs[1,], before, np.array(costs), 0.1), 1)
    assert set(then.tolist()) == {-1}


def test_a_second_opinion_is_asked_where_the_first_answer_looks_wrong():
    """Expert 0 is right on half of the questions, and expert 1 on the other half. Both are free."""
    good = np.zeros((400, 2), dtype=bool)
    good[::2, 0] = True
    good[1::2, 1] = True
    same = np.eye(2, dtype=bool)[None].repeat(400, axis=0)
    plan, beliefs, before = planned(good, same, [0.1, 0.1], alpha=1.0)
    action = choose(advantages(plan, beliefs[0,], before, np.array([0.1, 0.1]), 1.0), 1)
    assert (action[good[:, 0]] == -1).all()
    assert (action[~good[:, 0]] == 1).all()
    assert beliefs[0, 1].submitted.tolist() == np.where(good[:, 0], 0, 1).tolist()


def test_a_permuted_pool_gives_permuted_decisions():
    rng = np.random.default_rng(1)
    num = 300
    skill = np.array([0.5, 0.65, 0.8])
    good = rng.random((num, 3)) < skill
    logits = np.where(good, 1.0, -1.0) + rng.normal(size=(num, 3))
    groups = np.where(good, 0, 1 + np.arange(3)[None])
    costs = np.array([0.1, 0.3, 1.0])
    order = np.array([2, 0, 1])
    plan, beliefs, before = planned(good, agreement(groups), costs, 0.1, 2, logits)
    moved, moved_beliefs, _ = planned(
        good[:, order], agreement(groups[:, order]), costs[order], 0.1, 2, logits[:, order]
    )
    here = advantages(plan, beliefs[1,], before, costs, 0.1)
    place = int(np.flatnonzero(order == 1)[0])
    there = advantages(moved, moved_beliefs[place,], before, costs[order], 0.1)
    assert there == pytest.approx(here[:, order], abs=1e-3)


def test_a_plan_values_a_call_by_its_inputs_and_no_other_expert():
    """The value of asking expert 0 does not depend on the costs or priors of the others, but for
    the mean prior.
    """
    rng = np.random.default_rng(2)
    plan = Plan(rng.normal(size=(2, num_inputs(3))), np.ones((2, num_inputs(3))))
    before = rng.normal(size=(5, 3))
    belief = Belief((1,), *(np.full(5, 0.4),) * 4, np.ones(5, dtype=int), np.full((5, 1), 0.4))
    swapped = before.copy()
    swapped[:, [1, 2]] = before[:, [2, 1]]
    one = advantages(plan, belief, before, np.array([0.1, 0.2, 0.3]), 0.1)[:, 0]
    other = advantages(plan, belief, swapped, np.array([0.1, 9.0, 9.0]), 0.1)[:, 0]
    assert other == pytest.approx(one)


# --- the fixed order ---


def test_an_order_as_a_plan_asks_in_turn_and_stops_at_the_threshold():
    """Expert 1, then 0 while the estimate is below .7. Expert 2 is never asked."""
    costs = np.array([0.2, 0.5, 0.1])
    plan = threshold_plan((1, 0), 0.7, costs, 0.3, 3)
    before = np.zeros((3, 3))
    assert choose(advantages(plan, None, before, costs, 0.3), 0).tolist() == [1, 1, 1]
    after_one = belief_of((1,), [0.69, 0.71, 0.95])
    assert choose(advantages(plan, after_one, before, costs, 0.3), 1).tolist() == [0, -1, -1]
    after_two = belief_of((0, 1), [0.1, 0.5, 0.9])
    assert choose(advantages(plan, after_two, before, costs, 0.3), 2).tolist() == [-1, -1, -1]


def test_halfway_from_an_order_to_a_plan_that_stops_fewer_are_asked_on():
    """An order asks on below .7. A plan loses .015 by asking. Halfway between them the score is
    half of .05 (.7 - p) minus half of .015, so what is asked on lies below .4.
    """
    costs = np.zeros(2)
    order = threshold_plan((0, 1), 0.7, costs, 0.0, 2)
    weights = np.zeros_like(order.weights)
    weights[:, 0] = -0.015  # the first input is 1
    between = Plan((order.weights + weights) / 2, order.sizes)
    belief = belief_of((0,), [0.39, 0.41, 0.69])
    before = np.zeros((3, 2))
    assert choose(advantages(order, belief, before, costs, 0.0), 1).tolist() == [1, 1, 1]
    assert choose(advantages(between, belief, before, costs, 0.0), 1).tolist() == [1, -1, -1]


def test_an_order_with_learned_stops_acts_by_the_gains_that_were_fitted():
    """After one call: .5 minus the estimate, and .1 more where three answers differ. A call costs
    .3 times .2, so expert 0 is asked below .44, or below .54 where three answers differ.
    """
    costs = np.array([0.2, 0.5, 0.1])
    gains = [np.array([0.5, -1.0, 0.0, 0.0, 0.0, 0.1])]
    plan = plan_of(Order((1, 0), None), gains, costs, 0.3, 3)
    before = np.zeros((4, 3))
    assert choose(advantages(plan, None, before, costs, 0.3), 0).tolist() == [1] * 4
    after_one = belief_of((1,), [0.43, 0.45, 0.53, 0.55])
    after_one.distinct[2:] = 3
    scores = advantages(plan, after_one, before, costs, 0.3)
    assert choose(scores, 1).tolist() == [0, -1, 0, -1]
    assert scores[:, 0] == pytest.approx([0.01, -0.01, 0.01, -0.01])
    assert scores[:, 2] == pytest.approx(scores[:, 0] - 0.1)
    after_two = belief_of((0, 1), [0.1, 0.5, 0.9, 0.9])
    assert choose(advantages(plan, after_two, before, costs, 0.3), 2).tolist() == [-1] * 4


def test_inputs_of_a_stop_are_among_those_of_an_action():
    rng = np.random.default_rng(5)
    belief = belief_of((0, 1, 2), rng.random(20))
    belief.size[:] = rng.integers(1, 4, 20)
    belief.distinct[:] = rng.integers(1, 4, 20)
    inputs = action_inputs(replace(belief, second=rng.random(20)), np.zeros((20, 4)), 3)
    again = action_inputs(belief, np.zeros((20, 4)), 3)
    assert not np.array_equal(inputs, again)  # the next best candidate's estimate counts
    assert np.array_equal(again[:, OF_STOP], stop_inputs(belief))


def test_learned_stops_are_fitted_as_by_scikit_learn():
    """Two calls. The gain of the second is a ridge regression on standardised inputs without an
    intercept of its own; where it exceeds .25 times .4, the question is asked on.
    """
    rng = np.random.default_rng(6)
    num = 300
    good = rng.random((num, 2)) < [0.5, 0.8]
    costs = np.array([0.1, 0.4])
    one = belief_of((0,), rng.random(num))
    both = belief_of((0, 1), rng.random(num))
    both.submitted[:] = 1
    learner = StopLearner({(0,): one, (0, 1): both}, good, costs)
    rows = np.arange(num) < 200
    order, stops = learner.best([(0,), (0, 1)], rows, 0.25)
    assert order == Order((0, 1), None)
    now = 0.5 * one.p + 0.5 * good[:, 0]
    then = 0.5 * both.p + 0.5 * good[:, 1]
    known = stop_inputs(one)[rows]
    scale = np.sqrt((known**2).mean(0)) + 1e-9
    ridge = sklearn.linear_model.Ridge(alpha=5.0, fit_intercept=False)
    ridge.fit(known / scale, (then - now)[rows])
    assert stops.gains[0] == pytest.approx(ridge.coef_ / scale, abs=1e-6)
    goes_on = known @ stops.gains[0] > 0.1
    assert 0 < goes_on.sum() < 200
    expected = np.where(goes_on, (then - 0.1)[rows], now[rows]) - 0.025
    assert stops.returns == pytest.approx(expected)


def threshold_plan(experts, threshold, costs, alpha, t_max):
    gains = threshold_gains(experts, threshold, costs, alpha)
    return plan_of(Order(experts, threshold), gains, costs, alpha, t_max)


def belief_of(asked, estimates):
    num = len(estimates)
    none = np.zeros(num)
    return Belief(
        asked=asked,
        p=np.array(estimates),
        second=none,
        size=none + 1,
        distinct=none + len(asked),
        submitted=np.full(num, asked[0]),
        estimates=np.zeros((num, len(asked))),
    )


def test_every_order_is_played_as_a_loop_over_questions_would():
    rng = np.random.default_rng(3)
    num = 40
    good = rng.random((num, 3)) < 0.6
    costs = np.array([0.1, 0.3, 1.0])
    beliefs = {}
    for asked in itertools.chain.from_iterable(asked_sets(3, 2)[1:]):
        belief = belief_of(asked, rng.random(num))
        belief.submitted[:] = rng.choice(asked, size=num)
        beliefs[asked] = belief
    folds = np.arange(num) % 5
    table = tabulate_orders(beliefs, good, costs, 2, folds)
    assert len(table.orders) == 3 + 6 * len(THRESHOLDS)
    place = table.orders.index(((2, 0), THRESHOLDS[4]))
    returns = np.zeros(5)
    for question in range(num):
        paid = costs[2]
        known = (2,)
        if beliefs[known].p[question] < THRESHOLDS[4]:
            paid += costs[0]
            known = (0, 2)
        is_right = good[question, beliefs[known].submitted[question]]
        returns[folds[question]] += is_right - 0.4 * paid
    assert table.quality[place] - 0.4 * table.cost[place] == pytest.approx(returns)


def test_a_plan_is_followed_as_a_loop_over_questions_would():
    rng = np.random.default_rng(4)
    good = rng.random((60, 3)) < 0.6
    same = agreement(np.where(good, 0, 1 + np.arange(3)[None]))
    costs = np.array([0.1, 0.3, 1.0])
    plan, beliefs, before = planned(good, same, costs, 0.1)
    order, submitted = follow(plan, beliefs, before, costs, 0.1)
    for question in range(60):
        asked = ()
        paid = 0.0
        while True:
            if len(asked) == 2:
                break
            score = advantages(plan, beliefs.get(asked), before, costs, 0.1)[question]
            if asked and score.max() <= 0:
                break
            paid += costs[score.argmax()]
            asked = tuple(sorted((*asked, int(score.argmax()))))
        calls = order[question][order[question] >= 0]
        assert tuple(sorted(calls.tolist())) == asked
        assert costs[calls].sum() == pytest.approx(paid)
        assert submitted[question] == beliefs[asked].submitted[question]


def test_an_order_that_returns_more_on_held_out_questions_replaces_the_plan(monkeypatch):
    """Expert 1 is right on 70% of the questions. The plan given asks expert 0, right on 40%."""
    num = 100
    good = np.zeros((num, 3), dtype=bool)
    good[:40, 0] = True
    good[:70, 1] = True
    same = np.eye(3, dtype=bool)[None].repeat(num, axis=0)
    costs = np.array([0.1, 0.2, 1.0])
    _, beliefs, before = planned(good, same, costs, 0.2, 2, np.zeros((num, 3)))
    bad = threshold_plan((0,), 2.0, costs, 0.2, 2)
    plan_0 = Plan(bad.weights, bad.sizes)
    monkeypatch.setattr("belief.guard.fit_plan", lambda *arguments: plan_0)
    plan = Planner(beliefs, before, good, costs, 2, seed=0).fit(0.2)
    assert plan.order is not None
    assert plan.order.experts[0] == 1


def test_learned_stops_replace_the_plan_where_the_estimate_does_not_tell(monkeypatch):
    """Expert 0 is right where its answer is that of two. The estimate is .6 whatever it says, so a
    threshold cannot stop there. Asking expert 1, who is always right, costs .5 times .6.
    """
    num = 100
    agrees = np.arange(num) % 2 == 0
    good = np.column_stack([agrees, np.ones(num, dtype=bool)])
    costs = np.array([0.1, 0.6])
    one = belief_of((0,), np.full(num, 0.6))
    one.size[:] = 1 + agrees
    other = belief_of((1,), np.full(num, 0.9))
    both = belief_of((0, 1), np.full(num, 0.9))
    both.submitted[:] = 1
    beliefs = {(0,): one, (1,): other, (0, 1): both}
    bad = threshold_plan((0,), 2.0, costs, 0.5, 2)
    plan_0 = Plan(bad.weights, bad.sizes)
    monkeypatch.setattr("belief.guard.fit_plan", lambda *arguments: plan_0)
    before = np.zeros((num, 2))
    plan = Planner(beliefs, before, good, costs, 2, seed=0).fit(0.5)
    assert plan.order == Order((0, 1), None)
    order, _ = follow(plan, beliefs, before, costs, 0.5)
    assert order[:, 1].tolist() == np.where(agrees, -1, 1).tolist()


def test_a_plan_stays_where_there_are_fewer_questions_than_folds():
    num = 4
    good = np.ones((num, 2), dtype=bool)
    same = np.ones((num, 2, 2), dtype=bool)
    costs = np.array([0.5, 0.5])
    _, beliefs, before = planned(good, same, costs, 0.5, 2, np.zeros((num, 2)))
    planner = Planner(beliefs, before, good, costs, 2, seed=0)
    assert planner.fit(0.5).order is None
    assert np.isfinite(planner.choose(0.5)[1])


def test_a_plan_stays_where_priors_tell_whom_to_ask():
    """Two experts share the questions out; no fixed order asks the right one first."""
    num = 100
    good = np.eye(2, dtype=bool)[np.arange(num) % 2]
    costs = np.array([0.5, 0.5])
    same = np.eye(2, dtype=bool)[None].repeat(num, axis=0)
    _, beliefs, _ = planned(good, same, costs, 0.5)
    priors = np.where(good, 2.0, -2.0)
    plan = Planner(beliefs, priors, good, costs, 2, seed=0).fit(0.5)
    assert plan.order is None


def test_where_all_sets_fit_every_question_is_looked_at(monkeypatch):
    monkeypatch.setattr("belief.state.MAX_SET_ROWS", 70)  # 7 sets of up to two of three experts
    assert sample_questions(10, 3, 2, seed=0).tolist() == list(range(10))
    few = sample_questions(50, 3, 2, seed=0)
    assert len(set(few.tolist())) == 10
    assert few.tolist() == sorted(few)


# --- budgets ---

SPENT = [Spent(0.0, 2.0, 1.0, 0.9), Spent(0.1, 1.0, 0.5, 0.8), Spent(1.0, 0.5, 0.1, 0.6)]


def test_a_budget_between_two_weights_of_cost_is_met_by_a_share_of_the_questions():
    """1.25 is three quarters of the way from 2 to 1. The variance: 1/4 x 1 + 3/4 x .25 within the
    two weights, 3/16 x 1 between them.
    """
    dial = dial_for(1.25, SPENT, 100)
    assert (dial.alpha, dial.higher, dial.share) == (0.0, 0.1, 0.75)
    assert dial.cost == pytest.approx(1.25)
    assert dial.quality == pytest.approx(0.825)
    assert dial.deviation**2 == pytest.approx(0.25 + 0.1875 + 0.1875)
    low, high = dial.interval(300)
    assert high - 1.25 == pytest.approx(1.96 * (0.625 * (1 / 100 + 1 / 300)) ** 0.5)
    assert low + high == pytest.approx(2.5)
    drawn = [dial.alpha_of(f"question {i}") for i in range(4000)]
    assert drawn.count(0.1) / 4000 == pytest.approx(0.75, abs=0.03)
    assert drawn[:20] == [dial.alpha_of(f"question {i}") for i in range(20)]


def test_a_weight_between_two_plans_is_a_share_of_the_questions_for_each():
    planned = PlannedAlphas((0.0, 0.1, 0.5), (False, False, True))
    mix = planned.mix_at(0.2)
    assert (mix.alpha, mix.higher) == (0.1, 0.5)
    assert mix.share == pytest.approx(0.25)
    drawn = [mix.alpha_of(f"question {i}") for i in range(4000)]
    assert drawn.count(0.5) / 4000 == pytest.approx(0.25, abs=0.03)
    # A split that was drawn by a hash of the text has its share, too
    texts = [f"question {i}" for i in range(9000)]
    split = [text for text in texts if hashlib.sha256(text.encode()).digest()[0] < 128]
    drawn = [mix.alpha_of(text) for text in split]
    assert drawn.count(0.5) / len(split) == pytest.approx(0.25, abs=0.03)
    for alpha in (0.0, 0.05, 0.1, 0.5, 2.0):  # between two plans weights are interpolated
        assert {planned.mix_at(alpha).alpha_of(f"question {i}") for i in range(99)} == {alpha}
    assert PlannedAlphas((0.1,), (True,)).mix_at(0.3).alpha_of("a question") == 0.3


def test_the_widest_step_is_a_share_of_all_that_can_be_saved():
    """Weights are tabulated 20 to a decade. The last before 0.1 is 0.1 x 10^-0.05 = 0.0891; from
    there cost falls by 0.0109 / 0.1 of the way from 2 to 1.
    """
    assert widest_step(SPENT) == pytest.approx(1 * (1 - 10**-0.05) / (2.0 - 0.5))
    assert widest_step([Spent(0.0, 2.0, 1.0, 0.9)]) == 0.0
    weights = PlannedAlphas((0.0, 0.02, 100.0), (False, True, True)).to_tabulate()
    assert weights[:3] == [0.0, 0.02, 100.0]
    assert (weights[3], weights[-1]) == pytest.approx((100 * 10**0.05, 1000.0))
    weights = PlannedAlphas((0.0, 0.02), (False, False)).to_tabulate()
    assert weights[:2] == [0.0, pytest.approx(1e-4)]


def test_more_than_is_spent_at_alpha_0_buys_nothing_and_less_than_the_least_is_refused():
    assert dial_for(5.0, SPENT, 100).cost == 2.0
    assert dial_for(0.5, SPENT, 100).cost == pytest.approx(0.5)
    # Both spend the least, and more than asked by 1e-12
    flat = [
        *SPENT,
        Spent(10.0, 0.5, 0.1, 0.6),
    ]
    assert dial_for(0.5 - 1e-12, flat, 100).cost == pytest.approx(0.5)
    with pytest.raises(AgentError, match=r"the cheapest route costs 0\.5"):
        dial_for(0.4, SPENT, 100)


# --- answers that repeat themselves until their tokens run out ---


@pytest.mark.parametrize(
    "text",
    [
        "7" * 40_000,
        "\n" * 40_000,
        "1,1," * 10_000,
        "\\boxed{" * 6_000,
        "(1)" * 15_000,
        "9x" * 20_000,
    ],
)
def test_features_of_an_answer_that_never_ends_are_counted_in_seconds(text):
    start = time.process_time()
    for metric in ("numeric_match", "multiple_choice"):
        answer_features("What is 7 + 5?", text, read_answer(metric, text))
    assert time.process_time() - start < 20
