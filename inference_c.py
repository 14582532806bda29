#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Answer questions through the compiled runner, with a CUDA graph on request; -h lists the options."""

from helpers.cli import run_script

if __name__ == "__main__":
    run_script("inference_c", "helpers.answer")
