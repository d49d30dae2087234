"""From a YAML file and command-line options to a checked Config, and errors in words a user can act
on.

    config = load_config(Path("configs/quickstart.yaml"), ["--reward.alpha", "0.05"])

Precedence: defaults < YAML file < command line.
"""

from __future__ import annotations

import argparse
import difflib
import shlex
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from config import SPLITS, Config, Section, defaults_beside
from runtime.errors import ConfigError, DERError
from runtime.files import shown
from runtime.settings_list import settings_help
from runtime.signals import INTERRUPTED, TERMINATED, WORDS, Terminated, end, watch_signals
from runtime.yaml_reader import parse_yaml
from settings import former
from settings.experts import expert_section


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping. Raises ConfigError when the file is missing, malformed or not a mapping."""
    if not path.is_file():
        raise ConfigError(f"{path}: no such configuration file")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    data = parse_yaml(text, str(path))
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected keys and values, found {type(data).__name__}")
    return data


def parse(
    parser: argparse.ArgumentParser, arguments: Sequence[str]
) -> tuple[argparse.Namespace, list[str]]:
    """A script's own options, and what is left for `overrides_from`. --help lists both.

    Raises ConfigError for what looks like a misspelt option of its own.
    """
    if "--help" in arguments or "-h" in arguments:
        parser.epilog = settings_help()
    options, rest = parser.parse_known_args(arguments)
    names = [name.replace("-", "_") for name in parser._option_string_actions]
    for argument in rest:
        if not argument.startswith("--"):
            continue
        flag = argument.partition("=")[0]
        near = difflib.get_close_matches(flag.replace("-", "_"), names, n=1, cutoff=0.8)
        if near and flag.lstrip("-").partition(".")[0] not in Config.model_fields:
            raise ConfigError(f"{flag}: no such option; did you mean --{near[0].lstrip('_')}?")
    return options, rest


def count(text: str) -> int:
    """An option that counts something, 1 at least; for `type` of argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number


def overrides_from(arguments: list[str]) -> dict[str, Any]:
    """`--reward.alpha 0.1 --seed=3` as a nested mapping; values are read as YAML.

    Raises ConfigError for anything else.
    """
    out: dict[str, Any] = {}
    rest = list(arguments)
    while rest:
        flag = rest.pop(0)
        if not flag.startswith("--"):
            raise _unexpected(flag)
        key, has_value, value = flag[2:].partition("=")
        if not has_value:
            if not rest or rest[0].startswith("--"):
                raise ConfigError(f"--{key} needs a value: --{key} VALUE")
            value = rest.pop(0)
        target = out
        *parents, leaf = key.split(".")
        _check_no_element(key, parents)
        for parent in parents:
            target = target.setdefault(parent, {})
            if not isinstance(target, dict):
                raise ConfigError(f"--{key}: {parent} was given a value of its own before")
        given = parse_yaml(value, f"--{key} {value}") if value else ""
        target.update(merge(target, {leaf: given}))
    return out


def _unexpected(argument: str) -> ConfigError:
    hint = "options look like --reward.alpha 0.1"
    if argument.endswith((".yaml", ".yml")):
        hint = f"a configuration is given as --config {argument}"
    return ConfigError(f"unexpected argument {argument!r}: {hint}")


def _check_no_element(key: str, parents: Sequence[str]) -> None:
    """Raises ConfigError for a key that goes into a list, as `pool.experts.0.name`."""
    for place, part in enumerate(parents):
        if part.isdigit():
            if place == 0:
                return
            name = ".".join(parents[:place])
            raise ConfigError(
                f"--{key}: one element of a list cannot be set; give the whole list, as in YAML:"
                f" --{name} '[...]'"
            )


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` on top of `base`, mappings merged key by key, everything else replaced."""
    out = dict(base)
    for key, value in over.items():
        out[key] = (
            merge(out[key], value)
            if isinstance(value, dict) and isinstance(out.get(key), dict)
            else value
        )
    return out


def _section(location: Sequence[int | str]) -> type[Section]:
    """The section at `location`."""
    section: Any = Config
    for place, part in enumerate(location):
        if isinstance(part, int):
            continue
        if place and isinstance(location[place - 1], int):  # the kind of an expert in a list
            section = expert_section(part)
            continue
        annotation = section.model_fields[part].annotation
        arguments = getattr(annotation, "__args__", ())
        section = next(
            (a for a in (annotation, *arguments) if isinstance(a, type) and issubclass(a, Section)),
            section,
        )
    return section


def _settings(section: type[Section] = Config, prefix: str = "") -> Iterator[str]:
    """Dotted names of all settings outside lists."""
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from _settings(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name


def _hint(location: Sequence[int | str]) -> str:
    """What may have been meant by an unknown key: a near one of its section, else one of that name
    elsewhere, else the section's keys.
    """
    if instead := former.hint(".".join(map(str, location))):
        return instead
    key, known = str(location[-1]), list(_section(location[:-1]).model_fields)
    if near := difflib.get_close_matches(key, known, n=1):
        return f"did you mean {near[0]!r}?"
    elsewhere = [name for name in _settings() if name.rpartition(".")[2] == key]
    return (
        f"did you mean {' or '.join(map(repr, elsewhere))}?"
        if 0 < len(elsewhere) <= 3
        else f"known here: {', '.join(known)}"
    )


def _field(location: Sequence[int | str]) -> str:
    """`pool.experts.0.source` as a user wrote it, without the expert's kind that pydantic puts
    after its number.
    """
    return (
        ".".join(
            str(part)
            for place, part in enumerate(location)
            if not (place and isinstance(location[place - 1], int))
        )
        or "configuration"
    )


def _is_in(given: Any, location: Sequence[int | str]) -> bool:
    """Whether a nested mapping holds `location`, or a value of its own above it."""
    for part in location:
        if not isinstance(given, dict):
            return True
        if part not in given:
            return False
        given = given[part]
    return True


def _explain(error: ValidationError, origin: str, options: dict[str, Any]) -> str:
    """One line for each problem.

    A field that `options` set is shown as it was written on the command line.
    """
    lines = []
    for problem in error.errors():
        location = problem["loc"]
        dashes = "--" if _is_in(options, location) else ""
        lines.append(f"  {_explain_one(problem, dashes + _field(location))}")
    return "\n".join([f"{origin}: {len(lines)} problem(s)", *lines])


def _explain_one(problem: ErrorDetails, field: str) -> str:
    location, value = problem["loc"], problem["input"]
    message = problem["msg"].removeprefix("Value error, ")
    match problem["type"]:
        case "extra_forbidden":
            return f"{field}: unknown key; {_hint(location)}"
        case "missing":
            return f"{field}: missing"
        case "model_type":
            names = [f"{field}.{name}" for name in _section(location).model_fields]
            return f"{field} = {shown(value)}: a section of settings; set {', '.join(names)}"
        case "value_error" if isinstance(value, dict):  # settings that do not fit together
            name = value.get("name")
            return f"{field}{f' ({name})' if name else ''}: {message}"
        case _:
            return f"{field} = {shown(value)}: {message}"


def validate(
    data: dict[str, Any], origin: str = "configuration", options: dict[str, Any] | None = None
) -> Config:
    """A checked Config; `options` are the part of `data` that came from the command line.

    Raises ConfigError listing every problem.
    """
    try:
        return Config.model_validate(current(data, origin))
    except ValidationError as error:
        raise ConfigError(_explain(error, origin, options or {})) from error


def current(data: dict[str, Any], origin: str) -> dict[str, Any]:
    """A configuration that may hold settings of an older version, as this one writes it.

    Raises ConfigError where an older setting has no counterpart.
    """
    try:
        return former.current(data)
    except ValueError as error:
        raise ConfigError(f"{origin}: {error}") from error


def load_config(path: Path, overrides: list[str] | None = None) -> Config:
    """Read a YAML file, put command-line overrides on top, check the result. Raises ConfigError."""
    options = overrides_from(overrides or [])
    given = merge(current(read_yaml(path), str(path)), options)
    origin = f"{path} and the command line" if options else str(path)
    config = validate(merge(defaults_beside(given), given), origin, options)
    named = []
    missing = []
    for split in SPLITS:
        if _is_in(given, ("data", split, "path")):
            named.append(split)
        else:
            missing.append(f"data.{split}.path")
    if missing and named not in ([], ["test"]):
        raise ConfigError(
            f"{origin}: {', '.join(missing)}: missing; beside data.{named[0]}.path, the embedded"
            " test bed's questions would stand in for it"
        )
    return config


def dump_config(config: Config) -> str:
    """The resolved configuration as YAML that `load_config` reads back to an equal one."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def run_command(main: Callable[[list[str]], Any]) -> None:
    """Run a script's main on the command line and end the process as its user should see it.

    An error that a user can correct is one line. A defect of ours is one line, too, and a traceback
    in a file that the line names.
    """
    watch_signals()
    try:
        main(sys.argv[1:])
    except DERError as error:
        end(1, f"error: {error}")
    except OSError as error:
        if error.filename is None:
            end(1, f"error: {error.strerror or error}")
        end(1, f"error: {error.filename}: {error.strerror}")
    except MemoryError as error:
        end(1, f"error: not enough memory ({error}); smaller sizes or batches need less")
    except KeyboardInterrupt:
        end(INTERRUPTED, WORDS[INTERRUPTED])
    except Terminated as error:
        end(TERMINATED, str(error))
    except Exception as error:
        end(1, _defect(error))


def _defect(error: Exception) -> str:
    """What to say of an error that should not have come about."""
    with tempfile.NamedTemporaryFile(
        "w", prefix="der-error-", suffix=".txt", delete=False, errors="backslashreplace"
    ) as file:
        file.write(f"{shlex.join(sys.argv)}\n{traceback.format_exc()}")
    first_line = str(error).partition("\n")[0][:200]
    return (
        f"error: a defect of DER, not of yours ({type(error).__name__}: {first_line}); please"
        f" report it with {file.name}"
    )
