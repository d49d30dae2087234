"""The figures of a report, drawn by matplotlib from what view.py selects.

Each figure function returns a matplotlib Figure, or None where the results lack what it shows. The
same figures are written as PNG files (`write_figures`) and as SVG inside report.html (`svg`). A
Figure made without pyplot leaves no global state.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from report import view
from report.view import Grid, LearningCurves, Results

# Okabe and Ito's palette, which colour-blind readers can tell apart. Black and yellow are left out:
# they cannot be read on a dark or a white page.
BLUE = "#0072B2"
ORANGE = "#E69F00"
GREEN = "#009E73"
VERMILLION = "#D55E00"
PURPLE = "#CC79A7"
SKY = "#56B4E9"
GREY = "#808080"
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
CURVE_COLOURS = (BLUE, GREEN, PURPLE, ORANGE, SKY, GREY)
EXPERT_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILLION, GREY)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
INK = "#1c1c1e"  # of text and axes; the page replaces it by its own text colour
DPI = 160
LABEL_WIDTH = 30  # characters of a legend's line
STYLE: Any = {
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.parse_math": False,  # names of policies and experts are plain text
    "svg.fonttype": "none",  # text stays text
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.axisbelow": True,
    "legend.fontsize": 8,
    "legend.frameon": False,
}
SVG_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))


# Drawing and writing


def draw_figures(results: Results, curves: LearningCurves) -> dict[str, Figure]:
    """Every figure whose data is there, by name, in the report's order."""
    with matplotlib.rc_context(STYLE):
        figures = {
            "curves": curves_over_alphas(results),
            "budgets": budgets_met(results),
            "quality_cost": quality_cost(results),
            "learning_curves": learning_curves(curves),
            "routes": routes(results),
            "experts_by_task": experts_by_task(results),
            "calibration": calibration(results),
            "transfer": transfer(results),
        }
        found = {name: figure for name, figure in figures.items() if figure is not None}
        for figure in found.values():
            figure.draw_without_rendering()
            figure.set_layout_engine("none")  # laid out once, for every format
    return found


def write_figures(folder: Path, figures: Mapping[str, Figure]) -> list[str]:
    """Write each figure as NAME.png into `folder`; returns the file names."""
    names = []
    with matplotlib.rc_context(STYLE):
        for name, figure in figures.items():
            figure.savefig(folder / f"{name}.png", dpi=DPI)
            names.append(f"{name}.png")
    return names


def svg(name: str, figure: Figure) -> str:
    """The figure as an <svg> element for a page: its text and axes have the page's colour."""
    file = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure.savefig(file, format="svg", transparent=True, metadata=SVG_METADATA)
    text = file.getvalue()
    element = text[text.index("<svg") :]
    element = re.sub(r"<style.*?</style>", "", element, flags=re.DOTALL)  # it names every element
    element = re.sub(r'<g id="[^"]*"', "<g", element)  # the same ids stand in every figure
    return element.replace(INK, "currentColor")


def markers(rows: Sequence[Results]) -> list[str]:
    """One marker for each row: rows of one colour differ in shape."""
    seen: Counter[str] = Counter()
    shapes = []
    for row in rows:
        colour = KIND_COLOURS[row["kind"]]
        shapes.append(MARKERS[seen[colour] % len(MARKERS)])
        seen[colour] += 1
    return shapes


def expert_colours(results: Results) -> dict[str, str]:
    """A colour for each expert, the same in every figure."""
    colours = {}
    for idx, expert in enumerate(results["experts"]):
        colours[expert["name"]] = EXPERT_COLOURS[idx % len(EXPERT_COLOURS)]
    return colours


# The figures


def quality_cost(results: Results) -> Figure | None:
    """Mean quality against mean cost of every row, with the interval of the quality.

    With the agents of a sweep and their hull, where there are any.
    """
    rows = results["rows"]
    if not rows:
        return None
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.subplots()
    costs = view.values_of(rows, "charge")
    for row, marker in zip(rows, markers(rows), strict=True):
        _draw_policy(axes, row, marker)
    if view.sweep_points(results):
        costs += _draw_sweep(axes, results)
    hull = view.sweep_hull(results)
    if hull:
        cost, quality = zip(*hull, strict=True)
        axes.plot(cost, quality, "--", color=GREY, linewidth=1, zorder=1, label="upper hull")
    if view.needs_log(costs):
        axes.set_xscale("log")
    axes.margins(x=0.12)
    axes.set(xlabel=view.cost_axis(results), ylabel="mean quality")
    figure.legend(loc="outside right upper")
    return figure


def _draw_policy(axes: Axes, row: Results, marker: str) -> None:
    is_der = row["kind"] == "der"
    quality = row["quality"]
    axes.errorbar(
        row["charge"],
        quality["mean"],
        yerr=np.array([view.reach(quality)]).T,
        label=textwrap.fill(row["policy"], LABEL_WIDTH),
        fmt=marker,
        color=KIND_COLOURS[row["kind"]],
        markersize=9 if is_der else 6,
        capsize=2,
        elinewidth=1,
        zorder=4 if is_der else 3,
    )
    if is_der:  # the legend names the others: their names would cover one another
        axes.annotate(
            view.label_of(row["policy"]),
            (row["charge"], quality["mean"]),
            xytext=(9, -14),
            textcoords="offset points",
            fontsize=9,
            fontweight="bold",
        )


def _draw_sweep(axes: Axes, results: Results) -> list[float]:
    """The agents of a sweep with both intervals; returns their costs."""
    points = view.sweep_points(results)
    costs = view.means_of(points, "cost")
    axes.errorbar(
        costs,
        view.means_of(points, "quality"),
        xerr=np.array([view.reach(point["cost"]) for point in points]).T,
        yerr=np.array([view.reach(point["quality"]) for point in points]).T,
        fmt=".-",
        color=VERMILLION,
        alpha=0.6,
        capsize=2,
        elinewidth=1,
        label=textwrap.fill(view.sweep_name(results), LABEL_WIDTH),
    )
    return costs


def curves_over_alphas(results: Results) -> Figure | None:
    """Mean quality against mean cost at every alpha, with upper hulls, of the agent and the rules.

    The rules are those with the largest areas; every single expert is a point.
    """
    if not results.get("curves"):
        return None
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.subplots()
    for idx, row in enumerate(view.curve_rows(results)):
        turn, place = divmod(idx - 1, len(CURVE_COLOURS))
        _draw_curve(
            axes,
            row,
            color=CURVE_COLOURS[place] if idx else VERMILLION,
            linestyle="--" if turn > 0 else "-",
            marker=MARKERS[idx % len(MARKERS)],
            size=2 if idx == 0 else 1,
        )
    costs: list[float] = []
    for row in results["curves"]["rows"]:
        if row["role"] == "single":
            point = row["points"][0]
            axes.plot(point["cost"], point["quality"], "x", color=GREY, zorder=1)
            costs.append(point["cost"])
    axes.plot([], [], "x", color=GREY, label="single experts")
    if view.needs_log(costs):
        axes.set_xscale("log")
    axes.set(xlabel=view.cost_axis(results), ylabel="mean quality")
    figure.legend(loc="outside right upper")
    return figure


def budgets_met(results: Results) -> Figure | None:
    """Spent against asked for, and quality against the budget, with 95% intervals."""
    if not results.get("budgets"):
        return None
    figure = Figure(figsize=(7.2, 3.4), layout="constrained")
    spent, quality = figure.subplots(1, 2)
    asked = [one["budget"] for one in results["budgets"]]
    spent.plot(asked, asked, color=GREY, zorder=1)
    for axes, name, label in ((spent, "cost", "spent"), (quality, "quality", "mean quality")):
        means = [one[name]["mean"] for one in results["budgets"]]
        below = [one[name]["mean"] - one[name]["lo"] for one in results["budgets"]]
        above = [one[name]["hi"] - one[name]["mean"] for one in results["budgets"]]
        axes.errorbar(asked, means, (below, above), fmt="o", color=VERMILLION, capsize=2)
        axes.set(xlabel="budget, C a question", ylabel=label)
    return figure


def _draw_curve(
    axes: Axes, row: Results, *, color: str, linestyle: str, marker: str, size: int
) -> None:
    """The points of a row, its hull, and the hull's flat end up to the most expensive point."""
    shared: dict[str, Any] = {"color": color, "zorder": 2 * size}
    costs, qualities = view.places(row)
    name = textwrap.fill(row["policy"], LABEL_WIDTH)
    axes.plot(costs, qualities, marker, markersize=2 + 2 * size, label=name, **shared)
    cost, quality = zip(*row["hull"], strict=True)
    end = max(costs[-1], cost[-1])
    axes.plot([*cost, end], [*quality, quality[-1]], linestyle, linewidth=size, **shared)


def learning_curves(curves: LearningCurves) -> Figure | None:
    """Return, quality and entropy at each update, in training and validation.

    Seeds are thin lines, their mean is a thick one.
    """
    measures = view.learning_measures(curves)
    if not measures:
        return None
    figure = Figure(figsize=(3.2 * len(measures), 3.1), layout="constrained")
    panels = figure.subplots(1, len(measures), squeeze=False)[0]
    for axes, (title, (training, validation)) in zip(panels, measures.items(), strict=True):
        _draw_learning_curve(axes, curves, training, "training", color=BLUE)
        style = {"color": VERMILLION, "marker": "o", "markersize": 4}
        _draw_learning_curve(axes, curves, validation, "validation", **style)
        axes.set(title=title, xlabel="update")
        axes.legend()
    return figure


def _draw_learning_curve(
    axes: Axes, curves: LearningCurves, key: str, name: str, **style: Any
) -> None:
    if len(curves) > 1:
        for lines in curves.values():
            updates, values = view.learning_curve(lines, key)
            axes.plot(updates, values, color=style["color"], linewidth=0.8, alpha=0.4)
        name += ", mean"
    updates, means = view.mean_learning_curve(curves, key)
    if updates:
        axes.plot(updates, means, linewidth=2, label=name, **style)


def heat_map(axes: Axes, grid: Grid, **colours: Any) -> None:
    """Numbers in coloured cells; a cell that is NaN stays empty."""
    axes.grid(visible=False)
    image = axes.imshow(grid.values, aspect="auto", **colours)
    ticks = range(len(grid.columns))
    slanted: dict[str, Any] = {
        "rotation": 35,
        "ha": "right",
        "rotation_mode": "anchor",
        "fontsize": 8,
    }
    axes.set_xticks(ticks, grid.columns, **slanted)
    axes.set_yticks(range(len(grid.rows)), grid.rows)
    for (row, column), value in np.ndenumerate(grid.values):
        if math.isnan(value):
            continue
        luminance = np.dot(image.cmap(image.norm(value))[:3], (0.299, 0.587, 0.114))
        text = f"{round(value, 2) + 0.0:.2f}"  # + 0.0: no -0.00
        colour = "black" if luminance > 0.55 else "white"
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)


def experts_by_task(results: Results) -> Figure | None:
    """Quality of each single expert, of DER and of the oracles on each task."""
    grid = view.quality_by_task(results)
    if grid is None:
        return None
    width = max(5.0, 1.6 + 0.75 * len(grid.columns))
    figure = Figure(figsize=(width, 1.4 + 0.34 * len(grid.rows)), layout="constrained")
    heat_map(figure.subplots(), grid, cmap="cividis", vmin=0, vmax=1)
    return figure


def calibration(results: Results) -> Figure | None:
    """Left: how often the Terminator's stop probability is right, with counts.

    Right: what its threshold does to quality, return and cost.
    """
    terminator = results.get("terminator", {})
    columns = []
    if terminator.get("calibration"):
        columns.append(_draw_reliability)
    if terminator.get("thresholds"):
        columns.append(_draw_thresholds)
    if not columns:
        return None
    figure = Figure(figsize=(3.7 * len(columns), 3.8), layout="constrained")
    panels = figure.subplots(2, len(columns), squeeze=False, sharex="col", height_ratios=(3, 1))
    for idx, draw in enumerate(columns):
        draw(results, *panels[:, idx])
    return figure


def _draw_reliability(results: Results, upper: Axes, lower: Axes) -> None:
    bins = results["terminator"]["calibration"]
    predicted = view.values_of(bins, "p")
    upper.plot([0, 1], [0, 1], "--", color=GREY, linewidth=1, label="calibrated")
    upper.plot(predicted, view.values_of(bins, "good"), "o-", color=BLUE, label="Terminator")
    upper.set(ylabel="share of good answers", xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    upper.legend()
    lower.bar(predicted, view.values_of(bins, "count"), width=0.03, color=BLUE)
    lower.set(xlabel="stop probability", ylabel="answers")


def _draw_thresholds(results: Results, upper: Axes, lower: Axes) -> None:
    points = sorted(results["terminator"]["thresholds"], key=lambda point: point["threshold"])
    thresholds = view.values_of(points, "threshold")
    for measure, colour in (("quality", VERMILLION), ("return", BLUE)):
        values = view.means_of(points, measure)
        upper.plot(thresholds, values, ".-", color=colour, label=measure)
        level = view.oracle_stop(results, measure)
        if level is not None:
            label = f"{measure}, oracle stop"
            upper.axhline(level, color=colour, linestyle=":", linewidth=1, label=label)
    costs = view.means_of(points, "cost")
    lower.plot(thresholds, costs, ".-", color=GREEN)
    for axes in (upper, lower):
        axes.axvline(results["terminator"]["threshold"], color=GREY, linestyle="--", linewidth=1)
    # Above the axes: the curves may run anywhere.
    upper.legend(ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    lower.set(xlabel="threshold (dashed: in use)", ylabel="cost C")


def routes(results: Results) -> Figure | None:
    """Which experts are called at each position of a route, as shares of the calls there."""
    by_position = results.get("routes", {}).get("by_position")
    if not by_position:
        return None
    figure = Figure(figsize=(6.4, 1.2 + 0.5 * len(by_position)), layout="constrained")
    axes = figure.subplots()
    axes.grid(visible=False)
    labels = view.call_labels(results)
    left = np.zeros(len(by_position))
    for name, colour in expert_colours(results).items():
        shares = np.array([position.get(name, 0.0) for position in by_position])
        axes.barh(labels, shares, left=left, color=colour, label=name)
        left += shares
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xlabel=f"share of {results['routes']['policy']}'s calls at this position")
    figure.legend(loc="outside right upper")
    return figure


def transfer(results: Results) -> Figure | None:
    """What the first expert's answer is worth to the second, for each ordered pair.

    Tasks that need two experts (composition) have a panel of their own.
    """
    gains = view.transfer_gains(results)
    if not gains:
        return None
    figure = Figure(figsize=(1.2 + 3.2 * len(gains), 3.6), layout="constrained")
    largest = max(float(np.nanmax(np.abs(grid.values))) for grid in gains.values())
    bound = largest or 1.0
    panels = figure.subplots(1, len(gains), squeeze=False)[0]
    for axes, (group, grid) in zip(panels, gains.items(), strict=True):
        heat_map(axes, grid, cmap="RdBu", vmin=-bound, vmax=bound)
        axes.set_title(f"{group} tasks", fontsize=10)
        axes.set(xlabel="second expert", ylabel="first expert")
    figure.suptitle("Quality gained from the passed-on answer, over a swapped one", fontsize=10)
    return figure
