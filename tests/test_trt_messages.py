# SPDX-License-Identifier: Apache-2.0
"""What users without TensorRT, its libraries, PyCUDA or a GPU are told: one sentence with the command that mends it."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from helpers import cuda_utils
from helpers.backends.trt import api
from helpers.errors import BertError, MissingDependency
from trt.bindings import VERSIONS, environment_or_skip, install


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    cuda_utils.open_gpu.cache_clear()
    yield
    cuda_utils.open_gpu.cache_clear()


def test_tensorrt_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] in ("tensorrt", "tensorrt_bindings")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [_Hidden("tensorrt"), *sys.meta_path])
    with pytest.raises(MissingDependency, match="TensorRT is not installed.*pip install tensorrt-cu13.*--backend cpu"):
        api.tensorrt()


@pytest.mark.parametrize("version", VERSIONS)
def test_libraries_missing(version: str) -> None:
    """The real bindings without their libraries, as `pip install tensorrt-cu13-bindings` alone leaves them."""
    env = environment_or_skip(version)
    env["LD_LIBRARY_PATH"] = ""
    code = (
        "from helpers.backends.trt import api\ntry:\n    api.tensorrt()\nexcept api.MissingDependency as error:\n    print(error)"
    )
    said = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, cwd=install(version)).stdout
    assert f".so.{version.split('.')[0]}: cannot open shared object file" in said
    assert "pip install tensorrt-cu13" in said
    assert "LD_LIBRARY_PATH" in said


def test_neither_cuda_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "meta_path", [_Hidden("pycuda"), _Hidden("cuda"), *sys.meta_path])
    for name in [name for name in sys.modules if name.split(".")[0] in ("pycuda", "cuda")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(
        MissingDependency, match=r"need PyCUDA or cuda-python.*PyCUDA: No module.*cuda-python: No module.*pip install cuda-python"
    ):
        cuda_utils.open_gpu()
    with pytest.raises(MissingDependency, match=r"\(PyCUDA: No module named 'pycuda'\); install one with: pip install cuda-python"):
        cuda_utils.open_gpu("pycuda")


class _Hidden:
    """A finder that knows nothing of one package, whatever is installed."""

    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.split(".")[0] == self.package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=self.package)


class CudaRuntime(types.ModuleType):
    """The few functions of cuda-python's runtime that are used, over host memory; `error` is what every call returns."""

    cudaStreamNonBlocking = 1
    cudaMemcpyKind = types.SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)

    def __init__(self, error: int = 0) -> None:
        super().__init__("cuda.bindings.runtime")
        self.error, self.kept = error, dict[int, np.ndarray]()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        results: dict[str, Any] = {
            "cudaSetDevice": (),
            "cudaGetDeviceProperties": (types.SimpleNamespace(name=b"NVIDIA H200", major=9, minor=0),),
            "cudaRuntimeGetVersion": (13000,),
            "cudaStreamCreateWithFlags": (7,),
            "cudaEventCreate": ("event",),
            "cudaEventElapsedTime": (1.5,),
        }
        if name in ("cudaMalloc", "cudaMallocHost"):
            return lambda size: (self.error, self._allocate(size))
        if name in ("cudaFree", "cudaFreeHost"):
            return lambda address: (0 if self.kept.pop(address, None) is not None else 1,)
        if name == "cudaMemcpyAsync":
            return self._copy
        if name == "cudaGetErrorString":
            return lambda error: (0, b"no CUDA-capable device is detected")
        return lambda *arguments: (self.error, *results.get(name, ()))

    def _allocate(self, size: int) -> int:
        memory = np.zeros(size, np.uint8)
        self.kept[memory.ctypes.data] = memory
        return int(memory.ctypes.data)

    def _copy(self, to: int, source: int, size: int, kind: int, stream: int) -> tuple[int]:
        ctypes.memmove(to, source, size)
        return (0,)


def test_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_utils.importlib, "import_module", lambda name: _import(name, CudaRuntime(error=100)))
    with pytest.raises(MissingDependency, match=r"no NVIDIA GPU can be used here.*no CUDA-capable device.*nvidia-smi"):
        cuda_utils.open_gpu()


def test_cuda_python_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = CudaRuntime()
    monkeypatch.setattr(cuda_utils.importlib, "import_module", lambda name: _import(name, runtime))
    gpu = cuda_utils.open_gpu()
    assert (gpu.name, gpu.sm) == ("NVIDIA H200", 90)
    round_trip(gpu)
    assert not runtime.kept
    runtime.error = 2
    with pytest.raises(BertError, match="cudaMalloc failed"):
        gpu.allocate(1)


def _import(name: str, runtime: CudaRuntime) -> CudaRuntime:
    if name.startswith("pycuda"):
        raise ModuleNotFoundError(name)
    return runtime


def round_trip(gpu: cuda_utils.Gpu) -> None:
    """Send numbers to the device and back through pinned memory, timed by events."""
    with gpu.current():
        stream = gpu.stream()
        first, second = gpu.pinned((3, 5), np.int32), gpu.pinned((3, 5), np.int32)
        first[...], second[...] = np.arange(15).reshape(3, 5), 0
        address = gpu.allocate(first.nbytes)
        start, stop = gpu.event(), gpu.event()
        gpu.record(start, stream)
        gpu.to_device(address, first, stream)
        gpu.to_host(second, address, stream)
        gpu.record(stop, stream)
        gpu.synchronize(stream)
        assert gpu.elapsed(start, stop) >= 0
        np.testing.assert_array_equal(first, second)
        gpu.free(address)
        gpu.free_pinned(first)
        gpu.free_pinned(second)
        gpu.close_stream(stream)


def pycuda_driver() -> types.ModuleType:
    """The part of pycuda.driver that is used, over host memory, with pycuda's own habit of freeing what is forgotten."""
    driver: Any = types.ModuleType("pycuda.driver")

    class Memory:
        def __init__(self, size: int) -> None:
            self.array = np.zeros(size, np.uint8)

        def __int__(self) -> int:
            return int(self.array.ctypes.data)

        def free(self) -> None:
            del self.array

    class Stream:
        def __init__(self) -> None:
            self.handle, self.done = id(self), 0

        def synchronize(self) -> None:
            self.done += 1

    class Event:
        def record(self, stream: Stream) -> None:
            self.stream = stream

        def synchronize(self) -> None:
            self.stream.synchronize()

        def time_till(self, other: Event) -> float:
            return 1.5

    class Context:
        depth = 0

        def push(self) -> None:
            self.depth += 1

        def pop(self) -> None:
            self.depth -= 1

    class Device:
        def __init__(self, index: int) -> None:
            assert index == 0

        def name(self) -> str:
            return "NVIDIA H200"

        def compute_capability(self) -> tuple[int, int]:
            return 9, 0

        def retain_primary_context(self) -> Context:
            return Context()

    def copy(to: int, source: int, array: np.ndarray, stream: Stream) -> None:
        assert isinstance(stream, Stream)
        ctypes.memmove(to, source, array.nbytes)

    driver.Error, driver.init, driver.Device, driver.Stream, driver.Event = RuntimeError, lambda: None, Device, Stream, Event
    driver.mem_alloc, driver.pagelocked_empty = Memory, np.empty
    driver.memcpy_htod_async = lambda to, array, stream: copy(to, array.ctypes.data, array, stream)
    driver.memcpy_dtoh_async = lambda array, source, stream: copy(array.ctypes.data, source, array, stream)
    return driver  # type: ignore[no-any-return]


def test_pycuda_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    package = types.ModuleType("pycuda")
    package.VERSION_TEXT = "2025.1"  # type: ignore[attr-defined]
    modules = {"pycuda": package, "pycuda.driver": pycuda_driver()}
    monkeypatch.setattr(cuda_utils.importlib, "import_module", modules.__getitem__)
    gpu = cuda_utils.open_gpu()
    assert (gpu.name, gpu.sm, gpu.library) == ("NVIDIA H200", 90, "PyCUDA 2025.1")
    round_trip(gpu)
    assert not gpu._kept  # type: ignore[attr-defined]
    with pytest.raises(BertError, match="CUDA failed on NVIDIA H200"), gpu.current():
        raise RuntimeError("out of memory")


@pytest.mark.gpu
@pytest.mark.parametrize("library", ["pycuda", "cuda-python"])
def test_real_gpu(library: str) -> None:
    try:
        gpu = cuda_utils.open_gpu(library)
    except MissingDependency as error:
        pytest.skip(str(error))
    for _ in range(3):
        round_trip(gpu)
    assert gpu.sm >= 50
