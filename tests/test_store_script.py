"""scripts/store.py: what is in a store, and moving answers between stores and recorded files, with
nothing lost.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from recordings import make_rows, write_rows

from backends.answer_store import Answer, AnswerStore, StoredAnswer, answer_key
from config import SourceConfig
from experts import Request, build_pool
from questions import Question, read_questions
from runtime.command_line import load_config
from runtime.errors import ConfigError, StoreError
from scripts import store as store_script


def stored(prompt: str, text: str, expert: str = "e") -> StoredAnswer:
    return StoredAnswer(
        answer_key({"expert": expert}, prompt, {}), expert, prompt, Answer(text, 3, 2, 0.5)
    )


def make_store(path: Path, rows: Sequence[StoredAnswer]) -> Path:
    store = AnswerStore(path)
    store.put_many(rows)
    store.close()
    return path


def texts(path: Path, rows: Sequence[StoredAnswer]) -> list[str | None]:
    store = AnswerStore(path)
    found = store.get_many(row.key for row in rows)
    store.close()
    return [found[row.key].text if row.key in found else None for row in rows]


def test_info_tells_experts_answers_and_tokens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_store(
        tmp_path / "a.sqlite", [stored("p", "x"), stored("q", "y"), stored("p", "z", "f")]
    )
    store_script.main(["info", str(path)])
    said = capsys.readouterr().out
    assert (
        "e: 2 answers, 4 tokens" in said
        and "f: 1 answers, 2 tokens" in said
        and "3 answers, 0.0 MB" in said
    )
    with pytest.raises(StoreError, match=r"b\.sqlite: no such store"):
        store_script.main(["info", str(tmp_path / "b.sqlite")])
    assert not (tmp_path / "b.sqlite").exists()


def test_merging_keeps_the_first_write_and_says_what_differs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = make_store(tmp_path / "a.sqlite", [stored("p", "mine"), stored("q", "same")])
    b = make_store(
        tmp_path / "b.sqlite", [stored("p", "theirs"), stored("q", "same"), stored("r", "new")]
    )
    c = make_store(tmp_path / "c.sqlite", [stored("r", "newer"), stored("s", "last")])
    store_script.main(["merge", str(a), str(b), str(c)])
    assert texts(a, [stored(prompt, "") for prompt in "pqrs"]) == ["mine", "same", "new", "last"]
    said = capsys.readouterr().out
    assert (
        f"{b}: 1 answers taken over; 1 others differ" in said
        and f"{c}: 1 answers taken over; 1 others differ" in said
    )
    assert texts(b, [stored("p", "")]) == ["theirs"]
    broken = tmp_path / "d.sqlite"
    broken.write_bytes(b"no store" * 200)
    with pytest.raises(StoreError, match=r"d\.sqlite"):
        store_script.main(["merge", str(tmp_path / "new.sqlite"), str(broken)])


@pytest.mark.parametrize(
    "made",
    ["CREATE TABLE letters (key)", "CREATE TABLE answers (id, text)", None],
    ids=["no answers", "other answers", "empty"],
)
def test_a_file_that_is_no_store_is_refused_and_left_as_it_is(
    tmp_path: Path, made: str | None
) -> None:
    foreign, store = tmp_path / "foreign.db", make_store(tmp_path / "a.sqlite", [stored("p", "x")])
    foreign.touch()
    if made:
        with contextlib.closing(sqlite3.connect(foreign)) as db:
            db.execute(made)
    before = foreign.read_bytes()
    for arguments in (
        ["info", foreign],
        ["check", foreign],
        ["merge", store, foreign],
        ["merge", foreign, store],
        ["prune", foreign, "e"],
        ["rebuild", foreign],
    ):
        if made is None and arguments == ["merge", foreign, store]:
            continue  # a store may be begun in an empty file
        with pytest.raises(
            StoreError,
            match=(
                r"foreign\.db.* no (answer store|store|SQLite file)|foreign\.db: no answer can be"
                r" read"
            ),
        ):
            store_script.main([*map(str, arguments)])
        assert foreign.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.sqlite", "foreign.db"]


def test_what_is_pruned_can_be_merged_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [stored("p", "x"), stored("q", "y"), stored("p", "z", "f"), stored("p", "w", "g")]
    path = make_store(tmp_path / "a.sqlite", rows)
    with pytest.raises(StoreError, match="no answers of nobody; it has answers of e, f, g"):
        store_script.main(["prune", str(path), "e", "nobody"])
    assert texts(path, rows) == ["x", "y", "z", "w"]
    store_script.main(["prune", str(path), "e", "g"])
    assert texts(path, rows) == [None, None, "z", None]
    assert f"e: 2 answers moved to {path}.pruned" in capsys.readouterr().out
    make_store(path, [stored("p", "x again")])
    # A second time: the backup keeps what it had, and both are gone from here
    store_script.main(["prune", str(path), "e"])
    store_script.main(["merge", str(path), f"{path}.pruned"])
    assert texts(path, rows) == ["x", "y", "z", "w"]
    store_script.main(["check", str(path)])


@pytest.fixture
def workshop(tmp_path: Path) -> dict[str, Any]:
    """Recorded answers of 30 questions, a configuration of two experts on them, and the store that
    pool fills.
    """
    rows = make_rows(30)
    path = write_rows(tmp_path / "rec.jsonl", rows)
    config = {
        "device": "cpu",
        "data": {
            split: {"path": path, "split": split, "metric": "recorded"}
            for split in ("train", "validation", "test")
        },
        "pool": {
            "store": str(tmp_path / "a.sqlite"),
            "experts": [
                {"name": name, "kind": "recorded", "path": path, "params_b": 1}
                for name in ("small", "large")
            ],
        },
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    return {
        "rows": rows,
        "path": path,
        "config": str(tmp_path / "c.yaml"),
        "store": tmp_path / "a.sqlite",
        "out": tmp_path / "out.jsonl",
    }


def test_a_store_is_exported_and_the_export_is_a_recording_of_the_same(
    workshop: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    pool = build_pool(load_config(Path(workshop["config"])))
    pool.answer([Request(idx, row["question"]) for row in workshop["rows"][2:] for idx in (0, 1)])
    pool.answer([Request(0, workshop["rows"][0]["question"])])  # by one of two experts only
    arguments = [
        "export",
        str(workshop["store"]),
        str(workshop["out"]),
        "--config",
        workshop["config"],
    ]
    store_script.main(arguments)
    assert "28 of 30 questions" in capsys.readouterr().out
    written = {
        row["question"]: row for row in map(json.loads, workshop["out"].read_text().splitlines())
    }
    assert len(written) == 28
    for row in workshop["rows"][2:]:
        found = written[row["question"]]
        for part in ("answers", "scores"):
            assert found[part] == {name: row[part][name] for name in ("small", "large")}
        assert (
            found["reference"] == row["reference"]
            and found["meta"]["split"] == row["meta"]["split"]
            and found["meta"]["task"] == row["meta"]["task"]
        )
        assert found["meta"]["tokens"] == {
            name: row["meta"]["tokens"][name] for name in ("small", "large")
        }
    before, after = (
        read_questions(SourceConfig(path=str(path), split="test", metric="recorded"))
        for path in (workshop["path"], workshop["out"])
    )
    assert [(q.text, q.reference, q.task) for q in after] == [
        (q.text, q.reference, q.task) for q in before
    ]
    with pytest.raises(StoreError, match=r"out\.jsonl exists; name another file"):
        store_script.main(arguments)


def test_exported_scores_are_in_the_range_they_were_read_in(workshop: dict[str, Any]) -> None:
    pool = build_pool(load_config(Path(workshop["config"])))
    pool.answer([Request(idx, row["question"]) for row in workshop["rows"] for idx in (0, 1)])
    in_marks = write_rows(
        workshop["out"].with_name("marks.jsonl"),
        [
            row | {"scores": {name: 1 + 9 * score for name, score in row["scores"].items()}}
            for row in workshop["rows"]
        ],
    )
    ranges = [
        f"--data.{split}.{setting}"
        for split in store_script.SPLITS
        for setting in (f"path={in_marks}", "score_range=[1, 10]")
    ]
    store_script.main(
        [
            "export",
            str(workshop["store"]),
            str(workshop["out"]),
            "--config",
            workshop["config"],
            *ranges,
        ]
    )
    written = {
        row["question"]: row["scores"]
        for row in map(json.loads, workshop["out"].read_text().splitlines())
    }
    for row in workshop["rows"]:
        assert written[row["question"]] == pytest.approx(
            {name: 1 + 9 * row["scores"][name] for name in ("small", "large")}
        )


def test_one_split_can_be_exported_and_nothing_to_export_is_said(workshop: dict[str, Any]) -> None:
    make_store(workshop["store"], [])
    arguments = [
        "export",
        str(workshop["store"]),
        str(workshop["out"]),
        "--config",
        workshop["config"],
        "--split",
        "test",
    ]
    with pytest.raises(
        StoreError, match="none of the 6 questions has been answered by all of small, large"
    ):
        store_script.main(arguments)
    assert not list(workshop["out"].parent.glob("out.jsonl*"))
    pool = build_pool(load_config(Path(workshop["config"])))
    pool.answer([Request(idx, row["question"]) for row in workshop["rows"] for idx in (0, 1)])
    store_script.main(arguments)
    assert len(workshop["out"].read_text().splitlines()) == 6


def test_imported_answers_serve_as_first_calls_and_importing_again_adds_nothing(
    workshop: dict[str, Any], tmp_path: Path, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experts = [
        {
            "name": name,
            "source": str(project / "data" / "tiny_pool" / "llama-0.2m"),
            "params_b": 1,
            "prompt_format": "plain",
        }
        for name in ("small", "large")
    ]
    config = tmp_path / "hf.yaml"
    config.write_text(yaml.safe_dump({"device": "cpu", "pool": {"experts": experts}}))
    arguments = ["import", str(workshop["store"]), workshop["path"], "--config", str(config)]
    store_script.main(arguments)
    store_script.main(arguments)
    said = capsys.readouterr().out
    assert (
        "60 answers of 2 experts to 30 questions added" in said
        and "0 answers of 2 experts to 30 questions added" in said
    )
    config.write_text(
        yaml.safe_dump(
            {
                "device": "cpu",
                "pool": {
                    "store": str(workshop["store"]),
                    "experts": [e | {"first_answers": workshop["path"]} for e in experts],
                },
            }
        )
    )
    pool = build_pool(load_config(config))
    row = workshop["rows"][0]
    assert [
        a.text for a in pool.answer([Request(0, row["question"]), Request(1, row["question"])])
    ] == [row["answers"]["small"], row["answers"]["large"]]
    assert (pool.stats.hits, pool.stats.replayed, pool.stats.generated) == (2, 0, 0)


def test_settings_belong_to_commands_that_read_a_configuration(
    workshop: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    make_store(workshop["store"], [])
    with pytest.raises(SystemExit):
        store_script.main(["check", str(workshop["store"]), "--data.test.path", "x.jsonl"])
    assert "unexpected --data.test.path" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="did you mean 'data'"):
        store_script.main(
            [
                "export",
                str(workshop["store"]),
                str(workshop["out"]),
                "--config",
                workshop["config"],
                "--dada.test",
                "1",
            ]
        )


def test_an_export_tells_how_answers_ended_and_no_more_than_is_known() -> None:
    answers = {
        "a": Answer("x", 3, 2, 0.5, finish="length", logprob_mean=-0.25, logprob_min=-1.5),
        "b": Answer("y", 3, 2, 0.5),
    }
    question = Question("1", "why?", "yes", "t", "exact_match")
    meta = store_script.recorded_row(question, "test", answers, (0.0, 1.0))["meta"]
    assert meta["finish"] == {"a": "length"}
    assert (meta["logprob_mean"], meta["logprob_min"]) == ({"a": -0.25}, {"a": -1.5})
    unknown = {"b": answers["b"]}
    bare = store_script.recorded_row(question, "test", unknown, (0.0, 1.0))["meta"]
    assert not {"finish", "logprob_mean", "logprob_min"} & bare.keys()
