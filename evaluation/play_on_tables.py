"""Baselines that need only everybody's first answers, fitted and played on answer tables."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import numpy as np

from evaluation import baselines
from evaluation.answer_table import Choices, pick_best
from evaluation.cascade_routing import fit_cascade_routing
from evaluation.cascades import (
    Reader,
    Rule,
    fit_agreement_cascade,
    fit_threshold_cascade,
    read_all,
    read_each,
    read_last,
)
from evaluation.ground import Ground
from evaluation.learned_stop import fit_learned_stop
from evaluation.outcome import Outcome
from evaluation.pair_ranker import PairRanker
from evaluation.planned import fit_planned
from evaluation.route_log import Overhead
from evaluation.views import Chosen, Fit, FittedRule, View, choose_variant
from runtime.machine import pick_device


def _choose(ground: Ground, variants: Sequence[Fit]) -> Chosen:
    return choose_variant(ground.views, variants, ground.config.reward.alpha)


def _outcome(ground: Ground, label: str, chosen: Chosen, *, reads_question: bool) -> Outcome:
    routes = ground.test_table.routes(chosen.choices)
    taken = None
    if reads_question:
        taken = ground.overheads(ground.agent, routes, reads_answers=False)
    return Outcome(
        label, routes, taken, passes_answers=False, validation_return=chosen.validation_return
    )


# --- constants and lookups ---


def single(ground: Ground) -> Iterator[Outcome]:
    table = ground.test_table
    for expert_idx, name in enumerate(ground.pool.names):
        choices = Choices.of_one(np.full(len(table), expert_idx))
        yield Outcome(name, table.routes(choices))


def best_single(ground: Ground) -> Iterator[Outcome]:
    name = ground.pool.names[ground.best_expert]

    def fit(view: View) -> FittedRule:
        return baselines.always(ground.best_expert, name)

    chosen = _choose(ground, [fit])
    yield _outcome(ground, f"best fixed: {name}", chosen, reads_question=False)


def best_single_return(ground: Ground) -> Iterator[Outcome]:
    """The constant choice that is hardest to beat in return, where it is another one."""
    alpha, names = ground.config.reward.alpha, ground.pool.names
    chosen = _choose(ground, [lambda view: baselines.fit_best_single(view, alpha, names)])
    name = chosen.rule.description
    if name != names[ground.best_expert]:
        yield _outcome(ground, f"best fixed in return: {name}", chosen, reads_question=False)


def task_lookup(ground: Ground) -> Iterator[Outcome]:
    alpha, names = ground.config.reward.alpha, ground.pool.names
    variants: list[Fit] = []
    for weight in baselines.LOOKUP_WEIGHTS:
        variants.append(
            functools.partial(baselines.fit_task_lookup, alpha=alpha, names=names, weight=weight)
        )
    chosen = _choose(ground, variants)
    yield _outcome(ground, "per-task lookup", chosen, reads_question=False)


# --- routers on the question ---


def knn_router(ground: Ground) -> Iterator[Outcome]:
    ground.say("k-NN router")
    alpha = ground.config.reward.alpha
    variants: list[Fit] = []
    for neighbours in baselines.NEIGHBOURS:
        variants.append(
            functools.partial(baselines.fit_knn_router, alpha=alpha, num_neighbours=neighbours)
        )
    yield _outcome(ground, "k-NN router", _choose(ground, variants), reads_question=True)


def logistic_router(ground: Ground) -> Iterator[Outcome]:
    ground.say("logistic router")
    alpha, p0 = ground.config.reward.alpha, ground.config.env.p0
    variants: list[Fit] = []
    for strength in baselines.STRENGTHS:
        variants.append(
            functools.partial(baselines.fit_logistic_router, alpha=alpha, p0=p0, strength=strength)
        )
    yield _outcome(ground, "logistic router", _choose(ground, variants), reads_question=True)


# --- cascades ---


def _fitted(rule: Rule, names: Sequence[str]) -> FittedRule:
    """A rule that reads answers, with its words."""
    return FittedRule(rule.describe(names), lambda view: rule.choose(view.table, view.estimates))


def agreement_cascade(ground: Ground) -> Iterator[Outcome]:
    ground.say("agreement cascades")
    alpha, t_max, names = ground.config.reward.alpha, ground.t_max, ground.pool.names

    def fit(view: View, falls_back_on_best: bool) -> FittedRule:
        rule = fit_agreement_cascade(
            view.table, alpha, t_max, falls_back_on_best=falls_back_on_best
        )
        return FittedRule(rule.describe(names), lambda other: rule.choose(other.table))

    chosen = _choose(ground, [lambda view: fit(view, True), lambda view: fit(view, False)])
    label = f"agreement cascade: {chosen.rule.description}"
    yield _outcome(ground, label, chosen, reads_question=False)


def threshold_cascade(ground: Ground) -> Iterator[Outcome]:
    """A threshold on the last answer's estimate, read alone."""
    ground.say("threshold cascades")
    alpha, t_max, names = ground.config.reward.alpha, ground.t_max, ground.pool.names

    def fit(view: View, reader: Reader) -> FittedRule:
        rule = fit_threshold_cascade(view.table, view.estimates, alpha, t_max, reader=reader)
        return _fitted(rule, names)

    chosen = _choose(ground, [lambda view: fit(view, read_each), lambda view: fit(view, read_last)])
    label = f"threshold cascade: {chosen.rule.description}"
    yield _outcome(ground, label, chosen, reads_question=True)


def learned_stop(ground: Ground) -> Iterator[Outcome]:
    """A fixed order, stopped by the estimate of the answer that would be submitted, agreement
    included: by one threshold, or by the expected gain of going on.
    """
    ground.say("a fixed order with a learned stop")
    alpha, t_max, names = ground.config.reward.alpha, ground.t_max, ground.pool.names

    def by_threshold(view: View) -> FittedRule:
        rule = fit_threshold_cascade(view.table, view.estimates, alpha, t_max, reader=read_all)
        return _fitted(rule, names)

    def by_gain(view: View) -> FittedRule:
        return _fitted(fit_learned_stop(view.table, view.estimates, alpha, t_max), names)

    chosen = _choose(ground, [by_threshold, by_gain])
    label = f"learned stop: {chosen.rule.description}"
    yield _outcome(ground, label, chosen, reads_question=True)


def cascade_routing(ground: Ground) -> Iterator[Outcome]:
    ground.say("cascade routing")
    alpha, t_max, names = ground.config.reward.alpha, ground.t_max, ground.pool.names

    def fit(view: View, looks_ahead: int) -> FittedRule:
        rule = fit_cascade_routing(
            view.table, view.estimates, alpha, t_max, looks_ahead=looks_ahead
        )
        return _fitted(rule, names)

    chosen = _choose(ground, [lambda view: fit(view, t_max), lambda view: fit(view, 1)])
    yield _outcome(ground, "cascade routing", chosen, reads_question=True)


def plan(ground: Ground) -> Iterator[Outcome]:
    """Fitted dynamic programming on the evaluation's own estimates."""
    ground.say("fitted dynamic programming")
    config, names = ground.config, ground.pool.names

    def fit(view: View) -> FittedRule:
        rule = fit_planned(
            view.table,
            view.estimates,
            config.reward.alpha,
            ground.t_max,
            config.env.p0,
            config.seed,
        )
        return _fitted(rule, names)

    chosen = _choose(ground, [fit])
    label = f"plan: {chosen.rule.description}"
    yield _outcome(ground, label, chosen, reads_question=True)


# --- all experts at once ---


def vote(ground: Ground) -> Iterator[Outcome]:
    choices = baselines.vote(ground.test_table.sealed(), ground.best_expert)
    routes = ground.test_table.routes(choices)
    yield Outcome("majority vote of all", routes, passes_answers=False)


def ranker(ground: Ground) -> Iterator[Outcome]:
    settings = ground.config.eval
    ground.say(f"pairwise ranker {settings.ranker}: every pair of answers, in both orders")
    device = pick_device(ground.config.device)
    model = PairRanker(settings.ranker or "", settings.ranker_revision, device)
    choices, rankings = baselines.rank_all(ground.test_table.sealed(), model)
    taken = []
    for ranking in rankings:
        params_b = ranking.comparisons * model.num_params / 1e9
        flops = 2.0 * model.num_params * ranking.tokens
        taken.append(Overhead(params_b, flops, ranking.seconds))
    routes = ground.test_table.routes(choices)
    yield Outcome("pairwise ranker of all", routes, taken, passes_answers=False)


def oracle_pick(ground: Ground) -> Iterator[Outcome]:
    routes = ground.test_table.routes(pick_best(ground.test_table))
    yield Outcome("all once, oracle's pick", routes, passes_answers=False)
