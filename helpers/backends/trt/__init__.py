# SPDX-License-Identifier: Apache-2.0
"""The TensorRT backend: plans for TensorRT 10 (BERT plugins or none) and 11 (none), and running them.

TensorRT and the CUDA bindings are imported only when one of these functions is called.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from helpers.backends.trt import api

if TYPE_CHECKING:
    from helpers.backends import LoadOptions, Session
    from helpers.config import BertConfig, BuildOptions
    from helpers.engine_file import EngineInfo
    from helpers.weights import Weights


def check() -> None:
    """Raise MissingDependency when TensorRT, a GPU or Python's way to it is missing."""
    from helpers import cuda_utils

    api.tensorrt()
    cuda_utils.open_gpu()


check_build = check  # TensorRT tries its kernels on the GPU while it builds


def build(config: BertConfig, weights: Weights, options: BuildOptions, info: EngineInfo) -> None:
    """Write a TensorRT plan to options.output and its metadata to `<output>.json`."""
    from helpers import cuda_utils
    from helpers.backends.trt import engine_builder

    gpu = cuda_utils.open_gpu()
    engine_builder.build(config, weights, options, info, engine_builder.Gpu(gpu.name, gpu.sm))


def load(path: Path, info: EngineInfo, options: LoadOptions) -> Session:
    """Open a plan; raise EngineMismatch when it is of another GPU or TensorRT version."""
    from helpers.backends.trt import runtime

    return runtime.load(Path(path), info, options)


def bare_info(path: str | Path) -> EngineInfo:
    """Return metadata for a plan that has none beside it, read from the plan's tensors and profiles."""
    from helpers.backends.trt import runtime

    return runtime.bare_info(Path(path))
