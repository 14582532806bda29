#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Sets up .venv with what tests need, then runs the linter, the type checker and all tests. Arguments go to pytest.
# PYTHON names another interpreter than python3.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case ${1:-} in -h | --help) sed -n '3,4s/^# //p' scripts/test.sh; exit 0 ;; esac

. scripts/environment.sh
install dev
if command -v nvcc >/dev/null; then # then infer_c is compiled and tested as far as that goes without a GPU
    install cuda
fi

.venv/bin/python -m ruff check --quiet .
.venv/bin/python -m ruff format --check --quiet .
.venv/bin/python -m mypy
.venv/bin/python -m pytest "$@"
