"""A trained agent behind an OpenAI-compatible server (scripts/serve.py, docs/serving.md)."""

GRACE_S = 7.0  # that open requests have after SIGTERM, unless told otherwise
