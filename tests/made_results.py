"""A full results.json of two seeds, by hand: what test_report_html.py shows and
test_report_schema.py checks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

EXPERTS = ("small", "middle", "large")
TASKS = ("sums", "capitals")
NUM_QUESTIONS = 30


def around(mean: float) -> dict[str, float]:
    return {"mean": mean, "lo": mean - 0.05, "hi": mean + 0.05}


def made_row(
    policy: str, kind: str, quality: float, charge: float, role: str | None = None
) -> dict[str, Any]:
    return {
        "policy": policy,
        "role": role or kind,
        "kind": kind,
        "quality": around(quality),
        "return": around(quality - 0.1 * charge),
        "calls": around(1.0),
        "charge": charge,
        "cost": {
            "params_b": charge / 1000,
            "flops": 3e7 * charge,
            "prompt_tokens": 16.0,
            "completion_tokens": 8.0,
            "latency_s": 0.004,
            "usd": None,
        },
        "overhead": (
            {"params_b": 0.0454, "flops": 3.7e9, "latency_s": 0.02}
            if kind == "der"
            else {"params_b": 0.0, "flops": 0.0, "latency_s": 0.0}
        ),
        "vs_best_single": {
            "diff": quality - 0.4,
            "lo": quality - 0.45,
            "hi": quality - 0.35,
            "verdict": "better" if quality > 0.45 else "not separable",
        },
        "by_task": {
            task: {"quality": quality - 0.1 * idx, "n": NUM_QUESTIONS // 2}
            for idx, task in enumerate(TASKS)
        },
        "by_seed": {
            str(seed): {"quality": quality, "return": quality - 0.1 * charge}
            for seed in ((0, 1) if kind == "der" else (0,))
        },
    }


def made_pair(
    first: str, second: str, group: str, previous: float, swapped: float
) -> dict[str, Any]:
    variants = {
        "previous": around(previous),
        "none": around(0.2),
        "swapped": around(swapped),
        "own": around(0.3),
    }
    return {
        "first": first,
        "second": second,
        "task_group": group,
        "n": 40,
        "variants": variants,
        "wrong_to_right": around(0.1),
        "right_to_wrong": None,
    }


def made_rows() -> list[dict[str, Any]]:
    return [
        made_row("DER", "der", 0.85, 0.5),
        made_row("best fixed: large", "static", 0.4, 2.0, "best_single"),
        made_row("small", "single", 0.2, 0.2),
        made_row("middle", "single", 0.3, 0.4),
        made_row("large", "single", 0.4, 2.0),
        made_row("all once, oracle's pick", "oracle", 0.9, 2.6, "oracle_pick"),
    ]


# A comparison, as far as it is the same in all sections
TESTED = {
    "diff": 0.45,
    "lo": 0.4,
    "hi": 0.5,
    "verdict": "better",
    "p": 1e-9,
    "wins": 14,
    "ties": 15,
    "losses": 1,
    "covers": "questions",
}


def made_comparisons() -> list[dict[str, Any]]:
    comparisons = []
    for measure in ("quality", "return"):
        for a, b in (("DER", "best fixed: large"), ("small", "best fixed: large")):
            comparison = {"p_adjusted": 2e-9, **TESTED, "a": a, "b": b, "measure": measure}
            comparisons.append(comparison)
    return comparisons


def made_oracle() -> dict[str, Any]:
    return {
        "oracle_stop": {"quality": 0.88, "return": 0.83},
        "optimum": {"quality": 0.95, "return": 0.9},
        "full_information": {"quality": 0.9, "return": 0.82},
        "full_information_oracle_stop": {"quality": 0.9, "return": 0.86},
        "gap": {"information": 0.04, "learning": 0.03, "stopping": -0.01},
        "gap_own_stop": {"information": 0.08, "learning": -0.01, "stopping": -0.01},
    }


def made_terminator() -> dict[str, Any]:
    thresholds = []
    for t in (0.0, 0.4, 0.8):
        at = {"threshold": t, "quality": 0.8 + 0.1 * t, "return": 0.8 - 0.1 * t, "cost": 0.4 + t}
        thresholds.append(at)
    return {
        "threshold": 0.4,
        "answers": 100,
        "auroc": 0.93,
        "auroc_well_formed": None,
        "well_formed": 0.9,
        "brier": 0.1,
        "ece": 0.04,
        "calibration": [
            {"p": 0.1, "good": 0.2, "count": 30},
            {"p": 0.9, "good": 0.95, "count": 70},
        ],
        "thresholds": thresholds,
        "seeds": [
            {"seed": 0, "threshold": 0.4, "auroc": 0.93, "auroc_well_formed": None, "ece": 0.04}
        ],
    }


def made_routes() -> dict[str, Any]:
    return {
        "policy": "DER",
        "share": {"small": 0.5, "middle": 0.0, "large": 0.5},
        "by_position": [
            {"small": 0.6, "middle": 0.0, "large": 0.4},
            {"small": 0.0, "middle": 0.0, "large": 1.0},
        ],
        "flows": [
            {"step": 1, "from": "start", "to": "small", "count": 36},
            {"step": 1, "from": "start", "to": "large", "count": 24},
            {"step": 2, "from": "small", "to": "large", "count": 6},
            {"step": 2, "from": "small", "to": "stop", "count": 30},
            {"step": 2, "from": "large", "to": "stop", "count": 24},
            {"step": 3, "from": "large", "to": "stop", "count": 6},
        ],
        "entropy": 1.4,
        "further_calls": [{"call": 2, "routes": 6, "gain": 0.5, "charge": 2.0}],
    }


def made_transfer() -> dict[str, Any]:
    pairs = [
        made_pair("small", "large", "composition", 0.6, 0.1),
        made_pair("large", "small", "composition", 0.1, 0.15),
        made_pair("small", "large", "other", 0.4, 0.38),
    ]
    gains = {name: dict(TESTED) for name in ("none", "swapped", "own")}
    best = {**pairs[0], "task_group": "sums", "gains": gains}
    # The last pairs are as older versions wrote them, without gains.
    return {"pairs": [{**pairs[0], "gains": gains}, *pairs[1:]], "best": [best]}


def made_point(
    policy: str, kind: str, value: str | None, cost: float, quality: float
) -> dict[str, Any]:
    spans = {"cost": around(cost), "quality": around(quality)}
    return {"policy": policy, "kind": kind, "value": value, **spans}


def made_tradeoff() -> dict[str, Any]:
    return {
        "setting": "reward.alpha",
        "points": [
            made_point("DER", "der", "0.2", 0.4, 0.8),
            made_point("DER", "der", "0.05", 0.7, 0.87),
            made_point("small", "single", None, 0.2, 0.2),
        ],
        "hull": [[0.4, 0.8], [0.5, 0.85], [0.7, 0.87]],
        "bounds": [0.2, 2.0],
        "area": 0.7,
        "area_experts": 0.31,
    }


def made_results() -> dict[str, Any]:
    experts = []
    for idx, name in enumerate(EXPERTS):
        experts.append({"name": name, "params_b": 0.001 * (idx + 1)})
    return {
        "split": "test",
        "num_questions": NUM_QUESTIONS,
        "seeds": [0, 1],
        "reward": "final",
        "alpha": 0.1,
        "cost_unit": "million parameters",
        "experts": experts,
        "rows": made_rows(),
        "comparisons": made_comparisons(),
        "oracle": made_oracle(),
        "terminator": made_terminator(),
        "routes": made_routes(),
        "transfer": made_transfer(),
        "tradeoff": made_tradeoff(),
        "summary": ["DER beats the best fixed expert."],
        "notes": ["Intervals: 95% bootstrap over questions."],
        "evaluation": {
            "runs": ["runs/a", "runs/b"],
            "seconds": 12.5,
            "answers_generated": 0,
            "answers_failed": 0,
            "config": {"name": "a"},
        },
    }


def made_records(
    policy: str, kind: str, seed: int, qualities: Sequence[float], *, charge: float, params_b: float
) -> list[dict[str, Any]]:
    """Lines of a route log: one call a question."""
    cost = {
        "params_b": params_b,
        "prompt_tokens": 10,
        "completion_tokens": 8,
        "flops": 6043392.0,
        "latency_s": 0.0007,
        "usd": None,
    }
    made = []
    for idx, quality in enumerate(qualities):
        step = {
            "expert": "small",
            "answer": f"answer {idx}",
            "quality": quality,
            "cost": cost,
            "charge": charge,
        }
        made.append(
            {
                "policy": policy,
                "role": kind,
                "kind": kind,
                "seed": seed,
                "question": f"q{idx}",
                "task": "t",
                "quality": quality,
                "return": quality - 0.1 * charge,
                "validation_return": None,
                "steps": [step],
            }
        )
    return made
