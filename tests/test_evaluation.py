"""What an evaluation plays, by role; the expert named like a policy; baselines by name."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from recordings import make_rows, write_rows

import test_ppo_multi
import train_ppo_multi
from evaluation.catalogue import Baseline
from evaluation.ground import Ground
from evaluation.outcome import Outcome
from evaluation.policies import FixedRoute
from evaluation.route_log import LABELLED_ROLES, ROLES, PolicyRoutes, read_records
from evaluation.runner import Evaluation
from report.schema import read_results
from rollout import NeverSatisfied, Route
from runtime.errors import ConfigError

EXPERTS = ("small", "DER", "speller", "large")  # "DER" is the expert `adder` of the recordings
NUM_QUESTIONS, NUM_TEST = 150, 30


def renamed_rows() -> list[dict[str, Any]]:
    """Recorded rows in which the expert `adder` is named as the trained policy is: DER."""
    rows = make_rows(NUM_QUESTIONS)
    for number, row in enumerate(rows):
        row["meta"]["id"] = f"question-{number}"
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


# --- baselines by name ---


def played_by(run: Path, *options: str) -> list[PolicyRoutes]:
    return list(Evaluation([run], list(options)).played())


def roles_of(played: list[PolicyRoutes]) -> list[str]:
    return [one.role for one in played]


def test_recorded_answers_are_used_for_every_baseline_that_asks_nobody(run: Path) -> None:
    roles = roles_of(played_by(run))
    assert {"agreement_cascade", "threshold_cascade", "learned_stop", "cascade_routing"} <= set(
        roles
    )
    assert {"knn_router", "logistic_router", "vote", "task_lookup", "random"} <= set(roles)
    assert roles[0] == "der" and "optimum" not in roles and "best_route" not in roles


def test_named_baselines_are_played_and_no_others(run: Path) -> None:
    roles = roles_of(played_by(run, "--eval.baselines=[logistic_router, vote]"))
    single = ["single"] * len(EXPERTS)
    expected = ["der", "best_single", "logistic_router", "vote", *single, "oracle_pick"]
    assert roles == [*expected, "der_oracle"]


def test_routers_are_had_where_trees_would_cost_too_much(run: Path) -> None:
    few = "--eval.max_tree_calls=9"
    with pytest.raises(ConfigError, match="name baselines that need no trees"):
        Evaluation([run], ["--eval.full=true", few])
    with pytest.raises(ConfigError, match="could need"):
        Evaluation([run], ["--eval.baselines=[optimum]", few])
    assert "knn_router" in roles_of(played_by(run, "--eval.baselines=[knn_router]", few))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("agrement_cascade", "no baseline 'agrement_cascade'; did you mean agreement_cascade?"),
        ("ranker", "ranker needs eval.ranker"),
        (
            "nowhere.at.all:thing",
            "thing cannot be imported (ModuleNotFoundError: No module named",
        ),
        ("recordings:make_rows", "is a function, expected a evaluation.catalogue.Baseline"),
    ],
)
def test_a_baseline_that_cannot_be_played_is_refused_before_anything_is_asked(
    run: Path, name: str, said: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        Evaluation([run], [f"--eval.baselines=[{name!r}]"])
    assert said in str(raised.value)


def play_second_expert(ground: Ground) -> Iterator[Outcome]:
    routes = ground.play(ground.splits.test, FixedRoute([1]), NeverSatisfied(), 1)
    yield Outcome("always the second", routes)


SECOND = Baseline("second", "custom", "static", play_second_expert)


def test_a_baseline_of_ones_own_is_named_by_import_path(run: Path) -> None:
    played = played_by(run, "--eval.baselines=['test_evaluation:SECOND']")
    own = [one for one in played if one.role == "custom"]
    assert [(one.policy, one.kind) for one in own] == [("always the second", "static")]
    asked = {step.expert_idx for route in own[0].routes for step in route.episode.steps}
    assert asked == {1}


def calls_of(routes: list[Route]) -> list[tuple[list[int], int]]:
    """Of each route, whom it asked and which call counts."""
    calls = []
    for route in routes:
        asked = [step.expert_idx for step in route.episode.steps]
        calls.append((asked, route.episode.submitted_idx))
    return calls


def test_scrambled_test_labels_change_no_choice(run: Path, tmp_path: Path) -> None:
    """Every policy that is no oracle asks the same experts and submits the same answers."""
    rows = renamed_rows()
    test = [row for row in rows if row["meta"]["split"] == "test"]
    scores = [row["scores"] for row in test]
    for row, other in zip(test, [*scores[7:], *scores[:7]], strict=True):
        row["scores"] = {name: 1.0 - score for name, score in other.items()}
        row["reference"] = "nothing"
    path = write_rows(tmp_path / "scrambled.jsonl", rows)
    routes = {}
    for name, options in (("true", []), ("scrambled", [f"--data.test.path={path}"])):
        routes[name] = {}
        for one in played_by(run, *options):
            if one.kind != "oracle":
                routes[name][one.role, one.policy] = calls_of(one.routes)
    assert len(routes["true"]) >= 12
    assert routes["true"] == routes["scrambled"]


def test_validation_returns_are_known_where_nothing_more_is_asked(run: Path) -> None:
    known = {one.role for one in played_by(run) if one.validation_return is not None}
    assert {"best_single", "task_lookup", "knn_router", "agreement_cascade"} <= known
    assert not known & {"single", "oracle_pick", "der_oracle", "random"}
