"""What another policy would have returned, estimated from logged routes.

A route is a sequence of decisions. For each, the log has the probability with which the logging
policy took it, and the target policy says how probable it finds it. The product of their ratios
weighs the route. Estimators, by the return G of a route and its weight w:

    direct      the mean value that a model gives the first state, under the target policy
    ips         the mean of w G (Horvitz and Thompson 1952; Precup, Sutton and Singh 2000)
    snips       the sum of w G over the sum of w (Swaminathan and Joachims 2015)
    dr          doubly robust over sequences (Jiang and Li 2016): the model, corrected at each
                decision by the weighted difference of what came and what the model expected

Intervals are normal ones over routes. That of `direct` says nothing of the model's own error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from runtime.errors import ReportError

CERTAIN = 1 - 1e-9  # a probability from here on is that of a policy that never does otherwise
SURE = 1 - 1e-6
FEWEST_EFFECTIVE = 20.0  # routes; with fewer a normal interval is too narrow
ERRORS_BELOW = 4.0  # standard errors by which the mean weight may lie below 1


@dataclass(frozen=True)
class LoggedRoute:
    """The T decisions of a route, the one that ended it included.

    logged, target (T,): the probability of what was done, by either policy. reward (T,): minus
    alpha C of a call, and the quality at the end. action_value, state_value (T,): what a model
    expects from here on, in return, after this decision and under the target policy.
    """

    logged: np.ndarray
    target: np.ndarray
    reward: np.ndarray
    action_value: np.ndarray
    state_value: np.ndarray

    @property
    def ratios(self) -> np.ndarray:
        return self.target / self.logged

    @property
    def weight(self) -> float:
        return float(np.prod(self.ratios))

    @property
    def total(self) -> float:
        """The return of the route."""
        return float(self.reward.sum())

    @property
    def corrected(self) -> float:
        """The doubly robust value of the first state."""
        value = 0.0
        for step in reversed(range(len(self.reward))):
            surprise = self.reward[step] + value - self.action_value[step]
            value = self.state_value[step] + self.ratios[step] * surprise
        return float(value)


@dataclass(frozen=True)
class Estimate:
    """A mean return with its 95% interval."""

    mean: float
    lo: float
    hi: float


def normal_interval(mean: float, error: float) -> Estimate:
    half_width = float(ndtri(0.975)) * error
    return Estimate(mean, mean - half_width, mean + half_width)


def mean_estimate(values: np.ndarray) -> Estimate:
    """Of independent values (N,)."""
    return normal_interval(float(values.mean()), standard_error(values))


def standard_error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values)))


def direct(routes: Sequence[LoggedRoute]) -> Estimate:
    return mean_estimate(np.array([route.state_value[0] for route in routes]))


def ips(routes: Sequence[LoggedRoute]) -> Estimate:
    return mean_estimate(np.array([route.weight * route.total for route in routes]))


def snips(routes: Sequence[LoggedRoute]) -> Estimate:
    """The error is that of a ratio, by the delta method."""
    weights = np.array([route.weight for route in routes])
    totals = np.array([route.total for route in routes])
    mean = float((weights * totals).sum() / weights.sum())
    error = float(np.sqrt((weights**2 * (totals - mean) ** 2).sum()) / weights.sum())
    return normal_interval(mean, error)


def doubly_robust(routes: Sequence[LoggedRoute]) -> Estimate:
    return mean_estimate(np.array([route.corrected for route in routes]))


ESTIMATORS: dict[str, Callable[[Sequence[LoggedRoute]], Estimate]] = {
    "direct": direct,
    "ips": ips,
    "snips": snips,
    "dr": doubly_robust,
}


def effective_sample_size(routes: Sequence[LoggedRoute]) -> float:
    """Equally weighted routes that would tell as much (Kish 1965): the squared sum of weights
    over the sum of their squares; 0 where all weights are 0.
    """
    weights = np.array([route.weight for route in routes])
    squares = float((weights**2).sum())
    return float(weights.sum() ** 2 / squares) if squares > 0 else 0.0


def check_support(routes: Sequence[LoggedRoute]) -> None:
    """Raises ReportError where the log cannot show what the target policy would have done.

    That is so where the logging policy always did one thing and the target might do another, where
    few routes carry all the weight, and where the weights' mean is far below 1. With full support
    it is 1 on average.
    """
    if len(routes) < 2:
        raise ReportError(f"{len(routes)} logged route(s): an estimate needs two or more")
    num_blind = sum(is_blind(route) for route in routes)
    if num_blind:
        raise ReportError(
            f"support is missing: on {num_blind} of {len(routes)} logged routes the logging policy"
            " never did what this policy might do; log with exploration (scripts/explore_run.py)"
        )
    effective = effective_sample_size(routes)
    if effective < min(FEWEST_EFFECTIVE, 0.99 * len(routes)):  # the policy's own log always does
        raise ReportError(
            f"support is missing in practice: {len(routes)} logged routes are worth"
            f" {effective:.1f} of this policy, and {FEWEST_EFFECTIVE:g} are needed; log more"
            " routes, with a policy that is closer to this one"
        )
    weights = np.array([route.weight for route in routes])
    if weights.mean() + ERRORS_BELOW * standard_error(weights) < 1:
        raise ReportError(
            f"support is missing: the routes' weights have a mean of {weights.mean():.3f}, which is"
            " 1 where the logging policy does all that this policy does; log with more exploration"
        )


def is_blind(route: LoggedRoute) -> bool:
    """Whether the target policy might leave a certain decision that it would have come to."""
    for step, logged in enumerate(route.logged):
        is_reached = np.prod(route.target[:step]) > 0
        if is_reached and logged >= CERTAIN and route.target[step] < SURE:
            return True
    return False
