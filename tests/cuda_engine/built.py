# SPDX-License-Identifier: Apache-2.0
"""What CMake builds, for the tests: compiles it, finds modules in build/ (or where BERT_BUILD says), and says what GPU there is."""

from __future__ import annotations

import fcntl
import importlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("BERT_BUILD", ROOT / "build"))


def compiled(source: Path, directory: Path, *settings: str, tools: tuple[str, ...], lacking: dict[str, str]) -> Path:
    """Build a CMake project into a directory and return that; a second run only compiles what changed.

    Skips the test where tools or what CMake looks for are missing: `lacking` has what it says then, and what is to be said.
    """
    missing = [tool for tool in ("cmake", *tools) if not shutil.which(tool)]
    missing += [package for package in ("pybind11",) if not importlib.util.find_spec(package)]
    if missing:
        pytest.skip(f"compiling {directory.name} needs {', '.join(missing)}")
    configure = ["cmake", "-S", str(source), "-B", str(directory), f"-DPython3_EXECUTABLE={sys.executable}", *settings]
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of pytest-xdist's workers one compiles, the others find it done
        for command in (configure, ["cmake", "--build", str(directory), "-j", str(os.cpu_count() or 1)]):
            done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
            for said, needed in lacking.items():
                if said in done.stderr:
                    pytest.skip(f"compiling {directory.name} needs {needed}")
            assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
            assert "warning" not in done.stderr, done.stderr[-4000:]
            serial = [line for line in done.stderr.splitlines() if "Potential Performance Loss" in line]
            assert not serial, serial  # ptxas -v: tensor cores that stand still between their products
    return directory


def module(name: str) -> ModuleType | None:
    """Return a compiled module; None where it was not built."""
    if str(BUILD) not in sys.path:
        sys.path.insert(0, str(BUILD))
    try:
        found = importlib.import_module(name)
    except ImportError:
        return None
    if found.__file__ is None:  # the source folder infer_c/, as a namespace package
        del sys.modules[name]
        return None
    return found


def capability() -> int:
    """Return 90 on Hopper; 0 without a usable GPU or without infer_c."""
    infer_c = module("infer_c")
    return infer_c.capability() if infer_c else 0


def forced(few: list[int], many: list[int] | None = None) -> str:
    """Return choices: all products of batches to 1,024 rows run one way, those of larger ones another, if it is given."""
    small, large = range(128, 1025, 128), (1536, 2048, 3072, 4096, 6144, 8192)
    return json.dumps({str(key): [few if key in small else many or few] * 4 for key in (*small, *large)})
