"""The version of DER, and those of the libraries it stands on."""

from __future__ import annotations

import importlib.metadata
import platform

VERSION = "0.2.0"  # as in CHANGELOG.md


def library_versions() -> dict[str, str]:
    """Versions that stand beside each stored answer and in a run's environment.json."""
    return {
        "der": VERSION,
        "python": platform.python_version(),
        **{
            name: importlib.metadata.version(name)
            for name in ("torch", "transformers", "tokenizers", "tianshou", "numpy")
        },
    }
