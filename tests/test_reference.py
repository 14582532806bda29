# SPDX-License-Identifier: Apache-2.0
"""The NumPy reference against an independent execution of the repository's own ONNX graph, and against itself."""

from __future__ import annotations

import math

import numpy as np
import pytest

from conftest import ONNX, assert_close, small_config, small_weights
from helpers.batching import pack, random_batch
from helpers.reference import Reference, fake_quantise, gelu


def test_int8_simulation_is_the_models_own_graph(config, weights) -> None:
    """The shipped graph has explicit Q/DQ nodes; without graph rewriting ONNX Runtime executes them one by one."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(ONNX), settings)
    batch = random_batch([40, 17], config.vocab_size)
    ids, segments, mask = (array.astype(np.int64) for array in batch.pad())
    logits = session.run(None, {"input_ids": ids, "segment_ids": segments, "input_mask": mask})
    # Not exact: a value on the edge between two INT8 steps may fall either way, and later layers see the difference.
    assert_close(Reference(config, weights, ranges=weights.ranges)(batch), batch.unpad(np.stack(logits, -1)), 0.05)


def test_float32_is_as_good_as_float64(config, weights) -> None:
    batch = random_batch([30, 9], config.vocab_size)
    assert_close(Reference(config, weights)(batch), Reference(config, weights, np.float64)(batch), 1e-5)


@pytest.mark.parametrize("activation", ["gelu_tanh", "gelu_erf"])
def test_a_batch_is_its_sequences_one_by_one(activation: str) -> None:
    config = small_config(heads=3, head_size=8, activation=activation)
    reference = Reference(config, small_weights(config), np.float64)
    batch = random_batch([1, 7, 33], config.vocab_size)
    alone = [
        reference(pack([batch.ids[a:b]], [batch.segments[a:b]]))
        for a, b in zip(batch.cu_seqlens[:-1], batch.cu_seqlens[1:], strict=True)
    ]
    assert_close(reference(batch), np.concatenate(alone), 1e-12)


def test_gelu_forms() -> None:
    x = np.linspace(-4, 4, 101)
    exact = np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x])
    np.testing.assert_allclose(gelu(x, "gelu_erf"), exact, atol=1e-12)
    np.testing.assert_allclose(gelu(x, "gelu_tanh"), exact, atol=5e-4)
    assert np.abs(gelu(x, "gelu_tanh") - exact).max() > 1e-5


def test_fake_quantise_is_127_steps_by_row() -> None:
    x = np.array([[1.0, 0.3, -2.0], [10.0, -3.0, 4.0]], np.float32)
    np.testing.assert_allclose(fake_quantise(x, np.float32(1.27)), np.clip(x, -1.27, 1.27), atol=0.0051)
    by_row = fake_quantise(x, np.array([2.0, 10.0]))
    np.testing.assert_allclose(by_row, x, atol=10 / 254)
    np.testing.assert_allclose(by_row[0], x[0], atol=2 / 254)
