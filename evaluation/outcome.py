"""What a baseline hands back when it has been played on the test split."""

from __future__ import annotations

from dataclasses import dataclass

from evaluation.route_log import Overhead
from rollout import Route


@dataclass
class Outcome:
    """Scored routes, one per test question, in the split's order.

    label: for readers. seed: of the run it was played with; None for what does not depend on a
    run. passes_answers: whether each call is given the answer before it. validation_return: mean
    return on validation questions, where it is known without asking more.
    """

    label: str
    routes: list[Route]
    overheads: list[Overhead] | None = None
    seed: int | None = None
    passes_answers: bool = True
    validation_return: float | None = None
