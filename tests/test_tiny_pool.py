"""The embedded pool is the test bed that data/README.md says it is."""

import json

import numpy as np
import pytest

from scripts.build_tiny_pool import SEED, SPLITS, check_pool
from scripts.support.tiny_check import Measured, chain_gains, failures
from scripts.support.tiny_tasks import CELLS, make_questions

pytestmark = pytest.mark.slow


def test_every_bound_holds_on_freshly_generated_questions(tiny_pool_dir, project, monkeypatch):
    monkeypatch.chdir(project)
    table = check_pool(seed=3)  # raises BoundsError naming what does not hold
    assert all(f"| {cell} (" in table for cell in CELLS)


def test_the_question_files_are_what_the_builder_makes_and_share_no_text(project):
    made = make_questions(SEED, SPLITS)
    texts = {split: {record["text"] for record in records} for split, records in made.items()}
    for split, records in made.items():
        lines = (project / "data" / "tiny_questions" / f"{split}.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in lines] == records
    assert not texts["train"] & texts["test"]
    assert not texts["train"] & texts["validation"]
    assert not texts["validation"] & texts["test"]
    assert len(texts["train"]) >= 2000
    assert len(texts["validation"]) >= 400
    assert len(texts["test"]) >= 600
    assert len({cell.family for cell in CELLS.values()}) >= 6


def measured(quality: np.ndarray, second: float, swapped: float) -> Measured:
    """Two experts, four simple questions of one family and two chained ones that no single call
    answers.
    """
    tasks = np.array(["spell_backward"] * 4 + ["decrypt_backward", "convert_backward"])
    chained = np.array([False] * 4 + [True] * 2)
    pairs = np.full((2, 2, 2), second)
    return Measured(
        ["small", "large"],
        np.array([0.1, 0.5]),
        tasks,
        tasks,
        quality,
        quality - 0.01 * np.array([[1], [5]]),
        chained,
        pairs,
        np.full((2, 2, 2), swapped),
    )


def test_a_fair_pool_passes_and_each_bound_is_missed_in_words():
    # Each expert right on half of the simple questions: best single 2 / 6 = 0.33, best choice 4 / 6
    # = 0.67 (below 0.85: too few simple ones here).
    fair = np.array([[1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0]], dtype=float)
    assert failures(measured(fair, 0.9, 0.0)) == [
        "the best one-call choice per question has quality 0.667, below 0.85"
    ]
    assert chain_gains(measured(fair, 0.9, 0.0)) == [
        ("decrypt_backward", 0.9, 0.0),
        ("convert_backward", 0.9, 0.0),
    ]
    decoy = np.array([[1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0]], dtype=float)
    assert any("decoy" in line for line in failures(measured(decoy, 0.9, 0.0)))
    assert any("family decides alone" in line for line in failures(measured(decoy, 0.9, 0.0)))
    assert any("above 0.60" in line for line in failures(measured(decoy, 0.9, 0.0)))
    assert sum("less than 0.10" in line for line in failures(measured(fair, 0.05, 0.0))) == 2
    assert sum("does not vanish" in line for line in failures(measured(fair, 0.9, 0.5))) == 2


@pytest.mark.parametrize("name", CELLS)
def test_reference_answers_are_right_by_plain_python(name, project):
    lines = (project / "data" / "tiny_questions" / "test.jsonl").read_text().splitlines()
    questions = [
        q for q in map(json.loads, lines) if q["id"].split("-", 1)[1].rsplit("-", 1)[0] == name
    ]
    assert questions
    for question in questions[:20]:
        assert solve(question["task"], question["text"]) == question["reference"]


def shift(text: str) -> str:
    return "".join(chr((ord(c) - ord("A") - 3) % 26 + ord("A")) if c.isalpha() else c for c in text)


def solve(task: str, text: str) -> str:
    if task == "word_sequence_reversal":
        return ", ".join(text.split("words: ")[1].split(", ")[::-1])
    if task == "base_conversion":
        number, base = text.split("number ")[-1].split(" to ")
        return f"{int(number, 4):b}" if base == "binary" else np.base_repr(int(number, 2), 4)
    payload = text.split(": ")[-1].split(". ")[0]
    if task == "convert_backward":
        return f"{int(payload, 4):b}"[::-1]
    return {
        "spell_backward": payload[::-1],
        "caesar_cipher": shift(payload),
        "decrypt_backward": shift(payload)[::-1],
    }[task]
