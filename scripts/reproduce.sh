#!/usr/bin/env bash
# A table of the paper beside what this project measures. Usage: bash scripts/reproduce.sh TABLE [--reuse runs/s0 ...] [--key value ...]
# TABLE: table1, ablations, gsm8k, multidomain, embedded, small_llms; see scripts/reproduce.py.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
python scripts/get_small_llms.py minilm
python scripts/reproduce.py "$@"
