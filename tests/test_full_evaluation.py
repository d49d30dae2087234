"""A full evaluation of two seeds: baselines, the full-information router, the transfer audit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from toy_runs import EPOCHS, NAMES, NUM_TEST, Workplace

import test_ppo_multi
from report.schema import read_results
from runtime import run_folder

pytestmark = pytest.mark.slow

OF_EACH_SEED = {
    "DER",
    "DER, oracle stop",
    "random with KTP",
    "random without KTP",
    "cascade, cheapest first",
    "round-robin",
}
OF_ONE_SEED = {
    "per-task lookup",
    "k-NN router",
    "logistic router",
    "majority vote of all",
    "pairwise ranker of all",
    "full-information",
    "full-information, oracle stop",
    "all once, oracle's pick",
    "optimum (hindsight)",
    *NAMES,
}


@dataclass(frozen=True)
class Both:
    """What the evaluation of two runs left under `out`."""

    runs: tuple[Path, Path]
    out: Path

    @property
    def results(self) -> dict[str, Any]:
        return read_results(self.out / "report" / "results.json")

    @property
    def rows(self) -> dict[str, dict[str, Any]]:
        return {row["policy"]: row for row in self.results["rows"]}

    @property
    def records(self) -> list[dict[str, Any]]:
        lines = (self.out / "routes.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def both(
    config_path: Path,
    finished_run: Path,
    ranker_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Both]:
    folder = tmp_path_factory.mktemp("two seeds")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("evaluation.full_information.STEPS", 200)  # enough for three experts
        workplace = Workplace(folder, config_path)
        second = workplace.train("second", "--seed", "1", "--train.epochs", str(EPOCHS))
        out = folder / "both"
        full = ["--eval.full", "true", "--eval.composition_tasks", "[spell]"]
        full += ["--eval.ranker", str(ranker_folder), "--pool.store", str(workplace.store)]
        test_ppo_multi.main(["--run", str(finished_run), str(second), "--out", str(out), *full])
        yield Both((finished_run, second), out)


def test_every_baseline_is_there_with_its_seeds(both: Both) -> None:
    assert both.results["seeds"] == [0, 1]
    assert both.results["num_questions"] == NUM_TEST
    assert both.rows.keys() >= OF_EACH_SEED | OF_ONE_SEED
    assert any(name.startswith("best fixed route: ") for name in both.rows)
    assert {name for name, row in both.rows.items() if len(row["by_seed"]) == 2} == OF_EACH_SEED


def test_no_policy_beats_the_optimum(both: Both) -> None:
    """By construction one expert is right on each question, so hindsight asks it once: 1 - .01 x 2
    on average.
    """
    returns = {name: row["return"]["mean"] for name, row in both.rows.items()}
    assert returns["optimum (hindsight)"] == pytest.approx(0.98)
    assert returns["optimum (hindsight)"] == max(returns.values())
    for gap in (both.results["oracle"]["gap"], both.results["oracle"]["gap_own_stop"]):
        assert sum(gap.values()) == pytest.approx(0.98 - returns["DER"])
        assert gap["information"] >= 0


def test_a_ranker_is_charged_beside_the_experts(both: Both) -> None:
    ranked, vote = both.rows["pairwise ranker of all"], both.rows["majority vote of all"]
    assert ranked["cost"] == pytest.approx(vote["cost"])
    assert ranked["overhead"]["params_b"] > 0
    assert vote["overhead"]["params_b"] == 0


def test_the_transfer_audit_has_every_ordered_pair(both: Both) -> None:
    pairs = both.results["transfer"]["pairs"]
    assert {(p["first"], p["second"]) for p in pairs} == {(a, b) for a in NAMES for b in NAMES}
    assert {p["task_group"] for p in pairs} == {"composition", "other"}


def test_only_with_the_prompt_are_answers_handed_on(both: Both) -> None:
    bare = {}
    for record in both.records:
        if record["kind"] == "single":
            for step in record["steps"]:
                bare[record["question"], step["expert"]] = step["prompt_hash"]
    is_bare: dict[str, list[bool]] = {"random with KTP": [], "random without KTP": []}
    for record in both.records:
        if record["policy"] in is_bare:
            for step in record["steps"][1:]:
                same = step["prompt_hash"] == bare[record["question"], step["expert"]]
                is_bare[record["policy"]].append(same)
    assert all(is_bare["random without KTP"])
    assert is_bare["random with KTP"]
    assert not any(is_bare["random with KTP"])


def test_a_report_is_no_run(both: Both) -> None:
    assert (both.out / "report" / "report.html").is_file()
    assert (both.out / "report" / "report.md").is_file()
    assert not (both.out / "agent").exists()
    assert run_folder.newest_run(both.runs[1].parent) == both.runs[1]


def test_routes_are_priced_in_other_units_from_the_log_alone(
    both: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evaluation.ground.build_pool", None)
    runs = [str(run) for run in both.runs]
    path = test_ppo_multi.main(["--run", *runs, "--out", str(both.out), "--reprice", "tokens"])
    again = read_results(path)
    assert path == both.out / "report" / "in_tokens" / "results.json"
    assert again["cost_unit"] == "thousand tokens"
    assert again["evaluation"]["config"]["reward"]["cost_unit"] == "thousand tokens"
    rows = both.rows
    for row in again["rows"]:
        tokens = row["cost"]["prompt_tokens"] + row["cost"]["completion_tokens"]
        assert row["charge"] == pytest.approx(tokens / 1000)
        assert row["quality"]["mean"] == rows[row["policy"]]["quality"]["mean"]
    # No optimum at other prices
    assert rows.keys() - {row["policy"] for row in again["rows"]} == {"optimum (hindsight)"}
    assert "optimum" not in again["oracle"]
    assert "chosen for alpha = 0.01 and C in billion parameters. " in again["notes"][-1]
