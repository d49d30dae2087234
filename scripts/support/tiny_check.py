"""Measures the embedded pool and holds it to its bounds: is it a fair test bed for routing?

Called by `build_tiny_pool.py --check`. Answers come from the experts themselves, greedily; alpha
and costs are the quick start's.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from backends.answer_store import AnswerStore
from config import Config
from experts import ExpertPool, Request, build_pool
from metrics.registry import score_answers
from questions import Question
from reward import call_cost, charge
from runtime.errors import BoundsError

CHAINED_TASKS = ("decrypt_backward", "convert_backward")
BEST_SHARE = 0.02  # of the questions that an expert must be the best choice for
CARD_MARKS = ("<!-- measured -->", "<!-- /measured -->")


@dataclass(frozen=True)
class Measured:
    """Qualities and returns of single calls, and qualities of second calls in the chained
    families.
    """

    names: list[str]
    params_m: np.ndarray  # (E,) millions of parameters
    tasks: np.ndarray  # (Q,)
    cells: np.ndarray  # (Q,)
    quality: np.ndarray  # (E, Q) asked alone
    value: np.ndarray  # (E, Q) return when asked alone
    chained: np.ndarray  # (Q,) bool: question of a chained family
    second: np.ndarray  # (E, E, C) quality of expert j after expert i, on the C chained questions
    second_swapped: np.ndarray  # (E, E, C) the same with another question's answer passed on


def measure(config: Config, questions: Sequence[Question], cells: Sequence[str]) -> Measured:
    """Ask every expert every question alone, and every pair in turn on the chained families.

    Uses a store of its own.
    """
    with tempfile.TemporaryDirectory() as folder:
        pool = build_pool(config)
        pool.store.close()
        pool.store = AnswerStore(Path(folder) / "answers.sqlite")
        quality, value, first = [], [], []
        for idx, expert in enumerate(pool.experts):
            answers = pool.answer([Request(idx, question.text) for question in questions])
            costs = [
                charge(
                    call_cost(expert.config, a.prompt_tokens, a.completion_tokens, a.latency_s),
                    config.reward,
                )
                for a in answers
            ]
            quality.append(
                score_answers(
                    questions,
                    [answer.text for answer in answers],
                    [expert.config.name] * len(answers),
                )
            )
            value.append(np.array(quality[-1]) - config.reward.alpha * np.array(costs))
            first.append([answer.text for answer in answers])
        chained = np.array([question.task in CHAINED_TASKS for question in questions])
        second = second_calls(pool, questions, np.flatnonzero(chained), first, swap=False)
        swapped = second_calls(pool, questions, np.flatnonzero(chained), first, swap=True)
        pool.store.close()
    params_m = np.array([1000 * expert.config.params_b for expert in pool.experts])
    return Measured(
        pool.names,
        params_m,
        np.array([q.task for q in questions]),
        np.array(cells),
        np.array(quality),
        np.array(value),
        chained,
        second,
        swapped,
    )


def second_calls(
    pool: ExpertPool,
    questions: Sequence[Question],
    rows: np.ndarray,
    first: Sequence[Sequence[str]],
    *,
    swap: bool,
) -> np.ndarray:
    """Quality (E, E, C) of expert j handed expert i's answer, or with `swap` i's answer to the next
    question of the same family.
    """
    passed_from = rows.copy()
    if swap:
        for task in CHAINED_TASKS:
            of_task = [place for place, row in enumerate(rows) if questions[row].task == task]
            passed_from[of_task] = np.roll(rows[of_task], -1)
    out = np.zeros((len(pool), len(pool), len(rows)))
    for i in range(len(pool)):
        for j in range(len(pool)):
            answers = pool.answer(
                [
                    Request(j, questions[row].text, first[i][other])
                    for row, other in zip(rows, passed_from, strict=True)
                ]
            )
            out[i, j] = score_answers(
                [questions[row] for row in rows],
                [answer.text for answer in answers],
                [pool.names[j]] * len(answers),
            )
    return out


def failures(m: Measured) -> list[str]:
    """The bounds that do not hold, in words."""
    out = []

    def hold(claim: bool, text: str) -> None:
        if not claim:
            out.append(text)

    best = m.value.argmax(axis=0)  # (Q,) best choice of one call, by return
    shares = np.bincount(best[~m.chained], minlength=len(m.names)) / (~m.chained).sum()
    hold(
        m.params_m.max() / m.params_m.min() >= 4,
        f"costs differ {m.params_m.max() / m.params_m.min():.1f}x, less than 4x",
    )
    for name, share in zip(m.names, shares, strict=True):
        hold(
            share >= BEST_SHARE,
            f"{name} is the best choice on {share:.1%} of the questions only: a decoy",
        )
    hold(
        m.quality.mean(axis=1).max() <= 0.60,
        f"the best single expert has quality {m.quality.mean(axis=1).max():.3f}, above 0.60",
    )
    hold(
        m.quality.max(axis=0).mean() >= 0.85,
        f"the best one-call choice per question has quality {m.quality.max(axis=0).mean():.3f},"
        " below 0.85",
    )
    for task in sorted(set(m.tasks[~m.chained])):
        share = np.bincount(best[m.tasks == task]).max() / (m.tasks == task).sum()
        hold(
            share <= 0.90,
            f"{task}: one expert is the best choice on {share:.0%} of the questions, so the family"
            " decides alone",
        )
    for task, gain, swapped in chain_gains(m):
        hold(
            gain >= 0.10,
            f"{task}: the best two-call route gains {gain:.3f} over every one-call choice, less"
            " than 0.10",
        )
        hold(
            swapped < 0.10,
            f"{task}: with another question's answer passed on the gain is {swapped:.3f} and does"
            " not vanish",
        )
    return out


def chain_gains(m: Measured) -> list[tuple[str, float, float]]:
    """(family, gain, gain with swapped answers) of the best two-call route over the best one-call
    choice per question.
    """
    tasks = m.tasks[m.chained]
    one_call = m.quality[:, m.chained].max(axis=0)
    out = []
    for task in CHAINED_TASKS:
        at = tasks == task
        i, j = np.unravel_index(m.second[:, :, at].mean(axis=2).argmax(), m.second.shape[:2])
        out.append(
            (
                task,
                float(m.second[i, j, at].mean() - one_call[at].mean()),
                float(m.second_swapped[i, j, at].mean() - one_call[at].mean()),
            )
        )
    return out


def table(m: Measured) -> str:
    """The pool as Markdown: quality per cell and expert, then the bounds' figures."""
    lines = [
        "| cell | " + " | ".join(m.names) + " | best of them |",
        "|---|" + "---|" * (len(m.names) + 1),
    ]
    lines.append("| *million parameters* | " + " | ".join(f"{p:.2f}" for p in m.params_m) + " | |")
    for cell in dict.fromkeys(sorted(m.cells)):
        at = m.cells == cell
        lines.append(
            f"| {cell} ({at.sum()}) | "
            + " | ".join(f"{q:.2f}" for q in m.quality[:, at].mean(axis=1))
            + f" | {m.quality[:, at].max(axis=0).mean():.2f} |"
        )
    lines.append(
        f"| **all ({len(m.cells)})** | "
        + " | ".join(f"{q:.3f}" for q in m.quality.mean(axis=1))
        + f" | {m.quality.max(axis=0).mean():.3f} |"
    )
    best = (
        np.bincount(m.value.argmax(axis=0)[~m.chained], minlength=len(m.names)) / (~m.chained).sum()
    )
    lines.append(
        "| *best choice by return* | " + " | ".join(f"{share:.0%}" for share in best) + " | |"
    )
    lines.append("")
    for task, gain, swapped in chain_gains(m):
        i, j = np.unravel_index(
            m.second[:, :, m.tasks[m.chained] == task].mean(axis=2).argmax(), m.second.shape[:2]
        )
        lines.append(
            f"- {task}: best two-call route {m.names[i]}, {m.names[j]}: {gain:+.2f} over the best"
            f" one-call choice; with another question's answer passed on {swapped:+.2f}."
        )
    return "\n".join(lines)


def write_card(card: Path, measured: str) -> None:
    """Put the measured table between the marks of data/README.md."""
    text = card.read_text(encoding="utf-8")
    before, _, rest = text.partition(CARD_MARKS[0])
    _, _, after = rest.partition(CARD_MARKS[1])
    card.write_text(
        f"{before}{CARD_MARKS[0]}\n{measured}\n{CARD_MARKS[1]}{after}", encoding="utf-8"
    )


def check(config: Config, questions: Sequence[Question], cells: Sequence[str]) -> str:
    """Measure, print and return the table.

    Raises BoundsError naming every bound that does not hold.
    """
    measured = measure(config, questions, cells)
    text = table(measured)
    print(text)
    if failed := failures(measured):
        raise BoundsError(
            "the embedded pool misses its bounds:\n" + "\n".join(f"  {line}" for line in failed)
        )
    print("every bound holds")
    return text
