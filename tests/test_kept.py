"""What was found in texts is found once, and by the next command as well."""

from __future__ import annotations

import errno
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from belief.outcome_model import count_texts, counted
from evaluation.kept import kept_readings
from metrics.agreement import compared, group_answers
from metrics.mathematics import same_expression
from metrics.registry import get_metric
from questions import Question
from runtime.remembered import Remembered

ANSWERS = ["$xy+x$", "$x(y+1)$", "nothing I can name", "$x+y$", "$xy+x$"]
PAIRS = [{"xy+x", "x(y+1)"}, {"xy+x", "x+y"}]  # x+y opens a group after comparing with the first


@pytest.fixture
def comparisons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """The pairs of readings that metric `math` was made to compare; all are worth keeping."""
    monkeypatch.setattr("evaluation.kept.READINGS", tmp_path)
    monkeypatch.setattr("evaluation.kept.WORTH_KEEPING", 1)
    made = []

    def same(a: str, b: str) -> bool:
        made.append({a, b})
        return same_expression(a, b)

    metric = replace(get_metric("math"), same=same)
    monkeypatch.setattr("metrics.agreement.get_metric", lambda name: metric)
    forget()
    return made


def forget() -> None:
    """As a new process begins."""
    compared.clear()
    counted.clear()


def groups(metric: str = "math") -> list[int | None]:
    with kept_readings():
        return group_answers(metric, ANSWERS)


def test_a_pair_is_compared_once_and_not_again_by_the_next_command(
    comparisons: list[set[str]],
) -> None:
    assert groups() == [0, 0, None, 1, 0]
    assert comparisons == PAIRS
    forget()
    assert groups() == [0, 0, None, 1, 0]
    assert group_answers("math", [ANSWERS[3], ANSWERS[0]]) == [0, 1]  # in another order
    assert comparisons == PAIRS


def test_a_damaged_file_costs_time_only(comparisons: list[set[str]], tmp_path: Path) -> None:
    groups()
    (path,) = tmp_path.glob("compared-*.npz")
    whole = np.load(path)
    others = io.BytesIO()
    np.savez(others, other=whole["found"])
    unequal = io.BytesIO()
    np.savez(unequal, digests=whole["digests"][:1], found=whole["found"])
    damaged = (path.read_bytes()[:50], b"", b"no archive", others.getvalue(), unequal.getvalue())
    for data in damaged:
        path.write_bytes(data)
        forget()
        assert groups() == [0, 0, None, 1, 0]
    assert comparisons == PAIRS * 6
    forget()
    groups()
    assert comparisons == PAIRS * 6  # the file is whole again


def test_a_full_disk_costs_no_result(
    comparisons: list[set[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("evaluation.kept.write_atomically", full)
    assert groups() == [0, 0, None, 1, 0]
    assert "is not kept for the next command" in capsys.readouterr().err


def test_code_that_changed_reads_again(
    comparisons: list[set[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    groups()
    forget()
    monkeypatch.setattr("evaluation.kept._code_digest", lambda: "of other code")
    groups()
    assert comparisons == PAIRS * 2


def test_what_a_metric_of_ones_own_says_is_not_kept(comparisons: list[set[str]]) -> None:
    assert groups("my.module:metric") == [0, 0, None, 1, 0]
    groups("my.module:metric")
    assert comparisons == PAIRS  # within a command it is
    forget()
    groups("my.module:metric")
    assert comparisons == PAIRS * 2


def test_what_two_commands_read_at_the_same_time_is_kept_of_both(
    comparisons: list[set[str]],
) -> None:
    with kept_readings():
        group_answers("math", ANSWERS[:2])
        of_this = compared.lasting()
        forget()
        with kept_readings():  # another command begins and ends meanwhile
            group_answers("math", ANSWERS[2:])
        forget()
        compared.recall(*of_this)
    forget()
    groups()
    assert comparisons == PAIRS


def test_what_is_counted_in_answers_is_kept_to_the_last_digit(
    comparisons: list[set[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    question = Question("q", "What is 7 * 8 + 1/3?", metric="math")
    with kept_readings():
        fresh = count_texts([question] * len(ANSWERS), ANSWERS)
    forget()
    monkeypatch.setattr("belief.outcome_model.answer_features", None)  # would fail
    with kept_readings():
        again = count_texts([question] * len(ANSWERS), ANSWERS)
    assert (again == fresh).all()


def test_an_error_loses_nothing_that_was_read(comparisons: list[set[str]]) -> None:
    with pytest.raises(ZeroDivisionError), kept_readings():
        group_answers("math", ANSWERS)
        1 / 0  # noqa: B018
    forget()
    groups()
    assert comparisons == PAIRS


def test_a_full_memory_begins_anew() -> None:
    memory = Remembered(limit=2)
    for text in ("a", "b", "c"):
        memory.find((text,), lambda: np.zeros(1))
    assert len(memory) == 1
    assert memory.find(("c",), lambda: np.ones(1)) == 0.0
    assert memory.find(("a",), lambda: np.ones(1)) == 1.0
    memory.recall(*memory.lasting())  # what is there already needs no room
    assert len(memory) == 2


def test_boundaries_of_texts_count() -> None:
    memory = Remembered(limit=9)
    memory.find(("ab", "c"), lambda: np.zeros(1))
    assert memory.find(("a", "bc"), lambda: np.ones(1)) == 1.0
    assert memory.find(("ab", "c"), lambda: np.ones(1)) == 0.0
