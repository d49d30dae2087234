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

from backends.answer_store import Answer, AnswerStore
from config import Config, ExpertConfig, RewardConfig
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


@dataclass(frozen=True)
class FirstCalls:
    """One expert asked every question alone: answers, their qualities and returns (Q,)."""

    texts: list[str]
    quality: np.ndarray
    returns: np.ndarray


def first_calls(
    pool: ExpertPool, idx: int, questions: Sequence[Question], reward: RewardConfig
) -> FirstCalls:
    """Ask the expert of this index."""
    expert = pool.experts[idx].config
    answers = pool.answer([Request(idx, question.text) for question in questions])
    texts = [answer.text for answer in answers]
    quality = np.array(score_answers(questions, texts, [expert.name] * len(texts)))
    costs = np.array([_charge(expert, answer, reward) for answer in answers])
    return FirstCalls(texts, quality, quality - reward.alpha * costs)


def measure(config: Config, questions: Sequence[Question], cells: Sequence[str]) -> Measured:
    """Ask every expert every question alone, and every pair in turn on the chained families.

    Uses a store of its own.
    """
    with tempfile.TemporaryDirectory() as folder:
        pool = build_pool(config)
        pool.store.close()
        pool.store = AnswerStore(Path(folder) / "answers.sqlite")
        first = [first_calls(pool, idx, questions, config.reward) for idx in range(len(pool))]
        tasks = np.array([question.task for question in questions])
        chained = np.isin(tasks, CHAINED_TASKS)
        rows = np.flatnonzero(chained)
        texts = [calls.texts for calls in first]
        second = second_calls(pool, questions, rows, texts, swap=False)
        swapped = second_calls(pool, questions, rows, texts, swap=True)
        pool.store.close()
    params_m = np.array([1000 * expert.config.params_b for expert in pool.experts])
    return Measured(
        pool.names,
        params_m,
        tasks,
        np.array(cells),
        np.array([calls.quality for calls in first]),
        np.array([calls.returns for calls in first]),
        chained,
        second,
        swapped,
    )


def _charge(expert: ExpertConfig, answer: Answer, reward: RewardConfig) -> float:
    """C of the call that gave an answer."""
    cost = call_cost(expert, answer.prompt_tokens, answer.completion_tokens, answer.latency_s)
    return charge(cost, reward)


def second_calls(
    pool: ExpertPool,
    questions: Sequence[Question],
    rows: np.ndarray,
    first: Sequence[Sequence[str]],
    *,
    swap: bool,
) -> np.ndarray:
    """Quality (E, E, C) of expert j after it is handed the answer of expert i.

    With `swap` it is handed i's answer to the next question of the same family.
    """
    passed_from = rows.copy()
    if swap:
        for task in CHAINED_TASKS:
            of_task = [place for place, row in enumerate(rows) if questions[row].task == task]
            passed_from[of_task] = np.roll(rows[of_task], -1)
    out = np.zeros((len(pool), len(pool), len(rows)))
    for i in range(len(pool)):
        for j in range(len(pool)):
            requests = []
            for row, other in zip(rows, passed_from, strict=True):
                requests.append(Request(j, questions[row].text, first[i][other]))
            texts = [answer.text for answer in pool.answer(requests)]
            asked = [questions[row] for row in rows]
            out[i, j] = score_answers(asked, texts, [pool.names[j]] * len(texts))
    return out


def failures(m: Measured) -> list[str]:
    """The bounds that do not hold, in words."""
    return [*_single_call_failures(m), *_family_failures(m), *_chain_failures(m)]


def best_shares(m: Measured) -> np.ndarray:
    """Share (E,) of the questions outside the chained families that each expert is best for."""
    best = m.value.argmax(axis=0)
    return np.bincount(best[~m.chained], minlength=len(m.names)) / (~m.chained).sum()


def _single_call_failures(m: Measured) -> list[str]:
    """Bounds on costs, on every expert's use, and on the quality of one call."""
    out = []
    ratio = m.params_m.max() / m.params_m.min()
    if not ratio >= 4:
        out.append(f"costs differ {ratio:.1f}x, less than 4x")
    for name, share in zip(m.names, best_shares(m), strict=True):
        if not share >= BEST_SHARE:
            out.append(f"{name} is the best choice on {share:.1%} of the questions only: a decoy")
    single = m.quality.mean(axis=1).max()
    if not single <= 0.60:
        out.append(f"the best single expert has quality {single:.3f}, above 0.60")
    choice = m.quality.max(axis=0).mean()
    if not choice >= 0.85:
        out.append(f"the best one-call choice per question has quality {choice:.3f}, below 0.85")
    return out


def _family_failures(m: Measured) -> list[str]:
    """No family outside the chained ones may belong to one expert."""
    out = []
    best = m.value.argmax(axis=0)
    for task in sorted(set(m.tasks[~m.chained])):
        share = np.bincount(best[m.tasks == task]).max() / (m.tasks == task).sum()
        if not share <= 0.90:
            out.append(
                f"{task}: one expert is the best choice on {share:.0%} of the questions, so the"
                " family decides alone"
            )
    return out


def _chain_failures(m: Measured) -> list[str]:
    """A second call must gain much in the chained families, and only from the right answer."""
    out = []
    for task, gain, swapped in chain_gains(m):
        if not gain >= 0.10:
            out.append(
                f"{task}: the best two-call route gains {gain:.3f} over every one-call choice, less"
                " than 0.10"
            )
        if not swapped < 0.10:
            out.append(
                f"{task}: with another question's answer passed on the gain is {swapped:.3f} and"
                " does not vanish"
            )
    return out


def chain_gains(m: Measured) -> list[tuple[str, float, float]]:
    """(family, gain, gain with swapped answers) of each chained family.

    The gain is that of the best two-call route over the best one-call choice per question.
    """
    one_call = m.quality[:, m.chained].max(axis=0)
    out = []
    for task in CHAINED_TASKS:
        at = m.tasks[m.chained] == task
        i, j = best_pair(m, task)
        gain = m.second[i, j, at].mean() - one_call[at].mean()
        swapped = m.second_swapped[i, j, at].mean() - one_call[at].mean()
        out.append((task, float(gain), float(swapped)))
    return out


def best_pair(m: Measured, task: str) -> tuple[int, int]:
    """The first and second expert of the best two-call route in a chained family."""
    mean = m.second[:, :, m.tasks[m.chained] == task].mean(axis=2)
    i, j = np.unravel_index(mean.argmax(), mean.shape)
    return int(i), int(j)


def table(m: Measured) -> str:
    """The pool as Markdown: quality per cell and expert, then the bounds' figures."""
    lines = [
        _row("cell", m.names, "best of them"),
        "|---|" + "---|" * (len(m.names) + 1),
        _row("*million parameters*", [f"{params:.2f}" for params in m.params_m]),
    ]
    for cell in dict.fromkeys(sorted(m.cells)):
        lines.append(_quality_row(f"{cell}", m.quality[:, m.cells == cell], decimals=2))
    lines.append(_quality_row("**all", m.quality, decimals=3))
    lines.append(_row("*best choice by return*", [f"{share:.0%}" for share in best_shares(m)]))
    lines.append("")
    for task, gain, swapped in chain_gains(m):
        i, j = best_pair(m, task)
        lines.append(
            f"- {task}: best two-call route {m.names[i]}, {m.names[j]}: {gain:+.2f} over the best"
            f" one-call choice; with another question's answer passed on {swapped:+.2f}."
        )
    return "\n".join(lines)


def _row(head: str, cells: Sequence[str], last: str = "") -> str:
    return " | ".join([f"| {head}", *cells, f"{last} |" if last else "|"])


def _quality_row(head: str, quality: np.ndarray, *, decimals: int) -> str:
    """Mean quality of each expert and of the best of them, from qualities (E, Q)."""
    count = f"{head} ({quality.shape[1]})" + ("**" if head.startswith("**") else "")
    means = [f"{mean:.{decimals}f}" for mean in quality.mean(axis=1)]
    return _row(count, means, f"{quality.max(axis=0).mean():.{decimals}f}")


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
        raise BoundsError("\n  ".join(["the embedded pool misses its bounds:", *failed]))
    print("every bound holds")
    return text
