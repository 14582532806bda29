# SPDX-License-Identifier: Apache-2.0
"""The cpu backend: one standard ONNX file, executed by OpenVINO, or by ONNX Runtime where OpenVINO is missing."""

from __future__ import annotations

import importlib.util
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np

from helpers.backends import LoadOptions, Session
from helpers.batching import Batch
from helpers.config import BertConfig, BuildOptions
from helpers.engine_file import METADATA_KEY, EngineInfo, written_whole
from helpers.errors import EngineMismatch, MissingDependency, UsageError
from helpers.files import cache_directory, lack_of_memory
from helpers.weights import Weights

RUNTIMES = ("openvino", "onnxruntime")
MOST_THREADS = 1024  # or the machine's CPUs; from a few thousand on the runtimes spend minutes and gigabytes on starting them
INSTALL = "pip install openvino (or onnxruntime)"


def check() -> None:
    """Raise MissingDependency when neither runtime is installed."""
    if not any(importlib.util.find_spec(name) for name in RUNTIMES):
        raise MissingDependency(f"the cpu backend needs OpenVINO or ONNX Runtime, neither is installed; {INSTALL}")


def check_build() -> None:
    """Raise MissingDependency when engines cannot be written."""
    if not importlib.util.find_spec("onnx"):
        raise MissingDependency("building a cpu engine needs the onnx package; pip install onnx")


def build(config: BertConfig, weights: Weights, options: BuildOptions, info: EngineInfo) -> None:
    """Write the ONNX file with the engine's metadata."""
    check_build()
    import onnx

    from helpers.backends.cpu_graph import GraphBuilder

    if options.fp8:
        raise UsageError("the cpu backend has no FP8 arithmetic; give --int8, or build for a GPU with --backend cuda")
    check_size(weights, options.int8, len(info.to_json()))
    builder = GraphBuilder(config, weights, options.int8, options.force_int8_multihead, options.force_int8_skipln)
    model = builder.model()
    onnx.helper.set_model_props(model, {METADATA_KEY: info.to_json()})
    with written_whole(options.output) as temporary:
        onnx.save_model(model, str(temporary))


def check_size(weights: Weights, int8: bool, metadata: int) -> None:
    """Raise UsageError for what no ONNX file can hold, before it is put together."""
    if _file_size(weights, int8) + metadata < 2**31:
        return
    remedies = "--backend cuda" + (" or --int8" if _file_size(weights, True) + metadata < 2**31 else "")
    raise UsageError(
        f"the cpu engine would have {_file_size(weights, int8) / 2**30:.2f} GiB, and ONNX files end at 2 GiB; build with {remedies}"
    )


def _file_size(weights: Weights, int8: bool) -> int:
    """Return the bytes of an engine's weights, with room for the graph around them."""
    sizes = (array.nbytes // (4 if int8 and name.endswith("_kernel") else 1) for name, array in weights.tensors.items())
    return sum(sizes) + 2**22


def load(path: Path, info: EngineInfo, options: LoadOptions) -> Session:
    """Open an engine with the runtime that is asked for, or the first that is installed."""
    check_load_options(options)
    installed = [name for name in RUNTIMES if importlib.util.find_spec(name)]
    wanted = installed[0] if options.cpu_runtime == "auto" else options.cpu_runtime
    if wanted not in installed:
        raise MissingDependency(f"--cpu-runtime {wanted} is not installed; pip install {wanted}")
    try:
        return OpenVinoSession(path, info, options) if wanted == "openvino" else OnnxRuntimeSession(path, info, options)
    except Exception as error:  # each runtime raises types of its own for a damaged file
        if lack_of_memory(error):
            raise
        first = str(error).strip().splitlines()
        raise EngineMismatch(
            f"{wanted} cannot load the engine {path} ({first[-1] if first else error!r}); build it again"
        ) from error


def check_load_options(options: LoadOptions) -> None:
    """Raise UsageError for a runtime that there is not, and for more threads or streams than any machine has use for."""
    if options.cpu_runtime not in ("auto", *RUNTIMES):
        raise UsageError(f"there is no --cpu-runtime {options.cpu_runtime}; give auto, {' or '.join(RUNTIMES)}")
    most = max(MOST_THREADS, os.cpu_count() or 1)
    for flag, count in (("--threads", options.threads), ("--streams", options.streams)):
        if count is not None and not 1 <= count <= most:
            raise UsageError(f"{flag} {count} is out of range; give 1 to {most}, or leave it out for what suits this machine")


def cpus() -> int:
    """Return how many CPUs this process may use: its affinity, and the container's quota (cgroup v2) where one is set."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(count, round(int(quota) / int(period))))
    except (OSError, ValueError):
        return count


class _PaddedSession:
    """What both runtimes share: batches are padded to their longest sequence on the way in and unpadded on the way out."""

    batch_size = 16
    length_step = 1  # lengths are padded to multiples of this

    def __init__(self, path: Path, info: EngineInfo) -> None:
        self.path, self.info, self.concurrency = path, info, 1

    def run(self, batch: Batch) -> np.ndarray:
        length = -(-batch.max_seqlen // self.length_step) * self.length_step
        ids, segments, mask = batch.pad(min(length, self.info.config.max_position_embeddings))
        return batch.unpad(self._infer({"input_ids": ids, "segment_ids": segments, "input_mask": mask}))

    def _infer(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        raise NotImplementedError

    def _wants_16_bits(self) -> bool:
        return self.info.precision in ("fp16", "bf16") or bool(self.info.details.get("fp16"))


class OpenVinoSession(_PaddedSession):
    """The engine compiled by OpenVINO for this CPU; one infer request a calling thread.

    Small batches of few different lengths are fastest: OpenVINO prepares kernels for every shape it meets, about 10 ms each.
    """

    batch_size = 4
    length_step = 16

    def __init__(self, path: Path, info: EngineInfo, options: LoadOptions) -> None:
        super().__init__(path, info)
        import openvino

        core = openvino.Core()
        properties: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY" if options.latency else "THROUGHPUT",
            "INFERENCE_PRECISION_HINT": self._precision(core, options),
        }
        allowed = cpus()
        if options.threads or allowed < (os.cpu_count() or 1):
            properties["INFERENCE_NUM_THREADS"] = options.threads or allowed
        if options.streams:
            properties["NUM_STREAMS"] = options.streams
        self._cache(core, options)
        self._compiled = core.compile_model(str(path), "CPU", properties)
        self.concurrency = 1 if options.latency else int(self._compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        self.precision = properties["INFERENCE_PRECISION_HINT"]
        self._requests = threading.local()
        # OpenVINO's binding sets itself up in the first call that meets a NumPy array, and two threads that are first together
        # lock each other out for good (one holds the interpreter, the other the once-guard). So one thread goes first, here.
        one = np.ones((1, 1), np.int32)
        self._infer({"input_ids": one, "segment_ids": one, "input_mask": one})

    def _precision(self, core: Any, options: LoadOptions) -> str:
        """Return the arithmetic type of what is not INT8: 16 bits if the engine asks for them and the CPU multiplies them."""
        if not self._wants_16_bits():
            return "f32"
        capable = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        # BF16 first: where a CPU has both (AMX), its BF16 products are the faster ones.
        for capability, hint, name in (("BF16", "bf16", "bfloat16"), ("FP16", "f16", "float16")):
            if capability in capable:
                options.log(f"16-bit arithmetic on this CPU: {name}")
                return hint
        options.log("this CPU has no 16-bit arithmetic: running in FP32")
        return "f32"

    @staticmethod
    def _cache(core: Any, options: LoadOptions) -> None:
        """Keep compiled models between runs, the newest few of them."""
        directory = cache_directory("openvino")
        try:
            directory.mkdir(parents=True, exist_ok=True)
            newest_first = sorted(directory.glob("*.blob"), key=lambda blob: -blob.stat().st_mtime)
            for blob in newest_first[8:]:
                blob.unlink(missing_ok=True)
            core.set_property({"CACHE_DIR": str(directory)})
        except OSError as error:
            options.log(f"compiled models are not cached: {directory} cannot be written ({error.strerror})")

    def _infer(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        request = getattr(self._requests, "request", None)
        if request is None:
            request = self._requests.request = self._compiled.create_infer_request()
        output: np.ndarray = request.infer(inputs, share_inputs=True, share_outputs=True)[0]
        return output  # a view of the request's buffer: `unpad` copies it before the next run of this thread

    def describe(self) -> dict[str, Any]:
        import openvino

        return {
            "device": cpu_name(),
            "runtime": f"OpenVINO {openvino.__version__.split('-')[0]}",
            "arithmetic": self.precision,
            "threads": int(self._compiled.get_property("INFERENCE_NUM_THREADS")),
            "streams": int(self._compiled.get_property("NUM_STREAMS")),
        }


class OnnxRuntimeSession(_PaddedSession):
    """The engine run by ONNX Runtime; always FP32 beside INT8 products."""

    def __init__(self, path: Path, info: EngineInfo, options: LoadOptions) -> None:
        super().__init__(path, info)
        import onnxruntime

        if self._wants_16_bits():
            options.log("ONNX Runtime has no 16-bit arithmetic on CPUs: running in FP32; pip install openvino for it")
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3
        self.threads = options.threads or cpus()
        settings.intra_op_num_threads = self.threads
        self._session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])

    def _infer(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        output: np.ndarray = self._session.run(["logits_out"], inputs)[0]
        return output

    def describe(self) -> dict[str, Any]:
        import onnxruntime

        return {
            "device": cpu_name(),
            "runtime": f"ONNX Runtime {onnxruntime.__version__}",
            "arithmetic": "f32",
            "threads": self.threads,
            "streams": 1,
        }


def cpu_name() -> str:
    """Return the processor's model name."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    import platform

    return platform.processor() or platform.machine()
