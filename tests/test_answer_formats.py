"""Answers in the formats of lm-evaluation-harness, AlpacaEval and RouterBench, with rows invented
in their schemas.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas
import pytest

from questions import RECORDED
from runtime.errors import DataError
from scripts import prepare_data


def prepare(name: str, source: Path, out: Path, *more: str) -> list[dict[str, Any]]:
    """The rows written, in the order of their questions."""
    prepare_data.main([name, "--source", str(source), "--out", str(out), *more])
    rows = []
    for line in (out / "recorded.jsonl").read_text(encoding="utf-8").splitlines():
        rows.append(json.loads(line))
    return sorted(rows, key=lambda row: row["question"])


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def logged(doc_id: int, text: str, score: float, **other: Any) -> dict[str, Any]:
    """A line of lm_eval --log_samples for a task that generates."""
    prompt = f"Question: {doc_id} + 1?\nAnswer:"
    row = {
        "doc_id": doc_id,
        "doc": {"question": f"{doc_id} + 1?", "answer": str(doc_id + 1)},
        "target": str(doc_id + 1),
        "arguments": {"gen_args_0": {"arg_0": prompt, "arg_1": {"until": ["\n"]}}},
        "resps": [[text]],
        "filtered_resps": [text],
        "filter": "none",
        "metrics": ["exact_match"],
        "doc_hash": "d",
        "prompt_hash": "p",
        "target_hash": "t",
        "exact_match": score,
    }
    return row | other


SAMPLES = "samples_sums_2025-03-01T10-00-00.123456.jsonl"


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    folder = tmp_path / "lm_eval"
    write_lines(folder / "org__small" / SAMPLES, [logged(1, "2", 1.0), logged(2, "5", 0.0)])
    write_lines(folder / "org__large" / SAMPLES, [logged(2, "3", 1.0), logged(1, "2", 1.0)])
    return folder


def test_logged_samples_of_several_models_are_joined_by_their_doc(
    samples: Path, tmp_path: Path
) -> None:
    one, two = prepare("lm_eval", samples, tmp_path / "out", "--agreement", "numeric_match")
    assert (one["question"], one["reference"]) == ("1 + 1?", "2")
    assert two["answers"] == {"org__large": "3", "org__small": "5"}
    assert two["scores"] == {"org__large": 1.0, "org__small": 0.0}
    assert two["meta"]["task"] == "sums"
    assert two["meta"]["metric"] == RECORDED
    assert two["meta"]["agreement"] == "numeric_match"


def test_one_filter_and_one_score_are_chosen_where_samples_offer_several(
    samples: Path, tmp_path: Path
) -> None:
    for model in ("org__small", "org__large"):
        rows = []
        for name, score in (("strict-match", 0.0), ("flexible-extract", 1.0)):
            row = logged(1, "2", score, filter=name, metrics=["exact_match", "bleu"], bleu=0.5)
            rows.append(row)
        write_lines(samples / model / SAMPLES, rows)
    with pytest.raises(DataError, match=r"filters strict-match, flexible-extract; choose one with"):
        prepare("lm_eval", samples, tmp_path / "out")
    strict = ("--filter", "strict-match")
    with pytest.raises(DataError, match=r"jsonl:1: scores exact_match, bleu; choose one with --sc"):
        prepare("lm_eval", samples, tmp_path / "out", *strict)
    with pytest.raises(DataError, match=r"'blue' is none of them with --score"):
        prepare("lm_eval", samples, tmp_path / "out", *strict, "--score", "blue")
    (row,) = prepare("lm_eval", samples, tmp_path / "out", *strict, "--score", "exact_match")
    assert set(row["scores"].values()) == {0.0}


def test_the_field_that_asks_is_named_where_it_is_not_question(
    samples: Path, tmp_path: Path
) -> None:
    for model in ("org__small", "org__large"):
        write_lines(samples / model / SAMPLES, [logged(1, "2", 1.0, doc={"problem": "1 + 1 = ?"})])
    with pytest.raises(DataError, match=r"jsonl:1: doc has no text in field 'question'.*problem"):
        prepare("lm_eval", samples, tmp_path / "out")
    (row,) = prepare("lm_eval", samples, tmp_path / "out", "--question", "problem")
    assert row["question"] == "1 + 1 = ?"


def test_log_likelihoods_are_scores_without_texts(samples: Path, tmp_path: Path) -> None:
    of_choices = [[["-3.2", "False"]], [["-1.0", "True"]]]
    write_lines(samples / "org__small" / SAMPLES, [logged(1, "2", 1.0, resps=of_choices)])
    with pytest.raises(DataError, match=r"jsonl:1: scores without texts.*generate_until"):
        prepare("lm_eval", samples, tmp_path / "out")


def test_a_broken_line_and_a_second_file_of_one_task_are_named(
    samples: Path, tmp_path: Path
) -> None:
    later = samples / "org__small" / SAMPLES.replace("2025-03", "2025-04")
    write_lines(later, [logged(1, "2", 1.0)])
    with pytest.raises(DataError, match="org__small answered question sums-1 before, at"):
        prepare("lm_eval", samples, tmp_path / "out")
    later.write_text(json.dumps(logged(3, "4", 1.0)) + '\n{"doc_id": 4,\n')
    with pytest.raises(DataError, match=r"2025-04.*jsonl:2: not valid JSON"):
        prepare("lm_eval", samples, tmp_path / "out")


def test_an_evaluation_that_left_no_samples_is_named(samples: Path, tmp_path: Path) -> None:
    """Its model would be missing from the pool, and nobody told."""
    (samples / "org__small" / SAMPLES).write_text("")
    with pytest.raises(DataError, match=r"org__small.*: no samples in it: was its evaluation cut"):
        prepare("lm_eval", samples, tmp_path / "out")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"doc": {"question": "  "}}, r"question sums-1 is blank"),
        ({"filter": ["none"]}, r"expected its filter to be str, found list"),
        ({"metrics": [["exact_match"]]}, r"expected each of its metrics to be str, found list"),
        ({"exact_match": 10**400}, r"field 'exact_match' is too large for a number"),
    ],
)
def test_a_damaged_sample_is_named(
    samples: Path, tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    write_lines(samples / "org__small" / SAMPLES, [logged(1, "2", 1.0) | changed])
    with pytest.raises(DataError, match=rf"jsonl:1: {message}"):
        prepare("lm_eval", samples, tmp_path / "out")


def test_samples_without_a_folder_for_their_model_and_an_empty_folder_are_refused(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "lm_eval"
    folder.mkdir()
    with pytest.raises(DataError, match="nothing to import; --source holds MODEL/samples_TASK"):
        prepare("lm_eval", folder, tmp_path / "out")
    write_lines(folder / SAMPLES, [logged(1, "2", 1.0)])
    with pytest.raises(DataError, match="put each model's samples into a folder"):
        prepare("lm_eval", folder, tmp_path / "out")


def outputs(model: str, texts: dict[str, str]) -> list[dict[str, str]]:
    """AlpacaEval's model_outputs.json."""
    rows = []
    for instruction, output in texts.items():
        row = {"dataset": "koala", "instruction": instruction, "output": output}
        rows.append(row | {"generator": model})
    return rows


def verdict(model: str, question: str, preference: float | None, *, first: bool) -> dict[str, Any]:
    """A row of AlpacaEval's annotations.json; `first`: whether the model's output is number 1."""
    pair = [("baseline", "So and so."), (model, "Text.")]
    if first:
        pair.reverse()
    return {
        "instruction": question,
        "output_1": pair[0][1],
        "generator_1": pair[0][0],
        "dataset": "koala",
        "output_2": pair[1][1],
        "generator_2": pair[1][0],
        "annotator": "judge",
        "preference": preference,
    }


@pytest.fixture
def alpaca(tmp_path: Path) -> Path:
    folder = tmp_path / "alpaca"
    for model in ("a", "b"):
        texts = {"Say hi.": f"Hi from {model}", "Say no.": f"No from {model}"}
        rows = outputs(model, texts)
        write_json(folder / model / "model_outputs.json", [*rows, rows[0]])
    return folder


def test_model_outputs_without_verdicts_are_answers_without_scores(
    alpaca: Path, tmp_path: Path
) -> None:
    hi, no = prepare("alpaca_eval", alpaca, tmp_path / "out")
    assert hi["answers"] == {"a": "Hi from a", "b": "Hi from b"}
    assert no["meta"]["task"] == "koala"
    assert "scores" not in hi
    assert "metric" not in hi["meta"]
    assert hi["meta"]["agreement"] == "rouge_l"


def test_verdicts_beside_model_outputs_are_the_scores(alpaca: Path, tmp_path: Path) -> None:
    of_a = [
        verdict("a", "Say hi.", 1.75, first=False),  # number 2 is better with 0.75
        verdict("a", "Say no.", 2.0, first=True),  # the baseline is better
    ]
    of_b = [verdict("b", "Say hi.", 1.0, first=True), verdict("b", "Say no.", None, first=True)]
    write_json(alpaca / "a" / "judge" / "annotations.json", of_a)
    write_json(alpaca / "b" / "judge" / "annotations.json", of_b)
    with pytest.raises(DataError, match=r"but b has no answer to it.*--missing drop"):
        prepare("alpaca_eval", alpaca, tmp_path / "out")
    (hi,) = prepare("alpaca_eval", alpaca, tmp_path / "out", "--missing", "drop")
    assert hi["scores"] == {"a": 0.75, "b": 1.0}
    assert hi["reference"] == "So and so."
    assert hi["meta"]["metric"] == RECORDED


@pytest.mark.parametrize(("preference", "score"), [(0, 0.5), (1.5, 0.5), (2, 1.0)])
def test_a_draw_counts_half(alpaca: Path, tmp_path: Path, preference: float, score: float) -> None:
    """Older AlpacaEval files write a draw as 0, newer ones as 1.5."""
    for model in ("a", "b"):
        rows = []
        for question in ("Say hi.", "Say no."):
            rows.append(verdict(model, question, preference, first=False))
        write_json(alpaca / model / "judge" / "annotations.json", rows)
    rows = prepare("alpaca_eval", alpaca, tmp_path / "out")
    assert [row["scores"] for row in rows] == [{"a": score, "b": score}] * 2


def test_what_cannot_be_a_verdict_is_refused(alpaca: Path, tmp_path: Path) -> None:
    path = alpaca / "a" / "judge" / "annotations.json"
    write_json(path, [verdict("a", "Say hi.", 3, first=False)])
    with pytest.raises(DataError, match=r"preference 3 is neither 0 nor from 1 to 2"):
        prepare("alpaca_eval", alpaca, tmp_path / "out")
    rows = [verdict("a", question, 1, first=True) for question in ("Say hi.", "Say no.")]
    write_json(path, rows)
    with pytest.raises(DataError, match=r"no answer of b was judged, those of other models were"):
        prepare("alpaca_eval", alpaca, tmp_path / "out")
    other = outputs("a", {"Say hi.": "Hi"})
    write_json(alpaca / "a" / "model_outputs.json", [other[0] | {"dataset": 3}])
    with pytest.raises(DataError, match=r"expected its dataset to be str, found int"):
        prepare("alpaca_eval", alpaca, tmp_path / "out")


def test_one_annotator_is_chosen_where_there_are_several(alpaca: Path, tmp_path: Path) -> None:
    for model in ("a", "b"):
        for judge, preference in (("strict", 1.0), ("mild", 2.0)):
            rows = []
            for question in ("Say hi.", "Say no."):
                rows.append(verdict(model, question, preference, first=False))
            write_json(alpaca / model / judge / "annotations.json", rows)
    with pytest.raises(DataError, match=r"scores mild, strict; choose one with --score"):
        prepare("alpaca_eval", alpaca, tmp_path / "out")
    rows = prepare("alpaca_eval", alpaca, tmp_path / "out", "--score", "mild")
    assert rows[0]["scores"] == {"a": 1.0, "b": 1.0}


def wide(**other: list[Any]) -> Any:
    """RouterBench's wide table of two questions and two models."""
    columns = {
        "sample_id": ["sums.1", "sums.2"],
        "prompt": ["['Add.', '1 + 1?']", "2 + 1?"],
        "eval_name": ["sums", "sums"],
        "small": [1.0, 0.25],
        "org/large": [1.0, 1.0],
        "small|model_response": ["['2']", "None"],
        "org/large|model_response": ["2", "3"],
        "small|total_cost": [0.001, 0.002],
        "org/large|total_cost": [0.1, 0.2],
        "oracle_model_to_route_to": ["small", "org/large"],
    }
    return pandas.DataFrame(columns | other)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_wide_table_gives_texts_scores_and_costs_of_each_model(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "routerbench"
    folder.mkdir()
    if kind == "csv":
        wide().to_csv(folder / "table.csv", index=False)
    else:
        wide().to_parquet(folder / "table.parquet")
    two, one = prepare("routerbench", folder, tmp_path / "out")
    assert one["question"] == "Add.\n\n1 + 1?"
    assert one["answers"] == {"small": "2", "org/large": "2"}
    assert two["answers"] == {"small": "None", "org/large": "3"}  # a text, not an empty cell
    assert two["scores"] == {"small": 0.25, "org/large": 1.0}
    assert two["meta"]["usd"] == {"small": 0.002, "org/large": 0.2}
    assert two["meta"]["task"] == "sums"
    assert two["meta"]["id"] == "sums.2-1"


def test_a_model_without_a_score_lacks_the_question(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    wide(small=[1.0, None]).to_csv(path, index=False)
    with pytest.raises(DataError, match=r"table\.csv\[1\].*but small has no answer to it"):
        prepare("routerbench", path, tmp_path / "out")
    (one,) = prepare("routerbench", path, tmp_path / "out", "--missing", "drop")
    assert one["meta"]["id"] == "sums.1-0"


def test_a_table_of_scores_without_texts_and_a_cut_table_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    columns = ["sample_id", "prompt", "eval_name", "small", "org/large"]
    wide()[columns].to_csv(path, index=False)
    with pytest.raises(DataError, match=r"table\.csv: scores without texts: no column ends with"):
        prepare("routerbench", path, tmp_path / "out")
    path.write_text("")
    with pytest.raises(DataError, match=r"table\.csv: not a whole CSV or Parquet table"):
        prepare("routerbench", path, tmp_path / "out")


def test_an_answer_in_brackets_is_a_text_and_a_cost_in_words_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    minus = "[" + "-" * 100_000 + "1]"  # a list that no parser has the memory for
    wide(**{"small|model_response": [minus, "3"]}).to_csv(path, index=False)
    rows = prepare("routerbench", path, tmp_path / "out")
    assert minus in [row["answers"]["small"] for row in rows]
    wide(**{"small|total_cost": ["abc", 0.1]}).to_csv(path, index=False)
    with pytest.raises(DataError, match=r"expected the cost of small to be int or float"):
        prepare("routerbench", path, tmp_path / "out")


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    folder = tmp_path / "routerbench"
    folder.mkdir()
    path = folder / "routerbench_0shot.pkl"
    path.write_bytes(b"cos\nabort\n(tR.")  # opened, this would end the process
    with pytest.raises(DataError, match=r"0shot\.pkl: a pickle can run code.*to_parquet"):
        prepare("routerbench", folder, tmp_path / "out")
