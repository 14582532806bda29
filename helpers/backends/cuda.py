# SPDX-License-Identifier: Apache-2.0
"""The cuda backend: one safetensors file, executed by the compiled module infer_c (infer_c/, CMakeLists.txt)."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from helpers import __version__
from helpers.backends import LoadOptions, Session
from helpers.backends.cuda_file import packed_tensors
from helpers.batching import Batch
from helpers.config import BertConfig, BuildOptions
from helpers.eight_bit import eight_bit_format
from helpers.engine_file import METADATA_KEY, EngineInfo, written_whole
from helpers.errors import BertError, EngineMismatch, MissingDependency, UsageError
from helpers.files import cache_directory
from helpers.weights import Weights

ROOT = Path(__file__).resolve().parents[2]
BUILD_COMMAND = "cmake -S . -B build && cmake --build build -j"
MOST_TOKENS = 1 << 30  # of a batch; infer_c/engine_file.h kMostTokens
REVISION = 2  # of the tensors in engines and of the module infer_c; infer_c/engine_file.h kRevision
KERNELS = 4  # goes up when kernels change so much that what was found for older ones is to be searched again


def infer_c() -> Any:
    """Return the compiled module, from build/ of this repository or the folder INFER_C_DIR; raise MissingDependency without it."""
    directory = os.environ.get("INFER_C_DIR", str(ROOT / "build"))
    if directory not in sys.path:
        sys.path.insert(0, directory)
    try:
        module = importlib.import_module("infer_c")
        if getattr(module, "revision", None) == REVISION:
            return module
        del sys.modules["infer_c"]
        # Without it, what was found is the source folder of that name, as a namespace package.
        reason = "was compiled from another version" if hasattr(module, "bert_inf") else "is not compiled"
    except ImportError as error:
        reason = f"cannot be loaded ({error})"
    installed = not (ROOT / "CMakeLists.txt").exists()
    place = "in a clone of the repository, whose build/ INFER_C_DIR then names," if installed else f"in {ROOT}"
    raise MissingDependency(f"infer_c, which runs cuda engines, {reason}; {place} run: {BUILD_COMMAND}")


def check() -> None:
    """Raise MissingDependency when this machine cannot run a cuda engine."""
    module = infer_c()
    capability = module.capability()
    if capability == 0:
        raise MissingDependency("no NVIDIA GPU and driver were found here; use --backend cpu")
    if capability < 80:
        raise MissingDependency(
            f"the cuda backend needs compute capability 8.0, this GPU has {capability / 10}; use --backend tensorrt or cpu"
        )


def check_build() -> None:
    """Building an engine needs no GPU and no compiled code."""


def build(config: BertConfig, weights: Weights, options: BuildOptions, info: EngineInfo) -> None:
    """Write the safetensors file; where a GPU is at hand, search its algorithms now and keep them in the file."""
    eight_bit = eight_bit_format(options.precision)
    step = 16 if eight_bit else 8  # rows of 16 bytes
    for name in ("hidden_size", "intermediate_size"):
        if (size := getattr(config, name)) % step:
            remedy = f"give --fp16 instead of --{options.precision}" if eight_bit else "use --backend cpu"
            raise UsageError(
                f"the cuda backend needs a {name} that is a multiple of {step} in {options.precision}, not {size}; {remedy}"
            )
    if config.head_size > 128 or config.hidden_size > 4096:
        raise UsageError(
            f"the cuda backend runs head sizes to 128 and hidden sizes to 4096, not {config.head_size} and {config.hidden_size}; "
            "use --backend cpu"
        )
    if eight_bit and (config.head_size not in (32, 64) or max(options.sequence_lengths) > 512):
        raise UsageError(
            f"the cuda backend runs {options.precision} with head sizes 32 and 64 and up to 512 tokens, not {config.head_size} and "
            f"{max(options.sequence_lengths)}; give --fp16 instead of --{options.precision}"
        )
    if (tokens := info.max_batch * info.max_length) > MOST_TOKENS:
        raise UsageError(
            f"the cuda backend runs at most {MOST_TOKENS} tokens at a time, batch {info.max_batch} of length {info.max_length} has "
            f"{tokens}; give a smaller -b or -s"
        )
    from safetensors.numpy import save_file

    tensors = packed_tensors(config, weights, np.dtype(np.float16 if options.fp16 or eight_bit else np.float32), eight_bit)
    with written_whole(options.output) as temporary:
        save_file(tensors, str(temporary), {METADATA_KEY: info.to_json()})
        if found := _search(temporary, options.output, info):
            save_file(tensors, str(temporary), {METADATA_KEY: replace(info, details={**info.details, **found}).to_json()})


def _search(path: Path, output: Path, info: EngineInfo) -> dict[str, Any]:
    """Return the algorithms timed on this machine's GPU for the engine's shapes; nothing where it has none that runs the engine."""
    try:
        check()
        check_hardware(output, info)
    except MissingDependency:
        return {}
    except EngineMismatch as error:
        print(f"for another machine: {error}", file=sys.stderr)
        return {}
    try:
        engine = infer_c().bert_inf(str(path), enable_graph=False)
        for size in info.batch_sizes:
            for length in info.sequence_lengths:
                engine.prepare(size, length)
    except (RuntimeError, ValueError) as error:
        print(f"the fastest kernels are looked for at the first run: {output} failed on this GPU ({error})", file=sys.stderr)
        return {}
    return {"algorithms": json.loads(engine.choices()), "searched_on": infer_c().device_name(), "kernels": KERNELS}


def load(path: Path, info: EngineInfo, options: LoadOptions) -> Session:
    """Open an engine on the first GPU."""
    check_hardware(path, info)
    return CudaSession(path, info, options)


def check_hardware(path: Path, info: EngineInfo) -> None:
    """Raise EngineMismatch when this machine's GPU lacks the arithmetic of an engine's precision."""
    capability = infer_c().capability()
    if eight_bit_format(info.precision) and capability != 90:
        raise EngineMismatch(
            f"{path} is an {info.precision} engine, which needs compute capability 9.0 (Hopper), this GPU has {capability / 10}; "
            "build it again with --fp16 instead"
        )


def checked(path: Path, call: Callable[..., Any], *arrays: np.ndarray) -> Any:
    """Call infer_c with an engine's input; what it refuses is an EngineMismatch, what fails on the GPU a BertError."""
    try:
        return call(*arrays)
    except ValueError as error:
        raise EngineMismatch(f"{error}; build an engine for such requests with -b and -s") from error
    except RuntimeError as error:
        raise BertError(
            f"the engine {path} failed on this GPU ({error}); run it again, with a smaller -b where memory is short"
        ) from error


class CudaSession:
    """An engine on the GPU. Calls from several threads queue, so a second one is ready when the first is done."""

    concurrency = 2
    batch_size = 64  # sequences a run that gives nearly the highest throughput at SQuAD's lengths; docs/kernels.md

    def __init__(self, path: Path, info: EngineInfo, options: LoadOptions) -> None:
        self.info = info
        self.batch_size = min(self.batch_size, info.max_batch)
        self._path = path
        self._memory = _AlgorithmMemory(info)
        self._seen: set[tuple[int, int]] = set()
        self._log = options.log
        self._engine = infer_c().bert_inf(str(path), enable_graph=options.enable_graph, choices=self._memory.read())

    def run(self, batch: Batch) -> np.ndarray:
        shape = (batch.size, batch.tokens // 128)
        fresh = shape not in self._seen  # only a new shape can start a search
        if fresh:
            self._announce(batch)
        logits: np.ndarray = checked(self._path, self._engine.run_packed, batch.ids, batch.segments, batch.cu_seqlens)
        if fresh:
            self._seen.add(shape)
            self._memory.write(self._engine)
        return logits

    def _announce(self, batch: Batch) -> None:
        if not self._engine.searched(batch.size, batch.max_seqlen, batch.tokens):
            self._log(f"finding the fastest kernels for runs of about {batch.tokens} tokens on this GPU: some seconds, once")

    def timer(self, batch: Batch) -> Callable[[], float]:
        """Stage a batch on the device; return a function that runs it and returns its milliseconds between two CUDA events."""
        self._announce(batch)
        checked(self._path, self._engine.stage, batch.ids, batch.segments, batch.cu_seqlens)
        self._memory.write(self._engine)
        return lambda: checked(self._path, self._engine.time_staged)

    def describe(self) -> dict[str, Any]:
        facts = self._engine.facts()
        return {
            "device": facts["device"],
            "runtime": f"CUDA {facts['runtime'] // 1000}.{facts['runtime'] % 1000 // 10}",
            "driver": f"CUDA {facts['driver'] // 1000}.{facts['driver'] % 1000 // 10}",
            "path": facts["path"],
            "weights_mib": facts["weight_bytes"] >> 20,
            "activations_mib": facts["activation_bytes"] >> 20,
        }


class _AlgorithmMemory:
    """Algorithms found on a GPU like this: at the build, and after it, in a file under XDG_CACHE_HOME, by default ~/.cache."""

    def __init__(self, info: EngineInfo) -> None:
        device = infer_c().device_name()
        self._known: dict[str, Any] = {}
        if (info.details.get("searched_on"), info.details.get("kernels")) == (device, KERNELS):
            self._learn(info.details.get("algorithms"))
        identity = f"{__version__}/{KERNELS}{info.config}{info.precision}{device}"
        self._path = cache_directory("cuda") / f"{hashlib.sha256(identity.encode()).hexdigest()[:16]}.json"

    def _learn(self, found: Any) -> None:
        if isinstance(found, dict):  # anything else is damaged; so may entries be, which infer_c leaves out
            self._known.update(found)

    def read(self) -> str:
        with contextlib.suppress(OSError, ValueError, RecursionError):  # none yet, or damaged
            self._learn(json.loads(self._path.read_text()))
        return json.dumps(self._known)

    def write(self, engine: Any) -> None:
        """Keep what an engine has found; a cache that cannot be written costs a search at the next start and nothing else."""
        found = json.loads(engine.choices())
        if found.items() <= self._known.items():
            return
        self._known.update(found)
        try:
            with written_whole(self._path) as temporary:
                temporary.write_text(json.dumps(self._known))
        except Exception:
            return
