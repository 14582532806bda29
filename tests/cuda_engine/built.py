# SPDX-License-Identifier: Apache-2.0
"""Finds what CMake built, for the tests: modules in build/ (or where BERT_BUILD says), and what GPU there is."""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("BERT_BUILD", ROOT / "build"))


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
