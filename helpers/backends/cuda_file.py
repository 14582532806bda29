# SPDX-License-Identifier: Apache-2.0
"""The tensors of a cuda engine, in the names and formats that infer_c reads; and its 8-bit arithmetic in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np

from helpers.config import BertConfig
from helpers.eight_bit import LIMITS, EightBit, encode
from helpers.errors import UsageError
from helpers.reference import Reference
from helpers.weights import Weights
from helpers.weights.names import HEAD_KERNEL, expected_shapes

KEY_FORMAT: EightBit = "fp8"  # of queries and keys
QUERY_KEY_VALUE = ("attention_self_query", "attention_self_key", "attention_self_value")
# The products of a layer as the engine runs them, and the parameters that lie one below the other in each.
PRODUCTS = {
    "attention_self_qkv": QUERY_KEY_VALUE,
    "attention_output_dense": ("attention_output_dense",),
    "intermediate_dense": ("intermediate_dense",),
    "output_dense": ("output_dense",),
}


def packed_tensors(
    config: BertConfig, weights: Weights, dtype: np.dtype[Any], eight_bit: EightBit | None = None
) -> dict[str, np.ndarray]:
    """Return the tensors of an engine file: query, key and value as one product; matrices in `dtype`, vectors and head in FP32.

    eight_bit: the format of the products' kernels in place of `dtype`; each then has a `_scale` (out,), which turns sums of stored
    values into real numbers, and an `_input_scale` (1,), by which what the product reads is divided. Queries and keys are rounded
    to E4M3: the scale and bias of their rows give them in units of what is stored, `_score_scale` (1,) the product of both units.
    """
    tensors: dict[str, np.ndarray] = {}
    of_products = {f"l{layer}_{part}" for layer in range(config.num_hidden_layers) for parts in PRODUCTS.values() for part in parts}
    for name in expected_shapes(config):
        if name.removesuffix("_kernel").removesuffix("_bias") in of_products:
            continue
        array = weights[name]
        tensors[name] = _narrowed(name, array, dtype) if array.ndim == 2 and name != HEAD_KERNEL else array
    for layer in range(config.num_hidden_layers):
        for product, parts in PRODUCTS.items():
            name = f"l{layer}_{product}"
            kernel, bias = (np.concatenate([weights[f"l{layer}_{part}_{kind}"] for part in parts]) for kind in ("kernel", "bias"))
            tensors[f"{name}_bias"] = bias  # (out,)
            if eight_bit is None:
                tensors[f"{name}_kernel"] = _narrowed(f"{name}_kernel", kernel, dtype)  # (out, in)
                continue
            amax = np.concatenate([weights.kernel_amax(f"l{layer}_{part}") for part in parts])
            scale = amax / np.float32(LIMITS[eight_bit])  # (out,)
            input_scale = np.array([input_amax(weights, layer, product)], np.float32) / np.float32(LIMITS[eight_bit])
            tensors[f"{name}_kernel"] = encode(kernel / scale[:, None], eight_bit)
            tensors[f"{name}_scale"] = scale * input_scale
            tensors[f"{name}_input_scale"] = input_scale
            if parts == QUERY_KEY_VALUE:
                units = np.array([weights.range(of) for of in query_key_ranges(layer)], np.float32) / np.float32(LIMITS[KEY_FORMAT])
                rows = np.repeat([*units, 1], config.hidden_size).astype(np.float32)  # (out,)
                tensors[f"{name}_scale"] /= rows
                tensors[f"{name}_bias"] = bias / rows
                tensors[f"l{layer}_attention_self_score_scale"] = np.array([units.prod()], np.float32)
    return {name: np.ascontiguousarray(array) for name, array in tensors.items()}


def _narrowed(name: str, array: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    with np.errstate(over="ignore"):
        narrow = array.astype(dtype)
    if not np.isfinite(narrow).all():
        raise UsageError(
            f"{name} has values up to {np.abs(array).max():.3g}, beyond FP16's 65504; leave out --fp16, --int8 and --fp8"
        )
    return narrow


def input_amax(weights: Weights, layer: int, product: str) -> float:
    """Return the range of what a product reads; query, key and value read one tensor, so the largest of their three counts."""
    return max(weights.range(f"l{layer}_{part}_input_amax") for part in PRODUCTS[product])


def query_key_ranges(layer: int) -> tuple[str, str]:
    """Return the names of the ranges that queries and keys are rounded with, as operands of their product."""
    return f"l{layer}_attention_self_qv_a_input_quantizer_amax", f"l{layer}_attention_self_qv_b_input_quantizer_amax"


def simulation(config: BertConfig, weights: Weights, precision: EightBit) -> Reference:
    """Return the reference that rounds what an 8-bit cuda engine rounds: what products read, their kernels, queries and keys.

    Queries and keys are E4M3 in INT8 engines too. All else is in float32 here and in FP16 there.
    """
    ranges: dict[str, np.ndarray] = {}
    keys: dict[str, EightBit] = {}
    for layer in range(config.num_hidden_layers):
        for product, parts in PRODUCTS.items():
            amax = np.asarray(input_amax(weights, layer, product), np.float32)
            for part in parts:
                ranges[f"l{layer}_{part}_input_amax"] = amax
                ranges[f"l{layer}_{part}_kernel_amax"] = weights.kernel_amax(f"l{layer}_{part}")
        for name in query_key_ranges(layer):
            ranges[name] = np.asarray(weights.range(name), np.float32)
            keys[name] = KEY_FORMAT
    return Reference(config, weights, ranges=ranges, precision=precision, exceptions=keys)
