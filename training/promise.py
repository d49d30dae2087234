"""The promise of a Terminator (`terminator.max_loss`), made once everything else is learned."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from belief_agent import BeliefAgent
from config import Config
from evaluation.guarantee import (
    Guarantee,
    Outcomes,
    Promise,
    candidate_thresholds,
    guarantee,
)
from experts import ExpertPool, Request
from metrics.registry import score_answers
from questions import Question, agreeing_from, load_splits
from rollout import Route, play, score_routes
from terminator import NEVER, EstimateTerminator, make_judge


def promise_of(config: Config) -> Promise | None:
    """What the configuration promises, if anything."""
    settings = config.terminator
    if settings.max_loss is None:
        return None
    return Promise(settings.max_loss, settings.confidence)


def halves(questions: Sequence[Question]) -> tuple[list[Question], list[Question]]:
    """Every other question to choose by, and the rest to calibrate on."""
    return list(questions[::2]), list(questions[1::2])


def fitted_on(config: Config) -> list[Question]:
    """The questions that a finished training was fitted on: none that calibrates a promise."""
    splits = load_splits(config.data)
    if not config.train.refit:
        return list(splits.train)
    if promise_of(config) is None:
        return [*splits.train, *splits.validation]
    return [*splits.train, *halves(splits.validation)[0]]


def is_right(
    questions: Sequence[Question], pool: ExpertPool, expert_idx: int, p0: float
) -> np.ndarray:
    """Whether an expert's first answer to each question (N,) has quality p0."""
    requests = [Request(expert_idx, question.text) for question in questions]
    texts = [answer.text for answer in pool.answer(requests)]
    names = [pool.names[expert_idx]] * len(texts)
    return np.array(score_answers(questions, texts, names)) >= p0


def reference_expert(config: Config, pool: ExpertPool, training: Sequence[Question]) -> int:
    """The expert named as reference, or the one that answers most training questions rightly."""
    if config.terminator.reference is not None:
        return pool.names.index(config.terminator.reference)
    shares = []
    for expert_idx in range(len(pool)):
        shares.append(is_right(training, pool, expert_idx, config.env.p0).mean())
    return int(np.argmax(shares))


def unended_routes(
    agent: BeliefAgent, pool: ExpertPool, questions: Sequence[Question], config: Config
) -> list[Route]:
    """Scored routes of the agent that no threshold has ended."""
    agent.ask_with(config.reward.alpha)
    similarity = agent.similarity_under(config.env)
    routes = play(
        [question.sealed() for question in agreeing_from(questions, similarity)],
        agent,
        pool,
        make_judge(agent, EstimateTerminator(NEVER)),
        config.env.t_max,
        lockstep=True,
        submits=config.env.submits,
        reader=agent.reader,
    )
    score_routes(routes, questions, pool.names)
    return routes


def make_guarantee(
    agent: BeliefAgent,
    pool: ExpertPool,
    config: Config,
    promise: Promise,
    training: Sequence[Question],
    choosing: Sequence[Question],
    calibration: Sequence[Question],
) -> Guarantee:
    """The cheapest threshold of an agent that keeps the promise.

    The agent may have learned from training and choosing questions, never from calibration.
    Raises GuaranteeError where no threshold keeps it.
    """
    reference = reference_expert(config, pool, training)
    thresholds = candidate_thresholds(unended_routes(agent, pool, choosing, config))
    routes = unended_routes(agent, pool, calibration, config)
    right = is_right(calibration, pool, reference, config.env.p0)
    outcomes = Outcomes.of(routes, right.tolist(), thresholds, config.env.p0, config.reward)
    return guarantee(outcomes, thresholds, promise, pool.names[reference])
