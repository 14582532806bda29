# SPDX-License-Identifier: Apache-2.0
"""The TensorRT backend against the real Python bindings of TensorRT 10.16 and 11.4, without TensorRT and without a GPU.

Two versions cannot live in one process: each suite (tests/trt/check_*.py) runs in one of its own. What it needs, two wheels
of bindings and three empty libraries, tests/trt/bindings.py fetches and compiles into build/trt-bindings.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from trt.bindings import VERSIONS, environment_or_skip

HERE = Path(__file__).parent / "trt"


@pytest.mark.parametrize("suite", ["networks", "build", "runtime", "scripts", "mutations", "model"])
@pytest.mark.parametrize("version", VERSIONS)
def test_suite(version: str, suite: str) -> None:
    env = environment_or_skip(version)
    command = [sys.executable, "-m", "pytest", "-c", "pytest.ini", "-p", "no:cacheprovider", "--tb=short", f"check_{suite}.py"]
    done = subprocess.run(command, cwd=HERE, env=env, capture_output=True, text=True)
    print(done.stdout)
    assert done.returncode == 0, f"TensorRT {version}:\n{done.stdout[-8000:]}{done.stderr[-2000:]}"
