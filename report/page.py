"""The report of an evaluation for readers: `report.md` and a self-contained `report.html`.

The page holds the figures (SVG), the tables and the single routes. It loads nothing from a network
and says so to the browser (Content-Security-Policy). Its markup and script are in template.html.
Texts of questions, prompts and answers travel as JSON and are put on the page as text, never as
markup.

A link such as `report.html#search=planet&outcome=wrong` opens the routes with these filters set.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.figure import Figure

from report.figures import draw_figures, svg, write_figures
from report.results import cost_words
from report.tables import (
    Table,
    composition_table,
    gap_table,
    other_comparisons,
    own_comparisons,
    policy_table,
    seed_table,
    terminator_facts,
    trade_off_words,
    transfer_table,
)
from report.view import LearningCurves, Results
from runtime.files import write_atomically

TEMPLATE = Path(__file__).with_name("template.html")
PROMPT_CHARACTERS = 6_000_000  # prompts beyond this are left out of the page, DER's last
ROUTE_FIELDS = ("policy", "seed", "question", "stop_reason", "quality", "return", "steps")
STEP_FIELDS = (
    "expert",
    "prompt",
    "prompt_hash",
    "answer",
    "quality",
    "charge",
    "params_b",
    "prompt_tokens",
    "completion_tokens",
    "latency_s",
    "usd",
    "p_stop",
    "value",
    "entropy",
)


def write_report_files(
    folder: Path, results: Results, records: Sequence[Mapping[str, Any]], curves: LearningCurves
) -> None:
    """Write the PNG figures, report.md and report.html into `folder`.

    `results`: report/results.json. `records`: the lines of routes.jsonl. `curves`: seed -> lines of
    metrics.jsonl. A section whose data `results` lacks is left out. Raises ValueError where a
    number is NaN or infinite: JSON has no such number.
    """
    figures = draw_figures(results, curves)
    images = write_figures(folder, figures)
    write_atomically(folder / "report.md", markdown(results, images).encode())
    write_atomically(folder / "report.html", html(results, records, figures).encode())


# report.md


def markdown(results: Results, images: Sequence[str]) -> str:
    """The report as Markdown, with links to `images` beside it."""
    parts = [
        f"# {heading(results)}",
        subtitle(results),
        "\n".join(f"- {plain(word)}" for word in results.get("words", [])),
    ]
    titled = {"Policies": policy_table(results), "Each seed": seed_table(results)}
    titled |= {
        f"Paired by question: {measure}": table
        for measure, table in own_comparisons(results).items()
    }
    titled["What is lost, and where"] = gap_table(results)
    parts += _titled(titled)
    if facts := terminator_facts(results):
        parts += ["## Terminator", "\n".join(f"- {name}: {text}" for name, text in facts)]
    parts += ["## Figures"] if images else []
    parts += [f"![{name.removesuffix('.png').replace('_', ' ')}]({name})" for name in images]
    parts.append(plain(trade_off_words(results)))
    parts.append("\n".join(f"- {plain(note)}" for note in results.get("notes", [])))
    parts += _titled({"The other policies, paired by question": other_comparisons(results)})
    parts.append("Every column and the single routes: [report.html](report.html).")
    return "\n\n".join(part for part in parts if part) + "\n"


def _titled(tables: Mapping[str, Table | None]) -> list[str]:
    return [
        part
        for title, table in tables.items()
        if table
        for part in (f"## {title}", markdown_table(table))
    ]


def markdown_table(table: Table) -> str:
    shown = [idx for idx, column in enumerate(table.columns) if column not in table.wide]
    lines = [[table.columns[idx] for idx in shown], ["---"] * len(shown)]
    lines += [
        [plain(f"{row[idx].text} {row[idx].detail}".strip()) for idx in shown] for row in table.rows
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plain(text: str) -> str:
    """Text that Markdown shows as it is: no markup, no new table column."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("\n", " ")


def heading(results: Results) -> str:
    return f"DER: evaluation on the {results['split']} split"


def subtitle(results: Results) -> str:
    seeds = results["seeds"]
    return (
        f"{results['num_questions']} questions, {'seeds' if len(seeds) > 1 else 'seed'}"
        f" {', '.join(map(str, seeds))}, reward {results['reward']}, alpha {results['alpha']:g},"
        f" cost C = {cost_words(results['cost_unit'], results.get('cost_scale', 1.0))}."
    )


# Single routes


class Texts:
    """Texts stored once each; everything else names them by index.

    Prompts beyond PROMPT_CHARACTERS are left out and counted.
    """

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
    """The routes as the page's script reads them: texts, and rows of numbers and of indices into
    the texts.

    All seeds of policies of kind `der`, the first seed of the others; policies in the table's
    order, failures first.
    """
    order = {row["policy"]: idx for idx, row in enumerate(results["rows"])}
    first_seed: dict[str, int] = {}
    for record in records:
        first_seed[record["policy"]] = min(
            record["seed"], first_seed.get(record["policy"], record["seed"])
        )
    kept = [r for r in records if r["kind"] == "der" or r["seed"] == first_seed[r["policy"]]]
    kept.sort(key=lambda r: (r["kind"] != "der", order.get(r["policy"], len(order)), r["quality"]))
    texts, questions, routes = Texts(), {}, []
    for record in kept:
        reference = (
            record["reference"]
            if isinstance(record["reference"], str)
            else json.dumps(record["reference"])
        )
        question = tuple(
            texts.add(text)
            for text in (record["question"], record["text"], reference, record["task"])
        )
        idx = questions.setdefault(question, len(questions))
        steps = [_step(step, texts) for step in record["steps"]]
        routes.append(
            [
                texts.add(record["policy"]),
                record["seed"],
                idx,
                texts.add(record["stop_reason"]),
                _short(record["quality"]),
                _short(record["return"]),
                steps,
            ]
        )
    fields = {"route_fields": ROUTE_FIELDS, "step_fields": STEP_FIELDS}
    return {
        **fields,
        "strings": list(texts.index),
        "questions": list(questions),
        "routes": routes,
        "left_out": texts.left_out,
    }


def _step(step: Mapping[str, Any], texts: Texts) -> list[int | float | None]:
    """A step in the order of STEP_FIELDS.

    The prompt's hash stands in where the prompt is not there.
    """
    prompt = texts.add_prompt(step.get("prompt"))
    numbers = {**step["cost"], **step}
    named = [
        texts.add(step["expert"]),
        prompt,
        texts.add(step["prompt_hash"]) if prompt is None else None,
        texts.add(step["answer"]),
    ]
    return named + [_short(numbers[name]) for name in STEP_FIELDS[len(named) :]]


def _short(value: float | None) -> float | None:
    """Four significant digits: enough to read, a third of the bytes."""
    return value if value is None or isinstance(value, int) else float(f"{value:.4g}")


# report.html


def html(
    results: Results, records: Sequence[Mapping[str, Any]], figures: Mapping[str, Figure]
) -> str:
    """The self-contained page. Raises ValueError for a number that is NaN or infinite."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.policies["json.dumps_kwargs"] = {
        "separators": (",", ":"),
        "allow_nan": False,
    }  # jinja's tojson also escapes <, > and &
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
        gap_is_split="gap" in results.get("oracle", {}),
        figures={name: svg(name, figure) for name, figure in figures.items()},
        routes=route_data(results, records),
    )
