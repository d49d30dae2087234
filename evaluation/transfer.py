"""The knowledge-transfer audit: what does a second call gain from the answer it is handed?

Part of its gain may come from being a second call. So for every ordered pair of experts, at an
equal number of calls, the second expert is handed one of four things: the first expert's answer,
nothing, the answer to another question, or its own first answer. A recorded expert is never the
second one: it does not read what it is handed.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from backends.answer_store import Answer
from evaluation.route_tree import RouteTree
from evaluation.stats import interval, paired_difference
from experts import ExpertPool, Request
from metrics.registry import score_answers
from questions import Question

VARIANTS = ("previous", "none", "swapped", "own")


def swapped_partner(questions: Sequence[Question]) -> np.ndarray:
    """For each question (Q,) the next one of its task, cyclic; -1 where there is no other."""
    by_task: dict[str, list[int]] = defaultdict(list)
    for index, question in enumerate(questions):
        by_task[question.task].append(index)
    partner = np.full(len(questions), -1)
    for members in by_task.values():
        if len(members) > 1:
            partner[members] = np.roll(members, -1)
    return partner


def reading_experts(pool: ExpertPool) -> list[int]:
    """Indices of the experts that read what they are handed: all but the recorded ones."""
    return [k for k in range(len(pool)) if not pool.is_recorded[k]]


def best_pairs(
    tree: RouteTree, tasks: Sequence[str], seconds: Sequence[int]
) -> dict[str, tuple[int, int]]:
    """For each task the two experts in a row that reach the highest mean quality.

    The tree is a full one of validation questions. The second expert is one of `seconds`.
    """
    best = {}
    for task in tasks:
        roots = [index for index, question in enumerate(tree.questions) if question.task == task]
        if roots and seconds and tree.t_max > 1:
            pairs = itertools.product(range(tree.num_experts), seconds)
            best[task] = max(pairs, key=lambda pair: _second_quality(tree, roots, *pair))
    return best


def _second_quality(tree: RouteTree, roots: Sequence[int], first: int, second: int) -> float:
    """Mean quality of the second answer when `first` and then `second` are asked."""
    after_first = tree.levels[0].child[roots, first]
    after_second = tree.levels[1].child[after_first, second]
    return float(tree.levels[2].answer_quality[after_second].mean())


@dataclass(frozen=True)
class SecondCalls:
    """What the audit measured on Q questions.

    first: the quality (Q,) of each expert's first answer. second: the quality (Q,) of the second
    call, by first expert, second expert and variant.
    """

    names: Sequence[str]
    first: list[np.ndarray]
    second: dict[tuple[int, int, str], np.ndarray]


def audit(
    questions: Sequence[Question],
    pool: ExpertPool,
    composition_pairs: Mapping[str, tuple[int, int]],
    p0: float = 1.0,
) -> dict[str, Any]:
    """Quality of every second call under every variant, with 95% intervals over the questions.

    Questions that are alone in their task are left out: there is nothing to swap.

    Args:
        composition_pairs: the tasks that chain skills by construction. Each has the pair of
            experts to report on its own, whose second one reads.
        p0: an answer is right from this quality on.

    Returns:
        {"pairs": [...], "best": [...]} of results.json. `pairs` has a row for each pair of experts
        and group of tasks, `best` one for each composition task. A row holds the paired gain of
        the handed-on answer over each other variant.
    """
    partner = swapped_partner(questions)
    calls = _make_calls(questions, pool, partner)
    tasks = np.array([question.task for question in questions])
    has_partner = partner >= 0
    is_chained = np.isin(tasks, list(composition_pairs))
    groups = {"composition": is_chained & has_partner, "other": ~is_chained & has_partner}
    pairs = []
    for i, j in itertools.product(range(len(pool)), reading_experts(pool)):
        for group, mask in groups.items():
            if mask.sum() > 1:
                pairs.append(_pair(calls, i, j, group, mask, p0))
    best = []
    for task, (i, j) in composition_pairs.items():
        mask = (tasks == task) & has_partner
        if mask.sum() > 1:
            best.append(_pair(calls, i, j, task, mask, p0))
    return {"pairs": pairs, "best": best}


def _make_calls(
    questions: Sequence[Question], pool: ExpertPool, partner: np.ndarray
) -> SecondCalls:
    """Ask every expert once, then every reading expert after each expert in every variant."""
    first = _first_texts(questions, pool)
    first_quality = []
    for name, texts in zip(pool.names, first, strict=True):
        scores = score_answers(questions, texts, [name] * len(texts))
        first_quality.append(np.array(scores))

    plan = list(itertools.product(range(len(pool)), reading_experts(pool), VARIANTS))
    requests = []
    for i, j, variant in plan:
        handed = _handed_answers(variant, first[i], first[j], partner)
        for question, answer in zip(questions, handed, strict=True):
            requests.append(Request(j, question.text, answer))
    second = {}
    second_texts = _parts(pool.answer(requests), len(plan))
    for (i, j, variant), texts in zip(plan, second_texts, strict=True):
        scores = score_answers(questions, texts, [pool.names[j]] * len(texts))
        second[i, j, variant] = np.array(scores)
    return SecondCalls(pool.names, first_quality, second)


def _first_texts(questions: Sequence[Question], pool: ExpertPool) -> list[list[str]]:
    """What each expert answers to the bare questions, [K][Q]."""
    requests = []
    for expert_idx in range(len(pool)):
        for question in questions:
            requests.append(Request(expert_idx, question.text))
    return _parts(pool.answer(requests), len(pool))


def _parts(answers: Sequence[Answer], num_parts: int) -> list[list[str]]:
    """The texts of the answers, in so many parts of equal size."""
    texts = [answer.text for answer in answers]
    size = len(texts) // max(num_parts, 1)
    return [texts[part * size : (part + 1) * size] for part in range(num_parts)]


def _handed_answers(
    variant: str, first: Sequence[str], own: Sequence[str], partner: np.ndarray
) -> Sequence[str | None]:
    """What the second expert is handed for each question.

    first: answers of the first expert. own: first answers of the second expert.
    """
    if variant == "none":
        return [None] * len(first)
    if variant == "own":
        return own
    if variant == "swapped":
        return [first[question_idx] for question_idx in partner]
    return first


def _pair(
    calls: SecondCalls, i: int, j: int, group: str, mask: np.ndarray, p0: float
) -> dict[str, Any]:
    """One row of the audit: expert i, then expert j, over the questions in `mask` (Q,)."""
    was_wrong = mask & (calls.first[i] < p0)
    was_right = mask & (calls.first[i] >= p0)
    variants = {}
    for variant in VARIANTS:
        variants[variant] = _interval(calls.second[i, j, variant][mask])
    handed_on = calls.second[i, j, "previous"]
    return {
        "first": calls.names[i],
        "second": calls.names[j],
        "task_group": group,
        "n": int(mask.sum()),
        "variants": variants,
        "gains": _gains(calls, i, j, mask),
        "wrong_to_right": _interval(handed_on[was_wrong] >= p0),
        "right_to_wrong": _interval(handed_on[was_right] < p0),
    }


def _gains(calls: SecondCalls, i: int, j: int, mask: np.ndarray) -> dict[str, Any]:
    """Paired gain of the handed-on answer over each other variant."""
    handed_on = calls.second[i, j, "previous"][mask]
    gains = {}
    for variant in VARIANTS[1:]:
        gains[variant] = paired_difference(handed_on, calls.second[i, j, variant][mask])
    return gains


def _interval(values: np.ndarray) -> dict[str, float] | None:
    """None where there are too few questions for an interval."""
    return interval(values.astype(float)) if len(values) > 1 else None
