"""Look after an answer store, and move answers between stores and files of recorded answers.

    python scripts/store.py info runs/answers.sqlite  # experts, answers, size
    python scripts/store.py check runs/answers.sqlite  # the same, after reading all of it
    # take over others' answers; where both have one, the first store's stays
    python scripts/store.py merge runs/answers.sqlite other.sqlite ...
    # move experts' answers into answers.sqlite.pruned; merge brings them back
    python scripts/store.py prune runs/answers.sqlite EXPERT ...
    # first calls of C's pool to C's questions, as recorded answers
    python scripts/store.py export runs/answers.sqlite OUT.jsonl --config C
    # recorded answers as first calls of C's experts, for `first_answers: IN.jsonl`
    python scripts/store.py import runs/answers.sqlite IN.jsonl --config C
    # rescue every readable answer of a damaged store; the old file is kept
    python scripts/store.py rebuild runs/answers.sqlite

Settings of C can be overridden (--data.test.path ...). Nothing here asks an expert, and nothing
overwrites a file.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runtime.signals import watch_signals

if __name__ == "__main__":  # before the imports that take seconds
    watch_signals()

from backends.answer_store import AnswerStore, rebuild
from config import Config, RecordedExpertConfig
from questions import RECORDED, Question, load_splits
from runtime.command_line import load_config, parse, run_command
from runtime.errors import StoreError

SPLITS = ("train", "validation", "test")
CHUNK = 2000  # questions looked up or stored at a time


def existing(path: Path) -> Path:
    if not path.is_file():
        raise StoreError(f"{path}: no such store")
    if path.stat().st_size == 0:  # SQLite would begin a database in it
        raise StoreError(f"{path}: empty, so no store")
    return path


def info(path: Path, *, reads_all: bool) -> None:
    """Print answers and tokens per expert, and the size."""
    store = AnswerStore(existing(path), read_only=True)
    if reads_all:
        store.check()
    for expert, answers, tokens, num_cut, num_sure in store.counts():
        print(
            f"{expert}: {answers} answers, {tokens} tokens; {num_cut} ran out of tokens,"
            f" {num_sure} have log-probabilities"
        )
    print(
        f"{path}: {'whole, ' if reads_all else ''}{len(store)} answers,"
        f" {path.stat().st_size / 1e6:.1f} MB"
    )
    store.close()


def merge(path: Path, others: Sequence[Path]) -> None:
    """Into the first, in order; the first may be new."""
    for other in others:
        # a file that is no store is refused before anything is taken
        AnswerStore(existing(other), read_only=True).close()
    store = AnswerStore(path)
    for other in others:
        came, differ = store.merge(other)
        print(
            f"{other}: {came} answers taken over; {differ} others differ from what {path} has,"
            " which stays"
        )
    store.close()


def prune(path: Path, experts: Sequence[str]) -> None:
    """Move experts' answers out.

    Raises StoreError for a name the store does not have, before anything is moved.
    """
    store, backup = AnswerStore(existing(path)), path.with_name(path.name + ".pruned")
    known = [expert for expert, *_ in store.counts()]
    if unknown := [expert for expert in experts if expert not in known]:
        raise StoreError(
            f"{path}: no answers of {', '.join(unknown)}; it has answers of"
            f" {', '.join(known) or 'nobody'}"
        )
    for expert in experts:
        print(f"{expert}: {store.move(expert, backup)} answers moved to {backup}")
    store.close()


def export(path: Path, out: Path, config: Config, splits: Sequence[str]) -> None:
    """Write the first calls that a store holds for a pool's questions.

    Raises StoreError when there is nothing to write.
    """
    from experts import build_pool

    if out.exists():
        raise StoreError(f"{out} exists; name another file")
    pool = build_pool(with_store(config, existing(path)))
    read, names, written, asked = load_splits(config.data), pool.names, 0, 0
    partial = out.with_name(out.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        for split in splits:
            questions, score_range = getattr(read, split), getattr(config.data, split).score_range
            asked += len(questions)
            for question, answers in first_calls(pool, questions):
                file.write(
                    json.dumps(
                        recorded_row(
                            question, split, dict(zip(names, answers, strict=True)), score_range
                        ),
                        ensure_ascii=False,
                    )
                    + "\n"
                )
                written += 1
    if not written:
        partial.unlink()
        raise StoreError(
            f"{path}: none of the {asked} questions has been answered by all of {', '.join(names)}"
        )
    partial.replace(out)
    print(
        f"{out}: {written} of {asked} questions; the others have not been answered by all"
        f" {len(names)} experts"
    )


def first_calls(pool: Any, questions: Sequence[Question]) -> Iterator[tuple[Question, list[Any]]]:
    """Each question that every expert of the pool has answered, with the stored answers in the
    pool's order.
    """
    from experts import Request

    for start in range(0, len(questions), CHUNK):
        chunk = questions[start : start + CHUNK]
        keys = []
        for question in chunk:
            for expert_idx in range(len(pool)):
                request = Request(expert_idx, question.text)
                keys.append(pool.key(pool.responder(request), pool.render(request)))
        stored = pool.store.get_many(keys)
        for row, question in enumerate(chunk):
            own_keys = keys[row * len(pool) : (row + 1) * len(pool)]
            answers = [stored[key] for key in own_keys if key in stored]
            if len(answers) == len(pool):
                yield question, answers


def recorded_row(
    question: Question, split: str, answers: dict[str, Any], score_range: tuple[float, float]
) -> dict[str, Any]:
    """A line as backends/recorded.py reads it; scores are in `score_range` again, as they were
    read.
    """
    low, high = score_range
    texts, tokens, scores = {}, {}, {}
    for name, answer in answers.items():
        texts[name] = answer.text
        tokens[name] = answer.completion_tokens
        if question.metric == RECORDED:
            score = question.scores[name]
            scores[name] = low * (1 - score) + high * score
    row = {"question": question.text, "reference": question.reference, "answers": texts}
    if scores:
        row["scores"] = scores
    row["meta"] = {
        "id": question.id,
        "split": split,
        "task": question.task,
        "metric": question.metric,
        "tokens": tokens,
        **facts_of(answers),
    }
    return row


def facts_of(answers: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Why answers ended and how sure the model was, by expert; what is not known is left out."""
    facts: dict[str, dict[str, Any]] = {}
    for field in ("finish", "logprob_mean", "logprob_min"):
        for name, answer in answers.items():
            value = getattr(answer, field)
            if value not in ("", None):
                facts.setdefault(field, {})[name] = value
    return facts


def import_recorded(path: Path, source: Path, config: Config) -> None:
    """Put recorded answers into a store under the keys of a pool that names the file; what is there
    already stays.
    """
    from backends.recorded import read_recording
    from experts import Request, build_pool

    experts = []
    for expert in config.pool.experts:
        field = "path" if isinstance(expert, RecordedExpertConfig) else "first_answers"
        experts.append(expert.model_copy(update={field: str(source)}))
    pool_config = config.pool.model_copy(update={"experts": tuple(experts)})
    pool = build_pool(with_store(config.model_copy(update={"pool": pool_config}), path))
    before, recording = len(pool.store), read_recording(str(source))
    questions = list(recording.questions())
    for start in range(0, len(questions), CHUNK):
        requests = []
        for expert_idx in range(len(pool)):
            for question in questions[start : start + CHUNK]:
                requests.append(Request(expert_idx, question))
        pool.answer(requests)
    print(
        f"{path}: {len(pool.store) - before} answers of {len(pool)} experts to {len(recording)}"
        " questions added"
    )


def with_store(config: Config, path: Path) -> Config:
    return config.model_copy(update={"pool": config.pool.model_copy(update={"store": str(path)})})


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("info", "check", "merge", "prune", "export", "import", "rebuild"):
        command = commands.add_parser(name, allow_abbrev=False)
        command.add_argument("store", type=Path)
        if name == "merge":
            command.add_argument("others", type=Path, nargs="+")
        elif name == "prune":
            command.add_argument("experts", nargs="+")
        elif name in ("export", "import"):
            command.add_argument("file", type=Path, help="JSONL of recorded answers")
            command.add_argument("--config", type=Path, default=Path("configs/quickstart.yaml"))
        if name == "export":
            command.add_argument("--split", choices=SPLITS, nargs="+", default=SPLITS)
    return parser


def main(arguments: list[str]) -> None:
    parser = make_parser()
    options, overrides = parse(parser, arguments)
    if overrides and options.command not in ("export", "import"):
        parser.error(f"unexpected {overrides[0]}")
    match options.command:
        case "info" | "check":
            info(options.store, reads_all=options.command == "check")
        case "merge":
            merge(options.store, options.others)
        case "prune":
            prune(options.store, options.experts)
        case "export":
            config = load_config(options.config, overrides)
            export(options.store, options.file, config, options.split)
        case "import":
            config = load_config(options.config, overrides)
            import_recorded(options.store, options.file, config)
        case "rebuild":
            count = rebuild(existing(options.store))
            print(
                f"{options.store}: {count} answers rescued; the damaged file is kept as"
                f" {options.store}.damaged"
            )


if __name__ == "__main__":
    run_command(main)
