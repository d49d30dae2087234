"""Look after an answer store.

python scripts/store.py check runs/answers.sqlite     # is it whole, and what is in it
python scripts/store.py rebuild runs/answers.sqlite   # rescue every readable answer of a damaged store; the old file is kept
"""

from __future__ import annotations

import argparse
import sqlite3
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from answer_store import StoreError, rebuild
from command_line import run_command


def check(path: Path) -> None:
    """Print answers per expert. Raises StoreError when the file is damaged."""
    try:
        database = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        verdict = database.execute("PRAGMA quick_check").fetchone()[0]
        counts = database.execute("SELECT expert, COUNT(*), SUM(completion_tokens) FROM answers GROUP BY expert").fetchall()
    except sqlite3.DatabaseError as error:
        raise StoreError(f"{path}: {error}. Rescue what can be read: python scripts/store.py rebuild {path}") from error
    if verdict != "ok":
        raise StoreError(f"{path}: {verdict}. Rescue what can be read: python scripts/store.py rebuild {path}")
    for expert, answers, tokens in counts:
        print(f"{expert}: {answers} answers, {tokens} tokens")
    print(f"{path}: whole, {path.stat().st_size / 1e6:.1f} MB")


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("check", "rebuild"))
    parser.add_argument("path", type=Path)
    options = parser.parse_args(arguments)
    if not options.path.is_file():
        raise StoreError(f"{options.path}: no such store")
    if options.command == "check":
        check(options.path)
    else:
        print(f"{options.path}: {rebuild(options.path)} answers rescued; the damaged file is kept as {options.path}.damaged")


if __name__ == "__main__":
    run_command(main)
