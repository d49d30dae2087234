"""scripts/fuzz.py: damaged files are read or refused in words, and a fault would be seen."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from backends.answer_store import AnswerStore
from runtime.errors import RunError
from scripts import fuzz
from scripts.support import mutations
from scripts.support.confined import OutsideError, confined

pytestmark = pytest.mark.slow


def test_damaged_files_of_every_kind_are_read_or_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    here = Path.cwd()
    fuzz.main(["--mutations", "120", "--seed", "5"])
    lines = capsys.readouterr().out.splitlines()
    kinds = ["yaml", "questions", "recorded", "runs", "stores", "models", "routes"]
    assert [line.split()[0] for line in lines] == kinds
    assert all("0 faults, 0 hangs" in line for line in lines)
    assert Path.cwd() == here


def test_a_fault_and_a_hang_are_seen_and_can_be_had_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[Path] = []

    def broken(path: Path, error: type[Exception]) -> dict[str, object]:
        calls.append(path)
        while len(calls) == 1:
            pass
        raise (RunError if len(calls) % 2 else KeyError)("found nothing")

    class FewFiles(fuzz.Workshop):
        def __init__(self, folder: Path):
            self.case = folder / "case"
            self.kinds = {"runs": (1.0, lambda rng: broken(folder, RunError))}

        def check_good_files(self) -> None:
            """There are none."""

    monkeypatch.setattr(fuzz, "Workshop", FewFiles)
    monkeypatch.setattr(fuzz, "HANG_S", 0.2)
    with pytest.raises(SystemExit) as ended:
        fuzz.main(["--mutations", "4"])
    assert ended.value.code == 1
    said = capsys.readouterr().out
    assert "4 mutations: 0 read, 1 refused, 2 faults, 1 hangs" in said
    assert "runs:1 KeyError: 'found nothing'; again: python scripts/fuzz.py --seed 0" in said
    fuzz.main(["--only", "runs:1"])
    assert "RunError" not in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".yaml", ".bin"])
def test_a_mutation_is_drawn_from_its_seed_alone_and_changes_something(
    tmp_path: Path, suffix: str
) -> None:
    def mutated(number: int) -> bytes | None:
        path = tmp_path / f"{number}{suffix}"
        path.write_bytes(b'{"a": 1, "b": [1, 2, {"c": "text"}]}\n')
        mutations.mutate_file(path, random.Random(number))
        return path.read_bytes() if path.is_file() else None

    first = [mutated(number) for number in range(50)]
    for number in range(50):
        if (tmp_path / f"{number}{suffix}").is_dir():
            (tmp_path / f"{number}{suffix}").rmdir()
    assert [mutated(number) for number in range(50)] == first
    assert len(set(first)) > 25


@pytest.mark.parametrize("place", ["absolute", "relative", "through a link"])
def test_what_a_damaged_setting_names_outside_its_folder_is_not_written(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    (inside / "link").symlink_to(outside)
    monkeypatch.chdir(inside)
    folders = {"absolute": outside, "relative": Path("../outside"), "through a link": Path("link")}
    folder = folders[place]
    with confined(inside):
        with pytest.raises(OutsideError, match="outside of"):
            AnswerStore(folder / "runs" / "answers.sqlite")
        with pytest.raises(OutsideError, match="outside of"):
            AnswerStore(folder / "answers.sqlite")
        with pytest.raises(OutsideError, match="outside of"):
            (folder / "note.txt").write_text("x")
        AnswerStore(inside / "runs" / "answers.sqlite").close()
    assert list(outside.iterdir()) == []
    AnswerStore(outside / "answers.sqlite").close()
    assert (outside / "answers.sqlite").is_file()
