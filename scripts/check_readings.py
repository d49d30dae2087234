"""Compares what the metrics read in published answers with the publishers' own verdicts: python
scripts/check_readings.py --source FOLDER [--examples 50] [--seed 0]

FOLDER holds the publishers' files as scripts/prepare_data.py fetches them (`lookahead` and
`mmlu_pro_answers`), in any folders below. Printed are, for each set and model, the share of answers
on which both verdicts agree, and the disagreements by kind. A kind is listed where the metric is
right by the question's reference; what is left over counts against the metric. docs/metrics.md has
the figures. `--examples` draws disagreements to read by hand.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from metrics.registry import get_metric
from runtime.errors import DataError, DERError
from scripts.support.upstream_files import read_json, take

OTHER_FORM = "the reference in another form, which the publisher compares as text"
OTHER_PART = "the publisher read another part of the text"
NOT_FOUND = "the publisher found no letter"
FIRST_OF_WORD = "the publisher read a letter of a word or of several letters"
CUT_SHORT = "the publisher cut its reading short"
DROPPED_TEXT = "the publisher drops \\text{...} when it compares"
UNLISTED = "not listed"
SHOWN_CHARACTERS = 300  # of an example


class Judged(NamedTuple):
    """A published answer with its publisher's reading and verdict."""

    model: str
    key: str
    text: str
    reference: str
    read: str | None
    is_right: bool


@dataclass
class Tally:
    """What was found for one model of a set."""

    answers: int = 0
    left_out: int = 0  # no letter in the text: the publisher guessed
    kinds: Counter[str] = field(default_factory=Counter)

    @property
    def agreement(self) -> float:
        return 1 - self.kinds.total() / self.answers

    @property
    def outside_kinds(self) -> float:
        """Agreement where disagreements of a listed kind are left out."""
        listed = self.kinds.total() - self.kinds[UNLISTED]
        return 1 - self.kinds[UNLISTED] / (self.answers - listed)


def read_opencompass(path: Path) -> Iterator[Judged]:
    """Answers to GSM8K or MATH. Raises DataError for another schema."""
    model = path.name.removesuffix(".json.gz")
    for key, row in take(read_json(path), "details", dict, str(path)).items():
        place = f"{path}: details.{key}"
        yield Judged(
            model=model,
            key=key,
            text=take(row, "origin_prediction", str, place),
            reference=take(row, "references", str, place),
            read=take(row, "predictions", str, place),
            is_right=take(row, "correct", bool, place),
        )


def read_mmlu_pro(path: Path) -> Iterator[Judged]:
    """Answers to MMLU-Pro. Raises DataError for another schema."""
    model = path.name.removeprefix("model_outputs_").removesuffix("_5shots.zip")
    for number, row in enumerate(read_json(path)):
        place = f"{path}[{number}]"
        name = "model_outputs" if "model_outputs" in row else "generated_text"
        reference = take(row, "answer", str, place)
        read = take(row, "pred", (str, type(None)), place)
        yield Judged(
            model=model,
            key=str(take(row, "question_id", int, place)),
            text=take(row, name, str, place),
            reference=reference,
            read=read,
            is_right=read == reference,
        )


SETS = {  # set -> metric, where its files are, how they are read
    "GSM8K": ("numeric_match", "GSM8k/*.json.gz", read_opencompass),
    "MATH": ("math", "MATH/*.json.gz", read_opencompass),
    "MMLU-Pro": ("multiple_choice", "model_outputs_*_5shots.zip", read_mmlu_pro),
}


def score(metric: str, answer: str, reference: str) -> float:
    return get_metric(metric).compute(predictions=[answer], references=[reference])[0]


def kind_of(metric: str, judged: Judged, is_right: bool) -> str:
    """The kind of a disagreement; `is_right` is the metric's verdict."""
    if metric == "multiple_choice":
        if judged.read is None:
            return NOT_FOUND
        word = rf"answer is \(?{judged.read}(?:[A-Za-z]|\)?(?:,| and)\s)"
        return FIRST_OF_WORD if re.search(word, judged.text) else UNLISTED
    if not is_right:
        return _kind_of_publishers_right(metric, judged)
    in_its_reading = score(metric, str(judged.read), judged.reference) == 1
    return OTHER_FORM if in_its_reading else OTHER_PART


def _kind_of_publishers_right(metric: str, judged: Judged) -> str:
    """The kind of a disagreement in which the publisher alone takes an answer for right."""
    read, ours = str(judged.read), get_metric(metric).read(judged.text) or ""
    if read != ours and ours.startswith(read):
        return CUT_SHORT  # 3 of 3.5
    is_wrong = score(metric, read, judged.reference) == 0
    return DROPPED_TEXT if r"\text" in read and is_wrong else UNLISTED


def check(
    metric: str, answers: Iterator[Judged], tallies: dict[str, Tally]
) -> list[tuple[str, Judged]]:
    """Count the answers of one file into its model's tally; the disagreements with their kinds."""
    found = []
    for judged in answers:
        tally = tallies.setdefault(judged.model, Tally())
        is_guess = metric == "multiple_choice" and judged.read is not None
        if is_guess and get_metric(metric).read(judged.text) is None:
            tally.left_out += 1
            continue
        tally.answers += 1
        is_right = score(metric, judged.text, judged.reference) == 1
        if is_right != judged.is_right:
            kind = kind_of(metric, judged, is_right)
            tally.kinds[kind] += 1
            found.append((kind, judged))
    return found


def show_tallies(name: str, metric: str, tallies: dict[str, Tally], seconds: float) -> None:
    """Print the table of a set."""
    num_answers = sum(tally.answers for tally in tallies.values())
    print(f"\n{name} by {metric}: {num_answers} answers, {1000 * seconds / num_answers:.2f} s per")
    print("1,000. Model, answers, left out, agreement, agreement outside the listed kinds:")
    kinds: Counter[str] = Counter()
    for model, tally in tallies.items():
        kinds += tally.kinds
        print(
            f"  {model:30} {tally.answers:6} {tally.left_out:5}"
            f" {tally.agreement:.4f} {tally.outside_kinds:.4f}"
        )
    for kind, count in kinds.most_common():
        print(f"  {count:6} {kind}")


def show_examples(metric: str, found: list[tuple[str, Judged]], number: int, seed: int) -> None:
    """Print disagreements drawn at random."""
    drawn = random.Random(seed).sample(found, min(number, len(found)))
    for kind, judged in drawn:
        print(f"\n--- {judged.model} {judged.key}: {kind}")
        print(f"reference {judged.reference!r}, the publisher read {judged.read!r}")
        print(f"{metric} read {get_metric(metric).read(judged.text)!r} in")
        print(f"... {judged.text[-SHOWN_CHARACTERS:]}")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--source", type=Path, required=True, help="folder of publishers' files")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--examples", type=int, default=0, help="disagreements to print per set")
    parser.add_argument("--seed", type=int, default=0, help="draws the examples")
    options = parser.parse_args()
    try:
        for name in options.sets:
            metric, pattern, read = SETS[name]
            paths = sorted(options.source.rglob(pattern))
            if not paths:
                raise DataError(
                    f"{options.source}: no file {pattern} below it; fetch the files with"
                    " scripts/prepare_data.py lookahead and mmlu_pro_answers"
                )
            start = time.perf_counter()
            tallies: dict[str, Tally] = {}
            found = []
            for path in paths:
                found += check(metric, read(path), tallies)
            show_tallies(name, metric, tallies, time.perf_counter() - start)
            show_examples(metric, found, options.examples, options.seed)
    except DERError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
