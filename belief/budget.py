"""What an agent spends at each weight of cost, and the weights at which it spends a given budget.

An agent has a plan, or a fixed order in its place, for each of a few weights. Between two plans
their weights are interpolated. What lies halfway between an order and something else means nothing:
there a share of the questions is asked by each. A budget, the mean cost C of a question, is met by
shares as well.
"""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from runtime.errors import AgentError

ALPHAS = (0.0, *np.geomspace(1e-4, 1e3, 141).tolist())  # at the last only cost counts


@dataclass(frozen=True)
class Mix:
    """A share of the questions is asked with the weight of cost `higher`; the others, `alpha`."""

    alpha: float
    higher: float
    share: float

    def alpha_of(self, text: str) -> float:
        """The weight for a question, by a hash of its text: the same whenever it is asked.

        The hash is one of its own. Splits are often drawn by a plain one: all test questions could
        lie on one side of the share.
        """
        digest = hashlib.blake2b(text.encode(), digest_size=8, person=b"cost weight").digest()
        drawn = int.from_bytes(digest, "big") / 2**64
        return self.higher if drawn < self.share else self.alpha


@dataclass(frozen=True)
class PlannedAlphas:
    """The weights of cost, rising, that an agent has a plan for, and which plans are orders."""

    alphas: tuple[float, ...]
    is_order: tuple[bool, ...]

    def mix_at(self, alpha: float) -> Mix:
        """The weights that decide at `alpha`: its neighbours where one is an order, else itself."""
        above = bisect.bisect_right(self.alphas, alpha)
        if above in (0, len(self.alphas)) or not any(self.is_order[above - 1 : above + 1]):
            return Mix(alpha, alpha, 0.0)
        low, high = self.alphas[above - 1], self.alphas[above]
        return Mix(low, high, (alpha - low) / (high - low))

    def follows_order(self, alpha: float) -> bool:
        """Whether an order decides at a weight that decides by itself."""
        distances = [abs(planned - alpha) for planned in self.alphas]
        return self.is_order[distances.index(min(distances))]

    def to_tabulate(self) -> list[float]:
        """These weights, and those of ALPHAS above the first that decide by themselves."""
        others = []
        for alpha in ALPHAS:
            if alpha > self.alphas[0] and self.mix_at(alpha).share == 0:
                others.append(alpha)
        return sorted({*self.alphas, *others})


@dataclass(frozen=True)
class Spent:
    """At one alpha: mean cost of a question, its standard deviation, mean quality."""

    alpha: float
    cost: float
    deviation: float
    quality: float


@dataclass(frozen=True)
class Dial(Mix):
    """The weights that spend a budget, and what to expect of them.

    cost and deviation: of a question. quality: of its answer. num_questions: how many these
    expectations come from.
    """

    cost: float
    deviation: float
    quality: float
    num_questions: int

    def interval(self, num_new: int) -> tuple[float, float]:
        """95% prediction interval of the mean cost of so many new questions: the noise of what it
        was estimated on, and theirs.
        """
        error = self.deviation * np.sqrt(1.0 / self.num_questions + 1.0 / num_new)
        return self.cost - 1.96 * error, self.cost + 1.96 * error


def tabulate(alpha: float, charges: np.ndarray, quality: np.ndarray) -> Spent:
    """From what each question cost (N,) and brought (N,)."""
    deviation = float(charges.std(ddof=1)) if len(charges) > 1 else 0.0
    return Spent(alpha, float(charges.mean()), deviation, float(quality.mean()))


def widest_step(table: Sequence[Spent]) -> float:
    """The largest change of cost between two weights that can be asked for, as a share of the
    range; 0 without one. table: of these weights; between two of them cost changes evenly.

    Weights are taken 20 to a decade, as in ALPHAS.
    """
    known = [one.alpha for one in table]
    within = [alpha for alpha in ALPHAS if known[0] < alpha < known[-1]]
    costs = np.interp(sorted([*known, *within]), known, [one.cost for one in table])
    span = float(costs[0] - costs[-1])
    return float(np.abs(np.diff(costs)).max()) / span if span > 0 else 0.0


def spending_line(table: Sequence[Spent], max_alpha: float) -> str:
    """What a question costs on average at the weights that can be asked for, up to `max_alpha`, and
    at the last one of the table.
    """
    within = [one for one in table if one.alpha <= max_alpha]
    first, last = within[0], within[-1]
    return (
        f"mean cost of a question: {first.cost:.3f} at alpha {first.alpha:g}, {last.cost:.3f} at"
        f" alpha {last.alpha:g}, no step above {widest_step(within):.0%} of that range;"
        f" {table[-1].cost:.3f} where only cost counts"
    )


def dial_for(budget: float, table: Sequence[Spent], num_questions: int) -> Dial:
    """The weights of cost that spend a budget; table: by rising alpha.

    More than the agent spends at alpha 0 buys nothing, so that is the most it spends. Raises
    AgentError for a budget below the least.
    """
    if not budget >= table[-1].cost - 1e-9:
        raise AgentError(
            f"budget {budget:g}: the cheapest route costs {table[-1].cost:.4g} a question, in"
            " reward.cost_unit"
        )
    place = 0
    while place + 2 < len(table) and table[place + 1].cost >= budget:
        place += 1
    low, high = table[place], table[place + 1]  # the lower weight spends more
    share = 0.0
    if low.cost > budget:  # by less than rounding, where both weights spend the least
        gap = low.cost - high.cost
        share = min((low.cost - budget) / gap, 1.0) if gap > 0 else 1.0
    return _mix(low, high, share, num_questions)


def _mix(low: Spent, high: Spent, share: float, num_questions: int) -> Dial:
    """The weights of two places of the table, for shares 1 - share and share of the questions."""
    cost = (1 - share) * low.cost + share * high.cost
    quality = (1 - share) * low.quality + share * high.quality
    within = (1 - share) * low.deviation**2 + share * high.deviation**2
    between = share * (1 - share) * (low.cost - high.cost) ** 2
    deviation = float(np.sqrt(within + between))
    return Dial(low.alpha, high.alpha, share, cost, deviation, quality, num_questions)
