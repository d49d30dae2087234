"""Recorded answers for tests and measurements: three kinds of questions of five levels, which their
text shows, and experts that reach as far as their skill.

python tests/recordings.py OUT.jsonl [NUM_QUESTIONS]    # four experts
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TASKS = ("add", "reverse", "last")
SKILLS = {  # expert -> the hardest level it gets right, by task
    "small": {"add": 2, "reverse": 2, "last": 2},
    "adder": {"add": 5, "reverse": 0, "last": 1},
    "speller": {"add": 0, "reverse": 5, "last": 3},
    "large": {"add": 4, "reverse": 4, "last": 5},
}
CHEAP_AND_DEAR = {
    "cheap": {"add": 3, "reverse": 2, "last": 1},
    "dear": {"add": 5, "reverse": 5, "last": 4},
}
# A level's answer is that many tokens times its level long
TOKENS = {
    "small": 20,
    "adder": 30,
    "speller": 30,
    "large": 60,
    "cheap": 40,
    "dear": 100,
}


def make_question(task: str, level: int, rng: random.Random) -> tuple[str, str]:
    """A question and its answer; a higher level is longer."""
    if task == "add":
        numbers = [rng.randint(2, 99) for _ in range(level + 1)]
        return f"What is {' plus '.join(map(str, numbers))}?", str(sum(numbers))
    if task == "reverse":
        word = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=3 * level))
        return f"Spell the word {word} backward.", word[::-1]
    words = [
        rng.choice(("pear", "stone", "river", "glass", "horse", "cloud", "lamp", "train"))
        + str(rng.randint(1, 99))
        for _ in range(2 * level)
    ]
    return f"Which of these comes last in the alphabet: {', '.join(words)}?", max(words)


def make_rows(
    num_questions: int,
    seed: int = 0,
    skills: Mapping[str, Mapping[str, int]] = SKILLS,
    luck: float = 0.1,
) -> list[dict[str, Any]]:
    """Rows of which 70% are for training, 10% for validation, 20% for test.

    One answer in ten (`luck`) goes against the skill.
    """
    rng, rows, seen = random.Random(seed), [], set()
    while len(rows) < num_questions:
        task, level = TASKS[len(rows) % 3], rng.randint(1, 5)
        question, reference = make_question(task, level, rng)
        if question in seen:
            continue
        seen.add(question)
        right = {
            expert: (skill[task] >= level) != (rng.random() < luck)
            for expert, skill in skills.items()
        }
        split = (
            "train"
            if len(rows) < 0.7 * num_questions
            else "validation"
            if len(rows) < 0.8 * num_questions
            else "test"
        )
        rows.append(
            {
                "question": question,
                "reference": reference,
                "answers": {
                    expert: reference if right[expert] else "I do not know" for expert in skills
                },
                "scores": {expert: float(right[expert]) for expert in skills},
                "meta": {
                    "split": split,
                    "task": task,
                    "level": level,
                    "tokens": {expert: TOKENS[expert] * level for expert in skills},
                },
            }
        )
    return rows


def write_rows(path: Path, rows: list[dict[str, Any] | str]) -> str:
    """The path, for a configuration.

    Texts are written as they are, so that a test can break a line.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows),
        encoding="utf-8",
    )
    return str(path)


if __name__ == "__main__":
    print(write_rows(Path(sys.argv[1]), make_rows(int(sys.argv[2]) if len(sys.argv) > 2 else 1300)))
