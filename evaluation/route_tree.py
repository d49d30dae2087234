"""Every route a pool could take through a question, and the best of them.

Answers are deterministic, so the routes of a question form a tree that branches by expert. States
of equal depth and equal answer are one node. Where the metric is `recorded`, the expert must be
equal too: equal or missing texts may have unequal scores. Where the answer most agreed upon is
submitted, a node is all answers of its route, in order. Dynamic programming over the tree gives
what hindsight would have chosen, with which every table compares.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
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

# A call: the answer, and the expert that gave it where scores are recorded.
Remembered = tuple[str, int | None]
History = tuple[Remembered, ...]  # the calls that tell a node from others, the last one last
Node = tuple[int, History]  # a question's index, and the calls


@dataclass
class Level:
    """All nodes of all questions after the same number of calls.

    question (N,): index of the question that a node belongs to.
    answers (N): a node's current answer, None before the first call.
    quality (N,): of the answer that would be submitted.
    answer_quality (N,): of the current answer, which agreement may not submit.
        Both qualities are 0 before the first call.
    child (N, K): index in the next level of the node that asking expert k leads to, -1 where the
        node was not expanded.
    given, cost (N, K): what expert k answered, and what that cost.
    """

    question: np.ndarray
    answers: list[str | None]
    quality: np.ndarray
    answer_quality: np.ndarray
    child: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), dtype=int))
    child_answers: list[list[Answer | None]] = field(default_factory=list)
    cost: list[list[Cost | None]] = field(default_factory=list)

    def prepare(self, num_experts: int) -> None:
        """Make room for what each expert leads to; no node is expanded yet."""
        self.child = np.full((len(self.answers), num_experts), -1)
        self.child_answers = [[None] * num_experts for _ in self.answers]
        self.cost = [[None] * num_experts for _ in self.answers]


@dataclass
class RouteTree:
    """Levels 0 (no answer yet) to T_max of the trees of several questions."""

    questions: Sequence[Question]
    levels: list[Level]
    num_experts: int
    submits: str = "last"
    _step_costs: dict[tuple[int, RewardConfig], np.ndarray] = field(
        default_factory=dict, repr=False
    )

    @property
    def t_max(self) -> int:
        return len(self.levels) - 1

    def step_costs(self, depth: int, reward: RewardConfig) -> np.ndarray:
        """C of every call from level `depth` (N, K); 0 where the node was not expanded."""
        if (depth, reward) not in self._step_costs:
            rows = []
            for costs in self.levels[depth].cost:
                rows.append([0.0 if cost is None else charge(cost, reward) for cost in costs])
            self._step_costs[depth, reward] = np.array(rows).reshape(-1, self.num_experts)
        return self._step_costs[depth, reward]

    def action_values(
        self, depth: int, reward: RewardConfig, next_values: np.ndarray
    ) -> np.ndarray:
        """Return-to-go (N, K) of asking each expert in each node; -inf where not expanded.

        next_values: of the nodes of the next level.
        """
        child = self.levels[depth].child
        # Index -1 reads the appended 0: the next level may be empty.
        next_values = np.append(next_values, 0.0)
        values = next_values[child] - reward.alpha * self.step_costs(depth, reward)
        return np.where(child >= 0, values, -np.inf)


def max_calls(num_questions: int, num_experts: int, t_max: int) -> int:
    """The most expert calls that growing trees can need. Equal answers need fewer."""
    total = 0
    for depth in range(1, t_max + 1):
        total += num_experts**depth
    return num_questions * total


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

    Answers go through the answer store, so an interrupted growth continues where it stopped.

    Args:
        expand_solved: False goes no further from an answer of quality 1, as stopping there is best
            whatever a call costs.
        on_level: called before the first generation of a level with its depth, the number of its
            calls, and how many of their answers the store does not hold.

    Raises:
        BudgetError: as `pool.answer` does.
    """
    levels = [_first_level(len(questions))]
    score_of: dict[tuple[int, Remembered], float] = {}
    # What a node remembers of the calls before it: nothing, where only the last answer counts and
    # is handed on.
    remembers = submits != "last" or pool.ktp == "all-v1"
    histories: list[History] = [()] * len(questions)
    for depth in range(t_max):
        level = levels[-1]
        open_nodes = _open_nodes(level, expand_solved=expand_solved)
        requests = _requests(questions, level, open_nodes, len(pool), histories)
        on_missing = None
        if on_level:
            on_missing = functools.partial(on_level, depth + 1, len(requests))
        answers = pool.answer(requests, on_missing)
        nodes = _expand(questions, pool, level, open_nodes, answers, histories)
        levels.append(_judged_level(questions, nodes, score_of, submits))
        histories = [()] * len(nodes)
        if remembers:
            histories = [history for _, history in nodes]
    return RouteTree(questions, levels, len(pool), submits)


def _open_nodes(level: Level, *, expand_solved: bool) -> list[int]:
    """The nodes of a level from which experts are asked."""
    if expand_solved:
        return list(range(len(level.answers)))
    return list(map(int, np.flatnonzero(level.quality < 1.0)))


def _first_level(num_questions: int) -> Level:
    """A node without an answer for each question."""
    zeros = np.zeros(num_questions)
    return Level(np.arange(num_questions), [None] * num_questions, zeros, zeros)


def _requests(
    questions: Sequence[Question],
    level: Level,
    open_nodes: Sequence[int],
    num_experts: int,
    histories: Sequence[History],
) -> list[Request]:
    """Every expert in every open node of a level, node by node."""
    requests = []
    for node in open_nodes:
        text = questions[level.question[node]].text
        earlier = tuple(answer for answer, _ in histories[node][:-1])
        for expert_idx in range(num_experts):
            requests.append(Request(expert_idx, text, level.answers[node], earlier))
    return requests


def _expand(
    questions: Sequence[Question],
    pool: ExpertPool,
    level: Level,
    open_nodes: Sequence[int],
    answers: Sequence[Answer],
    histories: Sequence[History],
) -> dict[Node, str]:
    """Note in a level what its open nodes lead to. answers: to `_requests`.

    Returns the nodes of the next level in order, each with the expert that gave its answer first.
    """
    level.prepare(len(pool))
    index_of: dict[Node, int] = {}
    first_experts: dict[Node, str] = {}
    calls = itertools.product(open_nodes, range(len(pool)))
    for (parent, expert_idx), answer in zip(calls, answers, strict=True):
        owner = int(level.question[parent])
        is_recorded = questions[owner].metric == RECORDED
        call = (answer.text, expert_idx if is_recorded else None)
        node = (owner, (*histories[parent], call))
        if node not in index_of:
            index_of[node] = len(index_of)
            first_experts[node] = pool.names[expert_idx]
        level.child[parent, expert_idx] = index_of[node]
        level.child_answers[parent][expert_idx] = answer
        level.cost[parent][expert_idx] = pool.cost(expert_idx, answer)
    return first_experts


def _judged_level(
    questions: Sequence[Question],
    nodes: Mapping[Node, str],
    score_of: dict[tuple[int, Remembered], float],
    submits: str,
) -> Level:
    """A level of nodes, each with the expert that answered it last.

    Each answer to a question is scored once, over all levels: `score_of` remembers.
    """
    _score_new(questions, nodes, score_of)
    answers: list[str | None] = []
    quality = []
    answer_quality = []
    for owner, history in nodes:
        answers.append(history[-1][0])
        answer_quality.append(score_of[owner, history[-1]])
        submitted = history[_submitted(questions[owner], history, submits)]
        quality.append(score_of[owner, submitted])
    owners = np.array([owner for owner, _ in nodes], dtype=int)
    return Level(owners, answers, np.array(quality), np.array(answer_quality))


def _score_new(
    questions: Sequence[Question],
    nodes: Mapping[Node, str],
    score_of: dict[tuple[int, Remembered], float],
) -> None:
    """Score the last answers of nodes that have no score yet."""
    new: dict[tuple[int, Remembered], str] = {}
    for (owner, history), name in nodes.items():
        if (owner, history[-1]) not in score_of:
            new.setdefault((owner, history[-1]), name)
    owners = [questions[owner] for owner, _ in new]
    texts = [call[0] for _, call in new]
    scores = score_answers(owners, texts, list(new.values()))
    score_of.update(zip(new, scores, strict=True))


def _submitted(question: Question, history: History, submits: str) -> int:
    """Which call of a history counts: the last, or the one most agreed upon."""
    if submits == "last" or len(history) == 1:
        return -1
    groups = group_question_answers(question, [text for text, _ in history])
    return best_answer("agreed", groups, [0.0] * len(groups))


def optimal_values(tree: RouteTree, reward: RewardConfig) -> list[np.ndarray]:
    """Best return-to-go (N,) of the nodes of each level, by Bellman's equation to T_max calls.

    A node stops with its current answer or asks on. Stopping is not allowed before the first call.
    """
    values = [level.quality for level in tree.levels]
    for depth in reversed(range(tree.t_max)):
        best = tree.action_values(depth, reward, values[depth + 1]).max(axis=1)
        values[depth] = best if depth == 0 else np.maximum(values[depth], best)
    return values


def optimal_routes(tree: RouteTree, reward: RewardConfig) -> list[Route]:
    """The route with the highest return for each question, chosen with hindsight.

    Of equal routes the shorter is taken, then the one with the earlier expert.
    """
    values = optimal_values(tree, reward)
    actions = []
    for depth in range(tree.t_max):
        actions.append(tree.action_values(depth, reward, values[depth + 1]))
    choose = functools.partial(_hindsight, tree, actions)
    return [_follow(tree, question_idx, choose) for question_idx in range(len(tree.questions))]


def _hindsight(tree: RouteTree, actions: Sequence[np.ndarray], depth: int, node: int) -> int | None:
    """The best expert in a node, or None to stop. actions: `action_values` of each level."""
    if depth == tree.t_max:
        return None
    values = actions[depth][node]
    if depth > 0 and tree.levels[depth].quality[node] >= values.max():
        return None
    return int(np.argmax(values))


def _follow(tree: RouteTree, question_idx: int, choose: Callable[[int, int], int | None]) -> Route:
    """Walk one question's tree; `choose(depth, node)` names the expert, or None to stop."""
    question = tree.questions[question_idx].sealed()
    episode = Episode(question, tree.t_max, submits=tree.submits)
    depth = 0
    node = question_idx
    while (expert_idx := choose(depth, node)) is not None:
        level = tree.levels[depth]
        answer = level.child_answers[node][expert_idx]
        cost = level.cost[node][expert_idx]
        if answer is None or cost is None:
            raise ValueError(f"expert {expert_idx} was not asked in node {node} of level {depth}")
        node = int(level.child[node, expert_idx])
        depth += 1
        quality = float(tree.levels[depth].answer_quality[node])
        episode.hear(Step(expert_idx, answer, cost, quality))
        episode.choose_submission()
    episode.stop_reason = "t_max" if depth == tree.t_max else "satisfied"
    return Route(episode, [Decision(step.expert_idx) for step in episode.steps])


def best_fixed_route(tree: RouteTree, reward: RewardConfig) -> list[int]:
    """The sequence of 1 to T_max experts with the highest mean return if all questions take it.

    Needs a tree grown with `expand_solved=True`: a fixed route goes on whatever the answer.
    """
    best = [0]
    best_return = -np.inf
    for length in range(1, tree.t_max + 1):
        for route in itertools.product(range(tree.num_experts), repeat=length):
            mean_return = _mean_return(tree, reward, route)
            if mean_return > best_return:
                best = list(route)
                best_return = mean_return
    return best


def _mean_return(tree: RouteTree, reward: RewardConfig, route: Sequence[int]) -> float:
    """Mean return over the questions when each takes this sequence of experts."""
    nodes = np.arange(len(tree.questions))
    spent = np.zeros(len(tree.questions))
    for depth, expert_idx in enumerate(route):
        spent += tree.step_costs(depth, reward)[nodes, expert_idx]
        nodes = tree.levels[depth].child[nodes, expert_idx]
    return float(np.mean(tree.levels[len(route)].quality[nodes] - reward.alpha * spent))
