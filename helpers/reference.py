# SPDX-License-Identifier: Apache-2.0
"""BERT with a question-answering head in NumPy: slow, plain, exact. The oracle of every backend's tests, and the calibrator's eye.

The network is that of Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers" (2018), without the pooler.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from helpers.batching import Batch
from helpers.config import BertConfig
from helpers.eight_bit import LIMITS, EightBit, nearest
from helpers.weights import Weights
from helpers.weights.names import FINAL_RANGE

Observer = Callable[[str, np.ndarray], None]


def fake_quantise(x: np.ndarray, amax: np.ndarray, precision: EightBit = "int8") -> np.ndarray:
    """Return x rounded to an 8-bit format with scale amax / its limit; amax is () or matches the leading axis of x."""
    scale = np.asarray(amax, x.dtype) / x.dtype.type(LIMITS[precision])
    scale = scale.reshape((-1,) + (1,) * (x.ndim - 1)) if scale.ndim else scale
    return nearest(x / scale, precision) * scale


def layer_norm(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, epsilon: float) -> np.ndarray:
    """Return x normalised over its last axis."""
    centred = x - x.mean(-1, keepdims=True)
    variance = np.square(centred).mean(-1, keepdims=True)
    return centred / np.sqrt(variance + epsilon) * gamma + beta


def gelu(x: np.ndarray, form: str) -> np.ndarray:
    """Return GELU in its tanh form (Hendrycks & Gimpel 2016, section 2) or its exact erf form."""
    if form == "gelu_tanh":
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))
    erf = np.vectorize(math.erf, otypes=[x.dtype])
    return 0.5 * x * (1 + erf(x / math.sqrt(2)))


def softmax(x: np.ndarray) -> np.ndarray:
    """Return the softmax over the last axis."""
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


class Reference:
    """A model in NumPy.

    dtype: float32 or float64, of all arithmetic.
    ranges: amax by name; given, every tensor that has one is rounded to 8 bits at that place, weights by output row (the
        arithmetic of quantisation-aware training). The head stays in floating point.
    precision: what it is rounded to, "int8" or "fp8".
    exceptions: formats of tensors that have another one, by the name of their range.
    """

    def __init__(
        self,
        config: BertConfig,
        weights: Weights,
        dtype: type = np.float32,
        ranges: Mapping[str, np.ndarray] | None = None,
        precision: EightBit = "int8",
        exceptions: Mapping[str, EightBit] | None = None,
    ) -> None:
        self.config, self.dtype, self.ranges, self.precision = config, dtype, ranges or {}, precision
        self.exceptions = exceptions or {}
        self.tensors: dict[str, np.ndarray] = {name: array.astype(dtype) for name, array in weights.tensors.items()}
        for name in [name for name in self.ranges if name.endswith("_kernel_amax")]:
            kernel = name.removesuffix("_amax")
            self.tensors[kernel] = fake_quantise(self.tensors[kernel], self.ranges[name], precision)

    def __call__(self, batch: Batch, observe: Observer | None = None) -> np.ndarray:
        """Return start and end logits, (tokens, 2).

        observe: called with (range name, tensor) for every tensor that a quantised engine rounds, before rounding; and with
            ("embeddings", ...), ("l{i}_output", ...) and ("logits", ...), so that two implementations can be compared in steps.
        """
        see = observe or (lambda name, tensor: None)
        t = self.tensors
        positions = np.concatenate([np.arange(length) for length in batch.lengths])
        x = (
            t["bert_embeddings_word_embeddings"][batch.ids]
            + t["bert_embeddings_token_type_embeddings"][batch.segments]
            + t["bert_embeddings_position_embeddings"][positions]
        )  # (tokens, hidden)
        x = self._norm("bert_embeddings_layernorm", x)
        see("embeddings", x)
        for layer in range(self.config.num_hidden_layers):
            x = self._layer(f"l{layer}_", x, batch, see)
            see(f"l{layer}_output", x)
        x = self._round(FINAL_RANGE, x, see)
        logits = x @ t["cls_squad_output_weights"].T + t["cls_squad_output_bias"]
        see("logits", logits)
        return logits

    def _layer(self, p: str, x: np.ndarray, batch: Batch, see: Observer) -> np.ndarray:
        q, k, v = (self._product(f"{p}attention_self_{name}", x, see) for name in ("query", "key", "value"))
        q = self._round(f"{p}attention_self_qv_a_input_quantizer_amax", q, see)
        k = self._round(f"{p}attention_self_qv_b_input_quantizer_amax", k, see)
        v = self._round(f"{p}attention_self_av_b_input_quantizer_amax", v, see)
        context = self._attention(p, q, k, v, batch, see)
        attended = self._add(f"{p}attention_output_", self._product(f"{p}attention_output_dense", context, see), x, see)
        inner = gelu(self._product(f"{p}intermediate_dense", attended, see), self.config.activation)
        return self._add(f"{p}output_", self._product(f"{p}output_dense", inner, see), attended, see)

    def _attention(self, p: str, q: np.ndarray, k: np.ndarray, v: np.ndarray, batch: Batch, see: Observer) -> np.ndarray:
        heads, size = self.config.num_attention_heads, self.config.head_size
        context = np.empty_like(q)
        for begin, end in zip(batch.cu_seqlens[:-1], batch.cu_seqlens[1:], strict=True):
            qs, ks, vs = (a[begin:end].reshape(-1, heads, size).transpose(1, 0, 2) for a in (q, k, v))  # (heads, length, size)
            weights = softmax(qs @ ks.transpose(0, 2, 1) / self.dtype(math.sqrt(size)))
            weights = self._round(f"{p}attention_self_av_a_input_quantizer_amax", weights, see)
            context[begin:end] = (weights @ vs).transpose(1, 0, 2).reshape(end - begin, -1)
        return context

    def _product(self, name: str, x: np.ndarray, see: Observer) -> np.ndarray:
        x = self._round(f"{name}_input_amax", x, see)
        return x @ self.tensors[f"{name}_kernel"].T + self.tensors[f"{name}_bias"]

    def _add(self, p: str, local: np.ndarray, residual: np.ndarray, see: Observer) -> np.ndarray:
        local = self._round(f"{p}add_local_input_quantizer_amax", local, see)
        residual = self._round(f"{p}add_residual_input_quantizer_amax", residual, see)
        return self._norm(f"{p}layernorm", local + residual)

    def _norm(self, p: str, x: np.ndarray) -> np.ndarray:
        return layer_norm(x, self.tensors[f"{p}_gamma"], self.tensors[f"{p}_beta"], self.config.layer_norm_eps)

    def _round(self, name: str, x: np.ndarray, see: Observer) -> np.ndarray:
        see(name, x)
        return fake_quantise(x, self.ranges[name], self.exceptions.get(name, self.precision)) if name in self.ranges else x
