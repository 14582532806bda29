# SPDX-License-Identifier: Apache-2.0
"""Engines built, written, loaded and run against the strict doubles: from build options to logits, and what must be refused."""

from __future__ import annotations

import dataclasses
import gc
import threading
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers import cuda_utils
from helpers.backends import LoadOptions, trt
from helpers.batching import Batch, random_batch
from helpers.config import BuildOptions
from helpers.engine_file import EngineInfo, is_bare_plan, read_info
from helpers.errors import EngineMismatch, MissingDependency
from trt import double
from trt.harness import MAJOR, TRT, WEAK
from trt.models import random_model, reference, relative_error, small
from trt.runtime_double import GPU

CONFIG = small(128, 2)
WEIGHTS = random_model(CONFIG)


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(cuda_utils, "open_gpu", lambda library="auto": GPU)
    monkeypatch.setattr(GPU, "name", GPU.name, raising=False)
    return GPU


def built(path: Path, **values: Any) -> Path:
    values.setdefault("batch_sizes", (4,))
    values.setdefault("sequence_lengths", (64,))
    options = BuildOptions(path / "demo.engine", **values)
    info = EngineInfo("tensorrt", options.layout, options.precision, options.batch_sizes, options.sequence_lengths, CONFIG)
    trt.build(CONFIG, WEIGHTS, options, info)
    return options.output


def opened(path: Path, **load: Any) -> Any:
    info = trt.bare_info(path) if is_bare_plan(path) else read_info(path)
    return trt.load(path, info, LoadOptions(log=lambda line: None, **load))


def expected(batch: Batch) -> np.ndarray:
    return reference(CONFIG, WEIGHTS)(batch)


PADDED = {"static": {}, "batches": {"batch_sizes": (1, 2, 8)}, "lengths": {"batch_sizes": (2, 4), "sequence_lengths": (32, 64)}}
PACKED: dict[str, dict[str, Any]] = {"fp16": {"fp16": True}, "no plugins": {"no_plugins": True, "batch_sizes": (1, 4)}}


@pytest.mark.parametrize("shape", PADDED)
@pytest.mark.parametrize("extra", [{}, {"no_plugins": True}, {"fp16": True}], ids=["fp32", "no plugins", "fp16"])
def check_padded_engine(tmp_path: Path, shape: str, extra: dict[str, Any]) -> None:
    session = opened(built(tmp_path, **PADDED[shape], **extra))
    for lengths in ([40, 64], [5], [17, 23], [3, 31, 8, 30]):
        batch = random_batch(lengths, CONFIG.vocab_size, len(lengths))
        assert relative_error(session.run(batch), expected(batch)) <= (1e-2 if "fp16" in extra else 1e-4)


@pytest.mark.parametrize("kind", PACKED)
def check_packed_engine(tmp_path: Path, kind: str) -> None:
    session = opened(built(tmp_path, layout="packed", **PACKED[kind]))
    for lengths in ([40, 64], [5], [64, 64, 64, 64]):
        batch = random_batch(lengths, CONFIG.vocab_size, len(lengths))
        assert relative_error(session.run(batch), expected(batch)) <= 1e-2


def check_memory_is_allocated_once_and_freed(tmp_path: Path) -> None:
    path = built(tmp_path, batch_sizes=(1, 8))
    before = len(GPU.memory), len(GPU.pinned_memory), len(GPU.streams)
    session = opened(path)
    count = GPU.allocations
    for seed in range(20):
        session.run(random_batch([30] * (1 + seed % 8), CONFIG.vocab_size, seed))
    assert GPU.allocations == count
    del session
    gc.collect()
    assert (len(GPU.memory), len(GPU.pinned_memory), len(GPU.streams)) == before


def check_threads_get_their_own_answers(tmp_path: Path) -> None:
    session = opened(built(tmp_path, no_plugins=True))
    batches = [random_batch([20 + i, 40], CONFIG.vocab_size, i) for i in range(12)]
    results: dict[int, np.ndarray] = {}

    def work(first: int) -> None:
        for i in range(first, 12, 3):
            results[i] = session.run(batches[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(relative_error(results[i], expected(batch)) <= 1e-4 for i, batch in enumerate(batches))


def check_timer_runs_the_engine(tmp_path: Path) -> None:
    session = opened(built(tmp_path))
    batch = random_batch([64] * 4, CONFIG.vocab_size)
    run = session.timer(batch)
    assert run() > 0 and run() > 0
    assert relative_error(session.run(batch), expected(batch)) <= 1e-4
    assert session.describe()["tensorrt"] == TRT.__version__


def check_profile_that_wastes_least(tmp_path: Path) -> None:
    session = opened(built(tmp_path, batch_sizes=(1, 4), sequence_lengths=(32, 64), no_plugins=True))
    for lengths, profile in (([20], 0), ([40], 1), ([20, 20], 2), ([40, 4, 4], 3)):
        session.run(random_batch(lengths, CONFIG.vocab_size))
        assert {w.profile for w in session._workers if w.shapes} >= {profile}


def check_too_large_a_batch_names_both_sides(tmp_path: Path) -> None:
    session = opened(built(tmp_path, batch_sizes=(1, 2)))
    for lengths in ([5] * 3, [65]):
        with pytest.raises(EngineMismatch, match=r"batch 2 x length 64.*build it with -b"):
            session.run(random_batch(lengths, CONFIG.vocab_size))


class CRunner:
    """infer_c as the session sees it, answering through the Python session."""

    path = ""

    def __init__(self, version: int) -> None:
        self.version = version

    def tensorrt_version(self) -> int:
        return self.version

    def bert_inf(self, path: str, enable_graph: bool) -> Any:
        assert enable_graph
        session = opened(Path(path))

        def run_packed(ids: np.ndarray, segments: np.ndarray, cu_seqlens: np.ndarray) -> np.ndarray:
            if len(cu_seqlens) - 1 > session.info.max_batch:
                raise ValueError(f"a batch of {len(cu_seqlens) - 1} sequences was given")
            return session.run(Batch(ids, segments, cu_seqlens, int(np.diff(cu_seqlens).max())))  # type: ignore[no-any-return]

        facts = {"device": "NVIDIA A100", "runtime": 13000, "path": "TensorRT plan"}
        return types.SimpleNamespace(run_packed=run_packed, stage=run_packed, time_staged=lambda: 1.5, facts=lambda: facts)


def check_graphs_go_through_the_c_runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from helpers.backends import cuda

    path, lines = built(tmp_path), []
    batch = random_batch([40, 64], CONFIG.vocab_size)
    for version in (0, 101600):
        monkeypatch.setattr(cuda, "infer_c", lambda version=version: CRunner(version))
        session = trt.load(path, read_info(path), LoadOptions(enable_graph=True, log=lines.append))
        assert relative_error(session.run(batch), expected(batch)) <= 1e-4
    assert any("without a CUDA graph: infer_c was built without TensorRT" in line for line in lines)
    assert session.timer(batch)() == 1.5
    assert session.describe()["tensorrt"] == "10.16.0"
    with pytest.raises(EngineMismatch, match="a batch of 5"):
        session.run(random_batch([4] * 5, CONFIG.vocab_size))


# before anything is loaded ------------------------------------------------------------------------------------------------------


def check_other_version_and_other_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = built(tmp_path, fp16=True)
    info = read_info(path)
    monkeypatch.setattr(TRT, "Runtime", None)  # no check may come so late
    other = dataclasses.replace(info, versions={"tensorrt": "10.3.0.26"})
    with pytest.raises(
        EngineMismatch, match=rf"TensorRT 10\.3\.0\.26, here is {MAJOR}\..*build it again: builder.py .*-b 4 -s 64 --fp16"
    ):
        trt.load(path, other, LoadOptions())
    other = dataclasses.replace(info, gpu="Tesla T4, compute capability 7.5")
    with pytest.raises(EngineMismatch, match="built for Tesla T4, compute capability 7.5, here is NVIDIA A100.*8.0"):
        trt.load(path, other, LoadOptions())
    path.write_bytes(b"ptrt another plan")
    with pytest.raises(EngineMismatch, match="its metadata"):
        trt.load(path, info, LoadOptions())


def check_same_kind_of_gpu_under_another_name(tmp_path: Path) -> None:
    path, lines = built(tmp_path), []
    info = dataclasses.replace(read_info(path), gpu="NVIDIA A30, compute capability 8.0")
    trt.load(path, info, LoadOptions(log=lines.append))
    assert any("tuned on NVIDIA A30" in line for line in lines)


def check_damaged_plan(tmp_path: Path) -> None:
    path = built(tmp_path)
    info = dataclasses.replace(read_info(path), details={})
    path.write_bytes(b"ptrt rubbish")
    with pytest.raises(EngineMismatch, match="cannot load.*magicTag.*build it again"):
        trt.load(path, info, LoadOptions(log=lambda line: None))


def check_bare_plan_runs(tmp_path: Path) -> None:
    for name, values in {"padded": {"batch_sizes": (1, 4)}, "packed": {"layout": "packed", "no_plugins": True}}.items():
        path = built(tmp_path / name, **values)
        Path(f"{path}.json").unlink()
        info = trt.bare_info(path)
        assert (info.layout, info.max_batch, info.max_length) == (name, 4, 64)
        batch = random_batch([40, 7], CONFIG.vocab_size)
        assert relative_error(opened(path).run(batch), expected(batch)) <= 1e-4


def check_seven_two_layout_is_refused(tmp_path: Path) -> None:
    path = built(tmp_path)
    network, _ = double.PLANS[path.read_bytes()]
    Path(f"{path}.json").unlink()
    network.output_tensors[0].props["name"] = "cls_squad_logits"
    with pytest.raises(EngineMismatch, match=r"\[sequence, batch\]"):
        trt.bare_info(path)
    network.output_tensors[0].props["name"] = "probabilities"
    network.input_tensors[0].props["name"] = "pixels"
    with pytest.raises(EngineMismatch, match="no BERT question-answering engine: inputs pixels"):
        trt.bare_info(path)


@pytest.mark.skipif(not WEAK, reason="TensorRT 11 builds without plugins by default")
def check_missing_plugin_is_named(tmp_path: Path) -> None:
    TRT.registry.missing = {("CustomSkipLayerNormPluginDynamic", "1")}
    try:
        with pytest.raises(MissingDependency, match="CustomSkipLayerNormPluginDynamic version 1.*--no-plugins"):
            built(tmp_path)
        assert not (tmp_path / "demo.engine").exists() and not list(tmp_path.iterdir())
    finally:
        TRT.registry.missing = set()


# the double itself must refuse what TensorRT refuses ------------------------------------------------------------------------------


def mutate_worker(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """Plant one mistake in the runtime."""
    from helpers.backends.trt import runtime

    worker = runtime.Worker
    if what == "missing address":

        def prepare(self: Any, profile: int, feeds: dict[str, np.ndarray]) -> None:
            self._set_shapes(profile, {name: array.shape for name, array in feeds.items()})
            self.shapes = {name: tuple(int(s) for s in self.context.get_tensor_shape(name)) for name in self.device}
            for name, address in list(self.device.items())[1:]:
                self.context.set_tensor_address(name, address)

        monkeypatch.setattr(worker, "prepare", prepare)
    elif what == "wrong name":
        read = runtime.engine.open_engine
        monkeypatch.setattr(
            runtime.engine, "open_engine", lambda *a, **k: dataclasses.replace(read(*a, **k), outputs=("cls_squad_logits",))
        )
    elif what == "wrong dtype":
        read = runtime.engine.open_engine

        def half(*args: Any, **kwargs: Any) -> Any:
            opened = read(*args, **kwargs)
            opened.dtypes["logits_out"] = np.dtype(np.float16)
            return opened

        monkeypatch.setattr(runtime.engine, "open_engine", half)
    elif what == "address as float":
        allocate = GPU.allocate
        monkeypatch.setattr(GPU, "allocate", lambda size: float(allocate(size)))
    elif what == "swapped inputs":

        def feeds(self: Any, worker_: Any, batch: Batch) -> Any:
            profile, made = original_feeds(self, worker_, batch)
            return profile, {**made, "input_mask": made["segment_ids"], "segment_ids": made["input_mask"]}

        original_feeds = runtime.TrtSession._feeds
        monkeypatch.setattr(runtime.TrtSession, "_feeds", feeds)
    elif what == "old call":
        monkeypatch.setattr(worker, "execute", lambda self: self.context.execute_async_v2([1], self.stream))
    elif what == "no synchronisation":
        monkeypatch.setattr(GPU, "synchronize", lambda stream: None)


@pytest.mark.parametrize(
    "what", ["missing address", "wrong name", "wrong dtype", "address as float", "swapped inputs", "old call", "no synchronisation"]
)
def check_mistake_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    path = built(tmp_path)
    mutate_worker(monkeypatch, what)
    batch = random_batch([40, 64], CONFIG.vocab_size)
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - any refusal will do, a wrong answer too
        assert relative_error(opened(path).run(batch), expected(batch)) <= 1e-4
    assert not isinstance(caught.value, NotImplementedError)
