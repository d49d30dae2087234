"""A run and a store that version 0.1 wrote (commit c483926): they are read, or refused in words.

fixtures/run_0.1 is a run on recorded answers with an encoder of a few thousand parameters.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import test_ppo_multi
from backends.answer_store import AnswerStore
from report.schema import read_results
from runtime.command_line import load_config
from runtime.run_folder import num_epochs
from scripts import ask

OLD = Path(__file__).parent / "fixtures" / "run_0.1"


@pytest.fixture
def old_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run in a folder of its own, laid out as it was."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(OLD / "encoder", "encoder")
    shutil.copytree(OLD / "run", "runs/old")
    shutil.copyfile(OLD / "recorded.jsonl", "recorded.jsonl")
    shutil.copyfile(OLD / "answers.store", "runs/answers.sqlite")
    return Path("runs/old")


def test_a_run_of_version_0_1_keeps_its_prices(old_run: Path) -> None:
    reward = load_config(old_run / "config.yaml").reward
    # config.yaml says cost: params and cost_scale: 1.0, which are billions of parameters
    assert reward.cost_unit == "billion parameters"
    assert num_epochs(old_run) == 0  # its epoch stood in a checkpoint, which is not here


def test_an_agent_of_version_0_1_answers(old_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ask.main(["what is test 0", "--run", str(old_run)])
    assert "answer: " in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_of_version_0_1_is_evaluated(old_run: Path) -> None:
    results = read_results(test_ppo_multi.main(["--run", str(old_run)]))
    assert results["num_questions"] == 4
    assert (old_run / "report" / "report.html").is_file()


def test_answers_of_version_0_1_are_found(old_run: Path) -> None:
    store = AnswerStore("runs/answers.sqlite")
    store.check()
    num_before = len(store)
    assert num_before > 0
    ask.main(["what is validation 0", "--run", str(old_run)])  # its validation asked the same
    assert len(AnswerStore("runs/answers.sqlite")) == num_before
