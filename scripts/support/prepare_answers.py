"""The part of prepare_data.py that writes recorded answers of LLMs.

Beside recorded.jsonl lies provenance.json, written last: source, counts, accuracies, checksum.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metrics.registry import get_metric
from runtime.errors import DataError
from runtime.files import write_atomically
from scripts.support.answer_formats import ANSWER_FORMATS, Choices
from scripts.support.answer_sources import ANSWER_SOURCES, AnswerSource, Part
from scripts.support.recorded_rows import (
    SPLITS,
    JoinRules,
    Replies,
    Reply,
    Row,
    accuracies,
    gather,
    join,
    row_of,
    sample,
    write_rows,
)
from scripts.support.upstream_files import fetch

ANSWER_NAMES = (*ANSWER_SOURCES, *ANSWER_FORMATS)
DIGEST = re.compile(r"[0-9a-f]{16}")
MOST_COLUMNS = 4  # tasks that the printed table shows; provenance.json holds them all
REASONS = {
    "missing": "lack an answer",
    "changed": "are stated differently by two files",
    "repeats": "repeat another",
    "listed": "are listed in --leave_out",
}


@dataclass(frozen=True)
class Group:
    """Answers to one question set, and what every row of it says in its meta data."""

    replies: Replies
    agreement: str
    drop_changed: bool = False


def copy_of(source: AnswerSource, folder: Path) -> Path:
    """A copy of the repository: the folder itself, or the one of the repository's name in it."""
    inner = folder / source.repository.partition("/")[2]
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; --source is a copy of {source.repository}")
    return inner if inner.is_dir() else folder


def replies_to(
    part: Part, source: AnswerSource, copy: Path | None, commit: str, downloads: Path
) -> Iterator[tuple[str, Reply]]:
    """(model, reply) of one part, read from a copy, or from files fetched into `downloads`."""
    for model in source.models:
        paths = []
        for pattern in part.files:
            path = pattern.format(model=model)
            if copy is None:
                paths.append(fetch(source.repository, commit, path, downloads))
            else:
                paths.append(copy / path)
        for reply in part.read(paths, part):
            yield model, reply


def published(options: argparse.Namespace) -> Iterator[tuple[str, list[Group], dict[str, Any]]]:
    """(folder, groups, origin) of each file that a published set becomes."""
    source = ANSWER_SOURCES[options.name]
    copy = None if options.source is None else copy_of(source, options.source)
    commit = options.revision or source.commit
    downloads = (options.out or Path("data") / options.name) / "upstream" / commit
    origin = {
        "repository": source.repository,
        "commit": commit if copy is None else options.revision,
        "licence": source.licence,
        "read_from": str(copy or downloads),
    }
    for folder, parts in source.parts.items():
        groups = []
        for part in parts:
            replies = gather(replies_to(part, source, copy, commit, downloads))
            agreement = options.agreement or part.agreement
            groups.append(Group(replies, agreement, part.drop_changed))
        yield folder, groups, origin


def imported(options: argparse.Namespace) -> tuple[Group, dict[str, Any]]:
    """(group, origin) of files in a format that other tools write."""
    form = ANSWER_FORMATS[options.name]
    choices = Choices(options.question, options.score, options.filter)
    if options.source is None or not options.source.exists():
        where = "no folder given" if options.source is None else f"{options.source}: no such folder"
        raise DataError(f"{where}; --source FOLDER holds {form.holds}")
    replies = gather(form.read(options.source, choices))
    if not replies:
        raise DataError(f"{options.source}: nothing to import; --source holds {form.holds}")
    origin = {"format": options.name, "read_from": str(options.source)}
    return Group(replies, options.agreement or form.agreement), origin


def listed_in(path: Path) -> frozenset[str]:
    """The digests of a --leave_out file, one a line: SHA-256 of a question's text, 16 digits."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; --leave_out names questions by their SHA-256")
    digests = path.read_text(encoding="utf-8").split()
    for number, digest in enumerate(digests, start=1):
        if not DIGEST.fullmatch(digest):
            raise DataError(
                f"{path}:{number}: {digest!r} is not the first 16 hexadecimal digits of a SHA-256"
            )
    return frozenset(digests)


def rows_of(
    group: Group,
    origin: dict[str, Any],
    left_out: Counter[str],
    options: argparse.Namespace,
) -> Iterator[Row]:
    """Rows of one group; `left_out` grows by its questions that were left out."""
    listed = frozenset() if options.leave_out is None else listed_in(options.leave_out)
    rules = JoinRules(options.missing == "drop", group.drop_changed, listed)
    joined, skipped = join(group.replies, rules)
    left_out.update(skipped)
    for key, of_question in joined.items():
        meta = {"agreement": group.agreement, "id": key}
        for field in ("repository", "commit"):
            if origin.get(field):
                meta[field] = origin[field]
        yield row_of(of_question, meta)


def write(
    out: Path, groups: list[Group], origin: dict[str, Any], options: argparse.Namespace
) -> None:
    """Write recorded.jsonl and provenance.json, and say what is in them."""
    left_out: Counter[str] = Counter()
    rows: list[Row] = []
    for group in groups:
        rows.extend(rows_of(group, origin, left_out, options))
    rows = sample(rows, options.limit)
    if not rows:
        raise DataError(f"{out}: no question is left of {origin['read_from']}: {dict(left_out)}")
    (out / "provenance.json").unlink(missing_ok=True)
    checksum = write_rows(out / "recorded.jsonl", rows)
    questions = Counter(row["meta"]["split"] for row in rows)
    provenance = {
        "source": origin,
        "limit": options.limit,
        "questions": {split: questions[split] for split in SPLITS},
        "left_out": dict(left_out),
        "tasks": dict(sorted(Counter(row["meta"]["task"] for row in rows).items())),
        "accuracy": accuracies(rows),
        "sha256": {"recorded.jsonl": checksum},
    }
    text = json.dumps(provenance, indent=2, ensure_ascii=False) + "\n"
    write_atomically(out / "provenance.json", text.encode())
    print(summary(out, provenance))


def summary(out: Path, provenance: dict[str, Any]) -> str:
    """Counts and accuracies as lines of text."""
    questions = ", ".join(f"{n} {split}" for split, n in provenance["questions"].items())
    lines = [f"{out / 'recorded.jsonl'}: {questions}"]
    for reason, number in provenance["left_out"].items():
        if number:
            lines.append(f"  left out: {number} that {REASONS[reason]}")
    tasks = list(provenance["tasks"])
    columns = ["all", *tasks] if 1 < len(tasks) <= MOST_COLUMNS else ["all"]
    if provenance["accuracy"]:
        lines.append(f"  {'accuracy':30}" + "".join(f"{column:>12}" for column in columns))
    for model, of_model in provenance["accuracy"].items():
        cells = "".join(f"{of_model[column]:12.3f}" for column in columns)
        lines.append(f"  {model:30}{cells}")
    return "\n".join(lines)


def prepare(options: argparse.Namespace) -> None:
    """Write every file of a published set, or the one of files that other tools wrote.

    Raises DataError for what cannot be read or joined, MetricError for an unknown --agreement.
    """
    if options.agreement is not None:
        get_metric(options.agreement)
    out = options.out or Path("data") / options.name
    if options.name in ANSWER_SOURCES:
        for folder, groups, origin in published(options):
            write(out / folder, groups, origin, options)
    else:
        group, origin = imported(options)
        write(out, [group], origin, options)
