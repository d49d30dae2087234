"""The report of an evaluation for readers: `report.md` and a self-contained `report.html`.

The page holds the figures (SVG), the tables and the single routes. It loads nothing from a network
and says so to the browser (Content-Security-Policy). Its markup and script are in template.html.
Texts of questions, prompts and answers travel as JSON and are put on the page as text, never as
markup.

A link such as `report.html#search=planet&outcome=wrong` opens the routes with these filters set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
from matplotlib.figure import Figure

from evaluation.route_log import Record
from report import tables
from report.figures import draw_figures, svg, write_figures
from report.route_browser import route_data
from report.tables import Table
from report.view import LearningCurves, Results
from runtime.files import write_atomically
from settings.units import in_units

TEMPLATE = Path(__file__).with_name("template.html")


def write_report_files(
    folder: Path, results: Results, records: Sequence[Record], curves: LearningCurves
) -> None:
    """Write the PNG figures, report.md and report.html into `folder`.

    A section whose data `results` lacks is left out.

    Args:
        results: report/results.json.
        records: the lines of routes.jsonl.
        curves: seed -> lines of metrics.jsonl.

    Raises:
        ValueError: a number is NaN or infinite; JSON has no such number.
    """
    figures = draw_figures(results, curves)
    images = write_figures(folder, figures)
    write_atomically(folder / "report.md", markdown(results, images).encode())
    write_atomically(folder / "report.html", html(results, records, figures).encode())


def heading(results: Results) -> str:
    return f"DER: evaluation on the {results['split']} split"


def subtitle(results: Results) -> str:
    seeds = results["seeds"]
    return (
        f"{results['num_questions']} questions, {'seeds' if len(seeds) > 1 else 'seed'}"
        f" {', '.join(map(str, seeds))}, reward {results['reward']}, alpha {results['alpha']:g},"
        f" cost C {in_units(results['cost_unit'])}."
    )


# report.md


def markdown(results: Results, images: Sequence[str]) -> str:
    """The report as Markdown, with links to `images` beside it."""
    parts = [f"# {heading(results)}", subtitle(results), _bullets(results.get("summary", []))]
    parts += _curves(results)
    parts.append(_titled("Policies", tables.policy_table(results)))
    parts.append(_titled("Each seed", tables.seed_table(results)))
    for measure, table in tables.own_comparisons(results).items():
        parts.append(_titled(f"Paired by question: {measure}", table))
    parts.append(_titled("What is lost, and where", tables.gap_table(results)))
    facts = tables.terminator_facts(results)
    if facts:
        parts.append("## Terminator")
        parts.append(_bullets([f"{name}: {text}" for name, text in facts]))
    parts += _figures(images)
    parts.append(plain(tables.trade_off_sentence(results)))
    parts.append(_bullets(results.get("notes", [])))
    title = "The other policies, paired by question"
    parts.append(_titled(title, tables.other_comparisons(results)))
    parts.append("Every column and the single routes: [report.html](report.html).")
    return "\n\n".join(filter(None, parts)) + "\n"


def _curves(results: Results) -> list[str]:
    if not results.get("curves"):
        return []
    return [
        "## Quality against cost over several alphas",
        _bullets(results["curves"]["summary"]),
        _titled("Return and area", tables.curve_table(results)),
        _titled("At each alpha, paired by question", tables.cell_table(results)),
    ]


def _figures(images: Sequence[str]) -> list[str]:
    parts = ["## Figures"] if images else []
    for name in images:
        parts.append(f"![{name.removesuffix('.png').replace('_', ' ')}]({name})")
    return parts


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {plain(line)}" for line in lines)


def _titled(title: str, table: Table | None) -> str:
    return f"## {title}\n\n{markdown_table(table)}" if table else ""


def markdown_table(table: Table) -> str:
    """The table without its wide columns."""
    shown = [idx for idx, column in enumerate(table.columns) if column not in table.wide]
    lines = [[table.columns[idx] for idx in shown], ["---"] * len(shown)]
    for row in table.rows:
        line = []
        for idx in shown:
            line.append(plain(f"{row[idx].text} {row[idx].detail}".strip()))
        lines.append(line)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plain(text: str) -> str:
    """Text that Markdown shows as it is: no markup, no new table column."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("\n", " ")


# report.html


def html(results: Results, records: Sequence[Record], figures: Mapping[str, Figure]) -> str:
    """The self-contained page. Raises ValueError for a number that is NaN or infinite."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    # jinja's tojson also escapes <, > and &.
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        heading=heading(results),
        subtitle=subtitle(results),
        summary=results.get("summary", []),
        curve_summary=(results.get("curves") or {}).get("summary", []),
        curves=tables.curve_table(results),
        cells=tables.cell_table(results),
        notes=results.get("notes", []),
        seed=results["seeds"][0],
        policies=tables.policy_table(results),
        comparisons=tables.own_comparisons(results),
        other_comparisons=tables.other_comparisons(results),
        gap=tables.gap_table(results),
        gap_is_split="gap" in results.get("oracle", {}),
        seeds=tables.seed_table(results),
        composition=tables.composition_table(results),
        transfer=tables.transfer_table(results),
        terminator=tables.terminator_facts(results),
        trade_off=tables.trade_off_sentence(results),
        figures={name: svg(name, figure) for name, figure in figures.items()},
        routes=route_data(results, records),
    )
