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
from backends.dispatch import OnText
from config import RewardConfig
from der_env import Episode, Judge, Judgement, Reader, take_answers
from experts import Call, ExpertPool, Request
from metrics.registry import score_answers
from questions import Question
from reward import charge

MAX_IN_FLIGHT = 256  # questions in flight


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

    def return_under(self, reward: RewardConfig) -> float:
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


class InFlight:
    """Routes that are played together. Others may join before each step.

    A step is `move`, then the pool is advanced, then `take`. A reader estimates answers.
    `listen(route)` says who is told the answer of a route's next call while it grows.
    """

    def __init__(
        self,
        policy: Policy,
        pool: ExpertPool,
        judge: Judge,
        reader: Reader | None = None,
        listen: Callable[[Route], OnText | None] | None = None,
    ):
        self.policy = policy
        self.pool = pool
        self.judge = judge
        self.reader = reader
        self.listen = listen
        self.to_move: list[Route] = []
        self.asked: dict[Call, Route] = {}

    def __len__(self) -> int:
        return len(self.to_move) + len(self.asked)

    def join(self, route: Route) -> None:
        self.to_move.append(route)

    def move(self) -> list[Route]:
        """Let the policy decide wherever it is its turn, and start the calls it wants.

        Returns the routes that it ended.
        """
        moving, stopped = _decide(self.to_move, self.policy)
        self.to_move = []
        requests = [self._request(route) for route in moving]
        calls = self.pool.start(requests)
        self.asked.update(zip(calls, moving, strict=True))
        return stopped

    def _request(self, route: Route) -> Request:
        request = route.episode.propose(route.next_expert)
        return replace(request, on_text=self.listen(route)) if self.listen else request

    def take(self) -> list[Route]:
        """Add every answer that has come to its route as a step; returns these routes."""
        answers = _answered(self.asked)
        if not answers:
            return []
        routes = [self.asked.pop(call) for call in answers]
        episodes = [route.episode for route in routes]
        experts = [route.next_expert for route in routes]
        take_answers(episodes, experts, list(answers.values()), self.pool, self.judge, self.reader)
        self.to_move += [route for route in routes if not route.episode.is_over]
        return routes

    def wait_for(self, num_needed: int) -> None:
        """Advance the pool until so many calls have answers."""
        while len(_answered(self.asked)) < num_needed:
            self.pool.advance()


def play(
    questions: Sequence[Question],
    policy: Policy,
    pool: ExpertPool,
    judge: Judge,
    t_max: int,
    *,
    max_in_flight: int = MAX_IN_FLIGHT,
    lockstep: bool = False,
    submits: str = "last",
    reader: Reader | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> list[Route]:
    """Play each question exactly once, begun in order of the list, `max_in_flight` in flight.

    The routes are deterministic if policy, judge and experts are.

    No question waits for another's answer. So policy and judge see states in groups that depend on
    what is stored and how fast experts are, and their outputs may differ in the last digit.
    `lockstep` makes all questions in flight wait for each other. This is slower, and the same to
    the last digit whatever is stored.

    Raises ValueError where a policy asks no expert about a question.
    """
    routes = _new_routes(questions, t_max, submits)
    waiting = deque(routes)
    flight = InFlight(policy, pool, judge, reader)
    while waiting or flight:
        while waiting and len(flight) < max_in_flight:
            flight.join(waiting.popleft())
        stopped = flight.move()
        num_asked = len(flight.asked)
        flight.wait_for(num_asked if lockstep else min(1, num_asked))
        answered = flight.take()
        if on_progress is not None:
            on_progress(len(stopped) + len(answered) - len(flight.to_move))
    return routes


def _new_routes(questions: Sequence[Question], t_max: int, submits: str) -> list[Route]:
    """A route without steps for each question. Policies cannot see the references."""
    routes = []
    for question in questions:
        episode = Episode(question.sealed(), t_max, submits=submits)
        routes.append(Route(episode, []))
    return routes


def _answered(calls: Iterable[Call]) -> dict[Call, Answer]:
    """The calls that have their answers, in order."""
    return {call: call.answer for call in calls if call.answer is not None}


def _decide(routes: Sequence[Route], policy: Policy) -> tuple[list[Route], list[Route]]:
    """The routes that go on, and those that end here.

    The policy's next decision is appended to each route that goes on.
    """
    if not routes:
        return [], []
    moving = []
    stopped = []
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
            stopped.append(route)
    return moving, stopped


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
