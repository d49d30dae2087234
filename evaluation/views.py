"""What baselines on answer tables learn from and choose on: a table with what was read in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from evaluation.answer_table import AnswerTable, Choices
from evaluation.estimates import Estimates, Estimator, TableFeatures


class View:
    """An answer table, features of its questions, and estimates of its answers, found when first
    needed.
    """

    def __init__(
        self,
        table: AnswerTable,
        features: Callable[[], TableFeatures],
        estimates: Callable[[], Estimates],
    ):
        self.table = table
        self._features, self._estimates = features, estimates

    @property
    def embedding(self) -> np.ndarray:
        """An encoder's features (N, D) of the questions."""
        return self._features().embedding

    @property
    def estimates(self) -> Estimates:
        return self._estimates()

    def sealed(self) -> View:
        """The same without qualities, for rules to choose on."""
        return View(self.table.sealed(), self._features, self._estimates)


@dataclass(frozen=True)
class FittedRule:
    """A rule fitted on a view: what it is called, and what it does on another (sealed) view."""

    description: str
    choose: Callable[[View], Choices]


Fit = Callable[[View], FittedRule]


class Views:
    """The three splits as views.

    `known` are training and validation questions together, or the latter alone where the experts
    were not asked the training questions. Estimates of questions that a model was fitted on are
    cross-fitted. Those of `validation` come from `training`, those of `test` from `known`.
    """

    def __init__(
        self,
        training: AnswerTable | None,
        validation: AnswerTable,
        test: AnswerTable,
        embed: Callable[[AnswerTable], np.ndarray],
        p0: float,
        t_max: int,
    ):
        self._tables = {"validation": validation, "test": test}
        if training is not None:
            self._tables["training"] = training
        self.has_training = training is not None
        self._embed, self._p0, self._t_max = embed, p0, t_max
        self._features: dict[str, TableFeatures] = {}

    def _read(self, split: str) -> TableFeatures:
        if split not in self._features:
            table = self._tables[split]
            self._features[split] = TableFeatures.of(table, self._embed(table))
        return self._features[split]

    def _read_known(self) -> TableFeatures:
        if not self.has_training:
            return self._read("validation")
        return self._read("training").joined(self._read("validation"))

    @cached_property
    def _known_table(self) -> AnswerTable:
        if not self.has_training:
            return self._tables["validation"]
        return self._tables["training"].joined(self._tables["validation"])

    @cached_property
    def _from_training(self) -> Estimator:
        table = self._tables["training"]
        return Estimator(table, self._read("training"), self._p0, self._t_max, seed=0)

    @cached_property
    def _from_known(self) -> Estimator:
        table = self._known_table
        return Estimator(table, self._read_known(), self._p0, self._t_max, seed=0)

    @cached_property
    def _of_validation(self) -> Estimates:
        table = self._tables["validation"].sealed()
        return self._from_training.estimate(table, self._read("validation"))

    @cached_property
    def _of_test(self) -> Estimates:
        return self._from_known.estimate(self._tables["test"].sealed(), self._read("test"))

    @property
    def training(self) -> View:
        table = self._tables["training"]
        return View(table, lambda: self._read("training"), lambda: self._from_training.own)

    @property
    def validation(self) -> View:
        table = self._tables["validation"]
        return View(table, lambda: self._read("validation"), lambda: self._of_validation)

    @property
    def known(self) -> View:
        return View(self._known_table, self._read_known, lambda: self._from_known.own)

    @property
    def test(self) -> View:
        """Scored; hand its `sealed()` to rules."""
        return View(self._tables["test"], lambda: self._read("test"), lambda: self._of_test)


@dataclass(frozen=True)
class Chosen:
    """The variant that validation prefers, fitted again on training and validation questions."""

    rule: FittedRule
    choices: Choices  # on test questions
    validation_return: float  # of the variant as it was before it was fitted again


def choose_variant(views: Views, variants: Sequence[Fit], alpha: float) -> Chosen:
    """Fit every variant on training questions, take the one with the highest return on validation
    questions (of equals the first), and fit it again on both.

    Without answers to training questions the first variant is fitted on validation questions.
    """
    if not views.has_training:
        rule = variants[0](views.known)
        reached = views.known.table.mean_return(rule.choose(views.known.sealed()), alpha)
        return Chosen(rule, rule.choose(views.test.sealed()), reached)
    returns = []
    for fit in variants:
        choices = fit(views.training).choose(views.validation.sealed())
        returns.append(views.validation.table.mean_return(choices, alpha))
    best = int(np.argmax(returns))
    rule = variants[best](views.known)
    return Chosen(rule, rule.choose(views.test.sealed()), returns[best])
