"""What judged answers of a served run teach its outcome model.

The model is fitted again on the training answers and the judged ones. How much it gains is measured
on judged answers that were held out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from belief.features import Said
from belief.outcome_model import JudgedAnswers, OutcomeModel, count_answers, count_questions
from belief.regression import sigmoid
from belief_agent import BeliefAgent
from config import Config
from evaluation.answer_table import ask_all
from evaluation.estimates import TableFeatures
from experts import ExpertPool
from prompts import Message
from questions import Question
from runtime.errors import DataError
from serving.route_log import read_records
from training.belief_trainer import outcomes_of
from training.promise import fitted_on

NUM_FOLDS = 4
LEAST_JUDGED = 2 * NUM_FOLDS
LEAST_PROBABILITY = 1e-6  # in a logarithm


@dataclass(frozen=True)
class Judged:
    """An answer that was served, and how good somebody found it."""

    question: Question
    expert: str
    answer: Said
    quality: float


def read_judged(path: Path) -> tuple[list[Judged], int]:
    """The judged answers of a log, and how many were logged without their texts.

    The last judgement of a route counts. Raises DataError for a file that cannot be read, and where
    there are too few to learn from.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such log")
    routes: dict[str, dict[str, Any]] = {}
    judgements: dict[str, float] = {}
    for record in read_records(path):
        if record.get("kind") == "route":
            routes[record["id"]] = record
        elif record.get("kind") == "feedback":
            judgements[record["id"]] = record["quality"]
    judged = []
    num_without = 0
    for route_id, quality in judgements.items():
        route = routes.get(route_id, {})
        if "answers" in route:
            judged.append(_judged_of(route, quality))
        else:
            num_without += 1
    if len(judged) < LEAST_JUDGED:
        raise DataError(
            f"{path}: {len(judged)} judged answers with their texts ({num_without} without), at"
            f" least {LEAST_JUDGED} are needed; scripts/serve.py --log_texts logs texts"
        )
    return judged, num_without


def _judged_of(route: dict[str, Any], quality: float) -> Judged:
    messages = [Message(**message) for message in route["messages"]]
    question = Question(
        id=route["id"],
        text=messages[-1].text,
        task=route["task"],
        metric=route["metric"],
        agreement=route["agreement"],
        context=tuple(messages[:-1]),
    )
    place = route["submitted"]
    step = route["steps"][place]
    # Older logs do not tell how sure the model was
    said = Said(route["answers"][place], step.get("logprob_mean"), step.get("logprob_min"))
    return Judged(question, step["expert"], said.rounded(), quality)


@dataclass(frozen=True)
class Skill:
    """How well probabilities foretell outcomes."""

    log_loss: float
    auroc: float | None  # none where all answers are right, or all are wrong

    @classmethod
    def of(cls, log_odds: np.ndarray, good: np.ndarray) -> Skill:
        """Skill of log-odds (N,) for outcomes (N,)."""
        from sklearn.metrics import roc_auc_score

        p = np.clip(sigmoid(log_odds), LEAST_PROBABILITY, 1 - LEAST_PROBABILITY)
        log_loss = -np.where(good, np.log(p), np.log(1 - p)).mean()
        auroc = float(roc_auc_score(good, p)) if 0 < good.sum() < len(good) else None
        return cls(float(log_loss), auroc)


@dataclass(frozen=True)
class Lesson:
    """A model that has learned from judged answers, and what that changes on held-out ones.

    Before: a model of the training answers alone. After: models that have also learned from the
    other folds of judged answers.
    """

    model: OutcomeModel
    before_call: tuple[Skill, Skill]  # estimates from the question: before, after learning
    after_call: tuple[Skill, Skill]  # estimates from question and answer


def learn(agent: BeliefAgent, pool: ExpertPool, config: Config, judged: Sequence[Judged]) -> Lesson:
    """Fit the outcome model on training answers and judged ones.

    Raises what loading the questions and asking the pool raise; training answers are stored.
    """
    questions = fitted_on(config)
    tasks = agent.reader.tasks
    table = ask_all(questions, pool, config.reward)
    features = TableFeatures.of(table, agent.question_embeddings(questions))
    trained = outcomes_of(table, features, tasks, config.env.p0).flat()
    new = judged_answers(judged, agent, pool.names, config.env.p0)

    odds = _held_out_odds(trained, new, len(pool), len(tasks), config.seed)
    skills = []
    for before, after in odds:
        skills.append((Skill.of(before, new.good), Skill.of(after, new.good)))
    model = OutcomeModel.fit_answers(trained.with_others(new), len(pool), len(tasks))
    return Lesson(model, skills[0], skills[1])


def _held_out_odds(
    trained: JudgedAnswers, new: JudgedAnswers, num_experts: int, num_tasks: int, seed: int
) -> np.ndarray:
    """Log-odds (2, 2, N) of new answers: before the call, after it; without the others, with them.

    No model has seen the answers that it estimates.
    """
    untaught = OutcomeModel.fit_answers(trained, num_experts, num_tasks)
    without = _estimates(untaught, new)
    taught = np.zeros_like(without)
    folds = np.random.default_rng(seed).permutation(len(new)) % NUM_FOLDS
    for fold in range(NUM_FOLDS):
        held = np.flatnonzero(folds == fold)
        others = new.take(np.flatnonzero(folds != fold))
        model = OutcomeModel.fit_answers(trained.with_others(others), num_experts, num_tasks)
        taught[:, held] = _estimates(model, new.take(held))
    return np.stack([without, taught], axis=1)


def judged_answers(
    judged: Sequence[Judged], agent: BeliefAgent, experts: Sequence[str], p0: float
) -> JudgedAnswers:
    """Features and labels of judged answers.

    Raises DataError for an expert that is not in the pool.
    """
    questions = [row.question for row in judged]
    tasks = agent.reader.tasks
    expert_idxs = []
    task_idxs = []
    for row in judged:
        if row.expert not in experts:
            raise DataError(f"route {row.question.id}: no expert {row.expert} in this run")
        expert_idxs.append(experts.index(row.expert))
        known = row.question.task in tasks
        task_idxs.append(tasks.index(row.question.task) if known else -1)
    return JudgedAnswers(
        count_questions(questions),
        agent.question_embeddings(questions),
        np.array(task_idxs),
        np.array(expert_idxs),
        count_answers(questions, [row.answer for row in judged]),
        np.array([row.quality >= p0 for row in judged]),
    )


def _estimates(model: OutcomeModel, answers: JudgedAnswers) -> np.ndarray:
    """Log-odds (2, N) that the answers are right: before the call, and after reading them."""
    before = model.before(answers.question, answers.embedding, answers.task)
    after = model.after(answers.question, answers.task, answers.expert, answers.answer)
    return np.stack([before[np.arange(len(answers)), answers.expert], after])
