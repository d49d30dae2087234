"""Imports go down only: the floors of pyproject.toml, and no circles."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAX_ROOT_MODULES = 14
FLOORS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["der"]["floors"]


def module_name(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[-1] == "__init__":
        parts.pop()
    return ".".join(parts)


def source_files() -> list[Path]:
    rooms = [path.parent for path in ROOT.glob("*/__init__.py")]
    files = list(ROOT.glob("*.py"))
    for room in rooms:
        files.extend(room.rglob("*.py"))
    return sorted(files)


def floor_of(module: str) -> int | None:
    """The floor of a module: that of its longest listed prefix.

    None for modules of other projects.
    """
    while module:
        for number, names in enumerate(FLOORS):
            if module in names:
                return number
        module = module.rpartition(".")[0]
    return None


def imported_modules(path: Path) -> list[tuple[int, str]]:
    """(line, module) of every import of a file, those inside functions included."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found.extend((node.lineno, name) for name in names)
        elif isinstance(node, ast.Import):
            found.extend((node.lineno, alias.name) for alias in node.names)
    return found


def upward_imports(path: Path) -> list[str]:
    own = floor_of(module_name(path))
    assert own is not None, f"{path.relative_to(ROOT)} is on no floor: list it in pyproject.toml"
    upward = []
    for line, module in imported_modules(path):
        other = floor_of(module)
        if other is not None and other > own:
            upward.append(f"{path.relative_to(ROOT)}:{line} imports {module}, which is above it")
    return upward


def test_no_import_goes_up() -> None:
    assert [complaint for path in source_files() for complaint in upward_imports(path)] == []


def test_an_import_turned_round_is_noticed(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("test_architecture.ROOT", tmp_path)
    (tmp_path / "prompts.py").write_text("def late():\n    from experts import ExpertPool\n")
    assert upward_imports(tmp_path / "prompts.py") == [
        "prompts.py:2 imports experts.ExpertPool, which is above it"
    ]


@pytest.mark.slow
def test_modules_of_one_floor_form_no_circle() -> None:
    below: dict[str, set[str]] = {}
    names = {module_name(path): path for path in source_files()}
    for name, path in names.items():
        imported = set()
        for _, module in imported_modules(path):
            target = module if module in names else module.rpartition(".")[0]
            if target in names and target != name:
                imported.add(target)
        below[name] = imported
    while leaves := {name for name, imported in below.items() if not imported & below.keys()}:
        for name in leaves:
            del below[name]
    assert sorted(below) == []


def test_the_root_stays_small() -> None:
    assert len(list(ROOT.glob("*.py"))) <= MAX_ROOT_MODULES
