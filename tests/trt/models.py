# SPDX-License-Identifier: Apache-2.0
"""Models and batches for the network checks: small random ones, the repository's own, and Megatron's residuals in the reference."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from helpers.batching import Batch, random_batch
from helpers.config import BertConfig
from helpers.reference import Reference
from helpers.weights import Weights, checked
from helpers.weights.names import expected_shapes

MODEL = Path(__file__).parents[2] / "models" / "bert_minilm_l6_qa_squad11_fake_quant"


def small(hidden: int, heads: int, inner: int = 128, activation: str = "gelu_tanh", positions: int = 512) -> BertConfig:
    return BertConfig(hidden, 2, heads, inner, vocab_size=97, max_position_embeddings=positions, activation=activation)


@functools.cache
def random_model(config: BertConfig, megatron: bool = False, seed: int = 7) -> Weights:
    """Return random weights with spread-out logits, and the ranges the reference sees on a few batches."""
    random, tensors = np.random.default_rng(seed), {}
    for name, shape in expected_shapes(config).items():
        if name.endswith("gamma"):
            tensors[name] = random.uniform(0.6, 1.4, shape)
        elif len(shape) == 1:
            tensors[name] = random.normal(0, 0.2, shape)
        else:
            tensors[name] = random.normal(0, 1.5 / np.sqrt(shape[1]) if "embeddings" not in name else 0.6, shape)
    weights = checked(config, {name: a.astype(np.float32) for name, a in tensors.items()}, {}, "random weights")
    return Weights(weights.tensors, ranges_of(config, weights, megatron), weights.source)


def ranges_of(config: BertConfig, weights: Weights, megatron: bool = False) -> dict[str, np.ndarray]:
    """Return the largest magnitude of every tensor a quantised engine rounds, over a few random batches."""
    ranges: dict[str, np.ndarray] = {}

    def see(name: str, tensor: np.ndarray) -> None:
        if name.endswith("_amax"):
            ranges[name] = np.maximum(ranges.get(name, np.float32(1e-6)), np.abs(tensor).max()).astype(np.float32)

    model = reference(config, weights, megatron=megatron)
    for seed in range(3):
        model(random_batch([40, 64, 17], config.vocab_size, seed), see)
    return ranges


@functools.cache
def repository_model() -> tuple[BertConfig, Weights]:
    from helpers.weights.onnx_model import read

    config = BertConfig.from_dir(MODEL)
    return config, read(config, MODEL / "bert_minilm_l6_qa_fake_quant.onnx")


class Megatron(Reference):
    """The reference with Megatron's residuals: what is added is the sum before the last LayerNorm, not its result."""

    def __call__(self, batch: Batch, observe: Any = None) -> np.ndarray:
        self.sums: list[np.ndarray] = []
        return super().__call__(batch, observe)

    def _norm(self, p: str, x: np.ndarray) -> np.ndarray:
        self.sums.append(x)
        return super()._norm(p, x)

    def _add(self, p: str, local: np.ndarray, residual: np.ndarray, see: Any) -> np.ndarray:
        return super()._add(p, local, self.sums[-1], see)


# What an engine rounds to INT8, by the endings of the ranges' names: the products' inputs, what attention adds, all of it.
INT8_PRODUCTS = (
    *(f"{name}_input" for name in ("query", "key", "value")),
    *(f"{name}_dense_input" for name in ("attention_output", "intermediate", "output")),
)
INT8_ATTENTION = tuple(f"{name}_input_quantizer" for name in ("qv_a", "qv_b", "av_b", "av_a"))
EVERYTHING_INT8 = ("",)


def easy_ranges(config: BertConfig, weights: Weights, megatron: bool = False) -> Weights:
    """Return weights whose ranges make INT8 arithmetic comparable digit by digit.

    Wide enough that nothing saturates (codes end at -128 in TensorRT, at -127 in training); scales with few digits, so that
    FP32 holds them exactly; one range for query, key and value and one for a tensor and its use as a residual, as the plugins have.
    """
    easy = {
        name: 127 * np.exp2(np.ceil(np.log2(amax * 1.2 / 127) * 8) / 8).astype(np.float16).astype(np.float32)
        for name, amax in weights.ranges.items()
    }
    for name, array in weights.tensors.items():
        if name.endswith("_kernel"):
            easy[f"{name}_amax"] = 127 * np.exp2(np.ceil(np.log2(np.abs(array).max(1) / 127))).astype(np.float32)
    for i in range(config.num_hidden_layers):
        operands = [f"l{i}_attention_self_{name}_input_quantizer_amax" for name in ("qv_a", "qv_b", "av_b")]
        easy |= dict.fromkeys(operands, max(easy[name] for name in operands))
        if not megatron:
            easy[f"l{i}_attention_output_add_residual_input_quantizer_amax"] = easy[f"l{i}_attention_self_query_input_amax"]
            easy[f"l{i}_output_add_residual_input_quantizer_amax"] = easy[f"l{i}_intermediate_dense_input_amax"]
    return Weights(weights.tensors, easy, weights.source)


def reference(
    config: BertConfig,
    weights: Weights,
    megatron: bool = False,
    rounded: tuple[str, ...] = (),
    dtype: type = np.float32,
    trained: bool = False,
    kernels: Callable[[str], bool] = lambda name: True,
) -> Reference:
    """Return the oracle.

    rounded: endings of the names of ranges to round to INT8; kernels are rounded too, by the trained range of each row or by
    its largest weight.
    """
    ranges: dict[str, np.ndarray] = {}
    if rounded:
        chosen = [name for name in weights.ranges if name.removesuffix("_amax").endswith(rounded) and "kernel" not in name]
        ranges = {name: weights.ranges[name] for name in chosen}
        for name, array in weights.tensors.items():
            if name.endswith("_kernel") and kernels(name):
                own = weights.ranges.get(f"{name}_amax") if trained else None
                ranges[f"{name}_amax"] = np.abs(array.astype(dtype)).max(1) if own is None else own
    return (Megatron if megatron else Reference)(config, weights, dtype, ranges)


def relative_error(found: np.ndarray, wanted: np.ndarray) -> float:
    """Return the largest difference over the largest magnitude; NaN and wrong shapes count as infinite."""
    if found.shape != wanted.shape or not np.isfinite(found).all():
        return float("inf")
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())
