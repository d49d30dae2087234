"""One version: in the code, in the changelog, and in what a run and a report leave behind."""

from __future__ import annotations

import re
from pathlib import Path

from runtime.version import VERSION, library_versions


def test_the_changelog_begins_with_the_version_of_the_code(project: Path) -> None:
    newest = re.search(r"^## (\d+\.\d+)", (project / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert VERSION.startswith(f"{newest[1]}.")


def test_the_version_stands_beside_those_of_the_libraries() -> None:
    assert library_versions()["der"] == VERSION
