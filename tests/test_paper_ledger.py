"""docs/paper.md names nothing that does not exist, and says the numbers that scripts/reproduce.py
compares with.
"""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest
import yaml

from config import EXPERT_KINDS, Config, Section
from runtime.command_line import load_config

ROOT = Path(__file__).resolve().parents[1]
LEDGER = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`([^`\n]+)`", LEDGER)))
SETTING = re.compile(r"([a-z_0-9]+(?:\.[a-z_0-9]+)+)(?:: (\S+))?")
FUNCTION = re.compile(r"([\w/]+\.py):([\w.]+)")
FILE = re.compile(r"[\w/]+\.(?:py|sh|txt|yaml)")

TESTS = [name for name in NAMED if re.fullmatch(r"test_\w+", name)]
FUNCTIONS = [name for name in NAMED if FUNCTION.fullmatch(name)]
FILES = [name for name in NAMED if FILE.fullmatch(name)]
SETTINGS = [name for name in NAMED if SETTING.fullmatch(name) and name not in FILES]


@functools.cache
def definitions(path: Path) -> set[str]:
    """Names of functions, classes and methods (Class.method) of a file."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {
                f"{node.name}.{inner.name}"
                for inner in node.body
                if isinstance(inner, ast.FunctionDef)
            }
    return found


def test_the_ledger_is_read_at_all() -> None:
    assert len(TESTS) > 30 and len(FUNCTIONS) > 15 and len(SETTINGS) > 30 and len(FILES) > 2


@pytest.mark.parametrize("name", TESTS)
def test_a_named_test_exists(name: str) -> None:
    assert any(name in definitions(path) for path in (ROOT / "tests").glob("test_*.py"))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_named_function_exists(name: str) -> None:
    file, _, function = name.partition(":")
    assert function in definitions(ROOT / file)


@pytest.mark.parametrize("name", FILES)
def test_a_named_file_exists(name: str) -> None:
    assert (ROOT / name).is_file()


def has_key(section: type[Section], parts: list[str]) -> bool:
    field = section.model_fields.get(parts[0])
    if field is None or len(parts) == 1:
        return field is not None
    if (section.__name__, parts[0]) == ("PoolConfig", "experts"):
        return any(has_key(kind, parts[1:]) for kind in EXPERT_KINDS.values())
    return (
        isinstance(field.annotation, type)
        and issubclass(field.annotation, Section)
        and has_key(field.annotation, parts[1:])
    )


@pytest.mark.parametrize("name", SETTINGS)
def test_a_named_setting_exists_and_takes_the_value_named_with_it(name: str) -> None:
    key, value = SETTING.fullmatch(name).groups()
    assert has_key(Config, key.split("."))
    if value is not None and not key.startswith("pool.experts."):
        load_config(ROOT / "configs" / "quickstart.yaml", [f"--{key}", value])


def test_the_papers_configuration_has_the_values_of_the_settings_table() -> None:
    paper = load_config(ROOT / "configs" / "mixinstruct_paper.yaml")
    named = re.findall(
        rf"`{SETTING.pattern}`", LEDGER.partition("## Settings")[2].partition("## Metrics")[0]
    )
    stated = [(key, value) for key, value in named if value and not key.startswith("pool.experts.")]
    assert len(stated) > 12
    again = load_config(
        ROOT / "configs" / "mixinstruct_paper.yaml", [f"--{key}={value}" for key, value in stated]
    )
    assert again == paper
    assert all(
        expert.decoding.max_new_tokens == 512 and expert.first_answers
        for expert in paper.pool.experts
    )


def test_every_expert_of_the_papers_table_is_one_of_its_configuration() -> None:
    tables = yaml.safe_load((ROOT / "docs" / "paper_tables.yaml").read_text(encoding="utf-8"))
    experts = load_config(ROOT / "configs" / "mixinstruct_paper.yaml").pool.experts
    rows = [row for row in tables["table1"]["rows"] if row.get("policy", "").startswith("(?i)")]
    found = [
        [expert for expert in experts if re.fullmatch(row["policy"], expert.name)] for row in rows
    ]
    assert [len(experts) for experts in found] == [1] * 11
    assert [expert.params_b for (expert,) in found] == [row["paper"]["Infer. (B)"] for row in rows]


def test_every_row_of_the_process_names_a_function_and_a_test() -> None:
    rows = (
        LEDGER.partition("## The decision process")[2].partition("## Settings")[0].splitlines()[4:]
    )
    rows = [row for row in rows if row.startswith("|")]
    assert len(rows) > 10
    assert [row for row in rows if not FUNCTION.search(row) or "`test_" not in row] == []


def test_the_ledgers_table_1_is_the_one_that_reproduce_compares_with() -> None:
    tables = yaml.safe_load((ROOT / "docs" / "paper_tables.yaml").read_text(encoding="utf-8"))
    lines = [
        line.strip("| ").split("|")
        for line in LEDGER.partition("## Table 1")[2].partition("## Other tables")[0].splitlines()
        if line.startswith("|")
    ]
    head, rows = (
        [cell.strip() for cell in lines[0]],
        [[cell.strip() for cell in [*line, ""]][:8] for line in lines[2:]],
    )
    printed = {
        row[0]: {name: cell for name, cell in zip(head[1:], row[1:], strict=False) if cell}
        for row in rows
    }
    measures = tables["table1"]["measures"]

    def said(name, value):
        return value if isinstance(value, str) else f"{value:.{measures[name].get('decimals', 2)}f}"

    compared = {
        row["method"]: {name: said(name, value) for name, value in row["paper"].items()}
        for row in tables["table1"]["rows"]
        if "(ours)" not in row["method"]
    }
    assert printed == compared


def test_the_papers_table_adds_up() -> None:
    rows = {
        row["method"]: row["paper"]
        for row in yaml.safe_load(
            (ROOT / "docs" / "paper_tables.yaml").read_text(encoding="utf-8")
        )["table1"]["rows"]
    }
    assert rows["DER"]["BERTScore"] - rows["Open Assistant (best single)"][
        "BERTScore"
    ] == pytest.approx(0.32)
    experts = (
        "Open Assistant (best single)",
        "Alpaca",
        "ChatGLM",
        "Vicuna",
        "Baize",
        "FLAN-T5",
        "MOSS",
        "Koala",
        "Mosaic MPT",
        "StableLM",
        "Dolly2",
    )
    assert (
        sum(rows[name]["Infer. (B)"] for name in experts) == rows["PairRanker"]["Infer. (B)"] == 117
    )
