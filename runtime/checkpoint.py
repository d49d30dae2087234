"""Checkpoints: tensors in plain containers, so that reading one runs no code.

last.pt and best.pt hold the full state of a training; last.json holds the epoch of last.pt, for
those who want to know no more.
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

from runtime.errors import RunError
from runtime.files import read_json, write_atomically

FORMAT = 2  # 1 held Python objects, which had to be unpickled


def write_checkpoint(folder: Path, state: dict[str, Any], *, is_best: bool) -> None:
    """Write last.pt, and best.pt as a copy.

    last.pt is replaced once all else is written, so that a crash at any moment can be resumed.
    Raises OSError or RuntimeError on a full disk.
    """
    import torch

    last, best = folder / "last.pt", folder / "best.pt"
    partial, partial_best = last.with_suffix(".partial"), best.with_suffix(".partial")
    try:
        with partial.open("wb") as file:
            torch.save(state | {"format": FORMAT}, file)
            file.flush()
            os.fsync(file.fileno())
        if is_best:
            shutil.copyfile(partial, partial_best)
            partial_best.replace(best)
        partial.replace(last)
    finally:
        partial.unlink(missing_ok=True)
        partial_best.unlink(missing_ok=True)
    write_epoch(folder, state["epoch"])


def write_epoch(folder: Path, epoch: int) -> None:
    """Keep the epoch of last.pt beside it."""
    write_atomically(folder / "last.json", json.dumps({"epoch": epoch}).encode())


def read_epoch(folder: Path) -> int:
    """Epochs finished and kept, as last.json says; 0 where there is none.

    Raises RunError for a file that does not say it.
    """
    path = folder / "last.json"
    if not path.exists():
        return 0
    epoch = read_json(path, RunError).get("epoch")
    if type(epoch) is not int or epoch < 0:
        raise RunError(f"{path}: no epoch in it; remove it and use --resume {folder.parent}")
    return epoch


def read_checkpoint(path: Path, remedy: str) -> dict[str, Any]:
    """The state in a checkpoint.

    Raises RunError, with the remedy, for a file that is damaged, that would have to run code, or
    that is of another format.
    """
    import torch

    _check_whole(path, remedy)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types; each means that it cannot be read
        if objects := _objects_in(path):
            raise RunError(
                f"{path}: holds Python objects ({', '.join(objects)}), whose loading could run"
                " code, so it is not read. Checkpoints had such objects before format"
                f" {FORMAT}: finish the run with the version that began it"
                f"{_version_of(path)}, or train a new run"
            ) from error
        raise RunError(f"{path}: damaged ({type(error).__name__}). {remedy}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise RunError(f"{path}: no checkpoint of format {FORMAT}. {remedy}")
    return state


def _check_whole(path: Path, remedy: str) -> None:
    """Raise RunError where a byte has changed: torch itself does not look at the checksums."""
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (OSError, ValueError, EOFError, NotImplementedError, zipfile.BadZipFile) as error:
        raise RunError(f"{path}: damaged or no checkpoint ({error}). {remedy}") from error
    if broken is not None:
        raise RunError(f"{path}: damaged ({broken}). {remedy}")


def _objects_in(path: Path) -> list[str]:
    """The classes and functions that a checkpoint would import; none where that cannot be told."""
    import torch

    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # damaged in some other way
        return []


def _version_of(path: Path) -> str:
    """The commit that a run began with, in brackets; nothing where it is not known."""
    try:
        about = read_json(path.parents[1] / "environment.json", RunError)
    except RunError:
        return ""
    commit = about.get("git_commit")
    return f" (git commit {commit[:12]})" if isinstance(commit, str) else ""
