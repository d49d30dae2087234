"""The single routes as the script of report.html reads them.

Every text is stored once; everything else names it by its index.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from evaluation.route_log import Record
from report.view import Results

MAX_QUESTIONS = 1000  # the routes of further questions are left out of the page
PROMPT_CHARACTERS = 6_000_000  # prompts beyond this are left out, the agent's last
ROUTE_FIELDS = (
    "policy",
    "seed",
    "question",
    "stop_reason",
    "submitted",
    "quality",
    "return",
    "steps",
)
STEP_FIELDS = (
    "expert",
    "prompt",
    "prompt_hash",
    "answer",
    "quality",
    "charge",
    "params_b",
    "prompt_tokens",
    "completion_tokens",
    "latency_s",
    "usd",
    "p_stop",
    "value",
    "entropy",
)


class Texts:
    """Texts stored once each, in the order they were added.

    Prompts beyond PROMPT_CHARACTERS are left out and counted.
    """

    def __init__(self) -> None:
        self.index: dict[str, int] = {}
        self.characters_left = PROMPT_CHARACTERS
        self.left_out = 0

    def add(self, text: str) -> int:
        return self.index.setdefault(text, len(self.index))

    def add_prompt(self, prompt: str | None) -> int | None:
        """As `add`; None where there is no prompt or no room for it."""
        if prompt is None:
            return None
        if prompt not in self.index:
            self.characters_left -= len(prompt)
            if self.characters_left < 0:
                self.left_out += 1
                return None
        return self.add(prompt)


def route_data(results: Results, records: Sequence[Record]) -> dict[str, Any]:
    """Texts, and rows of numbers and of indices into the texts.

    All seeds of policies of kind `der`, the first seed of the others; policies in the table's
    order, failures first.
    """
    texts = Texts()
    questions: dict[tuple[int, ...], int] = {}  # indices of its texts -> its own index
    routes = []
    shown, num_questions = _shown(results, records)
    for record in shown:
        question = (
            texts.add(record["question"]),
            texts.add(record["text"]),
            texts.add(_reference(record)),
            texts.add(record["task"]),
        )
        row = [
            texts.add(record["policy"]),
            record["seed"],
            questions.setdefault(question, len(questions)),
            texts.add(record["stop_reason"]),
            record.get("submitted", len(record["steps"]) - 1),
            _short(record["quality"]),
            _short(record["return"]),
            [_step(step, texts) for step in record["steps"]],
        ]
        routes.append(row)
    return {
        "route_fields": ROUTE_FIELDS,
        "step_fields": STEP_FIELDS,
        "strings": list(texts.index),
        "questions": list(questions),
        "routes": routes,
        "left_out": texts.left_out,
        "questions_left_out": num_questions - len(questions),
    }


def _shown(results: Results, records: Sequence[Record]) -> tuple[list[Record], int]:
    """The records of the page in its order, and the number of questions in the whole log."""
    order = {row["policy"]: idx for idx, row in enumerate(results["rows"])}
    questions: dict[str, None] = {}
    first_seed: dict[str, int] = {}
    for record in records:
        questions[record["question"]] = None
        policy = record["policy"]
        first_seed[policy] = min(record["seed"], first_seed.get(policy, record["seed"]))
    on_page = set(list(questions)[:MAX_QUESTIONS])
    shown = []
    for record in records:
        is_first = record["seed"] == first_seed[record["policy"]]
        if record["question"] in on_page and (is_first or record["kind"] == "der"):
            shown.append(record)

    def place(record: Record) -> tuple[bool, int, float]:
        place_in_table = order.get(record["policy"], len(order))
        return record["kind"] != "der", place_in_table, record["quality"]

    return sorted(shown, key=place), len(questions)


def _reference(record: Record) -> str:
    reference = record["reference"]
    return reference if isinstance(reference, str) else json.dumps(reference)


def _step(step: Mapping[str, Any], texts: Texts) -> list[int | float | None]:
    """A step in the order of STEP_FIELDS.

    The prompt's hash stands in where the prompt is not there.
    """
    prompt = texts.add_prompt(step.get("prompt"))
    prompt_hash = texts.add(step["prompt_hash"]) if prompt is None else None
    row: list[int | float | None] = [
        texts.add(step["expert"]),
        prompt,
        prompt_hash,
        texts.add(step["answer"]),
    ]
    numbers = {**step["cost"], **step}
    for name in STEP_FIELDS[len(row) :]:
        row.append(_short(numbers[name]))
    return row


def _short(value: float | None) -> float | None:
    """Four significant digits: enough to read, a third of the bytes."""
    return value if value is None or isinstance(value, int) else float(f"{value:.4g}")
