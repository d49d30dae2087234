"""The tables of a report, from results.json, for report.md and report.html."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from report.view import Results, values_of

COMPARED = ("verdict", "p adjusted", "p", "wins", "ties", "losses")
VARIANTS = ("previous", "none", "swapped", "own")
UNITS = ("", " (k)", " (M)", " (G)", " (T)")
BRIEF = ("policy", "quality", "return", "calls", "minus best single", "verdict")
NOT_DEFINED = "not defined (all answers good, or all bad)"
TERMINATOR_FACTS = {
    "threshold": "threshold",
    "auroc": "AUROC",
    "auroc_well_formed": "AUROC among well-formed answers",
    "ece": "expected calibration error",
}


@dataclass(frozen=True)
class Cell:
    """What a table shows: text, an interval or the like in small print, and the number to sort by
    (None: the text).
    """

    text: str
    detail: str = ""
    value: float | None = None


Column = list[Cell]
MISSING = Cell("-")


@dataclass
class Table:
    """A table; `wide` names the columns that report.md leaves out, and a narrow page at first."""

    columns: list[str]
    rows: list[list[Cell]]
    wide: set[str] = field(default_factory=set)

    @property
    def is_text(self) -> list[bool]:
        """Whether a column holds no number."""
        found = []
        for column in zip(*self.rows, strict=True):
            found.append(all(cell.value is None for cell in column))
        return found


# Cells


def number(value: float | None, digits: int = 3, factor: float = 1.0) -> Cell:
    return MISSING if value is None else Cell(f"{value * factor:.{digits}f}", "", value)


def estimate(value: float | Mapping[str, float] | None, digits: int = 3) -> Cell:
    """A mean with its interval, where it has one; a dash where there is no value."""
    if not isinstance(value, Mapping):
        return number(value, digits)
    interval = f"[{value['lo']:.{digits}f}, {value['hi']:.{digits}f}]"
    return Cell(f"{value['mean']:.{digits}f}", interval, value["mean"])


def difference(entry: Mapping[str, Any]) -> Cell:
    interval = f"[{entry['lo']:+.3f}, {entry['hi']:+.3f}]"
    return Cell(f"{entry['diff']:+.3f}", interval, entry["diff"])


def probability(p: float | None) -> Cell:
    if p is None:
        return MISSING
    return Cell("< 0.001" if p < 0.001 else f"{p:.3f}", "", p)


def scaled(name: str, values: Sequence[float]) -> tuple[str, Column]:
    """(heading, cells) of a column to three digits.

    All cells have the unit (thousand, million, ...) that suits the largest value.
    """
    largest = float(f"{max([1.0, *values]):.3g}")  # as it will be shown: 999.7 is 1.00 thousand
    power = min(int(math.log10(largest) // 3), len(UNITS) - 1)
    cells = []
    for value in values:
        text = f"{value / 1000.0**power:#.3g}".rstrip(".")
        cells.append(Cell(text, "", value))
    return name + UNITS[power], cells


# Policies


def policy_table(results: Results) -> Table:
    """The main table: a row for each policy."""
    rows = results["rows"]
    columns: dict[str, Column] = {
        "policy": [],
        "kind": [],
        "quality": [],
        "return": [],
        "calls": [],
    }
    last: dict[str, Column] = {"minus best single": [], "verdict": []}
    for row in rows:
        columns["policy"].append(Cell(row["policy"]))
        columns["kind"].append(Cell(row["kind"]))
        columns["quality"].append(estimate(row["quality"]))
        columns["return"].append(estimate(row["return"]))
        columns["calls"].append(number(row["calls"]["mean"], 2))
        last["minus best single"].append(difference(row["vs_best_single"]))
        last["verdict"].append(Cell(row["vs_best_single"]["verdict"]))
    cost_name, cost_cells = scaled("cost C", values_of(rows, "charge"))
    columns[cost_name] = cost_cells
    columns |= _cost_columns(values_of(rows, "cost"))
    columns |= _deciding_columns(values_of(rows, "overhead"))
    columns |= last
    wide = set(columns) - {*BRIEF, cost_name}
    return Table(list(columns), _rows_of(columns), wide)


def _numbers(
    entries: Sequence[Mapping[str, Any]], name: str, digits: int, factor: float = 1.0
) -> Column:
    """One figure of every entry as cells."""
    return [number(value, digits, factor) for value in values_of(entries, name)]


def _size_columns(costs: Sequence[Mapping[str, Any]], prefix: str = "") -> dict[str, Column]:
    """Parameters and FLOPs."""
    params = [1e9 * params_b for params_b in values_of(costs, "params_b")]
    return dict(
        [scaled(f"{prefix}parameters", params), scaled(f"{prefix}FLOPs", values_of(costs, "flops"))]
    )


def _cost_columns(costs: Sequence[Mapping[str, Any]]) -> dict[str, Column]:
    columns = _size_columns(costs)
    columns["tokens in"] = _numbers(costs, "prompt_tokens", 1)
    columns["tokens out"] = _numbers(costs, "completion_tokens", 1)
    columns["ms"] = _numbers(costs, "latency_s", 1, 1000.0)
    if any(price is not None for price in values_of(costs, "usd")):
        columns["USD"] = _numbers(costs, "usd", 6)
    return columns


def _deciding_columns(overheads: Sequence[Mapping[str, Any]]) -> dict[str, Column]:
    columns = _size_columns(overheads, "deciding: ")
    columns["deciding: ms"] = _numbers(overheads, "latency_s", 1, 1000.0)
    return columns


def _rows_of(columns: Mapping[str, Column]) -> list[list[Cell]]:
    return list(map(list, zip(*columns.values(), strict=True)))


def seed_table(results: Results) -> Table | None:
    """Quality and return of each seed, of the policies played with several."""
    columns = ["policy"]
    for measure in ("quality", "return"):
        for seed in results["seeds"]:
            columns.append(f"{measure}, seed {seed}")
    rows = []
    for row in results["rows"]:
        by_seed = row.get("by_seed", {})
        if len(by_seed) < 2:
            continue
        cells = [Cell(row["policy"])]
        for measure in ("quality", "return"):
            cells += _numbers(list(by_seed.values()), measure, 3)
        rows.append(cells)
    return Table(columns, rows) if rows else None


# Comparisons


def own_comparisons(results: Results) -> dict[str, Table]:
    """By measure, the agent against every policy it was compared with."""
    agent = results["rows"][0]["policy"]
    tables = {}
    for measure in ("return", "quality"):
        rows = []
        for comparison in results.get("comparisons", []):
            if comparison["a"] == agent and comparison["measure"] == measure:
                rows.append([Cell(comparison["b"]), *_compared(comparison)])
        if rows:
            tables[measure] = Table([f"{agent} against", "difference", *COMPARED], rows)
    return tables


def other_comparisons(results: Results) -> Table | None:
    """The comparisons that the agent has no part in, if any."""
    agent = results["rows"][0]["policy"]
    rows = []
    for comparison in results.get("comparisons", []):
        if comparison["a"] != agent:
            names = (comparison["a"], comparison["b"], comparison["measure"])
            rows.append([*map(Cell, names), *_compared(comparison)])
    return Table(["a", "b", "measure", "a minus b", *COMPARED], rows) if rows else None


def _compared(comparison: Mapping[str, Any]) -> list[Cell]:
    return [
        difference(comparison),
        Cell(comparison["verdict"]),
        probability(comparison["p_adjusted"]),
        probability(comparison["p"]),
        number(comparison["wins"], 0),
        number(comparison["ties"], 0),
        number(comparison["losses"], 0),
    ]


def curve_table(results: Results) -> Table | None:
    """Every policy at every alpha: its return, and the area under quality against cost."""
    curves = results.get("curves")
    if not curves:
        return None
    columns = ["policy", *(f"return at {alpha:g}" for alpha in curves["alphas"]), "area"]
    rows = []
    for row in curves["rows"]:
        cells = [Cell(row["policy"])]
        cells += [estimate(point["return"]) for point in row["points"]]
        cells.append(estimate(row["area"]))
        rows.append(cells)
    return Table(columns, rows)


def cell_table(results: Results) -> Table | None:
    """The agent against the best rules and the yardsticks, at every alpha and in area."""
    curves = results.get("curves")
    if not curves:
        return None
    rows = []
    for cell in curves["cells"]:
        where = "area" if cell["alpha"] is None else f"return at {cell['alpha']:g}"
        numbers = [probability(cell["p_adjusted"]), probability(cell["p"])]
        rows.append([Cell(cell["b"]), Cell(where), difference(cell), Cell(cell["verdict"])])
        rows[-1] += numbers
    agent = curves["rows"][0]["policy"]
    columns = [f"{agent} against", "in", "difference", "verdict", "p adjusted", "p"]
    return Table(columns, rows)


def gap_table(results: Results) -> Table | None:
    """What DER reaches, what could be reached, and what the difference is made of."""
    oracle = results.get("oracle", {})
    agent = results["rows"][0]
    rows = [_reached(agent["policy"], agent)]
    for entry, figures in oracle.items():
        if "quality" in figures:
            rows.append(_reached(entry.replace("_", " "), figures))
    for part, loss in oracle.get("gap", {}).items():
        rows.append([Cell(f"lost to {part}"), MISSING, number(loss)])
    for part, loss in oracle.get("gap_own_stop", {}).items():
        if part != "stopping":  # as above
            name = f"lost to {part}, full information with its own stop"
            rows.append([Cell(name), MISSING, number(loss)])
    return Table(["", "quality", "return"], rows) if len(rows) > 1 else None


def _reached(name: str, figures: Mapping[str, Any]) -> list[Cell]:
    return [Cell(name), estimate(figures["quality"]), estimate(figures["return"])]


# Knowledge transfer


def transfer_table(results: Results) -> Table | None:
    """Every ordered pair of experts: what the second answers, by what it is handed."""
    pairs = results.get("transfer", {}).get("pairs", [])
    variants = []
    for name in VARIANTS:
        if any(name in pair["variants"] for pair in pairs):
            variants.append(name)
    rows = []
    for pair in pairs:
        cells = [Cell(pair["first"]), Cell(pair["second"]), Cell(pair["task_group"])]
        cells.append(number(pair["n"], 0))
        cells += [estimate(pair["variants"].get(name)) for name in variants]
        cells.append(_gain_over_none(pair))
        cells.append(estimate(pair.get("wrong_to_right")))
        cells.append(estimate(pair.get("right_to_wrong")))
        rows.append(cells)
    columns = ["first", "second", "tasks", "n", *variants, "previous over none"]
    columns += ["wrong to right", "right to wrong"]
    return Table(columns, rows) if rows else None


def _gain_over_none(pair: Mapping[str, Any]) -> Cell:
    """What the second answer gains where it is handed the first; missing in older results."""
    gains = pair.get("gains")
    return difference(gains["none"]) if gains else MISSING


def composition_table(results: Results) -> Table | None:
    """Of the tasks that need two experts, the best pair.

    With what the handed-on answer is worth over each other variant.
    """
    best = results.get("transfer", {}).get("best", [])
    if not best:
        return None
    variants = list(best[0]["gains"])
    rows = []
    for pair in best:
        cells = [Cell(pair["task_group"], f"{pair['first']}, then {pair['second']}")]
        cells.append(estimate(pair["variants"]["previous"]))
        cells += [difference(pair["gains"][name]) for name in variants]
        cells.append(number(pair["n"], 0))
        rows.append(cells)
    gains = [f"gain over {name}" for name in variants]
    return Table(["task", "quality", *gains, "n"], rows)


# Sentences and facts


def trade_off_sentence(results: Results) -> str:
    """What the sweep's family of agents offers; empty where there was no sweep."""
    found = results.get("tradeoff", {})
    if found.get("area") is None:
        return ""
    lowest, highest = found["bounds"]
    experts = found["area_experts"]
    beside = (
        ""
        if experts is None
        else f" (single experts, mixed without looking at the question: {experts:.3f})"
    )
    return (
        f"Agents by {found['setting']}, means over seeds with intervals in both directions. Area"
        f" under their upper hull: a mean quality of {found['area']:.3f} over costs C from"
        f" {lowest:.3g} to {highest:.3g}, those of the cheapest and the most expensive expert, with"
        f" the cheapest expert alone as a further choice{beside}."
    )


def terminator_facts(results: Results) -> list[tuple[str, str]]:
    """The Terminator's numbers, as (name, text) pairs; a measure that is not defined says so."""
    terminator = results.get("terminator", {})
    facts = []
    for key, name in TERMINATOR_FACTS.items():
        texts = []
        for entry in terminator.get("seeds", [terminator]):
            if key in entry:
                texts.append(NOT_DEFINED if entry[key] is None else f"{entry[key]:.3f}")
        if texts:
            facts.append((name, ", ".join(texts)))
    return facts
