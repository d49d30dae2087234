"""Quality against cost: a family of agents trained at several values of a setting, its convex hull
and the area under it.

Every point is a mean over seeds and questions. Choosing between two agents at random reaches every
point on the line between them, so what a family offers is its upper convex hull (RouterBench, Hu et
al. 2024, section 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.spatial import ConvexHull, QhullError

ON_LINE = 1e-12


def trade_off(points: Sequence[dict[str, Any]], setting: str | None = None) -> dict[str, Any]:
    """results.json's `tradeoff`.

    `points`: of kind `der` the agents, one per value of `setting`; of the other kinds the policies
    to show beside them. `hull`: the agents' own. `area`: mean height of their hull over the costs
    from `bounds`[0] to `bounds`[1], those of the cheapest and of the dearest single expert, with
    answering nothing at no cost as a further choice (else a family that is dear throughout had no
    height at low costs). `area_experts`: the same of the single experts, which is what mixing them
    without looking at the question gives. Both are null with fewer than two points or bounds that
    are equal.
    """
    agents, experts = _places(points, "der"), _places(points, "single")
    bounds = [float(experts[0, 0]), float(experts[-1, 0])] if len(experts) else None
    return {
        "setting": setting,
        "points": list(points),
        "hull": upper_hull(agents).tolist(),
        "bounds": bounds,
        "area": mean_height(agents, bounds) if bounds and len(agents) > 1 else None,
        "area_experts": mean_height(experts, bounds) if len(experts) > 1 else None,
    }


def _places(points: Sequence[dict[str, Any]], kind: str) -> np.ndarray:
    """Distinct (cost, quality) of the points of a kind (N, 2), by rising cost."""
    return np.array(
        sorted({(p["cost"]["mean"], p["quality"]["mean"]) for p in points if p["kind"] == kind})
    ).reshape(-1, 2)


def upper_hull(points: np.ndarray) -> np.ndarray:
    """Points of the upper convex hull by rising cost (N, 2) -> (M, 2), from the cheapest to the
    best.
    """
    try:
        corners = points[ConvexHull(points).vertices] if len(points) > 2 else points
    except QhullError:  # all on one line
        corners = points
    corners = corners[np.lexsort((corners[:, 1], corners[:, 0]))]
    line = np.interp(corners[:, 0], corners[[0, -1], 0], corners[[0, -1], 1])
    upper = corners[corners[:, 1] >= line - ON_LINE]
    return upper[: int(np.argmax(upper[:, 1])) + 1]


def mean_height(points: np.ndarray, bounds: Sequence[float]) -> float | None:
    """Mean over the costs within `bounds` of the best quality that mixing the points (N, 2) and (0,
    0) gives for at most that cost.
    """
    least, most = bounds
    if least == most:
        return None
    cost, quality = upper_hull(np.vstack([[0.0, 0.0], points])).T
    grid = np.concatenate([[least], cost[(cost > least) & (cost < most)], [most]])
    return float(np.trapezoid(np.interp(grid, cost, quality), grid) / (most - least))
