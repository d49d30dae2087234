"""How long it takes to learn from answers that exist: minutes from nothing to a report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from backends.model_source import LOCAL_MODELS
from runtime.command_line import read_yaml
from runtime.errors import ReportError
from scripts.support.synthetic_answers import EXPERTS, SPLIT_SHARES, make_recording

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = ROOT / "configs" / "lookahead_gsm8k.yaml"  # what the synthetic set is trained with


def write_synthetic(folder: Path, num_questions: int) -> Path:
    """A synthetic set and its configuration: that of a shipped set, with other experts."""
    recording = folder / "recorded.jsonl"
    make_recording(recording, num_questions)
    settings = read_yaml(SETTINGS)
    for split in SPLIT_SHARES:
        settings["data"][split] = {"path": str(recording), "split": split}
    experts = []
    for name, (params_b, _) in EXPERTS.items():
        recorded = {"kind": "recorded", "path": str(recording)}
        experts.append({"name": name, "params_b": params_b, **recorded})
    settings["pool"] = {"store": "runs/answers.sqlite", "experts": experts}
    settings["reward"]["cost_unit"] = "70 billion parameters"
    path = folder / "recorded.yaml"
    path.write_text(json.dumps(settings))  # JSON is YAML
    return path


def measure(config_path: Path, overrides: Sequence[str], folder: Path) -> dict[str, float]:
    """Minutes to train and evaluate from nothing, and again with what is kept on the disk.

    Commands are run in `folder`, where no earlier run has left anything.
    """
    for name in ("data", str(LOCAL_MODELS)):
        (folder / name).symlink_to(ROOT / name)
    figures = {}
    for name in ("recorded_minutes", "recorded_minutes/again"):
        run = name.replace("/", "_")
        config = ["--config", str(config_path.resolve()), "--name", run]
        start = time.perf_counter()
        run_command(["train_ppo_multi.py", *config, *overrides], folder)
        run_command(["test_ppo_multi.py", "--run", f"runs/{run}"], folder)
        figures[name] = (time.perf_counter() - start) / 60
    return figures


def run_command(arguments: Sequence[str], folder: Path) -> None:
    """Run a command of the project in a folder. Raises ReportError with its words if it fails."""
    script, *options = arguments
    command = [sys.executable, str(ROOT / script), *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise ReportError(f"{script} ended with exit status {done.returncode}:\n{done.stderr}")
