"""Fixed orders of experts that stop by what was answered, chosen on answer tables.

An agreement cascade stops when two answers agree. A threshold cascade stops when an estimate
reaches a threshold: of the last answer read alone, or of the answer that would be submitted,
agreement included. Each is fitted for one alpha: `fit_...` returns the rule with the highest mean
return on a scored table.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np

from belief.state import agreement
from evaluation.answer_table import AnswerTable, Choices
from evaluation.estimates import Estimates, known_to

MAX_ORDERS = 8_000  # tried for one rule; beyond, the least promising experts are left out
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


def orders_of(num_experts: int, t_max: int) -> Iterator[Order]:
    """Every order of one to t_max distinct experts, short ones first."""
    for length in range(1, min(t_max, num_experts) + 1):
        yield from itertools.permutations(range(num_experts), length)


def candidate_orders(table: AnswerTable, alpha: float, t_max: int) -> list[Order]:
    """The orders to try: all, or where there are more than MAX_ORDERS, all of the experts with the
    highest returns alone.
    """
    ranking = np.argsort(-table.returns(alpha).mean(axis=0), kind="stable")
    for num_kept in range(table.num_experts, 0, -1):
        kept = np.sort(ranking[:num_kept]).tolist()
        num_orders = sum(1 for _ in orders_of(num_kept, t_max))
        if num_orders <= MAX_ORDERS or num_kept == 1:
            break
    orders = []
    for order in orders_of(num_kept, t_max):
        orders.append(tuple(kept[place] for place in order))
    return orders


def best_of(orders: Sequence[Order], returns: Sequence[float]) -> int:
    """Index of the highest return; of equals (to a billionth) the first, so the shortest."""
    highest = max(returns)
    return next(index for index, value in enumerate(returns) if value >= highest - 1e-9)


# --- agreement cascades ---


@dataclass(frozen=True)
class AgreementCascade:
    """Ask in order until an answer agrees with an earlier one, and submit it.

    Where none agree, submit the answer of `fallback`, one of the order's experts.
    """

    order: Order
    fallback: int

    def choose(self, table: AnswerTable, estimates: Estimates | None = None) -> Choices:
        num_calls, agreed = first_agreement(agreement(table.groups), self.order)
        last = np.array(self.order)[num_calls - 1]
        submitted = np.where(agreed, last, self.fallback)
        return Choices.of_order(self.order, num_calls, submitted)

    def describe(self, names: Sequence[str]) -> str:
        path = " > ".join(names[expert_idx] for expert_idx in self.order)
        if len(self.order) == 1:
            return path
        return f"{path}, else {names[self.fallback]}"


def first_agreement(same: np.ndarray, order: Order) -> tuple[np.ndarray, np.ndarray]:
    """Calls made (N,) until two answers agree, and whether they did (N,). same: (N, K, K)."""
    num_calls = np.full(len(same), len(order))
    agreed = np.zeros(len(same), dtype=bool)
    for place in range(1, len(order)):
        agrees = np.zeros(len(same), dtype=bool)
        for earlier in order[:place]:
            agrees |= same[:, order[place], earlier]
        stops = agrees & ~agreed
        num_calls[stops] = place + 1
        agreed |= agrees
    return num_calls, agreed


def fit_agreement_cascade(
    table: AnswerTable, alpha: float, t_max: int, *, falls_back_on_best: bool
) -> AgreementCascade:
    """The best order of one to t_max distinct experts.

    falls_back_on_best: where no two agree, the answer of the asked expert that is best alone in
    quality on this table is submitted, else the last answer.
    """
    sealed, best = table.sealed(), table.quality.mean(axis=0)
    rules, returns = [], []
    for order in candidate_orders(table, alpha, t_max):
        fallback = order[-1]
        if falls_back_on_best:
            fallback = max(order, key=lambda expert_idx: best[expert_idx])
        rule = AgreementCascade(order, fallback)
        rules.append(rule)
        returns.append(table.mean_return(rule.choose(sealed), alpha))
    return rules[best_of([rule.order for rule in rules], returns)]


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
    best = np.array(order)[estimates.after[:, list(order)].argmax(axis=1)]
    return Reading(reading.estimate, reading.submitted, best)


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
        num_calls = np.full(len(table), len(self.order))
        submitted = np.zeros(len(table), dtype=int)
        is_open = np.ones(len(table), dtype=bool)
        for place in range(1, len(self.order) + 1):
            reading = self.reader(estimates, self.order[:place])
            stops = is_open & (reading.estimate >= self.threshold)
            num_calls[stops] = place
            submitted[stops] = reading.submitted[stops]
            is_open &= ~stops
        submitted[is_open] = reading.at_the_end[is_open]
        return Choices.of_order(self.order, num_calls, submitted)

    def describe(self, names: Sequence[str]) -> str:
        path = " > ".join(names[expert_idx] for expert_idx in self.order)
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
    allowed = set(candidate_orders(table, alpha, t_max))
    search = _ThresholdSearch(table, estimates, alpha, reader)
    found: list[Fitted[ThresholdCascade]] = []
    for order in sorted(allowed):  # an order directly follows those that it continues
        threshold, value = search.best_threshold(order)
        found.append(Fitted(ThresholdCascade(order, threshold, reader), value))
    found.sort(key=lambda one: (-round(one.mean_return, 9), len(one.rule.order)))
    return found


class _ThresholdSearch:
    """Mean returns of all thresholds at once. What happened on the way to an order's last call is
    kept, so that orders with the same beginning share it: ask for them in sorted order.
    """

    def __init__(self, table: AnswerTable, estimates: Estimates, alpha: float, reader: Reader):
        self.table, self.estimates, self.alpha, self.reader = table, estimates, alpha, reader
        every = np.concatenate(
            [estimates.after.ravel(), *(b.p for b in estimates.beliefs.values())]
        )
        inner = np.quantile(every, np.linspace(0, 1, NUM_THRESHOLDS)[1:-1])
        self.thresholds = np.unique(np.concatenate([[0.0], inner, [2.0]]))
        self.rows = np.arange(len(table))
        everyone = np.ones((len(table), len(self.thresholds)), dtype=np.float32)
        # By the beginning of an order: who goes on (N, T), and the value so far (T,).
        self.begun: dict[Order, tuple[np.ndarray, np.ndarray]] = {
            (): (everyone, np.zeros(len(self.thresholds)))
        }

    def best_threshold(self, order: Order) -> tuple[float, float]:
        """The threshold of an order with the highest mean return, and that return."""
        is_open, value = self.begun[order[:-1]]
        reading = self.reader(self.estimates, order)
        cost = self.alpha * self.table.charge[:, order[-1]]
        passes = reading.estimate[:, None] >= self.thresholds
        stops = is_open * passes
        stays = is_open - stops
        spent = value - self._mean(cost, is_open)
        stopped = spent + self._mean(self.table.quality[self.rows, reading.submitted], stops)
        ended = stopped + self._mean(self.table.quality[self.rows, reading.at_the_end], stays)
        self._remember(order, stays, stopped)
        best = int(np.argmax(ended >= ended.max() - 1e-9))
        return float(self.thresholds[best]), float(ended[best])

    def _remember(self, order: Order, stays: np.ndarray, value: np.ndarray) -> None:
        for other in list(self.begun):
            if other != order[: len(other)]:
                del self.begun[other]
        self.begun[order] = (stays, value)

    def _mean(self, values: np.ndarray, where: np.ndarray) -> np.ndarray:
        """Sum of values (N,) over the questions counted in `where` (N, T), over N: (T,)."""
        return (values.astype(np.float32) @ where) / len(values)
