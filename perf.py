#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Measure an engine at full sequence length; -h lists the options."""

from helpers.cli import run_script

if __name__ == "__main__":
    run_script("perf", "helpers.bench")
