# SPDX-License-Identifier: Apache-2.0
"""BERT question answering: everything the scripts share."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from helpers.qa import Answer, Example, LoadOptions, NBest, QuestionAnswerer, WindowLogits, WindowOptions

__all__ = ["Answer", "Example", "LoadOptions", "NBest", "QuestionAnswerer", "WindowLogits", "WindowOptions", "__version__"]
__version__ = "1.0.0"


def __getattr__(name: str) -> object:
    """Import the Python API when it is first asked for, so that `--help` stays instant."""
    if name in __all__:
        from helpers import qa

        return getattr(qa, name)
    raise AttributeError(f"module 'helpers' has no attribute {name!r}")
