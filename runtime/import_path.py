"""Objects of a user's own, named by import path: `package.module:name`.

Only the configuration may name one: importing runs its code.
"""

from __future__ import annotations

import importlib
from typing import Any

from runtime.errors import ConfigError


def import_object(path: str, setting: str) -> Any:
    """What `package.module:name` names. `setting` is where the path was given.

    Raises ConfigError where there is no such module or name, or the module cannot be imported.
    """
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever the code of others raises
        raise ConfigError(
            f"{setting}: {path} cannot be imported ({type(error).__name__}: {error}). Expected"
            " package.module:name, in the root of the repository or on PYTHONPATH"
        ) from error
