# SPDX-License-Identifier: Apache-2.0
"""The Hopper kernels where there is no GPU: compiled by g++ for tests/cuda_emulator, a part of the GPU's tests runs on the CPU.

All of the small ones, with BERT_BUILD=build/emulator in the environment:
python -m pytest -p tests.cuda_engine.small tests/test_cuda_kernels.py tests/test_cuda_products.py
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT
from tests.cuda_engine import built

pytestmark = pytest.mark.slow
SMALL = ("-p", "tests.cuda_engine.small")


@pytest.fixture(scope="module")
def build() -> Path:
    """Return where the engine's modules are, compiled for the emulator."""
    lacking = {
        f"Could not find {name}": f"the headers of {of}" for name, of in (("CUDA_INCLUDE", "CUDA"), ("CUBLASLT_INCLUDE", "cuBLAS"))
    }
    return built.compiled(ROOT / "tests" / "cuda_emulator", ROOT / "build" / "emulator", tools=("g++",), lacking=lacking)


def run(build: Path, every: int, *arguments: str) -> str:
    """Run GPU tests on the emulator in a process of their own, as the modules of a GPU's build may be loaded in this one."""
    environment = {**os.environ, "BERT_BUILD": str(build), "EVERY": str(every)}
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=600)
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


@pytest.mark.parametrize(
    ("tests", "every"),
    [(("tests/test_cuda_kernels.py", "-k", "not scores"), 2), (("tests/test_cuda_products.py",), 5)],
    ids=["kernels", "products"],
)
def test_kernels_against_numpy(build: Path, tests: tuple[str, ...], every: int) -> None:
    said = run(build, every, *SMALL, *tests)
    passed = re.search(r"(\d+) passed", said)
    assert passed and int(passed[1]) > 10 and "skipped" not in said


def test_engines_in_8_bits_round_as_their_simulation(build: Path) -> None:
    """The repository's model, layer by layer."""
    said = run(build, 1, "tests/test_cuda_eight_bit.py", "-k", "each_step")
    assert "2 passed" in said
