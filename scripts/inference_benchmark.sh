#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds and measures demo/BERT's matrix of models, precisions, sequence lengths and batch sizes; -h lists the options.
set -euo pipefail

python=${PYTHON:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/.venv/bin/python}
[ -x "$python" ] || python=$(command -v "${PYTHON:-python3}") || {
  echo "inference_benchmark.sh: Python is not installed; run scripts/quickstart.sh, or name an interpreter with PYTHON=..." >&2
  exit 3
}
exec "$python" "$(dirname "${BASH_SOURCE[0]}")/inference_benchmark.py" "$@"
