# SPDX-License-Identifier: Apache-2.0
"""The contract every backend keeps, and the choice among them.

A backend is a module of this package with three functions:

    check() -> None                                raise MissingDependency when this machine cannot run its engines
    build(config, weights, options, info) -> None  write an engine to options.output, atomically, `info` as its metadata
    load(path, info, options) -> Session           open an engine for running

and, where building needs less than running does, a fourth: check_build() -> None.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from helpers.errors import BertError, MissingDependency

if TYPE_CHECKING:
    import numpy as np

    from helpers.batching import Batch
    from helpers.config import BertConfig, BuildOptions
    from helpers.engine_file import EngineInfo
    from helpers.weights import Weights

BACKENDS = {"tensorrt": "helpers.backends.trt", "cuda": "helpers.backends.cuda", "cpu": "helpers.backends.cpu"}


class Session(Protocol):
    """An engine that is loaded and ready.

    A session may also have `timer(batch)`: it prepares a batch once and returns a function that runs it and returns the
    milliseconds of device time. Without it the benchmark measures `run` with the host clock.
    """

    info: EngineInfo
    concurrency: int  # how many `run` calls at the same time, from as many threads, make the machine busy
    batch_size: int  # windows a run that give the highest throughput, for callers without a wish of their own

    def run(self, batch: Batch) -> np.ndarray:
        """Return start and end logits, float32 (tokens, 2). May be called from several threads."""
        ...

    def describe(self) -> dict[str, Any]:
        """Return device, library and versions: facts that belong beside a measurement."""
        ...


@dataclass(frozen=True)
class LoadOptions:
    """How an engine is to be run; what a backend has no use for it ignores."""

    enable_graph: bool = False
    cpu_runtime: str = "auto"  # "openvino", "onnxruntime"
    threads: int | None = None
    streams: int | None = None
    latency: bool = False  # one request at a time, all cores for it; otherwise many requests, highest throughput
    log: Callable[[str], None] = lambda line: print(line, file=sys.stderr)


def module(name: str) -> Any:
    """Return a backend's module; raise MissingDependency when this installation lacks it."""
    try:
        return importlib.import_module(BACKENDS[name])
    except ModuleNotFoundError as error:
        if error.name and error.name.startswith("helpers"):
            raise MissingDependency(f"the {name} backend is not part of this installation; use --backend cpu") from error
        raise


def choose(name: str = "auto") -> str:
    """Return the backend to build for: the one asked, or the first of tensorrt, cuda, cpu that this machine can run.

    Raises MissingDependency when the one asked for cannot work here.
    """
    if name != "auto":
        backend = module(name)
        getattr(backend, "check_build", backend.check)()
        return name
    reasons = []
    for candidate in BACKENDS:
        try:
            module(candidate).check()
            return candidate
        except MissingDependency as error:
            reasons.append(f"{candidate}: {error}")
    raise MissingDependency("no backend works on this machine: " + "; ".join(reasons))


def load(path: str | Path, info: EngineInfo, options: LoadOptions) -> Session:
    """Open an engine with the backend it was built for."""
    backend = module(info.backend)
    backend.check()
    try:
        session: Session = backend.load(Path(path), info, options)
        return session
    except BertError:
        raise
    except (RuntimeError, ValueError, OSError) as error:
        raise BertError(f"the {info.backend} engine {path} could not be loaded ({error}); build it again") from error
