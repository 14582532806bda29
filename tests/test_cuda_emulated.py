# SPDX-License-Identifier: Apache-2.0
"""The Hopper kernels where there is no GPU: compiled by g++ for tests/cuda_emulator, a part of the GPU's tests runs on the CPU.

All of the small ones, with BERT_BUILD=build/emulator in the environment:
python -m pytest -p tests.cuda_engine.small tests/test_cuda_kernels.py tests/test_cuda_products.py
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT

pytestmark = pytest.mark.slow
SMALL = ("-p", "tests.cuda_engine.small")


@pytest.fixture(scope="module")
def build() -> Path:
    """Compile the engine for the emulator; a second run only compiles what changed."""
    missing = [tool for tool in ("cmake", "g++") if not shutil.which(tool)]
    missing += [package for package in ("pybind11",) if not importlib.util.find_spec(package)]
    if missing:
        pytest.skip(f"compiling the emulator needs {', '.join(missing)}")
    directory = ROOT / "build" / "emulator"
    configure = ["cmake", "-S", ROOT / "tests" / "cuda_emulator", "-B", directory, f"-DPython3_EXECUTABLE={sys.executable}"]
    for command in (configure, ["cmake", "--build", directory, "-j", str(os.cpu_count() or 1)]):
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=ROOT)
        if lacking := re.search(r"Could not find (CUDA_INCLUDE|CUBLASLT_INCLUDE)", done.stderr):
            pytest.skip(f"compiling the emulator needs the headers of CUDA and cuBLAS ({lacking[1]} was not found)")
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return directory


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
