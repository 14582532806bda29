# SPDX-License-Identifier: Apache-2.0
"""The TensorRT library itself: importing it late, its version, its log, its plugin registry. Nothing here knows of BERT."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from helpers.errors import BertError, MissingDependency

OLDEST = (10, 0)  # strongly typed networks and GELU activations as this backend uses them; named tensors everywhere
INSTALL = "install it with: pip install tensorrt-cu13 (tensorrt-cu12 for drivers of CUDA 12), or use --backend cpu"


def tensorrt() -> Any:
    """Return the TensorRT module; raise MissingDependency with the command that mends it."""
    try:
        import tensorrt as trt
    except ModuleNotFoundError as error:
        if error.name not in ("tensorrt", "tensorrt_bindings", "tensorrt_libs"):
            raise
        raise MissingDependency(f"TensorRT is not installed (no Python module {error.name}); {INSTALL}") from error
    except (ImportError, OSError) as error:  # the bindings are there, a shared library they need is not
        raise MissingDependency(
            f"TensorRT's Python bindings are installed but their libraries cannot be loaded ({error}); "
            "install both together with: pip install tensorrt-cu13 (or tensorrt-cu12), or add the directory of TensorRT's "
            "libraries to LD_LIBRARY_PATH"
        ) from error
    if version(trt) < OLDEST:
        raise MissingDependency(f"TensorRT {trt.__version__} is too old, 10.0 or later is needed; {INSTALL}")
    return trt


def version(trt: Any) -> tuple[int, int]:
    """Return major and minor version."""
    major, minor = trt.__version__.split(".")[:2]
    return int(major), int(minor)


def weakly_typed(trt: Any) -> bool:
    """Return whether this version lets the builder choose precisions (10.x) or always obeys tensor types (11)."""
    return "FP16" in trt.BuilderFlag.__members__


def logger(trt: Any, verbose: bool, log: Callable[[str], None] | None = None) -> Any:
    """Return a logger that writes warnings and errors (all lines when verbose) to stderr and remembers the last errors.

    TensorRT's own logger of version 10 prints to stdout, where results belong.
    """
    out = log or (lambda line: print(line, file=sys.stderr))
    least = trt.ILogger.VERBOSE if verbose else trt.ILogger.WARNING

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if int(severity) <= int(trt.ILogger.ERROR):
                self.errors = [*self.errors[-4:], message]
            if int(severity) <= int(least):
                out(f"[TensorRT] {severity.name}: {message}")

    return Log()


def last_error(log: Any) -> str:
    """Return what TensorRT logged last as an error, for the end of a sentence."""
    errors = getattr(log, "errors", [])
    return f" ({errors[-1].strip()})" if errors else ""


def load_plugins(trt: Any, log: Any) -> bool:
    """Register TensorRT's plugin library; return whether it is there."""
    return bool(trt.init_libnvinfer_plugins(log, ""))


def plugin_creator(trt: Any, name: str, version: str) -> Any:
    """Return the creator of a plugin; raise MissingDependency when this TensorRT has none of that name and version."""
    creator = trt.get_plugin_registry().get_creator(name, version, "")
    if creator is None:
        raise MissingDependency(
            f"TensorRT {trt.__version__} has no plugin {name} version {version}; build without plugins by adding --no-plugins, "
            "or check that libnvinfer_plugin of the same TensorRT is on LD_LIBRARY_PATH"
        )
    return creator


def made(thing: Any, what: str) -> Any:
    """Return a layer or another object TensorRT was asked for; raise BertError when it returned none."""
    if thing is None:
        raise BertError(f"TensorRT refused to make {what}; run again with --verbose to see its reasons")
    return thing
