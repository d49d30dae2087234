"""What answers at once: a command's help, its settings, and a mistake in them."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from config import SPLITS, Config, Section

HEAVY = (
    "tianshou",
    "torch",
    "transformers",
    "sklearn",
    "scipy",
    "matplotlib",
    "datasets",
    "pandas",
)
# The arguments are read as the command reads them; then what has been imported is told.
PROGRAM = """
import importlib, sys
sys.argv = sys.argv[1:]
command = importlib.import_module(sys.argv[0].removesuffix(".py"))
from runtime.errors import DERError
try:
    command.main(sys.argv[1:])
except (DERError, SystemExit) as error:
    print(error)
print("imported:", *sorted(name for name in sys.modules if "." not in name))
"""
# Scripts are run one after the other; each is told what has been imported by then.
HELP_PROGRAM = """
import contextlib, io, json, runpy, sys
for script in sys.argv[1:]:
    sys.argv = [script, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        try:
            runpy.run_path(script, run_name="__main__")
            status = "no exit"
        except SystemExit as error:
            status = error.code
    imported = [name for name in sys.modules if "." not in name]
    print(json.dumps([script, status, shown.getvalue(), imported]))
"""


def run_in(folder: Path, program: str, arguments: list[str]) -> str:
    """What a program prints."""
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train_ppo_multi.py", "--help"], "--reward.alpha"),
        (["train_ppo_multi.py", "--print_config"], "cost_unit:"),
        (["train_ppo_multi.py", "--reward.alhpa", "0.1"], "did you mean 'alpha'"),
        (["test_ppo_multi.py", "--help"], "--reprice"),
        (["test_ppo_multi.py", "--alphas", "0.1"], "expected two or more"),
        (["test_ppo_multi.py"], "no runs in runs"),
    ],
    ids=" ".join,
)
def test_nothing_heavy_is_imported_before_there_is_something_to_do(
    project: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    (tmp_path / "configs").symlink_to(project / "configs")
    program = f"import sys; sys.path.insert(0, {str(project)!r})\n{PROGRAM}"
    shown = run_in(tmp_path, program, arguments)
    assert said in shown
    imported = shown.rpartition("imported:")[2].split()
    assert "pydantic" in imported
    assert not set(HEAVY) & set(imported)


def test_a_mistake_is_told_before_anything_heavy_is_imported_for_the_newest_run(
    project: Path, tmp_path: Path
) -> None:
    run = tmp_path / "runs" / "made"
    run.mkdir(parents=True)
    shutil.copy(project / "configs" / "quickstart.yaml", run / "config.yaml")
    program = f"import sys; sys.path.insert(0, {str(project)!r})\n{PROGRAM}"
    shown = run_in(tmp_path, program, ["test_ppo_multi.py", "--reward.alhpa", "0.1"])
    assert "did you mean 'alpha'" in shown
    assert not set(HEAVY) & set(shown.rpartition("imported:")[2].split())


def test_the_help_of_every_script_imports_nothing_heavy(project: Path, tmp_path: Path) -> None:
    scripts = sorted(str(path) for path in project.glob("scripts/*.py"))
    scripts.remove(str(project / "scripts/__init__.py"))
    command = [sys.executable, "-c", HELP_PROGRAM, *scripts]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    for line in done.stdout.splitlines():
        script, status, shown, imported = json.loads(line)
        assert status == 0, script
        assert shown.startswith(f"usage: {Path(script).name}"), script
        assert not set(HEAVY) & set(imported), script
    assert len(done.stdout.splitlines()) == len(scripts) > 20
    assert list(tmp_path.iterdir()) == []


def names_of_all_settings(section: type[Section] = Config, prefix: str = "") -> list[str]:
    """Dotted names of all settings that are no sections."""
    names = []
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            names += names_of_all_settings(kind, f"{prefix}{name}.")
        else:
            names.append(prefix + name)
    return names


@pytest.mark.parametrize("command", ["train_ppo_multi", "test_ppo_multi"])
def test_help_lists_every_setting_with_its_meaning_and_default(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        importlib.import_module(command).main(["--help"])
    shown = capsys.readouterr().out
    options = [line.strip() for line in shown.splitlines() if line.startswith("  --")]
    for name in names_of_all_settings():
        for split in SPLITS:
            name = name.replace(f"data.{split}.", "data.SPLIT.")
        assert f"--{name}" in options
    words = " ".join(shown.split())
    # config.py: alpha: float = Field(0.1, ge=0, le=1e6, description="weight of cost ...")
    assert (
        "--reward.alpha weight of cost against quality (number, at least 0, at most 1e+06;"
        " default 0.1)" in words
    )
    assert "source local folder or hub id (text; required)" in words  # of an expert


@pytest.mark.slow
def test_an_agent_acts_without_what_trains_and_draws(project: Path) -> None:
    unneeded = ("tianshou", "sklearn", "datasets", "evaluate", "matplotlib", "pandas", "ray")
    program = f"import sys, scripts.ask; print([n for n in {unneeded} if n in sys.modules])"
    command = [sys.executable, "-c", program]
    shown = subprocess.run(command, cwd=project, capture_output=True, text=True, check=True).stdout
    assert shown == "[]\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["benchmark.py", "--questions", "0"],
        ["check_intervals.py", "--repetitions", "-3"],
        ["load_test.py", "--at_once", "8", "0"],
    ],
)
def test_a_count_below_one_is_refused(project: Path, arguments: list[str]) -> None:
    command = [sys.executable, str(project / "scripts" / arguments[0]), *arguments[1:]]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert f"argument {arguments[1]}: must be at least 1, not {arguments[-1]}" in done.stderr
