"""Training of the agent that decides over a belief.

Every expert answers every training question once. The outcome model and the plan are fitted on
these answers; PPO then goes on from the plan. The plan itself is validated first, and stays where
PPO does not improve on it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from belief.budget import spending_line, tabulate
from belief.features import Said
from belief.guard import Planner
from belief.outcome_model import (
    CrossFitted,
    OutcomeModel,
    Outcomes,
    check_inputs,
    cross_fit,
)
from belief.packing import arrays_under, pack_model, unpack_model
from belief.planner import Order, Plan, follow
from belief.state import (
    CandidateModel,
    agreement,
    believe_sets,
    fit_candidates,
    sample_questions,
)
from belief_agent import BeliefAgent, BeliefReader
from config import EnvConfig, RewardConfig
from der_env import Episode, Judge, OracleJudge, Reader
from evaluation.answer_table import AnswerTable, ask_all
from evaluation.estimates import TableFeatures
from evaluation.kept import keep_encodings
from evaluation.progress import route_figures
from experts import ExpertPool
from questions import Question
from rollout import Route, play, score_routes
from terminator import NEVER, EstimateTerminator, choose_threshold, cut_at, make_judge
from training.promise import halves, make_guarantee, promise_of
from training.trainer import Trainer, mean_entropy


def orders_of(plans: Sequence[Plan]) -> list[tuple[tuple[int, ...], bool] | None]:
    """The experts of each fixed order and whether its stops are learned; None for other plans."""
    orders = [plan.order for plan in plans]
    return [(order.experts, order.threshold is None) if order else None for order in orders]


class BeliefTrainer(Trainer):
    """A trainer whose policy stands on estimates that are fitted first."""

    agent: BeliefAgent
    # Estimates take the place of the network that a Trainer has.
    terminator: EstimateTerminator  # type: ignore[assignment]

    def build_learners(self, saved: dict[str, Any] | None) -> None:
        """The outcome model and the plan: fitted, or as a checkpoint holds them."""
        self.terminator = EstimateTerminator()
        self.promise = promise_of(self.config)
        if self.promise is not None:
            self.promise.check_size(len(self.calibration))
        self.validated = np.zeros(0)  # returns of the last validation, question by question
        self.best_validated = np.zeros(0)
        self.calibrate()
        if saved is None:
            self._fit(self.splits.train)
        else:
            self._restore(saved["learners"])
        self.best_learned = self._learned()
        self.best_threshold = self.terminator.threshold

    @property
    def choosing(self) -> Sequence[Question]:
        """All validation questions, or half of them where a promise is calibrated on the rest."""
        if promise_of(self.config) is None:
            return self.splits.validation
        return halves(self.splits.validation)[0]

    @property
    def calibration(self) -> Sequence[Question]:
        """The validation questions that calibrate a promise."""
        return halves(self.splits.validation)[1]

    @property
    def heeds_agreement(self) -> bool:
        return True

    def _learned(self) -> dict[str, torch.Tensor]:
        """A copy of what PPO has changed."""
        return {
            "actor": self.agent.actor.learned.detach().clone(),
            "critic": self.agent.critic.weights.detach().clone(),
        }

    def _fit(self, *splits: Sequence[Question]) -> None:
        """Fit the outcome model and the plan on the first answers to the questions of the splits.

        What is read in the answers of a split is kept on the disk, for the next training and for
        evaluation.
        """
        config = self.config
        table, features = self._read(splits[0])
        for questions in splits[1:]:
            other, of_other = self._read(questions)
            table = table.joined(other)
            features = features.joined(of_other)
        questions = table.questions
        said = [table.said_by(expert_idx) for expert_idx in range(len(self.pool))]
        tasks = sorted({question.task for question in questions})
        outcomes = outcomes_of(table, features, tasks, config.env.p0)
        fitted = cross_fit(outcomes, len(tasks), config.seed)
        same = agreement(table.groups)
        candidates = fit_candidates(
            fitted.before, fitted.after, same, outcomes.good, config.env.t_max, config.seed
        )
        costs = table.mean_charges()
        reader = self._new_reader(fitted.model, candidates, tasks, costs)
        reader.remember(questions, said, fitted)
        self.agent.set_reader(reader, self.alphas, can_stop=self.can_stop)
        self._fitted = fitted
        self._table = table
        self._said = said
        self._fit_plans(reader, same, outcomes.good)

    def _read(self, questions: Sequence[Question]) -> tuple[AnswerTable, TableFeatures]:
        """Everybody's first answers to a split, and their features."""
        table = ask_all(questions, self.pool, self.config.reward)
        return table, TableFeatures.of(table, self.agent.question_embeddings(questions))

    def _fit_plans(self, reader: BeliefReader, same: np.ndarray, good: np.ndarray) -> None:
        """Fit a plan for each alpha on every route over the answers that were fitted on, or over
        those of a sample of the questions where there are too many routes.

        same (N, K, K): which answers agree. good (N, K): which are right.
        """
        rows = sample_questions(len(good), len(self.pool), reader.t_max, self.config.seed)
        before, after = self._fitted.before[rows], self._fitted.after[rows]
        same, good = same[rows], good[rows]
        self._planned_on = rows
        self._beliefs = believe_sets(before, after, same, reader.candidates, reader.t_max)
        planner = Planner(
            self._beliefs,
            before,
            good,
            reader.costs,
            reader.t_max,
            self.config.seed,
            self.can_stop,
        )
        self.plans = [planner.fit(alpha) for alpha in self.alphas]
        self.agent.set_plans(self.plans)

    def summary(self) -> str:
        """The trainer's line, for each alpha the fixed order where that stands for a plan, and
        whether later answers will be of another kind than those that were fitted on.
        """
        lines = [super().summary()]
        for alpha, plan in zip(self.alphas, self.plans, strict=True):
            if plan.order:
                rule = describe_order(plan.order, self.pool.names)
                lines.append(f"alpha {alpha:g}: a fixed order beats the plan: {rule}")
        if warning := warn_of_handing_on(self.pool, self.config.env):
            lines.append(warning)
        return "\n".join(lines)

    @property
    def alphas(self) -> tuple[float, ...]:
        """The weights of cost that the agent learns."""
        return self.config.reward.alphas or (self.config.reward.alpha,)

    @property
    def can_stop(self) -> bool:
        return self.config.env.stop == "action"

    def reward_of(self, env_idx: int) -> RewardConfig:
        """Environments take turns with the alphas: every update sees each."""
        alpha = self.alphas[env_idx % len(self.alphas)]
        return self.config.reward.model_copy(update={"alpha": alpha})

    def _new_reader(
        self,
        model: OutcomeModel,
        candidates: CandidateModel,
        tasks: Sequence[str],
        costs: np.ndarray,
    ) -> BeliefReader:
        return BeliefReader(
            model,
            candidates,
            tasks,
            costs,
            self.config.env.t_max,
            self.agent.question_embeddings,
            self.config.reward.alpha,
        )

    def calibrate(self) -> None:
        """Before the outcome model is fitted, which reads the encoder's features; once."""
        if not self.agent.encoder.cache:
            keep_encodings(self.agent, self.splits.train)
            keep_encodings(self.agent, self.choosing)
            super().calibrate()

    @property
    def reader(self) -> Reader | None:
        return self.agent.reader

    @property
    def has_a_plan(self) -> bool:
        return True

    def make_judge(self) -> Judge:
        """The oracle ends training episodes, unless the agent can stop by itself."""
        p0 = None if self.can_stop else self.config.env.p0
        return OracleJudge(self.splits.train, p0, self.pool.names)

    def _on_step(self, episode: Episode) -> None:
        if episode.is_over:
            self.finished.append(episode)

    def validate(self) -> dict[str, float]:
        """Play the validation split with every alpha.

        Questions that calibrate a promise are left out. Where the Terminator ends routes, its
        threshold is chosen. Figures are those of reward.alpha, but the return is the mean over the
        alphas.
        """
        start = time.perf_counter()
        self.algorithm.eval()
        routes_by_alpha = {}
        returns = []
        figures: dict[str, float] = {}
        for alpha in self.alphas:
            reward = self.config.reward.model_copy(update={"alpha": alpha})
            routes = self._validation_routes(reward)
            routes_by_alpha[alpha] = routes
            returns.append([route.return_under(reward) for route in routes])
            if self.config.reward.alphas:
                figures[f"eval/return/alpha_{alpha:g}"] = float(np.mean(returns[-1]))
        self.agent.ask_with(self.config.reward.alpha)
        self.validated = np.concatenate(returns)
        nearest = min(self.alphas, key=lambda alpha: abs(alpha - self.config.reward.alpha))
        routes = routes_by_alpha[nearest]
        return {
            **figures,
            **route_figures(routes, self.config, self.pool.names, "eval"),
            "eval/return": float(self.validated.mean()),
            "eval/entropy": mean_entropy(routes),
            "terminator/threshold": self.terminator.threshold,
            "time/validate_s": time.perf_counter() - start,
        }

    def _validation_routes(self, reward: RewardConfig) -> list[Route]:
        """The validation split, played and scored, ended by whoever ends routes."""
        config = self.config
        max_threshold = NEVER if self.can_stop else config.terminator.max_threshold
        self.agent.ask_with(reward.alpha)
        routes = play(
            [question.sealed() for question in self.choosing],
            self.agent,
            self.pool,
            make_judge(self.agent, self.terminator, max_threshold),
            config.env.t_max,
            lockstep=True,  # a resumed run ends the same
            submits=config.env.submits,
            reader=self.agent.reader,
        )
        score_routes(routes, self.choosing, self.pool.names)
        if self.can_stop:
            return routes
        self.terminator.threshold = choose_threshold(routes, reward, max_threshold)
        return [cut_at(route, self.terminator.threshold) for route in routes]

    def is_best(self, figures: dict[str, float]) -> bool:
        """Whether a validation beats the best one by more than the standard error of the gain.

        Otherwise a small validation split would prefer luck to the plan. The routes of a question
        at several alphas are no independent samples: its mean counts once.
        """
        del figures
        if len(self.best_validated):
            gains = (self.validated - self.best_validated).reshape(len(self.alphas), -1).mean(0)
            if len(gains) < 2:  # one question tells nothing of luck
                return False
            error = gains.std(ddof=1) / np.sqrt(len(gains))
            if gains.mean() <= error:
                return False
        self.best_validated = self.validated
        self.best_learned = self._learned()
        self.best_threshold = self.terminator.threshold
        return True

    def finish(self) -> None:
        """Fit everything again on training and validation questions together.

        What PPO had learned by the best epoch is kept, unless fixed orders came, went or changed:
        it was validated beside the plans of then. A promise is made last, on questions that nothing
        was fitted on. Raises GuaranteeError where it cannot be made.
        """
        if self.config.train.refit:
            validated = orders_of(self.plans)
            self._fit(self.splits.train, self.choosing)
            if orders_of(self.plans) != validated:
                self.best_learned["actor"].zero_()
        elif self.promise is None:
            return
        with torch.no_grad():
            self.agent.actor.learned.copy_(self.best_learned["actor"])
            self.agent.critic.weights.copy_(self.best_learned["critic"])
        self._tabulate_spending()
        self.terminator.threshold = self.best_threshold
        try:
            self._keep_promise()
        finally:
            self.save_learned()

    def _keep_promise(self) -> None:
        """Set the threshold that keeps the promise, if there is one. A refusal leaves NEVER."""
        if self.promise is None:
            return
        self.terminator.threshold = NEVER
        found = make_guarantee(
            self.agent,
            self.pool,
            self.config,
            self.promise,
            self.splits.train,
            self.choosing,
            self.calibration,
        )
        self.terminator.threshold = found.threshold
        self.terminator.promise = asdict(found)

    def _tabulate_spending(self) -> None:
        """What the agent spends on the known questions at each weight of cost, judged by estimates
        that have not seen their answers.
        """
        if not (self.can_stop and self.config.reward.alphas):
            return
        table, rows = self._table, self._planned_on
        before = self._fitted.before[rows]
        costs = self.agent.reader.costs
        spent = []
        for alpha in self.agent.reader.planned.to_tabulate():
            plan = self.agent.plan_at(alpha)
            order, submitted = follow(plan, self._beliefs, before, costs, alpha)
            charges = np.where(order >= 0, table.charge[rows[:, None], order], 0.0).sum(1)
            spent.append(tabulate(alpha, charges, table.quality[rows, submitted]))
        self.agent.spent = spent
        self.agent.num_spent = len(rows)
        print(spending_line(spent, self.alphas[-1]))

    def learners_state(self) -> dict[str, Any]:
        reader = self.agent.reader
        return {
            "model": pack_model(reader.model, reader.candidates),
            "tasks": reader.tasks,
            "costs": torch.as_tensor(reader.costs),
            "plans": torch.as_tensor(np.stack([plan.weights for plan in self.plans])),
            "sizes": torch.as_tensor(self.plans[0].sizes),
            "orders": [
                plan.order and (plan.order.experts, plan.order.threshold) for plan in self.plans
            ],
            "before": torch.as_tensor(self._fitted.before),
            "after": torch.as_tensor(self._fitted.after),
            "said": [[tuple(answer) for answer in column] for column in self._said],
            "threshold": self.terminator.threshold,
            "best_validated": torch.as_tensor(self.best_validated),
            "best_learned": self.best_learned,
            "best_threshold": self.best_threshold,
        }

    def load_learners_state(self, state: dict[str, Any]) -> None:
        self.terminator.threshold = state["threshold"]
        self.best_validated = state["best_validated"].numpy()
        self.best_learned = state["best_learned"]
        self.best_threshold = state.get("best_threshold", state["threshold"])  # of an older run

    def _restore(self, state: dict[str, Any]) -> None:
        """Build the reader and the plan as a checkpoint holds them."""
        packed = arrays_under("", state["model"])
        check_inputs(len(packed["reader.mean"]), "the checkpoint")
        tasks = state["tasks"]
        model, candidates = unpack_model(packed, len(self.pool), len(tasks))
        self._fitted = CrossFitted(model, state["before"].numpy(), state["after"].numpy())
        self._said = []
        for column in state["said"]:
            self._said.append([Said(*answer) for answer in column])
        reader = self._new_reader(model, candidates, tasks, state["costs"].numpy())
        reader.remember(self.splits.train, self._said, self._fitted)
        self.agent.set_reader(reader, self.alphas, can_stop=self.can_stop)
        sizes = state["sizes"].numpy()
        self.plans = []
        orders = state.get("orders", [None] * len(self.alphas))  # an older run kept none
        for weights, order in zip(state["plans"].numpy(), orders, strict=True):
            self.plans.append(Plan(weights, sizes, Order(*order) if order else None))
        self.agent.set_plans(self.plans)


def warn_of_handing_on(pool: ExpertPool, env: EnvConfig) -> str:
    """What to do where experts read earlier answers; empty where none will.

    Everything is fitted on answers to bare questions.
    """
    if env.t_max == 1 or env.ktp == "none-v1" or all(pool.is_recorded):
        return ""
    return (
        f"warning: env.ktp {env.ktp} hands answers on, but estimates are of answers to bare"
        " questions; with --env.ktp none-v1 every call asks one"
    )


def describe_order(order: Order, names: Sequence[str]) -> str:
    """Such as "small > large, until an answer is estimated at 0.70"."""
    path = " > ".join(names[expert_idx] for expert_idx in order.experts)
    if len(order.experts) == 1:
        return f"{path} alone"
    if order.threshold is None:
        return f"{path}, as long as going on is expected to pay"
    if order.threshold > 1:
        return f"{path}, always all"
    return f"{path}, until an answer is estimated at {order.threshold:.2f}"


def outcomes_of(
    table: AnswerTable, features: TableFeatures, tasks: Sequence[str], p0: float
) -> Outcomes:
    """Features and labels of all first answers of a scored table."""
    return Outcomes(
        question=features.question,
        embedding=features.embedding,
        task=np.array([tasks.index(question.task) for question in table.questions]),
        answer=features.answer,
        good=table.quality >= p0,
    )
