"""Answers of LLMs in the schemas of their publishers, invented here: small copies of the
repositories that prepare_data.py reads.
"""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path
from typing import Any

from scripts.support.answer_sources import ANSWER_SOURCES

LOOKAHEAD_MODELS = ANSWER_SOURCES["lookahead"].models
MMLU_PRO_MODELS = ANSWER_SOURCES["mmlu_pro_answers"].models
TESTS = Path("compressed_data") / "test"
NUMBERS = (3, 8, 9, 17, 1, 2)  # tests/test_prepare_answers.py knows the splits of these


def write_gzip(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(json.dumps(value).encode()))


def sum_question(number: int) -> str:
    return f"What is {number} plus {number}?\nPut the number last."


def judged(number: int, answer: int, *, as_repr: bool = False) -> dict[str, Any]:
    """A row of GSM8K or MATH."""
    turns = [
        {"role": "HUMAN", "prompt": "Hello."},
        {"role": "BOT", "prompt": "Ask."},
        {"role": "HUMAN", "prompt": sum_question(number) + "\n"},
    ]
    return {
        "prompt": repr(turns) if as_repr else turns,
        "origin_prediction": f"It is {answer}",
        "predictions": str(answer),
        "references": str(2 * number),
        "correct": answer == 2 * number,
    }


def judged_file(wrong: int, *, as_repr: bool = False) -> dict[str, Any]:
    """All sums right but one."""
    details = {}
    for idx, number in enumerate(NUMBERS):
        answer = 2 * number + (number == wrong)
        details[str(idx)] = judged(number, answer, as_repr=as_repr)
    return {"accuracy": 0.0, "details": details, "type": "GEN"}


def write_programs(folder: Path, model: str, gold: str, right: bool) -> None:
    """One question of HumanEval or MBPP: text and verdict in two files."""
    turn = {"role": "HUMAN", "prompt": f"Write f, which doubles. It is judged by {gold}"}
    text = "```python\ndef f(x):\n    return 2 * x\n```"
    row = {"origin_prompt": [turn], "prediction": text, "gold": gold}
    write_gzip(folder / "predictions" / f"{model}.json.gz", {"0": row})
    verdict = {"result": "passed" if right else "failed", "is_correct": right}
    write_gzip(folder / "results" / f"{model}.json.gz", {"details": {"0": verdict}})


def write_lookahead(folder: Path) -> Path:
    """Model number i gets sum number i of GSM8K and MATH wrong, and passes HumanEval if i is even,
    MBPP if i is 0.
    """
    for idx, model in enumerate(LOOKAHEAD_MODELS):
        details = judged_file(NUMBERS[idx], as_repr=idx == 1)
        write_gzip(folder / TESTS / "GSM8k" / f"{model}.json.gz", details)
        write_gzip(folder / TESTS / "MATH" / f"{model}.json.gz", details)
        write_programs(folder / TESTS / "HumanEval", model, "HumanEval/0", idx % 2 == 0)
        write_programs(folder / TESTS / "MBPP", model, "assert f(2) == 4", idx == 0)
    return folder


def choice(number: int, text: str, pred: str | None, **other: Any) -> dict[str, Any]:
    """A row of MMLU-Pro; B is right."""
    row = {
        "question_id": number,
        "question": f"What comes after {number}?",
        "options": [str(number), str(number + 1), "nothing"],
        "answer": "B",
        "answer_index": 1,
        "cot_content": "",
        "category": "math" if number < 30 else "law",
        "src": "made",
        "pred": pred,
        "generated_text": text,
    }
    return row | other


def write_mmlu_pro(folder: Path, rows: dict[str, list[dict[str, Any]]]) -> Path:
    """A zip file a model; models that `rows` does not name get those of "others"."""
    for model in MMLU_PRO_MODELS:
        name = f"model_outputs_{model}_5shots"
        path = folder / "eval_results" / f"{name}.zip"
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"{name}.json", json.dumps(rows.get(model, rows["others"])))
    return folder
