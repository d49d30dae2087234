"""What all baselines stand on: the runs, their pool, the questions, and everybody's first answers.

The runs differ in their seed only. What needs no agent is played once; what needs a Terminator is
played with each run's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agent import load_agent
from config import Config
from der_env import Episode, Judge, Reader, encode_states
from evaluation.answer_table import AnswerTable, ask_all
from evaluation.baselines import highest_mean
from evaluation.kept import keep_encodings
from evaluation.overheads import State, overheads, seconds_per_state
from evaluation.route_log import Overhead
from evaluation.trees import Trees
from evaluation.views import Views
from experts import ExpertPool, build_pool
from questions import Question, load_splits
from rollout import Policy, Route, play, score_routes
from runtime.errors import ConfigError, RunError
from runtime.machine import pick_device, set_threads
from runtime.run_folder import differing_settings, evaluated_config
from terminator import NEVER, AnyTerminator, load_terminator, make_judge
from text_agent import Agent

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
        self.agent.ask_with(config.reward.alpha)
        self.terminator: AnyTerminator = load_terminator(path / "terminator", device)
        if not config.eval.use_terminator:
            self.terminator.threshold = NEVER
        self.judge = make_judge(self.agent, self.terminator)


class Ground:
    """Runs of one configuration, their pool and the questions.

    `say` is told what is being played. `asks_training`: whether a baseline needs every expert's
    answers to the training questions; all that is chosen is then chosen on them, too.
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
        self.asks_training = False
        check_belong_together(paths, configs)
        set_threads(self.config.threads)
        device = pick_device(self.config.device)
        self.pool = build_pool(self.config)
        self.splits = load_splits(self.config.data)
        check_enough(self.splits.test)
        self.pool.check_questions([*self.splits.train, *self.splits.validation, *self.splits.test])
        self.runs = [
            Trained(path, config, self.pool, device, other_pool=other_pool)
            for path, config in zip(paths, configs, strict=True)
        ]
        self.agent = self.runs[0].agent  # whose encoder the fitted baselines use
        self.lengths: dict[State, int] = {}  # in tokens, of what the encoder would read
        self.agree_from(self.agent.similarity_under(self.config.env))
        self._share_encodings(self.agent)
        if self.agent.reader is not None:  # an agent over beliefs reads bare questions only
            keep_encodings(self.agent, self.splits.test)

    def _share_encodings(self, agent: Agent) -> None:
        """Let all runs use what an agent has encoded, so that each state is read once."""
        if self.config.agent.freeze_encoder:
            for run in self.runs:
                run.agent.encoder.cache = agent.encoder.cache

    def take_over(self, other: Ground) -> None:
        """Use what another evaluation of the same questions found that no alpha changes.

        That is everybody's first answers, what was read in them, the encoded states, and how long
        encoding takes.
        """
        self.test_table = other.test_table
        self.lengths = other.lengths
        self._seconds_per_row = other._seconds_per_row
        if self.asks_training == other.asks_training:
            self.views = other.views
        self._share_encodings(other.agent)

    def agree_from(self, similarity: float) -> None:
        """Let answers in free text agree from this similarity on. Before anything is asked."""
        self.splits = self.splits.agreeing_from(similarity)
        self.trees = Trees(self.config, self.pool, self.splits, self.say)

    @property
    def t_max(self) -> int:
        return self.config.env.t_max

    # --- playing ---

    def play(
        self,
        questions: Sequence[Question],
        policy: Policy,
        judge: Judge,
        t_max: int,
        pool: ExpertPool | None = None,
        reader: Reader | None = None,
    ) -> list[Route]:
        """Play sealed copies of the questions, then score the routes. `reader` estimates the
        answers; an agent over beliefs brings its own.

        Where answers were generated on the way, everything is played again from the store, in
        step: so what agent and Terminator say is the same to the last digit, whatever was stored.
        """
        sealed = [q.sealed() for q in questions]
        pool = pool or self.pool
        generated, cache = pool.stats.generated, self.agent.encoder.cache
        known = dict(cache)
        reader = reader or getattr(policy, "reader", None)
        memory: dict[str, Any] = {"submits": self.config.env.submits, "reader": reader}
        routes = play(sealed, policy, pool, judge, t_max, **memory)
        if pool.stats.generated > generated:
            cache.clear()
            cache.update(known)
            routes = play(sealed, policy, pool, judge, t_max, lockstep=True, **memory)
        score_routes(routes, questions, self.pool.names)
        return routes

    @cached_property
    def long_routes(self) -> dict[int, list[Route]]:
        """By seed, the agent's test routes run on to the highest threshold considered."""
        routes = {}
        for run in self.runs:
            threshold = max(self.config.terminator.max_threshold, run.terminator.threshold)
            judge = make_judge(run.agent, run.terminator, threshold)
            routes[run.seed] = self.play(self.splits.test, run.agent, judge, self.t_max)
        return routes

    # --- everybody's first answers ---

    def _ask_all(self, split: str, questions: Sequence[Question]) -> AnswerTable:
        self.say(f"every expert on {len(questions)} {split} questions")
        return ask_all(questions, self.pool, self.config.reward)

    @cached_property
    def test_table(self) -> AnswerTable:
        return self._ask_all("test", self.splits.test)

    @cached_property
    def views(self) -> Views:
        """The answers of all splits; of training questions where `asks_training`."""
        training = None
        if self.asks_training:
            training = self._ask_all("training", self.splits.train)
        validation = self._ask_all("validation", self.splits.validation)
        return Views(
            training,
            validation,
            self.test_table,
            self._embed,
            self.config.env.p0,
            min(self.t_max, len(self.pool)),
        )

    def _embed(self, table: AnswerTable) -> np.ndarray:
        return self.question_features(table.questions)

    @cached_property
    def best_expert(self) -> int:
        """The expert with the best mean quality on the questions that baselines are chosen on."""
        return highest_mean(self.views.known.table.quality)

    def question_features(self, questions: Sequence[Question]) -> np.ndarray:
        """Standardised encoder features (N, D) of bare questions, as the agent sees them."""
        keep_encodings(self.agent, questions)
        fresh = [Episode(question.sealed(), self.t_max) for question in questions]
        rows = encode_states(fresh, self.agent.state_tokenizer)
        return self.agent.row_features(rows).cpu().numpy()

    # --- what deciding costs ---

    @cached_property
    def _seconds_per_row(self) -> float:
        return seconds_per_state(self.agent, self.splits.test, self.t_max)

    def overheads(
        self,
        agent: Agent,
        routes: Sequence[Route],
        *,
        reads_question: bool = True,
        reads_answers: bool = True,
    ) -> list[Overhead]:
        """The encoder's work of each route. An agent over beliefs reads no answers with it."""
        return overheads(
            agent,
            routes,
            self._seconds_per_row,
            self.lengths,
            reads_question=reads_question,
            reads_answers=reads_answers and agent.reader is None,
        )


def check_enough(questions: Sequence[Question]) -> None:
    """Raises ConfigError for test questions too few to say anything of."""
    if len(questions) < 2:
        raise ConfigError(
            f"data.test: {len(questions)} question(s): the report's intervals need two or more"
        )


def check_belong_together(paths: Sequence[Path], configs: Sequence[Config]) -> None:
    """Raises RunError unless the runs differ in their seeds, and in these only."""
    for path, config in zip(paths, configs, strict=True):
        if differing := differing_settings(configs[0], config):
            raise RunError(
                f"{path} differs from {paths[0]} in {', '.join(differing)}: only runs of equal"
                " settings and different seeds belong in one table"
            )
    if len({config.seed for config in configs}) < len(configs):
        raise RunError(f"two of these runs have the same seed: {', '.join(map(str, paths))}")
