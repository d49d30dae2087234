"""Routing policies to compare the agent with. Each implements `rollout.Policy`; none sees a
reference when it decides.

What has to be fitted or chosen is fitted on training questions and chosen on validation questions,
from scored one-call routes `singles[expert][question]`.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsRegressor

from config import RewardConfig
from der_env import Episode
from evaluation.pair_ranker import PairRanker, Ranking
from reward import charge
from rollout import Decision, Route

Features = Callable[
    [Sequence[Episode]], np.ndarray
]  # episodes before their first call -> encoder features (B, D)


class FixedRoute:
    """The same experts in the same order for every question, then stop. A single expert is a route
    of one.

    With a Terminator as judge and the experts ordered by cost it is a cascade.
    """

    def __init__(self, expert_idxs: Sequence[int]):
        self.expert_idxs = list(expert_idxs)

    def act(self, episodes: Sequence[Episode]) -> list[Decision]:
        return [
            Decision(
                self.expert_idxs[len(e.steps)] if len(e.steps) < len(self.expert_idxs) else None
            )
            for e in episodes
        ]


class RoundRobin:
    """Experts in turn: question i of the list starts with expert i mod K, each further call goes to
    the next expert.
    """

    def __init__(self, num_experts: int, question_ids: Sequence[str]):
        self.num_experts, self.place = (
            num_experts,
            {name: place for place, name in enumerate(question_ids)},
        )

    def act(self, episodes: Sequence[Episode]) -> list[Decision]:
        return [
            Decision((self.place[e.question.id] + len(e.steps)) % self.num_experts)
            for e in episodes
        ]


class RandomRouting:
    """A uniformly random expert at every step, seeded per question, so that the order of play does
    not matter.
    """

    def __init__(self, num_experts: int, seed: int):
        self.num_experts, self.seed = num_experts, seed

    def act(self, episodes: Sequence[Episode]) -> list[Decision]:
        return [Decision(self._draw(episode)) for episode in episodes]

    def _draw(self, episode: Episode) -> int:
        digits = int.from_bytes(hashlib.sha256(episode.question.id.encode()).digest()[:8], "big")
        return int(
            np.random.default_rng([self.seed, digits, len(episode.steps)]).integers(
                self.num_experts
            )
        )


class TaskLookup:
    """The expert that had the best mean return on this question's task in validation, asked
    once.
    """

    def __init__(self, best_by_task: Mapping[str, int], fallback: int):
        self.best_by_task, self.fallback = dict(best_by_task), fallback

    def act(self, episodes: Sequence[Episode]) -> list[Decision]:
        return [
            Decision(None if e.steps else self.best_by_task.get(e.question.task, self.fallback))
            for e in episodes
        ]


class OneCallRouter:
    """Asks once: the expert with the highest predicted return, from `predict(features (B, D)) ->
    (B, K)`.
    """

    def __init__(self, features: Features, predict: Callable[[np.ndarray], np.ndarray]):
        self.features, self.predict = features, predict

    def act(self, episodes: Sequence[Episode]) -> list[Decision]:
        fresh = [episode for episode in episodes if not episode.steps]
        picks = iter(self.predict(self.features(fresh)).argmax(axis=1)) if fresh else iter(())
        return [Decision(None if episode.steps else int(next(picks))) for episode in episodes]


def fit_nearest_neighbours(
    features: np.ndarray,
    singles: Sequence[Sequence[Route]],
    reward: RewardConfig,
    num_neighbours: int,
) -> Callable[[np.ndarray], np.ndarray]:
    """Mean return of each expert on the nearest training questions, by cosine (the k-NN router of
    RouterBench, Hu et al. 2024).
    """
    returns = np.array(
        [[route.value_under(reward) for route in routes] for routes in singles]
    ).T  # (N, K)
    return (
        KNeighborsRegressor(min(num_neighbours, len(features)), metric="cosine")
        .fit(features, returns)
        .predict
    )


def fit_logistic(
    features: np.ndarray,
    singles: Sequence[Sequence[Route]],
    reward: RewardConfig,
    p0: float,
    strength: float,
) -> Callable[[np.ndarray], np.ndarray]:
    """One logistic regression per expert: probability of an answer of quality p0, minus alpha times
    the expert's mean cost.
    """
    models = []
    for routes in singles:
        good = np.array([route.quality >= p0 for route in routes])
        constant = (
            float(good.mean()) if good.all() or not good.any() else None
        )  # nothing to tell apart
        models.append(
            constant
            if constant is not None
            else LogisticRegression(C=strength, max_iter=2000).fit(features, good)
        )
    costs = np.array(
        [np.mean([charge(route.episode.cost, reward) for route in routes]) for routes in singles]
    )

    def predict(rows: np.ndarray) -> np.ndarray:
        columns = [
            np.full(len(rows), m) if isinstance(m, float) else m.predict_proba(rows)[:, 1]
            for m in models
        ]
        return np.column_stack(columns) - reward.alpha * costs

    return predict


def best_single_expert(
    singles: Sequence[Sequence[Route]], reward: RewardConfig | None = None
) -> int:
    """The expert with the highest mean quality, or return where a reward is given, over scored
    one-call routes, `singles[expert][question]`.
    """
    return int(
        np.argmax(
            [
                np.mean(
                    [
                        route.quality if reward is None else route.value_under(reward)
                        for route in routes
                    ]
                )
                for routes in singles
            ]
        )
    )


def cheapest_first(singles: Sequence[Sequence[Route]], reward: RewardConfig) -> list[int]:
    """The experts by the mean charge of their answers in scored one-call routes,
    `singles[expert][question]`; of equals the first.
    """
    return np.argsort(
        [np.mean([charge(route.episode.cost, reward) for route in routes]) for routes in singles],
        kind="stable",
    ).tolist()


def best_by_task(singles: Sequence[Sequence[Route]], reward: RewardConfig) -> dict[str, int]:
    """Task -> expert with the highest mean return, from scored one-call routes
    `singles[expert][question]`.
    """
    values: dict[str, list[list[float]]] = defaultdict(lambda: [[] for _ in singles])
    for expert_idx, routes in enumerate(singles):
        for route in routes:
            values[route.episode.question.task][expert_idx].append(route.value_under(reward))
    return {
        task: int(np.argmax([np.mean(v) for v in by_expert])) for task, by_expert in values.items()
    }


def ask_all_pick_best(singles: Sequence[Sequence[Route]]) -> list[Route]:
    """Every expert asked once, the best answer picked with the reference: what perfect selection
    would give, at full cost.
    """
    return [
        _ask_all(routes, max(range(len(routes)), key=lambda k: routes[k].quality))
        for routes in zip(*singles, strict=True)
    ]


def ask_all_and_vote(singles: Sequence[Sequence[Route]], best: int) -> list[Route]:
    """Every expert asked once, the most frequent answer taken (case and spaces aside;
    self-consistency, Wang et al. 2023, over experts).

    An empty answer is no vote. Of equally frequent answers the one of expert `best` wins if it is
    among them, else the earliest.
    """
    out = []
    for routes in zip(*singles, strict=True):
        texts = [re.sub(r"\s+", " ", route.episode.answer.strip().casefold()) for route in routes]
        votes = Counter(text for text in texts if text) or Counter(texts)
        most = max(votes.values())
        winner = (
            best
            if votes[texts[best]] == most
            else next(k for k, text in enumerate(texts) if votes[text] == most)
        )
        out.append(_ask_all(routes, winner))
    return out


def ask_all_and_rank(
    singles: Sequence[Sequence[Route]], ranker: PairRanker
) -> tuple[list[Route], list[Ranking]]:
    """Every expert asked once, all pairs of answers compared, the winner taken; with what comparing
    took, question by question.
    """
    out, rankings = [], []
    for routes in zip(*singles, strict=True):
        ranking = ranker.rank(
            routes[0].episode.question.text, [route.episode.answer for route in routes]
        )
        out.append(_ask_all(routes, int(ranking.scores.argmax())))
        rankings.append(ranking)
    return out, rankings


def _ask_all(routes: Sequence[Route], picked: int) -> Route:
    """All experts' single calls as one route; the picked answer comes last, so that its quality is
    the route's.
    """
    steps = [route.episode.steps[0] for k, route in enumerate(routes) if k != picked] + [
        routes[picked].episode.steps[0]
    ]
    return Route(
        Episode(routes[0].episode.question, len(steps), steps, "t_max"),
        [Decision(step.expert_idx) for step in steps],
    )
