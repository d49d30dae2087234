"""Files for leaderboards: their fields are what the boards read, and every call is charged.

The fields are those of RouterArena's router_inference/check_config_prediction_files.py and
llm_evaluation/run.py, and of LLMRouterBench's data_collector/storage.py, as of 2026.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from runtime.errors import ConfigError, ReportError
from scripts import export_routes

PRICES = {"cheap": (1.0, 2.0), "fine": (3.0, 10.0)}  # USD per million prompt, completion tokens
BENCH_RECORD = {
    "index": int,
    "origin_query": str,
    "prompt": str,
    "prompt_tokens": int,
    "completion_tokens": int,
    "cost": float,
    "score": float,
    "prediction": str,
    "ground_truth": str,
    "raw_output": str,
    "extra_fields": dict,
}
BENCH_RESULT = {
    "performance": float,
    "time_taken": float,
    "prompt_tokens": int,
    "completion_tokens": int,
    "cost": float,
    "counts": int,
    "model_name": str,
    "dataset_name": str,
    "split": str,
    "demo": bool,
    "extra_metrics": dict,
    "data_fingerprint": str,
    "records": list,
}


def step(expert: str, answer: str, tokens: tuple[int, int], quality: float) -> dict[str, Any]:
    prompt_price, completion_price = PRICES[expert]
    usd = (tokens[0] * prompt_price + tokens[1] * completion_price) / 1e6
    cost = {"params_b": 1.0, "prompt_tokens": tokens[0], "completion_tokens": tokens[1]}
    cost |= {"flops": 1.0, "latency_s": 0.5, "usd": usd}
    known = {"expert": expert, "answer": answer, "quality": quality, "cost": cost}
    return known | {
        "charge": 1.0,
        "value": None,
        "entropy": None,
        "p_stop": None,
        "prompt_cut": False,
    }


def record(question: str, task: str, steps: list[dict[str, Any]], submitted: int) -> dict[str, Any]:
    quality = steps[submitted]["quality"]
    return {
        "policy": "DER",
        "role": "der",
        "kind": "der",
        "seed": 0,
        "split": "test",
        "question": question,
        "text": f"What is {question}?",
        "reference": "7",
        "task": task,
        "stop_reason": "stopped",
        "submitted": submitted,
        "quality": quality,
        "return": quality,
        "overhead": {"params_b": 0.0, "flops": 0.0, "latency_s": 0.0},
        "steps": steps,
    }


RECORDS = [
    record("GSM8K_1", "math", [step("cheap", "7", (10, 20), 1.0)], 0),
    record(
        "GSM8K_2",
        "math",
        [step("fine", "8", (12, 30), 0.0), step("cheap", "7", (15, 5), 1.0)],
        1,
    ),
    record(
        "ARC_1",
        "multiple choice",
        [step("cheap", "A", (9, 3), 0.0), step("fine", "B", (9, 4), 0.0)],
        1,
    ),
]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    experts = []
    for name, (prompt_price, completion_price) in PRICES.items():
        expert = {"name": name, "kind": "recorded", "path": "answers.jsonl", "params_b": 1.0}
        expert["tokenizer"] = "any"
        expert["usd_per_million_prompt_tokens"] = prompt_price
        expert["usd_per_million_completion_tokens"] = completion_price
        experts.append(expert)
    folder = tmp_path / "run"
    folder.mkdir()
    write_settings(folder, experts)
    lines = [json.dumps(line) + "\n" for line in RECORDS]
    (folder / "routes.jsonl").write_text("".join(lines))
    return folder


def write_settings(run: Path, experts: list[dict[str, Any]]) -> None:
    (run / "config.yaml").write_text(yaml.safe_dump({"pool": {"experts": experts}}))


def export(run: Path, board: str, *more: str) -> list[Any]:
    out = run.parent / "out"
    arguments = ["--run", str(run), "--format", board, "--router", "der-1", "--out", str(out)]
    paths = export_routes.main([*arguments, *more])
    return [json.loads(path.read_text()) for path in paths]


def test_router_arena_gets_the_entries_that_its_check_asks_for(run: Path) -> None:
    config, rows = export(run, "routerarena", "--name", "fine=openai/fine")
    models = config["pipeline_params"]["models"]
    assert config["pipeline_params"]["router_name"] == "der-1"
    assert models == ["cheap", "openai/fine"]
    for row, line in zip(rows, RECORDS, strict=True):
        assert row["global index"] == line["question"]
        assert row["prompt"] == line["text"]
        assert row["prediction"] in models
        generated = row["generated_result"]
        assert isinstance(generated["generated_answer"], str)
        assert isinstance(generated["success"], bool)
        assert {"input_tokens", "output_tokens", "total_tokens"} == generated["token_usage"].keys()
        assert row["for_optimality"] is False
        assert row["accuracy"] is None
    assert [row["generated_result"]["generated_answer"] for row in rows] == ["7", "7", "B"]
    assert (run.parent / "out/router_inference/predictions/der-1.json").is_file()


def test_what_router_arena_charges_covers_every_call(run: Path) -> None:
    """The board's cost is the tokens of a row times the prices of the submitted model."""
    _, rows = export(run, "routerarena")
    # 12 prompt tokens at 3 / 1 and 30 generated ones at 10 / 2, and the submitted call itself
    assert rows[1]["generated_result"]["token_usage"]["input_tokens"] == 36 + 15
    assert rows[1]["generated_result"]["token_usage"]["output_tokens"] == 150 + 5
    # A cheaper call counts with all of its tokens at the dearer model's price.
    assert rows[2]["generated_result"]["token_usage"]["input_tokens"] == 9 + 9
    for row, line in zip(rows, RECORDS, strict=True):
        spent = sum(one["cost"]["usd"] for one in line["steps"])
        prompt_price, completion_price = PRICES[row["prediction"]]
        usage = row["generated_result"]["token_usage"]
        dollars = usage["input_tokens"] * prompt_price + usage["output_tokens"] * completion_price
        assert dollars / 1e6 >= spent - 1e-12
        assert row["cost"] == pytest.approx(spent)
        calls = row["generated_result"]["calls"]
        assert [call["model"] for call in calls] == [one["expert"] for one in line["steps"]]


def test_llm_router_bench_gets_a_result_file_for_each_task(run: Path) -> None:
    results = export(run, "llmrouterbench")
    assert [result["dataset_name"] for result in results] == ["math", "multiple choice"]
    for result in results:
        assert {name: type(value) for name, value in result.items()} == BENCH_RESULT
        for row in result["records"]:
            assert {name: type(value) for name, value in row.items()} == BENCH_RECORD
    first = results[0]
    assert (first["counts"], first["performance"], first["model_name"]) == (2, 1.0, "der-1")
    assert first["prompt_tokens"] == 10 + 12 + 15
    assert first["completion_tokens"] == 20 + 30 + 5
    assert first["time_taken"] == 1.5
    # 10 + 40, then 36 + 300 and 15 + 10, in millionths
    assert first["cost"] == pytest.approx(411e-6)
    assert first["records"][1]["cost"] == pytest.approx(361e-6)
    names = sorted((run.parent / "out/results/bench").rglob("*.json"))
    assert [path.parts[-4:-1] for path in names] == [
        ("math", "test", "der-1"),
        ("multiple_choice", "test", "der-1"),
    ]


def test_an_expert_without_a_price_is_refused(run: Path) -> None:
    experts = [{"name": "cheap", "kind": "recorded", "path": "a.jsonl", "params_b": 1.0}]
    write_settings(run, experts)
    with pytest.raises(ConfigError, match="cheap has no usd_per_million_completion_tokens"):
        export(run, "routerarena")


def test_a_log_of_several_seeds_is_refused(run: Path) -> None:
    with (run / "routes.jsonl").open("a") as log:
        log.write(json.dumps(RECORDS[0] | {"seed": 1}) + "\n")
    with pytest.raises(ReportError, match="2 seeds of this policy, a board takes one"):
        export(run, "llmrouterbench")


def test_a_name_for_nobody_is_refused(run: Path) -> None:
    with pytest.raises(ConfigError, match="--name best: no such expert"):
        export(run, "routerarena", "--name", "best=x")
