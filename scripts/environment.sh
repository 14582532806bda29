# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# Sourced by quickstart.sh and test.sh: makes .venv in the repository and installs extras of pyproject.toml into it.

# install EXTRAS STAMP: skips the work when pyproject.toml has not changed since the last time.
install() {
    local extras=$1 python=${PYTHON:-python3} stamp
    command -v "$python" >/dev/null || { echo "error: $python is not installed; apt-get install python3 python3-venv" >&2; exit 3; }
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
        echo "error: $("$python" --version) is too old; install Python 3.10 or later, or name one with PYTHON=python3.11 $0" >&2
        exit 3
    }
    if [ ! -x .venv/bin/python ] || ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
        echo "Setting up .venv ..." >&2
        rm -rf .venv
        "$python" -m venv .venv || { rm -rf .venv; echo "error: no virtual environment could be made; apt-get install python3-venv" >&2; exit 3; }
    fi
    stamp=.venv/.installed-$extras
    if [ ! -e "$stamp" ] || [ pyproject.toml -nt "$stamp" ]; then
        echo "Installing packages ($extras) ..." >&2
        .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[$extras]" || {
            echo "error: the packages could not be installed; check the network connection and run $0 again" >&2
            exit 3
        }
        touch "$stamp"
    fi
}
