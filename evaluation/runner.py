"""Play a split with the agents of one or several runs and with every baseline.

The runs differ in their seed only. What needs no agent is played once; what needs a Terminator is
played with each run's own.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agent import load_agent
from config import Config
from der_env import Episode, Judge, OracleJudge, encode_states
from encoder import ENCODE_ROWS
from evaluation import baselines
from evaluation.full_information import FullInformationRouter, fit_full_information, fit_key
from evaluation.pair_ranker import PairRanker
from evaluation.route_log import Overhead, Played, Role
from evaluation.route_tree import RouteTree, best_fixed_route, grow, max_calls, optimal_routes
from evaluation.transfer import audit, best_pairs, reading_experts
from experts import ExpertPool, build_pool
from questions import Question, load_splits
from rollout import NeverSatisfied, Policy, Route, play, score_routes
from runtime.errors import ConfigError, RunError
from runtime.machine import pick_device, set_threads
from runtime.run_folder import differing_settings, evaluated_config
from terminator import (
    NEVER,
    AnyTerminator,
    answer_shape,
    cut_at,
    load_terminator,
    make_judge,
    terminator_figures,
)
from text_agent import Agent

NEIGHBOURS = (5, 10, 20, 50)  # of the k-NN router; the best on validation is taken
FITS = Path("runs/full_information")
STRENGTHS = (0.001, 0.01, 0.1, 1.0)  # inverse regularisation of the logistic router, likewise
Say = Callable[[str], None]


class Trained:
    """What one run has learned."""

    def __init__(
        self,
        path: Path,
        config: Config,
        pool: ExpertPool,
        device: torch.device,
        *,
        other_pool: bool,
    ):
        self.path, self.seed = path, config.seed
        self.agent: Agent = load_agent(path / "agent", pool, device=device, other_pool=other_pool)
        self.terminator: AnyTerminator = load_terminator(path / "terminator", device)
        if not config.eval.use_terminator:
            self.terminator.threshold = NEVER
        self.judge = make_judge(self.agent, self.terminator)


class Evaluation:
    """Runs of one configuration, their pool and the questions.

    `say` is told what is being played.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        overrides: Sequence[str],
        *,
        other_pool: bool = False,
        say: Say = lambda text: None,
    ):
        configs = [evaluated_config(path, overrides) for path in paths]
        self.config, self.say = configs[0], say
        for path, config in zip(paths, configs, strict=True):
            if differing := differing_settings(self.config, config):
                raise RunError(
                    f"{path} differs from {paths[0]} in {', '.join(differing)}: only runs of equal"
                    " settings and different seeds belong in one table"
                )
        if len({config.seed for config in configs}) < len(configs):
            raise RunError(f"two of these runs have the same seed: {', '.join(map(str, paths))}")
        set_threads(self.config.threads)
        device = pick_device(self.config.device)
        self.pool = build_pool(self.config)
        self.splits = load_splits(self.config.data)
        if len(self.splits.test) < 2:
            raise ConfigError(
                f"data.test: {len(self.splits.test)} question(s): the report's intervals need two"
                " or more"
            )
        self.pool.check_questions([*self.splits.train, *self.splits.validation, *self.splits.test])
        if self.config.eval.full:  # refused before anything is played
            for split, questions in (
                ("test", self.splits.test),
                ("validation", self.splits.validation),
                ("training", self._tree_questions),
            ):
                self._check_tree(split, questions)
        self.runs = [
            Trained(path, config, self.pool, device, other_pool=other_pool)
            for path, config in zip(paths, configs, strict=True)
        ]
        self.agent = self.runs[0].agent  # whose encoder the fitted baselines use
        if self.config.agent.freeze_encoder:
            for run in self.runs:
                run.agent.encoder.cache = (
                    self.agent.encoder.cache
                )  # one encoder: each state is read once for all runs

    # --- playing ---

    def play(
        self,
        questions: Sequence[Question],
        policy: Policy,
        judge: Judge,
        t_max: int,
        pool: ExpertPool | None = None,
    ) -> list[Route]:
        """Play sealed copies of the questions, then score the routes.

        Where answers were generated on the way, everything is played again from the store, in
        step: so what agent and Terminator say is the same to the last digit, whatever was stored.
        """
        submits = self.config.env.submits
        sealed = [q.sealed() for q in questions]
        pool = pool or self.pool
        generated, cache = pool.stats.generated, self.agent.encoder.cache
        known = dict(cache)
        memory = {"submits": submits, "reader": getattr(policy, "reader", None)}
        routes = play(sealed, policy, pool, judge, t_max, **memory)
        if pool.stats.generated > generated:
            cache.clear()
            cache.update(known)
            routes = play(sealed, policy, pool, judge, t_max, in_step=True, **memory)
        score_routes(routes, questions, self.pool.names)
        return routes

    def singles(self, questions: Sequence[Question]) -> list[list[Route]]:
        """Every expert alone on every question: [expert][question]."""
        return [
            self.play(questions, baselines.FixedRoute([idx]), NeverSatisfied(), 1)
            for idx in range(len(self.pool))
        ]

    @cached_property
    def validation_singles(self) -> list[list[Route]]:
        return self.singles(self.splits.validation)

    @cached_property
    def test_singles(self) -> list[list[Route]]:
        return self.singles(self.splits.test)

    @cached_property
    def best_expert(self) -> int:
        return baselines.best_single_expert(self.validation_singles)

    @cached_property
    def long_routes(self) -> dict[int, list[Route]]:
        """By seed, the agent's test routes run on to the highest threshold considered."""
        most = self.config.terminator.max_threshold
        return {
            run.seed: self.play(
                self.splits.test,
                run.agent,
                make_judge(run.agent, run.terminator, max(most, run.terminator.threshold)),
                self._t_max,
            )
            for run in self.runs
        }

    @property
    def _t_max(self) -> int:
        return self.config.env.t_max

    def played(self) -> Iterator[Played]:
        """Every policy on the test split, the agent first, no label standing for two roles.

        What has to be chosen is chosen on validation.
        """
        roles: dict[str, Role] = {}
        for played in self._policies():
            if roles.setdefault(played.policy, played.role) != played.role:
                played.policy += f" ({played.role})"  # an expert may be named like a policy
            yield played

    def _policies(self) -> Iterator[Played]:
        config, test, pool, num = self.config, self.splits.test, self.pool, len(self.pool)
        for run in self.runs:
            self.say(f"DER, seed {run.seed}")
            routes = [
                cut_at(route, run.terminator.threshold) for route in self.long_routes[run.seed]
            ]
            taken = self.overheads(run.agent, routes)
            yield Played("DER", "der", routes, taken, run.seed, role="der")
        self.say("every expert alone")
        best = self.best_expert
        yield self._shared(
            f"best fixed: {pool.names[best]}", "static", self.test_singles[best], role="best_single"
        )
        best_in_return = baselines.best_single_expert(self.validation_singles, config.reward)
        if best_in_return != best:  # the constant choice that is hardest to beat in return
            yield self._shared(
                f"best fixed in return: {pool.names[best_in_return]}",
                "static",
                self.test_singles[best_in_return],
                role="best_single_return",
            )
        lookup = baselines.TaskLookup(
            baselines.best_by_task(self.validation_singles, config.reward), best
        )
        yield self._shared(
            "per-task lookup",
            "static",
            self.play(test, lookup, NeverSatisfied(), 1),
            role="task_lookup",
        )
        for run in self.runs:
            yield self._with_terminator(
                "random with KTP",
                "random",
                baselines.RandomRouting(num, run.seed),
                run,
                role="random",
            )
        if config.eval.full:
            yield from self._more_baselines()
        if config.eval.ranker is not None:
            yield self._ranked()
        for name, routes in zip(pool.names, self.test_singles, strict=True):
            yield self._shared(name, "single", routes, role="single")
        yield Played(
            "all once, oracle's pick",
            "oracle",
            baselines.ask_all_pick_best(self.test_singles),
            None,
            self.runs[0].seed,
            hands_on=False,
            role="oracle_pick",
        )
        for run in self.runs:
            self.say(f"DER, oracle stop, seed {run.seed}")
            routes = self.play(
                test, run.agent, OracleJudge(test, config.env.p0, pool.names), self._t_max
            )
            yield Played(
                "DER, oracle stop",
                "oracle",
                routes,
                self.overheads(run.agent, routes),
                run.seed,
                role="der_oracle",
            )
        if config.eval.full:
            self.say("the full-information router, oracle stop")
            routes = self.play(
                test,
                self.full_information_router(config.env.p0),
                OracleJudge(test, config.env.p0, pool.names),
                self._t_max,
            )
            yield self._shared(
                "full-information, oracle stop",
                "oracle",
                routes,
                self.overheads(self.agent, routes),
                role="full_information_oracle",
            )
            self.say("the exact optimum")
            yield self._shared(
                "optimum (hindsight)",
                "oracle",
                optimal_routes(self.test_tree, config.reward),
                role="optimum",
            )

    def _more_baselines(self) -> Iterator[Played]:
        config, test, num = self.config, self.splits.test, len(self.pool)
        route = best_fixed_route(self.validation_tree, config.reward)
        name = " > ".join(self.pool.names[idx] for idx in route)
        yield self._shared(
            f"best fixed route: {name}",
            "static",
            self.play(test, baselines.FixedRoute(route), NeverSatisfied(), len(route)),
            role="best_route",
        )
        cheapest_first = baselines.cheapest_first(self.validation_singles, config.reward)
        cascade = [cheapest_first[t % num] for t in range(self._t_max)]
        for run in self.runs:
            yield self._with_terminator(
                "cascade, cheapest first",
                "cascade",
                baselines.FixedRoute(cascade),
                run,
                role="cascade",
            )
            yield self._with_terminator(
                "round-robin",
                "static",
                baselines.RoundRobin(num, [q.id for q in test]),
                run,
                role="round_robin",
            )
            yield self._with_terminator(
                "random without KTP",
                "random",
                baselines.RandomRouting(num, run.seed),
                run,
                self.pool.with_ktp("none-v1"),
                role="random_without_ktp",
            )
        yield from self._fitted_routers()
        yield Played(
            "majority vote of all",
            "ensemble",
            baselines.ask_all_and_vote(self.test_singles, self.best_expert),
            None,
            self.runs[0].seed,
            hands_on=False,
            role="vote",
        )
        self.say("the full-information router")
        routes = self.play(test, self.full_information_router(None), NeverSatisfied(), self._t_max)
        yield self._shared(
            "full-information",
            "learned",
            routes,
            self.overheads(self.agent, routes),
            role="full_information",
        )

    def _fitted_routers(self) -> Iterator[Played]:
        """The k-NN and the logistic router, fitted on every expert's answers to all training
        questions.
        """
        self.say("k-NN and logistic routers: every expert on the training questions")
        config, test, validation = self.config, self.splits.test, self.splits.validation
        singles = self.singles(self.splits.train)
        features = self.question_features([route.episode for route in singles[0]])
        fits = {
            ("k-NN router", "knn_router"): [
                lambda k=k: baselines.fit_nearest_neighbours(features, singles, config.reward, k)
                for k in NEIGHBOURS
            ],
            ("logistic router", "logistic_router"): [
                lambda c=c: baselines.fit_logistic(
                    features, singles, config.reward, config.env.p0, c
                )
                for c in STRENGTHS
            ],
        }
        for (name, role), candidates in fits.items():
            policies = [
                baselines.OneCallRouter(self.question_features, fit()) for fit in candidates
            ]
            values = [
                np.mean(
                    [
                        r.value_under(config.reward)
                        for r in self.play(validation, policy, NeverSatisfied(), 1)
                    ]
                )
                for policy in policies
            ]
            routes = self.play(test, policies[int(np.argmax(values))], NeverSatisfied(), 1)
            yield self._shared(
                name,
                "learned",
                routes,
                self.overheads(self.agent, routes, reads_answers=False),
                role=role,
            )

    def _ranked(self) -> Played:
        settings = self.config.eval
        self.say(f"pairwise ranker {settings.ranker}: every pair of answers, in both orders")
        ranker = PairRanker(
            settings.ranker, settings.ranker_revision, pick_device(self.config.device)
        )
        routes, rankings = baselines.ask_all_and_rank(self.test_singles, ranker)
        taken = [
            Overhead(
                r.comparisons * ranker.num_params / 1e9,
                2.0 * ranker.num_params * r.tokens,
                r.seconds,
            )
            for r in rankings
        ]
        return Played(
            "pairwise ranker of all",
            "ensemble",
            routes,
            taken,
            self.runs[0].seed,
            hands_on=False,
            role="ranker",
        )

    def _shared(
        self,
        policy: str,
        kind: str,
        routes: list[Route],
        overheads: list[Overhead] | None = None,
        *,
        role: Role,
    ) -> Played:
        """A policy that does not depend on the run."""
        return Played(policy, kind, routes, overheads, self.runs[0].seed, role=role)

    def _with_terminator(
        self,
        policy: str,
        kind: str,
        chooser: Policy,
        run: Trained,
        pool: ExpertPool | None = None,
        *,
        role: Role,
    ) -> Played:
        self.say(f"{policy}, seed {run.seed}")
        routes = self.play(self.splits.test, chooser, run.judge, self._t_max, pool)
        return Played(
            policy,
            kind,
            routes,
            self.overheads(run.agent, routes, reads_question=False),
            run.seed,
            hands_on=pool is None,
            role=role,
        )

    def question_features(self, episodes: Sequence[Episode]) -> np.ndarray:
        """Standardised encoder features (B, D) of questions before the first call, as the agent
        sees them.
        """
        fresh = [Episode(episode.question, self._t_max) for episode in episodes]
        return (
            self.agent.row_features(encode_states(fresh, self.agent.state_tokenizer)).cpu().numpy()
        )

    # --- route trees ---

    @cached_property
    def test_tree(self) -> RouteTree:
        return self._grow("test", self.splits.test, expand_solved=False)

    @cached_property
    def validation_tree(self) -> RouteTree:
        return self._grow("validation", self.splits.validation, expand_solved=True)

    @cached_property
    def training_tree(self) -> RouteTree:
        return self._grow("training", self._tree_questions, expand_solved=True)

    @cached_property
    def _tree_questions(self) -> list[Question]:
        chosen = np.random.default_rng(0).permutation(len(self.splits.train))[
            : self.config.eval.tree_questions
        ]
        return [self.splits.train[i] for i in sorted(chosen)]

    def full_information_router(self, over: float | None) -> FullInformationRouter:
        """Fitted on the trees of the training questions; a fit is kept under runs/full_information
        and used again.

        `over`: quality at which an oracle will end its routes; none: it decides alone.
        """
        reward = self.config.reward
        key = fit_key(
            self.agent,
            self._tree_questions,
            self.pool,
            self._t_max,
            reward,
            over,
            self.config.env.submits,
        )
        path = FITS / f"{key}.pt"
        if path.is_file():
            router = FullInformationRouter.load(path, self.agent)
        else:
            router = fit_full_information(self.agent, self.training_tree, reward, over)
            router.save(path)
        self.say(f"  {path}: cross-fitted return on training questions {router.cross_fitted:.3f}")
        return router

    def _check_tree(self, split: str, questions: Sequence[Question]) -> None:
        """Raises ConfigError where growing the trees could take too many expert calls."""
        most, limit = (
            max_calls(len(questions), len(self.pool), self._t_max),
            self.config.eval.max_tree_calls,
        )
        if most > limit:
            raise ConfigError(
                f"the route trees of {len(questions)} {split} questions could need {most} expert"
                f" calls, eval.max_tree_calls is {limit}: raise it, lower env.t_max or"
                " eval.tree_questions, or leave eval.full off"
            )

    def _grow(self, split: str, questions: Sequence[Question], *, expand_solved: bool) -> RouteTree:
        self.say(
            f"route trees of {len(questions)} {split} questions: at most"
            f" {max_calls(len(questions), len(self.pool), self._t_max)} expert calls"
        )
        return grow(
            questions,
            self.pool,
            self._t_max,
            expand_solved=expand_solved,
            submits=self.config.env.submits,
            on_level=lambda t, calls, new: self.say(
                f"  call {t}: {calls} answers, {new} of them new"
            ),
        )

    # --- what deciding costs ---

    @cached_property
    def _seconds_per_row(self) -> float:
        """Wall seconds of the encoder for one state, measured on a full batch, not taken from the
        cache.
        """
        questions = [Episode(q.sealed(), self._t_max) for q in self.splits.test[:ENCODE_ROWS]]
        rows = encode_states(questions, self.agent.state_tokenizer)
        with torch.inference_mode():
            self.agent.encoder.pooled(rows)
            start = time.perf_counter()
            self.agent.encoder.pooled(rows)
            return (time.perf_counter() - start) / len(rows)

    def overheads(
        self,
        agent: Agent,
        routes: Sequence[Route],
        *,
        reads_question: bool = True,
        reads_answers: bool = True,
    ) -> list[Overhead]:
        return overheads(
            agent,
            routes,
            self._seconds_per_row,
            reads_question=reads_question,
            reads_answers=reads_answers,
        )

    # --- sections of the report ---

    def terminator_section(self) -> dict[str, Any]:
        """results.json's `terminator`: the first run's figures, every run's threshold and AUROC."""
        shapes: dict[str, set[str]] = defaultdict(set)
        for question in self.splits.train:
            reference = (
                question.reference.get("answer")
                if isinstance(question.reference, dict)
                else question.reference
            )  # what else a metric's object means, it alone knows
            shapes[question.task].update(
                answer_shape(str(text))
                for text in (reference if isinstance(reference, list) else [reference])
                if text is not None
            )
        sections = [
            terminator_figures(self.long_routes[run.seed], self.splits.test, shapes, self.config)
            for run in self.runs
        ]
        kept = ("auroc", "auroc_well_formed", "ece")
        each = [
            {"seed": run.seed, "threshold": run.terminator.threshold, **{k: s[k] for k in kept}}
            for run, s in zip(self.runs, sections, strict=True)
        ]
        return {"threshold": self.runs[0].terminator.threshold, **sections[0], "seeds": each}

    def transfer_section(self) -> dict[str, Any]:
        """results.json's `transfer`: the knowledge-transfer audit on the test split."""
        self.say("the knowledge-transfer audit")
        pairs = best_pairs(
            self.validation_tree, self.config.eval.composition_tasks, reading_experts(self.pool)
        )
        return audit(self.splits.test, self.pool, pairs, self.config.env.p0)


def overheads(
    agent: Agent,
    routes: Sequence[Route],
    seconds_per_row: float,
    *,
    reads_question: bool = True,
    reads_answers: bool = True,
) -> list[Overhead]:
    """Encoder work of each route: one pass over the bare question (agent), one over the state after
    each call.

    The Terminator shares the pass over a state with the agent, who reads the same one if the route
    goes on.
    """
    states = [
        ([None] if reads_question else [])
        + ([step.answer.text for step in route.episode.steps] if reads_answers else [])
        for route in routes
    ]
    texts = [
        route.episode.question.text
        for route, answers in zip(routes, states, strict=True)
        for _ in answers
    ]
    rows = agent.state_tokenizer.encode(
        texts, [answer for answers in states for answer in answers], [0] * len(texts)
    )
    tokens = iter(
        (rows[:, agent.state_tokenizer.HEADER :] != agent.state_tokenizer.pad_id).sum(axis=1)
    )
    params = sum(p.numel() for p in agent.encoder.model.parameters())
    return [
        Overhead(
            len(answers) * params / 1e9,
            2.0 * params * int(sum(next(tokens) for _ in answers)),
            len(answers) * seconds_per_row,
        )
        for answers in states
    ]
