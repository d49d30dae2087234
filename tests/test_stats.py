"""Intervals over seeds and questions: against hand arithmetic, scipy, and a simulation where the
truth is known.
"""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from evaluation.stats import adjust, few_seeds_note, interval, limits, paired_difference
from scripts import check_intervals

# Five times the same four questions. Mean 7/12; mean squares: seeds 5/12, questions 5/12, rest
# 35/228. The error's square is (5/12 + 5/12 - 35/228) / 60 = 31/2736, of which 19/31 is the seeds'.
SMALL = np.tile([[1, 1, 0, 1], [1, 0, 0, 1], [1, 1, 0, 0]], 5)


def draw(
    seed: int, seeds: int = 3, questions: int = 50, spread: float = 0.1, mean: float = 0.6
) -> np.ndarray:
    rng = np.random.default_rng(seed)
    chances = np.clip(
        mean + spread * rng.standard_normal((seeds, 1)) + 0.2 * rng.standard_normal(questions), 0, 1
    )
    return (rng.random((seeds, questions)) < chances).astype(float)


def test_small_example_by_hand() -> None:
    found = interval(SMALL)
    assert found["mean"] == pytest.approx(7 / 12)
    # The range [0, 1] has half a question of margin, 1/40; there the mean has this place, and the
    # logit this slope.
    place = (7 / 12 + 1 / 40) / 1.05
    slope = 1 / (1.05 * place * (1 - place))
    for limit in (found["lo"], found["hi"]):
        there = (limit + 1 / 40) / 1.05
        ratio = abs(np.log(there / (1 - there)) - np.log(place / (1 - place))) / (
            slope * np.sqrt(31 / 2736)
        )
        # Tail probability of Student's t with two degrees of freedom, in closed form
        of_seeds = 1 - ratio / np.sqrt(2 + ratio**2)
        of_questions = 2 * scipy.stats.t.sf(ratio, 19)
        assert of_seeds * 19 / 31 + of_questions * 12 / 31 == pytest.approx(0.05)
    assert found["lo"] < found["mean"] < found["hi"]


def test_one_seed_has_students_quantile_on_the_logit_scale() -> None:
    values = draw(0, seeds=1)[0]
    found, ratio = interval(values), scipy.stats.t.ppf(0.975, 49)
    place = (values.mean() + 0.01) / 1.02  # half a question of margin, 1/100
    reach = ratio * scipy.stats.sem(values) / (1.02 * place * (1 - place))
    for limit, sign in ((found["lo"], -1), (found["hi"], 1)):
        there = (limit + 0.01) / 1.02
        assert np.log(there / (1 - there)) == pytest.approx(
            np.log(place / (1 - place)) + sign * reach
        )
    assert found["covers"] == "questions" and interval(values[None]) == found

    # Of many questions both are Student's
    values, baseline = (
        draw(0, seeds=1, questions=2000)[0],
        draw(1, seeds=1, questions=2000)[0],
    )
    assert (interval(values)["lo"], interval(values)["hi"]) == pytest.approx(
        scipy.stats.t.interval(0.95, 1999, values.mean(), scipy.stats.sem(values)), abs=5e-4
    )
    assert paired_difference(values, baseline)["p"] == pytest.approx(
        scipy.stats.ttest_rel(values, baseline).pvalue, rel=0.02
    )


@pytest.mark.parametrize("questions", [2, 3, 4, 5, 8, 12, 30])
def test_questions_that_agree_say_no_more_than_so_many_can(questions: int) -> None:
    # Qualities; returns, of calls that cost nearly the same
    for values in (
        np.ones(questions),
        np.linspace(0.95, 0.96, questions),
    ):
        won = paired_difference(values, np.zeros(questions))
        assert won["p"] > scipy.stats.binomtest(questions, questions).pvalue / 2  # the sign test's
        assert (won["verdict"] == "better") == (questions >= 8)
    right = interval(np.ones(questions))
    exact = scipy.stats.binomtest(questions, questions).proportion_ci(0.95).low
    assert right["hi"] == 1 and 0 <= right["lo"] < exact + 0.03
    tied = paired_difference(np.ones((3, questions)), np.ones(questions))
    assert (
        tied["lo"] == pytest.approx(-tied["hi"])
        and tied["hi"] > 1 / questions
        and (tied["p"], tied["verdict"]) == (1.0, "not separable")
    )


def test_equal_rows_are_one_row() -> None:
    row, trained = draw(0, seeds=1), draw(1)
    assert interval(np.repeat(row, 3, axis=0)) == interval(row) | {"covers": "seeds and questions"}
    assert (
        paired_difference(trained, np.repeat(row, 3, axis=0))
        == paired_difference(trained, row)
        == paired_difference(trained, row[0])
    )


@pytest.mark.slow
def test_seed_spread_widens_and_more_seeds_narrow() -> None:
    def width(seeds: int, spread: float) -> float:
        return float(
            np.mean(
                [
                    (found := interval(draw(s, seeds, 300, spread)))["hi"] - found["lo"]
                    for s in range(20)
                ]
            )
        )

    assert width(3, 0.1) > 2 * width(3, 0) and width(3, 0.1) > 1.5 * width(5, 0.1)
    assert width(3, 0.1) > 2 * width(1, 0.1)  # one seed knows nothing of the spread


def test_limits_stay_within_the_range_of_qualities() -> None:
    nearly_all = np.ones((3, 60))
    nearly_all[0, :9] = 0
    found = interval(nearly_all)
    assert 0 < found["lo"] < 0.95 < found["hi"] <= 1
    assert found["mean"] - found["lo"] > found["hi"] - found["mean"]


def test_returns_outside_the_unit_interval() -> None:
    returns = draw(0) - 2.5
    found = interval(returns)
    assert returns.min() < found["lo"] < found["mean"] < found["hi"] < returns.max()
    assert paired_difference(returns, draw(1) - 2.5)["diff"] == pytest.approx(
        draw(0).mean() - draw(1).mean()
    )


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [(1, 1), (3, 1), (1, 3), (3, 3)])
def test_verdict_p_and_interval_agree(seeds: tuple[int, int]) -> None:
    verdicts = set()
    for seed in range(60):
        values, baseline = draw(seed, seeds[0], mean=0.3 + seed / 100), draw(seed + 100, seeds[1])
        found, mirrored = paired_difference(values, baseline), paired_difference(baseline, values)
        verdicts.add(found["verdict"])
        assert (
            (found["p"] < 0.05)
            == (found["verdict"] != "not separable")
            == (not found["lo"] <= 0 <= found["hi"])
        )
        assert found["verdict"] in ("not separable", "better" if found["diff"] > 0 else "worse")
        assert [-mirrored["hi"], -mirrored["lo"], mirrored["p"]] == pytest.approx(
            [found["lo"], found["hi"], found["p"]]
        )
        assert found["covers"] == ("questions" if seeds == (1, 1) else "seeds and questions")
    assert len(verdicts) > 1


def test_wins_count_questions_by_the_seeds_mean() -> None:
    found = paired_difference([[1, 0, 1, 0.3], [0, 0, 1, 0.0]], [[0, 0, 0, 0.1], [1, 1, 1, 0.2]])
    # 0.3 - 0.1 and 0.0 - 0.2 cancel but for rounding
    assert (found["wins"], found["ties"], found["losses"]) == (
        1,
        2,
        1,
    )


def test_agreeing_seeds_do_not_make_the_error_zero() -> None:
    found = paired_difference([[1, 0, 1, 0, 1, 0], [0, 1, 0, 1, 1, 0]], np.full(6, 0.4))
    assert found["hi"] - found["lo"] > 0.01


@pytest.mark.parametrize("seeds", [1, 3])
def test_counts_that_agree_are_known(seeds: int) -> None:
    found = interval(np.full((seeds, 7), 2.0), counted=True)
    assert [found["lo"], found["hi"]] == pytest.approx([2, 2])
    # Nor does the way to the logit scale and back lose the mean
    for value in np.linspace(0.1, 2.9, 57):
        assert (
            (found := interval(np.full((seeds, 7), value), counted=True))["lo"]
            <= found["mean"]
            <= found["hi"]
        )
    few = interval(draw(0, seeds) * 1e-4, counted=True)  # costs in a unit that makes them small
    assert 0 < few["lo"] < few["mean"] < few["hi"] < 1e-4


def test_only_a_trained_policy_moves_within_its_range() -> None:
    """Against a policy that is never right, and never will be, the difference is the mean."""
    values, never = draw(0), np.zeros(50)
    own, found, mirrored = (
        interval(values),
        paired_difference(values, never),
        paired_difference(never, values),
    )
    assert (found["lo"], found["hi"]) == pytest.approx((own["lo"], own["hi"]))
    assert (-mirrored["hi"], -mirrored["lo"]) == pytest.approx((own["lo"], own["hi"]))


def test_a_baseline_without_one_right_answer() -> None:
    values = np.zeros((3, 50))
    values[0, 0] = 1
    found = paired_difference(values, np.zeros(50))
    assert np.isfinite([found["lo"], found["hi"]]).all() and found["verdict"] == "not separable"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([[0.5]], "at least two questions"),
        ([0.5, float("nan")], "NaN"),
        (np.zeros((0, 5)), "shape"),
        (np.zeros((2, 2, 2)), "shape"),
    ],
)
def test_refused(values: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        interval(values)
    with pytest.raises(ValueError, match=message):
        paired_difference(values, [0.0, 1.0])


@pytest.mark.parametrize("shapes", [((3, 5), (3, 6)), ((3, 5), (2, 5))])
def test_shapes_that_do_not_fit(shapes: tuple[tuple[int, int], tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        paired_difference(np.zeros(shapes[0]), np.zeros(shapes[1]))


def test_many_at_once_are_the_same_as_one_by_one() -> None:
    stack = np.stack([draw(seed) for seed in range(4)])
    for idx, (_, lo, hi) in enumerate(zip(*limits(stack, np.zeros(4), np.ones(4)), strict=True)):
        one = interval(stack[idx])
        assert (lo, hi) == pytest.approx((one["lo"], one["hi"]))


def test_holm() -> None:
    # R: p.adjust(c(.01, .04, .03, .005), "holm")
    assert adjust([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert adjust([0.6, 0.5]) == [1.0, 1.0] and adjust([]) == []


def test_few_seeds_note() -> None:
    assert "questions only" in few_seeds_note(1)
    assert "2 degrees of freedom" in few_seeds_note(3)
    assert few_seeds_note(5) is None


def test_simulated_truth_is_the_one_claimed() -> None:
    """The closed forms of mean and spread, against many agents on many questions."""
    strength = check_intervals.strength_for(0.85, 0.1)
    assert check_intervals.spread(0.85, strength) == pytest.approx(0.1)
    rng = np.random.default_rng(0)
    ease = rng.standard_normal((1, 3000), dtype=np.float32)
    means = check_intervals.answers(rng, 0.85, strength, ease, 1000).mean(axis=-1)
    assert means.mean() == pytest.approx(0.85, abs=0.015) and means.std() == pytest.approx(
        0.1, abs=0.01
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mean", "seeds", "spread"), [(0.85, 3, 0.1), (0.85, 5, 0.1), (0.5, 3, 0.03), (0.5, 3, 0)]
)
def test_coverage(mean: float, seeds: int, spread: float) -> None:
    """Three Monte-Carlo standard errors around the band of the full check."""
    row = check_intervals.check(np.random.default_rng(0), mean, seeds, spread, repetitions=750)
    assert 0.93 - 0.024 <= row["mean"] <= 0.97 + 0.019
    assert 0.93 - 0.024 <= row["paired"] <= 0.97 + 0.019
    assert row["separate"] <= 0.05 + 0.024


@pytest.mark.parametrize(("questions", "mean"), [(20, 0.95), (32, 0.95), (60, 0.85), (100, 0.98)])
def test_coverage_of_one_seed_on_few_questions(questions: int, mean: float) -> None:
    row = check_intervals.check(
        np.random.default_rng(0), mean, 1, 0, repetitions=750, questions=questions
    )
    assert (
        row["mean"] >= 0.93 - 0.024
        and row["paired"] >= 0.9 - 0.024
        and row["separate"] <= 0.05 + 0.024
    )
