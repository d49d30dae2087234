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
    """

    expert_idx: int | None
    value: float | None = None
    entropy: float | None = None


class Policy(Protocol):
    """Chooses the next expert for each of several episodes (sealed questions, routes so far)."""

    def act(self, episodes: Sequence[Episode]) -> list[Decision]: ...


class NeverSatisfied:
    """A judge for policies that decide themselves when to stop, and for routes that must run to
    T_max.
    """

    def judge(self, episodes: Sequence[Episode]) -> list[Judgement]:
        return [Judgement(False)] * len(episodes)


@dataclass
class Route:
    """A played question: the finished episode and the decisions that led there, one per step."""

    episode: Episode
    decisions: list[Decision]

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
        """The return of every table: quality of the final answer minus alpha times the sum of C,
        undiscounted and unshaped.
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
    """Play each question exactly once, begun in order of the list, `width` in flight. Deterministic
    if policy, judge and experts are.

    No question waits for another's answer: each moves on with its own. So policy and judge see
    states in groups that depend on what is stored and how fast experts are, and what they say may
    differ in the last digit. `in_step` makes all in flight wait for each other: slower, and the
    same to the last digit whatever is stored. A policy must ask at least one expert per question
    (ValueError otherwise).
    """
    routes = []
    for question in questions:
        routes.append(Route(Episode(question.sealed(), t_max, submits=submits), []))
    waiting = deque(routes)
    to_move: list[Route] = []
    asked: dict[Call, Route] = {}
    while waiting or to_move or asked:
        while waiting and len(to_move) + len(asked) < width:
            to_move.append(waiting.popleft())
        moving, num_stopped = _decide(to_move, policy)
        calls = pool.start([route.episode.propose(route.next_expert) for route in moving])
        asked |= dict(zip(calls, moving, strict=True))
        enough = len(asked) if in_step else min(1, len(asked))
        while len(answers := _answered(asked)) < enough:
            pool.advance()
        to_move = [asked.pop(call) for call in answers]
        take_answers(
            [r.episode for r in to_move],
            [r.next_expert for r in to_move],
            list(answers.values()),
            pool,
            judge,
            reader,
        )
        still = [route for route in to_move if not route.episode.is_over]
        if on_progress is not None:
            on_progress(num_stopped + len(to_move) - len(still))
        to_move = still
    return routes


def _answered(calls: Iterable[Call]) -> dict[Call, Answer]:
    """The calls that have their answers, in order."""
    return {call: call.answer for call in calls if call.answer is not None}


def _decide(routes: Sequence[Route], policy: Policy) -> tuple[list[Route], int]:
    """The routes that go on, each with the policy's next decision appended, and how many
    end here.
    """
    if not routes:
        return [], 0
    moving = []
    for route, decision in zip(
        routes, policy.act([route.episode for route in routes]), strict=True
    ):
        if decision.expert_idx is not None:
            route.decisions.append(decision)
            moving.append(route)
        elif not route.episode.steps:
            raise ValueError(f"{type(policy).__name__} stopped before the first call")
        else:
            route.episode.stop()
    return moving, len(routes) - len(moving)


def score_routes(
    routes: Sequence[Route], questions: Sequence[Question], experts: Sequence[str]
) -> None:
    """Fill in the quality of every step, in place, from questions that hold their references (same
    order as the routes).

    `experts`: their names, in the pool's order.
    """
    pairs = [
        (question, step)
        for route, question in zip(routes, questions, strict=True)
        for step in route.episode.steps
    ]
    scores = iter(
        score_answers(
            [question for question, _ in pairs],
            [step.answer.text for _, step in pairs],
            [experts[step.expert_idx] for _, step in pairs],
        )
    )
    for route in routes:
        route.episode.steps = [replace(step, quality=next(scores)) for step in route.episode.steps]
