"""Hulls and areas by hand, against scipy and brute force; the paired bootstrap against areas
computed one sample at a time.
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
from report.curves import (
    RESAMPLES,
    CostRange,
    Curve,
    area_difference,
    area_span,
    area_under,
    areas,
    stack,
    upper_hull,
)
from report.trade_off import trade_off
from runtime.errors import ReportError
from scripts import experiment


def test_the_hull_is_scipys_upper_one_up_to_the_best_point() -> None:
    for seed in range(30):
        points = np.random.default_rng(seed).random((12, 2))
        hull = upper_hull(points)
        corners = {tuple(point) for point in points[ConvexHull(points).vertices]}
        assert {tuple(point) for point in hull} <= corners
        assert hull[0, 0] == points[:, 0].min() and hull[-1, 1] == points[:, 1].max()
        assert (np.diff(hull, axis=0) > 0).all()
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
    ("points", "hull"),
    [
        ([(1.0, 0.5)], [(1.0, 0.5)]),
        ([(1.0, 0.2), (1.0, 0.6)], [(1.0, 0.6)]),
        ([(2.0, 0.5), (1.0, 0.25), (3.0, 0.75)], [(1.0, 0.25), (3.0, 0.75)]),  # on a line
        ([(1.0, 0.5), (2.0, 0.5), (3.0, 0.4)], [(1.0, 0.5)]),  # nothing is better than the cheapest
        ([(1.0, 0.5), (1.0, 0.5), (2.0, 0.7)], [(1.0, 0.5), (2.0, 0.7)]),
    ],
)
def test_hulls_of_few_points(points: list, hull: list) -> None:
    assert [tuple(corner) for corner in upper_hull(np.array(points))] == hull


# A hand-drawn hull. The cheapest expert alone: cost 1, quality .4; costs run from 1 to 5.
#
#   .8 |              x------------ flat beyond (3, .8)
#   .6 |        x                   (2, .6) is on the line from (1, .4) to (3, .8)
#   .5 |           o                (2.5, .5) is below it
#   .4 |  x
#      +--1-----2-----3-----4-----5
def test_the_area_under_a_hand_drawn_hull() -> None:
    cheapest = (1.0, 0.4)
    points = [cheapest, (2.0, 0.6), (2.5, 0.5), (3.0, 0.8), (4.0, 0.7)]
    # From 1 to 3 the mean height is .6, from 3 to 5 it is .8.
    assert area_under(np.array(points), 1.0, 5.0) == pytest.approx(0.7)
    # (7, 1) lies beyond: at 5 the line from (3, .8) is at .9, so from 3 to 5 the mean is .85.
    assert area_under(np.array([*points, (7.0, 1.0)]), 1.0, 5.0) == pytest.approx(0.725)
    # (.5, .4) is cheaper than every expert. It is as good as the cheapest, which falls from the
    # hull: at 1 the line to (3, .8) is at .48.
    assert area_under(np.array([*points, (0.5, 0.4)]), 1.0, 5.0) == pytest.approx(
        ((0.48 + 0.8) / 2 * 2 + 0.8 * 2) / 4
    )
    assert area_under(np.array([cheapest]), 1.0, 5.0) == pytest.approx(0.4)
    assert area_under(np.array([cheapest, (1.0, 0.5)]), 1.0, 5.0) == pytest.approx(0.5)


def made_curve(seed: int, shift: float, seeds: int = 2, questions: int = 40) -> Curve:
    rng = np.random.default_rng(seed)
    shape = (3, seeds, questions)
    chance = 0.4 + shift + 0.1 * np.arange(3)[:, None, None]
    cost = 1.0 + rng.random(shape) + np.arange(3)[:, None, None]
    return Curve((rng.random(shape) < chance).astype(float), cost)


@pytest.fixture
def experts() -> CostRange:
    rng = np.random.default_rng(9)
    return CostRange((rng.random(40) < 0.4).astype(float), np.full(40, 1.0), np.full(40, 3.0))


@pytest.mark.slow
def test_the_bootstrap_draws_the_same_questions_for_all(experts: CostRange) -> None:
    curves = {"a": made_curve(1, 0.2), "b": made_curve(2, 0.0, seeds=1)}
    found = areas(curves, experts)
    rng = np.random.default_rng(0)
    samples = [np.arange(40), *rng.integers(40, size=(100, 40))[:3]]
    for idx, sample in enumerate(samples):
        cheapest = [1.0, experts.cheapest_quality[sample].mean()]
        for name, curve in curves.items():
            by_seed = []
            for seed in range(curve.cost.shape[1]):
                points = [cheapest]
                for alpha in range(3):
                    cost = curve.cost[alpha, seed, sample].mean()
                    points.append([cost, curve.quality[alpha, seed, sample].mean()])
                by_seed.append(area_under(np.array(points), 1.0, 3.0))
            assert found[name][idx] == pytest.approx(np.mean(by_seed))
    assert len(found["a"]) == 1 + RESAMPLES
    again = areas({"b": curves["b"]}, experts)
    assert (again["b"] == found["b"]).all()  # whoever else is there


@pytest.mark.slow
def test_a_difference_of_areas_is_paired(experts: CostRange) -> None:
    curve = made_curve(1, 0.0)
    better = Curve(np.minimum(curve.quality + 0.1, 1.0), curve.cost)
    found = areas({"a": better, "b": curve}, experts)
    difference = area_difference(found["a"], found["b"])
    assert difference["diff"] == pytest.approx(found["a"][0] - found["b"][0])
    assert 0 < difference["lo"] < difference["diff"] < difference["hi"]
    assert difference["p"] == pytest.approx(2 / (RESAMPLES + 1))  # no sample is below 0
    # Paired, the interval is narrower than that of either area.
    span = area_span(found["a"])
    assert difference["hi"] - difference["lo"] < (span["hi"] - span["lo"]) / 3
    same = area_difference(found["a"], found["a"])
    assert same == {"diff": 0.0, "lo": 0.0, "hi": 0.0, "p": 1.0, "verdict": "not separable"}


@pytest.mark.slow
def test_the_interval_of_an_area_covers_the_truth_about_95_times_in_100(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("report.curves.RESAMPLES", 400)
    # One alpha, cost 2 between 1 and 3. The cheapest expert never answers, the policy is right with
    # chance .6: hull (1, 0) to (2, .6), then flat, area (.3 + .6) / 2.
    covered = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        quality = (rng.random((1, 1, 60)) < 0.6).astype(float)
        experts = CostRange(np.zeros(60), np.full(60, 1.0), np.full(60, 3.0))
        found = areas({"a": Curve(quality, np.full((1, 1, 60), 2.0))}, experts, seed)
        span = area_span(found["a"])
        covered += span["lo"] <= 0.45 <= span["hi"]
    assert covered >= 34  # P(fewer of 40 at .95) < .01


def test_untrained_policies_keep_their_row_for_all_seeds() -> None:
    one, two = np.array([[1.0, 0.0]]), np.array([[0.0, 0.5], [1.0, 1.0]])
    assert stack([one, two]).tolist() == [[[1.0, 0.0], [1.0, 0.0]], [[0.0, 0.5], [1.0, 1.0]]]
    assert stack([one, one]).shape == (2, 1, 2)


# The trade-off of a sweep


def point(policy: str, kind: str, cost: float, quality: float) -> dict[str, Any]:
    spans = {}
    for name, mean in (("cost", cost), ("quality", quality)):
        spans[name] = {"mean": mean, "lo": mean, "hi": mean}
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
    # (1.5, .5) lies below the line from .4 to .8, (2.5, .7) buys less for more.
    assert found["hull"] == [[1.0, 0.4], [2.0, 0.8]]
    assert found["bounds"] == [1.0, 3.0] and found["setting"] == "reward.alpha"
    assert found["points"] == points
    # From .4 up to .8 over costs 1 to 2, then flat to 3.
    assert found["area"] == pytest.approx((0.6 + 0.8) / 2)
    assert found["area_experts"] == pytest.approx(0.4)  # from .2 up to .6: b is below the line


def test_the_cheapest_expert_alone_is_a_choice() -> None:
    # No agent is as cheap as expert a: the line from (1, .2) to (2, .8), then flat to 3.
    found = trade_off([*EXPERTS, *agents((2.0, 0.8), (2.5, 0.7))])
    assert found["area"] == pytest.approx((0.5 + 0.8) / 2)
    assert found["hull"] == [[2.0, 0.8]]  # the agents' own


def test_one_agent_or_one_expert_has_no_area() -> None:
    alone = trade_off([*EXPERTS, *agents((1.0, 0.4), (1.0, 0.4))])
    assert alone["area"] is None and alone["hull"] == [[1.0, 0.4]]
    found = trade_off([EXPERTS[0], *agents((1.0, 0.4), (2.0, 0.5))])
    assert found["area"] is None and found["area_experts"] is None and found["bounds"] == [1.0, 1.0]
    assert trade_off(agents((1.0, 0.4), (2.0, 0.5)))["bounds"] is None


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
        {0.5: [*others, *cheap], 0.1: dear}, RewardConfig(cost_unit="million parameters")
    )
    assert [(p["policy"], p["kind"], p["value"]) for p in found] == [
        ("DER", "der", "0.5"),
        ("DER", "der", "0.1"),
    ]
    # Whatever each run was charged
    assert [p["cost"]["mean"] for p in found] == pytest.approx([1.0, 4.0])
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
