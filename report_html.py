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
from plotly.offline import get_plotlyjs

import figures
from figures import COST_WORDS, Curves, Results
from report_plots import plots
from run_folder import write_atomically

TEMPLATE = Path(__file__).parent / "docs" / "report_template.html"
PROMPT_CHARACTERS = 6_000_000  # prompts beyond this are left out of the page, DER's last
ROUTE_FIELDS = ("policy", "seed", "question", "stop_reason", "quality", "return", "steps")
COMPARED = ("verdict", "p adjusted", "p", "wins", "ties", "losses")
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
    wide: set[str] = field(default_factory=set)  # columns that report.md leaves out, and a narrow page until asked for them

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


def own_comparisons(results: Results) -> dict[str, Table]:
    """By measure, the agent against every policy it was compared with."""
    agent, tables = results["rows"][0]["policy"], {}
    for measure in ("return", "quality"):
        rows = [[Cell(c["b"]), *_compared(c)] for c in results.get("comparisons", []) if c["a"] == agent and c["measure"] == measure]
        if rows:
            tables[measure] = Table([f"{agent} against", "difference", *COMPARED], rows)
    return tables


def other_comparisons(results: Results) -> Table | None:
    """The comparisons that the agent has no part in, if any."""
    agent = results["rows"][0]["policy"]
    rows = [[*(Cell(c[key]) for key in ("a", "b", "measure")), *_compared(c)] for c in results.get("comparisons", []) if c["a"] != agent]
    return Table(["a", "b", "measure", "a minus b", *COMPARED], rows) if rows else None


def _compared(c: Mapping[str, Any]) -> list[Cell]:
    return [difference(c), Cell(c["verdict"]), probability(c["p_adjusted"]), probability(c["p"]), *(number(c[key], 0) for key in ("wins", "ties", "losses"))]


def gap_table(results: Results) -> Table | None:
    """What DER reaches, what could be reached, and what the difference is made of."""
    oracle = results.get("oracle", {})
    reached = [("DER", row) for row in results["rows"] if row["kind"] == "der"][:1]
    reached += [(key.replace("_", " "), entry) for key, entry in oracle.items() if {"quality", "return"} <= set(entry)]
    rows = [[Cell(name), estimate(entry["quality"]), estimate(entry["return"])] for name, entry in reached]
    for gap, against in (("gap", ""), ("gap_own_stop", ", full information with its own stop")):
        rows += [[Cell(f"lost to {key}{against}"), MISSING, number(loss)] for key, loss in oracle.get(gap, {}).items() if not against or key != "stopping"]
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
            Cell(pair["task_group"], f"{pair['first']}, then {pair['second']}"),
            estimate(pair["variants"]["previous"]),
            *(difference(pair["gains"][name]) for name in variants),
            number(pair["n"], 0),
        ]
        for pair in best
    ]
    return Table(["task", "quality", *(f"gain over {name}" for name in variants), "n"], rows) if rows else None


def trade_off_words(results: Results) -> str:
    """What the sweep's family of agents offers, in a sentence; empty where there was no sweep."""
    found = results.get("tradeoff", {})
    if found.get("area") is None:
        return ""
    least, most = found["bounds"]
    experts = "" if found["area_experts"] is None else f" (single experts, mixed without looking at the question: {found['area_experts']:.3f})"
    return (
        f"Agents by {found['setting']}, means over seeds with intervals in both directions. Area under their convex hull: a mean quality of {found['area']:.3f} over costs "
        f"C from {least:.3g} to {most:.3g}, those of the cheapest and the dearest expert, with answering nothing at no cost as a further choice{experts}."
    )


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
    titled = {"Policies": policy_table(results), "Each seed": seed_table(results)}
    titled |= {f"Paired by question: {measure}": table for measure, table in own_comparisons(results).items()}
    titled["What is lost, and where"] = gap_table(results)
    parts += _titled(titled)
    if facts := terminator_facts(results):
        parts += ["## Terminator", "\n".join(f"- {name}: {text}" for name, text in facts)]
    parts += ["## Figures"] if images else []
    parts += [f"![{name.removesuffix('.png').replace('_', ' ')}]({name})" for name in images]
    parts.append(plain(trade_off_words(results)))
    parts.append("\n".join(f"- {plain(note)}" for note in results.get("notes", [])))
    parts += _titled({"The other policies, paired by question": other_comparisons(results)})
    parts.append("Every column, interactive figures and the single routes: [report.html](report.html).")
    return "\n\n".join(part for part in parts if part) + "\n"


def _titled(tables: Mapping[str, Table | None]) -> list[str]:
    return [part for title, table in tables.items() if table for part in (f"## {title}", markdown_table(table))]


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
        comparisons=own_comparisons(results),
        other_comparisons=other_comparisons(results),
        gap=gap_table(results),
        seeds=seed_table(results),
        composition=composition_table(results),
        transfer=transfer_table(results),
        terminator=terminator_facts(results),
        trade_off=trade_off_words(results),
        plots=plots(results, curves),
        routes=route_data(results, records),
        plotlyjs=get_plotlyjs(),
    )
