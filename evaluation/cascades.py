"""Fixed orders of experts that stop by what was answered, chosen on answer tables.

An agreement cascade stops when two answers agree. A threshold cascade stops when an estimate
reaches a threshold: of the last answer read alone, or of the answer that would be submitted,
agreement included. Each is fitted for one alpha: `fit_...` returns the rule with the highest mean
return on a scored table.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np

from belief.state import agreement
from evaluation.answer_table import AnswerTable, Choices
from evaluation.estimates import Estimates, known_to

MAX_ORDERS = 8_000  # tried for one rule; beyond, the least promising experts are left out
NEVER_REACHED = 2.0
NUM_THRESHOLDS = 60  # quantiles of the estimates, tried for one order

Order = tuple[int, ...]


class Rule(Protocol):
    """A fitted rule. It sees sealed tables only."""

    def choose(self, table: AnswerTable, estimates: Estimates) -> Choices: ...

    def describe(self, names: Sequence[str]) -> str: ...


class OrderedRule(Rule, Protocol):
    """A rule that asks experts in a fixed order."""

    @property
    def order(self) -> Order: ...


def orders_of(experts: Sequence[int], t_max: int) -> Iterator[Order]:
    """Every order of one to t_max distinct experts, short ones first."""
    for length in range(1, t_max + 1):
        yield from itertools.permutations(experts, length)


def candidate_orders(table: AnswerTable, alpha: float, t_max: int) -> list[Order]:
    """The orders to try: all, or where there are more than MAX_ORDERS, all of the experts with the
    highest returns alone.
    """
    ranking = np.argsort(-table.returns(alpha).mean(axis=0), kind="stable")
    num_kept = table.num_experts
    while num_kept > 1 and num_orders(num_kept, t_max) > MAX_ORDERS:
        num_kept -= 1
    kept = np.sort(ranking[:num_kept]).tolist()
    return list(orders_of(kept, t_max))


def num_orders(num_experts: int, t_max: int) -> int:
    """How many orders `orders_of` names."""
    total = 0
    for length in range(1, t_max + 1):
        total += math.perm(num_experts, length)
    return total


def first_best(returns: Sequence[float]) -> int:
    """Index of the highest return; of equals (to a billionth) the first."""
    is_best = np.array(returns) >= max(returns) - 1e-9
    return int(np.argmax(is_best))


def path_of(order: Order, names: Sequence[str]) -> str:
    """An order in words: `A > B > C`."""
    return " > ".join(names[expert_idx] for expert_idx in order)


class Walk:
    """An order walked through by N questions, each of which stops somewhere."""

    def __init__(self, order: Order, num_questions: int):
        self.order = order
        self.num_calls = np.full(num_questions, len(order))
        self.submitted = np.zeros(num_questions, dtype=int)
        self.is_open = np.ones(num_questions, dtype=bool)

    def stop(self, wants: np.ndarray, num_calls: int, submitted: np.ndarray) -> None:
        """End after `num_calls` those still open that want to (N,), with the experts whose answers
        count (N,).
        """
        stops = wants & self.is_open
        self.num_calls[stops] = num_calls
        self.submitted[stops] = submitted[stops]
        self.is_open &= ~stops

    def choices(self, at_the_end: np.ndarray) -> Choices:
        """`at_the_end` (N,): whose answers count where the order was used up."""
        submitted = np.where(self.is_open, at_the_end, self.submitted)
        return Choices.of_order(self.order, self.num_calls, submitted)


# --- agreement cascades ---


@dataclass(frozen=True)
class AgreementCascade:
    """Ask in order until an answer agrees with an earlier one, and submit it.

    Where none agree, submit the answer of `fallback`, one of the order's experts.
    """

    order: Order
    fallback: int

    def choose(self, table: AnswerTable, estimates: Estimates | None = None) -> Choices:
        return self.walk(agreement(table.groups))

    def walk(self, same: np.ndarray) -> Choices:
        """same (N, K, K): which answers agree."""
        walk = Walk(self.order, len(same))
        for place, expert_idx in enumerate(self.order):
            earlier = list(self.order[:place])
            agrees = np.asarray(same[:, expert_idx, earlier].any(axis=1))
            walk.stop(agrees, place + 1, np.full(len(same), expert_idx))
        return walk.choices(np.full(len(same), self.fallback))

    def describe(self, names: Sequence[str]) -> str:
        path = path_of(self.order, names)
        if len(self.order) == 1:
            return path
        return f"{path}, else {names[self.fallback]}"


def fit_agreement_cascade(
    table: AnswerTable, alpha: float, t_max: int, *, falls_back_on_best: bool
) -> AgreementCascade:
    """The best order of one to t_max distinct experts.

    falls_back_on_best: where no two agree, the answer of the asked expert that is best alone in
    quality on this table is submitted, else the last answer.
    """
    same = agreement(table.groups)
    alone = table.quality.mean(axis=0)
    rules, returns = [], []
    for order in candidate_orders(table, alpha, t_max):
        fallback = order[-1]
        if falls_back_on_best:
            fallback = max(order, key=lambda expert_idx: alone[expert_idx])
        rule = AgreementCascade(order, fallback)
        rules.append(rule)
        returns.append(table.mean_return(rule.walk(same), alpha))
    return rules[first_best(returns)]


# --- threshold cascades ---


@dataclass(frozen=True)
class Reading:
    """What is known after the experts of `order` have answered N questions.

    estimate (N,): that the answer a stop would submit is right. submitted (N,): whose answer counts
    on such a stop. at_the_end (N,): whose answer counts when the order is used up.
    """

    estimate: np.ndarray
    submitted: np.ndarray
    at_the_end: np.ndarray


Reader = Callable[[Estimates, Order], Reading]


def read_last(estimates: Estimates, order: Order) -> Reading:
    """The last answer read alone; it counts, at the end too."""
    last = np.full(len(estimates.after), order[-1])
    return Reading(estimates.after[:, order[-1]], last, last)


def read_each(estimates: Estimates, order: Order) -> Reading:
    """The last answer read alone; at the end the one that looked best counts."""
    reading = read_last(estimates, order)
    experts = np.array(order)
    place = estimates.after[:, experts].argmax(axis=1)
    return Reading(reading.estimate, reading.submitted, experts[place])


def read_all(estimates: Estimates, order: Order) -> Reading:
    """All answers and how they agree; the one estimated best counts."""
    belief = estimates.beliefs[known_to(order)]
    return Reading(belief.p, belief.submitted, belief.submitted)


@dataclass(frozen=True)
class ThresholdCascade:
    """Ask in order until an estimate reaches the threshold."""

    order: Order
    threshold: float
    reader: Reader

    def choose(self, table: AnswerTable, estimates: Estimates) -> Choices:
        walk = Walk(self.order, len(table))
        for num_calls in range(1, len(self.order) + 1):
            reading = self.reader(estimates, self.order[:num_calls])
            is_enough = reading.estimate >= self.threshold
            walk.stop(is_enough, num_calls, reading.submitted)
        return walk.choices(reading.at_the_end)

    def describe(self, names: Sequence[str]) -> str:
        path = path_of(self.order, names)
        return path if len(self.order) == 1 else f"{path}, until {self.threshold:.2f}"


AnyRule = TypeVar("AnyRule", bound=OrderedRule)


@dataclass(frozen=True)
class Fitted(Generic[AnyRule]):
    """A rule and its mean return on the table it was fitted on."""

    rule: AnyRule
    mean_return: float


def fit_threshold_cascade(
    table: AnswerTable, estimates: Estimates, alpha: float, t_max: int, *, reader: Reader
) -> ThresholdCascade:
    """The best order with one threshold on what `reader` reads."""
    return rank_threshold_cascades(table, estimates, alpha, t_max, reader=reader)[0].rule


def rank_threshold_cascades(
    table: AnswerTable, estimates: Estimates, alpha: float, t_max: int, *, reader: Reader
) -> list[Fitted[ThresholdCascade]]:
    """Every order with its best threshold, the highest return first; of equals the shorter."""
    orders = candidate_orders(table, alpha, t_max)
    search = _ThresholdSearch(table, estimates, alpha, reader)
    found: list[Fitted[ThresholdCascade]] = []
    for order in sorted(orders):  # an order directly follows those that it continues
        threshold, value = search.best_threshold(order)
        found.append(Fitted(ThresholdCascade(order, threshold, reader), value))
    found.sort(key=lambda one: (-round(one.mean_return, 9), len(one.rule.order)))
    return found


def tried_thresholds(estimates: Estimates) -> np.ndarray:
    """Quantiles (T,) of all estimates, with one that is always reached and one that never is."""
    seen = [estimates.after.ravel()]
    for belief in estimates.beliefs.values():
        seen.append(belief.p)
    levels = np.linspace(0, 1, NUM_THRESHOLDS)[1:-1]
    inner = np.quantile(np.concatenate(seen), levels)
    return np.unique([0.0, *inner, NEVER_REACHED])


class _ThresholdSearch:
    """Mean returns of all thresholds at once. What happened on the way to an order's last call is
    kept, so that orders with the same beginning share it: ask for them in sorted order.
    """

    def __init__(self, table: AnswerTable, estimates: Estimates, alpha: float, reader: Reader):
        self.table, self.estimates, self.alpha, self.reader = table, estimates, alpha, reader
        self.thresholds = tried_thresholds(estimates)
        self.rows = np.arange(len(table))
        everyone = np.ones((len(table), len(self.thresholds)), dtype=np.float32)
        nothing = np.zeros(len(self.thresholds))
        # By the beginning of an order: who goes on (N, T), and the value so far (T,).
        self.begun: dict[Order, tuple[np.ndarray, np.ndarray]] = {(): (everyone, nothing)}

    def best_threshold(self, order: Order) -> tuple[float, float]:
        """The threshold of an order with the highest mean return, and that return."""
        is_open, value = self.begun[order[:-1]]
        reading = self.reader(self.estimates, order)
        cost = self.alpha * self.table.charge[:, order[-1]]
        passes = reading.estimate[:, None] >= self.thresholds
        stops = is_open * passes
        stays = is_open - stops
        won = self.table.quality[self.rows, reading.submitted]
        won_at_the_end = self.table.quality[self.rows, reading.at_the_end]
        stopped = value - self._mean(cost, is_open) + self._mean(won, stops)
        ended = stopped + self._mean(won_at_the_end, stays)
        self._remember(order, stays, stopped)
        best = first_best(ended)
        return float(self.thresholds[best]), float(ended[best])

    def _remember(self, order: Order, stays: np.ndarray, value: np.ndarray) -> None:
        for other in list(self.begun):
            if other != order[: len(other)]:
                del self.begun[other]
        self.begun[order] = (stays, value)

    def _mean(self, values: np.ndarray, where: np.ndarray) -> np.ndarray:
        """Sum of values (N,) over the questions counted in `where` (N, T), over N: (T,)."""
        return (values.astype(np.float32) @ where) / len(values)
