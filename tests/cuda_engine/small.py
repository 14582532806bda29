# SPDX-License-Identifier: Apache-2.0
"""A pytest plugin for compute-sanitizer and the emulator, which slow kernels down: of the kernel tests only the small shapes.

python -m pytest -p tests.cuda_engine.small tests/test_cuda_kernels.py tests/test_cuda_products.py

EVERY=5 in the environment takes every fifth of them.
"""

from __future__ import annotations

import os

import pytest

TOKENS, ROWS = 300, 200  # at most
PRODUCTS = [(17, 240, 208), (129, 272, 1008)]  # rows, columns, depth: less than a tile, and several with a rest on every side


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    kept = [item for item in items if is_small(item)][:: int(os.environ.get("EVERY", "1"))]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept
    for item in items:
        module = getattr(item, "module", None)
        if hasattr(module, "SIZES"):  # what each test of the products goes through
            module.SIZES, module.MANY_ROWS = PRODUCTS, module.MANY_ROWS[:1]


def is_small(item: pytest.Item) -> bool:
    values = item.callspec.params if hasattr(item, "callspec") else {}
    return sum(values.get("lengths", ())) <= TOKENS and values.get("rows", 0) <= ROWS
