"""Settings of older versions: run folders and YAML files that hold them still load.

A setting that became a constant is left out where its value is that constant; another value is
refused. reward.cost and reward.cost_scale became reward.cost_unit.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any

from settings.units import RAW_UNITS, unit_of

# Dotted name -> the value that it now always has
CONSTANTS: dict[str, float] = {
    "ppo.vf_coef": 0.5,
    "ppo.max_grad_norm": 0.5,
    "terminator.lr": 2e-3,
    "terminator.weight_decay": 1e-2,
}
COST = ("reward.cost", "reward.cost_scale")


def current(data: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as this version writes it.

    Raises ValueError saying what to do, where an older setting has no counterpart.
    """
    out = copy.deepcopy(dict(data))
    for name, constant in CONSTANTS.items():
        section, _, leaf = name.partition(".")
        values = out.get(section)
        if not isinstance(values, dict) or leaf not in values:
            continue
        if values[leaf] != constant:
            raise ValueError(f"{name} = {values[leaf]}: {hint(name)}. Remove the line")
        del values[leaf]
    reward = out.get("reward")
    if isinstance(reward, dict) and ("cost" in reward or "cost_scale" in reward):
        _name_the_unit(reward)
    return out


def _name_the_unit(reward: dict[str, Any]) -> None:
    """Replace `cost` and `cost_scale` by the unit they mean, in place."""
    if "cost_unit" in reward:
        raise ValueError(f"{hint(COST[0])}; give cost_unit alone")
    kind = reward.pop("cost", "params")
    scale = reward.pop("cost_scale", 1.0)
    if kind not in RAW_UNITS or not isinstance(scale, int | float) or not scale > 0:
        raise ValueError(f"reward.cost = {kind}, reward.cost_scale = {scale}: {hint(COST[0])}")
    reward["cost_unit"] = unit_of(kind, scale)


def current_results(text: str) -> str:
    """The text of a results.json; an older one has a scale beside a kind of cost, for a unit."""
    try:
        results = json.loads(text)
    except (ValueError, RecursionError):  # who reads it says what is wrong
        return text
    if not isinstance(results, dict) or results.get("cost_unit") not in list(RAW_UNITS):
        return text
    scale = results.pop("cost_scale", 1.0)
    if not isinstance(scale, int | float) or not scale > 0:
        return text
    results["cost_unit"] = unit_of(results["cost_unit"], scale)
    return json.dumps(results)


def hint(name: str) -> str | None:
    """What to write instead of a setting of an older version; None for another name."""
    if name in CONSTANTS:
        return f"this is no setting any more, it is always {CONSTANTS[name]:g}"
    if name in COST:
        return "reward.cost_unit names what C counts, for example 'million parameters'"
    return None
