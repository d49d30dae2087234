"""A synthetic set of recorded answers, to measure with where none is at hand.

Word problems of about 65 words, which six experts answer in about 85, each rightly with a chance of
its own.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

EXPERTS = {  # name -> billions of parameters, share of right answers
    "tiny": (1.0, 0.35),
    "small": (3.0, 0.5),
    "middle": (7.0, 0.6),
    "large": (14.0, 0.7),
    "larger": (30.0, 0.75),
    "largest": (70.0, 0.8),
}
SPLIT_SHARES = {"train": 0.4, "validation": 0.1, "test": 0.5}
GOODS = ("apples", "bottles", "candles", "notebooks", "ropes", "tiles", "umbrellas", "watches")
PLACES = ("market", "harbour", "school", "workshop", "library", "station")


def make_row(number: int, split: str, rng: random.Random) -> dict[str, Any]:
    """A question with the answers of all experts, as in a file of recorded answers."""
    good, place = rng.choice(GOODS), rng.choice(PLACES)
    crates, per_crate, broken, price = (rng.randrange(3, 60) for _ in range(4))
    total = crates * per_crate
    result = (total + broken) * price
    question = (
        f"Delivery {number} reaches the {place} in the morning with {crates} crates of {good}, and"
        f" every crate holds {per_crate} of them. In the afternoon a second, smaller van brings"
        f" {broken} {good} more, which were left over from the day before. Each one is sold for"
        f" {price} coins before the {place} closes. How many coins does the {place} take in for"
        f" all the {good} of that day?"
    )
    answers = {}
    scores = {}
    for expert, (_, chance) in EXPERTS.items():
        is_right = rng.random() < chance
        said = result if is_right else result + rng.randrange(1, 9) * price
        answers[expert] = (
            f"Let us find the number of {good} first. There are {crates} crates, and each of them"
            f" holds {per_crate}, so the first van brings {crates} * {per_crate} = {total} {good}"
            f" to the {place}. The second van adds {broken} more, which makes {total} + {broken} ="
            f" {total + broken} in all. Each is sold for {price} coins. To get the income of the"
            f" day, we multiply the number of {good} by the price: {total + broken} * {price} ="
            f" {said}. Therefore, the {place} takes in {said} coins.\n\nThe answer is {said}."
        )
        scores[expert] = float(is_right)
    meta = {"split": split, "task": place, "id": f"{split}-{number}", "agreement": "numeric_match"}
    row = {"question": question, "reference": str(result), "answers": answers}
    return {**row, "scores": scores, "meta": meta}


def make_recording(path: Path, num_questions: int, seed: int = 0) -> None:
    """Write recorded answers to so many questions of three splits."""
    rng = random.Random(seed)
    lines: list[str] = []
    for split, share in SPLIT_SHARES.items():
        for _ in range(round(share * num_questions)):
            lines.append(json.dumps(make_row(len(lines), split, rng)) + "\n")
    path.write_text("".join(lines))
