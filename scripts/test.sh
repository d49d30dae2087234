#!/usr/bin/env bash
# The same set-up as the quick start with the optional packages, then the linter and the tests. Usage: bash scripts/test.sh [pytest arguments]
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
pip install --quiet --disable-pip-version-check -r requirements-optional.txt
python scripts/get_small_llms.py minilm smollm2
ruff check .
ruff format --check .
python -m pytest "$@"
python scripts/fuzz.py  # damaged files of every kind: read or refused in words
