"""How and where the weights of a local model are held: precision, quantisation, devices."""

from __future__ import annotations

import importlib.util
import logging
from typing import Any

import torch
from transformers import BitsAndBytesConfig

from config import HFExpertConfig
from runtime.errors import ConfigError
from runtime.machine import pick_device

# Quantised: embeddings and norms stay in 16 bits and 4-bit blocks carry scales; 8 billion
# parameters of Llama 3 come to 1.13 and 0.75.
BYTES_PER_PARAMETER = {
    "float32": 4,
    "bfloat16": 2,
    "float16": 2,
    "auto": 2,
    "8bit": 1.15,
    "4bit": 0.75,
}


def weights_gb(config: HFExpertConfig) -> float:
    """Estimated memory of the loaded weights, in GB."""
    return config.params_b * BYTES_PER_PARAMETER[config.quantization or config.dtype]


def check_placement(config: HFExpertConfig) -> None:
    """Raises ConfigError, before anything is read, where a package or device that the settings need
    is missing.
    """
    if config.quantization and importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            f"expert {config.name}: quantization {config.quantization} needs the package"
            " bitsandbytes: pip install -r requirements-optional.txt"
        )
    if config.device_map and config.device_map.startswith(("cuda", "mps")):
        pick_device(config.device_map)


def loading_options(config: HFExpertConfig, device: torch.device) -> dict[str, Any]:
    """Arguments of `from_pretrained`."""
    dtype = config.dtype if config.dtype == "auto" else getattr(torch, config.dtype)
    options = {"dtype": dtype, "device_map": config.device_map, "max_memory": config.max_memory}
    if config.quantization is None:
        return options
    # Quantised weights cannot be moved afterwards
    options["device_map"] = config.device_map or {"": device}
    if config.quantization == "8bit":
        # It warns at every matrix product of another type than float16
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        return options | {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    compute_dtype = torch.bfloat16 if dtype == "auto" else dtype
    return options | {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute_dtype
        )
    }


def weight_problems(
    model: Any, report: dict[str, Any], *, is_quantized: bool
) -> dict[str, list[str]]:
    """Names of weights by what is wrong with them.

    `report` is transformers' loading report. It fills what is missing with random numbers and only
    warns.
    """
    problems = {
        "missing": sorted(report["missing_keys"]),
        "of another shape": sorted(str(key) for key in report["mismatched_keys"]),
    }
    if not is_quantized:
        not_numbers = []
        for name, weight in model.named_parameters():
            if weight.device.type != "meta" and not torch.isfinite(weight).all():
                not_numbers.append(name)
        problems["not a number"] = not_numbers
    return problems
