"""Every route a pool could take through a question, and the best of them.

Answers are deterministic, so the routes of a question form a tree: experts branch, states of equal
depth and equal answer are one node (and of equal expert, where the metric is `recorded`: texts that
are equal, or missing, may have unequal scores). Where the answer most agreed upon is submitted, a
node is all answers of its route, in order. Dynamic programming over it gives what hindsight
would have chosen, the yardstick of every table.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from backends.answer_store import Answer
from config import RewardConfig
from der_env import Episode, Step, best_answer
from experts import ExpertPool, Request
from metrics.agreement import group_question_answers
from metrics.registry import score_answers
from questions import RECORDED, Question
from reward import Cost, charge
from rollout import Decision, Route

Remembered = tuple[str, int | None]  # of a call: the answer; who gave it, where scores are recorded
History = tuple[Remembered, ...]  # the calls that tell a node from others, the last one last


@dataclass
class Level:
    """All nodes of all questions after the same number of calls.

    `question` (N,): which question a node belongs to; `answers` (N): its current answer, None
    before the first call; `answer_quality` (N,): of that answer, 0 before the first call; `quality`
    (N,): of the answer that would be submitted, the same unless agreement decides. `child` (N, K):
    index of the node in the next level that asking expert k leads to, -1 where the node was not
    expanded; `given` and `cost` (N, K): what expert k answered and what that cost.
    """

    question: np.ndarray
    answers: list[str | None]
    quality: np.ndarray
    answer_quality: np.ndarray
    child: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), dtype=int))
    given: list[list[Answer | None]] = field(default_factory=list)
    cost: list[list[Cost | None]] = field(default_factory=list)


@dataclass
class RouteTree:
    """Levels 0 (no answer yet) to T_max of the trees of several questions."""

    questions: Sequence[Question]
    levels: list[Level]
    num_experts: int
    submits: str = "last"
    _charges: dict[tuple[int, RewardConfig], np.ndarray] = field(default_factory=dict, repr=False)

    @property
    def t_max(self) -> int:
        return len(self.levels) - 1

    def charges(self, depth: int, reward: RewardConfig) -> np.ndarray:
        """C of every call from level `depth` (N, K); 0 where the node was not expanded."""
        if (depth, reward) not in self._charges:
            rows = [
                [0.0 if cost is None else charge(cost, reward) for cost in row]
                for row in self.levels[depth].cost
            ]
            self._charges[depth, reward] = np.array(rows).reshape(-1, self.num_experts)
        return self._charges[depth, reward]

    def action_values(
        self, depth: int, reward: RewardConfig, next_values: np.ndarray
    ) -> np.ndarray:
        """Return-to-go (N, K) of asking each expert in each node, given the values of the next
        level's nodes; -inf where not expanded.
        """
        child = self.levels[depth].child
        next_values = np.append(
            next_values, 0.0
        )  # what child -1 takes: the next level may be empty
        return np.where(
            child >= 0, next_values[child] - reward.alpha * self.charges(depth, reward), -np.inf
        )


def max_calls(num_questions: int, num_experts: int, t_max: int) -> int:
    """The most expert calls that growing trees can need; equal answers make it fewer."""
    return num_questions * sum(num_experts**depth for depth in range(1, t_max + 1))


def grow(
    questions: Sequence[Question],
    pool: ExpertPool,
    t_max: int,
    *,
    expand_solved: bool,
    submits: str = "last",
    on_level: Callable[[int, int, int], None] | None = None,
) -> RouteTree:
    """Ask every expert in every state, level by level, and score every answer.

    `expand_solved=False` goes no further from an answer of quality 1: stopping there is best
    whatever a call costs. What is asked goes through the answer store, so that an interrupted
    growth continues where it stopped. `on_level(depth, calls, new)` is told before each level's
    first generation how many calls it makes and how many of them the store does not hold. Raises
    BudgetError as `pool.answer` does.
    """
    num_experts, none_yet = len(pool), np.zeros(len(questions))
    levels = [Level(np.arange(len(questions)), [None] * len(questions), none_yet, none_yet)]
    histories: list[History] = [()] * len(questions)  # of the last level's nodes
    score_of: dict[tuple[int, Remembered], float] = {}
    for depth in range(t_max):
        level = levels[-1]
        open_nodes = [
            n for n in range(len(level.answers)) if expand_solved or level.quality[n] < 1.0
        ]
        requests = [
            Request(k, questions[level.question[n]].text, level.answers[n])
            for n in open_nodes
            for k in range(num_experts)
        ]
        answers = pool.answer(
            requests, functools.partial(on_level, depth + 1, len(requests)) if on_level else None
        )
        level.child = np.full((len(level.answers), num_experts), -1)
        level.given = [[None] * num_experts for _ in level.answers]
        level.cost = [[None] * num_experts for _ in level.answers]
        nodes: dict[tuple[int, History], int] = {}
        named: list[str] = []  # who gave a node's answer first
        for (n, k), answer in zip(
            itertools.product(open_nodes, range(num_experts)), answers, strict=True
        ):
            owner = int(level.question[n])
            call = (answer.text, k if questions[owner].metric == RECORDED else None)
            before = () if submits == "last" else histories[n]
            node = (owner, (*before, call))
            if node not in nodes:
                nodes[node] = len(nodes)
                named.append(pool.names[k])
            level.child[n, k] = nodes[node]
            level.given[n][k], level.cost[n][k] = answer, pool.cost(k, answer)
        histories = [history for _, history in nodes]
        levels.append(_judged_level(questions, list(nodes), named, score_of))
    return RouteTree(questions, levels, num_experts, submits)


def _judged_level(
    questions: Sequence[Question],
    nodes: Sequence[tuple[int, History]],
    named: Sequence[str],
    score_of: dict[tuple[int, Remembered], float],
) -> Level:
    """A level of nodes (question, history), each last answered by the expert in `named`.

    Each answer to a question is scored once, over all levels: `score_of` remembers.
    """
    new: dict[tuple[int, Remembered], str] = {}
    for (owner, history), name in zip(nodes, named, strict=True):
        if (owner, history[-1]) not in score_of:
            new.setdefault((owner, history[-1]), name)
    owners = [questions[owner] for owner, _ in new]
    scores = score_answers(owners, [call[0] for _, call in new], list(new.values()))
    score_of.update(zip(new, scores, strict=True))
    answers: list[str | None] = []
    quality = []
    answer_quality = []
    for owner, history in nodes:
        answers.append(history[-1][0])
        answer_quality.append(score_of[owner, history[-1]])
        submitted = history[_submitted(questions[owner], history)]
        quality.append(score_of[owner, submitted])
    of_question = np.array([owner for owner, _ in nodes], dtype=int)
    return Level(of_question, answers, np.array(quality), np.array(answer_quality))


def _submitted(question: Question, history: History) -> int:
    """Which call of a history counts: the only one, or the one most agreed upon."""
    if len(history) == 1:
        return 0
    groups = group_question_answers(question, [text for text, _ in history])
    return best_answer("agreed", groups, [0.0] * len(groups))


def optimal_values(tree: RouteTree, reward: RewardConfig) -> list[np.ndarray]:
    """Best return-to-go of every node of every level (N,): stop with the current answer, or ask on
    (Bellman's equation, horizon T_max).

    Before the first call stopping is not allowed.
    """
    values = [level.quality for level in tree.levels]
    for depth in reversed(range(tree.t_max)):
        best = tree.action_values(depth, reward, values[depth + 1]).max(axis=1)
        values[depth] = best if depth == 0 else np.maximum(values[depth], best)
    return values


def optimal_routes(tree: RouteTree, reward: RewardConfig) -> list[Route]:
    """The route with the highest return for each question, chosen with hindsight; of equal ones the
    shorter, then the earlier expert.
    """
    values = optimal_values(tree, reward)
    actions = [tree.action_values(depth, reward, values[depth + 1]) for depth in range(tree.t_max)]
    return [
        _follow(
            tree, question_idx, lambda depth, node: _hindsight(tree, values, actions, depth, node)
        )
        for question_idx in range(len(tree.questions))
    ]


def _hindsight(
    tree: RouteTree, values: list[np.ndarray], actions: list[np.ndarray], depth: int, node: int
) -> int | None:
    stops = depth == tree.t_max or (
        depth > 0 and tree.levels[depth].quality[node] >= actions[depth][node].max()
    )
    return None if stops else int(np.argmax(actions[depth][node]))


def _follow(tree: RouteTree, question_idx: int, choose: Callable[[int, int], int | None]) -> Route:
    """Walk one question's tree; `choose(depth, node)` names the expert, or None to stop."""
    question = tree.questions[question_idx].sealed()
    episode = Episode(question, tree.t_max, submits=tree.submits)
    depth, node = 0, question_idx
    while (expert_idx := choose(depth, node)) is not None:
        level = tree.levels[depth]
        given, cost = level.given[node][expert_idx], level.cost[node][expert_idx]
        if given is None or cost is None:
            raise ValueError(f"expert {expert_idx} was not asked in node {node} of level {depth}")
        node, depth = int(level.child[node, expert_idx]), depth + 1
        episode.hear(Step(expert_idx, given, cost, float(tree.levels[depth].answer_quality[node])))
        episode.choose_submission()
    episode.stop_reason = "t_max" if depth == tree.t_max else "satisfied"
    return Route(episode, [Decision(step.expert_idx) for step in episode.steps])


def best_fixed_route(tree: RouteTree, reward: RewardConfig) -> list[int]:
    """The sequence of experts (length 1 to T_max) with the highest mean return when every question
    takes it.

    Needs a tree grown with `expand_solved=True`: a fixed route goes on whatever the answer.
    """
    best, best_value = [0], -np.inf
    for length in range(1, tree.t_max + 1):
        for route in itertools.product(range(tree.num_experts), repeat=length):
            nodes, spent = np.arange(len(tree.questions)), np.zeros(len(tree.questions))
            for depth, expert_idx in enumerate(route):
                spent += tree.charges(depth, reward)[nodes, expert_idx]
                nodes = tree.levels[depth].child[nodes, expert_idx]
            value = float(np.mean(tree.levels[length].quality[nodes] - reward.alpha * spent))
            if value > best_value:
                best, best_value = list(route), value
    return best
