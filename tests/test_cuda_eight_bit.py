# SPDX-License-Identifier: Apache-2.0
"""INT8 and FP8 engines on a Hopper GPU against their simulation in NumPy, tensor by tensor and in their logits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from conftest import relative_error
from helpers import eight_bit
from helpers.backends.cuda_file import packed_tensors, simulation
from helpers.batching import Batch, pack, random_batch
from helpers.config import BertConfig
from helpers.engine_file import METADATA_KEY, EngineInfo
from helpers.weights import Weights
from tests.cuda_engine import built
from tests.cuda_engine.arrays import decode

infer_c, ops = built.module("infer_c"), built.module("infer_c_ops")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(ops is None or built.capability() != 90, reason="needs a Hopper GPU and -DBERT_TEST_OPS=ON"),
]

# Inputs of the four products, by the names the reference reports them under.
INPUTS = (
    "attention_self_query_input_amax",
    "attention_output_dense_input_amax",
    "intermediate_dense_input_amax",
    "output_dense_input_amax",
)
MIXED = [1, 17, 127, 128, 129, 384, 512, 64]


@pytest.fixture(params=["int8", "fp8"])
def precision(request) -> str:
    return request.param


def engine(path: Path, config: BertConfig, weights: Weights, precision: str) -> str:
    info = EngineInfo("cuda", "packed", precision, (8,), (512,), config)
    tensors = packed_tensors(config, weights, np.dtype(np.float16), precision)
    save_file(tensors, str(path), {METADATA_KEY: info.to_json()})
    return str(path)


def run(e, batch: Batch) -> np.ndarray:
    return e.run_packed(batch.ids, batch.segments, batch.cu_seqlens)


def test_what_products_read_layer_by_layer(config, weights, tmp_path: Path, precision: str) -> None:
    batch = random_batch([1, 17, 127, 129, 200], config.vocab_size)
    reference = simulation(config, weights, precision)
    wanted: dict[str, np.ndarray] = {}
    expected = reference(batch, observe=lambda name, x: wanted.__setitem__(name, x))
    logits, seen = ops.trace(engine(tmp_path / "e", config, weights, precision), batch.ids, batch.segments, batch.cu_seqlens)
    assert len(seen) == 4 * config.num_hidden_layers
    for (layer, product), codes in sorted(seen.items()):
        name = f"l{layer}_{INPUTS[product]}"
        scaled = wanted[name] / (reference.ranges[name] / eight_bit.LIMITS[precision])
        off = np.abs(decode(codes, precision) - eight_bit.nearest(scaled, precision))
        # The step of INT8 is 1 everywhere, E4M3's grows with the value; near 0, where it is tiny, FP16 between the products counts.
        step = 1.0 if precision == "int8" else np.maximum(np.abs(scaled) / 8, 448 / 256)
        share = (off > step * 1.01).mean()
        error = relative_error(decode(codes, precision), scaled)
        print(f"{name}: {share:.2e} beyond one step, {(off > 0).mean():.3f} not equal, error {error:.4f}")
        # Values beside a tie fall to either side; a layer deeper, that has moved what is compared.
        assert share <= (1e-4 if layer == 0 else 2e-2), name
    assert relative_error(logits, expected) <= 5e-2


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("variant", [None, [64, 1, 1], [64, 2, 2], [128, 1, 1], [256, 1, 1]], ids=str)
def test_logits(config, weights, tmp_path: Path, precision: str, variant: list[int] | None, graph: bool) -> None:
    keys = [*range(128, 1025, 128), 2048, 4096, 8192]
    choices = json.dumps({str(key): [variant] * 4 for key in keys}) if variant else ""
    e = infer_c.bert_inf(engine(tmp_path / "e", config, weights, precision), enable_graph=graph, choices=choices)
    for lengths in ([17], MIXED):
        batch = random_batch(lengths, config.vocab_size)
        assert relative_error(run(e, batch), simulation(config, weights, precision)(batch)) <= 5e-2


def test_batch_equals_single(config, weights, tmp_path: Path, precision: str) -> None:
    e = infer_c.bert_inf(engine(tmp_path / "e", config, weights, precision), enable_graph=True)
    batch = random_batch(MIXED, config.vocab_size)
    together = run(e, batch)
    for first, last in zip(batch.cu_seqlens, batch.cu_seqlens[1:], strict=False):
        alone = run(e, pack([batch.ids[first:last]], [batch.segments[first:last]]))
        assert relative_error(alone, together[first:last]) <= 2e-2  # other kernels add up in another order: ties fall differently
