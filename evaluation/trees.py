"""The route trees of an evaluation's splits, grown when needed, and what is fitted on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from config import Config
from evaluation.full_information import FullInformationRouter, fit_full_information, fit_key
from evaluation.route_tree import RouteTree, grow, max_calls
from experts import ExpertPool
from questions import Question, Splits
from runtime.errors import ConfigError
from text_agent import Agent

FITS = Path("runs/full_information")


class Trees:
    """Trees of the test, validation and training questions."""

    def __init__(
        self, config: Config, pool: ExpertPool, splits: Splits, say: Callable[[str], None]
    ):
        self.config, self.pool, self.splits, self.say = config, pool, splits, say

    @cached_property
    def test(self) -> RouteTree:
        return self._grow("test", self.splits.test, expand_solved=False)

    @cached_property
    def validation(self) -> RouteTree:
        return self._grow("validation", self.splits.validation, expand_solved=True)

    @cached_property
    def training(self) -> RouteTree:
        return self._grow("training", self.training_questions, expand_solved=True)

    @cached_property
    def training_questions(self) -> list[Question]:
        """Those whose trees teach the full-information router."""
        order = np.random.default_rng(0).permutation(len(self.splits.train))
        chosen = order[: self.config.eval.tree_questions]
        return [self.splits.train[i] for i in sorted(chosen)]

    def full_information_router(
        self, agent: Agent, stop_quality: float | None
    ) -> FullInformationRouter:
        """Fitted on the trees of the training questions; a fit is kept under runs/full_information
        and used again.

        `stop_quality`: quality at which an oracle will end its routes; none: it decides alone.
        """
        reward, env = self.config.reward, self.config.env
        key = fit_key(
            agent, self.training_questions, self.pool, env.t_max, reward, stop_quality, env.submits
        )
        path = FITS / f"{key}.pt"
        if path.is_file():
            router = FullInformationRouter.load(path, agent)
        else:
            router = fit_full_information(agent, self.training, reward, stop_quality)
            router.save(path)
        self.say(f"  {path}: cross-fitted return on training questions {router.cross_fitted:.3f}")
        return router

    def check_size(self) -> None:
        """Raises ConfigError where growing the trees could take too many expert calls."""
        self._check("test", self.splits.test)
        self._check("validation", self.splits.validation)
        self._check("training", self.training_questions)

    def _max_calls(self, questions: Sequence[Question]) -> int:
        return max_calls(len(questions), len(self.pool), self.config.env.t_max)

    def _check(self, split: str, questions: Sequence[Question]) -> None:
        num_calls, limit = self._max_calls(questions), self.config.eval.max_tree_calls
        if num_calls > limit:
            raise ConfigError(
                f"the route trees of {len(questions)} {split} questions could need {num_calls}"
                f" expert calls, eval.max_tree_calls is {limit}: raise it, lower env.t_max or"
                " eval.tree_questions, or leave eval.full off and name baselines that need no trees"
                " in eval.baselines"
            )

    def _grow(self, split: str, questions: Sequence[Question], *, expand_solved: bool) -> RouteTree:
        self.say(
            f"route trees of {len(questions)} {split} questions: at most"
            f" {self._max_calls(questions)} expert calls"
        )
        return grow(
            questions,
            self.pool,
            self.config.env.t_max,
            expand_solved=expand_solved,
            submits=self.config.env.submits,
            on_level=lambda t, calls, new: self.say(
                f"  call {t}: {calls} answers, {new} of them new"
            ),
        )
