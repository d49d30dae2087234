"""Outcome and candidate models as named arrays, as agents and checkpoints keep them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from belief.outcome_model import ExpertRegression, OutcomeModel
from belief.regression import Logistic, Standardiser
from belief.state import CandidateModel


def pack_model(
    model: OutcomeModel, candidates: CandidateModel, prefix: str = ""
) -> dict[str, Tensor]:
    """The numbers of an outcome model and a candidate model, by names that begin with `prefix`."""
    packed = {}
    for name, regression in (("prior", model.prior), ("reader", model.reader)):
        packed[f"{name}.mean"] = regression.inputs.mean
        packed[f"{name}.scale"] = regression.inputs.scale
        packed[f"{name}.embedding_mean"] = regression.embedding.mean
        packed[f"{name}.embedding_scale"] = regression.embedding.scale
        packed[f"{name}.weights"] = regression.logistic.weights
        packed[f"{name}.bias"] = np.array([regression.logistic.bias])
    packed["candidates.mean"] = candidates.inputs.mean
    packed["candidates.scale"] = candidates.inputs.scale
    packed["candidates.weights"] = candidates.logistic.weights
    packed["candidates.bias"] = np.array([candidates.logistic.bias])
    return {prefix + name: torch.as_tensor(array) for name, array in packed.items()}


def arrays_under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """The tensors whose names begin so, as arrays by the rest of their names."""
    arrays = {}
    for name, tensor in tensors.items():
        if name.startswith(prefix):
            arrays[name.removeprefix(prefix)] = tensor.numpy()
    return arrays


def unpack_model(
    packed: dict[str, np.ndarray], num_experts: int, num_tasks: int
) -> tuple[OutcomeModel, CandidateModel]:
    """The models of `pack_model`."""
    parts = []
    for name in ("prior", "reader"):
        regression = ExpertRegression(
            num_experts,
            num_tasks,
            Standardiser(packed[f"{name}.mean"], packed[f"{name}.scale"]),
            Standardiser(packed[f"{name}.embedding_mean"], packed[f"{name}.embedding_scale"]),
        )
        bias = float(packed[f"{name}.bias"][0])
        regression.logistic = Logistic(packed[f"{name}.weights"], bias)
        parts.append(regression)
    inputs = Standardiser(packed["candidates.mean"], packed["candidates.scale"])
    logistic = Logistic(packed["candidates.weights"], float(packed["candidates.bias"][0]))
    return OutcomeModel(*parts), CandidateModel(inputs, logistic)
