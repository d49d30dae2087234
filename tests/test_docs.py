"""README and docs/ name only what exists, keep to their bounds, and their recipes run."""

from __future__ import annotations

import ast
import re
import runpy
import shlex
import shutil
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_paper_ledger import definitions

import test_ppo_multi
import train_ppo_multi
from config import Section
from metrics.registry import get_metric
from runtime.command_line import load_config
from runtime.settings_list import all_settings
from scripts.build_docs import generated

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")]
WORDS, DECIMALS, COLUMNS = (1000, 1500), 40, 100
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PATH = re.compile(
    r"`((?:[\w.]+/)*[\w.-]+\.(?:py|sh|yaml|jsonl|toml|txt|md|json))(?::([A-Za-z]\w*))?`"
)
# Files of the reader's own, and files that a run writes
FOREIGN = re.compile(
    r"^(runs|data/mine|my_\w+|report|checkpoints|agent|terminator)/|^(FILE|IN|OUT)\."
)
WRITTEN = {
    "config.yaml",
    "environment.json",
    "metrics.jsonl",
    "routes.jsonl",
    "results.json",
    "report.md",
    "provenance.json",
    "recorded.jsonl",
    "expert_calls.json",
    "PROVENANCE.json",
}
SHORT_FOLDERS = ("", "configs", "docs", "scripts", "data/small_questions", "tests")


def page_name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path, *languages: str) -> list[str]:
    return [text for language, text in FENCE.findall(read(page)) if language in languages]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    found = set()
    for heading in re.findall(r"^#+ (.+)$", read(page), re.MULTILINE):
        plain = re.sub(r"[^\w\- ]", "", heading.lower())
        found.add(plain.replace(" ", "-"))
    return found


# --- bounds ---


def test_the_readme_is_as_short_as_promised() -> None:
    words = len(read(README).split())
    assert WORDS[0] <= words <= WORDS[1]
    assert len(re.findall(r"\d+\.\d+", read(README))) < DECIMALS


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_no_line_is_wider_than_the_page(page: Path) -> None:
    wide = []
    for number, line in enumerate(read(page).splitlines(), start=1):
        is_row = line.startswith("|") and page != README  # Markdown cannot break a row
        if len(line) > COLUMNS and not is_row:
            wide.append(number)
    assert wide == []


# --- what is named exists ---


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    broken = []
    for link in LINK.findall(read(page)):
        path, _, anchor = link.partition("#")
        if path.startswith(("http://", "https://")):
            continue
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def is_here(name: str) -> bool:
    return any((ROOT / folder / name).is_file() for folder in SHORT_FOLDERS)


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_every_file_and_definition_named_exists(page: Path) -> None:
    missing = []
    for name, definition in PATH.findall(read(page)):
        if FOREIGN.match(name) or name in WRITTEN:
            continue
        if page.name == "CHANGELOG.md" and not definition:
            continue  # it also names files that are gone
        if not is_here(name):
            missing.append(name)
        elif definition and definition not in definitions(ROOT / name) | constants(ROOT / name):
            missing.append(f"{name}:{definition}")
    assert missing == []


def constants(path: Path) -> set[str]:
    """Names that a file assigns at its top level."""
    found = set()
    for node in ast.parse(read(path)).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


@pytest.mark.parametrize("name", sorted(generated()))
def test_a_generated_file_is_current(name: str) -> None:
    current = generated()[name]
    assert read(ROOT / name) == current, "run python scripts/build_docs.py and commit what it wrote"


def sections() -> Iterator[type[Section]]:
    waiting = list(Section.__subclasses__())
    while waiting:
        section = waiting.pop()
        waiting.extend(section.__subclasses__())
        yield section


def test_every_setting_has_a_description() -> None:
    bare = []
    for section in sections():
        for name, field in section.model_fields.items():
            is_setting = not isinstance(field.default, Section)
            if is_setting and not field.description:
                bare.append(f"{section.__name__}.{name}")
    assert bare == []


# --- commands ---


def commands(page: Path) -> Iterator[list[str]]:
    """The words of every command in a page's bash blocks."""
    for block in blocks(page, "bash"):
        one_line = re.sub(r"'[^']*'", lambda quoted: quoted[0].replace("\n", " "), block)
        for line in one_line.replace("\\\n", " ").splitlines():
            yield from split_at_ands(shlex.split(line, comments=True))


def split_at_ands(words: list[str]) -> Iterator[list[str]]:
    command: list[str] = []
    for word in words:
        if word == "&&":
            yield command
            command = []
        else:
            command.append(word)
    if command:
        yield command


COMMANDS = [
    pytest.param(command, id=f"{page_name(page)}: {' '.join(command)[:60]}")
    for page in PAGES
    for command in commands(page)
]


def own_options(script: Path) -> set[str]:
    """The options that a script and the modules of scripts/support it imports know."""
    found = {"--help"}
    for node in ast.walk(ast.parse(read(script))):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument":
            for argument in node.args:
                if isinstance(argument, ast.Constant):
                    found.add(str(argument.value))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("scripts.support"):
            for name in [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]:
                module = ROOT / f"{str(name).replace('.', '/')}.py"
                found |= own_options(module) if module.is_file() else set()
    return found


@pytest.mark.parametrize("command", COMMANDS)
def test_a_shown_command_exists_with_its_options(command: list[str]) -> None:
    for word in command:
        assert not word.startswith("requirements") or (ROOT / word).is_file()
    scripts = [word for word in command if word.endswith((".py", ".sh"))]
    if command[0] not in ("python", "bash") or not scripts:
        return
    script = ROOT / scripts[0]
    assert script.is_file()
    python_script = script.with_suffix(".py")
    if script.suffix == ".sh" and not python_script.is_file():
        options = [word for word in command if word.startswith("--")]
        assert all(option in script.read_text(encoding="utf-8") for option in options)
        return
    known = own_options(python_script) if python_script.is_file() else set()
    path = ROOT / "configs" / "quickstart.yaml"
    if "--config" in command:
        named = ROOT / command[command.index("--config") + 1]
        path = named if named.is_file() else path
    load_config(path, settings_in(command, known))


def settings_in(command: list[str], known: set[str]) -> list[str]:
    """The options of a command that are not its script's own, with their values."""
    settings = []
    for place, word in enumerate(command):
        flag, _, value = word.partition("=")
        if flag.startswith("--") and flag not in known:
            settings.append(f"{flag}={value or command[place + 1]}")
    return settings


YAML_BLOCKS = [
    pytest.param(block, id=page_name(page)) for page in PAGES for block in blocks(page, "yaml")
]


@pytest.mark.parametrize("block", YAML_BLOCKS)
def test_a_shown_configuration_is_accepted(block: str, tmp_path: Path) -> None:
    given = yaml.safe_load(block)
    given.setdefault("pool", quickstart_pool())
    path = tmp_path / "shown.yaml"
    path.write_text(yaml.safe_dump(given))
    shown = load_config(path).model_dump(mode="json")
    for section, values in given.items():
        assert section in shown
        if section != "pool" and isinstance(values, dict):
            assert values.keys() - shown[section].keys() <= {"cost", "cost_scale"}


def quickstart_pool() -> dict[str, Any]:
    return yaml.safe_load(read(ROOT / "configs" / "quickstart.yaml"))["pool"]


def test_the_readme_installs_the_torch_that_is_required() -> None:
    (version,) = re.findall(r"pip install (torch==[\d.]+)", read(README))
    assert version in read(ROOT / "requirements.txt").splitlines()


def test_every_setting_stands_in_a_shipped_configuration_or_a_page() -> None:
    texts = [path.read_text() for path in (ROOT / "configs").glob("*.yaml")]
    for page in PAGES:
        if page.name not in ("settings.md", "CHANGELOG.md"):
            texts.append(read(page))
    everything = "\n".join(texts)
    unused = []
    for group in all_settings():
        for setting in group.settings:
            assert setting.meaning, f"{setting.name} has no description"
            name = setting.name.rpartition(".")[2]
            if not re.search(rf"\b{name}\b", everything):
                unused.append(setting.name)
    assert unused == [], "show how they are used, or make them constants"


# --- recipes of docs/extending.md ---


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder like the root, with the files of the recipes in it."""
    names = []
    for block in blocks(ROOT / "docs" / "extending.md", "python"):
        match = re.match(r"# (\w+)\.py\n", block)
        if match:
            names.append(match[1])
            (tmp_path / f"{match[1]}.py").write_text(block)
    assert names == ["word_overlap", "short_to_small", "my_baseline", "calculator"]
    for name in ("data", "models"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in names:
        sys.modules.pop(name, None)


def run_recipe(words: str, workplace: Path) -> dict[str, Any]:
    """Run the block without a file name that holds `words`; its variables."""
    (block,) = [
        block
        for block in blocks(ROOT / "docs" / "extending.md", "python")
        if words in block and not re.match(r"# \w+\.py\n", block)
    ]
    path = workplace / "recipe.py"
    path.write_text(textwrap.dedent(block))
    return runpy.run_path(str(path))


def test_the_metric_of_the_recipe_scores_by_hand(workplace: Path) -> None:
    metric = get_metric("word_overlap:WordOverlap")
    # two of the reference's three words
    assert metric.compute(predictions=["the red hat"], references=["a red hat"]) == [
        pytest.approx(2 / 3)
    ]


def test_the_policy_of_the_recipe_plays_every_question(workplace: Path) -> None:
    played = run_recipe("ShortToSmall(pool)", workplace)
    assert len(played["routes"]) == 20
    for route in played["routes"]:
        is_short = len(route.episode.question.text) < 60
        assert [step.expert_idx for step in route.episode.steps] == [0 if is_short else 4]
        assert 0 <= route.quality <= 1


def test_the_expert_of_the_recipe_answers_42(workplace: Path, capsys) -> None:
    (workplace / "runs").mkdir()
    (settings,) = [
        block for block in blocks(ROOT / "docs" / "extending.md", "yaml") if "calculator" in block
    ]
    (workplace / "configs" / "with_calculator.yaml").write_text(settings)
    run_recipe("with_calculator", workplace)
    assert capsys.readouterr().out == "42\n"


@pytest.mark.slow
def test_the_baseline_and_the_policy_of_the_recipes_stand_in_the_table(
    workplace: Path, bert_encoder: Path, capsys
) -> None:
    options = {
        "name": "recipe",
        "agent.encoder": str(bert_encoder),
        "data.train.limit": "8",
        "data.validation.limit": "4",
        "data.test.limit": "4",
        "train.epochs": "1",
        "train.updates_per_epoch": "1",
        "train.episodes_per_update": "8",
        "terminator.steps": "5",
        "env.t_max": "1",
        "threads": "1",
    }
    run = train_ppo_multi.main([f"--{key}={value}" for key, value in options.items()])
    named = "['my_baseline:SHORT_TO_SMALL','short_to_small:ShortToSmall']"
    test_ppo_multi.main(["--run", str(run), f"--eval.baselines={named}"])
    table = capsys.readouterr().out
    for policy in ("short to small", "ShortToSmall"):
        assert re.search(rf"^{policy} +[01]\.\d{{3}} \[", table, re.MULTILINE)
