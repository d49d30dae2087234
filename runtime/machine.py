"""The machine a run is on: device, threads and random state."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from runtime.errors import ConfigError


def pick_device(name: str) -> torch.device:
    """`auto` is cuda, then mps, then cpu.

    Raises ConfigError for a device this machine does not have.
    """
    if name == "auto":
        return torch.device(
            "cuda"
            if torch.cuda.is_available()
            else "mps"
            if torch.backends.mps.is_available()
            else "cpu"
        )
    device = torch.device(name)
    if (device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()) or (
        device.type == "mps" and not torch.backends.mps.is_available()
    ):
        raise ConfigError(
            f"device {name}: not available here (CUDA devices: {torch.cuda.device_count()})"
        )
    return device


def set_threads(count: int | None) -> None:
    """Threads of torch and of NumPy's matrix products in this process; None leaves their choice.

    Products as small as those of the plan lose by more threads than are free.
    """
    if count is not None:
        torch.set_num_threads(count)
        threadpool_limits(limits=count, user_api="blas")


def seed_everything(seed: int) -> None:
    """Python, numpy and torch. The environments' question sampler has its own stream."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def random_state() -> dict[str, Any]:
    """The state of the random generators in lists, numbers and tensors."""
    version, numbers, gauss = random.getstate()
    kind, key, *rest = np.random.get_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "python": [version, list(numbers), gauss],
        "numpy": [kind, np.asarray(key).tolist(), *rest],
        "torch": torch.get_rng_state(),
        "cuda": cuda,
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Put the random generators where `random_state` found them."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, key, *rest = state["numpy"]
    np.random.set_state((kind, np.array(key, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
