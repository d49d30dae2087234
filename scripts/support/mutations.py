"""Damage to files, drawn from a random stream: bytes, JSON values, YAML texts, folders."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

DEEP = "[" * 150 + "]" * 150
ODD_TEXTS = (
    "",
    " ",
    "\u2028",
    "\ufeff",
    "é" * 300,
    "../../x",
    "/etc/passwd",
    "a/b",
    "os:abort",
    "builtins:exit",
    ":x",
    "x:",
    "evaluate:x",
    "bertscore:x",
    "recorded",
    "no_such_metric",
    "NaN",
    "1e400",
    "{prompt}",
    "!!int x",
    "cuda:99",
)
ODD_NUMBERS = (0, 1, -1, 2**31, 2**32, 2**63, 2**64, 10**30, 1e308, -1e308, 1e-320, 0.5, -0.0)
ODD_VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    [],
    {},
    [[]],
    [None],
    {"": None},
    {"a": {"a": {"a": 1}}},
)
ODD_BYTES = (
    b"\x00",
    b"\xff\xfe",
    b"\n",
    b"\r",
    b'"',
    b"{",
    b"]",
    b"NaN",
    b"-Infinity",
    b"null",
    b"1e400",
    b"9" * 5000,
    b"[" * 2000,
    b"\\ud800",
    b"\\u0000",
    b"!!python/name:os.abort",
    b"!!int x",
    b"2026-02-30",
    b"&a [*a]",
    b"? [a]",
    b"<<: x",
)


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """One to three changes: bytes flipped, cut out, put in, repeated, or the end cut off."""
    for _ in range(rng.randint(1, 3)):
        start = rng.randrange(len(data) + 1)
        end = min(len(data), start + rng.choice((1, 1, 2, 8, 64, 1024)))
        match rng.randrange(6):
            case 0:
                data = data[:start] + rng.randbytes(end - start) + data[end:]
            case 1:
                data = data[:start] + data[end:]
            case 2:
                data = data[:start] + rng.choice(ODD_BYTES) + data[start:]
            case 3:
                data = data[:end] + data[start:end] + data[end:]
            case 4:
                data = data[:start]
            case 5:
                data = data[:start] + bytes(end - start) + data[end:]
    return data


def odd_value(rng: random.Random) -> Any:
    """A JSON value that is rarely meant."""
    values = rng.choice((ODD_TEXTS, ODD_NUMBERS, ODD_VALUES))
    return rng.choice(values)


def mutate_value(value: Any, rng: random.Random) -> Any:
    """A copy of a JSON value in which one part is another, is gone, or is there twice."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.15:
        return odd_value(rng)
    key = rng.choice(list(value) if isinstance(value, dict) else range(len(value)))
    copy = value.copy()
    match rng.randrange(8):
        case 0:
            del copy[key]
        case 1 if isinstance(copy, dict):
            copy[rng.choice(ODD_TEXTS)] = copy.pop(key)
        case 1 if isinstance(copy, list):
            copy.insert(key, copy[key])
        case _:
            copy[key] = mutate_value(copy[key], rng)
    return copy


def mutate_jsonl(data: bytes, rng: random.Random) -> bytes:
    """Change a value of a line, repeat or drop lines, or change bytes."""
    lines = data.splitlines(keepends=True)
    number = rng.randrange(len(lines))
    match rng.randrange(6):
        case 0:
            return mutate_bytes(data, rng)
        case 1:
            lines.insert(rng.randrange(len(lines)), lines[number])
        case 2:
            del lines[number]
        case _:
            changed = mutate_value(json.loads(lines[number]), rng)
            lines[number] = json.dumps(changed).encode() + b"\n"
    return b"".join(lines)


def mutate_json(data: bytes, rng: random.Random) -> bytes:
    """Change a value of a JSON file, or bytes."""
    if rng.random() < 0.3:
        return mutate_bytes(data, rng)
    return json.dumps(mutate_value(json.loads(data), rng)).encode()


def mutate_yaml(data: bytes, rng: random.Random) -> bytes:
    """Change a value of a YAML file, or bytes."""
    if rng.random() < 0.3:
        return mutate_bytes(data, rng)
    value = yaml.safe_load(data)
    for _ in range(rng.randint(1, 2)):
        value = mutate_value(value, rng)
    return yaml.safe_dump(value, allow_unicode=True).encode()


MUTATORS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    ".jsonl": mutate_jsonl,
    ".json": mutate_json,
    ".yaml": mutate_yaml,
}


def mutate_file(path: Path, rng: random.Random) -> str:
    """Damage a file in place; says how."""
    match rng.randrange(20):
        case 0:
            path.unlink()
            return "removed"
        case 1:
            path.write_bytes(b"")
            return "emptied"
        case 2:
            path.unlink()
            path.mkdir()
            return "a folder now"
    path.write_bytes(MUTATORS.get(path.suffix, mutate_bytes)(path.read_bytes(), rng))
    return "changed"
