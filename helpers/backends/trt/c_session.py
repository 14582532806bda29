# SPDX-License-Identifier: Apache-2.0
"""Plans through the C++ runner, which can replay them as CUDA graphs; chosen by --enable-graph where infer_c has TensorRT."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from helpers.backends import LoadOptions, cuda
from helpers.batching import Batch
from helpers.engine_file import EngineInfo
from helpers.errors import MissingDependency


def runner() -> Any:
    """Return the compiled module; raise MissingDependency when it is not there or was built without TensorRT."""
    module = cuda.infer_c()
    if not getattr(module, "tensorrt_version", lambda: 0)():
        raise MissingDependency(
            "infer_c was built without TensorRT; configure it again with -DTRT_INC_DIR=... and -DTRT_LIB_DIR=..."
        )
    return module


class CSession:
    """A plan in infer_c. Calls from several threads queue there."""

    concurrency = 2

    def __init__(self, path: Path, info: EngineInfo, options: LoadOptions) -> None:
        self.info, self.batch_size = info, info.max_batch
        self._path = path
        self._version = runner().tensorrt_version()
        self._engine = runner().bert_inf(str(path), enable_graph=options.enable_graph)

    def run(self, batch: Batch) -> np.ndarray:
        """Return start and end logits, float32 (tokens, 2)."""
        logits: np.ndarray = cuda.checked(self._path, self._engine.run_packed, batch.ids, batch.segments, batch.cu_seqlens)
        return logits

    def timer(self, batch: Batch) -> Callable[[], float]:
        """Stage a batch on the device; return a function that runs it and returns its milliseconds between two CUDA events."""
        cuda.checked(self._path, self._engine.stage, batch.ids, batch.segments, batch.cu_seqlens)
        return lambda: cuda.checked(self._path, self._engine.time_staged)

    def describe(self) -> dict[str, Any]:
        """Return GPU, versions and how the engine runs."""
        facts, version = self._engine.facts(), self._version
        return {
            "device": facts["device"],
            "tensorrt": f"{version // 10000}.{version // 100 % 100}.{version % 100}",
            "cuda": f"CUDA runtime {facts['runtime']}",
            "network": self.info.details.get("network", "unknown"),
            "path": f"{facts['path']}, CUDA graph",
        }
