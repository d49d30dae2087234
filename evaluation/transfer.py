"""The knowledge-transfer audit: is a second call better for the answer it was handed, or only for
being a second call?

For every ordered pair of experts, at an equal number of calls, the second is handed the first's
answer as it is, nothing, another question's answer, or its own first answer. A recorded expert is
never the second: it does not read what it is handed.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evaluation.route_tree import RouteTree
from evaluation.stats import interval, paired_difference
from experts import ExpertPool, Request
from metrics.registry import score_answers
from questions import Question

VARIANTS = ("previous", "none", "swapped", "own")


def swapped_partner(questions: Sequence[Question]) -> np.ndarray:
    """For each question another one of its task, the next in the list (cyclic); -1 where a task has
    a single question.
    """
    by_task: dict[str, list[int]] = defaultdict(list)
    for index, question in enumerate(questions):
        by_task[question.task].append(index)
    partner = np.full(len(questions), -1)
    for members in by_task.values():
        if len(members) > 1:
            partner[members] = np.roll(members, -1)
    return partner


def reading_experts(pool: ExpertPool) -> list[int]:
    """Those that an answer can be handed to: a recorded expert does not read it."""
    return [k for k in range(len(pool)) if not pool.is_recorded[k]]


def best_pairs(
    tree: RouteTree, tasks: Sequence[str], seconds: Sequence[int]
) -> dict[str, tuple[int, int]]:
    """For each of the tasks the two experts in a row, the second of them from `seconds`, with the
    highest mean quality on full trees of validation questions.
    """
    found = {}
    for task in tasks:
        roots = [index for index, question in enumerate(tree.questions) if question.task == task]
        if roots and seconds and tree.t_max > 1:
            pairs = itertools.product(range(tree.num_experts), seconds)
            found[task] = max(pairs, key=lambda pair: _second_quality(tree, roots, *pair))
    return found


def _second_quality(tree: RouteTree, roots: Sequence[int], first: int, second: int) -> float:
    """Mean quality of the second answer when `first` and then `second` are asked."""
    after_first = tree.levels[0].child[roots, first]
    after_second = tree.levels[1].child[after_first, second]
    return float(tree.levels[2].answer_quality[after_second].mean())


def audit(
    questions: Sequence[Question],
    pool: ExpertPool,
    composition_pairs: Mapping[str, tuple[int, int]],
    p0: float = 1.0,
) -> dict[str, Any]:
    """Quality of every second call under every variant, by group of tasks, with 95% intervals over
    the questions.

    `composition_pairs` names the tasks that chain skills by construction, each with the pair of
    experts to report on its own (the second one reads). Returns {"pairs": [...], "best": [...]} of
    results.json; `best` adds, per composition task, the paired gain of the handed-on answer over
    each other variant. Questions that are alone in their task are left out: there is nothing to
    swap.
    """
    partner, num, size = swapped_partner(questions), len(pool), len(questions)
    reading = reading_experts(pool)
    asked = pool.answer([Request(k, question.text) for k in range(num) for question in questions])
    first = [
        [answer.text for answer in asked[k * size : (k + 1) * size]] for k in range(num)
    ]  # [expert][question]
    first_quality = [
        np.array(score_answers(questions, row, [name] * size))
        for name, row in zip(pool.names, first, strict=True)
    ]
    handed = {
        (i, j, variant): [
            (
                None
                if variant == "none"
                else (
                    first[j][q]
                    if variant == "own"
                    else first[i][partner[q] if variant == "swapped" else q]
                )
            )
            for q in range(len(questions))
        ]
        for i in range(num)
        for j in reading
        for variant in VARIANTS
    }
    plan = list(handed)
    requests = [
        Request(j, question.text, given)
        for i, j, variant in plan
        for question, given in zip(questions, handed[i, j, variant], strict=True)
    ]
    texts = [answer.text for answer in pool.answer(requests)]
    quality = {
        key: np.array(
            score_answers(questions, texts[n * size : (n + 1) * size], [pool.names[key[1]]] * size)
        )
        for n, key in enumerate(plan)
    }  # each (Q,)

    tasks = np.array([question.task for question in questions])
    chained = np.isin(tasks, list(composition_pairs))
    groups = {"composition": chained & (partner >= 0), "other": ~chained & (partner >= 0)}
    pairs = [
        _pair(
            pool.names[i],
            pool.names[j],
            group,
            mask,
            {v: quality[i, j, v] for v in VARIANTS},
            first_quality[i],
            p0,
        )
        for i in range(num)
        for j in reading
        for group, mask in groups.items()
        if mask.sum() > 1
    ]
    best = []
    for task, (i, j) in composition_pairs.items():
        mask = (tasks == task) & (partner >= 0)
        if mask.sum() > 1:
            row = _pair(
                pool.names[i],
                pool.names[j],
                task,
                mask,
                {v: quality[i, j, v] for v in VARIANTS},
                first_quality[i],
                p0,
            )
            best.append(
                row
                | {
                    "gains": {
                        v: paired_difference(
                            quality[i, j, "previous"][mask], quality[i, j, v][mask]
                        )
                        for v in VARIANTS[1:]
                    }
                }
            )
    return {"pairs": pairs, "best": best}


def _pair(
    first: str,
    second: str,
    group: str,
    mask: np.ndarray,
    quality: dict[str, np.ndarray],
    first_quality: np.ndarray,
    p0: float,
) -> dict[str, Any]:
    """One row of the audit over the questions in `mask` (Q,); an answer is right from
    quality p0.
    """
    was_wrong = mask & (first_quality < p0)
    was_right = mask & (first_quality >= p0)
    return {
        "first": first,
        "second": second,
        "task_group": group,
        "n": int(mask.sum()),
        "variants": {variant: _interval(values[mask]) for variant, values in quality.items()},
        "wrong_to_right": _interval(quality["previous"][was_wrong] >= p0),
        "right_to_wrong": _interval(quality["previous"][was_right] < p0),
    }


def _interval(values: np.ndarray) -> dict[str, float] | None:
    """None where there are too few questions for an interval."""
    return interval(values.astype(float)) if len(values) > 1 else None
