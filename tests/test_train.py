"""Training, evaluation and `ask` from end to end, killed, resumed, out of disk and out of budget.

Most runs here train on three random Llama-shaped models of a few thousand parameters. What makes
that learnable: the reference of a question is what the expert of its family happens to answer.
"""

from __future__ import annotations

import errno
import gc
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from toy_runs import (
    EPOCHS,
    NAMES,
    NUM_TEST,
    UPDATES,
    Workplace,
    dump_yaml,
    learned,
    read_metrics,
    repeatable,
    write_jsonl,
)

import test_ppo_multi
import train_ppo_multi
from agent import load_agent
from backends.answer_store import AnswerStore
from evaluation.progress import collapse_warning
from evaluation.runner import Evaluation
from experts import build_pool
from metrics.base import normalise
from report.schema import read_results
from runtime import run_folder
from runtime.command_line import load_config
from runtime.errors import AgentError, BudgetError, ConfigError, RunError
from runtime.version import VERSION
from scripts import ask, experiment
from terminator import load_terminator
from training import trainer as training_trainer
from training.trainer import Trainer

pytestmark = pytest.mark.slow


def test_a_run_logs_every_update_and_every_epoch(finished_run: Path) -> None:
    records = read_metrics(finished_run)
    assert [(r["epoch"], r["update"], "eval/return" in r) for r in records] == [
        (epoch, UPDATES * (epoch - 1) + min(line, UPDATES), line > UPDATES)
        for epoch in range(1, EPOCHS + 1)
        for line in range(1, UPDATES + 2)
    ]
    best = -np.inf
    for record in records:
        prefix = "eval" if "eval/return" in record else "train"
        assert record[f"{prefix}/return"] == pytest.approx(
            record[f"{prefix}/quality"] - 0.01 * record[f"{prefix}/cost"]
        )
        assert 0 <= record[f"{prefix}/quality"] <= 1 <= record[f"{prefix}/calls"] <= 2
        for kind in ("share", "first"):
            assert sum(record[f"{prefix}/{kind}/{name}"] for name in NAMES) == pytest.approx(1)
        if prefix == "eval":
            assert bool(record["eval/is_best"]) == (record["eval/return"] > best)
            best = max(best, record["eval/return"])
    updates = [r for r in records if "train/return" in r]
    assert [r["env_step"] for r in updates] == np.cumsum(
        [round(12 * r["train/calls"]) for r in updates]
    ).tolist()  # 12 episodes an update
    assert all(0 < r["losses/entropy"] <= np.log(3) + 1e-6 for r in updates)


def test_a_run_folder_holds_what_it_promises(finished_run: Path, config_path: Path) -> None:
    records = read_metrics(finished_run)
    best = [r for r in records if r.get("eval/is_best")][-1]
    checkpoints = {
        name: torch.load(finished_run / "checkpoints" / f"{name}.pt", weights_only=True)["epoch"]
        for name in ("last", "best")
    }
    assert checkpoints == {"last": EPOCHS, "best": best["epoch"]}
    config = load_config(finished_run / "config.yaml")
    assert config == load_config(
        config_path,
        ["--name", "toy", "--pool.store", str(finished_run.parents[1] / "answers.sqlite")],
    )
    about = json.loads((finished_run / "environment.json").read_text())
    assert (
        about["seed"] == 0
        and about["threads"] == 1
        and about["device"] == "cpu"
        and {"der", "torch", "transformers", "tianshou"} <= about["versions"].keys()
    )
    assert [expert["name"] for expert in about["pool"]] == list(NAMES)
    assert list((finished_run / "tb").glob("events.*"))
    agent = load_agent(finished_run / "agent", build_pool(config))
    saved = torch.load(finished_run / "checkpoints" / "best.pt", weights_only=True)["algorithm"]
    assert all(
        torch.equal(tensor, saved[f"policy.actor.last.{name}"])
        for name, tensor in agent.actor.last.state_dict().items()
    )
    assert (
        load_terminator(finished_run / "terminator", torch.device("cpu")).threshold
        == best["terminator/threshold"]
    )


def test_one_seed_gives_one_run(finished_run: Path, workplace: Workplace) -> None:
    again = workplace.train("again")  # from an empty store, elsewhere
    assert repeatable(again) == repeatable(finished_run)
    assert learned(again) == learned(finished_run)
    other = workplace.train("other", "--seed", "1", "--train.epochs", "1")
    assert repeatable(other)[0] != repeatable(finished_run)[0]


DIE_IN_THE_SIXTH_UPDATE = """
import os, signal, sys
import train_ppo_multi
from training.trainer import Trainer
update = Trainer.update
def dying_update(self):
    if self.update_idx == 5:  # the sixth: epoch 3 is half done, its first update is logged
        answer, calls = self.pool.answer, []
        def dying_answer(requests):
            calls.append(requests)
            answers = answer(requests)
            if len(calls) == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            return answers
        self.pool.answer = dying_answer
    return update(self)
Trainer.update = dying_update
train_ppo_multi.main(sys.argv[1:])
"""

WRITE_TO_THE_STORE = """
import sqlite3, sys, time
rows = sqlite3.connect(sys.argv[1]).execute("SELECT * FROM answers").fetchall()
store = sqlite3.connect(sys.argv[2], timeout=60, isolation_level=None)
number = 0
# What the undisturbed run generated, with other wall times, among answers that nobody asks for.
while True:
    for key, *row in rows:
        row[5] = 99.0
        number += 1
        marks = ",".join("?" * (len(row) + 1))
        statement = f"INSERT OR IGNORE INTO answers VALUES ({marks})"
        store.execute(statement, (number.to_bytes(16, "big"), *row))
        if number % 3 == 0:
            store.execute(statement, (key, *row))
        time.sleep(0.01)
"""


def test_a_killed_and_resumed_run_is_the_undisturbed_one_whatever_others_write_to_the_store(
    finished_run: Path, workplace: Workplace, project: Path
) -> None:
    AnswerStore(workplace.store).close()
    other = subprocess.Popen(
        [
            sys.executable,
            "-c",
            WRITE_TO_THE_STORE,
            str(finished_run.parents[1] / "answers.sqlite"),
            str(workplace.store),
        ]
    )
    try:
        environment = os.environ | {"PYTHONPATH": str(project), "OMP_NUM_THREADS": "1"}
        killed = subprocess.run(
            [sys.executable, "-c", DIE_IN_THE_SIXTH_UPDATE, *workplace.arguments("toy")],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        run = workplace.folder / "runs" / "toy"
        assert (
            len(read_metrics(run)) == 7
            and torch.load(run / "checkpoints" / "last.pt", weights_only=True)["epoch"] == 2
        )
        with (run / "metrics.jsonl").open("a") as file:
            file.write('{"epoch": 3, "upd')  # a line that was being written
        workplace.resume(run)
        assert other.poll() is None  # the other process was at it all the while
    finally:
        other.kill()
        other.wait()
    assert repeatable(run) == repeatable(finished_run)
    assert learned(run) == learned(finished_run)
    assert read_metrics(run)[-1]["eval/return"] == read_metrics(finished_run)[-1]["eval/return"]


@pytest.mark.parametrize("stop_before", [0, 3])  # before the first checkpoint, and after it
def test_a_trainable_encoder_resumes_as_well(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch, stop_before: int
) -> None:
    options = ("--agent.freeze_encoder", "false", "--ppo.lr_encoder", "1e-3", "--train.epochs", "2")
    undisturbed = workplace.train("undisturbed", *options)
    update = Trainer.update

    def interrupted_update(trainer: Trainer) -> dict[str, float]:
        if trainer.update_idx == stop_before:
            raise KeyboardInterrupt
        return update(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", interrupted_update)
        workplace.fails(KeyboardInterrupt, *workplace.arguments("interrupted", *options))
    run = workplace.resume(workplace.folder / "runs" / "interrupted")
    assert repeatable(run) == repeatable(undisturbed)
    assert learned(run) == learned(undisturbed)


def test_a_run_killed_between_its_checkpoint_and_its_agent_ends_with_the_best_agent(
    finished_run: Path, workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_best = sum(bool(r.get("eval/is_best")) for r in read_metrics(finished_run))
    assert num_best >= 2  # so that an older agent could be left behind
    calls, save_agent = [], training_trainer.save_agent

    def dying_save(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == num_best:  # the last time that the agent gets better
            raise KeyboardInterrupt
        save_agent(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(training_trainer, "save_agent", dying_save)
        workplace.fails(KeyboardInterrupt, *workplace.arguments("toy"))
    calls.clear()
    run = workplace.resume(workplace.folder / "runs" / "toy")
    assert repeatable(run) == repeatable(finished_run)
    assert learned(run) == learned(finished_run)


def test_resuming_a_finished_run_changes_nothing(
    finished_run: Path, workplace: Workplace, capsys: pytest.CaptureFixture[str]
) -> None:
    run = workplace.folder / "runs" / "copy"
    shutil.copytree(finished_run, run)
    kept = [
        path
        for path in sorted(run.rglob("*"))
        if path.is_file() and "tb" not in path.parts and path.name != ".lock"
    ]
    before = {path: path.read_bytes() for path in kept}
    workplace.resume(run)
    assert {path: path.read_bytes() for path in kept} == before
    best = max(record.get("eval/return", -np.inf) for record in read_metrics(run))
    assert f"(validation return {best:.3f})" in capsys.readouterr().out


def test_a_run_is_not_overwritten_nor_trained_by_two(
    finished_run: Path, workplace: Workplace
) -> None:
    shutil.copytree(finished_run, workplace.folder / "runs" / "toy")
    assert "--resume" in workplace.fails(RunError, *workplace.arguments("toy"))
    holder = (
        "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX);"
        " print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", holder, "runs/toy/.lock"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    assert "another process is training this run" in workplace.fails(
        RunError, "--resume", "runs/toy"
    )
    process.communicate()
    workplace.resume(Path("runs/toy"))  # the lock went with its process
    assert "runs/nowhere: no run there" in workplace.fails(RunError, "--resume", "runs/nowhere")
    assert "--reward.alpha cannot be changed" in workplace.fails(
        ConfigError, "--resume", "runs/toy", "--reward.alpha", "1"
    )
    assert "leave --config out" in workplace.fails(
        ConfigError, "--resume", "runs/toy", "--config", "configs/quickstart.yaml"
    )


def test_a_run_does_not_go_on_with_other_questions_or_experts(
    finished_run: Path, workplace: Workplace
) -> None:
    run = workplace.folder / "runs" / "toy"
    shutil.copytree(finished_run, run)
    before = (run / "metrics.jsonl").read_text()
    config = yaml.safe_load((run / "config.yaml").read_text())
    rows = [
        json.loads(line) for line in Path(config["data"]["train"]["path"]).read_text().splitlines()
    ]
    # The same questions elsewhere
    config["data"]["train"]["path"] = write_jsonl(workplace.folder / "train.jsonl", rows)
    dump_yaml(run / "config.yaml", config)
    workplace.resume(run)
    write_jsonl(workplace.folder / "train.jsonl", [*rows[:-1], rows[-1] | {"reference": "another"}])
    config["pool"]["experts"][0]["params_b"] *= 2
    dump_yaml(run / "config.yaml", config)
    assert "toy: data.train and pool.experts changed since its last checkpoint" in workplace.fails(
        RunError, "--resume", str(run)
    )
    assert (run / "metrics.jsonl").read_text() == before


def disk_full(*arguments: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("where", ["torch.save", "os.replace", "copyfile"])
def test_a_full_disk_leaves_the_last_checkpoint_to_resume_from(
    finished_run: Path, workplace: Workplace, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    counts, torch_save, os_replace, copyfile = Counter(), torch.save, os.replace, shutil.copyfile

    def is_second(name: str) -> bool:
        counts[name] += 1
        return where == name and counts[name] == 2

    def full_save(state: dict[str, Any], file: Any) -> None:
        if is_second("torch.save"):
            file.write(b"half of a checkpoint")
            disk_full()
        torch_save(state, file)

    def full_replace(source: Any, target: Any) -> None:
        if Path(target).name == "last.pt" and is_second("os.replace"):
            disk_full()
        os_replace(source, target)

    def full_copy(source: Any, target: Any) -> None:
        if is_second("copyfile"):
            Path(target).write_bytes(b"half of a checkpoint")
            disk_full()
        copyfile(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full_save)
        patch.setattr(os, "replace", full_replace)
        patch.setattr(shutil, "copyfile", full_copy)
        message = workplace.fails(RunError, *workplace.arguments("toy"))
    run = workplace.folder / "runs" / "toy"
    assert "No space left" in message and "--resume" in message
    epoch = {
        name: torch.load(run / "checkpoints" / f"{name}.pt", weights_only=True)["epoch"]
        for name in ("last", "best")
    }
    assert epoch["last"] == 1 or where == "copyfile"
    # Half a file is not left lying about
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
        "best.pt",
        "last.json",
        "last.pt",
    ]
    workplace.resume(run)
    assert repeatable(run) == repeatable(finished_run)
    assert learned(run) == learned(finished_run)
    finished = torch.load(finished_run / "checkpoints" / "best.pt", weights_only=True)
    assert (
        torch.load(run / "checkpoints" / "best.pt", weights_only=True)["epoch"] == finished["epoch"]
    )


def test_a_full_disk_under_the_agent_folder_is_said_in_words_too(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("runtime.model_folder.save_file", disk_full)
        assert "No space left" in workplace.fails(
            RunError, *workplace.arguments("toy", "--train.epochs", "1")
        )


def test_a_spent_budget_stops_the_run_and_a_higher_one_goes_on(
    finished_run: Path, workplace: Workplace
) -> None:
    needed = read_metrics(finished_run)[-2]["pool/generated"]
    message = workplace.fails(
        BudgetError, *workplace.arguments("toy", "--train.max_expert_calls", str(needed * 2 // 3))
    )
    assert f"train.max_expert_calls = {needed * 2 // 3}" in message and "--resume" in message
    assert len(AnswerStore(workplace.store)) <= needed * 2 // 3
    run = workplace.resume(workplace.folder / "runs" / "toy", "--train.max_expert_calls", "100000")
    assert repeatable(run) == repeatable(finished_run)


def test_resuming_on_the_same_budget_does_not_spend_it_again(
    finished_run: Path, workplace: Workplace
) -> None:
    workplace.fails(BudgetError, *workplace.arguments("toy", "--train.max_expert_calls", "20"))
    spent = len(AnswerStore(workplace.store))
    workplace.fails(BudgetError, "--resume", "runs/toy")
    assert spent <= len(AnswerStore(workplace.store)) <= 20


def test_a_missing_encoder_names_the_command_that_gets_one(workplace: Workplace) -> None:
    assert "python scripts/get_small_llms.py minilm" in workplace.fails(
        AgentError, *workplace.arguments("toy", "--agent.encoder", "no/such-encoder")
    )
    workplace.train("toy", "--train.epochs", "1")  # and the name is still free


def test_a_collapsed_policy_is_named_in_words() -> None:
    figures = {"eval/first/small": 0.03, "eval/first/large": 0.97}
    warning = collapse_warning(figures, ["small", "large"])
    assert "collapsed" in warning and "97%" in warning and "large" in warning
    assert (
        collapse_warning({"eval/first/small": 0.1, "eval/first/large": 0.9}, ["small", "large"])
        is None
    )
    assert collapse_warning({"eval/first/only": 1.0}, ["only"]) is None


def test_the_agent_learns_whom_to_ask(
    config_path: Path, make_pool: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Expert e answers its word, and passes off a wrong answer for everything else
    words = (
        "sum",
        "capital",
        "spell",
    )

    def specialist(word: str) -> Callable[[str, str | None], str]:
        return lambda question, previous: "yes" if question.split()[0] == word else "no"

    def rows(letters: str) -> list[dict[str, Any]]:
        return [
            {"text": f"{word} {a} {b}", "reference": "yes", "task": word}
            for word in words
            for a in letters
            for b in "uvwxyz"
        ]

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        training_trainer, "build_pool", lambda *_: make_pool([specialist(word) for word in words])
    )
    data = {
        name: {"path": write_jsonl(tmp_path / f"{name}.jsonl", rows(letters))}
        for name, letters in {"train": "abcdefgh", "validation": "ijkl", "test": "mn"}.items()
    }
    settings = load_config(config_path).model_dump(mode="json", exclude={"name"}) | {
        "data": data,
        "reward": {"alpha": 0.02},
    }
    settings["train"] |= {
        "epochs": 3,
        "updates_per_epoch": 4,
        "episodes_per_update": 48,
        "num_envs": 16,
    }
    settings["ppo"] |= {"lr": 0.01, "repeats": 4, "batch_size": 32}
    settings["terminator"] |= {"steps": 1000}
    run = train_ppo_multi.main(
        ["--config", str(dump_yaml(tmp_path / "easy.yaml", settings)), "--name", "easy"]
    )
    validated = [record for record in read_metrics(run) if "eval/return" in record]
    # Always asking one expert, once or again and again, is right for a third of the questions: 1/3
    # - .02 x 1 at best. Asking the right one at once returns 1 - .02 x (1 + 2 + 3) / 3 = .96.
    assert validated[-1]["eval/return"] > 0.8
    assert validated[-1]["eval/return"] <= 0.96 + 1e-9
    # And the Terminator knows a right answer when it sees one
    assert validated[-1]["eval/calls"] < 1.5


ROW_KEYS = {
    "policy",
    "role",
    "validation_return",
    "kind",
    "quality",
    "return",
    "calls",
    "charge",
    "cost",
    "overhead",
    "vs_best_single",
    "by_task",
    "by_seed",
}
COMPARISON_KEYS = {
    "a",
    "b",
    "measure",
    "diff",
    "lo",
    "hi",
    "p",
    "p_adjusted",
    "wins",
    "ties",
    "losses",
    "verdict",
    "covers",
}
KINDS = {"der", "single", "static", "random", "cascade", "learned", "ensemble", "oracle"}


def test_the_evaluation_writes_the_promised_results(results: dict[str, Any]) -> None:
    assert {
        k: results[k]
        for k in ("version", "split", "num_questions", "seeds", "reward", "alpha", "cost_unit")
    } == {
        "version": VERSION,
        "split": "test",
        "num_questions": NUM_TEST,
        "seeds": [0],
        "reward": "final",
        "alpha": 0.01,
        "cost_unit": "billion parameters",
    }
    for row in results["rows"]:
        assert row.keys() == ROW_KEYS and row["kind"] in KINDS
        assert all(
            row[name].keys() == {"mean", "lo", "hi"}
            and row[name]["lo"] <= row[name]["mean"] <= row[name]["hi"]
            for name in ("quality", "return", "calls")
        )
        assert row["cost"].keys() == {
            "params_b",
            "flops",
            "prompt_tokens",
            "completion_tokens",
            "latency_s",
            "usd",
        }
        assert row["overhead"].keys() == {"params_b", "flops", "latency_s"}
        assert row["vs_best_single"].keys() == {"diff", "lo", "hi", "verdict"}
        assert row["return"]["mean"] == pytest.approx(
            row["quality"]["mean"] - 0.01 * row["cost"]["params_b"]
        )
    by_name = {row["policy"]: row for row in results["rows"]}
    assert len(by_name) == len(results["rows"]) and results["rows"][0]["kind"] == "der"
    # By construction each expert alone is right on its third of the questions, one of them always.
    assert [by_name[name]["quality"]["mean"] for name in NAMES] == pytest.approx([1 / 3] * 3)
    assert [by_name[name]["cost"]["params_b"] for name in NAMES] == [1.0, 2.0, 3.0]
    assert next(row for row in results["rows"] if row["kind"] == "oracle")["quality"]["mean"] == 1.0
    assert by_name["per-task lookup"]["quality"]["mean"] == 1.0 and by_name["per-task lookup"][
        "cost"
    ]["params_b"] == pytest.approx(2.0)
    assert by_name["DER"]["overhead"]["params_b"] > 0 == by_name["r0"]["overhead"]["params_b"]
    assert {c["b"] for c in results["comparisons"] if c["a"] == "DER"} == {
        row["policy"] for row in results["rows"] if row["kind"] in ("static", "random")
    }
    for comparison in results["comparisons"]:
        expected = (
            by_name[comparison["a"]][comparison["measure"]]["mean"]
            - by_name[comparison["b"]][comparison["measure"]]["mean"]
        )
        assert comparison["diff"] == pytest.approx(expected)


def test_a_report_is_not_replaced_unasked_by_one_of_other_settings(
    results: dict[str, Any], finished_run: Path
) -> None:
    for option, changed in (("--env.t_max=1", "env"), ("--eval.use_terminator=false", "eval")):
        with pytest.raises(
            ConfigError,
            match=(
                rf"/report is of other settings \({changed}\): keep it and give this one --out"
                r" FOLDER"
            ),
        ):
            test_ppo_multi.main(["--run", str(finished_run), option])
    assert read_results(finished_run / "report" / "results.json") == results


def test_comparisons_and_routes_are_written_as_designed(results: dict[str, Any]) -> None:
    assert {
        "oracle",
        "terminator",
        "routes",
        "summary",
        "notes",
        "tradeoff",
        "experts",
    } <= results.keys()
    for comparison in results["comparisons"]:
        assert comparison.keys() == COMPARISON_KEYS
        assert comparison["wins"] + comparison["ties"] + comparison["losses"] == NUM_TEST


def test_every_test_question_is_played_once_by_every_policy(
    results: dict[str, Any], finished_run: Path, config_path: Path
) -> None:
    records = [
        json.loads(line) for line in (finished_run / "routes.jsonl").read_text().splitlines()
    ]
    test = [
        json.loads(line)
        for line in Path(load_config(config_path).data.test.path).read_text().splitlines()
    ]
    played = Counter((record["policy"], record["question"]) for record in records)
    assert played == Counter(
        {(row["policy"], question["id"]): 1 for row in results["rows"] for question in test}
    )
    references = {question["id"]: question["reference"] for question in test}
    for record in records:
        assert record["split"] == "test" and record["seed"] == 0
        assert [step["quality"] for step in record["steps"]] == [
            float(normalise(step["answer"]) == references[record["question"]])
            for step in record["steps"]
        ]
        assert record["quality"] == record["steps"][record["submitted"]]["quality"]
    for row in results["rows"]:
        assert np.mean(
            [r["quality"] for r in records if r["policy"] == row["policy"]]
        ) == pytest.approx(row["quality"]["mean"])
    der = [record for record in records if record["policy"] == "DER"]
    threshold = results["terminator"]["threshold"]
    for record in der:  # the Terminator's word ends the route, and nothing else does before T_max
        assert [step["p_stop"] >= threshold for step in record["steps"][:-1]] == [False] * (
            len(record["steps"]) - 1
        )
        assert record["stop_reason"] == (
            "satisfied" if record["steps"][-1]["p_stop"] >= threshold else "t_max"
        )


def test_the_constant_choice_best_in_return_is_played_where_it_is_another(
    finished_run: Path,
) -> None:
    evaluation = Evaluation([finished_run], ["--reward.alpha=1"])
    evaluation.best_expert = (
        1  # in quality; with costs of 1, 2 and 3 no other than r0 is best in return
    )
    assert [played.policy for played in itertools.islice(evaluation.played(), 3)] == [
        "DER",
        "best fixed: r1",
        "best fixed in return: r0",
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--data.test.limit=1"],
            r"data.test: 1 question\(s\): the report's intervals need two or more",
        ),
        (["--agent.max_tokens=99"], "another agent.max_tokens"),
        (["--seed=7"], "another seed"),
        (["--env.t_max=9"], "trained for 2 calls at most"),
        # A training's budget is no matter of its evaluation
        (
            ["--eval.full=true", "--eval.max_tree_calls=9", "--train.max_expert_calls=5"],
            "max_tree_calls is 9",
        ),
        (
            ["--reprice", "tokens", "--env.p0", "0.2"],
            "--env: routes that were played are only priced again",
        ),
    ],
)
def test_what_an_evaluation_cannot_change_is_refused(
    results: dict[str, Any], finished_run: Path, arguments: list[str], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        test_ppo_multi.main(["--run", str(finished_run), *arguments])


def test_a_run_that_is_not_there_is_named_with_those_that_are(finished_run: Path) -> None:
    with pytest.raises(
        run_folder.RunError,
        match=(
            rf"none: no run there \(config.yaml is missing\); runs in {finished_run.parent}/: toy"
        ),
    ):
        test_ppo_multi.main(["--run", str(finished_run.parent / "none")])


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[str, ...]]]:
    """What scripts/experiment.py runs, in this process instead of one of its own."""
    run: list[tuple[str, tuple[str, ...]]] = []
    mains = {"train_ppo_multi.py": train_ppo_multi.main, "test_ppo_multi.py": test_ppo_multi.main}

    def in_process(script: str, *arguments: str) -> None:
        run.append((script, arguments))
        mains[script](list(arguments))
        gc.collect()

    monkeypatch.setattr(experiment, "_python", in_process)
    return run


def sweep_command(workplace: Workplace, name: str, sweep: str) -> list[str]:
    options = ["--config", str(workplace.config_path), "--name", name, "--seeds", "0"]
    more = ["--pool.store", str(workplace.store), "--train.epochs", "1"]
    return [*options, "--sweep", sweep, *more]


def test_a_sweep_of_alpha_trains_what_is_missing_and_reports_curves(
    workplace: Workplace, commands: list
) -> None:
    command = sweep_command(workplace, "alphas", "reward.alpha=0.3,0.01")
    experiment.main(command)
    folder = workplace.folder / "runs/alphas"
    results = read_results(folder / "report/results.json")
    curves = results["curves"]
    assert curves["alphas"] == [0.01, 0.3] and curves["bounds"] == [1.0, 3.0]
    assert (curves["cheapest"], curves["most_expensive"]) == ("r0", "r2")
    assert curves["rows"][0]["role"] == "der"
    # Each alpha has a report of its own, with rules that were chosen for it.
    for alpha in (0.01, 0.3):
        own = read_results(folder / f"alpha_{alpha}" / "report/results.json")
        assert own["alpha"] == alpha and "curves" not in own
        rows = {row["policy"]: row for row in own["rows"]}
        for row in curves["rows"]:
            point = row["points"][curves["alphas"].index(alpha)]
            assert point["quality"] == pytest.approx(rows[point["policy"]]["quality"]["mean"])
            assert point["return"] == rows[point["policy"]]["return"]
    assert (folder / "report/curves.png").is_file()
    # What alphas share is found once, and gives what an evaluation of its own gives.
    run = workplace.folder / "runs" / "alphas-0.3-s0"
    store = ["--pool.store", str(workplace.store)]
    alone = ["--run", str(run), "--out", str(workplace.folder / "alone"), *store]
    expected = read_results(test_ppo_multi.main(alone))
    shared = read_results(folder / "alpha_0.3/report/results.json")
    for row, other in zip(shared["rows"], expected["rows"], strict=True):
        assert row["policy"] == other["policy"]
        assert row["return"] == pytest.approx(other["return"])
        assert row["validation_return"] == other["validation_return"]
    scripts = [script for script, _ in commands]
    assert scripts == ["train_ppo_multi.py"] * 2 + ["test_ppo_multi.py"]
    commands.clear()
    experiment.main(command)
    assert [script for script, _ in commands] == ["test_ppo_multi.py"]  # trained before
    with pytest.raises(
        ConfigError, match=r"alphas-0\.3-s0 was trained with other settings \(ppo\)"
    ):
        experiment.main([*command, "--ppo.lr", "0.5"])
    runs = [str(workplace.folder / "runs" / f"alphas-{value}-s0") for value in ("0.3", "0.01")]
    out = ["--out", str(folder)]
    with pytest.raises(
        ConfigError,
        match=r"alphas-0\.01-s0 was trained with reward\.alpha = 0\.01, which --alphas 0\.1,0\.3",
    ):
        test_ppo_multi.main(["--alphas", "0.3,0.1", "--run", *runs, *out])
    with pytest.raises(ConfigError, match=r"alpha 0\.2 has runs of the seeds none"):
        test_ppo_multi.main(["--alphas", "0.01,0.2,0.3", "--run", *runs, *out])


@pytest.mark.parametrize("text", ["0.1", "0,x", "0.1,0.1", "-1,0"])
def test_alphas_that_make_no_curve_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=f"--alphas {text}: expected"):
        test_ppo_multi.main([f"--alphas={text}"])


def test_a_sweep_of_another_setting_puts_all_values_into_one_trade_off(
    workplace: Workplace, commands: list
) -> None:
    command = sweep_command(workplace, "rates", "ppo.lr=0.02,0.01")
    experiment.main(command)
    results = read_results(workplace.folder / "runs/rates/report/results.json")
    points = [point for point in results["tradeoff"]["points"] if point["kind"] == "der"]
    assert [point["value"] for point in points] == ["0.02", "0.01"]
    assert results["tradeoff"]["setting"] == "ppo.lr"
    assert results["tradeoff"]["bounds"] == [1.0, 3.0]
    # The configuration's own value gives the table.
    assert results["evaluation"]["config"]["ppo"]["lr"] == 0.01
    scripts = [script for script, _ in commands]
    assert scripts == ["train_ppo_multi.py", "test_ppo_multi.py"] * 2


def test_a_mistake_in_a_sweep_is_told_before_anything_is_trained(
    workplace: Workplace, commands: list
) -> None:
    with pytest.raises(ConfigError, match=r"expected KEY=VALUE,VALUE"):
        experiment.main(sweep_command(workplace, "typo", "reward.alpha"))
    with pytest.raises(ConfigError, match="did you mean 'alpha'"):
        experiment.main(sweep_command(workplace, "typo", "reward.alpah=1,2"))
    with pytest.raises(ConfigError, match=r"--reward\.alpha = '0\.x'"):
        experiment.main(sweep_command(workplace, "typo", "reward.alpha=0.5,0.x"))
    assert not commands  # refused before 0.5 is trained
    with pytest.raises(ConfigError, match=r"--name = '\.\./alphas'"):
        experiment.main(["--config", str(workplace.config_path), "--name", "../alphas"])
    assert experiment.one_part("models/all-MiniLM-L6-v2") == "models_all-MiniLM-L6-v2"
    assert experiment.parse_sweep("agent.hidden_sizes=[16, 16],[8]") == (
        "agent.hidden_sizes",
        ["[16, 16]", "[8]"],
    )


def test_the_last_line_of_a_command_stands_without_the_progress_bar_before_it() -> None:
    said = "epoch 1:  10%|#   | 1/10\repoch 1:  20%|##  | 2/10error: no space left\n"
    assert experiment.last_line("bar 10%\rbar 20%\nerror: no space left\n") == "no space left"
    assert experiment.last_line(said).endswith("error: no space left")
    assert experiment.last_line(" \n") == "it said nothing"


def test_the_transfer_audit_needs_no_route_trees(
    finished_run: Path, workplace: Workplace, tmp_path: Path
) -> None:
    alone = ["--eval.transfer", "true", "--eval.max_tree_calls", "1"]
    arguments = ["--run", str(finished_run), "--out", str(tmp_path), *alone]
    results = read_results(test_ppo_multi.main([*arguments, "--pool.store", str(workplace.store)]))
    pairs = results["transfer"]["pairs"]
    assert {(pair["first"], pair["second"]) for pair in pairs} == {
        (a, b) for a in NAMES for b in NAMES
    }
    for pair in pairs:
        means = {name: span["mean"] for name, span in pair["variants"].items()}
        gain = pair["gains"]["none"]["diff"]
        assert gain == pytest.approx(means["previous"] - means["none"])
    assert "optimum (hindsight)" not in {row["policy"] for row in results["rows"]}
    with pytest.raises(ConfigError, match="could need"):  # the best pair is found in trees
        test_ppo_multi.main([*arguments, "--eval.composition_tasks", "[spell]"])


def test_runs_that_do_not_belong_together_are_refused(
    finished_run: Path, workplace: Workplace, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="several runs need --out"):
        test_ppo_multi.main(["--run", str(finished_run), str(finished_run)])
    with pytest.raises(RunError, match="the same seed"):
        test_ppo_multi.main(
            ["--run", str(finished_run), str(finished_run), "--out", str(tmp_path / "out")]
        )
    other = tmp_path / "runs" / "other"
    shutil.copytree(finished_run, other)
    settings = yaml.safe_load((other / "config.yaml").read_text()) | {"seed": 5}
    settings["reward"]["alpha"] = 0.3
    dump_yaml(other / "config.yaml", settings)
    with pytest.raises(RunError, match=r"differs from .* in reward\.alpha"):
        test_ppo_multi.main(
            ["--run", str(finished_run), str(other), "--out", str(tmp_path / "out")]
        )


def test_trees_that_would_cost_too_much_are_refused_before_anything_is_asked(
    finished_run: Path, workplace: Workplace
) -> None:
    # 12 questions x (3 + 9)
    with pytest.raises(
        ConfigError, match=r"could need 144 expert calls, eval\.max_tree_calls is 100"
    ):
        test_ppo_multi.main(
            [
                "--run",
                str(finished_run),
                "--out",
                "out",
                "--eval.full",
                "true",
                "--eval.max_tree_calls",
                "100",
                "--pool.store",
                str(workplace.store),
            ]
        )


def test_asking_one_question_shows_its_route(
    finished_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ask.main(["--run", str(finished_run), " spell lantern "])
    shown = capsys.readouterr().out.splitlines()
    assert (
        shown[0].startswith("1. r")
        and "stop probability" in shown[1]
        and shown[-2].startswith("stopped: ")
        and shown[-1].startswith("answer: ")
    )
    typed = iter(["spell lantern", ""])
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed))
    ask.main(["--run", str(finished_run)])
    assert capsys.readouterr().out.splitlines() == shown


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--file", "x", "why?"], "two things to ask"),
        (["--out", "x", "why?"], "--out is for"),
        (["  "], "question is empty"),
        (["why?", "--env.t_max=9"], "trained for 2 calls at most"),
        (["why?", "--agent.max_tokens=99"], "another agent.max_tokens"),
    ],
)
def test_ask_ignores_nothing_it_is_given(
    finished_run: Path, arguments: list[str], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        ask.main(["--run", str(finished_run), *arguments])


def test_a_file_of_questions_is_routed_without_references(
    finished_run: Path, tmp_path: Path
) -> None:
    source = write_jsonl(
        tmp_path / "in.jsonl",
        [
            {"text": "sum of q"},
            {"id": "mine", "text": "spell\nover two lines"},
            {"text": "sum of q", "task": "t"},
        ],
    )
    ask.main(
        ["--run", str(finished_run), "--file", source, "--out", str(tmp_path / "new" / "out.jsonl")]
    )
    routed = [
        json.loads(line) for line in (tmp_path / "new" / "out.jsonl").read_text().splitlines()
    ]
    assert [line["text"] for line in routed] == [
        "sum of q",
        "spell\nover two lines",
        "sum of q",
    ] and routed[1]["id"] == "mine"
    for line in routed:
        assert line.keys() == {
            "id",
            "text",
            "answer",
            "expert",
            "calls",
            "params_b",
            "p_stop",
            "route",
        }
        assert (
            line["calls"] == len(line["route"])
            and line["answer"] == line["route"][-1]["answer"]
            and line["expert"] in NAMES
        )
        assert line["params_b"] == pytest.approx(
            sum(NAMES.index(step["expert"]) + 1 for step in line["route"])
        )


def test_ask_takes_settings_as_key_equals_value_so_that_a_value_is_not_mistaken_for_the_question(
    finished_run: Path,
) -> None:
    with pytest.raises(ConfigError, match=r"--key=value"):
        ask.main(["--run", str(finished_run), "--threads", "1", "what is left?"])
