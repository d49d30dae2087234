"""Turn a public question set into train, validation and test JSONL, or LLMs' published answers into
recorded.jsonl; docs/data.md has a card for each.

    python scripts/prepare_data.py gsm8k                     # hub, pinned commit -> data/gsm8k
    python scripts/prepare_data.py mixinstruct --limit 1000  # of each split, drawn with --seed
    python scripts/prepare_data.py mmlu --source FOLDER      # a copy, or another hub id
    python scripts/prepare_data.py lookahead                 # answers of six LLMs to four sets
    python scripts/prepare_data.py lm_eval --source FOLDER   # answers that you have

Question sets: mixinstruct, gsm8k, mmlu, arc_challenge, triviaqa, hellaswag, and multidomain, a mix
of all but the first (--source: a folder of folders by these names). Rows are written in a seeded
order, so that the first N of a file are a fair sample. Beside them: for mixinstruct
`recorded.jsonl`, the eleven experts' answers; `provenance.json`, written last: commit, versions,
counts, checksums. Answers: lookahead, mmlu_pro_answers; your own: lm_eval, alpaca_eval,
routerbench. `python scripts/prepare_data.py lookahead --help` shows the options of these.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import hashlib
import importlib.metadata
import json
import sys
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from questions import text_key
from runtime.command_line import run_command
from runtime.errors import DataError
from scripts.support.data_sources import (
    MULTIDOMAIN,
    MULTIDOMAIN_SIZES,
    SOURCES,
    Mapped,
    Row,
    Source,
)
from scripts.support.prepare_answers import ANSWER_NAMES, prepare

NAMES = (*SOURCES, "multidomain")
KNOWN = (*NAMES, *ANSWER_NAMES)
# A question that occurs in several is kept in the first of these
SPLITS = ("test", "validation", "train")
HUB_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Opened:
    """A source whose rows can be read, split by split."""

    name: str
    source: Source
    place: str  # hub id or folder
    commit: str | None  # None: a folder whose commit is not known
    splits: dict[str, Any]  # datasets.Dataset by the name upstream gives it

    def rows(self, split: str) -> Any:
        """Upstream's rows for one of our splits.

        Raises DataError when upstream has no such split.
        """
        theirs = self.source.splits[split]
        if theirs not in self.splits:
            raise DataError(
                f"{self.place}: no split {theirs!r}, only {', '.join(self.splits)}; is it a copy of"
                f" {self.source.hub_id}?"
            )
        return self.splits[theirs]


def without_a_hub(name: str) -> str:
    """What to do where the hub cannot be reached."""
    several = name == "multidomain"
    fetch = "\n".join(
        f"    hf download {SOURCES[part].hub_id} --repo-type dataset --revision"
        f" {SOURCES[part].revision} --local-dir FOLDER{f'/{part}' if several else ''}"
        for part in (MULTIDOMAIN if several else [name])
    )
    return (
        f"Where it can be, run\n    python scripts/prepare_data.py {name}\nand copy the folder"
        f" data/{name} to the same place here. Or fetch the files there, copy those, and prepare"
        f" them here:\n{fetch}\n    python scripts/prepare_data.py {name} --source FOLDER"
    )


def resolve_commit(hub_id: str, revision: str | None, advice: str) -> str | None:
    """The commit that a revision (none: main) of a hub data set stands for.

    Raises DataError, within HUB_TIMEOUT_S, when the hub has no such thing or does not answer;
    `datasets` alone would retry for half a minute.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        info = HfApi().dataset_info(hub_id, revision=revision, timeout=HUB_TIMEOUT_S)
        return str(info.sha)
    except HFValidationError as error:
        raise DataError(f"{hub_id}: neither a folder nor a hub id") from error
    except HfHubHTTPError as error:
        raise DataError(f"{hub_id}: refused by the hub ({' '.join(str(error).split())})") from error
    except Exception as error:  # a network fails in many types
        raise DataError(
            f"{hub_id}: the hub cannot be reached from this machine ({error}). {advice}"
        ) from error


def open_source(name: str, place: str | None, revision: str | None, advice: str) -> Opened:
    """Open a known source: at `place`, a folder or another hub id, or where it is published.

    Raises DataError when it cannot be read, ending with `advice` when that is for want of a hub.
    """
    import datasets  # slow to import

    source, afresh = SOURCES[name], {}
    if place is not None and Path(place).is_dir():
        # datasets caches a folder that has a card under the card's hash alone: another copy would
        # be read as the first one seen.
        commit, pinned, afresh = (
            revision,
            None,
            {"download_mode": "force_redownload", "verification_mode": "no_checks"},
        )
    else:
        place = place or source.hub_id
        commit = pinned = resolve_commit(
            place, revision or (source.revision if place == source.hub_id else None), advice
        )
    try:
        splits = datasets.load_dataset(place, source.subset, revision=pinned, **afresh)
    except (
        Exception
    ) as error:  # datasets raises many types; each means that this source is not to be had
        raise DataError(
            f"{place}: datasets could not load it ({error}); expected a copy of {source.hub_id}"
        ) from error
    return Opened(name, source, place, commit, dict(splits))


def is_held_out(text: str, share: float) -> bool:
    """Whether a training question serves as validation: the text alone decides, so that a set's
    growth or order moves no question.
    """
    digest = hashlib.sha256(text_key(text).encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def belongs_to(split: str, text: str, share: float) -> bool:
    """Whether a text of upstream's training split belongs to this split of ours.

    share: of the texts that are held out for validation; 0 where upstream has a split for it.
    """
    if split == "test" or share <= 0:
        return True
    return is_held_out(text, share) == (split == "validation")


def _read(opened: Opened, split: str, index: int, row: Row) -> Mapped:
    try:
        return opened.source.read(row)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        where = f"{opened.place}[{opened.source.splits[split]}][{index}]"
        raise DataError(
            f"{where}: not a row of {opened.source.hub_id} ({type(error).__name__}: {error}); its"
            f" fields are {', '.join(row)}"
        ) from error


def draw(
    opened: Opened,
    split: str,
    *,
    limit: int | None,
    seed: int,
    taken: set[str],
    left_out: Counter[str],
) -> Iterator[tuple[dict[str, Any], Row]]:
    """(question, upstream's row) of one split in seeded order, each text once.

    `taken` grows by the texts. `left_out` counts the rows left out: `unusable` (no text or no
    reference) and `repeats`. Raises DataError for rows of another schema.
    """
    rows = opened.rows(split)
    theirs = opened.source.splits[split]
    share = opened.source.validation_share
    rng = np.random.default_rng([seed, zlib.crc32(f"{opened.name}/{split}".encode())])
    num_drawn = 0
    for index in rng.permutation(len(rows)).tolist():
        if num_drawn == limit:
            return
        row = rows[index]
        text, reference, task = _read(opened, split, index, row)
        if not belongs_to(split, text, share):
            continue
        if not text or not reference:
            left_out["unusable"] += 1
            continue
        if text_key(text) in taken:
            left_out["repeats"] += 1
            continue
        taken.add(text_key(text))
        num_drawn += 1
        question = {
            "id": f"{opened.name}-{theirs}-{index:06d}",
            "text": text,
            "reference": reference,
            "task": task,
            "metric": opened.source.metric,
        }
        yield question, row


def record(opened: Opened, split: str, question: Row, row: Row) -> Row | None:
    """A row of recorded.jsonl; None where the source holds no answers."""
    if opened.source.recorded is None:
        return None
    answers, scores = opened.source.recorded(row)
    meta = {
        "split": split,
        "task": question["task"],
        "id": row["id"],
        "dataset": opened.source.hub_id,
        "commit": opened.commit,
    }
    return {
        "question": question["text"],
        "reference": question["reference"],
        "answers": answers,
        "scores": scores,
        "meta": meta,
    }


def open_jsonl(path: Path) -> TextIO:
    return path.open("w", encoding="utf-8", newline="\n")  # the same bytes on every system


def write_line(file: TextIO, row: dict[str, Any]) -> None:
    file.write(json.dumps(row, ensure_ascii=False) + "\n")


@dataclass
class Recording:
    """recorded.jsonl while it is written, and the number of answers of each expert in it."""

    file: TextIO
    answers_of: Counter[str] = field(default_factory=Counter)

    def add(self, line: Row | None) -> None:
        """Write a row; None, of a source without answers, is left out."""
        if line is not None:
            self.answers_of.update(line["answers"].keys())
            write_line(self.file, line)


def write_splits(
    sources: Sequence[Opened], out: Path, *, limits: dict[str, int | None], seed: int
) -> dict[str, Any]:
    """Write the three splits and, row by row as they are read, the recorded answers.

    Returns the counts for provenance.json. `limits` is the most questions that each source gives to
    a split. Raises DataError when a split stays empty.
    """
    left_out = Counter(repeats=0, unusable=0)
    taken: set[str] = set()
    tasks: dict[str, dict[str, int]] = {}
    with contextlib.ExitStack() as stack:
        recording = None
        if any(opened.source.recorded for opened in sources):
            recording = Recording(stack.enter_context(open_jsonl(out / "recorded.jsonl")))
        for split in SPLITS:
            questions = []
            for opened in sources:
                drawn = draw(
                    opened, split, limit=limits[split], seed=seed, taken=taken, left_out=left_out
                )
                for question, row in drawn:
                    questions.append(question)
                    if recording is not None:
                        recording.add(record(opened, split, question, row))
            tasks[split] = write_questions(sources, out, split, questions, seed)
    return count_written(tasks, left_out, recording)


def count_written(
    tasks: dict[str, dict[str, int]], left_out: Counter[str], recording: Recording | None
) -> dict[str, Any]:
    """The counts for provenance.json, from the questions of each split and task."""
    totals = {}
    for split in SPLITS:
        totals[split] = sum(tasks[split].values())
    counts: dict[str, Any] = {"questions": totals, "left_out": dict(left_out), "tasks": tasks}
    if recording is not None:
        counts["recorded_answers"] = dict(sorted(recording.answers_of.items()))
    return counts


def write_questions(
    sources: Sequence[Opened], out: Path, split: str, questions: list[Row], seed: int
) -> dict[str, int]:
    """Write a split, with the questions of several sources shuffled together.

    Returns the number of questions of each task.

    Raises DataError when there are none.
    """
    if not questions:
        places = ", ".join(opened.place for opened in sources)
        raise DataError(f"{split}: no usable question in {places}")
    if len(sources) > 1:
        for question in questions:
            question["task"] = question["id"].partition("-")[0]  # the source's name
        np.random.default_rng([seed, zlib.crc32(split.encode())]).shuffle(questions)
    with open_jsonl(out / f"{split}.jsonl") as file:
        for question in questions:
            write_line(file, question)
    return dict(sorted(Counter(question["task"] for question in questions).items()))


def write_provenance(
    sources: Sequence[Opened], out: Path, counts: dict[str, Any], *, limit: int | None, seed: int
) -> None:
    """What the files beside it are: sources with their commits, versions, counts, and a checksum of
    each file.
    """
    origins = [
        {
            "name": opened.name,
            "hub_id": opened.source.hub_id,
            "subset": opened.source.subset,
            "read_from": opened.place,
            "commit": opened.commit,
        }
        for opened in sources
    ]
    checksums = {}
    for name in (*SPLITS, "recorded") if "recorded_answers" in counts else SPLITS:
        with (out / f"{name}.jsonl").open("rb") as file:
            checksums[f"{name}.jsonl"] = hashlib.file_digest(file, "sha256").hexdigest()
    provenance = {
        "sources": origins,
        "datasets": importlib.metadata.version("datasets"),
        "seed": seed,
        "limit": limit,
        **counts,
        "sha256": checksums,
    }
    (out / "provenance.json").write_text(
        json.dumps(provenance, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def check_name(name: str) -> None:
    """Raise DataError with the nearest known name."""
    if name not in NAMES:
        asked = name.lower().replace("-", "_")
        near = [known for known in KNOWN if asked in known] or difflib.get_close_matches(
            asked, KNOWN, n=2
        )
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise DataError(f"unknown data set {name!r}; {hint}known: {', '.join(KNOWN)}")


def open_sources(name: str, place: str | None, revision: str | None) -> list[Opened]:
    """The source of that name, or all that multidomain mixes."""
    advice = without_a_hub(name)
    if name != "multidomain":
        return [open_source(name, place, revision, advice)]
    if revision is not None:
        raise DataError(
            "multidomain mixes several sources, each at its pinned commit: --revision cannot say"
            " which it means"
        )
    if place is not None and (
        missing := [domain for domain in MULTIDOMAIN if not (Path(place) / domain).is_dir()]
    ):
        raise DataError(
            f"{place}: no folder {', '.join(missing)} in it; multidomain reads a folder of copies"
            " by these names"
        )
    return [
        open_source(domain, None if place is None else str(Path(place) / domain), None, advice)
        for domain in MULTIDOMAIN
    ]


def parse_answers(arguments: list[str]) -> argparse.Namespace:
    """The options of a set of recorded answers."""
    parser = argparse.ArgumentParser(prog="prepare_data.py", allow_abbrev=False)
    parser.add_argument("name", choices=ANSWER_NAMES)
    parser.add_argument("--source", type=Path, help="folder of a copy, or of your files")
    parser.add_argument("--out", type=Path, help="default: data/NAME")
    parser.add_argument("--revision", help="commit to fetch, or of which --source is a copy")
    parser.add_argument("--limit", type=int, help="questions of each split at most")
    parser.add_argument(
        "--missing",
        choices=("refuse", "drop"),
        default="refuse",
        help="drop: leave a question out that some model did not answer",
    )
    parser.add_argument(
        "--leave_out", type=Path, help="file of questions to leave out: SHA-256, 16 digits a line"
    )
    parser.add_argument("--agreement", help="metric that decides which answers agree")
    parser.add_argument("--question", default="question", help="lm_eval: field of doc that asks")
    parser.add_argument("--score", help="your files: the score to take where there are several")
    parser.add_argument("--filter", help="lm_eval: the filter to take where there are several")
    options = parser.parse_args(arguments)
    if options.limit is not None and options.limit < 1:
        parser.error("--limit: at least 1")
    return options


def parse_questions(arguments: list[str]) -> argparse.Namespace:
    """The options of a question set."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("name", help=", ".join(KNOWN))
    parser.add_argument("--out", type=Path, help="default: data/NAME")
    parser.add_argument(
        "--limit", type=int, help="questions of each split at most (multidomain: of each domain)"
    )
    parser.add_argument(
        "--source", help="a folder that copies the hub's repository, or another hub id"
    )
    parser.add_argument(
        "--revision",
        help=(
            "commit, branch or tag on the hub, default: the pinned commit; of a folder: the commit"
            " it copies"
        ),
    )
    parser.add_argument("--seed", type=int, default=0, help="draws and orders the questions")
    options = parser.parse_args(arguments)
    check_name(options.name)
    if options.limit is not None and options.limit < 1:
        parser.error("--limit: at least 1")
    if options.seed < 0:
        parser.error("--seed: at least 0")
    return options


def prepare_questions(options: argparse.Namespace) -> None:
    """Write a question set, and say what is in it."""
    out = options.out or Path("data") / options.name
    sources = open_sources(options.name, options.source, options.revision)
    limits: dict[str, int | None] = {}
    for split in SPLITS:
        sizes = [options.limit]
        if options.name == "multidomain":
            sizes.append(MULTIDOMAIN_SIZES[split])
        limits[split] = min((size for size in sizes if size is not None), default=None)
    out.mkdir(parents=True, exist_ok=True)
    (out / "provenance.json").unlink(missing_ok=True)
    counts = write_splits(sources, out, limits=limits, seed=options.seed)
    write_provenance(sources, out, counts, limit=options.limit, seed=options.seed)
    describe(out, counts)


def describe(out: Path, counts: dict[str, Any]) -> None:
    """Print what was written."""
    written = ", ".join(f"{counts['questions'][split]} {split}" for split in reversed(SPLITS))
    print(
        f"{out}: {written}; left out: {counts['left_out']['repeats']} repeats,"
        f" {counts['left_out']['unusable']} without text or reference"
    )
    if "recorded_answers" in counts:
        answers = ", ".join(
            f"{expert} {number}" for expert, number in counts["recorded_answers"].items()
        )
        print(
            f"{out / 'recorded.jsonl'}: {sum(counts['questions'].values())} questions; answers:"
            f" {answers}"
        )


def main(arguments: list[str]) -> None:
    if arguments and arguments[0] in ANSWER_NAMES:
        prepare(parse_answers(arguments))
    else:
        prepare_questions(parse_questions(arguments))


if __name__ == "__main__":
    run_command(main)
