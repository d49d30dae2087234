"""Baselines that are played call by call: the agent itself, Terminator-stopped policies, and what
is found in route trees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from der_env import OracleJudge
from evaluation.baselines import cheapest_first
from evaluation.ground import Ground
from evaluation.outcome import Outcome
from evaluation.policies import FixedRoute, RandomRouting, RoundRobin
from evaluation.route_tree import best_fixed_route, optimal_routes
from experts import ExpertPool
from rollout import NeverSatisfied, Policy
from terminator import cut_at


def der(ground: Ground) -> Iterator[Outcome]:
    for run in ground.runs:
        ground.say(f"DER, seed {run.seed}")
        routes = []
        for route in ground.long_routes[run.seed]:
            routes.append(cut_at(route, run.terminator.threshold))
        yield Outcome("DER", routes, ground.overheads(run.agent, routes), run.seed)


def der_oracle(ground: Ground) -> Iterator[Outcome]:
    for run in ground.runs:
        ground.say(f"DER, oracle stop, seed {run.seed}")
        test = ground.splits.test
        judge = OracleJudge(test, ground.config.env.p0, ground.pool.names)
        routes = ground.play(test, run.agent, judge, ground.t_max)
        taken = ground.overheads(run.agent, routes)
        yield Outcome("DER, oracle stop", routes, taken, run.seed)


def stopped_by_terminator(
    ground: Ground,
    label: str,
    policy_of: Callable[[int], Policy],
    pool: ExpertPool | None = None,
) -> Iterator[Outcome]:
    """A policy (made from the run's seed) under each run's own Terminator."""
    for run in ground.runs:
        ground.say(f"{label}, seed {run.seed}")
        policy = policy_of(run.seed)
        routes = ground.play(
            ground.splits.test, policy, run.judge, ground.t_max, pool, run.agent.reader
        )
        taken = ground.overheads(run.agent, routes, reads_question=False)
        yield Outcome(label, routes, taken, run.seed, passes_answers=pool is None)


def random(ground: Ground) -> Iterator[Outcome]:
    num = len(ground.pool)
    yield from stopped_by_terminator(
        ground, "random with KTP", lambda seed: RandomRouting(num, seed)
    )


def random_without_ktp(ground: Ground) -> Iterator[Outcome]:
    num, pool = len(ground.pool), ground.pool.with_ktp("none-v1")
    yield from stopped_by_terminator(
        ground, "random without KTP", lambda seed: RandomRouting(num, seed), pool
    )


def cascade(ground: Ground) -> Iterator[Outcome]:
    order = cheapest_first(ground.views.known.table)
    route = [order[call % len(order)] for call in range(ground.t_max)]
    yield from stopped_by_terminator(
        ground, "cascade, cheapest first", lambda seed: FixedRoute(route)
    )


def round_robin(ground: Ground) -> Iterator[Outcome]:
    num, ids = len(ground.pool), [question.id for question in ground.splits.test]
    yield from stopped_by_terminator(ground, "round-robin", lambda seed: RoundRobin(num, ids))


# --- what is found in route trees ---


def best_route(ground: Ground) -> Iterator[Outcome]:
    route = best_fixed_route(ground.trees.validation, ground.config.reward)
    name = " > ".join(ground.pool.names[expert_idx] for expert_idx in route)
    routes = ground.play(ground.splits.test, FixedRoute(route), NeverSatisfied(), len(route))
    yield Outcome(f"best fixed route: {name}", routes)


def full_information(ground: Ground) -> Iterator[Outcome]:
    ground.say("the full-information router")
    router = ground.trees.full_information_router(ground.agent, None)
    routes = ground.play(ground.splits.test, router, NeverSatisfied(), ground.t_max)
    yield Outcome("full-information", routes, ground.overheads(ground.agent, routes))


def full_information_oracle(ground: Ground) -> Iterator[Outcome]:
    ground.say("the full-information router, oracle stop")
    p0, test = ground.config.env.p0, ground.splits.test
    router = ground.trees.full_information_router(ground.agent, p0)
    judge = OracleJudge(test, p0, ground.pool.names)
    routes = ground.play(test, router, judge, ground.t_max)
    yield Outcome("full-information, oracle stop", routes, ground.overheads(ground.agent, routes))


def optimum(ground: Ground) -> Iterator[Outcome]:
    ground.say("the exact optimum")
    yield Outcome("optimum (hindsight)", optimal_routes(ground.trees.test, ground.config.reward))
