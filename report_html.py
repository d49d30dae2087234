"""The report of an evaluation for readers: `report.md` and a self-contained `report.html`.

The page holds plotly.js, the figures, the tables and the single routes, loads nothing from a network and says so to the browser
(Content-Security-Policy). Its markup and script are in docs/report_template.html. Texts of questions, prompts and answers travel as JSON
and are put on the page as text, never as markup.

A link such as `report.html#search=planet&outcome=wrong` opens the routes with these filters set.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots

import figures
from figures import BLUE, COST_WORDS, CURVE_PANELS, GREEN, GREY, KIND_COLOURS, MARKERS, VERMILLION, Curves, Results, centre
from run_folder import write_atomically

TEMPLATE = Path(__file__).parent / "docs" / "report_template.html"
PROMPT_CHARACTERS = 6_000_000  # prompts beyond this are left out of the page, DER's last
ROUTE_FIELDS = ("policy", "seed", "question", "stop_reason", "quality", "return", "steps")
STEP_FIELDS = ("expert", "prompt", "prompt_hash", "answer", "quality", "charge", "params_b", "prompt_tokens", "completion_tokens", "latency_s", "usd", "p_stop", "value", "entropy")


def write_report_files(folder: Path, results: Results, records: Sequence[Mapping[str, Any]], curves: Curves) -> None:
    """Write the PNG figures, report.md and report.html into `folder`.

    `results`: report/results.json. `records`: the lines of routes.jsonl. `curves`: seed -> lines of metrics.jsonl. A section whose data
    `results` lacks is left out. Raises ValueError where a number is NaN or infinite: JSON has no such number.
    """
    images = figures.write_figures(folder, results, curves)
    write_atomically(folder / "report.md", markdown(results, images).encode())
    write_atomically(folder / "report.html", html(results, records, curves).encode())


# Tables, for both views


@dataclass(frozen=True)
class Cell:
    """What a table shows: text, an interval or the like in small print, and the number to sort by (None: the text)."""

    text: str
    detail: str = ""
    value: float | None = None


MISSING = Cell("-")


@dataclass
class Table:
    columns: list[str]
    rows: list[list[Cell]]
    wide: set[str] = field(default_factory=set)  # columns of the page only: they would make report.md hard to read

    @property
    def is_text(self) -> list[bool]:
        """Whether a column holds no number."""
        return [all(row[idx].value is None for row in self.rows) for idx in range(len(self.columns))]


def number(value: float | None, digits: int = 3, factor: float = 1.0) -> Cell:
    return MISSING if value is None else Cell(f"{value * factor:.{digits}f}", "", value)


def estimate(value: float | Mapping[str, float] | None, digits: int = 3) -> Cell:
    """A mean with its interval, where it has one; a dash where there is no value."""
    if not isinstance(value, Mapping):
        return number(value, digits)
    return Cell(f"{value['mean']:.{digits}f}", f"[{value['lo']:.{digits}f}, {value['hi']:.{digits}f}]", value["mean"])


def difference(entry: Mapping[str, Any]) -> Cell:
    return Cell(f"{entry['diff']:+.3f}", f"[{entry['lo']:+.3f}, {entry['hi']:+.3f}]", entry["diff"])


def probability(p: float | None) -> Cell:
    return MISSING if p is None else Cell("< 0.001" if p < 0.001 else f"{p:.3f}", "", p)


def scaled(name: str, values: Sequence[float]) -> tuple[str, list[Cell]]:
    """(heading, cells) of a column to three digits, all in the unit (thousand, million, ...) that suits the largest value."""
    units = ("", " (k)", " (M)", " (G)", " (T)")
    power = min(int(math.log10(max([1.0, *values])) // 3), len(units) - 1)
    return name + units[power], [Cell(f"{value / 1000.0**power:#.3g}".rstrip("."), "", value) for value in values]


def policy_table(results: Results) -> Table:
    """The main table: a row per policy."""
    rows = results["rows"]
    cost, overhead = [row["cost"] for row in rows], [row["overhead"] for row in rows]
    columns: dict[str, list[Cell]] = {
        "policy": [Cell(row["policy"]) for row in rows],
        "kind": [Cell(row["kind"]) for row in rows],
        "quality": [estimate(row["quality"]) for row in rows],
        "return": [estimate(row["return"]) for row in rows],
        "calls": [number(row["calls"]["mean"], 2) for row in rows],
    }
    charged, cells = scaled("cost C", [row["charge"] for row in rows])
    columns[charged] = cells
    columns |= [scaled("parameters", [1e9 * c["params_b"] for c in cost]), scaled("FLOPs", [c["flops"] for c in cost])]
    columns["tokens in"] = [number(c["prompt_tokens"], 1) for c in cost]
    columns["tokens out"] = [number(c["completion_tokens"], 1) for c in cost]
    columns["ms"] = [number(c["latency_s"], 1, 1000.0) for c in cost]
    if any(c["usd"] is not None for c in cost):
        columns["USD"] = [number(c["usd"], 6) for c in cost]
    columns |= [scaled("deciding: parameters", [1e9 * o["params_b"] for o in overhead]), scaled("deciding: FLOPs", [o["flops"] for o in overhead])]
    columns["deciding: ms"] = [number(o["latency_s"], 1, 1000.0) for o in overhead]
    columns["minus best single"] = [difference(row["vs_best_single"]) for row in rows]
    columns["verdict"] = [Cell(row["vs_best_single"]["verdict"]) for row in rows]
    brief = {"policy", "quality", "return", "calls", charged, "minus best single", "verdict"}
    return Table(list(columns), [list(row) for row in zip(*columns.values(), strict=True)], set(columns) - brief)


def seed_table(results: Results) -> Table | None:
    """Quality and return of each seed, of the policies played with several."""
    rows = [row for row in results["rows"] if len(row.get("by_seed", {})) > 1]
    columns = [f"{measure}, seed {seed}" for measure in ("quality", "return") for seed in results["seeds"]]
    cells = [[Cell(row["policy"]), *(number(entry[measure]) for measure in ("quality", "return") for entry in row["by_seed"].values())] for row in rows]
    return Table(["policy", *columns], cells) if rows else None


def comparison_table(results: Results) -> Table | None:
    """Paired comparisons, if any."""
    columns = ["a", "b", "measure", "a minus b", "p", "p adjusted", "wins", "ties", "losses", "verdict"]
    rows = [
        [
            *(Cell(c[key]) for key in ("a", "b", "measure")),
            difference(c),
            probability(c["p"]),
            probability(c.get("p_adjusted")),
            *(number(c[key], 0) for key in ("wins", "ties", "losses")),
            Cell(c["verdict"]),
        ]
        for c in results.get("comparisons", [])
    ]
    return Table(columns, rows) if rows else None


def gap_table(results: Results) -> Table | None:
    """What DER reaches, what could be reached, and what the difference is made of."""
    oracle = results.get("oracle", {})
    reached = [("DER", row) for row in results["rows"] if row["kind"] == "der"][:1]
    reached += [(key.replace("_", " "), entry) for key, entry in oracle.items() if key != "gap" and {"quality", "return"} <= set(entry)]
    rows = [[Cell(name), estimate(entry["quality"]), estimate(entry["return"])] for name, entry in reached]
    rows += [[Cell(f"lost to {key}"), MISSING, number(loss)] for key, loss in oracle.get("gap", {}).items()]
    return Table(["", "quality", "return"], rows) if len(rows) > 1 else None


def transfer_table(results: Results) -> Table | None:
    """Every ordered pair of experts with what the second answers, given each variant of the first's answer."""
    pairs = results.get("transfer", {}).get("pairs", [])
    variants = [name for name in ("previous", "none", "swapped", "own") if any(name in pair["variants"] for pair in pairs)]
    rows = [
        [
            *(Cell(pair[key]) for key in ("first", "second", "task_group")),
            number(pair["n"], 0),
            *(estimate(pair["variants"].get(name)) for name in variants),
            *(estimate(pair.get(key)) for key in ("wrong_to_right", "right_to_wrong")),
        ]
        for pair in pairs
    ]
    return Table(["first", "second", "tasks", "n", *variants, "wrong to right", "right to wrong"], rows) if rows else None


def composition_table(results: Results) -> Table | None:
    """Of the tasks that need two experts, the best pair and what the handed-on answer is worth over each other variant."""
    best = results.get("transfer", {}).get("best", [])
    variants = list(best[0]["gains"]) if best else []
    rows = [
        [
            *(Cell(pair[key]) for key in ("task_group", "first", "second")),
            number(pair["n"], 0),
            estimate(pair["variants"]["previous"]),
            *(difference(pair["gains"][name]) for name in variants),
        ]
        for pair in best
    ]
    return Table(["task", "first", "second", "n", "quality", *(f"gain over {name}" for name in variants)], rows) if rows else None


def terminator_facts(results: Results) -> list[tuple[str, str]]:
    """The Terminator's numbers, as (name, text) pairs; a measure that is not defined says so."""
    terminator = results.get("terminator", {})
    names = {"threshold": "threshold", "auroc": "AUROC", "auroc_well_formed": "AUROC among well-formed answers", "ece": "expected calibration error"}
    facts = []
    for key, name in names.items():
        values = [entry[key] for entry in terminator.get("seeds", [terminator]) if key in entry]
        values = values[0] if values and isinstance(values[0], Sequence) else values  # the thresholds of several seeds
        if values:
            facts.append((name, ", ".join("not defined (all answers good, or all bad)" if value is None else f"{value:.3f}" for value in values)))
    return facts


# report.md


def markdown(results: Results, images: Sequence[str]) -> str:
    """The report as Markdown, with links to `images` beside it."""
    parts = [f"# {heading(results)}", subtitle(results), "\n".join(f"- {plain(word)}" for word in results.get("words", []))]
    titled = {"Policies": policy_table(results), "Each seed": seed_table(results), "Paired comparisons": comparison_table(results), "What is lost, and where": gap_table(results)}
    for title, table in titled.items():
        parts += [f"## {title}", markdown_table(table)] if table else []
    if facts := terminator_facts(results):
        parts += ["## Terminator", "\n".join(f"- {name}: {text}" for name, text in facts)]
    parts += ["## Figures"] if images else []
    parts += [f"![{name.removesuffix('.png').replace('_', ' ')}]({name})" for name in images]
    parts.append("\n".join(f"- {plain(note)}" for note in results.get("notes", [])))
    parts.append("Every column, interactive figures and the single routes: [report.html](report.html).")
    return "\n\n".join(part for part in parts if part) + "\n"


def markdown_table(table: Table) -> str:
    shown = [idx for idx, column in enumerate(table.columns) if column not in table.wide]
    lines = [[table.columns[idx] for idx in shown], ["---"] * len(shown)]
    lines += [[plain(f"{row[idx].text} {row[idx].detail}".strip()) for idx in shown] for row in table.rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plain(text: str) -> str:
    """Text that Markdown shows as it is: no markup, no new table column."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("\n", " ")


def heading(results: Results) -> str:
    return f"DER: evaluation on the {results['split']} split"


def subtitle(results: Results) -> str:
    seeds = results["seeds"]
    return (
        f"{results['num_questions']} questions, {'seeds' if len(seeds) > 1 else 'seed'} {', '.join(map(str, seeds))}, reward {results['reward']}, "
        f"alpha {results['alpha']:g}, cost counted in {COST_WORDS[results['cost_unit']]}."
    )


# Interactive figures


def plots(results: Results, curves: Curves) -> dict[str, dict[str, Any]]:
    """Name -> plotly figure (data and layout) of every figure whose data is there. Colours of page and text are the page's own."""
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
    # to_json writes NaN (an empty cell of a heat map) as null. Python's default template would be dark text on white, in light and dark.
    return {name: json.loads(figure.update_layout(template="none").to_json()) for name, figure in made.items() if figure is not None}


def plot_quality_cost(results: Results) -> go.Figure | None:
    rows = results["rows"]
    if not rows:
        return None
    figure, costs = go.Figure(), [row["charge"] for row in rows]
    if hull := figures.convex_hull(results):
        figure.add_scatter(x=[x for x, _ in hull], y=[y for _, y in hull], mode="lines", name="convex hull", line={"color": GREY, "dash": "dash", "width": 1})
    for policy, points in figures.alpha_curves(results).items():
        x, y, alphas = [p["cost"] for p in points], [p["quality"] for p in points], [f"alpha {p['alpha']:g}" for p in points]
        figure.add_scatter(x=x, y=y, text=alphas, name=f"{policy}, by alpha", mode="lines+markers", line_color=VERMILLION, opacity=0.6)
        costs += x
    for row, marker in zip(rows, figures.markers(rows), strict=True):
        quality, is_der = row["quality"], row["kind"] == "der"
        figure.add_scatter(
            x=[row["charge"]],
            y=[quality["mean"]],
            error_y={"type": "data", "array": [quality["hi"] - quality["mean"]], "arrayminus": [quality["mean"] - quality["lo"]], "thickness": 1},
            name=row["policy"],
            mode="markers",
            marker={"color": KIND_COLOURS[row["kind"]], "symbol": MARKERS[marker], "size": 13 if is_der else 9},
        )
    figure.update_xaxes(title=figures.cost_axis(results), type="log" if figures.needs_log(costs) else "linear")
    return figure.update_yaxes(title="mean quality").update_layout(height=480, hovermode="closest")


def plot_learning_curves(curves: Curves) -> go.Figure | None:
    panels = {title: keys for title, keys in CURVE_PANELS.items() if any(figures.mean_curve(curves, key)[0] for key in keys)}
    if not panels:
        return None
    figure = make_subplots(rows=len(panels), cols=1, shared_xaxes=True, vertical_spacing=0.05)
    for row, (title, keys) in enumerate(panels.items(), start=1):
        for key, name, colour in zip(keys, ("training", "validation"), (BLUE, VERMILLION), strict=True):
            style = {"legendgroup": name, "line_color": colour, "row": row, "col": 1}
            for seed, lines in curves.items() if len(curves) > 1 else ():
                x, y = figures.curve(lines, key)
                figure.add_scatter(x=x, y=y, name=f"{name}, seed {seed}", opacity=0.4, line_width=1, mode="lines", showlegend=False, **style)
            x, y = figures.mean_curve(curves, key)
            label, mode = f"{name}, mean" if len(curves) > 1 else name, "lines+markers" if name == "validation" else "lines"
            figure.add_scatter(x=x, y=y, name=label, mode=mode, line_width=2.5, showlegend=row == 1, **style)
        figure.update_yaxes(title=title, row=row, col=1)
    return figure.update_xaxes(title="update", row=len(panels), col=1).update_layout(height=200 * len(panels) + 60)


def plot_routes(results: Results) -> go.Figure | None:
    """Routes as a flow from the question through the experts of each position to the end."""
    flows = results.get("routes", {}).get("flows")
    if not flows:
        return None
    # A flow of step t leads from position t - 1 to position t; an expert has a node at every position where it is called.
    ends = [((f["step"] - 1, f["from"]), (f["step"], f["to"]), f["count"]) for f in flows]
    nodes = sorted({node for source, target, _ in ends for node in (source, target)})
    labels = ["question" if name == "start" else f"end after {position - 1}" if name == "stop" else name for position, name in nodes]
    colours = {**figures.expert_colours(results), "start": GREY, "stop": GREY}
    links = {
        "source": [nodes.index(source) for source, _, _ in ends],
        "target": [nodes.index(target) for _, target, _ in ends],
        "value": [count for _, _, count in ends],
        "color": "rgba(128, 128, 128, 0.3)",
    }
    figure = go.Figure(go.Sankey(node={"label": labels, "color": [colours[name] for _, name in nodes], "pad": 14, "thickness": 16}, link=links))
    return figure.update_layout(height=420)


def plot_experts_by_task(results: Results) -> go.Figure | None:
    found = figures.quality_by_task(results)
    if found is None:
        return None
    policies, tasks, grid = found
    by_policy = {row["policy"]: row["by_task"] for row in results["rows"] if row.get("by_task")}
    counts = [[by_policy[policy].get(task, {}).get("n", 0) for task in tasks] for policy in policies]
    hover = "%{y}, %{x}: quality %{z:.3f}, %{customdata} questions<extra></extra>"
    figure = go.Figure(heat_map(grid.tolist(), policies, tasks, colorscale="Cividis", zmin=0, zmax=1, customdata=counts, hovertemplate=hover))
    return figure.update_xaxes(showgrid=False).update_yaxes(autorange="reversed", showgrid=False).update_layout(height=140 + 32 * len(policies))


def heat_map(grid: Sequence[Sequence[float]], rows: Sequence[str], columns: Sequence[str], **options: Any) -> go.Heatmap:
    return go.Heatmap(z=grid, y=rows, x=columns, texttemplate="%{z:.2f}", hoverongaps=False, showscale=False, **options)


def plot_gap(results: Results) -> go.Figure | None:
    gap = results.get("oracle", {}).get("gap")
    if not gap:
        return None
    figure = go.Figure(go.Bar(x=list(gap.values()), y=list(gap), orientation="h", marker_color=BLUE, texttemplate="%{x:.3f}"))
    return figure.update_xaxes(title="return lost").update_yaxes(autorange="reversed").update_layout(height=130 + 36 * len(gap))


def plot_calibration(results: Results) -> go.Figure | None:
    bins = results.get("terminator", {}).get("calibration")
    if not bins:
        return None
    predicted = [b["p"] for b in bins]
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, row_heights=[0.72, 0.28], vertical_spacing=0.05)
    figure.add_scatter(x=[0, 1], y=[0, 1], mode="lines", name="calibrated", line={"color": GREY, "dash": "dash", "width": 1}, row=1, col=1)
    figure.add_scatter(x=predicted, y=[b["good"] for b in bins], mode="lines+markers", name="Terminator", line_color=BLUE, row=1, col=1)
    figure.add_bar(x=predicted, y=[b["count"] for b in bins], width=0.03, marker_color=BLUE, showlegend=False, name="answers", row=2, col=1)
    figure.update_yaxes(title="share of good answers", row=1, col=1).update_yaxes(title="answers", row=2, col=1)
    return figure.update_xaxes(title="stop probability", row=2, col=1).update_layout(height=420)


def plot_thresholds(results: Results) -> go.Figure | None:
    terminator = results.get("terminator", {})
    points = sorted(terminator.get("thresholds", []), key=lambda point: point["threshold"])
    if not points:
        return None
    figure, chosen = make_subplots(rows=2, cols=1, shared_xaxes=True, row_heights=[0.65, 0.35], vertical_spacing=0.05), [point["threshold"] for point in points]
    for measure, colour in (("quality", VERMILLION), ("return", BLUE)):
        figure.add_scatter(x=chosen, y=[centre(p[measure]) for p in points], name=measure, mode="lines+markers", line_color=colour, row=1, col=1)
        if (level := figures.oracle_stop(results, measure)) is not None:
            line = {"color": colour, "dash": "dot", "width": 1}
            figure.add_scatter(x=[chosen[0], chosen[-1]], y=[level, level], name=f"{measure}, oracle stop", mode="lines", line=line, row=1, col=1)
    figure.add_scatter(x=chosen, y=[centre(p["cost"]) for p in points], name="cost C", showlegend=False, mode="lines+markers", line_color=GREEN, row=2, col=1)
    for threshold in figures.thresholds_in_use(results):
        figure.add_vline(threshold, line={"color": GREY, "dash": "dash", "width": 1})
    figure.update_yaxes(title="cost C", row=2, col=1)
    return figure.update_xaxes(title="threshold (dashed: in use)", row=2, col=1).update_layout(height=420)


def plot_transfer(results: Results) -> go.Figure | None:
    gains = figures.transfer_gains(results)
    if not gains:
        return None
    figure = make_subplots(rows=len(gains), cols=1, subplot_titles=[f"{group} tasks" for group in gains], vertical_spacing=0.2)
    hover = "%{y}, then %{x}: %{z:+.3f}<extra></extra>"
    for row, (names, grid) in enumerate(gains.values(), start=1):
        figure.add_trace(heat_map(grid.tolist(), names, names, coloraxis="coloraxis", hovertemplate=hover), row=row, col=1)
        figure.update_xaxes(title="second expert", row=row, col=1).update_yaxes(title="first expert", autorange="reversed", row=row, col=1)
    figure.update_xaxes(showgrid=False).update_yaxes(showgrid=False)
    return figure.update_layout(height=360 * len(gains), coloraxis={"colorscale": "RdBu", "cmid": 0, "showscale": False})


# Single routes


class Texts:
    """Texts stored once each; everything else names them by index. Prompts beyond PROMPT_CHARACTERS are left out and counted."""

    def __init__(self) -> None:
        self.index: dict[str, int] = {}
        self.room, self.left_out = PROMPT_CHARACTERS, 0

    def add(self, text: str) -> int:
        return self.index.setdefault(text, len(self.index))

    def add_prompt(self, prompt: str | None) -> int | None:
        """As `add`; None where there is no prompt or no room for it."""
        if prompt is None or prompt in self.index:
            return self.index.get(prompt)
        self.room -= len(prompt)
        if self.room < 0:
            self.left_out += 1
            return None
        return self.add(prompt)


def route_data(results: Results, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The routes as the page's script reads them: texts, and rows of numbers and of indices into the texts.

    All seeds of policies of kind `der`, the first seed of the others; policies in the table's order, failures first.
    """
    order = {row["policy"]: idx for idx, row in enumerate(results["rows"])}
    first_seed: dict[str, int] = {}
    for record in records:
        first_seed[record["policy"]] = min(record["seed"], first_seed.get(record["policy"], record["seed"]))
    kept = [r for r in records if r["kind"] == "der" or r["seed"] == first_seed[r["policy"]]]
    kept.sort(key=lambda r: (r["kind"] != "der", order.get(r["policy"], len(order)), r["quality"]))
    texts, questions, routes = Texts(), {}, []
    for record in kept:
        reference = record["reference"] if isinstance(record["reference"], str) else json.dumps(record["reference"])
        question = tuple(texts.add(text) for text in (record["question"], record["text"], reference, record["task"]))
        idx = questions.setdefault(question, len(questions))
        steps = [_step(step, texts) for step in record["steps"]]
        routes.append([texts.add(record["policy"]), record["seed"], idx, texts.add(record["stop_reason"]), _short(record["quality"]), _short(record["return"]), steps])
    fields = {"route_fields": ROUTE_FIELDS, "step_fields": STEP_FIELDS}
    return {**fields, "strings": list(texts.index), "questions": list(questions), "routes": routes, "left_out": texts.left_out}


def _step(step: Mapping[str, Any], texts: Texts) -> list[int | float | None]:
    """A step in the order of STEP_FIELDS. The prompt's hash stands in where the prompt is not there."""
    prompt = texts.add_prompt(step.get("prompt"))
    numbers = {**step["cost"], **step}
    named = [texts.add(step["expert"]), prompt, texts.add(step["prompt_hash"]) if prompt is None else None, texts.add(step["answer"])]
    return named + [_short(numbers[name]) for name in STEP_FIELDS[len(named) :]]


def _short(value: float | None) -> float | None:
    """Four significant digits: enough to read, a third of the bytes."""
    return value if value is None or isinstance(value, int) else float(f"{value:.4g}")


# report.html


def html(results: Results, records: Sequence[Mapping[str, Any]], curves: Curves) -> str:
    """The self-contained page. Raises ValueError for a number that is NaN or infinite."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}  # jinja's tojson also escapes <, > and &
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        heading=heading(results),
        subtitle=subtitle(results),
        words=results.get("words", []),
        notes=results.get("notes", []),
        seed=results["seeds"][0],
        policies=policy_table(results),
        comparisons=comparison_table(results),
        gap=gap_table(results),
        seeds=seed_table(results),
        composition=composition_table(results),
        transfer=transfer_table(results),
        terminator=terminator_facts(results),
        plots=plots(results, curves),
        routes=route_data(results, records),
        plotlyjs=get_plotlyjs(),
    )
