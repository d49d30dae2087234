"""Run folders that were damaged, edited or planted: named before anything is played, with the
remedy, and nothing in them is run.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from toy_runs import EPOCHS, UPDATES, Workplace, learned, read_metrics, repeatable

import test_ppo_multi
from encoder import StateEncoder
from report.schema import read_results
from runtime.errors import AgentError, DERError, ReportError, RunError
from runtime.run_folder import num_epochs
from runtime.signals import Terminated
from training.trainer import Trainer

pytestmark = pytest.mark.slow


@pytest.fixture
def run(finished_run: Path, workplace: Workplace) -> Path:
    """A copy of the finished run, to be damaged."""
    path = workplace.folder / "runs" / "toy"
    shutil.copytree(finished_run, path)
    return path


@pytest.fixture
def evaluated(results: dict[str, Any], run: Path) -> Path:
    """A copy of the finished run with its report."""
    assert results["num_questions"]
    return run


def flip(path: Path, share: float = 0.5) -> None:
    """Change one byte of a file."""
    data = bytearray(path.read_bytes())
    data[int(share * len(data))] ^= 0xFF
    path.write_bytes(data)


class Planted:
    """What a checkpoint must not be able to do: create a file when it is loaded."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.path), "w"))


def test_a_planted_object_is_refused_and_not_run(run: Path, workplace: Workplace) -> None:
    last = run / "checkpoints" / "last.pt"
    state = torch.load(last, weights_only=True)
    torch.save(state | {"planted": Planted(run / "ran")}, last)
    message = workplace.fails(RunError, "--resume", str(run))
    assert "last.pt: holds Python objects (io.open)" in message
    assert num_epochs(run) == EPOCHS  # known without loading it
    assert not (run / "ran").exists()


def test_a_checkpoint_of_an_older_version_is_refused_with_what_to_do(
    run: Path, workplace: Workplace
) -> None:
    about = json.loads((run / "environment.json").read_text())
    (run / "environment.json").write_text(json.dumps(about | {"git_commit": "c483926" + "0" * 33}))
    torch.save({"epoch": 4, "random": np.random.get_state()}, run / "checkpoints" / "last.pt")
    message = workplace.fails(RunError, "--resume", str(run))
    assert "numpy" in message
    assert "finish the run with the version that began it (git commit c48392600000)" in message
    torch.save({"epoch": 4}, run / "checkpoints" / "last.pt")
    assert "no checkpoint of format 2" in workplace.fails(RunError, "--resume", str(run))


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied", "text"])
def test_a_damaged_checkpoint_is_named_with_the_remedy_and_the_remedy_helps(
    run: Path, workplace: Workplace, finished_run: Path, damage: str
) -> None:
    last, before = run / "checkpoints" / "last.pt", (run / "metrics.jsonl").read_bytes()
    data = last.read_bytes()
    if damage == "flipped":
        flip(last)
    else:
        last.write_bytes({"cut": data[: len(data) // 2], "emptied": b"", "text": b"hi"}[damage])
    message = workplace.fails(RunError, "--resume", str(run))
    assert "last.pt: damaged" in message and "Copy best.pt over it" in message
    assert (run / "metrics.jsonl").read_bytes() == before
    shutil.copyfile(run / "checkpoints" / "best.pt", last)
    workplace.resume(run)
    assert repeatable(run) == repeatable(finished_run)


def test_what_was_learned_is_written_again_from_the_best_checkpoint(
    run: Path, workplace: Workplace, finished_run: Path
) -> None:
    flip(run / "agent" / "model.safetensors")
    (run / "terminator" / "config.json").write_text("{")
    with pytest.raises(AgentError, match=r"not the weights that config\.json describes.*--resume"):
        test_ppo_multi.main(["--run", str(run)])
    workplace.resume(run)
    assert learned(run) == learned(finished_run)


def without(name: str) -> Callable[[Path], None]:
    return lambda path: path.write_text(json.dumps(drop(json.loads(path.read_text()), name)))


def drop(mapping: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in mapping.items() if key != name}


@pytest.mark.parametrize(
    ("file", "damage", "said"),
    [
        ("agent/config.json", without("pool"), r"agent/config\.json: pool = .*Field required"),
        ("agent/config.json", lambda p: p.write_bytes(b"\xff"), "not UTF-8 text"),
        ("agent/config.json", Path.unlink, r"config\.json is missing"),
        ("agent/model.safetensors", lambda p: p.write_bytes(b""), "not the weights"),
        ("terminator/config.json", without("threshold"), "threshold"),
        ("terminator/config.json", lambda p: p.write_text("[1]"), "expected an object, found list"),
        ("terminator/model.safetensors", Path.unlink, "cannot be read"),
        ("config.yaml", lambda p: p.write_text("seed: [\n"), r"config\.yaml: not valid YAML"),
        ("config.yaml", lambda p: p.write_bytes(b"\xff"), r"config\.yaml: not valid YAML"),
        ("metrics.jsonl", lambda p: p.write_text('{"epoch": 1\n{}\n'), r"metrics\.jsonl:1"),
        ("metrics.jsonl", lambda p: p.write_text("{}\n"), r"metrics\.jsonl:1: no epoch in it"),
    ],
)
def test_an_evaluation_names_damage_before_it_plays_anything(
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    file: str,
    damage: Callable[[Path], Any],
    said: str,
) -> None:
    monkeypatch.setattr("evaluation.ground.play", None)
    damage(run / file)
    with pytest.raises(DERError, match=said):
        test_ppo_multi.main(["--run", str(run)])


def test_a_damaged_store_is_named_before_anything_is_played(
    run: Path, workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evaluation.ground.play", None)
    config = yaml.safe_load((run / "config.yaml").read_text())
    shutil.copyfile(config["pool"]["store"], workplace.store)
    data = workplace.store.read_bytes()
    workplace.store.write_bytes(data[:8192] + b"\xa5" * 4096 + data[12_288:])
    with pytest.raises(DERError, match=r"python scripts/store\.py rebuild"):
        test_ppo_multi.main(["--run", str(run), "--pool.store", str(workplace.store)])


@pytest.mark.parametrize("text", ["{", "[]", '{"generated": "7"}', '{"generated": -1}', "\ufffd"])
def test_a_damaged_count_of_answers_is_named(run: Path, workplace: Workplace, text: str) -> None:
    (run / "expert_calls.json").write_text(text)
    message = workplace.fails(RunError, "--resume", str(run))
    assert "expert_calls.json" in message and "remove it to count from 0" in message


def test_half_a_line_at_the_end_of_the_log_is_dropped_and_any_other_is_named(
    run: Path, workplace: Workplace, finished_run: Path
) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 4, "upd')
    workplace.resume(run)
    assert read_metrics(run) == read_metrics(finished_run)
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join([lines[0][:20] + "\n", *lines[1:]]))
    assert "metrics.jsonl:1: not valid JSON" in workplace.fails(RunError, "--resume", str(run))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("reward.alpha", 0.5),
        ("reward.discount", 0.9),
        ("env.ktp", "none-v1"),
        ("env.t_max", 1),
        ("agent.pooling", "cls"),
        ("agent.hidden_sizes", [8]),
        ("ppo.lr", 0.02),
        ("terminator.hidden_size", 4),
        ("seed", 3),
    ],
)
def test_a_setting_that_shaped_what_was_learned_cannot_be_edited(
    run: Path, workplace: Workplace, setting: str, value: Any
) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    section, before = config, (run / "metrics.jsonl").read_text()
    *parents, leaf = setting.split(".")
    for parent in parents:
        section = section[parent]
    was = section[leaf]
    section[leaf] = value
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    message = workplace.fails(RunError, "--resume", str(run))
    assert f"{setting} (was {was!r}) changed since its last checkpoint" in message
    assert (run / "metrics.jsonl").read_text() == before


def test_links_in_a_run_folder_are_not_written_through(run: Path, workplace: Workplace) -> None:
    elsewhere = workplace.folder / "elsewhere"
    elsewhere.write_text("kept\n")
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").symlink_to(elsewhere)
    assert "metrics.jsonl: a symbolic link" in workplace.fails(RunError, "--resume", str(run))
    with pytest.raises(ReportError, match="a symbolic link"):
        test_ppo_multi.main(["--run", str(run)])
    assert elsewhere.read_text() == "kept\n"


# --- route logs ---


def change(name: str, value: Any) -> Callable[[list[dict[str, Any]]], Any]:
    """Give a key of the third route, or of its first step, another value."""

    def changed(records: list[dict[str, Any]]) -> None:
        *parents, leaf = name.split(".")
        target: Any = records[2]
        for parent in parents:
            target = target[int(parent) if parent.isdigit() else parent]
        if value is None:
            del target[leaf]
        else:
            target[leaf] = value

    return changed


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda records: records.clear(), "no routes in it"),
        (lambda records: records.pop(), "11 questions in 11 routes, results.json has 12"),
        (lambda records: records.append(records[0]), "12 questions in 13 routes"),
        (lambda records: records.__delitem__(slice(0, 12)), "policy DER, seed 0 is not in it"),
        (change("policy", "another"), "policy another, seed 0 is not in results.json"),
        (change("kind", "single"), "policy DER is of kind single, in results.json of der"),
        (change("steps", None), r"routes\.jsonl:3: steps: Field required"),
        (change("quality", 1.5), r"routes\.jsonl:3: quality = 1\.5: .*less than or equal to 1"),
        (change("steps.0.cost.params_b", -1.0), r"steps\.0\.cost\.params_b = -1\.0"),
        (change("steps.0.cost.flops", float("inf")), r"steps\.0\.cost\.flops = inf"),
        (change("steps.0.expert", "nobody"), "expert nobody is not in results.json"),
        (change("steps.0.prompt_cut", "no"), r"steps\.0\.prompt_cut = 'no'"),
        (change("steps.0.finish", "tired"), r"steps\.0\.finish = 'tired'"),
        (change("steps.0.logprob_mean", 0.5), r"steps\.0\.logprob_mean = 0\.5"),
        (change("steps", []), "steps = "),
        (change("seed", "0"), "seed = '0'"),
    ],
)
def test_a_route_log_that_is_not_whole_is_not_priced_again(
    evaluated: Path, damage: Callable[[list[dict[str, Any]]], Any], said: str
) -> None:
    log = evaluated / "routes.jsonl"
    records = [json.loads(line) for line in log.read_text().splitlines()]
    damage(records)
    log.write_text("".join(json.dumps(record) + "\n" for record in records))
    with pytest.raises(ReportError, match=rf"{said}.*evaluate the run again"):
        test_ppo_multi.main(["--run", str(evaluated), "--reprice", "flops"])
    assert not (evaluated / "report" / "in_flops").exists()


# --- what is stored, and what is not ---


def routes_of(out: Path) -> list[dict[str, Any]]:
    """A route log without wall times."""
    records = [json.loads(line) for line in (out / "routes.jsonl").read_text().splitlines()]
    for record in records:
        record["overhead"]["latency_s"] = None
        for step in record["steps"]:
            step["cost"]["latency_s"] = None
    return records


def logprobs_of(records: list[dict[str, Any]]) -> list[float]:
    """Take the log-probabilities out of a route log: like wall times they depend on the batch."""
    found = []
    for record in records:
        for step in record["steps"]:
            found += [step.pop("logprob_mean"), step.pop("logprob_min")]
    return found


def test_an_evaluation_is_the_same_to_the_last_digit_whatever_is_stored(
    finished_run: Path, workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    pooled = StateEncoder.pooled

    def pooled_by_batch(encoder: StateEncoder, rows: np.ndarray) -> torch.Tensor:
        """What the rounding of large encoders does in the seventh digit, where it can be seen."""
        return pooled(encoder, rows) + 1e-3 * len(rows)

    monkeypatch.setattr(StateEncoder, "pooled", pooled_by_batch)
    logs, generated = [], []
    for name, keep in (("filled", 10_000), ("full", 1), ("part", 3), ("none", 10_000)):
        store = workplace.folder / f"{name}.sqlite"
        if name != "filled":
            copy_store(workplace.folder / "filled.sqlite", store, keep)
        out = workplace.folder / name
        arguments = ["--out", str(out), "--pool.store", str(store)]
        found = test_ppo_multi.main(["--run", str(finished_run), *arguments])
        generated.append(read_results(found)["evaluation"]["answers_generated"])
        logs.append(routes_of(out))
    assert generated[1] == 0 < generated[2] < generated[3] <= generated[0]
    logprobs = [logprobs_of(log) for log in logs]
    for log, found in zip(logs, logprobs, strict=True):
        assert log == logs[1]
        assert found == pytest.approx(logprobs[1], abs=1e-5)


def copy_store(source: Path, target: Path, keep: int) -> None:
    """Every `keep`-th answer of a store, by key."""
    with sqlite3.connect(source) as full, sqlite3.connect(target) as database:
        full.backup(database)
        keys = [key for (key,) in database.execute("SELECT key FROM answers ORDER BY key")]
        for number, key in enumerate(keys):
            if number % keep:
                database.execute("DELETE FROM answers WHERE key = ?", (key,))
    full.close()
    database.close()


def test_an_evaluation_tells_of_repeats_that_were_left_out(
    finished_run: Path, workplace: Workplace
) -> None:
    test = Path(yaml.safe_load((finished_run / "config.yaml").read_text())["data"]["test"]["path"])
    lines = test.read_text().splitlines(keepends=True)
    repeat = json.dumps(json.loads(lines[0]) | {"id": "again"}) + "\n"
    (workplace.folder / "test.jsonl").write_text("".join([*lines, repeat]))
    arguments = ["--data.test.path", "test.jsonl", "--out", "out"]
    found = read_results(test_ppo_multi.main(["--run", str(finished_run), *arguments]))
    assert "1 questions repeat others, within or across splits, and were left out" in found["notes"]


# --- SIGTERM ---


@pytest.mark.parametrize("update", [1, UPDATES, 2 * UPDATES + 1])
def test_a_terminated_run_saves_within_its_epoch_and_goes_on_as_if_undisturbed(
    finished_run: Path, workplace: Workplace, monkeypatch: pytest.MonkeyPatch, update: int
) -> None:
    original = Trainer.update

    def terminated_update(trainer: Trainer) -> dict[str, float]:
        if trainer.update_idx == update - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", terminated_update)
        message = workplace.fails(Terminated, *workplace.arguments("toy"))
    assert message == f"terminated; saved after update {update}; continue with --resume runs/toy"
    run = workplace.resume(workplace.folder / "runs" / "toy")
    assert repeatable(run) == repeatable(finished_run)
    assert learned(run) == learned(finished_run)
