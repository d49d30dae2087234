"""Write the parts of the documentation that are made from code and from the README's table.

    python scripts/build_docs.py

Writes docs/settings.md (from config.py), the table of floors in docs/architecture.md (from
pyproject.toml) and docs/img/overview.svg (from the first table of README.md). tests/test_docs.py
fails when one of them is out of date.
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from scripts.support.overview_figure import overview_svg
from scripts.support.settings_page import settings_page

FLOORS_BEGIN, FLOORS_END = "<!-- floors -->\n", "<!-- /floors -->"


def floors_table() -> str:
    """The floors of pyproject.toml as a Markdown table, the ground first."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    lines = ["| floor | modules |", "|---|---|"]
    for number, modules in enumerate(settings["tool"]["der"]["floors"]):
        names = ", ".join(f"`{name}`" for name in modules)
        lines.append(f"| {number} | {names} |")
    return "\n".join(lines) + "\n"


def architecture_page() -> str:
    """docs/architecture.md with today's floors in it."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    before, _, rest = text.partition(FLOORS_BEGIN)
    _, _, after = rest.partition(FLOORS_END)
    return before + FLOORS_BEGIN + floors_table() + FLOORS_END + after


def generated() -> dict[str, str]:
    """Path below the root -> text of every generated file."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    return {
        "docs/settings.md": settings_page(),
        "docs/architecture.md": architecture_page(),
        "docs/img/overview.svg": overview_svg(readme),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    for path, text in generated().items():
        target = ROOT / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
        print(f"{path}: {len(text)} characters")


if __name__ == "__main__":
    main()
