"""Every answer ever generated, on disk: one SQLite file shared by runs and processes.

Expert answers cost GPU-hours, so they are written batch by batch and never generated twice. The
first write of a key wins, and a writer reads back what won, so two processes that race for a key go
on with the same answer.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import os
import shutil
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

from runtime.errors import StoreError

SQLITE_MAGIC = b"SQLite format 3\0"
# SQLite's messages quote the file's bytes, so that they may not be text
DAMAGE = (sqlite3.Error, UnicodeDecodeError)
CHECKED_BYTES = 64_000_000  # a store up to this size is read whole before a run: 0.2 s
SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    key BLOB PRIMARY KEY, expert TEXT NOT NULL, prompt TEXT NOT NULL, text TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL, latency_s REAL NOT NULL,
    prompt_cut INTEGER NOT NULL, made_with TEXT NOT NULL,
    finish TEXT NOT NULL DEFAULT '', logprob_mean REAL, logprob_min REAL
) WITHOUT ROWID
"""
# Columns that older stores lack -> their declaration, and what their answers read as
ADDED_COLUMNS = {
    "finish": ("TEXT NOT NULL DEFAULT ''", "''"),
    "logprob_mean": ("REAL", "NULL"),
    "logprob_min": ("REAL", "NULL"),
}
FIELDS = ["text", "prompt_tokens", "completion_tokens", "latency_s", "prompt_cut", *ADDED_COLUMNS]
FIRST_COLUMNS = ["key", "expert", "prompt", *FIELDS[:5], "made_with"]
ALL_COLUMNS = [*FIRST_COLUMNS, *ADDED_COLUMNS]
stored_fields = attrgetter(*FIELDS)
INTO = f"INTO answers ({', '.join(ALL_COLUMNS)}) VALUES ({', '.join('?' * len(ALL_COLUMNS))})"
HEADER_BYTES = 100
NUM_RANGES = 4096  # of keys, by their first three hexadecimal digits
MAX_GROWTH = 1000  # a header that promises more is damaged itself
LOOKUP_CHUNK = 500  # keys per SELECT; SQLite's limit on variables is far above


# `length`: max_new_tokens was reached. `content_filter`, `refusal`: as a server says
Finish = Literal["", "stop", "length", "content_filter", "refusal"]


@dataclass(frozen=True)
class Answer:
    """What an expert said to a prompt, and what it took."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    latency_s: float  # its share of the batch it was first generated in
    prompt_cut: bool = False  # the prompt was longer than the model's context
    finish: Finish = ""  # why the model ended; empty where that is not known
    # Of the generated tokens, natural logarithms; None where not known. The last digits depend on
    # the batch, so they do not decide whether two answers are equal
    logprob_mean: float | None = field(default=None, compare=False)
    logprob_min: float | None = field(default=None, compare=False)
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


def mean_and_least(logprobs: Sequence[float]) -> tuple[float | None, float | None]:
    """Of a completion's tokens; None where there are none, or a value is no log-probability."""
    if not logprobs or not all(-math.inf < logprob <= 0 for logprob in logprobs):
        return None, None
    return sum(logprobs) / len(logprobs), min(logprobs)


def answer_key(identity: dict[str, Any], prompt: str, decoding: dict[str, Any]) -> bytes:
    """128-bit key of an answer: expert identity, rendered prompt, decoding parameters.

    Same key, same answer.
    """
    canonical = json.dumps([identity, prompt, decoding], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).digest()[:16]


class AnswerStore:
    """Key-value store of answers.

    WAL mode; where the file system cannot share memory (some network mounts) SQLite falls back to a
    rollback journal. A store that lacks the newer columns gets them, unless it is `read_only` or
    its file may not be written. Raises StoreError when the file is damaged, somebody else's, locked
    for over a minute, or the disk is full.
    """

    def __init__(
        self,
        path: Path | str,
        made_with: dict[str, str] | None = None,
        *,
        read_only: bool = False,
    ):
        self.path = Path(path)
        self.num_reads = 0  # keys looked up so far
        self.made_with = json.dumps(made_with or {}, sort_keys=True)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        is_protected = self.path.exists() and not os.access(self.path, os.W_OK)
        self.read_only = read_only or is_protected
        address = f"{self.path.absolute().as_uri()}?mode={'ro' if is_protected else 'rwc'}"
        try:
            self._db = sqlite3.connect(address, timeout=60.0, isolation_level=None, uri=True)
            self._check_columns()
            if self.read_only:
                self._db.execute("PRAGMA query_only=ON")
            else:
                self._prepare_writing()
            self._fields = ", ".join(_selected(self._db, FIELDS))
        except DAMAGE as error:
            raise self._explained(error) from error

    def wait_for_locks(self, seconds: float) -> None:
        """Wait so long for other processes from now on, before an error is raised."""
        self._run(f"PRAGMA busy_timeout={int(1000 * seconds)}")

    def _check_columns(self) -> None:
        """Raise StoreError where the file holds other tables than a store's."""
        if not self._db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            return
        columns = _columns(self._db)
        if columns[: len(FIRST_COLUMNS)] == FIRST_COLUMNS and set(columns) <= set(ALL_COLUMNS):
            return
        self._db.close()
        raise StoreError(
            f"{self.path}: an SQLite file of other tables, so no answer store. Let pool.store name"
            " another path."
        )

    def _prepare_writing(self) -> None:
        """Set the journal, and make the table or its missing columns."""
        mode = self._db.execute("PRAGMA journal_mode=WAL").fetchone()[0]
        # A power cut may lose the last transactions of a WAL under NORMAL, a killed process loses
        # none.
        self._db.execute(f"PRAGMA synchronous={'NORMAL' if mode == 'wal' else 'FULL'}")
        self._db.execute(SCHEMA)
        if len(_columns(self._db)) == len(ALL_COLUMNS):
            return
        self._db.execute("BEGIN IMMEDIATE")  # another process may add them at the same time
        present = _columns(self._db)
        for name, (declaration, _) in ADDED_COLUMNS.items():
            if name not in present:
                self._db.execute(f"ALTER TABLE answers ADD COLUMN {name} {declaration}")
        self._db.execute("COMMIT")

    def _explained(self, error: Exception) -> StoreError:
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
        except DAMAGE as error:
            raise self._explained(error) from error

    def get_many(self, keys: Iterable[bytes]) -> dict[bytes, Answer]:
        """The stored answers among `keys`."""
        wanted = list(dict.fromkeys(keys))
        out: dict[bytes, Answer] = {}
        self.num_reads += len(wanted)
        for start in range(0, len(wanted), LOOKUP_CHUNK):
            chunk = wanted[start : start + LOOKUP_CHUNK]
            marks = ",".join("?" * len(chunk))
            sql = f"SELECT key, {self._fields} FROM answers WHERE key IN ({marks})"
            for key, *fields in self._run(sql, chunk):
                named = dict(zip(FIELDS, fields, strict=True))
                named["prompt_cut"] = bool(named["prompt_cut"])
                out[key] = Answer(**named)
        return out

    def put_many(self, answers: Sequence[StoredAnswer]) -> dict[bytes, Answer]:
        """Store in one transaction and return what the store now holds: an earlier writer's answer
        where there was one.
        """
        if self.read_only:
            raise StoreError(
                f"{self.path}: may only be read. Let pool.store name a file that may be written,"
                f" and take these answers over: python scripts/store.py merge NEW {self.path}"
            )
        rows = []
        for row in answers:
            fields = stored_fields(row.answer)
            first, added = fields[: -len(ADDED_COLUMNS)], fields[-len(ADDED_COLUMNS) :]
            rows.append((row.key, row.expert, row.prompt, *first, self.made_with, *added))
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._db.executemany(f"INSERT {INTO} ON CONFLICT(key) DO NOTHING", rows)
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        except DAMAGE as error:
            raise self._explained(error) from error
        return self.get_many(a.key for a in answers)

    def counts(self) -> list[tuple[str, int, int, int, int]]:
        """Of every expert: name, answers, generated tokens, answers that ran out of tokens, and
        answers with known log-probabilities.
        """
        finish, logprob_mean = _selected(self._db, ["finish", "logprob_mean"])
        return self._run(
            f"SELECT expert, COUNT(*), SUM(completion_tokens), SUM({finish} = 'length'),"
            f" COUNT({logprob_mean}) FROM answers GROUP BY expert ORDER BY expert"
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
        others = AnswerStore(other, read_only=True)
        for store in (others, self):  # damage is blamed on the file that has it
            store.check()
        others.close()
        before = len(self)
        self._run("ATTACH ? AS other", [str(other)])
        try:
            theirs = ", ".join(_selected(self._db, ALL_COLUMNS, "other"))
            self._run(
                f"INSERT OR IGNORE INTO main.answers ({', '.join(ALL_COLUMNS)}) SELECT {theirs}"
                " FROM other.answers"
            )
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
            columns = ", ".join(ALL_COLUMNS)
            self._run(
                f"INSERT OR IGNORE INTO other.answers ({columns}) SELECT {columns} FROM"
                " main.answers WHERE expert = ?",
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


def _columns(db: sqlite3.Connection, schema: str = "main") -> list[str]:
    """Names of the columns of the answers in a database."""
    return [row[1] for row in db.execute(f"PRAGMA {schema}.table_info(answers)")]


def _selected(db: sqlite3.Connection, names: Sequence[str], schema: str = "main") -> list[str]:
    """What to select for columns: their names, or what stands for those that the store lacks."""
    present = _columns(db, schema)
    selected = []
    for name in names:
        is_lacking = name in ADDED_COLUMNS and name not in present
        selected.append(ADDED_COLUMNS[name][1] if is_lacking else name)
    return selected


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


@contextlib.contextmanager
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
    columns = ALL_COLUMNS
    with contextlib.suppress(*DAMAGE):  # damage is met again below, and counted
        columns = _selected(damaged, ALL_COLUMNS)
    lost = 0
    for prefix in range(NUM_RANGES):
        bounds = (
            (prefix << 4).to_bytes(2, "big"),
            (((prefix + 1) << 4).to_bytes(3, "big")[1:] if prefix < 4095 else b"\xff" * 17),
        )
        lost += not any(
            [
                _copy_range(damaged, fresh, columns, bounds, direction)
                for direction in ("ASC", "DESC")
            ]
        )
    damaged.close()
    fresh.commit()
    count = fresh.execute("SELECT COUNT(*) FROM answers").fetchone()[0]
    fresh.close()
    return count, lost


def _copy_range(
    damaged: sqlite3.Connection,
    fresh: sqlite3.Connection,
    columns: Sequence[str],
    bounds: tuple[bytes, bytes],
    direction: str,
) -> bool:
    """Copy the answers with keys in [low, high) until a damaged page is met; whether there was
    none.
    """
    try:
        for row in damaged.execute(
            f"SELECT {', '.join(columns)} FROM answers WHERE key >= ? AND key < ?"
            f" ORDER BY key {direction}",
            bounds,
        ):
            fresh.execute(f"INSERT OR IGNORE {INTO}", row)
    except DAMAGE:
        return False
    return True


def _free_name(path: Path) -> Path:
    """`path`, or the first of path-2, path-3 ... that does not exist."""
    candidates = (
        path if n == 1 else path.with_name(f"{path.name}-{n}") for n in itertools.count(1)
    )
    return next(candidate for candidate in candidates if not candidate.exists())
