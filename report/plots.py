"""The interactive figures of report.html, by plotly.

The PNGs beside it are drawn in `figures`, from the same numbers and colours.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from report import figures
from report.figures import (
    BLUE,
    CURVE_PANELS,
    GREEN,
    GREY,
    KIND_COLOURS,
    MARKERS,
    VERMILLION,
    Curves,
    Results,
    centre,
)


def plots(results: Results, curves: Curves) -> dict[str, dict[str, Any]]:
    """Name -> plotly figure (data and layout) of every figure whose data is there.

    Colours of page and text are the page's own.
    """
    made = {
        "quality_cost": plot_quality_cost(results),
        "learning_curves": plot_learning_curves(curves),
        "routes": plot_routes(results),
        "experts_by_task": plot_experts_by_task(results),
        "gap": plot_gap(results),
        "calibration": plot_calibration(results),
        "thresholds": plot_thresholds(results),
        "transfer": plot_transfer(results),
    }
    # to_json writes NaN (an empty cell of a heat map) as null. Python's default template would be
    # dark text on white, in light and dark.
    return {
        name: json.loads(figure.update_layout(template="none").to_json())
        for name, figure in made.items()
        if figure is not None
    }


def plot_quality_cost(results: Results) -> go.Figure | None:
    rows = results["rows"]
    if not rows:
        return None
    figure, costs = go.Figure(), [row["charge"] for row in rows]
    if hull := figures.convex_hull(results):
        figure.add_scatter(
            x=[x for x, _ in hull],
            y=[y for _, y in hull],
            mode="lines",
            name="convex hull",
            line={"color": GREY, "dash": "dash", "width": 1},
        )
    if points := figures.family(results):
        x, y = ([point[name]["mean"] for point in points] for name in ("cost", "quality"))
        style = {
            "text": [point["value"] for point in points],
            "mode": "lines+markers",
            "line_color": VERMILLION,
            "opacity": 0.6,
        }
        bars = {
            f"error_{axis}": error_bars(*(point[name] for point in points))
            for axis, name in (("x", "cost"), ("y", "quality"))
        }
        figure.add_scatter(x=x, y=y, name=figures.family_name(results), **style, **bars)
        costs += x
    for row, marker in zip(rows, figures.markers(rows), strict=True):
        quality, is_der = row["quality"], row["kind"] == "der"
        figure.add_scatter(
            x=[row["charge"]],
            y=[quality["mean"]],
            error_y=error_bars(quality),
            name=row["policy"],
            mode="markers",
            marker={
                "color": KIND_COLOURS[row["kind"]],
                "symbol": MARKERS[marker],
                "size": 13 if is_der else 9,
            },
        )
    figure.update_xaxes(
        title=figures.cost_axis(results), type="log" if figures.needs_log(costs) else "linear"
    )
    return figure.update_yaxes(title="mean quality").update_layout(height=480, hovermode="closest")


def error_bars(*spans: Mapping[str, float]) -> dict[str, Any]:
    """plotly's error bars from means with intervals."""
    below, above = zip(*map(figures.beyond, spans), strict=True)
    return {"type": "data", "array": above, "arrayminus": below, "thickness": 1}


def plot_learning_curves(curves: Curves) -> go.Figure | None:
    panels = {
        title: keys
        for title, keys in CURVE_PANELS.items()
        if any(figures.mean_curve(curves, key)[0] for key in keys)
    }
    if not panels:
        return None
    figure = make_subplots(rows=len(panels), cols=1, shared_xaxes=True, vertical_spacing=0.05)
    for row, (title, keys) in enumerate(panels.items(), start=1):
        for key, name, colour in zip(
            keys, ("training", "validation"), (BLUE, VERMILLION), strict=True
        ):
            style = {"legendgroup": name, "line_color": colour, "row": row, "col": 1}
            for seed, lines in curves.items() if len(curves) > 1 else ():
                x, y = figures.curve(lines, key)
                figure.add_scatter(
                    x=x,
                    y=y,
                    name=f"{name}, seed {seed}",
                    opacity=0.4,
                    line_width=1,
                    mode="lines",
                    showlegend=False,
                    **style,
                )
            x, y = figures.mean_curve(curves, key)
            label, mode = (
                f"{name}, mean" if len(curves) > 1 else name,
                ("lines+markers" if name == "validation" else "lines"),
            )
            figure.add_scatter(
                x=x, y=y, name=label, mode=mode, line_width=2.5, showlegend=row == 1, **style
            )
        figure.update_yaxes(title=title, row=row, col=1)
    return figure.update_xaxes(title="update", row=len(panels), col=1).update_layout(
        height=200 * len(panels) + 60
    )


def plot_routes(results: Results) -> go.Figure | None:
    """Routes as a flow from the question through the experts of each position to the end."""
    flows = results.get("routes", {}).get("flows")
    if not flows:
        return None
    # A flow of step t leads from position t - 1 to position t; an expert has a node at every
    # position where it is called.
    ends = [((f["step"] - 1, f["from"]), (f["step"], f["to"]), f["count"]) for f in flows]
    nodes = sorted({node for source, target, _ in ends for node in (source, target)})
    labels = [
        "question" if name == "start" else f"end after {position - 1}" if name == "stop" else name
        for position, name in nodes
    ]
    colours = {**figures.expert_colours(results), "start": GREY, "stop": GREY}
    links = {
        "source": [nodes.index(source) for source, _, _ in ends],
        "target": [nodes.index(target) for _, target, _ in ends],
        "value": [count for _, _, count in ends],
        "color": "rgba(128, 128, 128, 0.3)",
    }
    figure = go.Figure(
        go.Sankey(
            node={
                "label": labels,
                "color": [colours[name] for _, name in nodes],
                "pad": 14,
                "thickness": 16,
            },
            link=links,
        )
    )
    return figure.update_layout(height=420)


def plot_experts_by_task(results: Results) -> go.Figure | None:
    found = figures.quality_by_task(results)
    if found is None:
        return None
    policies, tasks, grid = found
    by_policy = {row["policy"]: row["by_task"] for row in results["rows"] if row.get("by_task")}
    counts = [
        [by_policy[policy].get(task, {}).get("n", 0) for task in tasks] for policy in policies
    ]
    hover = "%{y}, %{x}: quality %{z:.3f}, %{customdata} questions<extra></extra>"
    figure = go.Figure(
        heat_map(
            grid.tolist(),
            policies,
            tasks,
            colorscale="Cividis",
            zmin=0,
            zmax=1,
            customdata=counts,
            hovertemplate=hover,
        )
    )
    return (
        figure.update_xaxes(showgrid=False)
        .update_yaxes(autorange="reversed", showgrid=False)
        .update_layout(height=140 + 32 * len(policies))
    )


def heat_map(
    grid: Sequence[Sequence[float]], rows: Sequence[str], columns: Sequence[str], **options: Any
) -> go.Heatmap:
    return go.Heatmap(
        z=grid,
        y=rows,
        x=columns,
        texttemplate="%{z:.2f}",
        hoverongaps=False,
        showscale=False,
        **options,
    )


def plot_gap(results: Results) -> go.Figure | None:
    gap = results.get("oracle", {}).get("gap")
    if not gap:
        return None
    figure = go.Figure(
        go.Bar(
            x=list(gap.values()),
            y=list(gap),
            orientation="h",
            marker_color=BLUE,
            texttemplate="%{x:.3f}",
        )
    )
    return (
        figure.update_xaxes(title="return lost")
        .update_yaxes(autorange="reversed")
        .update_layout(height=130 + 36 * len(gap))
    )


def plot_calibration(results: Results) -> go.Figure | None:
    bins = results.get("terminator", {}).get("calibration")
    if not bins:
        return None
    predicted = [b["p"] for b in bins]
    figure = make_subplots(
        rows=2, cols=1, shared_xaxes=True, row_heights=[0.72, 0.28], vertical_spacing=0.05
    )
    figure.add_scatter(
        x=[0, 1],
        y=[0, 1],
        mode="lines",
        name="calibrated",
        line={"color": GREY, "dash": "dash", "width": 1},
        row=1,
        col=1,
    )
    figure.add_scatter(
        x=predicted,
        y=[b["good"] for b in bins],
        mode="lines+markers",
        name="Terminator",
        line_color=BLUE,
        row=1,
        col=1,
    )
    figure.add_bar(
        x=predicted,
        y=[b["count"] for b in bins],
        width=0.03,
        marker_color=BLUE,
        showlegend=False,
        name="answers",
        row=2,
        col=1,
    )
    figure.update_yaxes(title="share of good answers", row=1, col=1).update_yaxes(
        title="answers", row=2, col=1
    )
    return figure.update_xaxes(title="stop probability", row=2, col=1).update_layout(height=420)


def plot_thresholds(results: Results) -> go.Figure | None:
    terminator = results.get("terminator", {})
    points = sorted(terminator.get("thresholds", []), key=lambda point: point["threshold"])
    if not points:
        return None
    figure, chosen = (
        make_subplots(
            rows=2, cols=1, shared_xaxes=True, row_heights=[0.65, 0.35], vertical_spacing=0.05
        ),
        [point["threshold"] for point in points],
    )
    for measure, colour in (("quality", VERMILLION), ("return", BLUE)):
        figure.add_scatter(
            x=chosen,
            y=[centre(p[measure]) for p in points],
            name=measure,
            mode="lines+markers",
            line_color=colour,
            row=1,
            col=1,
        )
        if (level := figures.oracle_stop(results, measure)) is not None:
            line = {"color": colour, "dash": "dot", "width": 1}
            figure.add_scatter(
                x=[chosen[0], chosen[-1]],
                y=[level, level],
                name=f"{measure}, oracle stop",
                mode="lines",
                line=line,
                row=1,
                col=1,
            )
    figure.add_scatter(
        x=chosen,
        y=[centre(p["cost"]) for p in points],
        name="cost C",
        showlegend=False,
        mode="lines+markers",
        line_color=GREEN,
        row=2,
        col=1,
    )
    for threshold in figures.thresholds_in_use(results):
        figure.add_vline(threshold, line={"color": GREY, "dash": "dash", "width": 1})
    figure.update_yaxes(title="cost C", row=2, col=1)
    return figure.update_xaxes(title="threshold (dashed: in use)", row=2, col=1).update_layout(
        height=420
    )


def plot_transfer(results: Results) -> go.Figure | None:
    gains = figures.transfer_gains(results)
    if not gains:
        return None
    height = 400 * len(gains)
    spacing = 150 / (
        height - 80
    )  # room for slanted names, above the next title; in heights of the plotting area
    figure = make_subplots(
        rows=len(gains),
        cols=1,
        subplot_titles=[f"{group} tasks" for group in gains],
        vertical_spacing=spacing,
    )
    hover = "%{y}, then %{x}: %{z:+.3f}<extra></extra>"
    for row, (names, grid) in enumerate(gains.values(), start=1):
        figure.add_trace(
            heat_map(grid.tolist(), names, names, coloraxis="coloraxis", hovertemplate=hover),
            row=row,
            col=1,
        )
        figure.update_yaxes(title="first expert", autorange="reversed", row=row, col=1)
    figure.update_xaxes(showgrid=False, tickangle=-35).update_yaxes(showgrid=False).update_xaxes(
        title="second expert", row=len(gains), col=1
    )
    return figure.update_layout(
        height=height, coloraxis={"colorscale": "RdBu", "cmid": 0, "showscale": False}
    )
