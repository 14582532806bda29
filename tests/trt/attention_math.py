# SPDX-License-Identifier: Apache-2.0
"""What TensorRT's attention layer computes, padded and packed, and what it demands of its operands and properties."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from trt.number_types import FLOATS, Value, demand, rounded


def attention(layer: Any, q: Value, k: Value, v: Value, value: Callable[[Any], Value]) -> Value:
    """Return the layer's output; value gives the values of tensors set as properties."""
    props = layer.props
    kind = _same(q, k, v)
    demand(kind in FLOATS, f"attention of {kind}")
    causal = layer.arguments.get("causal", layer.arguments.get("causal_kind"))
    demand(causal is False or getattr(causal, "name", "") == "NONE", "BERT does not mask the future")
    demand(layer.arguments["norm_op"].name == "SOFTMAX", "norm_op")
    packed = getattr(props.get("query_form"), "name", "") == "PACKED_NHD"
    quantised = "normalization_quantize_to_type" in props
    demand(quantised == ("normalization_quantize_scale" in props), "quantised softmax needs type and scale, or neither")
    if not packed:
        demand(q.array.ndim == 4, "attention rank")
        mask = value(props["mask"])
        b, _, sq, skv = (*q.array.shape[:3], k.array.shape[2])
        demand(mask.dtype in ("BOOL", kind), f"attention mask of type {mask.dtype}")
        demand(mask.array.shape in {(i, j, sq, skv) for i in (1, b) for j in (1, q.array.shape[1])}, "attention mask shape")
        return _attend(props, q.array, k.array, v.array, mask, kind, value)
    demand(getattr(props.get("key_value_form"), "name", "") == "PACKED_NHD" and "mask" not in props, "packed form")
    cu, cu_keys = (value(props[name]) for name in ("query_lengths", "key_value_lengths"))
    demand(cu.dtype == cu_keys.dtype == "INT32" and bool((cu.array == cu_keys.array).all()), "cumulative lengths")
    result = np.empty_like(q.array)
    for begin, end in zip(cu.array[:-1], cu.array[1:], strict=True):
        parts = [x.array[begin:end].transpose(1, 0, 2)[None] for x in (q, k, v)]
        result[begin:end] = _attend(props, *parts, None, kind, value).array[0].transpose(1, 0, 2)
    return Value(result, kind)


def _attend(
    props: Any, q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: Value | None, kind: str, value: Callable[[Any], Value]
) -> Value:
    scores = rounded(q @ k.swapaxes(-1, -2), kind)
    if mask is not None:
        scores = np.where(mask.array, scores, -np.inf) if mask.dtype == "BOOL" else scores + mask.array
    weights = softmax(scores, -1)
    if "normalization_quantize_to_type" in props:
        scale = value(props["normalization_quantize_scale"]).array
        weights = rounded(weights / scale, props["normalization_quantize_to_type"].name) * scale
    return Value(rounded(rounded(weights, kind) @ v, kind), kind)


def _same(*values: Value) -> str:
    names = {value.dtype for value in values}
    demand(len(names) == 1, f"attention of different types: {sorted(names)}")
    return names.pop()


def softmax(x: np.ndarray, axis: int) -> np.ndarray:
    powers = np.exp(x - x.max(axis, keepdims=True))
    return powers / powers.sum(axis, keepdims=True)
