"""From a YAML file and command-line options to a checked Config, and errors in words a user can act on.

    config = load_config(Path("configs/quickstart.yaml"), ["--reward.alpha", "0.05"])

Precedence: defaults < YAML file < command line.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from config import EXPERT_KINDS, Config, ConfigError, DERError, Section


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping. Raises ConfigError when the file is missing, malformed or not a mapping."""
    if not path.is_file():
        raise ConfigError(f"{path}: no such configuration file")
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected keys and values, found {type(data).__name__}")
    return data


def overrides_from(arguments: list[str]) -> dict[str, Any]:
    """`--reward.alpha 0.1 --seed=3` as a nested mapping; values are read as YAML. Raises ConfigError for anything else."""
    out: dict[str, Any] = {}
    rest = list(arguments)
    while rest:
        flag = rest.pop(0)
        if not flag.startswith("--"):
            raise ConfigError(f"unexpected argument {flag!r}: options look like --reward.alpha 0.1")
        key, has_value, value = flag[2:].partition("=")
        if not has_value:
            if not rest or rest[0].startswith("--"):
                raise ConfigError(f"--{key} needs a value: --{key} VALUE")
            value = rest.pop(0)
        target = out
        *parents, leaf = key.split(".")
        for parent in parents:
            target = target.setdefault(parent, {})
            if not isinstance(target, dict):
                raise ConfigError(f"--{key}: {parent} was given a value of its own before")
        try:
            target[leaf] = yaml.safe_load(value) if value else ""
        except yaml.YAMLError as error:
            raise ConfigError(f"--{key} {value}: not a YAML value ({error})") from error
    return out


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` on top of `base`, mappings merged key by key, everything else replaced."""
    out = dict(base)
    for key, value in over.items():
        out[key] = merge(out[key], value) if isinstance(value, dict) and isinstance(out.get(key), dict) else value
    return out


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    """Field names of the section that the last part of `location` was looked up in."""
    section: Any = Config
    for place, part in enumerate(location[:-1]):
        if isinstance(part, int):
            continue
        if place and isinstance(location[place - 1], int):  # the kind of an expert in a list
            section = EXPERT_KINDS[part]
            continue
        annotation = section.model_fields[part].annotation
        arguments = getattr(annotation, "__args__", ())
        section = next((a for a in (annotation, *arguments) if isinstance(a, type) and issubclass(a, Section)), section)
    return list(section.model_fields)


def _field(location: tuple[int | str, ...]) -> str:
    """`pool.experts.0.source` as a user wrote it, without the expert's kind that pydantic puts after its number."""
    return ".".join(str(part) for place, part in enumerate(location) if not (place and isinstance(location[place - 1], int))) or "configuration"


def _explain(error: ValidationError, origin: str) -> str:
    lines = []
    for problem in error.errors():
        field = _field(problem["loc"])
        if problem["type"] == "extra_forbidden":
            known = _known_keys(problem["loc"])
            near = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
            lines.append(f"{field}: unknown key; {hint}")
        elif problem["type"] == "missing":
            lines.append(f"{field}: missing")
        else:
            lines.append(f"{field} = {problem['input']!r}: {problem['msg'].removeprefix('Value error, ')}")
    return "\n".join([f"{origin}: {len(lines)} problem(s)", *(f"  {line}" for line in lines)])


def validate(data: dict[str, Any], origin: str = "configuration") -> Config:
    """A checked Config. Raises ConfigError listing every problem."""
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        raise ConfigError(_explain(error, origin)) from error


def load_config(path: Path, overrides: list[str] | None = None) -> Config:
    """Read a YAML file, put command-line overrides on top, check the result. Raises ConfigError."""
    given = merge(read_yaml(path), overrides_from(overrides or []))
    return validate(merge(Config().model_dump(mode="json"), given), str(path))


def dump_config(config: Config) -> str:
    """The resolved configuration as YAML that `load_config` reads back to an equal one."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def run_command(main: Callable[[list[str]], Any]) -> None:
    """Run a script's main on the command line; an error that a user can mend ends it with its message alone."""
    try:
        main(sys.argv[1:])
    except DERError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; what was generated is stored, and --resume continues from the last checkpoint")
