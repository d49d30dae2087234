"""Published answers of LLMs become recorded answers; files and folders are of the publishers'
schema, invented (tests/published_answers.py).
"""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from published_answers import (
    LOOKAHEAD_MODELS,
    MMLU_PRO_MODELS,
    NUMBERS,
    TESTS,
    choice,
    judged_file,
    sum_question,
    write_gzip,
    write_lookahead,
    write_mmlu_pro,
)

from backends.recorded import Recording
from config import SourceConfig
from questions import RECORDED, read_questions
from runtime.errors import DataError, MetricError
from scripts import prepare_data
from scripts.support import upstream_files
from scripts.support.answer_sources import ANSWER_SOURCES

# First byte of the SHA-256 of "What is N plus N?\nPut the number last.", by GNU sha256sum:
# 3: 6, 8: 68, 9: 97, 17: 103, 1: 134, 2: 225. Below 102 is train, below 128 validation.
SPLIT_OF = {3: "train", 8: "train", 9: "train", 17: "validation", 1: "test", 2: "test"}
DIGEST_OF_17 = "674924389268fc25"  # its first 16 digits


def read_rows(path: Path) -> dict[str, dict[str, Any]]:
    """Rows of recorded answers by meta.id."""
    rows = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        rows[row["meta"]["id"]] = row
    return rows


def prepare(name: str, source: Path, out: Path, *more: str) -> None:
    prepare_data.main([name, "--source", str(source), "--out", str(out), *more])


@pytest.fixture
def lookahead(tmp_path: Path) -> Path:
    return write_lookahead(tmp_path / "copy")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def test_each_set_of_lookahead_becomes_a_file_of_all_models_answers(
    lookahead: Path, out: Path
) -> None:
    prepare("lookahead", lookahead, out)
    rows = read_rows(out / "gsm8k" / "recorded.jsonl")
    assert len(rows) == len(NUMBERS)
    row = rows["gsm8k-1"]  # 8 + 8, which the second model gets wrong
    assert row["question"] == "What is 8 plus 8?\nPut the number last.\n"  # the last user turn
    assert row["reference"] == "16"
    assert sorted(row["answers"]) == sorted(LOOKAHEAD_MODELS)
    assert row["answers"][LOOKAHEAD_MODELS[0]] == "It is 16"
    assert row["answers"][LOOKAHEAD_MODELS[1]] == "It is 17"
    assert row["scores"] == {model: float(model != LOOKAHEAD_MODELS[1]) for model in row["scores"]}
    commit = "62ecd6e73a073329a6145856e383b3f5cbbf726d"
    assert ANSWER_SOURCES["lookahead"].commit == commit
    assert row["meta"] == {
        "split": "train",
        "task": "gsm8k",
        "metric": RECORDED,
        "agreement": "numeric_match",
        "id": "gsm8k-1",
        "repository": "huangcb01/lookahead-routing",
    }
    assert len(read_rows(out / "math" / "recorded.jsonl")) == len(NUMBERS)


def test_the_commit_of_a_copy_is_recorded_when_it_is_told(lookahead: Path, out: Path) -> None:
    prepare("lookahead", lookahead, out, "--revision", "abc")
    row = read_rows(out / "gsm8k" / "recorded.jsonl")["gsm8k-0"]
    assert row["meta"]["commit"] == "abc"
    provenance = json.loads((out / "gsm8k" / "provenance.json").read_text())
    assert provenance["source"]["commit"] == "abc"
    assert provenance["source"]["licence"] == "MIT"


def test_the_first_byte_of_the_texts_digest_decides_the_split(lookahead: Path, out: Path) -> None:
    prepare("lookahead", lookahead, out)
    rows = read_rows(out / "gsm8k" / "recorded.jsonl")
    found = {number: rows[f"gsm8k-{idx}"]["meta"]["split"] for idx, number in enumerate(NUMBERS)}
    assert found == SPLIT_OF


def test_rows_of_a_split_lie_in_the_order_of_their_digests_and_a_limit_takes_the_first(
    lookahead: Path, out: Path
) -> None:
    prepare("lookahead", lookahead, out, "--limit", "1")
    rows = read_rows(out / "gsm8k" / "recorded.jsonl")
    # first bytes 6, 68, 97 in train, 103 in validation, 134, 225 in test
    assert list(rows) == [f"gsm8k-{NUMBERS.index(number)}" for number in (3, 17, 1)]


def test_humaneval_and_mbpp_share_a_file_and_keep_their_names_as_tasks(
    lookahead: Path, out: Path
) -> None:
    prepare("lookahead", lookahead, out)
    rows = read_rows(out / "code" / "recorded.jsonl")
    human, mbpp = rows["humaneval-0"], rows["mbpp-0"]
    assert (human["meta"]["task"], mbpp["meta"]["task"]) == ("humaneval", "mbpp")
    assert human["meta"]["agreement"] == "code"
    assert human["reference"] == ""  # its gold names the task
    assert mbpp["reference"] == "assert f(2) == 4"
    assert human["answers"][LOOKAHEAD_MODELS[0]].startswith("```python\ndef f(x)")
    assert [human["scores"][model] for model in LOOKAHEAD_MODELS] == [1, 0, 1, 0, 1, 0]
    assert [mbpp["scores"][model] for model in LOOKAHEAD_MODELS] == [1, 0, 0, 0, 0, 0]


def test_the_summary_names_each_models_accuracy(
    lookahead: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare("lookahead", lookahead, out)
    printed = capsys.readouterr().out
    assert f"{out / 'gsm8k' / 'recorded.jsonl'}: 3 train, 1 validation, 2 test" in printed
    accuracy = json.loads((out / "gsm8k" / "provenance.json").read_text())["accuracy"]
    assert accuracy[LOOKAHEAD_MODELS[0]]["all"] == pytest.approx(5 / 6)  # one of six is wrong
    assert accuracy["any"]["all"] == 1.0  # each is wrong with one model only
    accuracy = json.loads((out / "code" / "provenance.json").read_text())["accuracy"]
    assert accuracy[LOOKAHEAD_MODELS[2]] == {"all": 0.5, "humaneval": 1.0, "mbpp": 0.0}


def test_the_prepared_file_is_read_as_questions_and_as_experts(lookahead: Path, out: Path) -> None:
    prepare("lookahead", lookahead, out)
    path = str(out / "gsm8k" / "recorded.jsonl")
    for split, number in (("train", 3), ("validation", 1), ("test", 2)):
        questions = read_questions(SourceConfig(path=path, split=split))
        assert len(questions) == number
        assert {question.metric for question in questions} == {RECORDED}
    recording = Recording([path])
    for model in LOOKAHEAD_MODELS:
        recording.require(model)


def test_one_setting_makes_our_own_metric_the_quality(lookahead: Path, out: Path) -> None:
    prepare("lookahead", lookahead, out)
    path = str(out / "gsm8k" / "recorded.jsonl")
    own = SourceConfig(path=path, split="test", fields={"metric": "meta.agreement"})
    assert {question.metric for question in read_questions(own)} == {"numeric_match"}


def test_a_folder_that_holds_the_copy_by_the_repositorys_name_is_understood(
    tmp_path: Path, out: Path
) -> None:
    write_lookahead(tmp_path / "lookahead-routing")
    prepare("lookahead", tmp_path, out)
    assert (out / "gsm8k" / "recorded.jsonl").is_file()


def test_questions_listed_by_their_digest_are_left_out(
    lookahead: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = tmp_path / "listed.txt"
    listed.write_text(DIGEST_OF_17 + "\n")
    prepare("lookahead", lookahead, out, "--leave_out", str(listed))
    assert "gsm8k-3" not in read_rows(out / "gsm8k" / "recorded.jsonl")
    assert "left out: 1 that are listed in --leave_out" in capsys.readouterr().out
    listed.write_text(f"{DIGEST_OF_17}\n{sum_question(3)}\n")
    with pytest.raises(DataError, match=r"listed\.txt:2: 'What' is not the first 16"):
        prepare("lookahead", lookahead, out, "--leave_out", str(listed))


def test_a_repeated_question_is_taken_once_and_counted(lookahead: Path, out: Path) -> None:
    for model in LOOKAHEAD_MODELS:
        details = judged_file(wrong=0)
        details["details"]["6"] = details["details"]["0"]
        write_gzip(lookahead / TESTS / "MATH" / f"{model}.json.gz", details)
    prepare("lookahead", lookahead, out)
    assert len(read_rows(out / "math" / "recorded.jsonl")) == len(NUMBERS)
    provenance = json.loads((out / "math" / "provenance.json").read_text())
    assert provenance["left_out"] == {"missing": 0, "changed": 0, "repeats": 1, "listed": 0}


def edit(path: Path, number: str, **fields: Any) -> None:
    """Set fields of one question of a GSM8K file; the value `...` removes one."""
    data = json.loads(gzip.decompress(path.read_bytes()))
    for name, value in fields.items():
        if value is ...:
            del data["details"][number][name]
        else:
            data["details"][number][name] = value
    write_gzip(path, data)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"origin_prediction": ...}, "details.4: no field 'origin_prediction'; its fields are"),
        ({"origin_prediction": None}, "details.4: expected field 'origin_prediction' to be str"),
        ({"correct": "yes"}, "details.4: expected field 'correct' to be bool, found str"),
        ({"prompt": "Hello"}, "details.4: the prompt is not a list of turns"),
        ({"prompt": []}, "details.4: no turn of the prompt has the role HUMAN"),
        ({"references": "3"}, "question gsm8k-4 has another text or reference than at"),
    ],
)
def test_a_row_of_another_schema_is_refused_by_file_and_number(
    lookahead: Path, out: Path, fields: dict[str, Any], message: str
) -> None:
    path = lookahead / TESTS / "GSM8k" / f"{LOOKAHEAD_MODELS[5]}.json.gz"
    edit(path, "4", **fields)
    with pytest.raises(DataError) as error:
        prepare("lookahead", lookahead, out)
    assert message in str(error.value)
    assert str(path) in str(error.value)


def test_a_question_that_a_model_lacks_is_refused_or_dropped_and_counted(
    lookahead: Path, out: Path
) -> None:
    path = lookahead / TESTS / "GSM8k" / f"{LOOKAHEAD_MODELS[3]}.json.gz"
    data = json.loads(gzip.decompress(path.read_bytes()))
    del data["details"]["2"]
    write_gzip(path, data)
    with pytest.raises(DataError) as error:
        prepare("lookahead", lookahead, out)
    message = str(error.value)
    assert f"{LOOKAHEAD_MODELS[0]}.json.gz: details.2: question gsm8k-2" in message
    assert f"{LOOKAHEAD_MODELS[3]} has no answer to it" in message
    assert str(path) in message
    assert "--missing drop" in message
    prepare("lookahead", lookahead, out, "--missing", "drop")
    assert "gsm8k-2" not in read_rows(out / "gsm8k" / "recorded.jsonl")
    provenance = json.loads((out / "gsm8k" / "provenance.json").read_text())
    assert provenance["left_out"]["missing"] == 1


def test_scores_without_texts_are_refused(lookahead: Path, out: Path) -> None:
    path = lookahead / TESTS / "GSM8k" / f"{LOOKAHEAD_MODELS[3]}.json.gz"
    for number in map(str, range(len(NUMBERS))):
        edit(path, number, origin_prediction="")
    with pytest.raises(DataError, match=r"details\.0: scores without texts: every answer of Yi"):
        prepare("lookahead", lookahead, out)


def test_verdicts_of_other_questions_than_the_texts_are_refused(lookahead: Path, out: Path) -> None:
    path = lookahead / TESTS / "MBPP" / "results" / f"{LOOKAHEAD_MODELS[3]}.json.gz"
    write_gzip(path, {"details": {"1": {"is_correct": True}}})
    with pytest.raises(DataError, match=r"no question [01], which the other file has"):
        prepare("lookahead", lookahead, out)


@pytest.mark.parametrize(
    "content", [b"", b"no gzip", gzip.compress(b"{}")[:-6], gzip.compress(b"[" * 100_000)]
)
def test_a_broken_file_is_named_and_what_was_prepared_before_is_kept(
    lookahead: Path, out: Path, content: bytes
) -> None:
    path = lookahead / TESTS / "MATH" / f"{LOOKAHEAD_MODELS[2]}.json.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match="delete it and fetch it again") as error:
        prepare("lookahead", lookahead, out)
    assert str(path) in str(error.value)
    assert len(read_rows(out / "gsm8k" / "recorded.jsonl")) == len(NUMBERS)


def test_an_absent_file_and_an_absent_folder_are_named(lookahead: Path, out: Path) -> None:
    path = lookahead / TESTS / "GSM8k" / f"{LOOKAHEAD_MODELS[2]}.json.gz"
    path.unlink()
    with pytest.raises(DataError, match="is --source the right folder") as error:
        prepare("lookahead", lookahead, out)
    assert str(path) in str(error.value)
    with pytest.raises(DataError, match="no such folder; --source is a copy of huangcb01"):
        prepare("lookahead", lookahead / "nowhere", out)


def test_an_unknown_agreement_metric_is_refused_before_anything_is_read(
    tmp_path: Path, out: Path
) -> None:
    with pytest.raises(MetricError, match="unknown metric 'exactly'"):
        prepare("lookahead", tmp_path, out, "--agreement", "exactly")


def test_a_misspelt_name_is_answered_with_the_near_one() -> None:
    with pytest.raises(DataError, match="did you mean mmlu_pro_answers"):
        prepare_data.main(["mmlu_pro"])


# MMLU-Pro: in `guessed` no pred is null, so a letter counts only where the text has one.
HONEST = [
    choice(1, "So the answer is (B).", "B"),
    choice(20, "I cannot tell.", None),
    choice(40, "The answer is (C).", "C"),
]
GUESSED = [
    choice(40, "The answer is (B).", "B"),
    choice(1, "The answer is (A).", "A"),
    choice(20, "I cannot tell.", "B"),  # a random letter, right by chance
]


def test_mmlu_pro_is_joined_by_id_and_a_guessed_letter_is_no_answer(
    tmp_path: Path, out: Path
) -> None:
    guessing = "mathstral-7B"
    write_mmlu_pro(tmp_path / "copy", {"others": HONEST, guessing: GUESSED})
    prepare("mmlu_pro_answers", tmp_path / "copy", out)
    rows = read_rows(out / "recorded.jsonl")
    row = rows["mmlu_pro-20"]
    assert row["question"] == "What comes after 20?\nA. 20\nB. 21\nC. nothing"
    assert row["reference"] == "B"
    assert row["meta"]["task"] == "math"
    assert row["meta"]["agreement"] == "multiple_choice"
    assert row["answers"][guessing] == "I cannot tell."
    assert rows["mmlu_pro-40"]["meta"]["task"] == "law"
    honest = {
        number: rows[f"mmlu_pro-{number}"]["scores"]["Qwen1.5-72B-Chat"] for number in (1, 20)
    }
    assert honest == {1: 1.0, 20: 0.0}
    guessed = [rows[f"mmlu_pro-{number}"]["scores"][guessing] for number in (1, 20, 40)]
    assert guessed == [0.0, 0.0, 1.0]


def test_a_letter_that_only_the_publisher_could_read_counts_where_a_file_marks_the_others_null(
    tmp_path: Path, out: Path
) -> None:
    odd = [choice(1, "B it must be, all told", "B"), *HONEST[1:]]
    write_mmlu_pro(tmp_path / "copy", {"others": odd})
    prepare("mmlu_pro_answers", tmp_path / "copy", out)
    assert set(read_rows(out / "recorded.jsonl")["mmlu_pro-1"]["scores"].values()) == {1.0}


def test_a_question_that_the_publisher_changed_between_models_is_left_out_and_counted(
    tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = [HONEST[0] | {"answer": "C"}, *HONEST[1:]]
    write_mmlu_pro(tmp_path / "copy", {"others": HONEST, MMLU_PRO_MODELS[0]: changed})
    prepare("mmlu_pro_answers", tmp_path / "copy", out)
    assert sorted(read_rows(out / "recorded.jsonl")) == ["mmlu_pro-20", "mmlu_pro-40"]
    assert "left out: 1 that are stated differently by two files" in capsys.readouterr().out


def test_text_under_the_older_field_name_is_read(tmp_path: Path, out: Path) -> None:
    rows = []
    for row in HONEST:
        older = dict(row)
        older["model_outputs"] = older.pop("generated_text")
        rows.append(older)
    write_mmlu_pro(tmp_path / "copy", {"others": HONEST, MMLU_PRO_MODELS[7]: rows})
    prepare("mmlu_pro_answers", tmp_path / "copy", out)
    row = read_rows(out / "recorded.jsonl")["mmlu_pro-1"]
    assert row["answers"][MMLU_PRO_MODELS[7]] == "So the answer is (B)."


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A stand-in for GitHub's files on loopback, of the folder `site`; yields what was asked."""
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_request(self, code: Any = "-", size: Any = "-") -> None:
            asked.append(self.path)

        def log_message(self, *arguments: Any) -> None:
            pass

    handler = partial(Handler, directory=str(tmp_path / "site"))
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{httpd.server_port}"
    monkeypatch.setattr(upstream_files, "GITHUB_FILES", address)
    yield asked
    httpd.shutdown()
    httpd.server_close()


def test_files_are_fetched_at_the_pinned_commit_and_only_once(
    tmp_path: Path, out: Path, server: list[str]
) -> None:
    source = ANSWER_SOURCES["mmlu_pro_answers"]
    write_mmlu_pro(tmp_path / "site" / source.repository / source.commit, {"others": HONEST})
    prepare_data.main(["mmlu_pro_answers", "--out", str(out)])
    assert len(server) == len(MMLU_PRO_MODELS)
    row = read_rows(out / "recorded.jsonl")["mmlu_pro-1"]
    assert row["meta"]["commit"] == "f418b116db00b065c2aea046518d8fcf74d39872"
    prepare_data.main(["mmlu_pro_answers", "--out", str(out)])
    assert len(server) == len(MMLU_PRO_MODELS)


def test_a_fetch_that_fails_says_what_to_do_and_keeps_the_files_it_has(
    tmp_path: Path, out: Path, server: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = ANSWER_SOURCES["mmlu_pro_answers"]
    site = write_mmlu_pro(tmp_path / "site" / source.repository / source.commit, {"others": HONEST})
    last = site / "eval_results" / f"model_outputs_{MMLU_PRO_MODELS[-1]}_5shots.zip"
    content = last.read_bytes()
    last.unlink()
    with pytest.raises(DataError, match="does the repository have this file at that commit"):
        prepare_data.main(["mmlu_pro_answers", "--out", str(out)])
    last.write_bytes(content)
    prepare_data.main(["mmlu_pro_answers", "--out", str(out)])
    assert len(server) == len(MMLU_PRO_MODELS) + 1  # the last twice, all others once
    monkeypatch.setattr(upstream_files, "GITHUB_FILES", "http://127.0.0.1:9")  # nobody listens
    with pytest.raises(DataError, match="--source FOLDER") as error:
        prepare_data.main(["mmlu_pro_answers", "--out", str(tmp_path / "elsewhere")])
    assert "git clone https://github.com/TIGER-AI-Lab/MMLU-Pro FOLDER" in str(error.value)
