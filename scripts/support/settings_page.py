"""docs/settings.md, written from the field descriptions of config.py and settings/."""

from __future__ import annotations

from runtime.settings_list import Group, all_settings

HEAD = """\
# Settings

Every setting with its type, its default and its meaning. This page is written from `config.py` and
`settings/` by `python scripts/build_docs.py`; a test fails when it is out of date.

A YAML file holds only what differs from the defaults. On the command line a setting is written with
dots: `--reward.alpha 0.05`. Precedence: defaults, then the YAML file, then the command line.
An unknown key is an error that names the nearest known one.
`python train_ppo_multi.py --help` has this list, `--print_config` the values that a run would use.
"""


def settings_page() -> str:
    """The whole page as Markdown."""
    return "\n".join([HEAD, *map(_table, all_settings())])


def _table(group: Group) -> str:
    """A heading and a table with a row for each setting."""
    lines = [f"## {group.title}", "", "| setting | type | default | meaning |", "|---|---|---|---|"]
    for setting in group.settings:
        cells = (f"`{setting.name}`", setting.type, setting.default or "required", setting.meaning)
        lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return "\n".join([*lines, ""])
