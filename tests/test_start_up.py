"""What answers at once: a command's help, its settings, and a mistake in them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

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


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train_ppo_multi.py", "--help"], "--dry_run"),
        (["train_ppo_multi.py", "--print_config"], "cost_scale:"),
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
    command = [sys.executable, "-c", program, *arguments]
    shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert said in shown
    imported = shown.rpartition("imported:")[2].split()
    assert "pydantic" in imported
    assert not set(HEAVY) & set(imported)


@pytest.mark.slow
def test_an_agent_acts_without_tianshou(project: Path) -> None:
    program = "import sys, scripts.ask; print([name for name in sys.modules if name == 'tianshou'])"
    command = [sys.executable, "-c", program]
    shown = subprocess.run(command, cwd=project, capture_output=True, text=True, check=True).stdout
    assert shown == "[]\n"
