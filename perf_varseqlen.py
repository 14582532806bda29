#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Measure an engine on sequences of mixed lengths; -h lists the options."""

from helpers.cli import run_script

if __name__ == "__main__":
    run_script("perf_varseqlen", "helpers.bench")
