# SPDX-License-Identifier: Apache-2.0
"""Runs plans: chooses the profile that fits a batch best, copies through pinned memory, allocates once.

Loading and its checks are in engine.py; CUDA itself is behind helpers.cuda_utils.
"""

from __future__ import annotations

import contextlib
import queue
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from helpers import cuda_utils
from helpers.backends import LoadOptions, Session
from helpers.backends.trt import api, c_session, engine, profiles
from helpers.backends.trt.engine import Engine, volume
from helpers.batching import Batch
from helpers.engine_file import EngineInfo
from helpers.errors import BertError, EngineMismatch, MissingDependency


def load(path: Path, info: EngineInfo, options: LoadOptions) -> Session:
    """Open a plan for running; every check against the metadata comes before TensorRT sees the file.

    A CUDA graph needs the C++ runner: without it the engine runs here, launched call by call, which is said.
    """
    gpu = cuda_utils.open_gpu()
    bare = bool(info.details.get("bare"))
    if not bare:
        engine.check_machine(path, info, api.tensorrt(), gpu, options.log)
    if options.enable_graph:
        try:
            c_session.runner()
            return c_session.CSession(path, info, options)
        except MissingDependency as error:
            options.log(f"running without a CUDA graph: {error}")
    with gpu.current():
        opened = engine.open_engine(path, options.log, plugins=bare or info.details.get("network") == "plugins")
        return TrtSession(path, info, opened, gpu, options)


def bare_info(path: Path) -> EngineInfo:
    """Return metadata for a plan that has none beside it."""
    with cuda_utils.open_gpu().current():
        return engine.bare_info(path, engine.open_engine(path, lambda line: None, plugins=True))


class TrtSession:
    """An engine with one execution context a stream; callers beyond `concurrency` wait for a free one."""

    def __init__(self, path: Path, info: EngineInfo, opened: Engine, gpu: cuda_utils.Gpu, options: LoadOptions) -> None:
        self.path, self.info, self.engine, self.gpu = path, info, opened, gpu
        self.concurrency = options.streams or (1 if options.latency else 2)  # the second copies while the first computes
        self.batch_size = info.max_batch
        self._workers = [Worker(opened, gpu) for _ in range(self.concurrency)]
        self._free: queue.Queue[Worker] = queue.Queue()
        for worker in self._workers:
            self._free.put(worker)
        weakref.finalize(self, _close, gpu, self._workers)

    def run(self, batch: Batch) -> np.ndarray:
        """Return start and end logits, float32 (tokens, 2)."""
        with self._worker() as worker:
            feeds = self._feeds(worker, batch)
            worker.prepare(*feeds)
            worker.copy_in()
            worker.execute()
            return self._unpad(batch, worker.copy_out())

    def timer(self, batch: Batch) -> Callable[[], float]:
        """Prepare a batch once; return a function that runs it and returns the milliseconds between two events around it."""
        worker = self._workers[0]
        with self.gpu.current():
            worker.prepare(*self._feeds(worker, batch))
            worker.copy_in()
            self.gpu.synchronize(worker.stream)
            start, stop = self.gpu.event(), self.gpu.event()

        def run() -> float:
            with self.gpu.current():
                self.gpu.record(start, worker.stream)
                worker.execute()
                self.gpu.record(stop, worker.stream)
                return self.gpu.elapsed(start, stop)

        return run

    def describe(self) -> dict[str, Any]:
        """Return GPU, versions and the engine's profiles."""
        return {
            "device": f"{self.gpu.name}, compute capability {self.gpu.sm // 10}.{self.gpu.sm % 10}",
            "tensorrt": self.engine.trt.__version__,
            "cuda": self.gpu.library,
            "network": self.info.details.get("network", "unknown"),
            "profiles": profiles.describe(self.engine.profiles),
        }

    @contextlib.contextmanager
    def _worker(self) -> Iterator[Worker]:
        worker = self._free.get()
        try:
            with self.gpu.current():
                yield worker
        finally:
            self._free.put(worker)

    def _feeds(self, worker: Worker, batch: Batch) -> tuple[int, dict[str, np.ndarray]]:
        """Return the profile for a batch and every input as the engine wants it; raise EngineMismatch when none is large enough."""
        found = profiles.fitting(self.engine.profiles, batch.size, batch.max_seqlen, batch.tokens)
        if found is None:
            raise EngineMismatch(
                f"the engine {self.path} takes {profiles.describe(self.engine.profiles)}; a batch of {batch.size} with length "
                f"{batch.max_seqlen} does not fit: give smaller -b and -s, or build it with -b {batch.size} -s {batch.max_seqlen}"
            )
        profile = self.engine.profiles[found]
        if self.engine.packed:
            feeds = {"input_ids": batch.ids, "segment_ids": batch.segments, "cu_seqlens": batch.cu_seqlens}
            if "max_seqlen" in profile:  # speaks through its length
                feeds["max_seqlen"] = np.zeros(max(batch.max_seqlen, profile["max_seqlen"].least[0]), np.int32)
            return found, feeds
        size, seqlen = profiles.rectangle(profile["input_mask"], batch.size, batch.max_seqlen)
        ids, segments, mask = batch.pad(seqlen)
        if size > batch.size:  # a static engine: fill up with sequences of one token, as an empty one has no softmax
            spare = np.zeros((size - batch.size, seqlen), np.int32)
            ids, segments, mask = (np.concatenate([array, spare]) for array in (ids, segments, mask))
            mask[batch.size :, 0] = 1
        return found, {"input_ids": ids, "segment_ids": segments, "input_mask": mask}

    def _unpad(self, batch: Batch, outputs: dict[str, np.ndarray]) -> np.ndarray:
        """Return (tokens, 2) float32 from [2, T, 1, 1], [B, S, 2, 1, 1], [B, S, 2], or start and end as [B, S] each."""
        if len(outputs) == 2:
            logits = np.stack([outputs["start_logits"], outputs["end_logits"]], -1)
        else:
            logits = next(iter(outputs.values()))
        if self.engine.packed:
            return np.ascontiguousarray(logits.reshape(2, -1).T, dtype=np.float32)
        rows = logits.reshape(*logits.shape[:2], -1)[: batch.size]
        return np.ascontiguousarray(batch.unpad(rows), dtype=np.float32)


class Worker:
    """One execution context with its stream, its device memory and its pinned host memory, sized for the largest profile."""

    def __init__(self, opened: Engine, gpu: cuda_utils.Gpu) -> None:
        self.engine, self.gpu = opened, gpu
        self.stream = gpu.stream()
        self.context = opened.cuda_engine.create_execution_context()
        if self.context is None:
            raise BertError(
                f"TensorRT cannot make an execution context{api.last_error(opened.log)}; free GPU memory or build smaller"
            )
        self.profile = -1
        sizes = dict.fromkeys((*opened.inputs, *opened.outputs), 1)
        for index, profile in enumerate(opened.profiles):
            self._set_shapes(index, {name: bounds.most for name, bounds in profile.items()})
            for name in sizes:
                sizes[name] = max(sizes[name], volume(self.context.get_tensor_shape(name)))
        self.device = {name: gpu.allocate(size * opened.dtypes[name].itemsize) for name, size in sizes.items()}
        self.host = {name: gpu.pinned((size,), opened.dtypes[name]) for name, size in sizes.items()}
        self.shapes: dict[str, tuple[int, ...]] = {}

    def prepare(self, profile: int, feeds: dict[str, np.ndarray]) -> None:
        """Choose the profile, set shapes, then addresses: in another order TensorRT forgets what was set."""
        self._set_shapes(profile, {name: array.shape for name, array in feeds.items()})
        self.shapes = {name: tuple(int(size) for size in self.context.get_tensor_shape(name)) for name in self.device}
        for name, address in self.device.items():
            if not self.context.set_tensor_address(name, address):
                raise BertError(f"TensorRT refused the address of {name}{api.last_error(self.engine.log)}")
        for name, array in feeds.items():
            self.host[name][: array.size] = array.reshape(-1)

    def _set_shapes(self, profile: int, shapes: dict[str, tuple[int, ...]]) -> None:
        if profile != self.profile:
            if not self.context.set_optimization_profile_async(profile, self.stream):
                raise BertError(f"TensorRT refused profile {profile}{api.last_error(self.engine.log)}")
            self.gpu.synchronize(self.stream)
            self.profile = profile
        for name, shape in shapes.items():
            if not self.context.set_input_shape(name, tuple(shape)):
                raise EngineMismatch(f"TensorRT refused the shape {tuple(shape)} of {name}{api.last_error(self.engine.log)}")
        missing = self.context.infer_shapes()
        if missing:
            raise BertError(f"TensorRT lacks the shapes of {', '.join(missing)}; build the engine again")

    def copy_in(self) -> None:
        for name in self.engine.inputs:
            self.gpu.to_device(self.device[name], self.host[name][: volume(self.shapes[name])], self.stream)

    def execute(self) -> None:
        if not self.context.execute_async_v3(self.stream):
            raise BertError(f"TensorRT could not run the engine{api.last_error(self.engine.log)}; build it again on this machine")

    def copy_out(self) -> dict[str, np.ndarray]:
        """Return the outputs by name, in memory that the next run overwrites."""
        results = {name: self.host[name][: volume(self.shapes[name])] for name in self.engine.outputs}
        for name, array in results.items():
            self.gpu.to_host(array, self.device[name], self.stream)
        self.gpu.synchronize(self.stream)
        return {name: array.reshape(self.shapes[name]) for name, array in results.items()}

    def close(self) -> None:
        """Free the memory and the stream; the context goes with its last reference."""
        self.context = None
        for address in self.device.values():
            self.gpu.free(address)
        for array in self.host.values():
            self.gpu.free_pinned(array)
        self.gpu.close_stream(self.stream)


def _close(gpu: cuda_utils.Gpu, workers: list[Worker]) -> None:
    with contextlib.suppress(BertError), gpu.current():
        while workers:
            workers.pop().close()
