"""A folder of learned weights: config.json says what they are, model.safetensors holds them.

Reading one runs no code, and notices a changed byte.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from runtime.errors import DERError
from runtime.files import read_json, shown, write_atomically

Tensors = dict[str, torch.Tensor]


class ModelSpec(BaseModel):
    """What every config.json of such a folder says; subclasses say what else."""

    model_config = ConfigDict(protected_namespaces=(), allow_inf_nan=False)

    sha256: str | None = None


Spec = TypeVar("Spec", bound=ModelSpec)


def write_model_folder(folder: Path, spec: dict[str, Any], tensors: Tensors) -> None:
    """Write both files, with the hash of the weights beside what they are.

    Raises OSError or SafetensorError on a full disk.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / "model.safetensors"
    save_file(tensors, weights)
    spec = spec | {"sha256": _hash(weights)}
    write_atomically(folder / "config.json", json.dumps(spec, indent=2).encode())


def read_model_folder(
    folder: Path, spec_class: type[Spec], error: type[DERError]
) -> tuple[Spec, Tensors]:
    """What the weights are, and the weights by name.

    Raises `error` for a file that is missing or damaged, and for weights that are no numbers.
    """
    remedy = f"write it again with python train_ppo_multi.py --resume {folder.parent}"
    if not (folder / "config.json").is_file():
        raise error(
            f"{folder}: no {folder.name} here (config.json is missing). Has the run finished its"
            " first epoch?"
        )
    try:
        spec = _read_spec(folder / "config.json", spec_class, error)
        return spec, _read_weights(folder / "model.safetensors", spec.sha256, error)
    except error as problem:
        raise error(f"{problem}; {remedy}") from problem


def check_shapes(tensors: Tensors, wanted: Tensors, folder: Path, error: type[DERError]) -> None:
    """Raise `error` where the weights have other names or shapes than wanted."""
    for name in sorted(tensors.keys() | wanted.keys()):
        found = tensors[name].shape if name in tensors else None
        expected = wanted[name].shape if name in wanted else None
        if found != expected:
            raise error(
                f"{folder}/model.safetensors: {name} is of shape {found}, config.json means"
                f" {expected}"
            )


def _read_spec(path: Path, spec_class: type[Spec], error: type[DERError]) -> Spec:
    given = read_json(path, error)
    try:
        return spec_class.model_validate(given)
    except ValidationError as problem:
        first = problem.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise error(f"{path}: {field} = {shown(first['input'])}: {first['msg']}") from problem


def _read_weights(path: Path, sha256: str | None, error: type[DERError]) -> Tensors:
    try:
        if sha256 not in (None, _hash(path)):  # older folders have none
            raise error(f"{path}: not the weights that config.json describes")
        tensors = load_file(path)
    except (OSError, SafetensorError) as problem:
        raise error(f"{path}: cannot be read ({problem})") from problem
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise error(f"{path}: {name} holds values that are no numbers")
    return tensors


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
