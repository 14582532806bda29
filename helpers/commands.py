# SPDX-License-Identifier: Apache-2.0
"""The scripts as console commands of an installed package: `demobert-builder` is builder.py, and so on."""

from __future__ import annotations

from typing import NoReturn

from helpers.cli import run_script


def run(command: str, module: str) -> NoReturn:
    """Run a script under the name it has when installed."""
    run_script(command, module, "demobert-" + command.replace("_", "-"))


def builder() -> NoReturn:
    run("builder", "helpers.build")


def builder_varseqlen() -> NoReturn:
    run("builder_varseqlen", "helpers.build")


def inference() -> NoReturn:
    run("inference", "helpers.answer")


def inference_varseqlen() -> NoReturn:
    run("inference_varseqlen", "helpers.answer")


def inference_c() -> NoReturn:
    run("inference_c", "helpers.answer")


def perf() -> NoReturn:
    run("perf", "helpers.bench")


def perf_varseqlen() -> NoReturn:
    run("perf_varseqlen", "helpers.bench")
