"""Every answer ever generated, on disk: one SQLite file shared by runs and processes.

Expert answers cost GPU-hours, so they are written batch by batch and never generated twice. The
first write of a key wins, and a writer reads back what won, so two processes that race for a key go
on with the same answer.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

from runtime.errors import StoreError

SQLITE_MAGIC = b"SQLite format 3\0"
CHECKED_BYTES = 64_000_000  # a store up to this size is read whole before a run: 0.2 s
SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    key BLOB PRIMARY KEY, expert TEXT NOT NULL, prompt TEXT NOT NULL, text TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL, latency_s REAL NOT NULL,
    prompt_cut INTEGER NOT NULL, made_with TEXT NOT NULL
) WITHOUT ROWID
"""
COLUMNS = "text, prompt_tokens, completion_tokens, latency_s, prompt_cut"
ALL_COLUMNS = ["key", "expert", "prompt", *COLUMNS.split(", "), "made_with"]
stored_fields = attrgetter(*COLUMNS.split(", "))
HEADER_BYTES = 100
NUM_RANGES = 4096  # of keys, by their first three hexadecimal digits
MAX_GROWTH = 1000  # a header that promises more is damaged itself
LOOKUP_CHUNK = 500  # keys per SELECT; SQLite's limit on variables is far above


@dataclass(frozen=True)
class Answer:
    """What an expert said to a prompt, and what it took."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    latency_s: float  # its share of the batch it was first generated in
    prompt_cut: bool = False  # the prompt was longer than the model's context
    whole_text: str | None = None  # with the thinking part, where `text` is without; never stored

    @property
    def never_ended_thinking(self) -> bool:
        """Whether it is empty because the model never came to an answer."""
        return bool(self.whole_text) and not self.text.strip()


@dataclass(frozen=True)
class StoredAnswer:
    """An answer on its way into the store, with what it was made of."""

    key: bytes
    expert: str
    prompt: str
    answer: Answer


def answer_key(identity: dict[str, Any], prompt: str, decoding: dict[str, Any]) -> bytes:
    """128-bit key of an answer: expert identity, rendered prompt, decoding parameters.

    Same key, same answer.
    """
    canonical = json.dumps([identity, prompt, decoding], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).digest()[:16]


class AnswerStore:
    """Key-value store of answers.

    WAL mode; where the file system cannot share memory (some network mounts) SQLite falls back to a
    rollback journal. Raises StoreError when the file is damaged, somebody else's, locked for over a
    minute, or the disk is full.
    """

    def __init__(self, path: Path | str, made_with: dict[str, str] | None = None):
        self.path = Path(path)
        self.num_reads = 0  # keys looked up so far
        self.made_with = json.dumps(made_with or {}, sort_keys=True)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._db = sqlite3.connect(self.path, timeout=60.0, isolation_level=None)
            tables = self._db.execute(
                "SELECT name FROM sqlite_master WHERE type = 'table'"
            ).fetchall()
            if (
                tables
                and [column for _, column, *_ in self._db.execute("PRAGMA table_info(answers)")]
                != ALL_COLUMNS
            ):
                self._db.close()
                raise StoreError(
                    f"{self.path}: an SQLite file of other tables, so no answer store. Let"
                    " pool.store name another path."
                )
            mode = self._db.execute("PRAGMA journal_mode=WAL").fetchone()[0]
            # A power cut may lose the last transactions of a WAL under NORMAL, a killed process
            # loses none.
            self._db.execute(f"PRAGMA synchronous={'NORMAL' if mode == 'wal' else 'FULL'}")
            self._db.execute(SCHEMA)
        except sqlite3.Error as error:
            raise self._explained(error) from error

    def wait_for_locks(self, seconds: float) -> None:
        """Wait so long for other processes from now on, before an error is raised."""
        self._run(f"PRAGMA busy_timeout={int(1000 * seconds)}")

    def _explained(self, error: sqlite3.Error) -> StoreError:
        if isinstance(error, sqlite3.OperationalError) and "full" in str(error):
            return StoreError(
                f"{self.path}: {error}. Free some space and run again: what was stored is safe."
            )
        if isinstance(error, sqlite3.OperationalError) and "locked" in str(error):
            return StoreError(
                f"{self.path}: {error}. Another process has held it for over a minute."
            )
        if "not a database" in str(error):
            return StoreError(
                f"{self.path}: {error}, so no answer store. Let pool.store name another path, or"
                " move the file away to start an empty one."
            )
        return StoreError(
            f"{self.path}: {error}. If the store is damaged, rescue what can be read with\n   "
            f" python scripts/store.py rebuild {self.path}\nor move the file away to start an empty"
            " one."
        )

    def __len__(self) -> int:
        return self._run("SELECT COUNT(*) FROM answers")[0][0]

    def _run(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of a statement."""
        try:
            return self._db.execute(sql, parameters).fetchall()
        except sqlite3.Error as error:
            raise self._explained(error) from error

    def get_many(self, keys: Iterable[bytes]) -> dict[bytes, Answer]:
        """The stored answers among `keys`."""
        wanted = list(dict.fromkeys(keys))
        out: dict[bytes, Answer] = {}
        self.num_reads += len(wanted)
        for start in range(0, len(wanted), LOOKUP_CHUNK):
            chunk = wanted[start : start + LOOKUP_CHUNK]
            marks = ",".join("?" * len(chunk))
            rows = self._run(f"SELECT key, {COLUMNS} FROM answers WHERE key IN ({marks})", chunk)
            for key, text, prompt_tokens, completion_tokens, latency_s, was_cut in rows:
                out[key] = Answer(text, prompt_tokens, completion_tokens, latency_s, bool(was_cut))
        return out

    def put_many(self, answers: Sequence[StoredAnswer]) -> dict[bytes, Answer]:
        """Store in one transaction and return what the store now holds: an earlier writer's answer
        where there was one.
        """
        rows = [
            (a.key, a.expert, a.prompt, *stored_fields(a.answer), self.made_with) for a in answers
        ]
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._db.executemany(
                    "INSERT INTO answers VALUES (?,?,?,?,?,?,?,?,?) ON CONFLICT(key) DO NOTHING",
                    rows,
                )
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise self._explained(error) from error
        return self.get_many(a.key for a in answers)

    def counts(self) -> list[tuple[str, int, int]]:
        """Name, answers and generated tokens of every expert."""
        return self._run(
            "SELECT expert, COUNT(*), SUM(completion_tokens) FROM answers GROUP BY expert ORDER BY"
            " expert"
        )

    def check(self) -> None:
        """Read the whole file. Raises StoreError when it is damaged."""
        if (verdict := self._run("PRAGMA quick_check")[0][0]) != "ok":
            raise self._explained(sqlite3.DatabaseError(verdict))

    def check_small(self) -> None:
        """Check a store that is read in no time; a larger one shows its damage when it is met.

        Raises StoreError.
        """
        if self.path.stat().st_size <= CHECKED_BYTES:
            self.check()

    def merge(self, other: Path) -> tuple[int, int]:
        """Take over another store's answers; where both have one, this store's stays.

        Returns how many came, and how many of the rest differ in text.
        """
        for store in (AnswerStore(other), self):  # damage is blamed on the file that has it
            store.check()
        before = len(self)
        self._run("ATTACH ? AS other", [str(other)])
        try:
            self._run("INSERT OR IGNORE INTO main.answers SELECT * FROM other.answers")
            differ = self._run(
                "SELECT COUNT(*) FROM other.answers AS theirs JOIN main.answers AS ours USING (key)"
                " WHERE theirs.text != ours.text"
            )[0][0]
        finally:
            self._run("DETACH other")
        return len(self) - before, differ

    def move(self, expert: str, other: Path) -> int:
        """Move an expert's answers into another store; returns how many.

        An answer leaves here only once it is there.
        """
        AnswerStore(other).close()
        self._run("ATTACH ? AS other", [str(other)])
        try:
            self._run(
                "INSERT OR IGNORE INTO other.answers SELECT * FROM main.answers WHERE expert = ?",
                [expert],
            )
            self._run(
                "DELETE FROM main.answers WHERE expert = ? AND key IN (SELECT key FROM"
                " other.answers)",
                [expert],
            )
            moved = self._run("SELECT changes()")[0][0]
        finally:
            self._run("DETACH other")
        self._run("VACUUM")
        return moved

    def close(self) -> None:
        self._db.close()


def rebuild(path: Path) -> int:
    """Copy every readable answer of a damaged store into a new one that takes its place; the old
    file is kept beside it.

    Returns the number rescued. Raises StoreError for a file that never was a store. Rows are read
    in 4,096 ranges of keys, so that a damaged page costs its own range at most. A file that was cut
    short is read as if zeros followed: SQLite refuses a shorter one as a whole.
    """
    with path.open("rb") as file:
        if file.read(len(SQLITE_MAGIC)) != SQLITE_MAGIC:
            raise StoreError(
                f"{path}: no SQLite file, or its very beginning is damaged: nothing can be rescued"
                " from it"
            )
    fresh_path = path.with_name(path.name + ".rebuilt")
    fresh_path.unlink(missing_ok=True)
    with _padded(path) as whole:
        count, lost = _copy_readable(whole, fresh_path)
    if lost == NUM_RANGES:
        fresh_path.unlink()
        raise StoreError(
            f"{path}: no answer can be read from it, if it ever was a store; it is left as it is"
        )
    if lost:
        print(f"{path}: {lost} of {NUM_RANGES} key ranges could not be read whole")
    path.rename(_free_name(path.with_name(path.name + ".damaged")))
    for leftover in ("-wal", "-shm"):
        path.with_name(path.name + leftover).unlink(missing_ok=True)
    fresh_path.rename(path)
    return count


@contextmanager
def _padded(path: Path) -> Iterator[Path]:
    """The store itself, or where it is shorter than its header says, a copy of full length."""
    with path.open("rb") as file:
        header = file.read(HEADER_BYTES)
    page_size = int.from_bytes(header[16:18], "big")
    page_size = 65_536 if page_size == 1 else page_size
    length = page_size * int.from_bytes(header[28:32], "big")
    if not path.stat().st_size < length <= MAX_GROWTH * path.stat().st_size:
        yield path
        return
    copy = path.with_name(path.name + ".padded")
    parts = ("", "-wal")  # what was written last may be in the write-ahead log alone
    try:
        for part in parts:
            source = path.with_name(path.name + part)
            if source.exists():
                shutil.copyfile(source, copy.with_name(copy.name + part))
        with copy.open("ab") as file:
            file.truncate(length)
        yield copy
    finally:
        for part in (*parts, "-shm"):
            copy.with_name(copy.name + part).unlink(missing_ok=True)


def _copy_readable(source: Path, target: Path) -> tuple[int, int]:
    """Copy what can be read; the number of answers, and of key ranges with a damaged page."""
    fresh, damaged = sqlite3.connect(target), sqlite3.connect(source)
    fresh.execute(SCHEMA)
    lost = 0
    for prefix in range(NUM_RANGES):
        bounds = (
            (prefix << 4).to_bytes(2, "big"),
            (((prefix + 1) << 4).to_bytes(3, "big")[1:] if prefix < 4095 else b"\xff" * 17),
        )
        lost += not any(
            [_copy_range(damaged, fresh, bounds, direction) for direction in ("ASC", "DESC")]
        )
    damaged.close()
    fresh.commit()
    count = fresh.execute("SELECT COUNT(*) FROM answers").fetchone()[0]
    fresh.close()
    return count, lost


def _copy_range(
    damaged: sqlite3.Connection,
    fresh: sqlite3.Connection,
    bounds: tuple[bytes, bytes],
    direction: str,
) -> bool:
    """Copy the answers with keys in [low, high) until a damaged page is met; whether there was
    none.
    """
    try:
        for row in damaged.execute(
            f"SELECT * FROM answers WHERE key >= ? AND key < ? ORDER BY key {direction}", bounds
        ):
            fresh.execute("INSERT OR IGNORE INTO answers VALUES (?,?,?,?,?,?,?,?,?)", row)
    except sqlite3.DatabaseError:
        return False
    return True


def _free_name(path: Path) -> Path:
    """`path`, or the first of path-2, path-3 ... that does not exist."""
    candidates = (
        path if n == 1 else path.with_name(f"{path.name}-{n}") for n in itertools.count(1)
    )
    return next(candidate for candidate in candidates if not candidate.exists())
