# SPDX-License-Identifier: Apache-2.0
"""Models and batches for the network checks: small random ones, the repository's own, and Megatron's residuals in the reference."""

from __future__ import annotations

import functools
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
    return config, read(MODEL / "bert_minilm_l6_qa_fake_quant.onnx", config)


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


# What a quantised engine rounds when only its products are in INT8, and what attention in INT8 adds.
PRODUCT_INPUTS = (
    *(f"{name}_input" for name in ("query", "key", "value")),
    *(f"{name}_dense_input" for name in ("attention_output", "intermediate", "output")),
)
ATTENTION_OPERANDS = ("qv_a_input_quantizer", "qv_b_input_quantizer", "av_b_input_quantizer", "av_a_input_quantizer")
EVERYWHERE = ("",)


def reference(
    config: BertConfig, weights: Weights, megatron: bool = False, rounded: tuple[str, ...] = (), kernels: tuple[str, ...] = ("",)
) -> Reference:
    """Return the oracle. rounded: endings of the ranges to round to INT8; kernels: parts of the names of those rounded by row."""
    ranges: dict[str, np.ndarray] = {}
    if rounded:
        chosen = [name for name in weights.ranges if name.removesuffix("_amax").endswith(rounded) and "kernel" not in name]
        ranges = {name: weights.ranges[name] for name in chosen}
        for name, array in weights.tensors.items():
            if name.endswith("_kernel") and any(part in name for part in kernels):
                ranges[f"{name}_amax"] = np.abs(array).max(1)
    return (Megatron if megatron else Reference)(config, weights, ranges=ranges)


def relative_error(found: np.ndarray, wanted: np.ndarray) -> float:
    """Return the largest difference over the largest magnitude; NaN and wrong shapes count as infinite."""
    if found.shape != wanted.shape or not np.isfinite(found).all():
        return float("inf")
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())
