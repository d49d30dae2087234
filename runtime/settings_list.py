"""Every setting with its type, its default and its meaning, from the descriptions in config.py.

`--help` and docs/settings.md are written from this list.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from config import Config, SourceConfig
from settings.experts import (
    DecodingConfig,
    EndpointExpertConfig,
    ExpertConfig,
    HFExpertConfig,
    ImportedExpertConfig,
    PromptedExpertConfig,
    RayExpertConfig,
    RecordedExpertConfig,
)
from settings.section import Section

RUN = "The run"
EXPERT_GROUPS = (
    ("of every kind", ExpertConfig, Section),
    ("of kinds that read a prompt: all but recorded", PromptedExpertConfig, ExpertConfig),
    ("of kind hf, and of kind ray", HFExpertConfig, PromptedExpertConfig),
    ("of kind ray", RayExpertConfig, HFExpertConfig),
    ("of kind endpoint", EndpointExpertConfig, PromptedExpertConfig),
    ("of kind recorded", RecordedExpertConfig, ExpertConfig),
    ("of a class of your own", ImportedExpertConfig, PromptedExpertConfig),
)
BOUNDS = (
    ("minimum", "at least"),
    ("exclusiveMinimum", "above"),
    ("maximum", "at most"),
    ("exclusiveMaximum", "below"),
)
TYPES = {
    "string": "text",
    "integer": "integer",
    "number": "number",
    "boolean": "true or false",
    "object": "mapping",
    "null": "none",
}
PLURALS = {"text": "texts", "integer": "integers", "number": "numbers"}
WIDTH = 100  # columns of --help


@dataclass(frozen=True)
class Setting:
    """One setting, in words; `default` is None where a value must be given."""

    name: str
    type: str
    default: str | None
    meaning: str


@dataclass(frozen=True)
class Group:
    """Settings that belong together; those of a list's entries have no option of their own."""

    title: str
    settings: list[Setting]
    has_options: bool = True


def all_settings() -> Iterator[Group]:
    """Every setting, section by section in the order of config.py."""
    sections = {}
    for name, field in Config.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, Section):
            sections[name] = annotation
    yield _group(RUN, Config, "", skipped=set(sections))
    for name, section in sections.items():
        yield _group(f"`{name}`", section, f"{name}.")
        if name == "data":
            title = "`data.train`, `data.validation`, `data.test`"
            yield _group(title, SourceConfig, "data.SPLIT.")
        if name == "pool":
            yield from _expert_groups()


def _expert_groups() -> Iterator[Group]:
    for title, kind, base in EXPERT_GROUPS:
        inherited = set(base.model_fields)
        if "kind" in kind.__annotations__:
            inherited.discard("kind")
        title = f"An expert of `pool.experts`: {title}"
        yield _group(title, kind, "", skipped=inherited, has_options=False)
    yield _group("`decoding` of an expert", DecodingConfig, "", has_options=False)


def _group(
    title: str,
    section: type[Section],
    prefix: str,
    *,
    skipped: set[str] | None = None,
    has_options: bool = True,
) -> Group:
    """The fields of a section that are not skipped."""
    settings = []
    schema = section.model_json_schema()
    required = schema.get("required", [])
    for name, field in schema["properties"].items():
        if name not in (skipped or ()):
            default = None if name in required else _default(field.get("default"))
            meaning = field.get("description", "")
            settings.append(Setting(prefix + name, _type(field), default, meaning))
    return Group(title, settings, has_options)


def _type(field: Mapping[str, Any]) -> str:
    """The type of a JSON schema in words, with its bounds."""
    if "anyOf" in field:
        return " or ".join(map(_type, field["anyOf"]))
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    if "$ref" in field:
        return "section, see below"
    if field.get("type") == "array":
        return _list_type(field)
    words = [TYPES.get(field.get("type", ""), "see below")]
    for key, phrase in BOUNDS:
        if key in field:
            words.append(f"{phrase} {field[key]:g}")
    return ", ".join(words)


def _list_type(field: Mapping[str, Any]) -> str:
    if "prefixItems" in field:
        return f"list of {len(field['prefixItems'])} numbers"
    items = field["items"]
    if "discriminator" in items or "oneOf" in items:
        return "list of experts, see below"
    words, comma, bounds = _type(items).partition(",")
    return f"list of {PLURALS.get(words, words)}{comma}{bounds}"


def _default(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, dict):
        return f"`{value['path']}`" if "path" in value else "see below"
    if isinstance(value, str):
        return f"`{value}`"
    return f"`{json.dumps(value)}`"


def settings_help() -> str:
    """Every setting as a command's --help shows it."""
    lines = [
        "settings (in a YAML file, or as options: --reward.alpha 0.05; docs/settings.md has them",
        "as tables):",
    ]
    for group in all_settings():
        lines += ["", f"{group.title}:"]
        for setting in group.settings:
            dashes = "--" if group.has_options else ""
            default = "required" if setting.default is None else f"default {setting.default}"
            lines.append(f"  {dashes}{setting.name}")
            text = f"{setting.meaning} ({setting.type}; {default})"
            lines.append(
                textwrap.fill(text, WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
            )
    return "\n".join(lines).replace("`", "")
