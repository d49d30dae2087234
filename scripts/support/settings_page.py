"""docs/settings.md, written from the field descriptions of config.py."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from config import (
    Config,
    DecodingConfig,
    EndpointExpertConfig,
    ExpertConfig,
    HFExpertConfig,
    PromptedExpertConfig,
    RayExpertConfig,
    RecordedExpertConfig,
    Section,
    SourceConfig,
)

HEAD = """\
# Settings

Every setting with its type, its default and its meaning. This page is written from `config.py` by
`python scripts/build_docs.py`; a test fails when it is out of date.

A YAML file holds only what differs from the defaults. On the command line a setting is written with
dots: `--reward.alpha 0.05`. Precedence: defaults, then the YAML file, then the command line.
An unknown key is an error that names the nearest known one.
`python train_ppo_multi.py --print_config` shows every setting with the value that a run would use.
"""
RUN = "The run"
EXPERT_TABLES = (
    ("of every kind", ExpertConfig, Section),
    ("of kinds that read a prompt: hf, ray, endpoint", PromptedExpertConfig, ExpertConfig),
    ("of kind hf, and of kind ray", HFExpertConfig, PromptedExpertConfig),
    ("of kind ray", RayExpertConfig, HFExpertConfig),
    ("of kind endpoint", EndpointExpertConfig, PromptedExpertConfig),
    ("of kind recorded", RecordedExpertConfig, ExpertConfig),
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


def settings_page() -> str:
    """The whole page as Markdown."""
    parts = [HEAD]
    sections = {}
    for name, field in Config.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, Section):
            sections[name] = annotation
    parts.append(_table(RUN, Config, "", skipped=set(sections)))
    for name, section in sections.items():
        parts.append(_table(f"`{name}`", section, f"{name}."))
        if name == "data":
            parts.append(_table("`data.train`, `data.validation`, `data.test`", SourceConfig, ""))
        if name == "pool":
            parts.extend(_expert_tables())
    return "\n".join(parts)


def _expert_tables() -> Iterator[str]:
    for title, kind, base in EXPERT_TABLES:
        inherited = set(base.model_fields)
        if "kind" in kind.__annotations__:
            inherited.discard("kind")
        yield _table(f"An expert of `pool.experts`: {title}", kind, "", skipped=inherited)
    yield _table("`decoding` of an expert", DecodingConfig, "")


def _table(
    title: str, section: type[Section], prefix: str, *, skipped: set[str] | None = None
) -> str:
    """A heading and a table with a row per field of the section that is not skipped."""
    lines = [f"## {title}", "", "| setting | type | default | meaning |", "|---|---|---|---|"]
    schema = section.model_json_schema()
    required = schema.get("required", [])
    for name, field in schema["properties"].items():
        if name in (skipped or ()):
            continue
        default = "required" if name in required else _default(field.get("default"))
        cells = [f"`{prefix}{name}`", _type(field), default, field.get("description", "")]
        lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return "\n".join([*lines, ""])


def _type(field: Mapping[str, Any]) -> str:
    """The type of a JSON schema in words, with its bounds."""
    if "anyOf" in field:
        return " or ".join(_type(option) for option in field["anyOf"])
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    if "$ref" in field:
        return "section, see below"
    if field.get("type") == "array":
        return _list_type(field)
    words = TYPES.get(field.get("type", ""), "see below")
    bounds = []
    for key, phrase in BOUNDS:
        if key in field:
            bounds.append(f"{phrase} {field[key]:g}")
    return ", ".join([words, *bounds])


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
