"""A run on disk: `runs/NAME/`, its lock, its checkpoints, its metrics.

config.yaml  environment.json  metrics.jsonl  tb/  checkpoints/last.pt, best.pt  agent/  terminator/
routes.jsonl  report/
"""

from __future__ import annotations

import fcntl
import json
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from config import Config
from runtime.checkpoint import read_checkpoint, read_epoch, write_checkpoint, write_epoch
from runtime.command_line import dump_config, load_config
from runtime.errors import ConfigError, RunError
from runtime.files import (
    parse_json,
    read_json,
    read_lines,
    refuse_links,
    shown,
    write_atomically,
)
from runtime.version import library_versions

if TYPE_CHECKING:
    import torch

# What training has settled
TRAINING_SECTIONS = (
    "name",
    "seed",
    "agent",
    "ppo",
    "train",
    "terminator",
)
SHAPING = ("seed", "env", "reward", "agent", "ppo", "train", "terminator")  # what is learned
NOT_SHAPING = ("train.max_expert_calls", "agent.encoder", "agent.revision")  # weights are compared
# For a checkpoint that is damaged
REMEDIES = {
    "last": "Copy best.pt over it to go on from the best epoch, or train a new run",
    "best": "Remove it to go on from last.pt; agent/ is then written at the next best epoch",
}
# In which runs of one table may differ
IGNORED_IN_COMPARISON = (
    "name",
    "seed",
    "pool.store",
    "threads",
    "device",
    "train.max_expert_calls",
)


def newest_run(root: Path = Path("runs")) -> Path:
    """The run that was started last. Raises RunError when there is none."""
    runs = sorted(root.glob("*/config.yaml"), key=lambda path: path.stat().st_mtime)
    if not runs:
        raise RunError(f"no runs in {root}/: train one with python train_ppo_multi.py")
    return runs[-1].parent


def load_run_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """A run's configuration with settings on top.

    Raises RunError for a folder that is no run; ConfigError.
    """
    if not (path / "config.yaml").is_file():
        there = sorted(config.parent.name for config in path.parent.glob("*/config.yaml"))
        known = (
            f"runs in {path.parent}/: {', '.join(there)}" if there else f"no runs in {path.parent}/"
        )
        raise RunError(f"{path}: no run there (config.yaml is missing); {known}")
    try:
        config = load_config(path / "config.yaml")
    except ConfigError as error:
        raise ConfigError(
            f"{error}\nThis file holds a run's settings since it began: correct it, or train a new"
            " run"
        ) from error
    return load_config(path / "config.yaml", list(overrides)) if overrides else config


def evaluated_config(path: Path, overrides: Sequence[str]) -> Config:
    """A run's configuration with overrides.

    Raises ConfigError for one of something that training has settled.
    """
    trained, config = load_run_config(path), load_run_config(path, overrides)
    changed = [
        name for name in ("name", "seed") if getattr(config, name) != getattr(trained, name)
    ] + differing_settings(trained, config)
    if settled := [key for key in changed if key.partition(".")[0] in TRAINING_SECTIONS]:
        raise ConfigError(
            f"{path} was trained with another {', '.join(settled)}, which an evaluation cannot"
            " change"
        )
    if config.env.t_max > trained.env.t_max:
        raise ConfigError(
            f"--env.t_max = {config.env.t_max}: {path} was trained for {trained.env.t_max} calls at"
            " most and knows no states beyond; train it for more"
        )
    return config


def differing_settings(one: Config, other: Config) -> list[str]:
    """Dotted names of the settings that differ, aside from name, seed, machine, the place of the
    store and what only limits or evaluates.
    """

    a, b = flat(one.model_dump(mode="json")), flat(other.model_dump(mode="json"))
    return sorted(
        key
        for key in a.keys() | b.keys()
        if a.get(key) != b.get(key)
        and key not in IGNORED_IN_COMPARISON
        and not key.startswith("eval.")
    )


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted names."""
    if not isinstance(value, dict):
        return {prefix: value}
    out: dict[str, Any] = {}
    for name, part in value.items():
        out |= flat(part, f"{prefix}.{name}".lstrip("."))
    return out


def shaping_settings(config: Config) -> dict[str, Any]:
    """Dotted names and values of the settings that shape what a training learns."""
    settings = flat(config.model_dump(mode="json", include=set(SHAPING)))
    return {name: value for name, value in settings.items() if name not in NOT_SHAPING}


def num_epochs(path: Path) -> int:
    """Epochs that a run has finished and kept: those of its last checkpoint."""
    return read_epoch(path / "checkpoints")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl, without a half line at its end, as a killed run leaves it.

    Raises RunError naming file and line for any other damage.
    """
    if not path.exists():
        return []
    records = []
    for line in read_lines(path, RunError):
        try:
            record = parse_json(line.data, line.place, RunError)
        except RunError as error:
            if not line.data.endswith(b"\n"):
                break
            raise RunError(f"{error}; it is a log only: remove the line") from error
        if not isinstance(record, dict):
            raise RunError(f"{line.place}: no object; it is a log only: remove the line")
        for name in ("epoch", "update"):
            if not isinstance(record.get(name), int):
                raise RunError(f"{line.place}: no {name} in it; it is a log only: remove the line")
        records.append(record)
    return records


def run_name(config: Config, config_path: Path) -> str:
    return config.name or f"{config_path.stem}-seed{config.seed}-{time.strftime('%Y%m%d-%H%M%S')}"


class RunFolder:
    """Creates or reopens a run folder and holds its lock until the process ends."""

    def __init__(self, path: Path, *, resume: bool):
        self.path = path
        if (path / "config.yaml").exists() and not resume:
            raise RunError(
                f"{path} already holds a run: continue it with --resume {path}, or choose another"
                " --name"
            )
        refuse_links(path, RunError)
        (path / "checkpoints").mkdir(parents=True, exist_ok=True)
        self._lock = (path / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunError(f"{path}: another process is training this run") from error

    def describe(
        self, config: Config, fingerprint: list[dict[str, Any]], device: torch.device
    ) -> None:
        """Write config.yaml and environment.json."""
        import torch

        about = {
            "versions": library_versions(),
            "git_commit": _git_commit(),
            "seed": config.seed,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
            "threads": torch.get_num_threads(),
            "pool": fingerprint,
        }
        write_atomically(self.path / "environment.json", json.dumps(about, indent=2).encode())
        write_atomically(self.path / "config.yaml", dump_config(config).encode())

    def log(self, record: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        path = self.path / "metrics.jsonl"
        with self.saving(path), path.open("a") as file:
            file.write(json.dumps(record) + "\n")

    def count_expert_calls(self, generated: int) -> None:
        """Keep the number of answers this run has generated, so that --resume does not spend the
        budget again.
        """
        path = self.path / "expert_calls.json"
        with self.saving(path):
            write_atomically(path, json.dumps({"generated": generated}).encode())

    def expert_calls(self) -> int:
        """Answers this run has generated so far. Raises RunError for a file that does not say."""
        path = self.path / "expert_calls.json"
        if not path.exists():
            return 0
        remedy = "remove it to count from 0, metrics.jsonl says how many there were"
        try:
            generated = read_json(path, RunError).get("generated")
        except RunError as error:
            raise RunError(f"{error}; {remedy}") from error
        if type(generated) is not int or generated < 0:
            raise RunError(f"{path}: generated = {shown(generated)} is no number; {remedy}")
        return generated

    def cut_metrics(self, epoch: int, update: int) -> None:
        """Forget what a killed run logged after its last checkpoint.

        The updates of an epoch that was saved half-way stay, too.
        """
        path = self.path / "metrics.jsonl"
        kept = []
        for record in read_metrics(path):
            is_saved_update = record["update"] <= update and "eval/return" not in record
            if record["epoch"] <= epoch or is_saved_update:
                kept.append(json.dumps(record) + "\n")
        write_atomically(path, "".join(kept).encode())

    def save_checkpoint(self, state: dict[str, Any], *, is_best: bool) -> None:
        """Write last.pt, and best.pt as a copy, as checkpoint.py does."""
        folder = self.path / "checkpoints"
        with self.saving(folder / "last.pt"):
            write_checkpoint(folder, state, is_best=is_best)

    @contextmanager
    def saving(self, what: Path) -> Iterator[None]:
        """Turns a full disk (OSError, or torch's and safetensors' own errors) into a RunError."""
        try:
            yield
        except (OSError, RuntimeError, SafetensorError) as error:
            raise RunError(
                f"{what}: could not be saved ({error}). The previous checkpoint is whole; free some"
                f" space and use --resume {self.path}"
            ) from error

    def close(self) -> None:
        """Release the lock."""
        self._lock.close()

    def load_checkpoint(self, name: str) -> dict[str, Any] | None:
        """The state of last.pt or best.pt; None before the first.

        Raises RunError as `read_checkpoint`.
        """
        path = self.path / "checkpoints" / f"{name}.pt"
        if not path.exists():
            return None
        state = read_checkpoint(path, REMEDIES[name])
        if name == "last":
            write_epoch(path.parent, state["epoch"])
        return state


def _git_commit() -> str | None:
    result = subprocess.run(
        ["git", "rev-parse", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[1],
    )
    return result.stdout.strip() or None
