#!/usr/bin/env bash
# The set-up of the quick start with optional and development packages, then linter, types and tests.
# Usage: bash scripts/test.sh [--fast] [pytest arguments]        --fast leaves the slow tests out
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
install installed-dev requirements-optional.txt requirements-dev.txt
python scripts/get_small_llms.py minilm smollm2
selected=()
if [ "${1:-}" = --fast ]; then
    selected=(-m "not slow")
    shift
fi
ruff check .
ruff format --check .
mypy
python -m pytest --durations=10 "${selected[@]}" "$@"
if [ ${#selected[@]} -eq 0 ] && [ $# -eq 0 ]; then
    python scripts/fuzz.py  # damaged files of every kind: read or refused in words
fi
