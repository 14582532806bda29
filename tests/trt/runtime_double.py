# SPDX-License-Identifier: Apache-2.0
"""Strict doubles of ICudaEngine and IExecutionContext, and of a GPU whose memory is NumPy: plans run as recorded networks.

The context reads and writes only at the addresses it was given, with the engine's types and shapes; memory starts as rubbish.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorrt as real

from trt.executor import Executor
from trt.signatures import Refused, tuple_of

RUBBISH = 0x7B


class GpuDouble:
    """helpers.cuda_utils.Gpu with arrays for memory. It counts what is allocated and refuses what CUDA would refuse."""

    name, sm, library = "NVIDIA A100-SXM4-40GB", 80, "double"

    def __init__(self) -> None:
        self.memory: dict[int, np.ndarray] = {}
        self.pinned_memory: dict[int, int] = {}
        self.streams: set[int] = set()
        self.pending: dict[int, list[Any]] = {}  # asynchronous work by stream, done at synchronisation
        self.next, self.allocations, self.clock = 0x7F0000000000, 0, 0.0
        self._current = threading.local()

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        self._current.depth = getattr(self._current, "depth", 0) + 1
        try:
            yield
        finally:
            self._current.depth -= 1

    def _check(self, stream: int | None = None) -> None:
        assert getattr(self._current, "depth", 0), "the GPU is not current on this thread"
        assert stream is None or stream in self.streams, f"no stream {stream}"

    def allocate(self, size: int) -> int:
        self._check()
        self.allocations += 1
        self.next += (size + 255) // 256 * 256 + 4096
        self.memory[self.next] = np.full(size, RUBBISH, np.uint8)
        return self.next

    def free(self, address: int) -> None:
        self._check()
        del self.memory[address]

    def pinned(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        self._check()
        self.allocations += 1
        array = np.empty(shape, dtype)
        array.view(np.uint8)[...] = RUBBISH
        self.pinned_memory[array.ctypes.data] = array.nbytes
        return array

    def free_pinned(self, array: np.ndarray) -> None:
        del self.pinned_memory[array.ctypes.data]

    def stream(self) -> int:
        self._check()
        self.streams.add(0x1000 + len(self.streams))
        return max(self.streams)

    def close_stream(self, stream: int) -> None:
        self.streams.discard(stream)

    def _copy(self, address: int, array: np.ndarray) -> np.ndarray:
        memory = self.memory.get(address)
        assert memory is not None and array.nbytes <= memory.nbytes, f"copy of {array.nbytes} bytes outside an allocation"
        assert array.flags.c_contiguous and array.ctypes.data in self.pinned_memory, "host memory is not pinned"
        return memory

    def to_device(self, address: int, array: np.ndarray, stream: int) -> None:
        self._check(stream)
        memory = self._copy(address, array)
        self.later(stream, lambda: memory.__setitem__(slice(array.nbytes), array.reshape(-1).view(np.uint8)))

    def to_host(self, array: np.ndarray, address: int, stream: int) -> None:
        self._check(stream)
        memory = self._copy(address, array)
        self.later(stream, lambda: array.reshape(-1).view(np.uint8).__setitem__(slice(None), memory[: array.nbytes]))

    def later(self, stream: int, work: Any) -> None:
        self.pending.setdefault(stream, []).append(work)

    def synchronize(self, stream: int) -> None:
        self._check(stream)
        for work in self.pending.pop(stream, []):
            work()

    def event(self) -> list[float]:
        return [0.0]

    def record(self, event: list[float], stream: int) -> None:
        self._check(stream)
        self.clock += 1.0
        event[0] = self.clock

    def elapsed(self, start: list[float], stop: list[float]) -> float:
        for stream in self.streams:
            self.synchronize(stream)
        return stop[0] - start[0]


GPU = GpuDouble()


def make(double: Any) -> type:
    """Return the double of trt.Runtime; `double` is the module with the recorders."""

    class Context(double.Recorder):  # type: ignore[misc,name-defined]
        stands_for = real.IExecutionContext

        def __init__(self, engine: Any) -> None:
            super().__init__()
            for name, value in (("engine_", engine), ("profile", 0), ("shapes", {}), ("addresses", {})):
                object.__setattr__(self, name, value)

        def do_set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
            if not 0 <= profile_index < self.engine_.profile_count or stream_handle not in GPU.streams:
                return False
            object.__setattr__(self, "profile", profile_index)
            self.shapes.clear()
            self.addresses.clear()
            return True

        def do_set_input_shape(self, name: str, shape: Any) -> bool:
            if name not in self.engine_.input_names:
                return False
            low, _, high = self.engine_.profile_shape(name, self.profile)
            shape = tuple_of(shape)
            if len(shape) != len(low) or not all(a <= s <= b for a, s, b in zip(low, shape, high, strict=True)):
                return False
            self.shapes[name] = shape
            return True

        def do_infer_shapes(self) -> list[str]:
            return [n for n in self.engine_.input_names if n not in self.shapes and -1 in self.engine_.static(n)]

        def _shape(self, name: str) -> tuple[int, ...]:
            if name in self.engine_.input_names:
                return self.shapes.get(name, self.engine_.static(name))  # type: ignore[no-any-return]
            first = self._shape("input_ids")
            return (2, *first, 1, 1) if len(first) == 1 else (*first, 2, 1, 1)

        def do_get_tensor_shape(self, name: str) -> Any:
            return real.Dims(self._shape(name))

        def do_set_tensor_address(self, name: str, memory: int) -> bool:
            if name not in (*self.engine_.input_names, *self.engine_.output_names) or memory == 0:
                return False
            self.addresses[name] = memory
            return True

        def do_execute_async_v3(self, stream_handle: int) -> bool:
            names = (*self.engine_.input_names, *self.engine_.output_names)
            if self.do_infer_shapes() or any(name not in self.addresses for name in names) or stream_handle not in GPU.streams:
                return False
            GPU.later(stream_handle, self._execute)
            return True

        def _execute(self) -> None:
            feeds = {}
            for name in self.engine_.input_names:
                shape = self._shape(name)
                memory = GPU.memory[self.addresses[name]]
                size = int(np.prod(shape)) * 4
                assert size <= memory.nbytes, f"{name} reaches behind its memory"
                feeds[name] = memory[:size].view(np.int32).reshape(shape)
            for name, array in self.engine_.executor(**feeds).items():
                data = np.ascontiguousarray(array, np.float32).reshape(-1).view(np.uint8)
                assert data.nbytes <= GPU.memory[self.addresses[name]].nbytes, f"{name} reaches behind its memory"
                GPU.memory[self.addresses[name]][: data.nbytes] = data

    class Engine(double.Recorder):  # type: ignore[misc,name-defined]
        stands_for = real.ICudaEngine

        def __init__(self, network: Any, config: Any) -> None:
            super().__init__()
            values = {
                "network": network,
                "config": config,
                "executor": Executor(network, config, GPU.sm),
                "input_names": [t.props["name"] for t in network.input_tensors],
                "output_names": [t.props["name"] for t in network.output_tensors],
                "profile_count": max(1, len(config.profiles)),
            }
            for name, value in values.items():
                object.__setattr__(self, name, value)
            self.props.update(num_io_tensors=len(self.names), num_optimization_profiles=self.profile_count)

        @property
        def names(self) -> list[str]:
            return [*self.input_names, *self.output_names]

        def static(self, name: str) -> tuple[int, ...]:
            for tensor in self.network.input_tensors:
                if tensor.props["name"] == name:
                    return tensor.props["shape"]  # type: ignore[no-any-return]
            ids = self.static("input_ids")
            return (2, *ids, 1, 1) if len(ids) == 1 else (*ids, 2, 1, 1)

        def profile_shape(self, name: str, index: int) -> Any:
            shapes = self.config.profiles[index].props.get(name) if self.config.profiles else None
            return shapes or (self.static(name),) * 3

        def do_get_tensor_name(self, index: int) -> str:
            return self.names[index]

        def do_get_tensor_mode(self, name: str) -> Any:
            mode = real.TensorIOMode
            return mode.INPUT if name in self.input_names else mode.OUTPUT if name in self.output_names else mode.NONE

        def do_get_tensor_dtype(self, name: str) -> Any:
            return real.DataType.INT32 if name in self.input_names else real.DataType.FLOAT

        def do_get_tensor_shape(self, name: str) -> Any:
            return real.Dims(self.static(name))

        def do_get_tensor_profile_shape(self, name: str, profile_index: int) -> Any:
            if name not in self.input_names:
                raise Refused(f"{name} is no input")
            return [real.Dims(shape) for shape in self.profile_shape(name, profile_index)]

        def do_create_execution_context(self, **_: Any) -> Any:
            return Context(self)

    class Runtime(double.Recorder):  # type: ignore[misc,name-defined]
        stands_for = real.Runtime

        def __init__(self, logger: Any) -> None:
            super().__init__()
            if not isinstance(logger, real.ILogger):
                raise Refused("Runtime needs a logger")
            object.__setattr__(self, "logger_", logger)

        def do_deserialize_cuda_engine(self, serialized_engine: Any) -> Any:
            plan = bytes(serialized_engine)
            if plan not in double.PLANS:
                self.logger_.log(real.ILogger.ERROR, "Serialization assertion magicTag failed")
                return None
            network, config = double.PLANS[plan]
            plugins = any(layer.kind.startswith("add_plugin") for layer in network.layers)
            if plugins and not double.MODULE.plugins_loaded:
                self.logger_.log(real.ILogger.ERROR, "Could not find plugin creator")
                return None
            return Engine(network, config)

    return Runtime
