"""What an evaluation plays, by role; the expert named like a policy; baselines by name."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from recordings import make_rows, write_rows

import test_ppo_multi
import train_ppo_multi
from evaluation.route_log import LABELLED_ROLES, ROLES, read_records
from report.schema import read_results

EXPERTS = ("small", "DER", "speller", "large")  # "DER" is the expert `adder` of the recordings
NUM_QUESTIONS, NUM_TEST = 150, 30


def renamed_rows() -> list[dict[str, Any]]:
    """Recorded rows in which the expert `adder` is named as the trained policy is: DER."""
    rows = make_rows(NUM_QUESTIONS)
    for row in rows:
        for by_expert in (row["answers"], row["scores"], row["meta"]["tokens"]):
            by_expert["DER"] = by_expert.pop("adder")
    return rows


def write_config(folder: Path, encoder: Path) -> Path:
    path = write_rows(folder / "answers.jsonl", renamed_rows())
    experts = []
    for index, name in enumerate(EXPERTS):
        experts.append({"name": name, "kind": "recorded", "path": path, "params_b": index + 1.0})
    data = {}
    for split in ("train", "validation", "test"):
        data[split] = {"path": path, "split": split, "metric": "recorded"}
    config = {
        "device": "cpu",
        "threads": 1,
        "data": data,
        "pool": {"experts": experts, "store": str(folder / "answers.sqlite")},
        "env": {"t_max": 2},
        "reward": {"alpha": 0.02},
        "agent": {"encoder": str(encoder), "max_tokens": 48, "hidden_sizes": [16]},
        "train": {"epochs": 1, "updates_per_epoch": 1, "episodes_per_update": 16, "num_envs": 8},
        "terminator": {"steps": 20, "hidden_size": 8},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder / "config.yaml"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, bert_encoder: Path) -> Path:
    """A short run on recorded answers, one of whose experts is named DER. Tests only read it."""
    folder = tmp_path_factory.mktemp("evaluation")
    config_path = write_config(folder, bert_encoder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        path = train_ppo_multi.main(["--config", str(config_path), "--name", "named"])
    return folder / path


@pytest.fixture(scope="module")
def records(run: Path) -> list[dict[str, Any]]:
    """The route log of its evaluation."""
    test_ppo_multi.main(["--run", str(run)])
    return read_records(run / "routes.jsonl")


def with_role(records: list[dict[str, Any]], role: str) -> list[dict[str, Any]]:
    found = []
    for record in records:
        if record["role"] == role:
            found.append(record)
    return found


def test_an_expert_named_like_the_policy_does_not_break_its_evaluation(
    records: list[dict[str, Any]], run: Path
) -> None:
    assert len(with_role(records, "der")) == NUM_TEST
    assert {record["policy"] for record in with_role(records, "der")} == {"DER"}
    alone = with_role(records, "single")
    assert len(alone) == NUM_TEST * len(EXPERTS)
    assert {r["policy"] for r in alone} == {"small", "DER (single)", "speller", "large"}
    results = read_results(run / "report" / "results.json")
    kinds = {row["policy"]: row["kind"] for row in results["rows"]}
    assert (kinds["DER"], kinds["DER (single)"]) == ("der", "single")


def test_every_record_has_a_known_role(records: list[dict[str, Any]]) -> None:
    roles = {record["role"] for record in records}
    assert roles <= set(ROLES)
    assert {"der", "best_single", "task_lookup", "random", "single", "oracle_pick"} <= roles


def test_a_log_from_before_roles_gets_them_from_its_labels(
    records: list[dict[str, Any]], tmp_path: Path
) -> None:
    there_were = {"der", "single", *LABELLED_ROLES.values()}
    lines, expected = [], []
    for record in [record for record in records if record["role"] in there_were]:
        old = copy.deepcopy(record)
        expected.append(old.pop("role"))
        lines.append(json.dumps(old) + "\n")
    (tmp_path / "routes.jsonl").write_text("".join(lines))
    assert [record["role"] for record in read_records(tmp_path / "routes.jsonl")] == expected
