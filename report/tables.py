"""The tables of a report, from results.json, for report.md and report.html."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from report.view import Results

COMPARED = ("verdict", "p adjusted", "p", "wins", "ties", "losses")


@dataclass(frozen=True)
class Cell:
    """What a table shows: text, an interval or the like in small print, and the number to sort by
    (None: the text).
    """

    text: str
    detail: str = ""
    value: float | None = None


MISSING = Cell("-")


@dataclass
class Table:
    columns: list[str]
    rows: list[list[Cell]]
    wide: set[str] = field(
        default_factory=set
    )  # columns that report.md leaves out, and a narrow page until asked for them

    @property
    def is_text(self) -> list[bool]:
        """Whether a column holds no number."""
        return [
            all(row[idx].value is None for row in self.rows) for idx in range(len(self.columns))
        ]


def number(value: float | None, digits: int = 3, factor: float = 1.0) -> Cell:
    return MISSING if value is None else Cell(f"{value * factor:.{digits}f}", "", value)


def estimate(value: float | Mapping[str, float] | None, digits: int = 3) -> Cell:
    """A mean with its interval, where it has one; a dash where there is no value."""
    if not isinstance(value, Mapping):
        return number(value, digits)
    return Cell(
        f"{value['mean']:.{digits}f}",
        f"[{value['lo']:.{digits}f}, {value['hi']:.{digits}f}]",
        value["mean"],
    )


def difference(entry: Mapping[str, Any]) -> Cell:
    return Cell(f"{entry['diff']:+.3f}", f"[{entry['lo']:+.3f}, {entry['hi']:+.3f}]", entry["diff"])


def probability(p: float | None) -> Cell:
    return MISSING if p is None else Cell("< 0.001" if p < 0.001 else f"{p:.3f}", "", p)


def scaled(name: str, values: Sequence[float]) -> tuple[str, list[Cell]]:
    """(heading, cells) of a column to three digits, all in the unit (thousand, million, ...) that
    suits the largest value.
    """
    units = ("", " (k)", " (M)", " (G)", " (T)")
    largest = float(f"{max([1.0, *values]):.3g}")  # as it will be shown: 999.7 is 1.00 thousand
    power = min(int(math.log10(largest) // 3), len(units) - 1)
    return name + units[power], [
        Cell(f"{value / 1000.0**power:#.3g}".rstrip("."), "", value) for value in values
    ]


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
    columns |= [
        scaled("parameters", [1e9 * c["params_b"] for c in cost]),
        scaled("FLOPs", [c["flops"] for c in cost]),
    ]
    columns["tokens in"] = [number(c["prompt_tokens"], 1) for c in cost]
    columns["tokens out"] = [number(c["completion_tokens"], 1) for c in cost]
    columns["ms"] = [number(c["latency_s"], 1, 1000.0) for c in cost]
    if any(c["usd"] is not None for c in cost):
        columns["USD"] = [number(c["usd"], 6) for c in cost]
    columns |= [
        scaled("deciding: parameters", [1e9 * o["params_b"] for o in overhead]),
        scaled("deciding: FLOPs", [o["flops"] for o in overhead]),
    ]
    columns["deciding: ms"] = [number(o["latency_s"], 1, 1000.0) for o in overhead]
    columns["minus best single"] = [difference(row["vs_best_single"]) for row in rows]
    columns["verdict"] = [Cell(row["vs_best_single"]["verdict"]) for row in rows]
    brief = {"policy", "quality", "return", "calls", charged, "minus best single", "verdict"}
    return Table(
        list(columns),
        [list(row) for row in zip(*columns.values(), strict=True)],
        set(columns) - brief,
    )


def seed_table(results: Results) -> Table | None:
    """Quality and return of each seed, of the policies played with several."""
    rows = [row for row in results["rows"] if len(row.get("by_seed", {})) > 1]
    columns = [
        f"{measure}, seed {seed}" for measure in ("quality", "return") for seed in results["seeds"]
    ]
    cells = [
        [
            Cell(row["policy"]),
            *(
                number(entry[measure])
                for measure in ("quality", "return")
                for entry in row["by_seed"].values()
            ),
        ]
        for row in rows
    ]
    return Table(["policy", *columns], cells) if rows else None


def own_comparisons(results: Results) -> dict[str, Table]:
    """By measure, the agent against every policy it was compared with."""
    agent, tables = results["rows"][0]["policy"], {}
    for measure in ("return", "quality"):
        rows = [
            [Cell(c["b"]), *_compared(c)]
            for c in results.get("comparisons", [])
            if c["a"] == agent and c["measure"] == measure
        ]
        if rows:
            tables[measure] = Table([f"{agent} against", "difference", *COMPARED], rows)
    return tables


def other_comparisons(results: Results) -> Table | None:
    """The comparisons that the agent has no part in, if any."""
    agent = results["rows"][0]["policy"]
    rows = [
        [*(Cell(c[key]) for key in ("a", "b", "measure")), *_compared(c)]
        for c in results.get("comparisons", [])
        if c["a"] != agent
    ]
    return Table(["a", "b", "measure", "a minus b", *COMPARED], rows) if rows else None


def _compared(c: Mapping[str, Any]) -> list[Cell]:
    return [
        difference(c),
        Cell(c["verdict"]),
        probability(c["p_adjusted"]),
        probability(c["p"]),
        *(number(c[key], 0) for key in ("wins", "ties", "losses")),
    ]


def gap_table(results: Results) -> Table | None:
    """What DER reaches, what could be reached, and what the difference is made of."""
    oracle = results.get("oracle", {})
    reached = [("DER", row) for row in results["rows"] if row["kind"] == "der"][:1]
    reached += [
        (key.replace("_", " "), entry)
        for key, entry in oracle.items()
        if {"quality", "return"} <= set(entry)
    ]
    rows = [
        [Cell(name), estimate(entry["quality"]), estimate(entry["return"])]
        for name, entry in reached
    ]
    for gap, against in (("gap", ""), ("gap_own_stop", ", full information with its own stop")):
        rows += [
            [Cell(f"lost to {key}{against}"), MISSING, number(loss)]
            for key, loss in oracle.get(gap, {}).items()
            if not against or key != "stopping"
        ]
    return Table(["", "quality", "return"], rows) if len(rows) > 1 else None


def transfer_table(results: Results) -> Table | None:
    """Every ordered pair of experts with what the second answers, given each variant of the first's
    answer.
    """
    pairs = results.get("transfer", {}).get("pairs", [])
    variants = [
        name
        for name in ("previous", "none", "swapped", "own")
        if any(name in pair["variants"] for pair in pairs)
    ]
    rows = [
        [
            *(Cell(pair[key]) for key in ("first", "second", "task_group")),
            number(pair["n"], 0),
            *(estimate(pair["variants"].get(name)) for name in variants),
            *(estimate(pair.get(key)) for key in ("wrong_to_right", "right_to_wrong")),
        ]
        for pair in pairs
    ]
    return (
        Table(
            ["first", "second", "tasks", "n", *variants, "wrong to right", "right to wrong"], rows
        )
        if rows
        else None
    )


def composition_table(results: Results) -> Table | None:
    """Of the tasks that need two experts, the best pair and what the handed-on answer is worth over
    each other variant.
    """
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
    return (
        Table(["task", "quality", *(f"gain over {name}" for name in variants), "n"], rows)
        if rows
        else None
    )


def trade_off_words(results: Results) -> str:
    """What the sweep's family of agents offers, in a sentence; empty where there was no sweep."""
    found = results.get("tradeoff", {})
    if found.get("area") is None:
        return ""
    least, most = found["bounds"]
    experts = (
        ""
        if found["area_experts"] is None
        else (
            f" (single experts, mixed without looking at the question: {found['area_experts']:.3f})"
        )
    )
    return (
        f"Agents by {found['setting']}, means over seeds with intervals in both directions. Area"
        f" under their convex hull: a mean quality of {found['area']:.3f} over costs C from"
        f" {least:.3g} to {most:.3g}, those of the cheapest and the dearest expert, with answering"
        f" nothing at no cost as a further choice{experts}."
    )


def terminator_facts(results: Results) -> list[tuple[str, str]]:
    """The Terminator's numbers, as (name, text) pairs; a measure that is not defined says so."""
    terminator = results.get("terminator", {})
    names = {
        "threshold": "threshold",
        "auroc": "AUROC",
        "auroc_well_formed": "AUROC among well-formed answers",
        "ece": "expected calibration error",
    }
    facts = []
    for key, name in names.items():
        values = [entry[key] for entry in terminator.get("seeds", [terminator]) if key in entry]
        values = (
            values[0] if values and isinstance(values[0], Sequence) else values
        )  # the thresholds of several seeds
        if values:
            facts.append(
                (
                    name,
                    ", ".join(
                        (
                            "not defined (all answers good, or all bad)"
                            if value is None
                            else f"{value:.3f}"
                        )
                        for value in values
                    ),
                )
            )
    return facts
