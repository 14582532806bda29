# SPDX-License-Identifier: Apache-2.0
"""The contract every backend keeps, and the choice among them.

A backend is a module of this package with the functions of `Backend`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from helpers.errors import BertError, EngineMismatch, MissingDependency, UsageError
from helpers.files import lack_of_memory

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


class Backend(Protocol):
    """What a backend's module offers."""

    def check(self) -> None:
        """Raise MissingDependency when this machine cannot run the backend's engines."""
        ...

    def check_build(self) -> None:
        """Raise MissingDependency when this machine cannot build them."""
        ...

    def build(self, config: BertConfig, weights: Weights, options: BuildOptions, info: EngineInfo) -> None:
        """Write an engine with `info` as its metadata to options.output, whole or not at all."""
        ...

    def load(self, path: Path, info: EngineInfo, options: LoadOptions) -> Session:
        """Open an engine for running."""
        ...


@dataclass(frozen=True)
class LoadOptions:
    """How an engine is to be run; what a backend has no use for is said to have no effect."""

    enable_graph: bool = False
    cpu_runtime: str = "auto"  # "openvino", "onnxruntime"
    threads: int | None = None
    streams: int | None = None
    latency: bool = False  # one request at a time, all cores for it; otherwise many requests, highest throughput
    log: Callable[[str], None] = lambda line: print(line, file=sys.stderr)


def module(name: str) -> Backend:
    """Return a backend's module; raise MissingDependency when this installation lacks it."""
    try:
        backend: Any = importlib.import_module(BACKENDS[name])
        return backend
    except ModuleNotFoundError as error:
        if error.name and error.name.startswith("helpers"):
            raise MissingDependency(f"the {name} backend is not part of this installation; use --backend cpu") from error
        raise


def choose(name: str = "auto") -> str:
    """Return the backend to build for: the one asked, or the first of tensorrt, cuda, cpu that this machine can run.

    Raises MissingDependency when the one asked for cannot work here.
    """
    if name != "auto":
        module(name).check_build()
        return name
    reasons = []
    for candidate in BACKENDS:
        try:
            module(candidate).check()
            return candidate
        except MissingDependency as error:
            reasons.append(f"{candidate}: {error}")
    raise MissingDependency("no backend works on this machine: " + "; ".join(reasons))


# Options that only some backends act on, by their name in BuildOptions.
STEERING = {
    "bf16": ("--bf16", ("tensorrt", "cpu")),
    "megatron": ("--megatron", ("tensorrt",)),
    "interleaved": ("-il/--interleaved", ("tensorrt",)),
    "strict": ("-t/--strict", ("tensorrt",)),
    "sparse": ("-sp/--sparse", ("tensorrt",)),
    "force_fc2_gemm": ("-g/--force-fc2-gemm", ("tensorrt",)),
    "force_int8_skipln": ("-iln/--force-int8-skipln", ("tensorrt", "cpu")),
    "force_int8_multihead": ("-imh/--force-int8-multihead", ("tensorrt", "cpu")),
    "timing_cache": ("-tcf/--timing-cache-file", ("tensorrt",)),
    "distributive_independence": ("--distributive_independence", ("tensorrt",)),
    "v3_plugins": ("--use-v3-plugins", ("tensorrt",)),
    "no_plugins": ("--no-plugins", ("tensorrt",)),
}
EIGHT_BIT = ("force_fc2_gemm", "force_int8_skipln", "force_int8_multihead")
CHANGE_THE_RESULT = ("bf16", "megatron")


def check_options(backend: str, options: BuildOptions, log: Callable[[str], None]) -> None:
    """Say which options have no effect on what is built; raise UsageError where leaving one out would build another model."""
    for name, (flag, backends) in STEERING.items():
        if not getattr(options, name):
            continue
        if backend in backends:
            if name in EIGHT_BIT and not (options.int8 or options.fp8):
                log(f"{flag} has no effect without --int8 or --fp8")
            continue
        if name in CHANGE_THE_RESULT:
            raise UsageError(f"the {backend} backend cannot do what {flag} asks for; leave it out, or give --backend {backends[0]}")
        log(f"{flag} has no effect on {backend} engines")


# The same of LoadOptions.
RUNNING = {
    "enable_graph": ("--enable-graph", ("tensorrt", "cuda")),
    "cpu_runtime": ("--cpu-runtime", ("cpu",)),
    "threads": ("--threads", ("cpu",)),
    "streams": ("--streams", ("tensorrt", "cpu")),
}


def load(path: str | Path, info: EngineInfo, options: LoadOptions) -> Session:
    """Open an engine with the backend it was built for."""
    if info.backend not in BACKENDS:
        raise EngineMismatch(
            f"{path} is an engine for the backend {info.backend!r}, this version has {', '.join(BACKENDS)}; build the engine again"
        )
    backend = module(info.backend)
    backend.check()
    for name, (flag, backends) in RUNNING.items():
        if getattr(options, name) != getattr(LoadOptions, name) and info.backend not in backends:
            options.log(f"{flag} has no effect on {info.backend} engines")
    try:
        return backend.load(Path(path), info, options)
    except BertError:
        raise
    except Exception as error:
        if lack_of_memory(error):
            size = Path(path).stat().st_size / 2**20
            raise BertError(
                f"out of memory: the {info.backend} engine {path} ({size:.0f} MiB) does not fit; free some memory, "
                "or use a larger machine"
            ) from error
        if not isinstance(error, RuntimeError | ValueError | OSError):
            raise
        raise BertError(f"the {info.backend} engine {path} could not be loaded ({error}); build it again") from error
