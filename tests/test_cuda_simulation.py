# SPDX-License-Identifier: Apache-2.0
"""The NumPy simulation of 8-bit cuda engines against the engine file's own tensors, multiplied as the file says."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from conftest import assert_close, relative_error, small_config, small_weights
from helpers import calibrator
from helpers.backends import cuda_file
from helpers.batching import Batch, random_batch
from helpers.eight_bit import nearest
from helpers.reference import Reference, gelu, layer_norm, softmax
from helpers.weights import Weights
from helpers.weights.names import activation_ranges

CONFIG = small_config(heads=3)
BATCH = random_batch([11, 30], CONFIG.vocab_size)
KEEP = np.dtype(np.float32)  # of the embedding matrices, so that only 8 bits make a difference


@pytest.fixture(scope="module")
def calibrated() -> Weights:
    weights = small_weights(CONFIG)
    ranges = calibrator.measure(CONFIG, weights, [BATCH], 99.9)
    for number, part in enumerate(cuda_file.QUERY_KEY_VALUE):  # trained ranges of the three may differ
        ranges[f"l1_{part}_input_amax"] *= np.float32(1 - number / 10)
    ranges["l0_output_dense_kernel_amax"] = np.abs(weights["l0_output_dense_kernel"]).max(1) * np.float32(0.9)
    return Weights(weights.tensors, ranges)


def run_file(t: dict[str, np.ndarray], batch: Batch, precision: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return logits, and the 8-bit tensors by the name of the product that reads them, computed from an engine's tensors."""
    codes: dict[str, np.ndarray] = {}

    def rounded(scaled: np.ndarray, precision: str = precision) -> np.ndarray:
        if precision == "int8":
            return np.clip(np.rint(scaled), -127, 127)
        return np.clip(scaled, -448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float64)

    def stored(name: str, x: np.ndarray) -> np.ndarray:
        codes[name] = rounded(x / t[f"{name}_input_scale"])
        return codes[name]

    def product(name: str, x8: np.ndarray) -> np.ndarray:
        kernel = t[f"{name}_kernel"]
        kernel = (kernel if precision == "int8" else kernel.view(ml_dtypes.float8_e4m3fn)).astype(np.float64)
        return x8 @ kernel.T * t[f"{name}_scale"] + t[f"{name}_bias"]

    def norm(name: str, x: np.ndarray) -> np.ndarray:
        return layer_norm(x, t[f"{name}_layernorm_gamma"], t[f"{name}_layernorm_beta"], CONFIG.layer_norm_eps)

    e, heads, size = "bert_embeddings_", CONFIG.num_attention_heads, CONFIG.head_size
    positions = np.concatenate([np.arange(length) for length in batch.lengths])
    x = (
        t[f"{e}word_embeddings"][batch.ids]
        + t[f"{e}token_type_embeddings"][batch.segments]
        + t[f"{e}position_embeddings"][positions]
    )
    x = norm("bert_embeddings", x.astype(np.float64))
    for layer in range(CONFIG.num_hidden_layers):
        qkv, out, inner, last = (f"l{layer}_{name}" for name in cuda_file.PRODUCTS)
        q, k, v = np.split(product(qkv, stored(qkv, x)), 3, axis=1)
        q, k = rounded(q, "fp8") * t[f"l{layer}_attention_self_score_scale"], rounded(k, "fp8")
        context = np.empty_like(q)
        for begin, end in zip(batch.cu_seqlens[:-1], batch.cu_seqlens[1:], strict=True):
            for head in range(heads):
                part = np.s_[begin:end, head * size : (head + 1) * size]
                context[part] = softmax(q[part] @ k[part].T / np.sqrt(size)) @ v[part]
        attended = norm(f"l{layer}_attention_output", product(out, stored(out, context)) + x)
        x = gelu(product(inner, stored(inner, attended)), CONFIG.activation)
        x = norm(f"l{layer}_output", product(last, stored(last, x)) + attended)
    return x @ t["cls_squad_output_weights"].T + t["cls_squad_output_bias"], codes


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_simulation_computes_what_the_file_says(calibrated: Weights, precision) -> None:
    tensors = cuda_file.packed_tensors(CONFIG, calibrated, KEEP, precision)
    expected, codes = run_file(tensors, BATCH, precision)
    seen: dict[str, np.ndarray] = {}
    simulated = cuda_file.simulation(CONFIG, calibrated, precision)
    # Not exact: in float32 a value between two codes may fall to the other side.
    assert_close(simulated(BATCH, seen.__setitem__), expected, 0.01)
    assert len(codes) == 4 * CONFIG.num_hidden_layers
    for name, found in codes.items():
        part = cuda_file.PRODUCTS[name.split("_", 1)[1]][0]
        before = seen[f"{name.split('_', 1)[0]}_{part}_input_amax"]  # what the engine rounds, not yet rounded
        assert (nearest(before / tensors[f"{name}_input_scale"], precision) == found).mean() > 0.98


def test_rounding_is_visible_and_small(calibrated: Weights) -> None:
    exact = Reference(CONFIG, calibrated)(BATCH)
    errors = {}
    for precision in ("int8", "fp8"):
        errors[precision] = relative_error(cuda_file.simulation(CONFIG, calibrated, precision)(BATCH), exact)
    assert errors["int8"] != errors["fp8"]
    assert min(errors.values()) > 0.001 and max(errors.values()) < 0.15, errors


def test_what_only_other_backends_round_stays_as_it_is(calibrated: Weights) -> None:
    ranges = {name: np.float32(1e-3) for name in activation_ranges(CONFIG) if "quantizer" in name and "_qv_" not in name}
    spoiled = Weights(calibrated.tensors, {**calibrated.ranges, **ranges})
    found, expected = (cuda_file.simulation(CONFIG, each, "int8")(BATCH) for each in (spoiled, calibrated))
    assert np.array_equal(found, expected)
