#!/bin/sh
# An environment of its own for the tool we measure against: its pins must not touch ours.
#   benchmarks/peers/setup.sh [FOLDER]        (default .bench/mergekit-venv; python3 or $PYTHON; pip's own configuration)
# torch is pinned to its CPU build by name, so pip can never choose one that brings gigabytes of CUDA libraries.
set -eu
folder=${1:-.bench/mergekit-venv}
if [ -e "$folder/.ready" ]; then
  echo "$folder is ready"
  exit 0
fi
mkdir -p "$(dirname "$folder")"
test -x "$folder/bin/python" || "${PYTHON:-python3}" -m venv "$folder"
"$folder/bin/python" -m pip install --quiet "torch==2.13.0+cpu" "mergekit==0.1.5"
if "$folder/bin/python" -m pip list 2>/dev/null | grep -qi '^nvidia'; then
  echo "CUDA libraries came along: remove $folder and look at pip's configuration" >&2
  exit 1
fi
HF_HUB_OFFLINE=1 "$folder/bin/mergekit-yaml" --help > /dev/null
touch "$folder/.ready"
echo "$folder is ready"
