# SPDX-License-Identifier: Apache-2.0
"""A deserialised plan: checked against this machine before, its tensors and profiles read after."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from helpers.backends.trt import api
from helpers.backends.trt.profiles import Bounds, Profile
from helpers.config import BertConfig
from helpers.cuda_utils import Gpu
from helpers.engine_file import EngineInfo
from helpers.errors import EngineMismatch, InputError

PADDED = ("input_ids", "segment_ids", "input_mask")
PACKED = ("input_ids", "segment_ids", "cu_seqlens", "max_seqlen")


@dataclass
class Engine:
    """A TensorRT engine with what is needed to run it. The runtime and the log must live as long as the engine."""

    trt: Any
    cuda_engine: Any
    runtime: Any
    log: Any
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    dtypes: dict[str, np.dtype]
    profiles: list[Profile]

    @property
    def packed(self) -> bool:
        return "cu_seqlens" in self.inputs


def rebuild(path: Path, info: EngineInfo) -> str:
    """Return the command that builds an engine again, but for the option that names its weights and the configuration."""
    script = "builder_varseqlen.py" if info.layout == "packed" else "builder.py"
    sizes = "".join(f" -b {size}" for size in info.batch_sizes) + "".join(f" -s {size}" for size in info.sequence_lengths)
    flags = "".join(f" {flag}" for flag in info.details.get("flags", []))
    weights = f" (weights: {info.weights_source})" if info.weights_source else ""
    return f"{script} -c ... -o {path} --backend tensorrt{sizes}{flags}{weights}"


def check_machine(path: Path, info: EngineInfo, trt: Any, gpu: Gpu, log: Callable[[str], None]) -> None:
    """Raise EngineMismatch, before anything is loaded, when an engine is of another TensorRT version or kind of GPU."""
    size, written = path.stat().st_size, info.details.get("plan_bytes")
    if written is not None and size != written:
        raise EngineMismatch(
            f"{path} has {size} bytes, its metadata {path}.json belongs to a plan of {written}; build the engine again"
        )
    built_with = info.versions.get("tensorrt")
    if built_with is not None and built_with.split(".")[:3] != trt.__version__.split(".")[:3]:
        raise EngineMismatch(
            f"the engine {path} was built with TensorRT {built_with}, here is {trt.__version__}, and a plan runs on its own "
            f"version only; install that version or build it again: {rebuild(path, info)}"
        )
    if info.gpu is None:
        return
    name, _, capability = info.gpu.rpartition(", compute capability ")
    here = f"{gpu.sm // 10}.{gpu.sm % 10}"
    if capability != here:
        raise EngineMismatch(
            f"the engine {path} was built for {info.gpu}, here is {gpu.name}, compute capability {here}; "
            f"build it again on this GPU: {rebuild(path, info)}"
        )
    if name != gpu.name:
        log(f"the engine was tuned on {name}, here is {gpu.name}: it runs, a rebuild may make it faster")


def open_engine(path: Path, log: Callable[[str], None], plugins: bool) -> Engine:
    """Deserialise a plan. Raises EngineMismatch when TensorRT cannot, or when its tensors are not those of a BERT engine."""
    trt = api.tensorrt()
    logger = api.logger(trt, False, log)
    if plugins:
        api.load_plugins(trt, logger)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"the engine {path} cannot be read ({error.strerror}); check -e/--engine") from error
    runtime = api.made(trt.Runtime(logger), "a runtime")
    engine = runtime.deserialize_cuda_engine(data)
    if engine is None:
        raise EngineMismatch(
            f"TensorRT {trt.__version__} cannot load {path}{api.last_error(logger)}; it is damaged or of another version or GPU: "
            "build it again on this machine with builder.py"
        )
    return _read(trt, engine, runtime, logger, path)


def _read(trt: Any, engine: Any, runtime: Any, log: Any, path: Path) -> Engine:
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    inputs = tuple(name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT)
    outputs = tuple(name for name in names if name not in inputs)
    _check_tensors(engine, inputs, outputs, path)
    types = {
        trt.DataType.INT32: np.int32,
        trt.DataType.INT64: np.int64,
        trt.DataType.FLOAT: np.float32,
        trt.DataType.HALF: np.float16,
    }
    dtypes = {}
    for name in names:
        dtype = engine.get_tensor_dtype(name)
        if dtype not in types:
            raise EngineMismatch(f"the tensor {name} of {path} has type {dtype}, which is none of INT32, INT64, FP32 and FP16")
        dtypes[name] = np.dtype(types[dtype])
    count = engine.num_optimization_profiles
    profiles: list[Profile] = [{name: _bounds(engine, name, index) for name in inputs} for index in range(count)]
    return Engine(trt, engine, runtime, log, inputs, outputs, dtypes, profiles)


def _bounds(engine: Any, name: str, profile: int) -> Bounds:
    """Return the shapes an input may have in a profile; a static input has one, whatever profiles say of it."""
    fixed = engine.get_tensor_shape(name)
    three = engine.get_tensor_profile_shape(name, profile) if -1 in tuple(fixed) else (fixed,) * 3
    return Bounds(*(tuple(int(size) for size in shape) for shape in three))


def _check_tensors(engine: Any, inputs: tuple[str, ...], outputs: tuple[str, ...], path: Path) -> None:
    """Raise EngineMismatch for a plan that is no BERT engine, or one with the [S, B] inputs of TensorRT 7.2's builder."""
    packed = "cu_seqlens" in inputs
    known = set(PACKED if packed else PADDED)
    needed = known - {"max_seqlen"}
    if not needed <= set(inputs) <= known or len(outputs) != 1 and set(outputs) != {"start_logits", "end_logits"}:
        raise EngineMismatch(
            f"{path} is no BERT question-answering engine: inputs {', '.join(inputs)}, outputs {', '.join(outputs)}; "
            "build one with builder.py or builder_varseqlen.py"
        )
    if packed:
        return
    ids, logits = tuple(engine.get_tensor_shape("input_ids")), tuple(engine.get_tensor_shape(outputs[0]))
    swapped = -1 not in ids and logits[:2] == ids[::-1] != ids
    if swapped or outputs == ("cls_squad_logits",):
        raise EngineMismatch(
            f"{path} takes inputs of shape [sequence, batch], as builders of TensorRT 7.2 made them; "
            "build it again from its checkpoint with builder.py"
        )


def bare_info(path: Path, engine: Engine) -> EngineInfo:
    """Return what a plan's tensors and profiles say: layout and sizes. Model and vocabulary are unknown.

    The sizes of BertConfig that no one can know from a plan are 1; vocabulary and positions are as large as can be.
    """
    if engine.packed:
        pairs = [
            (p["cu_seqlens"].most[0] - 1, (p["max_seqlen"] if "max_seqlen" in p else p["input_ids"]).most[0])
            for p in engine.profiles
        ]
    else:
        pairs = [p["input_ids"].most for p in engine.profiles]  # type: ignore[misc]
    batches, lengths = (tuple(sorted({pair[i] for pair in pairs})) for i in range(2))
    config = BertConfig(1, 1, 1, 1, vocab_size=2**31 - 1, max_position_embeddings=max(lengths))
    return EngineInfo(
        backend="tensorrt",
        layout="packed" if engine.packed else "padded",
        precision="unknown precision",  # type: ignore[arg-type]
        batch_sizes=batches,
        sequence_lengths=lengths,
        config=config,
        weights_source=str(path),
        versions={"tensorrt": engine.trt.__version__},
        details={"bare": True},
    )


def volume(shape: Any) -> int:
    """Return the number of elements of a shape."""
    return math.prod(int(size) for size in shape)
