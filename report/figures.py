"""The figures of an evaluation as PNG files, drawn from `report/results.json` and the runs'
`metrics.jsonl`.

Each figure function returns a matplotlib Figure, or None where the results lack what it shows. What
two views share (which policies, which cells, which colours) stands here too; plots.py draws the
same numbers for the browser.
"""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from report.results import YARDSTICKS, cost_words

Results = Mapping[str, Any]
Curves = Mapping[Any, Sequence[Mapping[str, Any]]]

# Okabe and Ito's palette, which the colour-blind can tell apart; black and yellow are left out,
# unreadable on a dark or a white page.
BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY, GREY = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
    "#808080",
)
KIND_COLOURS = {
    "der": VERMILLION,
    "single": BLUE,
    "static": SKY,
    "learned": PURPLE,
    "cascade": GREEN,
    "ensemble": ORANGE,
    "random": GREY,
    "oracle": GREY,
}
EXPERT_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILLION, GREY)
MARKERS = {
    "o": "circle",
    "s": "square",
    "^": "triangle-up",
    "D": "diamond",
    "v": "triangle-down",
    "P": "cross",
    "X": "x",
    "*": "star",
}  # plotly's names
CURVE_PANELS = {
    "return": ("train/return", "eval/return"),
    "quality": ("train/quality", "eval/quality"),
    "policy entropy (nats)": ("losses/entropy", "eval/entropy"),
}
DPI = 160


def write_figures(folder: Path, results: Results, curves: Curves) -> list[str]:
    """Write every figure whose data is there into `folder`; returns the file names, in the report's
    order.
    """
    figures = {
        "quality_cost.png": quality_cost(results),
        "learning_curves.png": learning_curves(curves),
        "routes.png": routes(results),
        "experts_by_task.png": experts_by_task(results),
        "calibration.png": calibration(results),
        "transfer.png": transfer(results),
    }
    drawn = {name: figure for name, figure in figures.items() if figure is not None}
    for name, figure in drawn.items():
        figure.savefig(
            folder / name, dpi=DPI
        )  # a Figure made without pyplot draws with Agg and leaves no global state
    return list(drawn)


# What both views show


def centre(value: float | Mapping[str, float]) -> float:
    """The number of an entry that may carry an interval."""
    return value["mean"] if isinstance(value, Mapping) else value


def markers(rows: Sequence[Results]) -> list[str]:
    """One matplotlib marker per row: rows of one colour differ in shape."""
    seen: Counter[str] = Counter()
    shapes = []
    for row in rows:
        colour = KIND_COLOURS[row["kind"]]
        shapes.append(list(MARKERS)[seen[colour] % len(MARKERS)])
        seen[colour] += 1
    return shapes


def expert_colours(results: Results) -> dict[str, str]:
    """A colour per expert, the same in every figure."""
    return {
        expert["name"]: EXPERT_COLOURS[idx % len(EXPERT_COLOURS)]
        for idx, expert in enumerate(results["experts"])
    }


def cost_axis(results: Results) -> str:
    return f"experts' cost C ({cost_words(results['cost_unit'], results.get('cost_scale', 1.0))})"


def needs_log(costs: Sequence[float]) -> bool:
    """Whether costs span more than a factor of 20 (and none is 0)."""
    return min(costs) > 0 and max(costs) > 20 * min(costs)


def family(results: Results) -> list[Results]:
    """The trade-off's points of the agents of a sweep, by rising cost; the others are rows of the
    table and drawn as such.
    """
    return sorted(
        (
            point
            for point in results.get("tradeoff", {}).get("points", [])
            if point["value"] is not None
        ),
        key=lambda point: point["cost"]["mean"],
    )


def family_name(results: Results) -> str:
    points = family(results)
    return (
        f"{points[0]['policy']}, {results['tradeoff']['setting']}"
        f" {', '.join(point['value'] for point in points)} (by rising cost)"
    )


def beyond(span: Mapping[str, float]) -> tuple[float, float]:
    """How far an interval reaches below and above its mean."""
    return span["mean"] - span["lo"], span["hi"] - span["mean"]


def convex_hull(results: Results) -> Sequence[Sequence[float]]:
    """Corners (cost, quality) of the trade-off's upper hull; empty where it is less than a line."""
    hull = results.get("tradeoff", {}).get("hull", [])
    return hull if len(hull) > 1 else []


def curve(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """(updates, values) of one metric of one seed."""
    found = [(row["update"], row[key]) for row in rows if key in row]
    return [update for update, _ in found], [value for _, value in found]


def mean_curve(curves: Curves, key: str) -> tuple[list[int], list[float]]:
    """(updates, mean over the seeds), at the updates that every seed has."""
    by_seed = [dict(zip(*curve(rows, key), strict=True)) for rows in curves.values()]
    shared = sorted(set.intersection(*(set(values) for values in by_seed))) if by_seed else []
    return shared, [sum(values[update] for values in by_seed) / len(by_seed) for update in shared]


def quality_by_task(results: Results) -> tuple[list[str], list[str], np.ndarray] | None:
    """(policies, tasks, quality (policy, task)) of single experts, then DER, then oracles; NaN
    where a task was not played.
    """
    rows = [
        row
        for kind in ("single", "der", "oracle")
        for row in results["rows"]
        if row["kind"] == kind and row.get("by_task")
    ]
    tasks = sorted({task for row in rows for task in row["by_task"]})
    grid = [
        [row["by_task"][task]["quality"] if task in row["by_task"] else math.nan for task in tasks]
        for row in rows
    ]
    return ([row["policy"] for row in rows], tasks, np.array(grid)) if rows else None


def transfer_gains(results: Results) -> dict[str, tuple[list[str], np.ndarray]]:
    """Task group -> (experts, gain (first, second)): quality given the first expert's answer minus
    quality given another question's.

    NaN where a pair was not measured both ways.
    """
    pairs = [
        pair
        for pair in results.get("transfer", {}).get("pairs", [])
        if {"previous", "swapped"} <= set(pair["variants"])
    ]
    gains = {}
    for group in sorted({pair["task_group"] for pair in pairs}):
        members = [pair for pair in pairs if pair["task_group"] == group]
        used = {name for pair in members for name in (pair["first"], pair["second"])}
        names = [expert["name"] for expert in results["experts"] if expert["name"] in used]
        grid = np.full((len(names), len(names)), math.nan)
        for pair in members:
            grid[names.index(pair["first"]), names.index(pair["second"])] = (
                pair["variants"]["previous"]["mean"] - pair["variants"]["swapped"]["mean"]
            )
        gains[group] = (names, grid)
    return gains


def thresholds_in_use(results: Results) -> list[float]:
    """The stop probabilities that end a route, of each seed where the results tell them apart."""
    threshold = results["terminator"].get("threshold", [])
    return list(threshold) if isinstance(threshold, Sequence) else [threshold]


def oracle_stop(results: Results, measure: str) -> float | None:
    """Quality or return of the first seed's routes, whose Terminator is drawn, when the oracle ends
    them; None if that was not played.
    """
    by_seed = next(
        (row["by_seed"] for row in results["rows"] if row["policy"] == YARDSTICKS["oracle_stop"]),
        None,
    )
    return None if by_seed is None else by_seed[str(results["seeds"][0])][measure]


def calls_at(results: Results, position: int) -> int:
    """How many routes made the call at this position (from 0)."""
    return sum(
        flow["count"]
        for flow in results["routes"].get("flows", [])
        if flow["step"] == position + 1 and flow["to"] != "stop"
    )


# The figures


def quality_cost(results: Results) -> Figure | None:
    """Mean quality against mean cost of every row, with quality's interval; the agents of a sweep
    and their hull where there are any.
    """
    rows = results["rows"]
    if not rows:
        return None
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.subplots()
    costs = [row["charge"] for row in rows]
    for row, marker in zip(rows, markers(rows), strict=True):
        quality, is_der = row["quality"], row["kind"] == "der"
        error = np.array([beyond(quality)]).T
        style = {
            "fmt": marker,
            "color": KIND_COLOURS[row["kind"]],
            "markersize": 9 if is_der else 6,
            "capsize": 2,
            "elinewidth": 1,
            "zorder": 4 if is_der else 3,
        }
        axes.errorbar(
            row["charge"],
            quality["mean"],
            yerr=error,
            label=textwrap.fill(row["policy"], 30),
            **style,
        )
        if is_der:  # the others are named by the legend: their names would cover one another
            axes.annotate(
                row["policy"],
                (row["charge"], quality["mean"]),
                xytext=(9, -14),
                textcoords="offset points",
                fontsize=9,
                fontweight="bold",
            )
    if points := family(results):
        x, y = ([point[name]["mean"] for point in points] for name in ("cost", "quality"))
        spread = {
            f"{axis}err": np.array([beyond(point[name]) for point in points]).T
            for axis, name in (("x", "cost"), ("y", "quality"))
        }
        label = textwrap.fill(
            family_name(results), 30
        )  # points of a family lie too close for names of their own
        axes.errorbar(
            x,
            y,
            **spread,
            fmt=".-",
            color=VERMILLION,
            alpha=0.6,
            capsize=2,
            elinewidth=1,
            label=label,
        )
        costs += x
    if hull := convex_hull(results):
        axes.plot(
            *zip(*hull, strict=True), "--", color=GREY, linewidth=1, zorder=1, label="convex hull"
        )
    if needs_log(costs):
        axes.set_xscale("log")
    axes.margins(x=0.12)
    axes.set(xlabel=cost_axis(results), ylabel="mean quality")
    axes.grid(alpha=0.25)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return figure


def learning_curves(curves: Curves) -> Figure | None:
    """Return, quality and entropy per update: training and validation, seeds thin and their mean
    thick.
    """
    panels = {
        title: keys
        for title, keys in CURVE_PANELS.items()
        if any(mean_curve(curves, key)[0] for key in keys)
    }
    if not panels:
        return None
    figure = Figure(figsize=(3.2 * len(panels), 3.1), layout="constrained")
    for axes, (title, keys) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        for key, name, colour in zip(
            keys, ("training", "validation"), (BLUE, VERMILLION), strict=True
        ):
            for rows in curves.values() if len(curves) > 1 else ():
                axes.plot(*curve(rows, key), color=colour, linewidth=0.8, alpha=0.4)
            updates, means = mean_curve(curves, key)
            if updates:
                label = f"{name}, mean" if len(curves) > 1 else name
                axes.plot(
                    updates,
                    means,
                    color=colour,
                    linewidth=2,
                    marker="o" if name == "validation" else None,
                    markersize=4,
                    label=label,
                )
        axes.set(title=title, xlabel="update")
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8, frameon=False)
    return figure


def heat_map(
    axes: Axes, grid: np.ndarray, rows: Sequence[str], columns: Sequence[str], **colours: Any
) -> None:
    """Numbers in coloured cells; a cell that is NaN stays empty."""
    image = axes.imshow(grid, aspect="auto", **colours)
    axes.set_xticks(
        range(len(columns)), columns, rotation=35, ha="right", rotation_mode="anchor", fontsize=8
    )
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    for (row, column), value in np.ndenumerate(grid):
        if not math.isnan(value):
            luminance = np.dot(image.cmap(image.norm(value))[:3], (0.299, 0.587, 0.114))
            axes.text(
                column,
                row,
                f"{round(value, 2) + 0.0:.2f}",
                ha="center",
                va="center",
                fontsize=8,
                color="black" if luminance > 0.55 else "white",
            )


def experts_by_task(results: Results) -> Figure | None:
    """Quality of each single expert, of DER and of the oracles on each task."""
    found = quality_by_task(results)
    if found is None:
        return None
    policies, tasks, grid = found
    figure = Figure(
        figsize=(max(5.0, 1.6 + 0.75 * len(tasks)), 1.4 + 0.34 * len(policies)),
        layout="constrained",
    )
    axes = figure.subplots()
    heat_map(axes, grid, policies, tasks, cmap="cividis", vmin=0, vmax=1)
    return figure


def calibration(results: Results) -> Figure | None:
    """Left: how often the Terminator's stop probability is right, with counts.

    Right: what its threshold does to quality, return and cost.
    """
    terminator = results.get("terminator", {})
    drawers = [
        draw
        for key, draw in (("calibration", _draw_reliability), ("thresholds", _draw_thresholds))
        if terminator.get(key)
    ]
    if not drawers:
        return None
    figure = Figure(figsize=(3.7 * len(drawers), 3.8), layout="constrained")
    grid = figure.subplots(2, len(drawers), squeeze=False, sharex="col", height_ratios=(3, 1))
    for column, draw in enumerate(drawers):
        draw(results, *grid[:, column])
    for axes in grid.flat:
        axes.grid(alpha=0.25)
    return figure


def _draw_reliability(results: Results, upper: Axes, lower: Axes) -> None:
    bins = results["terminator"]["calibration"]
    predicted = [b["p"] for b in bins]
    upper.plot([0, 1], [0, 1], "--", color=GREY, linewidth=1, label="calibrated")
    upper.plot(predicted, [b["good"] for b in bins], "o-", color=BLUE, label="Terminator")
    upper.set(ylabel="share of good answers", xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    upper.legend(fontsize=8, frameon=False)
    lower.bar(predicted, [b["count"] for b in bins], width=0.03, color=BLUE)
    lower.set(xlabel="stop probability", ylabel="answers")


def _draw_thresholds(results: Results, upper: Axes, lower: Axes) -> None:
    points = sorted(results["terminator"]["thresholds"], key=lambda point: point["threshold"])
    chosen = [point["threshold"] for point in points]
    for measure, colour in (("quality", VERMILLION), ("return", BLUE)):
        upper.plot(
            chosen, [centre(point[measure]) for point in points], ".-", color=colour, label=measure
        )
        if (level := oracle_stop(results, measure)) is not None:
            upper.axhline(
                level, color=colour, linestyle=":", linewidth=1, label=f"{measure}, oracle stop"
            )
    lower.plot(chosen, [centre(point["cost"]) for point in points], ".-", color=GREEN)
    for axes in (upper, lower):
        for threshold in thresholds_in_use(results):
            axes.axvline(threshold, color=GREY, linestyle="--", linewidth=1)
    upper.legend(
        fontsize=8, frameon=False, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0)
    )  # above: the curves may run anywhere
    lower.set(xlabel="threshold (dashed: in use)", ylabel="cost C")


def routes(results: Results) -> Figure | None:
    """Which experts are called at each position of a route, as stacked shares of the calls at that
    position.
    """
    by_position = results.get("routes", {}).get("by_position")
    if not by_position:
        return None
    figure = Figure(figsize=(6.4, 1.2 + 0.5 * len(by_position)), layout="constrained")
    axes = figure.subplots()
    labels = [
        f"call {idx + 1}" + (f"\n{calls_at(results, idx)} routes" if calls_at(results, idx) else "")
        for idx in range(len(by_position))
    ]
    left = np.zeros(len(by_position))
    for name, colour in expert_colours(results).items():
        shares = np.array([position.get(name, 0.0) for position in by_position])
        axes.barh(labels, shares, left=left, color=colour, label=name)
        left += shares
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xlabel=f"share of {results['routes']['policy']}'s calls at this position")
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return figure


def transfer(results: Results) -> Figure | None:
    """What the first expert's answer is worth to the second, per ordered pair; tasks that need two
    experts (composition) apart.
    """
    gains = transfer_gains(results)
    if not gains:
        return None
    figure = Figure(figsize=(1.2 + 3.2 * len(gains), 3.6), layout="constrained")
    bound = max(float(np.nanmax(np.abs(grid))) for _, grid in gains.values()) or 1.0
    for axes, (group, (names, grid)) in zip(
        figure.subplots(1, len(gains), squeeze=False)[0], gains.items(), strict=True
    ):
        heat_map(axes, grid, names, names, cmap="RdBu", vmin=-bound, vmax=bound)
        axes.set_title(f"{group} tasks", fontsize=10)
        axes.set(xlabel="second expert", ylabel="first expert")
    figure.suptitle("Quality gained from the passed-on answer, over a swapped one", fontsize=10)
    return figure
