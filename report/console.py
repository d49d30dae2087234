"""What an evaluation prints: at most 120 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

WIDTH = 120
NAME_WIDTH = 34  # a longer name of a policy is cut
VERDICTS = {"better": "better", "worse": "worse", "not separable": "unclear"}


def show(results: Mapping[str, Any]) -> str:
    """The table, what it says, and its footnotes."""
    parts = [table(results), "", *map(wrapped, results["summary"]), ""]
    curves = results.get("curves")
    if curves:
        parts += [curve_table(curves), "", *map(wrapped, curves["summary"]), ""]
        if curves.get("terminator"):
            parts += [wrapped(terminator_line(curves["terminator"])), ""]
    if results.get("budgets"):
        parts += [budget_table(results["budgets"]), ""]
    parts += map(wrapped, results["notes"])
    return "\n".join(parts)


def budget_table(budgets: Sequence[Mapping[str, Any]]) -> str:
    """Budgets asked for, what was expected to be spent and what was."""
    lines = [f"{'budget':>8}  {'expected':<23} {'spent':<23} {'quality':<23} met"]
    for one in budgets:
        spans = [_interval(one[name]) for name in ("expected", "cost", "quality")]
        met = "yes" if one["is_met"] else "no"
        lines.append(f"{one['budget']:>8.4g}  {spans[0]:<23} {spans[1]:<23} {spans[2]:<23} {met}")
    return "\n".join(lines)


def terminator_line(figures: Mapping[str, Any]) -> str:
    """How well estimates of answers hold, over the agent's routes at every alpha."""
    low, high = figures["ece_of_calibrated"]
    auroc = "-" if figures["auroc"] is None else f"{figures['auroc']:.3f}"
    return (
        f"Estimates of {figures['answers']} answers to submit, all alphas: AUROC {auroc},"
        f" calibration error {figures['ece']:.3f} (a calibrated model's: {low:.3f} to {high:.3f})."
    )


def wrapped(sentence: str) -> str:
    return textwrap.fill(sentence, WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def cut(name: str, width: int) -> str:
    return name if len(name) <= width else name[: width - 3] + "..."


def table(results: Mapping[str, Any]) -> str:
    """The rows as aligned text.

    Quality and return with intervals, calls, parameters of the experts (millions), their share of
    asking every expert once, parameters of deciding, and quality against the best single expert.
    """
    all_params = sum(expert["params_b"] for expert in results["experts"])
    width = min(NAME_WIDTH, max(len(row["policy"]) for row in results["rows"]))
    lines = [
        f"{'policy':<{width}} {'quality':<20} {'return':<23} {'calls':>5} {'params(M)':>9}"
        f" {'of all':>6} {'deciding':>9} {'vs best':>7}"
    ]
    for row in results["rows"]:
        params = row["cost"]["params_b"]
        verdict = VERDICTS[row["vs_best_single"]["verdict"]]
        lines.append(
            f"{cut(row['policy'], width):<{width}} {_interval(row['quality']):<20}"
            f" {_interval(row['return']):<23} {row['calls']['mean']:>5.2f} {millions(params):>9}"
            f" {params / all_params:>6.0%} {millions(row['overhead']['params_b']):>9} {verdict:>7}"
        )
    return "\n".join(lines)


def curve_table(curves: Mapping[str, Any]) -> str:
    """Return at every alpha and area, for the policies that could be deployed."""
    heads = [f"{alpha:>7g}" for alpha in curves["alphas"]]
    lines = [f"{'return at alpha':<{NAME_WIDTH}}{''.join(heads)}   area"]
    for row in curves["rows"]:
        if not row["deployable"]:
            continue
        cells = [f"{point['return']['mean']:>7.3f}" for point in row["points"]]
        area = f"  {row['area']['mean']:.3f}" if row["area"] else ""
        lines.append(f"{cut(row['policy'], NAME_WIDTH):<{NAME_WIDTH}}{''.join(cells)}{area}")
    return "\n".join(line[:WIDTH] for line in lines)


def _interval(span: Mapping[str, float]) -> str:
    return f"{span['mean']:.3f} [{span['lo']:.3f}, {span['hi']:.3f}]"


def millions(params_b: float) -> str:
    """Parameters in millions, to three digits or to the whole million."""
    value = 1000 * params_b
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.3g}"
