"""A trained agent behind an OpenAI-compatible server (scripts/serve.py, docs/serving.md)."""
