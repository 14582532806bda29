# SPDX-License-Identifier: Apache-2.0
"""Device memory, pinned host memory, streams and events for the TensorRT runtime: PyCUDA, or cuda-python where PyCUDA is missing.

Both libraries use the device's primary context, the one TensorRT works in. Handles and addresses are plain integers.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import math
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from helpers.errors import BertError, MissingDependency

INSTALL = "install one with: pip install cuda-python (or pycuda, which is compiled on the spot and needs the CUDA toolkit)"


class Gpu(Protocol):
    """The first visible GPU through one of the two libraries; all calls but `current` need it current on the thread."""

    name: str
    sm: int  # compute capability: 10 * major + minor
    library: str  # what the calls go through, with its version

    def current(self) -> contextlib.AbstractContextManager[None]: ...

    def allocate(self, size: int) -> int: ...

    def free(self, address: int) -> None: ...

    def pinned(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray: ...

    def free_pinned(self, array: np.ndarray) -> None: ...

    def stream(self) -> int: ...

    def close_stream(self, stream: int) -> None: ...

    def to_device(self, address: int, array: np.ndarray, stream: int) -> None: ...

    def to_host(self, array: np.ndarray, address: int, stream: int) -> None: ...

    def synchronize(self, stream: int) -> None: ...

    def event(self) -> Any: ...

    def record(self, event: Any, stream: int) -> None: ...

    def elapsed(self, start: Any, stop: Any) -> float: ...


@functools.cache
def open_gpu(library: str = "auto") -> Gpu:
    """Return the first visible GPU; library is "pycuda", "cuda-python" or the first of them that is installed.

    Raises MissingDependency when neither is installed or there is no GPU.
    """
    reasons = []
    if library in ("auto", "pycuda"):
        try:
            return PyCuda(importlib.import_module("pycuda.driver"))
        except ImportError as error:
            reasons.append(f"PyCUDA: {error}")
    if library in ("auto", "cuda-python"):
        for name in ("cuda.bindings.runtime", "cuda.cudart"):  # the second until cuda-python 12.5
            try:
                return CudaPython(importlib.import_module(name))
            except ImportError as error:
                reasons.append(f"cuda-python: {error}")
    raise MissingDependency(
        f"TensorRT engines need PyCUDA or cuda-python, neither can be imported ({'; '.join(reasons)}); {INSTALL}"
    )


def no_gpu(reason: object) -> MissingDependency:
    return MissingDependency(
        f"no NVIDIA GPU can be used here ({reason}); check nvidia-smi and CUDA_VISIBLE_DEVICES, or use --backend cpu"
    )


class PyCuda:
    """Through pycuda.driver. Its objects free themselves when they are forgotten, so they are kept beside their handles."""

    def __init__(self, driver: Any) -> None:
        self._cuda = driver
        try:
            driver.init()
            device = driver.Device(0)
        except driver.Error as error:
            raise no_gpu(error) from error
        self.name = device.name()
        major, minor = device.compute_capability()
        self.sm = 10 * major + minor
        self.library = f"PyCUDA {importlib.import_module('pycuda').VERSION_TEXT}"
        self._context = device.retain_primary_context()
        self._kept: dict[int, Any] = {}

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        self._context.push()
        try:
            yield
        except self._cuda.Error as error:
            raise BertError(f"CUDA failed on {self.name} ({error}); see nvidia-smi for memory in use and errors") from error
        finally:
            self._context.pop()

    def _keep(self, handle: int, thing: Any) -> int:
        self._kept[handle] = thing
        return handle

    def allocate(self, size: int) -> int:
        memory = self._cuda.mem_alloc(max(size, 1))
        return self._keep(int(memory), memory)

    def free(self, address: int) -> None:
        self._kept.pop(address).free()

    def pinned(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        return self._cuda.pagelocked_empty(shape, dtype)  # type: ignore[no-any-return]

    def free_pinned(self, array: np.ndarray) -> None:
        """Leave it to the array, which owns its memory."""

    def stream(self) -> int:
        stream = self._cuda.Stream()
        return self._keep(stream.handle, stream)

    def close_stream(self, stream: int) -> None:
        self._kept.pop(stream, None)

    def to_device(self, address: int, array: np.ndarray, stream: int) -> None:
        self._cuda.memcpy_htod_async(address, array, self._kept[stream])

    def to_host(self, array: np.ndarray, address: int, stream: int) -> None:
        self._cuda.memcpy_dtoh_async(array, address, self._kept[stream])

    def synchronize(self, stream: int) -> None:
        self._kept[stream].synchronize()

    def event(self) -> Any:
        return self._cuda.Event()

    def record(self, event: Any, stream: int) -> None:
        event.record(self._kept[stream])

    def elapsed(self, start: Any, stop: Any) -> float:
        """Return the milliseconds between two events, once the later has happened."""
        stop.synchronize()
        return float(start.time_till(stop))


class CudaPython:
    """Through cuda-python's runtime API, whose functions return (error, results...)."""

    def __init__(self, runtime: Any) -> None:
        self._cuda = runtime
        self._pinned: dict[int, int] = {}  # address of an array -> address CUDA gave
        try:
            self._call("cudaSetDevice", 0)
            properties = self._call("cudaGetDeviceProperties", 0)
        except BertError as error:
            raise no_gpu(str(error).partition(";")[0]) from error
        self.name = properties.name.decode() if isinstance(properties.name, bytes) else str(properties.name)
        self.sm = 10 * properties.major + properties.minor
        self.library = f"cuda-python, CUDA runtime {self._call('cudaRuntimeGetVersion')}"

    def _call(self, function: str, *arguments: Any) -> Any:
        error, *results = getattr(self._cuda, function)(*arguments)
        if int(error) != 0:
            _, text = self._cuda.cudaGetErrorString(error)
            text = text.decode() if isinstance(text, bytes) else text
            raise BertError(f"{function} failed ({text}); see nvidia-smi for memory in use and errors")
        return results[0] if results else None

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        self._call("cudaSetDevice", 0)
        yield

    def allocate(self, size: int) -> int:
        return int(self._call("cudaMalloc", max(size, 1)))

    def free(self, address: int) -> None:
        self._call("cudaFree", address)

    def pinned(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        size = max(math.prod(shape) * np.dtype(dtype).itemsize, 1)
        address = int(self._call("cudaMallocHost", size))
        memory = (ctypes.c_byte * size).from_address(address)
        array = np.frombuffer(memory, dtype, math.prod(shape)).reshape(shape)
        self._pinned[array.ctypes.data] = address
        return array

    def free_pinned(self, array: np.ndarray) -> None:
        self._call("cudaFreeHost", self._pinned.pop(array.ctypes.data))

    def stream(self) -> int:
        return int(self._call("cudaStreamCreateWithFlags", self._cuda.cudaStreamNonBlocking))

    def close_stream(self, stream: int) -> None:
        self._call("cudaStreamDestroy", stream)

    def to_device(self, address: int, array: np.ndarray, stream: int) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", address, array.ctypes.data, array.nbytes, kind, stream)

    def to_host(self, array: np.ndarray, address: int, stream: int) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", array.ctypes.data, address, array.nbytes, kind, stream)

    def synchronize(self, stream: int) -> None:
        self._call("cudaStreamSynchronize", stream)

    def event(self) -> Any:
        return self._call("cudaEventCreate")

    def record(self, event: Any, stream: int) -> None:
        self._call("cudaEventRecord", event, stream)

    def elapsed(self, start: Any, stop: Any) -> float:
        """Return the milliseconds between two events, once the later has happened."""
        self._call("cudaEventSynchronize", stop)
        return float(self._call("cudaEventElapsedTime", start, stop))
