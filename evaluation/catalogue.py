"""The baselines by name: what stands in the report's table beside the agent.

`eval.baselines` chooses among them. A baseline of a user's own is named by import path,
`package.module:name`: a `Baseline`, or the class of a policy.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from config import Config
from evaluation import play_on_routes, play_on_tables
from evaluation.ground import Ground
from evaluation.outcome import Outcome
from evaluation.route_log import Role
from experts import ExpertPool
from rollout import NeverSatisfied
from runtime.errors import ConfigError
from runtime.import_path import import_object

TRAINING, TREES, RANKER = "training", "trees", "ranker"  # what a baseline may need


@dataclass(frozen=True)
class Baseline:
    """A policy that the agent is compared with.

    name: as `eval.baselines` calls it. kind: of its row in the table. needs: `training` (every
    expert's answers to the training questions), `trees` (the route trees of all splits), `ranker`
    (`eval.ranker`). play: yields its routes on the test split; for several runs one outcome each.
    """

    name: str
    role: Role
    kind: str
    play: Callable[[Ground], Iterable[Outcome]]
    needs: frozenset[str] = frozenset()


def _known(
    role: Role, kind: str, play: Callable[[Ground], Iterable[Outcome]], *needs: str
) -> Baseline:
    """A baseline that is named after its role."""
    return Baseline(role, role, kind, play, frozenset(needs))


BASELINES: tuple[Baseline, ...] = (
    _known("der", "der", play_on_routes.der),
    _known("best_single", "static", play_on_tables.best_single),
    _known("best_single_return", "static", play_on_tables.best_single_return),
    _known("task_lookup", "static", play_on_tables.task_lookup),
    _known("random", "random", play_on_routes.random),
    _known("best_route", "static", play_on_routes.best_route, TREES),
    _known("cascade", "cascade", play_on_routes.cascade),
    _known("round_robin", "static", play_on_routes.round_robin),
    _known("random_without_ktp", "random", play_on_routes.random_without_ktp),
    _known("knn_router", "learned", play_on_tables.knn_router, TRAINING),
    _known("logistic_router", "learned", play_on_tables.logistic_router, TRAINING),
    _known("agreement_cascade", "cascade", play_on_tables.agreement_cascade, TRAINING),
    _known("threshold_cascade", "cascade", play_on_tables.threshold_cascade, TRAINING),
    _known("learned_stop", "cascade", play_on_tables.learned_stop, TRAINING),
    _known("cascade_routing", "cascade", play_on_tables.cascade_routing, TRAINING),
    _known("plan", "learned", play_on_tables.plan, TRAINING),
    _known("vote", "ensemble", play_on_tables.vote),
    _known("full_information", "learned", play_on_routes.full_information, TREES),
    _known("ranker", "ensemble", play_on_tables.ranker, RANKER),
    _known("single", "single", play_on_tables.single),
    _known("oracle_pick", "oracle", play_on_tables.oracle_pick),
    _known("der_oracle", "oracle", play_on_routes.der_oracle),
    _known("full_information_oracle", "oracle", play_on_routes.full_information_oracle, TREES),
    _known("optimum", "oracle", play_on_routes.optimum, TREES),
)
BY_NAME = {baseline.name: baseline for baseline in BASELINES}

# What every report compares with or is measured by.
ALWAYS = ("der", "best_single", "single", "oracle_pick", "der_oracle")
# Played unless other baselines are named: these ask nothing but the test and validation questions.
DEFAULT = (*ALWAYS, "best_single_return", "task_lookup", "random")


def chosen_baselines(config: Config, pool: ExpertPool) -> list[Baseline]:
    """The baselines of an evaluation, in the order of the table. Names choose among the known
    ones, import paths add to what is played.

    Raises ConfigError for a name that does not exist, and for one that needs what is not set.
    """
    names, own = set(ALWAYS), []
    named = [name for name in config.eval.baselines if ":" not in name]
    for name in config.eval.baselines:
        if ":" in name:
            own.append(import_baseline(name))
        elif name in BY_NAME:
            names.add(name)
        else:
            raise ConfigError(_unknown(name))
    if config.eval.full or not named:
        names.update(_unnamed(config, pool))
    chosen = [baseline for baseline in BASELINES if baseline.name in names] + own
    for baseline in chosen:
        if RANKER in baseline.needs and config.eval.ranker is None:
            raise ConfigError(f"eval.baselines: {baseline.name} needs eval.ranker, a PairRM")
    return chosen


def _unnamed(config: Config, pool: ExpertPool) -> list[str]:
    """What is played where `eval.baselines` names nothing, or eval.full asks for everything."""
    are_free = all(pool.is_recorded[: len(pool)])  # answers to training questions
    names = []
    for baseline in BASELINES:
        needs = baseline.needs
        is_cheap = baseline.name in DEFAULT or (are_free and needs == {TRAINING})
        is_cheap |= are_free and baseline.name == "vote"
        if RANKER in needs:
            is_wanted = config.eval.ranker is not None
        else:
            is_wanted = config.eval.full or is_cheap
        if is_wanted:
            names.append(baseline.name)
    return names


def import_baseline(name: str) -> Baseline:
    """The `Baseline` at an import path `package.module:name`, or one that plays the policy there.

    Raises ConfigError.
    """
    found = import_object(name, "eval.baselines")
    if isinstance(found, Baseline):
        return found
    if isinstance(found, type) and hasattr(found, "act"):
        return Baseline(found.__name__, "custom", "static", partial(_play_policy, found))
    raise ConfigError(
        f"eval.baselines: {name} is a {type(found).__name__}, expected a"
        " evaluation.catalogue.Baseline, or a policy: a class with a method act"
    )


def _play_policy(policy_class: type[Any], ground: Ground) -> Iterator[Outcome]:
    """The routes of a policy that is made from the pool; it ends them itself, or T_max does."""
    try:
        policy = policy_class(ground.pool)
    except Exception as error:  # whatever the code of others raises
        raise ConfigError(
            f"eval.baselines: {policy_class.__name__}(pool) fails: {type(error).__name__}: {error}"
        ) from error
    routes = ground.play(ground.splits.test, policy, NeverSatisfied(), ground.t_max)
    yield Outcome(policy_class.__name__, routes)


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, BY_NAME, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return (
        f"eval.baselines: no baseline {name!r}{hint} Known: {', '.join(BY_NAME)}, or an import"
        " path package.module:name"
    )


def needs_of(baselines: Sequence[Baseline]) -> set[str]:
    """Everything that some of the baselines need."""
    return {need for baseline in baselines for need in baseline.needs}
