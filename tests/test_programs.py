"""The metric that reads a Python program out of an answer."""

from __future__ import annotations

import pytest

from metrics.programs import program_in, same_program
from metrics.registry import get_metric

PLAIN = """Here it is:
```python
def double(x):
    y = 2 * x
    return y
```
It doubles."""


@pytest.mark.parametrize(
    "other",
    [
        "def double(x):\n    y = 2*x  # twice\n    return (y)",  # layout and comments
        "```\ndef double(number: int) -> int:\n    out: int = 2 * number\n    return out\n```",
        'import math\ndef double(x):\n    """Twice x."""\n    y = 2 * x\n    return y\nprint(1)',
        "```python\ndef double(a):\n    b = 2 * a\n    return b\n",  # cut before the fence closes
    ],
)
def test_programs_of_one_logic_are_the_same(other: str) -> None:
    assert same_program(other, PLAIN) == 1.0


@pytest.mark.parametrize(
    "other",
    [
        "def double(x):\n    y = x * 2\n    return y",  # other operands: equal only by arithmetic
        "def double(x):\n    y = 2 * x\n    return x",
        "def twice(x):\n    y = 2 * x\n    return y",  # another function
    ],
)
def test_programs_that_differ_are_not_the_same(other: str) -> None:
    assert same_program(other, PLAIN) == 0.0


@pytest.mark.parametrize(
    "text", ["", "I cannot do this.", "x = 3", "```python\ndef f(:\n```", "(" * 100_000]
)
def test_a_text_without_a_program_is_not_read_and_equals_nothing(text: str) -> None:
    assert program_in(text) is None
    assert same_program(text, text) == 0.0


def test_swapped_variables_are_told_apart() -> None:
    first = "def f(a, b):\n    return a - b"
    assert same_program("def f(b, a):\n    return b - a", first) == 1.0
    assert same_program("def f(b, a):\n    return a - b", first) == 0.0


def test_a_program_is_never_run() -> None:
    assert program_in("def f():\n    pass\nraise SystemExit(3)") == "def f():\n    pass"


def test_the_metric_is_known_by_its_name() -> None:
    assert get_metric("code").compute(predictions=[PLAIN], references=[PLAIN]) == [1.0]
