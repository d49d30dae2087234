"""results.json is what report/schema.py says: a full one passes, and whatever differs is named."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from made_results import made_results

from report.schema import read_results, to_json
from runtime.errors import ReportError

GONE = object()


def changed(path: Sequence[str | int], value: Any) -> dict[str, Any]:
    """The full results with one field set, or taken out (GONE)."""
    results = copy.deepcopy(made_results())
    place = results
    for key in path[:-1]:
        place = place[key]
    if value is GONE:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return results


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_bytes(to_json(made_results()))
    assert read_results(tmp_path / "results.json") == json.loads(json.dumps(made_results()))


def test_what_is_computed_only_on_request_may_be_missing() -> None:
    assert "transfer" not in json.loads(to_json(changed(["transfer"], GONE)))
    assert json.loads(to_json(changed(["oracle"], {})))["oracle"] == {}
    # As after --reprice
    assert (
        "thresholds"
        not in json.loads(to_json(changed(["terminator", "thresholds"], GONE)))["terminator"]
    )


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (
            ["rows", 1, "quality", "hi"],
            "0.9",
            r"rows\.1\.quality\.hi: Input should be a valid number",
        ),
        (
            ["rows", 1, "quality", "hi"],
            0.1,
            r"rows\.1\.quality: .*the mean 0\.4 is outside its interval \[0\.3.*, 0\.1\]",
        ),
        (["rows", 2, "return"], GONE, r"rows\.2\.return: Field required"),
        (["experts", 1, "name"], "small", r"experts: two are called small"),
        (["rows", 2, "kind"], "clever", r"rows\.2\.kind: Input should be 'der', 'single'"),
        (["rows", 2, "policy"], "DER", r"two rows are called DER"),
        (["rows", 0, "charge"], float("nan"), r"rows\.0\.charge: Input should be a finite number"),
        (["comparisons", 0, "b"], "nobody", r"comparisons: no row is called nobody"),
        (["comparisons", 0, "verdict"], "perhaps", r"comparisons\.0\.verdict"),
        (["terminator", "ece"], GONE, r"terminator\.ece: Field required"),
        (["transfer", "pairs", 0, "variants", "none"], 0.5, r"transfer\.pairs\.0\.variants\.none"),
        (["cost_unit"], "bananas", r"cost_unit: Value error, expected a unit"),
        (["seeds"], [], r"seeds: List should have at least 1 item"),
        (["surprise"], 1, r"surprise: Extra inputs are not permitted"),
    ],
)
def test_what_is_wrong_is_named(
    tmp_path: Path, path: list[str | int], value: Any, named: str
) -> None:
    results = changed(path, value)
    with pytest.raises(ReportError, match=named):
        to_json(results)
    (tmp_path / "results.json").write_text(json.dumps(results))
    with pytest.raises(
        ReportError, match=rf"results\.json: not as report/schema\.py describes it(.|\n)*{named}"
    ):
        read_results(tmp_path / "results.json")


def test_many_errors_are_counted_and_a_broken_or_missing_file_is_named(tmp_path: Path) -> None:
    results = made_results()
    for row in results["rows"]:
        del row["calls"], row["charge"]
    with pytest.raises(ReportError, match="and 7 more"):  # two in each of six rows, five are shown
        to_json(results)
    path = tmp_path / "results.json"
    with pytest.raises(ReportError, match="no results here"):
        read_results(path)
    path.write_text('{"split": ')
    with pytest.raises(ReportError, match=r"results\.json: .*\n *file: Invalid JSON"):
        read_results(path)
