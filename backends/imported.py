"""Experts of a user's own class, which the configuration names by import path."""

from __future__ import annotations

from backends.dispatch import Expert
from config import ImportedExpertConfig
from runtime.errors import ConfigError
from runtime.import_path import import_object

# What the pool uses of an expert (dispatch.py:Expert)
MEMBERS = (
    "config", "is_remote", "memory_gb",
    "identity", "decoding", "render", "load", "unload", "answer",
)  # fmt: skip


def imported_expert(config: ImportedExpertConfig) -> Expert:
    """The expert that `kind: package.module:Class` names, made as `Class(config, **options)`.

    Raises ConfigError for a class that is not there, cannot be made so, or lacks a method.
    """
    where = f"expert {config.name}: kind"
    expert_class = import_object(config.kind, where)
    try:
        expert: Expert = expert_class(config, **config.options)
    except Exception as error:  # whatever the code of others raises
        raise ConfigError(
            f"{where} {config.kind} cannot be made with its configuration and the options"
            f" {config.options} ({type(error).__name__}: {error})"
        ) from error
    lacking = [name for name in MEMBERS if not hasattr(expert, name)]
    if lacking:
        raise ConfigError(
            f"{where} {config.kind} lacks {', '.join(lacking)}; docs/extending.md says what an"
            " expert has"
        )
    return expert
