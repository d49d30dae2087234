"""results.json's `tradeoff`: the quality and cost of every policy, and of the agents of a sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from report.curves import area_under, upper_hull

Point = Mapping[str, Any]  # as report/schema.py: TradeOffPoint


def trade_off(points: Sequence[Point], setting: str | None = None) -> dict[str, Any]:
    """The points, the agents' upper hull, and the area under it and under the single experts'.

    Both areas are defined in curves.py. They are None where there is one agent, or one expert, or
    where all experts cost the same.

    Args:
        points: of kind `der` the agents, one for each value of `setting`; of the other kinds the
            policies that are shown beside them.
    """
    agents = _places(points, "der")
    experts = _places(points, "single")
    found: dict[str, Any] = {
        "setting": setting,
        "points": list(points),
        "hull": upper_hull(agents).tolist() if len(agents) else [],
        "bounds": None,
        "area": None,
        "area_experts": None,
    }
    if not len(experts):
        return found
    cheapest = experts[0]
    min_cost = float(cheapest[0])
    max_cost = float(experts[:, 0].max())
    found["bounds"] = [min_cost, max_cost]
    if min_cost < max_cost:
        found["area_experts"] = float(area_under(experts, min_cost, max_cost))
        if len(agents) > 1:
            choices = np.vstack([cheapest, agents])
            found["area"] = float(area_under(choices, min_cost, max_cost))
    return found


def _places(points: Sequence[Point], kind: str) -> np.ndarray:
    """Distinct (cost, quality) of the points of a kind, (N, 2), the cheapest and best first."""
    places = set()
    for point in points:
        if point["kind"] == kind:
            places.add((point["cost"]["mean"], point["quality"]["mean"]))
    ordered = sorted(places, key=lambda place: (place[0], -place[1]))
    return np.array(ordered).reshape(-1, 2)
