"""What the figures and tables show, taken from results.json and from the runs' metrics.jsonl.

Nothing is drawn here: every function returns plain numbers and names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from report.roles import ORACLE_ROLES
from settings.units import in_units

Results = Mapping[str, Any]  # results.json, as report/schema.py describes it
LearningCurves = Mapping[Any, Sequence[Mapping[str, Any]]]  # seed -> lines of metrics.jsonl
Series = tuple[list[float], list[float]]  # x and y of a line

LABEL_LENGTH = 40  # characters of a name in a figure
LOG_SCALE_FROM = 20  # ratio of the largest to the smallest cost
CURVES_SHOWN = 10  # policies in the figure of the curves
# Title -> keys of metrics.jsonl on training and on validation questions
LEARNING_MEASURES = {
    "return": ("train/return", "eval/return"),
    "quality": ("train/quality", "eval/quality"),
    "policy entropy (nats)": ("losses/entropy", "eval/entropy"),
}
TASK_KINDS = ("single", "der", "oracle")  # the rows of the figure of tasks, in this order


@dataclass(frozen=True)
class Grid:
    """Numbers with a name for each row and column; NaN where there is none."""

    rows: list[str]
    columns: list[str]
    values: np.ndarray  # (rows, columns)


def values_of(entries: Sequence[Mapping[str, Any]], name: str) -> list[Any]:
    """The value that every entry has under this name."""
    return [entry[name] for entry in entries]


def label_of(name: str) -> str:
    """The name as a figure shows it: a very long one is cut."""
    return name if len(name) <= LABEL_LENGTH else name[: LABEL_LENGTH - 3] + "..."


def mean_of(value: float | Mapping[str, float]) -> float:
    """The number of an entry that may carry an interval."""
    return value["mean"] if isinstance(value, Mapping) else value


def means_of(points: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    """The number that every point has under this name, without its interval."""
    return [mean_of(point[name]) for point in points]


def reach(span: Mapping[str, float]) -> tuple[float, float]:
    """How far an interval reaches below and above its mean."""
    return span["mean"] - span["lo"], span["hi"] - span["mean"]


def cost_axis(results: Results) -> str:
    return f"experts' cost C ({in_units(results['cost_unit'])})"


def needs_log(costs: Sequence[float]) -> bool:
    """Whether costs span more than a factor of 20, and none is 0."""
    return min(costs) > 0 and max(costs) > LOG_SCALE_FROM * min(costs)


# Agents of a sweep


def sweep_points(results: Results) -> list[Results]:
    """The trade-off's points of the agents of a sweep, by rising cost."""
    points = []
    for point in results.get("tradeoff", {}).get("points", []):
        if point["value"] is not None:
            points.append(point)
    return sorted(points, key=lambda point: point["cost"]["mean"])


def sweep_name(results: Results) -> str:
    points = sweep_points(results)
    values = ", ".join(values_of(points, "value"))
    setting = results["tradeoff"]["setting"]
    return f"{points[0]['policy']}, {setting} {values} (by rising cost)"


def sweep_hull(results: Results) -> Sequence[Sequence[float]]:
    """Corners (cost, quality) of the trade-off's upper hull; empty where it is less than a line."""
    hull = results.get("tradeoff", {}).get("hull", [])
    return hull if len(hull) > 1 else []


# Curves over several alphas


def curve_rows(results: Results) -> list[Results]:
    """The rows of `curves` that a figure shows: the agent, the best rules, the yardsticks.

    In the order of their areas, the agent first.
    """
    rows = []
    for row in results["curves"]["rows"]:
        if row["deployable"] and row["role"] != "single":
            rows.append(row)
    return rows[:1] + sorted(rows[1:], key=_area, reverse=True)[: CURVES_SHOWN - 1]


def _area(row: Results) -> float:
    return row["area"]["mean"] if row["area"] else 0.0


def places(row: Results) -> Series:
    """(costs, qualities) of a row of `curves`, by rising cost."""
    points = sorted(row["points"], key=lambda point: point["cost"])
    return values_of(points, "cost"), values_of(points, "quality")


# Learning curves


def learning_curve(lines: Sequence[Mapping[str, Any]], key: str) -> Series:
    """(updates, values) of one measure of one seed."""
    updates = []
    values = []
    for line in lines:
        if key in line:
            updates.append(line["update"])
            values.append(line[key])
    return updates, values


def mean_learning_curve(curves: LearningCurves, key: str) -> Series:
    """(updates, mean over the seeds), at the updates that every seed has."""
    by_seed = []
    for lines in curves.values():
        updates, values = learning_curve(lines, key)
        by_seed.append(dict(zip(updates, values, strict=True)))
    if not by_seed:
        return [], []
    shared = sorted(set.intersection(*map(set, by_seed)))
    means = []
    for update in shared:
        means.append(float(np.mean([values[update] for values in by_seed])))
    return shared, means


def learning_measures(curves: LearningCurves) -> dict[str, tuple[str, str]]:
    """The LEARNING_MEASURES that the logs hold."""
    found = {}
    for title, keys in LEARNING_MEASURES.items():
        if any(mean_learning_curve(curves, key)[0] for key in keys):
            found[title] = keys
    return found


# Tasks, routes, Terminator, knowledge transfer


def quality_by_task(results: Results) -> Grid | None:
    """Quality of single experts, then DER, then oracles on each task."""
    rows = []
    for kind in TASK_KINDS:
        for row in results["rows"]:
            if row["kind"] == kind and row.get("by_task"):
                rows.append(row)
    if not rows:
        return None
    counts: dict[str, int] = {}
    for row in rows:
        for task, figure in row["by_task"].items():
            counts[task] = figure["n"]
    tasks = sorted(counts)
    values = np.full((len(rows), len(tasks)), math.nan)
    for idx, row in enumerate(rows):
        for task, figure in row["by_task"].items():
            values[idx, tasks.index(task)] = figure["quality"]
    columns = [f"{label_of(task)} ({counts[task]})" for task in tasks]
    return Grid(list(map(label_of, values_of(rows, "policy"))), columns, values)


def calls_at(results: Results, position: int) -> int:
    """How many routes made the call at this position (from 0)."""
    count = 0
    for flow in results["routes"].get("flows", []):
        if flow["step"] == position + 1 and flow["to"] != "stop":
            count += flow["count"]
    return count


def call_labels(results: Results) -> list[str]:
    """A label for each position of a route, with the number of routes that get there."""
    labels = []
    for position in range(len(results["routes"]["by_position"])):
        count = calls_at(results, position)
        labels.append(f"call {position + 1}" + (f"\n{count} routes" if count else ""))
    return labels


def oracle_stop(results: Results, measure: str) -> float | None:
    """Quality or return of the first seed's routes when the oracle ends them.

    The Terminator that is drawn is the first seed's, too. None where this was not played.
    """
    for row in results["rows"]:
        if row["role"] == ORACLE_ROLES["oracle_stop"]:
            return row["by_seed"][str(results["seeds"][0])][measure]
    return None


def transfer_gains(results: Results) -> dict[str, Grid]:
    """Task group -> quality given the first expert's answer minus given another question's.

    Rows: the first expert; columns: the second. NaN where a pair was not measured both ways.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for pair in results.get("transfer", {}).get("pairs", []):
        if {"previous", "swapped"} <= set(pair["variants"]):
            groups.setdefault(pair["task_group"], []).append(pair)
    order = values_of(results["experts"], "name")
    return {group: _gain_grid(groups[group], order) for group in sorted(groups)}


def _gain_grid(pairs: Sequence[Mapping[str, Any]], order: Sequence[str]) -> Grid:
    used: set[str] = set()
    for pair in pairs:
        used |= {pair["first"], pair["second"]}
    names = [name for name in order if name in used]
    values = np.full((len(names), len(names)), math.nan)
    for pair in pairs:
        variants = pair["variants"]
        gain = variants["previous"]["mean"] - variants["swapped"]["mean"]
        values[names.index(pair["first"]), names.index(pair["second"])] = gain
    labels = list(map(label_of, names))
    return Grid(labels, labels, values)
