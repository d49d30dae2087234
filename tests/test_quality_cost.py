"""The agent and the rules over several alphas, on hand-made routes: which rule is best, the cells,
areas and sentences.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_results import made_records, made_results

from evaluation.stats import adjust, paired_difference
from report import figures, tables
from report.console import show
from report.page import write_report_files
from report.policies import PolicyResults
from report.quality_cost import curves_section
from report.schema import to_json
from runtime.errors import ReportError

QUESTIONS = 40
ALPHAS = (0.0, 0.1, 0.2)


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("report.curves.RESAMPLES", 200)


def policy(
    name: str,
    role: str,
    kind: str,
    hits: Sequence[int],
    cost: float,
    alpha: float,
    validation: float | None = None,
) -> PolicyResults:
    """A policy that is right on the first hits[s] of 40 questions with seed s, at a fixed cost."""
    records: list[dict[str, Any]] = []
    for seed, count in enumerate(hits):
        qualities = [float(idx < count) for idx in range(QUESTIONS)]
        made = made_records(name, kind, seed, qualities, charge=cost, params_b=cost)
        for record in made:
            returns = record["quality"] - alpha * cost
            known = {"role": role, "return": returns, "validation_return": validation}
            records.append({**record, **known})
    return PolicyResults(name, records, [f"q{idx}" for idx in range(QUESTIONS)])


def played(
    alpha: float, der: Sequence[int], best: float, lookup: float, agreement: float
) -> list[PolicyResults]:
    """DER with these hits, a policy of each kind with these returns on validation, and two experts.

    Expert e0 costs 1 and is right on 10 of 40 questions, e1 costs 3 and is right on 20.
    """
    name, hits, cost = ("e1", 20, 3.0) if alpha < 0.2 else ("e0", 10, 1.0)
    return [
        policy("DER", "der", "der", der, 2.0, alpha, 1.0),
        policy(f"best fixed: {name}", "best_single", "static", [hits], cost, alpha, best),
        policy("per-task lookup", "task_lookup", "static", [24], 2.0, alpha, lookup),
        policy("agreement", "agreement_cascade", "cascade", [26], 4.0, alpha, agreement),
        policy("full-information", "full_information", "learned", [40], 1.0, alpha, 1.0),
        policy("optimum", "optimum", "oracle", [40], 1.0, alpha, 1.0),
        policy("e0", "single", "single", [10], 1.0, alpha),
        policy("e1", "single", "single", [20], 3.0, alpha),
    ]


ByAlpha = dict[float, list[PolicyResults]]


@pytest.fixture
def by_alpha() -> ByAlpha:
    """On validation the agreement cascade is best at alpha 0, the lookup at .1 and .2."""
    return {
        0.0: played(0.0, [38, 38], best=0.5, lookup=0.6, agreement=0.7),
        0.1: played(0.1, [24, 24], best=0.3, lookup=0.4, agreement=0.2),
        0.2: played(0.2, [8, 8], best=0.1, lookup=0.2, agreement=0.0),
    }


def row_of(section: dict[str, Any], name: str) -> dict[str, Any]:
    (row,) = [row for row in section["rows"] if row["policy"] == name]
    return row


def cell_of(section: dict[str, Any], rival: str, alpha: float | None) -> dict[str, Any]:
    (cell,) = [c for c in section["cells"] if c["b"] == rival and c["alpha"] == alpha]
    return cell


@pytest.mark.slow
def test_the_best_rule_is_chosen_on_validation_among_those_that_can_be_deployed(
    by_alpha: ByAlpha,
) -> None:
    section = curves_section(by_alpha)
    chosen = [point["policy"] for point in row_of(section, "best rule")["points"]]
    assert chosen == ["agreement", "per-task lookup", "per-task lookup"]
    one_shot = [point["policy"] for point in row_of(section, "best one-shot rule")["points"]]
    assert one_shot == ["per-task lookup"] * 3
    reading = row_of(section, "best rule that reads answers")["points"]
    assert [point["policy"] for point in reading] == ["agreement"] * 3
    assert [point["validation_return"] for point in reading] == [0.7, 0.2, 0.0]
    deployable = {row["policy"]: row["deployable"] for row in section["rows"]}
    assert not deployable["full-information"] and not deployable["optimum"]


def test_of_equal_rules_the_first_is_the_best(by_alpha: ByAlpha) -> None:
    by_alpha[0.1] = played(0.1, [24, 24], best=0.4, lookup=0.4, agreement=0.4)
    best = row_of(curves_section(by_alpha), "best rule")["points"]
    assert best[1]["policy"] == "best fixed: e1"


def test_a_policy_is_one_row_whatever_it_is_called_at_an_alpha(
    by_alpha: ByAlpha,
) -> None:
    row = row_of(curves_section(by_alpha), "best fixed expert in quality")
    assert [point["policy"] for point in row["points"]] == ["best fixed: e1"] * 2 + [
        "best fixed: e0"
    ]
    assert [point["cost"] for point in row["points"]] == [3.0, 3.0, 1.0]


def test_the_best_expert_in_quality_stands_in_where_it_is_the_best_in_return_too(
    by_alpha: ByAlpha,
) -> None:
    cheap = policy("best fixed in return: e0", "best_single_return", "static", [10], 1.0, 0.1)
    by_alpha[0.1].insert(2, cheap)
    section = curves_section(by_alpha)
    points = row_of(section, "best fixed expert in return")["points"]
    names = [point["policy"] for point in points]
    assert names == ["best fixed: e1", "best fixed in return: e0", "best fixed: e0"]
    assert cell_of(section, "best fixed expert in return", 0.1)["diff"] == pytest.approx(0.25)


@pytest.mark.slow
def test_areas_by_hand(by_alpha: ByAlpha) -> None:
    section = curves_section(by_alpha)
    assert section["bounds"] == [1.0, 3.0]
    assert (section["cheapest"], section["most_expensive"]) == ("e0", "e1")
    # DER: from (1, .25) to (2, .95), then flat: a mean of .6 up to cost 2.
    area = row_of(section, "DER")["area"]
    assert area["mean"] == pytest.approx((0.6 + 0.95) / 2)
    assert area["lo"] < area["mean"] < area["hi"]
    # The lookup: from (1, .25) to (2, .6), then flat.
    lookup = row_of(section, "per-task lookup")["area"]["mean"]
    assert lookup == pytest.approx((0.425 + 0.6) / 2)
    # The best rule: the lookup's (2, .6) and the agreement cascade's (4, .65) at alpha 0: at cost 3
    # the line between is at .625.
    best = row_of(section, "best rule")["area"]["mean"]
    assert best == pytest.approx((0.425 + 0.6125) / 2)
    assert cell_of(section, "best rule", None)["diff"] == pytest.approx(area["mean"] - best)


def test_cells_are_paired_and_adjusted_together(by_alpha: ByAlpha) -> None:
    section = curves_section(by_alpha)
    rivals = list(dict.fromkeys(cell["b"] for cell in section["cells"]))
    best = ["best rule", "best one-shot rule", "best rule that reads answers"]
    constant = "best fixed expert in return"
    assert rivals == [*best, constant, "per-task lookup", "agreement"]
    cell = cell_of(section, "per-task lookup", 0.0)
    ours = [[float(idx < count) for idx in range(QUESTIONS)] for count in (38, 38)]
    theirs = [float(idx < 24) for idx in range(QUESTIONS)]
    expected = paired_difference(ours, theirs)
    assert {key: cell[key] for key in ("diff", "lo", "hi", "p")} == pytest.approx(
        {key: expected[key] for key in ("diff", "lo", "hi", "p")}
    )
    found = [cell["p_adjusted"] for cell in section["cells"]]
    assert found == adjust([cell["p"] for cell in section["cells"]])
    assert len(found) == 6 * 4  # six rivals, three alphas and the area


def test_it_is_said_where_reading_answers_pays(by_alpha: ByAlpha) -> None:
    summary = curves_section(by_alpha)["summary"]
    assert summary[0].startswith("Reading answers pays at alpha 0: DER returns more than the best")
    assert summary[1].startswith("Reading answers does not pay at alpha 0.2: DER returns less")
    assert summary[2].startswith("At alpha 0.1 it cannot be told whether reading answers pays")
    assert summary[3].endswith("* marks an interval that leaves out 0.")
    spoken = [line.split(":")[0] for line in summary[4:-1]]
    assert spoken == [
        "DER minus best rule",
        "DER minus best one-shot rule",
        "DER minus best fixed expert in return",
        "DER minus per-task lookup",
        "DER minus agreement",
    ]
    lookup = "DER minus per-task lookup: +0.350* at alpha 0, +0.000 at 0.1, -0.400* at 0.2; area "
    assert summary[7].startswith(lookup)
    assert "best rule 0.519" in summary[-1] and "optimum" not in summary[-1]


def test_other_questions_or_seeds_are_refused(by_alpha: ByAlpha) -> None:
    by_alpha[0.1] = played(0.1, [24], 0.3, 0.4, 0.2)
    with pytest.raises(ReportError, match="the alphas have other seeds"):
        curves_section(by_alpha)
    for record in by_alpha[0.1][0].records[0]:
        record["question"] += "x"
    with pytest.raises(ReportError, match="other questions"):
        curves_section(by_alpha)


def test_experts_of_equal_cost_leave_no_area(by_alpha: ByAlpha) -> None:
    for at_alpha in by_alpha.values():
        at_alpha[-1].cost = np.ones((1, QUESTIONS))
    section = curves_section(by_alpha)
    assert section["rows"][0]["area"] is None
    assert all(cell["alpha"] is not None for cell in section["cells"])


def test_curves_are_printed_in_120_columns(by_alpha: ByAlpha) -> None:
    lines = show({**made_results(), "curves": curves_section(by_alpha)}).splitlines()
    assert max(map(len, lines)) <= 120
    start = lines.index("return at alpha                         0    0.1    0.2   area")
    assert lines[start + 1].split() == ["DER", "0.950", "0.400", "-0.200", "0.775"]
    constant = "best fixed expert in quality        0.500  0.200  0.050  0.375"
    assert lines[start + 2] == constant
    assert not any(line.startswith("optimum") for line in lines)


@pytest.mark.slow
def test_the_report_shows_the_curves(tmp_path: Path, by_alpha: ByAlpha) -> None:
    results = {**made_results(), "curves": curves_section(by_alpha)}
    assert json.loads(to_json(results))["curves"]["alphas"] == list(ALPHAS)
    axes = figures.draw_figures(results, {})["curves"].axes[0]
    lines = {line.get_label(): line for line in axes.lines}
    assert sorted(lines["DER"].get_ydata().tolist()) == [0.2, 0.6, 0.95]
    assert "optimum" not in lines
    table = tables.curve_table(results)
    assert table is not None and table.columns[-2:] == ["return at 0.2", "area"]
    write_report_files(tmp_path, results, [], {})
    text = (tmp_path / "report.md").read_text()
    assert "- Reading answers pays at alpha 0" in text and "![curves](curves.png)" in text
    assert 'id="plot-curves"' in (tmp_path / "report.html").read_text()
