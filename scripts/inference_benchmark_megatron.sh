#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds and measures the Megatron part of the benchmark: dense and sparse INT8 weights, packed sequences; -h lists the options.
set -euo pipefail

python=${PYTHON:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/.venv/bin/python}
[ -x "$python" ] || python=$(command -v "${PYTHON:-python3}") || {
  echo "inference_benchmark_megatron.sh: Python is not installed; run scripts/quickstart.sh, or name an interpreter with PYTHON=..." >&2
  exit 3
}
exec "$python" "$(dirname "${BASH_SOURCE[0]}")/inference_benchmark.py" --megatron "$@"
