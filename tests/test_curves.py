"""The trade-off on hand-made points: the area by hand, the hull against scipy and brute force, a
sweep's agents priced alike.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from made_results import made_records
from scipy.spatial import ConvexHull

from config import RewardConfig
from evaluation.stats import interval
from report.trade_off import mean_height, trade_off, upper_hull
from runtime.errors import ReportError
from scripts import experiment


def point(policy: str, kind: str, cost: float, quality: float) -> dict[str, Any]:
    spans = {
        name: {"mean": mean, "lo": mean, "hi": mean}
        for name, mean in (("cost", cost), ("quality", quality))
    }
    return {"policy": policy, "kind": kind, "value": None, **spans}


def agents(*places: tuple[float, float]) -> list[dict[str, Any]]:
    return [point("DER", "der", cost, quality) for cost, quality in places]


EXPERTS = [
    point("a", "single", 1.0, 0.2),
    point("b", "single", 2.0, 0.1),
    point("c", "single", 3.0, 0.6),
]


def test_hull_and_area_by_hand() -> None:
    points = [
        *EXPERTS,
        point("lookup", "static", 1.0, 1.0),
        *agents((1.0, 0.4), (1.5, 0.5), (2.0, 0.8), (2.5, 0.7)),
    ]
    found = trade_off(points, "reward.alpha")
    assert found["hull"] == [
        [1.0, 0.4],
        [2.0, 0.8],
    ]  # (1.5, .5) lies below the line from .4 to .8, (2.5, .7) buys less for more
    assert (
        found["bounds"] == [1.0, 3.0]
        and found["setting"] == "reward.alpha"
        and found["points"] == points
    )
    assert found["area"] == pytest.approx(
        (0.6 + 0.8) / 2
    )  # from .4 up to .8 over costs 1 to 2, then flat to 3
    assert found["area_experts"] == pytest.approx(0.4)  # from .2 up to .6: b is below the line


@pytest.mark.parametrize(
    ("places", "area"),
    [
        (
            [(2.0, 0.8), (2.5, 0.9)],
            (0.6 + 0.5 * 0.85 + 0.5 * 0.9) / 2,
        ),  # below a cost of 2 the line comes from (0, 0): .4 at 1
        (
            [(0.5, 0.2), (2.0, 0.5)],
            (0.4 + 0.5) / 2,
        ),  # cheaper than every expert: at 1 the line is at .3
        ([(0.5, 0.2), (0.8, 0.3)], 0.3),
        (
            [(2.0, 0.5), (4.0, 0.9)],
            (0.375 + 0.6) / 2,
        ),  # dearer than every expert: at 3 the line is at .7
        (
            [(4.0, 0.5), (5.0, 0.9)],
            0.36,
        ),  # the first is below the line from (0, 0), which is at .18 and .54
    ],
)
def test_only_the_costs_between_the_experts_count(
    places: list[tuple[float, float]], area: float
) -> None:
    assert trade_off([*EXPERTS, *agents(*places)])["area"] == pytest.approx(area)


def test_one_agent_or_one_expert_has_no_area() -> None:
    alone = trade_off([*EXPERTS, *agents((1.0, 0.4), (1.0, 0.4))])
    assert alone["area"] is None and alone["hull"] == [[1.0, 0.4]]
    found = trade_off([EXPERTS[0], *agents((1.0, 0.4), (2.0, 0.5))])
    assert found["area"] is None and found["area_experts"] is None and found["bounds"] == [1.0, 1.0]
    assert trade_off(agents((1.0, 0.4), (2.0, 0.5)))["bounds"] is None


def test_the_hull_is_scipys_upper_one_up_to_the_best_point() -> None:
    for seed in range(30):
        points = np.random.default_rng(seed).random((12, 2))
        hull = upper_hull(points)
        assert {tuple(p) for p in hull} <= {tuple(p) for p in points[ConvexHull(points).vertices]}
        assert (
            hull[0, 0] == points[:, 0].min()
            and hull[-1, 1] == points[:, 1].max()
            and (np.diff(hull, axis=0) > 0).all()
        )
        # Brute force: the best mixture of two points for at most this mean cost.
        for cost in np.linspace(hull[0, 0], 1, 15):
            best = max(_mixed(p, q, cost) for p, q in itertools.product(points, repeat=2))
            assert np.interp(cost, hull[:, 0], hull[:, 1]) == pytest.approx(best)


def _mixed(p: Sequence[float], q: Sequence[float], cost: float) -> float:
    if p[0] > cost:
        return -np.inf
    share = 1.0 if q[0] <= cost else (cost - p[0]) / (q[0] - p[0])
    return max(p[1], (1 - share) * p[1] + share * q[1])


@pytest.mark.parametrize(
    "places", [[(1.0, 0.2), (2.0, 0.4), (3.0, 0.6)], [(1.0, 0.2), (1.0, 0.6)], [(1.0, 0.5)]]
)
def test_points_on_a_line_have_a_hull(places: list[tuple[float, float]]) -> None:
    points = np.array(places)
    assert upper_hull(points)[-1].tolist() == list(places[-1]) and mean_height(
        points, (1.0, 3.0)
    ) == pytest.approx({3: 0.4, 2: 0.6, 1: 0.5}[len(places)])


def test_a_sweeps_agents_are_means_over_seeds_with_intervals_at_one_price() -> None:
    cheap = [
        line
        for seed, hits in enumerate(([1, 0, 1, 0], [1, 1, 1, 0]))
        for line in made_records("DER", "der", seed, hits, charge=9.0, params_b=0.001)
    ]
    dear = [
        line
        for seed, hits in enumerate(([1, 1, 1, 0], [1, 1, 1, 1]))
        for line in made_records("DER", "der", seed, hits, charge=9.0, params_b=0.004)
    ]
    others = made_records("small", "single", 0, [0, 0, 0, 0], charge=9.0, params_b=0.001)
    found = experiment.family(
        {0.5: [*others, *cheap], 0.1: dear}, RewardConfig(cost="params", cost_scale=1000.0)
    )
    assert [(p["policy"], p["kind"], p["value"]) for p in found] == [
        ("DER", "der", "0.5"),
        ("DER", "der", "0.1"),
    ]
    assert [p["cost"]["mean"] for p in found] == pytest.approx(
        [1.0, 4.0]
    )  # whatever each run was charged
    assert [p["quality"]["mean"] for p in found] == [5 / 8, 7 / 8]
    expected = interval([[1, 0, 1, 0], [1, 1, 1, 0]])
    assert (found[0]["quality"]["lo"], found[0]["quality"]["hi"]) == (
        expected["lo"],
        expected["hi"],
    )
    with pytest.raises(ReportError, match="other questions"):
        experiment.family(
            {0.5: cheap, 0.1: [line | {"question": "x" + line["question"]} for line in dear]},
            RewardConfig(),
        )
