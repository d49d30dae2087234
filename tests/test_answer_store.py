import json
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys

import pytest

from backends.answer_store import Answer, AnswerStore, StoredAnswer, answer_key, rebuild
from runtime.errors import StoreError
from scripts import store as store_script


def stored(name, text="yes", expert="e", **more):
    values = {"prompt_tokens": 3, "completion_tokens": 1, "latency_s": 0.25, **more}
    return StoredAnswer(
        answer_key({"expert": expert}, name, {}), expert, name, Answer(text, **values)
    )


@pytest.fixture
def store(tmp_path):
    opened = AnswerStore(tmp_path / "runs" / "answers.sqlite", {"torch": "1.2.3"})
    yield opened
    opened.close()


def test_what_is_put_is_got_back_whole_by_another_reader(store):
    row = stored(
        "Ünïcode\n\x00{}",
        "réponse\n'; DROP TABLE answers; --",
        latency_s=0.1 + 0.2,
        prompt_cut=True,
    )
    empty = stored("silence", "", completion_tokens=0)
    store.put_many([row, empty])
    again = AnswerStore(store.path)
    assert again.get_many([empty.key, row.key, b"unknown", row.key]) == {
        row.key: row.answer,
        empty.key: empty.answer,
    }
    assert len(again) == 2


def test_what_an_answer_was_made_of_stands_beside_it(store):
    store.put_many([stored("Why?", expert="llama")])
    (kept,) = (
        sqlite3.connect(store.path)
        .execute("SELECT expert, prompt, made_with FROM answers")
        .fetchall()
    )
    assert kept[:2] == ("llama", "Why?")
    assert json.loads(kept[2]) == {"torch": "1.2.3"}


def test_more_keys_than_one_select_takes_are_all_found(store):
    rows = [stored(f"q{i}", f"a{i}") for i in range(1234)]
    assert store.put_many(rows) == {row.key: row.answer for row in rows}


def test_the_first_write_wins_and_the_second_writer_reads_back_the_first(store):
    first, second = stored("q", "first"), stored("q", "second", completion_tokens=9)
    assert first.key == second.key
    store.put_many([first])
    other = AnswerStore(store.path)
    assert other.put_many([second, stored("new", "mine")]) == {
        first.key: first.answer,
        stored("new").key: stored("new", "mine").answer,
    }
    assert store.get_many([first.key]) == {first.key: first.answer}


def test_the_key_depends_on_identity_prompt_and_decoding_and_on_nothing_else():
    base = ({"weights": "abc", "dtype": "float32"}, "Why?", {"seed": 0, "temperature": 0.0})
    assert answer_key(
        {"dtype": "float32", "weights": "abc"}, "Why?", {"temperature": 0.0, "seed": 0}
    ) == answer_key(*base)  # order of fields
    others = [
        ({**base[0], "dtype": "bfloat16"}, *base[1:]),
        (base[0], "Why? ", base[2]),
        (*base[:2], {**base[2], "seed": 1}),
    ]
    assert len({answer_key(*base), *(answer_key(*other) for other in others)}) == 4


def write_in_turns(path, writer, barrier, results):
    """300 keys that another process writes too, ten at a time, from the other end: each has written
    its first ten before either goes on.
    """
    store = AnswerStore(path)
    kept = {}
    for start in range(0, 300, 10):
        order = range(start, start + 10) if writer == "a" else range(299 - start, 289 - start, -1)
        kept |= store.put_many([stored(f"q{i}", f"from {writer}") for i in order])
        if start == 0:
            barrier.wait(timeout=60)
    results.put((writer, {key.hex(): answer.text for key, answer in kept.items()}))


@pytest.mark.slow
def test_two_processes_writing_at_once_lose_nothing_and_agree(store):
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    writers = [
        context.Process(target=write_in_turns, args=(store.path, name, barrier, results))
        for name in "ab"
    ]
    for writer in writers:
        writer.start()
    kept = dict(results.get(timeout=60) for _ in writers)
    for writer in writers:
        writer.join(timeout=60)
    assert [writer.exitcode for writer in writers] == [0, 0]
    final = {
        key.hex(): answer.text
        for key, answer in store.get_many(stored(f"q{i}").key for i in range(300)).items()
    }
    assert len(final) == 300
    assert kept["a"] == kept["b"] == final  # what a writer went on with is what the store holds
    assert set(final.values()) == {"from a", "from b"}


def test_what_cannot_be_stored_is_an_error_and_the_store_goes_on(store):
    with pytest.raises(UnicodeEncodeError):
        store.put_many([stored("q", "half a character: \ud83d")])
    with pytest.raises(StoreError, match="NOT NULL"):
        store.put_many([StoredAnswer(b"k" * 16, "e", "p", Answer("text", None, 1, 0.0))])
    assert len(store.put_many([stored("q", "whole")])) == len(store) == 1


@pytest.mark.slow
def test_a_killed_process_loses_nothing_that_put_many_had_returned(store, project):
    code = (
        f"import sys; sys.path[:0] = [{str(project)!r}, {str(project / 'tests')!r}]\n"
        "from test_answer_store import AnswerStore, stored\n"
        f"store, batch = AnswerStore({str(store.path)!r}), 0\n"
        "while True:\n"
        "    store.put_many([stored(f'q{batch}-{i}', 'x' * 500) for i in range(20)])\n"
        "    print(batch, flush=True)\n"
        "    batch += 1\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(project / "scripts")},
    )
    last = -1
    while last < 40:
        last = int(child.stdout.readline())
    child.send_signal(signal.SIGKILL)
    # What it still said before it died
    last = max([last, *(int(line) for line in child.stdout.read().split())])
    assert child.wait(timeout=60) == -signal.SIGKILL
    promised = [stored(f"q{batch}-{i}").key for batch in range(last + 1) for i in range(20)]
    again = AnswerStore(store.path)
    assert len(again.get_many(promised)) == len(promised)
    assert len(again) % 20 == 0  # a transaction is there whole or not at all
    assert sqlite3.connect(store.path).execute("PRAGMA integrity_check").fetchone() == ("ok",)


NUM_ROWS = 4000


def damaged_store(path, pages):
    """A closed store of 4,000 answers with noise written over the given pages; returns its rows."""
    store = AnswerStore(path, {"torch": "1.2.3"})
    rows = [stored(f"question {i}", f"answer {i} " * 20) for i in range(NUM_ROWS)]
    store.put_many(rows)
    store.close()
    page_size = 4096
    with path.open("r+b") as file:
        num_pages = path.stat().st_size // page_size
        for share in pages:
            file.seek(int(share * num_pages) * page_size)
            file.write(b"\xa5" * page_size)
    return rows


def test_a_damaged_store_names_the_command_that_rescues_it(tmp_path):
    path = tmp_path / "answers.sqlite"
    rows = damaged_store(path, [0.5])
    with pytest.raises(StoreError, match=f"python scripts/store.py rebuild {path}"):
        AnswerStore(path).get_many(row.key for row in rows)
    with pytest.raises(StoreError, match=f"python scripts/store.py rebuild {path}"):
        store_script.main(["check", str(path)])


def test_a_file_that_is_no_store_at_all_is_not_overwritten(tmp_path):
    path = tmp_path / "answers.sqlite"
    path.write_bytes(b"my thesis, not a database" * 100)
    with pytest.raises(
        StoreError, match=r"not a database, so no answer store\. Let pool\.store name another path"
    ):
        AnswerStore(path)
    with pytest.raises(StoreError, match="no SQLite file"):
        rebuild(path)
    assert path.read_bytes() == b"my thesis, not a database" * 100


@pytest.mark.slow
@pytest.mark.parametrize("pages", [[0.5], [0.15, 0.4, 0.6, 0.85]], ids=["one page", "four pages"])
def test_rebuild_rescues_all_but_the_damaged_pages_rows(tmp_path, capsys, pages):
    path = tmp_path / "answers.sqlite"
    rows = damaged_store(path, pages)
    broken = path.read_bytes()
    store_script.main(["rebuild", str(path)])
    rescued = AnswerStore(path).get_many(row.key for row in rows)
    assert f"{len(rescued)} answers rescued" in capsys.readouterr().out
    assert all(rescued[row.key] == row.answer for row in rows if row.key in rescued)
    # A page of 4 KiB holds about ten rows of 300 to 400 bytes
    assert len(rescued) >= NUM_ROWS - 25 * len(pages)
    assert path.with_name("answers.sqlite.damaged").read_bytes() == broken
    store_script.main(["check", str(path)])
    assert f"e: {len(rescued)} answers" in capsys.readouterr().out


@pytest.mark.parametrize("pages_short", [1, 40])
def test_rebuild_rescues_what_a_store_that_was_cut_short_still_holds(tmp_path, pages_short):
    path = tmp_path / "answers.sqlite"
    rows = damaged_store(path, [])
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - pages_short * 4096)
    store_script.main(["rebuild", str(path)])
    store = AnswerStore(path)
    rescued = store.get_many(row.key for row in rows)
    store.close()
    assert all(rescued[row.key] == row.answer for row in rows if row.key in rescued)
    assert len(rescued) >= NUM_ROWS - 25 * pages_short  # about ten rows a page
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "answers.sqlite",
        "answers.sqlite.damaged",
    ]


@pytest.mark.parametrize("damaged", ["a.sqlite", "b.sqlite"])
def test_merge_blames_the_store_that_is_damaged(tmp_path, damaged):
    for name in ("a.sqlite", "b.sqlite"):
        damaged_store(tmp_path / name, [0.5] if name == damaged else [])
    with pytest.raises(StoreError, match=rf"(?s)^[^ ]*{damaged}: .*rebuild [^ ]*{damaged}"):
        store_script.main(["merge", str(tmp_path / "a.sqlite"), str(tmp_path / "b.sqlite")])


@pytest.mark.slow
def test_a_second_rebuild_keeps_the_first_damaged_file(tmp_path):
    path = tmp_path / "answers.sqlite"
    damaged_store(path, [0.5])
    first = path.read_bytes()
    store_script.main(["rebuild", str(path)])
    store_script.main(["rebuild", str(path)])
    assert first in [file.read_bytes() for file in tmp_path.iterdir()]


def test_a_full_disk_is_said_so_and_costs_nothing_already_stored(store):
    before = [stored(f"q{i}") for i in range(50)]
    store.put_many(before)
    # SQLite then reports SQLITE_FULL, as on a full disk, when the file would grow
    store._db.execute("PRAGMA max_page_count = 1")
    with pytest.raises(
        StoreError, match=r"disk is full\. Free some space and run again: what was stored is safe"
    ):
        store.put_many([stored(f"big {i}", "x" * 5000) for i in range(50)])
    assert len(store) == 50
    store._db.execute("PRAGMA max_page_count = 1000000")  # space has been freed
    store.put_many([stored("after")])
    assert len(store.get_many(row.key for row in [*before, stored("after")])) == 51


def test_store_py_names_a_store_that_does_not_exist(tmp_path):
    with pytest.raises(StoreError, match=r"nowhere\.sqlite: no such store"):
        store_script.main(["check", str(tmp_path / "nowhere.sqlite")])


# --- why an answer ended, and how sure the model was ---

OLD_SCHEMA = """
CREATE TABLE answers (
    key BLOB PRIMARY KEY, expert TEXT NOT NULL, prompt TEXT NOT NULL, text TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL, latency_s REAL NOT NULL,
    prompt_cut INTEGER NOT NULL, made_with TEXT NOT NULL
) WITHOUT ROWID
"""
SURE = {"finish": "length", "logprob_mean": -0.25, "logprob_min": -1.5}


def certainty(answer):
    return answer.finish, answer.logprob_mean, answer.logprob_min


@pytest.fixture
def old_store(tmp_path):
    """A store as version 1 wrote it, with one answer."""
    path = tmp_path / "old.sqlite"
    row = stored("old", "from before", prompt_cut=True)
    db = sqlite3.connect(path)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute(OLD_SCHEMA)
    values = (row.key, "e", "old", "from before", 3, 1, 0.25, 1, '{"torch": "1.0"}')
    db.execute("INSERT INTO answers VALUES (?,?,?,?,?,?,?,?,?)", values)
    db.commit()
    db.close()
    return path


def columns_of(path):
    db = sqlite3.connect(path)
    names = [row[1] for row in db.execute("PRAGMA table_info(answers)")]
    db.close()
    return names


def test_the_end_and_the_log_probabilities_of_an_answer_are_kept(store):
    sure = stored("q", **SURE)
    unknown = stored("r")
    store.put_many([sure, unknown])
    kept = AnswerStore(store.path).get_many([sure.key, unknown.key])
    assert certainty(kept[sure.key]) == ("length", -0.25, -1.5)
    assert certainty(kept[unknown.key]) == ("", None, None)


def test_an_older_store_is_read_and_written_on_without_loss(old_store):
    old, new = stored("old", "from before", prompt_cut=True), stored("new", **SURE)
    first, second = AnswerStore(old_store), AnswerStore(old_store)
    assert first.get_many([old.key]) == {old.key: old.answer}
    second.put_many([new])
    kept = first.get_many([old.key, new.key])
    assert kept == {old.key: old.answer, new.key: new.answer}
    assert certainty(kept[old.key]) == ("", None, None)
    assert certainty(kept[new.key]) == ("length", -0.25, -1.5)
    db = sqlite3.connect(old_store)
    found = db.execute("SELECT made_with FROM answers WHERE prompt = 'old'").fetchall()
    assert found == [('{"torch": "1.0"}',)]


def test_an_older_store_that_is_only_read_stays_as_it_is(old_store, capsys):
    before = old_store.read_bytes()
    old = stored("old", "from before", prompt_cut=True)
    store = AnswerStore(old_store, read_only=True)
    kept = store.get_many([old.key])
    assert kept == {old.key: old.answer}
    assert certainty(kept[old.key]) == ("", None, None)
    store.check()
    with pytest.raises(StoreError, match=r"old\.sqlite: may only be read"):
        store.put_many([stored("new")])
    store.close()
    store_script.main(["info", str(old_store)])
    assert "e: 1 answers, 1 tokens; 0 ran out of tokens, 0 have" in capsys.readouterr().out
    assert old_store.read_bytes() == before
    assert len(columns_of(old_store)) == 9


def test_merge_and_prune_keep_them_between_stores_of_both_ages(store, old_store, tmp_path, capsys):
    sure = stored("q", **SURE)
    store.put_many([sure])
    old_key = stored("old").key
    store_script.main(["merge", str(store.path), str(old_store)])
    kept = store.get_many([sure.key, old_key])
    assert certainty(kept[sure.key]) == ("length", -0.25, -1.5)
    assert certainty(kept[old_key]) == ("", None, None)
    assert len(columns_of(old_store)) == 9

    store_script.main(["merge", str(old_store), str(store.path)])
    assert certainty(AnswerStore(old_store).get_many([sure.key])[sure.key])[0] == "length"
    store_script.main(["prune", str(store.path), "e"])
    pruned = AnswerStore(tmp_path / "runs" / "answers.sqlite.pruned")
    assert certainty(pruned.get_many([sure.key])[sure.key]) == ("length", -0.25, -1.5)


def test_rebuild_keeps_them_and_reads_older_stores(store, old_store):
    sure = stored("q", **SURE)
    store.put_many([sure])
    store.close()
    assert rebuild(store.path) == 1
    assert certainty(AnswerStore(store.path).get_many([sure.key])[sure.key])[1:] == (-0.25, -1.5)
    old = stored("old", "from before", prompt_cut=True)
    assert rebuild(old_store) == 1
    assert AnswerStore(old_store).get_many([old.key]) == {old.key: old.answer}
    assert len(columns_of(old_store)) == 12


def test_damage_that_the_message_quotes_as_bytes_is_told_in_words(store):
    store.put_many([stored(f"q{n}") for n in range(50)])
    store.close()
    data = store.path.read_bytes()
    assert data.count(b"key BLOB PRIMARY KEY") == 1
    store.path.write_bytes(data.replace(b"key BLOB PRIMARY KEY", b"key BLOB \xc0RIMA\xe4Y KEY"))
    with pytest.raises(StoreError, match="If the store is damaged, rescue"):
        AnswerStore(store.path)
    with pytest.raises(StoreError, match="no answer can be read from it"):
        rebuild(store.path)
