"""Play a list of questions once each with any policy.

One loop for validation, evaluation, `ask` and every baseline. It never touches a reference:
qualities are filled in afterwards by `score_routes`, from questions that still hold theirs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from backends.answer_store import Answer
from config import RewardConfig
from der_env import Episode, Judge, Judgement, Reader, take_answers
from experts import Call, ExpertPool
from metrics.registry import score_answers
from questions import Question
from reward import charge

PLAY_WIDTH = 256  # questions in flight


@dataclass(frozen=True)
class Decision:
    """A policy's choice in one state.

    `expert_idx` None ends the route; value and entropy are logged where a policy has them.
    `probability`: with which the policy made this choice, 1 if it always does; None: not known.
    """

    expert_idx: int | None
    value: float | None = None
    entropy: float | None = None
    probability: float | None = None


class Policy(Protocol):
    """Chooses the next expert for each of several episodes (sealed questions, routes so far)."""

    def act(self, episodes: Sequence[Episode]) -> list[Decision]: ...


class NeverSatisfied:
    """A judge that never ends a route.

    It is for policies that decide themselves when to stop, and for routes that must run to T_max.
    """

    def judge(self, episodes: Sequence[Episode]) -> list[Judgement]:
        return [Judgement(False)] * len(episodes)


@dataclass
class Route:
    """A played question: the finished episode and the decisions that led there, one per step.

    `stop`: the decision that ended the route, where the policy itself ended it.
    """

    episode: Episode
    decisions: list[Decision]
    stop: Decision | None = None

    @property
    def quality(self) -> float:
        """Quality of the submitted answer. Raises ValueError before `score_routes`."""
        quality = self.episode.submitted.quality
        if quality is None:
            raise ValueError(f"route of question {self.episode.question.id} has not been scored")
        return quality

    @property
    def next_expert(self) -> int:
        """The expert of the last decision. Raises ValueError where that ended the route."""
        expert_idx = self.decisions[-1].expert_idx
        if expert_idx is None:
            raise ValueError(f"route of question {self.episode.question.id} has ended")
        return expert_idx

    def value_under(self, reward: RewardConfig) -> float:
        """The return that every table shows.

        It is the quality of the final answer minus alpha times the sum of C, undiscounted and
        without reward shaping.
        """
        return self.quality - reward.alpha * charge(self.episode.cost, reward)

    def cut(self, num_steps: int) -> Route:
        """The route as it would have been had the judge been satisfied after `num_steps` calls."""
        episode = replace(
            self.episode,
            steps=self.episode.steps[:num_steps],
            submissions=self.episode.submissions[:num_steps],
            stop_reason="satisfied",
        )
        return Route(episode, self.decisions[:num_steps])


def play(
    questions: Sequence[Question],
    policy: Policy,
    pool: ExpertPool,
    judge: Judge,
    t_max: int,
    *,
    width: int = PLAY_WIDTH,
    in_step: bool = False,
    submits: str = "last",
    reader: Reader | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> list[Route]:
    """Play each question exactly once, begun in order of the list, `width` in flight.

    The routes are deterministic if policy, judge and experts are.

    No question waits for another's answer. So policy and judge see states in groups that depend on
    what is stored and how fast experts are, and their outputs may differ in the last digit.
    `in_step` makes all questions in flight wait for each other. This is slower, and the same to the
    last digit whatever is stored.

    Raises ValueError where a policy asks no expert about a question.
    """
    routes = _new_routes(questions, t_max, submits)
    waiting = deque(routes)
    to_move: list[Route] = []
    asked: dict[Call, Route] = {}
    while waiting or to_move or asked:
        while waiting and len(to_move) + len(asked) < width:
            to_move.append(waiting.popleft())
        moving, num_stopped = _decide(to_move, policy)
        _ask(moving, pool, asked)
        num_needed = len(asked) if in_step else min(1, len(asked))
        answers = _wait_for(num_needed, asked, pool)
        answered = [asked.pop(call) for call in answers]
        _take(answered, list(answers.values()), pool, judge, reader)
        to_move = [route for route in answered if not route.episode.is_over]
        if on_progress is not None:
            on_progress(num_stopped + len(answered) - len(to_move))
    return routes


def _new_routes(questions: Sequence[Question], t_max: int, submits: str) -> list[Route]:
    """A route without steps for each question. Policies cannot see the references."""
    routes = []
    for question in questions:
        episode = Episode(question.sealed(), t_max, submits=submits)
        routes.append(Route(episode, []))
    return routes


def _ask(moving: Sequence[Route], pool: ExpertPool, asked: dict[Call, Route]) -> None:
    """Start the calls of the routes' last decisions, and note them in `asked`."""
    requests = [route.episode.propose(route.next_expert) for route in moving]
    calls = pool.start(requests)
    asked.update(zip(calls, moving, strict=True))


def _wait_for(num_needed: int, asked: Iterable[Call], pool: ExpertPool) -> dict[Call, Answer]:
    """Advance the pool until `num_needed` calls have answers; returns all that have one."""
    answers = _answered(asked)
    while len(answers) < num_needed:
        pool.advance()
        answers = _answered(asked)
    return answers


def _take(
    routes: Sequence[Route],
    answers: list[Answer],
    pool: ExpertPool,
    judge: Judge,
    reader: Reader | None,
) -> None:
    """Add each route's answer to its episode as a step."""
    episodes = []
    experts = []
    for route in routes:
        episodes.append(route.episode)
        experts.append(route.next_expert)
    take_answers(episodes, experts, answers, pool, judge, reader)


def _answered(calls: Iterable[Call]) -> dict[Call, Answer]:
    """The calls that have their answers, in order."""
    return {call: call.answer for call in calls if call.answer is not None}


def _decide(routes: Sequence[Route], policy: Policy) -> tuple[list[Route], int]:
    """The routes that go on, and how many end here.

    The policy's next decision is appended to each route that goes on.
    """
    if not routes:
        return [], 0
    moving = []
    decisions = policy.act([route.episode for route in routes])
    for route, decision in zip(routes, decisions, strict=True):
        if decision.expert_idx is not None:
            route.decisions.append(decision)
            moving.append(route)
        elif not route.episode.steps:
            raise ValueError(f"{type(policy).__name__} stopped before the first call")
        else:
            route.episode.stop()
            route.stop = decision
    return moving, len(routes) - len(moving)


def score_routes(
    routes: Sequence[Route], questions: Sequence[Question], experts: Sequence[str]
) -> None:
    """Fill in the quality of every step, in place.

    `questions` hold their references and are in the order of the routes. `experts` are the
    experts' names, in the pool's order.
    """
    judged = []
    texts = []
    names = []
    for route, question in zip(routes, questions, strict=True):
        for step in route.episode.steps:
            judged.append(question)
            texts.append(step.answer.text)
            names.append(experts[step.expert_idx])
    scores = iter(score_answers(judged, texts, names))
    for route in routes:
        route.episode.steps = [replace(step, quality=next(scores)) for step in route.episode.steps]
