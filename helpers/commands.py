# SPDX-License-Identifier: Apache-2.0
"""The scripts as console commands of an installed package: `demobert-builder` is builder.py, and so on."""

from __future__ import annotations

import importlib
import sys
from typing import NoReturn

from helpers.cli import status_of
from helpers.options import parser


def run(command: str, module: str) -> NoReturn:
    """Run `main(command, arguments)` of a helpers module as a console command and end the process with its status."""
    options = parser(command)
    options.prog = "demobert-" + command.replace("_", "-")
    sys.exit(status_of(lambda: importlib.import_module(module).main(command, options.parse_args())))


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
