"""Units of cost by name: `million parameters`, `0.001 USD`.

A cost is measured in raw units (reward.py:Cost): billions of parameters, 1e12 FLOPs, thousands of
tokens, seconds, USD. A unit says how many raw ones it has.
"""

from __future__ import annotations

import functools
import math
from typing import Literal

CostKind = Literal["params", "flops", "tokens", "latency", "usd"]

# Name -> what it counts, and raw units in one
UNITS: dict[str, tuple[CostKind, float]] = {
    "million parameters": ("params", 0.001),
    "billion parameters": ("params", 1.0),
    "trillion parameters": ("params", 1000.0),
    "TFLOP": ("flops", 1.0),
    "PFLOP": ("flops", 1000.0),
    "tokens": ("tokens", 0.001),
    "thousand tokens": ("tokens", 1.0),
    "million tokens": ("tokens", 1000.0),
    "milliseconds": ("latency", 0.001),
    "seconds": ("latency", 1.0),
    "US cent": ("usd", 0.01),
    "USD": ("usd", 1.0),
}
RAW_UNITS: dict[CostKind, str] = {
    "params": "billion parameters",
    "flops": "TFLOP",
    "tokens": "thousand tokens",
    "latency": "seconds",
    "usd": "USD",
}


@functools.cache
def parse_unit(text: str) -> tuple[CostKind, float]:
    """What a unit counts, and how many of it a raw unit has.

    A number before the name makes a larger unit: 34.4 billion parameters. Raises ValueError.
    """
    first, _, rest = text.strip().partition(" ")
    name, number = text.strip(), 1.0
    if name not in UNITS:
        name = rest
        try:
            number = float(first)
        except ValueError:
            number = math.nan
    if name not in UNITS or not (number > 0 and math.isfinite(number)):
        raise ValueError(
            f"expected a unit, or a number and a unit (0.5 USD); units: {', '.join(UNITS)}"
        )
    kind, raw_units = UNITS[name]
    return kind, 1 / (number * raw_units)


def known_unit(text: str) -> str:
    """The same text. Raises ValueError where it names no unit."""
    parse_unit(text)
    return text


def unit_of(kind: CostKind, scale: float) -> str:
    """The name of the unit of which a raw unit has `scale`; as plain a name as there is."""
    for name, (other, raw_units) in UNITS.items():
        if other == kind and math.isclose(scale * raw_units, 1.0, rel_tol=1e-12):
            return name
    return f"{1 / scale:.12g} {RAW_UNITS[kind]}"


def in_units(unit: str) -> str:
    """What C counts, in words: `in million parameters`, `in units of 0.001 USD`."""
    return f"in {unit}" if unit in UNITS else f"in units of {unit}"
