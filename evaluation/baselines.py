"""Ways to use the pool without DER, on answer tables: constants, lookups, routers, votes.

Each `fit_...` learns from a view of questions whose answers are judged and returns a rule, which
chooses on sealed views. Rules that stop by what was answered are in `cascades.py`,
`learned_stop.py` and `cascade_routing.py`, policies that a Terminator stops in `policies.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from evaluation.answer_table import AnswerTable, Choices
from evaluation.pair_ranker import PairRanker, Ranking
from evaluation.views import FittedRule, View

LOOKUP_WEIGHTS = (0.0, 10.0)  # questions that a task's mean is drawn to the overall one by
NEIGHBOURS = (5, 10, 20, 50)  # of the k-NN router
STRENGTHS = (0.001, 0.01, 0.1, 1.0)  # inverse regularisation of the logistic router

Predict = Callable[[np.ndarray], np.ndarray]  # features (B, D) -> expected returns (B, K)


def highest_mean(values: np.ndarray) -> int:
    """The column of (N, K) with the highest mean; of equals the first."""
    means = [float(np.mean(column)) for column in values.T]
    return int(np.argmax(means))


def cheapest_first(table: AnswerTable) -> list[int]:
    """The experts by the mean C of their answers; of equals the first."""
    return np.argsort(table.charge.mean(axis=0), kind="stable").tolist()


def always(expert_idx: int, name: str) -> FittedRule:
    """Ask one expert, once."""

    def choose(view: View) -> Choices:
        return Choices.of_one(np.full(len(view.table), expert_idx))

    return FittedRule(name, choose)


def fit_best_single(view: View, alpha: float, names: Sequence[str]) -> FittedRule:
    """The expert with the highest mean return; with alpha 0, quality."""
    best = highest_mean(view.table.returns(alpha))
    return always(best, names[best])


def fit_task_lookup(view: View, alpha: float, names: Sequence[str], weight: float) -> FittedRule:
    """The expert with the highest mean return on the question's task; for new tasks the one that
    is best in quality over all.

    weight: of the mean over all tasks, in questions, when a task's mean is taken.
    """
    table = view.table
    returns = table.returns(alpha)
    overall = returns.mean(axis=0)
    fallback = highest_mean(table.quality)
    best_by_task: dict[str, int] = {}
    for task in dict.fromkeys(table.tasks.tolist()):
        own = returns[table.tasks == task]
        totals = own.sum(axis=0) + weight * overall
        best_by_task[task] = int(np.argmax(totals / (len(own) + weight)))

    def choose(other: View) -> Choices:
        picks = [best_by_task.get(task, fallback) for task in other.table.tasks.tolist()]
        return Choices.of_one(np.array(picks))

    words = [f"{task}: {names[expert_idx]}" for task, expert_idx in best_by_task.items()]
    return FittedRule(", ".join(words), choose)


def fit_router(view: View, predict: Predict, description: str) -> FittedRule:
    """Ask once: the expert with the highest predicted return."""

    def choose(other: View) -> Choices:
        return Choices.of_one(predict(other.embedding).argmax(axis=1))

    return FittedRule(description, choose)


def fit_knn_router(view: View, alpha: float, num_neighbours: int) -> FittedRule:
    """Mean return of each expert on the nearest questions, by cosine (the k-NN router of
    RouterBench, Hu et al. 2024).
    """
    predict = nearest_neighbours(view.embedding, view.table.returns(alpha), num_neighbours)
    return fit_router(view, predict, f"{num_neighbours} neighbours")


def nearest_neighbours(features: np.ndarray, returns: np.ndarray, num_neighbours: int) -> Predict:
    """From features (N, D) and returns (N, K)."""
    from sklearn.neighbors import KNeighborsRegressor

    model = KNeighborsRegressor(min(num_neighbours, len(features)), metric="cosine")
    return model.fit(features, returns).predict


def fit_logistic_router(view: View, alpha: float, p0: float, strength: float) -> FittedRule:
    """One logistic regression per expert: probability of an answer of quality p0, minus alpha times
    the expert's mean cost.
    """
    good = view.table.quality >= p0
    costs = alpha * view.table.charge.mean(axis=0)
    predict = logistic(view.embedding, good, costs, strength)
    return fit_router(view, predict, f"C = {strength:g}")


def logistic(features: np.ndarray, good: np.ndarray, costs: np.ndarray, strength: float) -> Predict:
    """From features (N, D), whether answers are good (N, K) and costs to take off (K,)."""
    from sklearn.linear_model import LogisticRegression

    models: list[float | LogisticRegression] = []
    for labels in good.T:
        if labels.all() or not labels.any():  # nothing to tell apart
            models.append(float(labels.mean()))
        else:
            models.append(LogisticRegression(C=strength, max_iter=2000).fit(features, labels))

    def predict(rows: np.ndarray) -> np.ndarray:
        columns = []
        for model in models:
            if isinstance(model, float):
                columns.append(np.full(len(rows), model))
            else:
                columns.append(model.predict_proba(rows)[:, 1])
        return np.column_stack(columns) - costs

    return predict


def vote(table: AnswerTable, best: int) -> Choices:
    """Every expert asked, the answer that most agree on taken (self-consistency, Wang et al. 2023,
    over experts).

    An answer that nothing could be read in is no vote. Of answers with equal votes the one of
    expert `best` wins if it is among them, else the earliest.
    """
    winners = []
    for groups in table.groups.tolist():
        votes = Counter(group for group in groups if group >= 0)
        counts = [votes[group] for group in groups]
        max_votes = max(counts)
        winners.append(best if counts[best] == max_votes else counts.index(max_votes))
    order = np.tile(np.arange(table.num_experts), (len(table), 1))
    return Choices(order, np.array(winners))


def rank_all(table: AnswerTable, ranker: PairRanker) -> tuple[Choices, list[Ranking]]:
    """Every expert asked, all pairs of answers compared, the winner taken; with what comparing
    took, question by question.
    """
    winners, rankings = [], []
    for question, answers in zip(table.questions, table.answers, strict=True):
        ranking = ranker.rank(question.text, [answer.text for answer in answers])
        winners.append(int(ranking.scores.argmax()))
        rankings.append(ranking)
    order = np.tile(np.arange(table.num_experts), (len(table), 1))
    return Choices(order, np.array(winners)), rankings
