# SPDX-License-Identifier: Apache-2.0
"""The BERT network without plugins: strongly typed, for TensorRT 10 and 11, padded or packed, FP32 to FP8.

Types come from the tensors: products in the engine's type, LayerNorm, residual sums and softmax in FP32, eight bits only
between a quantize and a dequantize layer. How tokens meet each other (positions, attention) is the work of attention.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from helpers.backends.trt.attention import Packed, Padded, Tokens
from helpers.backends.trt.graph import Graph, Tensor
from helpers.config import BertConfig, BuildOptions
from helpers.weights import Weights
from helpers.weights.names import FINAL_RANGE, HEAD_BIAS, HEAD_KERNEL, POSITION_EMBEDDINGS, TOKEN_TYPE_EMBEDDINGS, WORD_EMBEDDINGS

INT8_MAX, FP8_MAX = 127.0, 448.0  # largest code of symmetric INT8; largest finite E4M3 number


class TypedNetwork:
    """Writes the network of one model into a Graph."""

    def __init__(self, graph: Graph, config: BertConfig, weights: Weights, options: BuildOptions) -> None:
        types = graph.trt.DataType
        self.graph, self.config, self.weights, self.options = graph, config, weights, options
        self.dtype = types.BF16 if options.bf16 else types.HALF if options.fp16 else types.FLOAT
        self.eight_bit = types.INT8 if options.int8 else types.FP8 if options.fp8 else None
        self.code_max = INT8_MAX if options.int8 else FP8_MAX
        self.tokens: Tokens

    def build(self, batch: int, seqlen: int) -> None:
        """Add inputs, layers and output; a size of -1 is dynamic, and packed networks are dynamic on every axis."""
        g, c = self.graph, self.config
        packed = self.options.layout == "packed"
        self.tokens = Packed(self, c) if packed else Padded(self, c, batch, seqlen)
        x, residual = self._embeddings()
        for layer in range(c.num_hidden_layers):
            x, residual = self._layer(f"l{layer}_", x, residual)
        if self.options.force_int8_skipln and self.eight_bit is not None:
            x = self.quantise(x, self.weights.range(FINAL_RANGE))
        # The head is a product of two columns: FP32 costs nothing and keeps the logits exact.
        logits = g.matmul(self.to_fp32(x), self._rows(self.weights[HEAD_KERNEL]), transpose_b=True)
        logits = g.elementwise(logits, self._row(self.weights[HEAD_BIAS]), "SUM")
        logits = g.shuffle(logits, (1, 0), (2, -1, 1, 1)) if packed else g.shuffle(logits, None, (0, 0, 2, 1, 1))
        g.output(logits, "logits_out")

    # blocks -----------------------------------------------------------------------------------------------------------------

    def _embeddings(self) -> tuple[Tensor, Tensor]:
        """Return the first layer's input and the first residual."""
        g, w, tokens = self.graph, self.weights, self.tokens
        words = g.gather(g.constant(w[WORD_EMBEDDINGS], self.dtype, "word_embeddings"), tokens.ids, 0)
        types = g.gather(g.constant(w[TOKEN_TYPE_EMBEDDINGS], self.dtype, "token_type_embeddings"), tokens.segments, 0)
        total = g.elementwise(self.to_fp32(words), self.to_fp32(types), "SUM")
        total = g.elementwise(total, tokens.position_embeddings(w[POSITION_EMBEDDINGS]), "SUM")
        return self._norm("bert_embeddings_layernorm", total, "embeddings_output")

    def _layer(self, p: str, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        g = self.graph
        root = math.sqrt(self.config.head_size)  # the attention layer does not scale: fold 1/√H into the query product
        quantised = self.quantise(x, self._layer_input_range(p))
        q = self._linear(f"{p}attention_self_query", quantised, 1 / root)
        k = self._linear(f"{p}attention_self_key", quantised)
        v = self._linear(f"{p}attention_self_value", quantised)
        context = self.tokens.attention(q, k, v, p)
        attended = self.product(f"{p}attention_output_dense", context)
        x, residual = self._add_norm(f"{p}attention_output_", attended, residual, f"{p}skipln_1")
        inner = self.product(f"{p}intermediate_dense", x)
        inner = g.activation(inner, self.config.activation.upper(), f"{p}gelu")
        inner = self.product(f"{p}output_dense", inner, quantise=not self.options.force_fc2_gemm)
        return self._add_norm(f"{p}output_", inner, residual, f"{p}output_reshape")

    def _layer_input_range(self, p: str) -> float:
        """Return one range for the tensor that three products read; quantisation-aware training stores it three times."""
        if self.eight_bit is None:
            return 0.0
        return max(self.weights.range(f"{p}attention_self_{name}_input_amax") for name in ("query", "key", "value"))

    def _add_norm(self, p: str, x: Tensor, residual: Tensor, name: str) -> tuple[Tensor, Tensor]:
        """Return LayerNorm(x + residual) and the next residual; with -iln both terms are rounded to eight bits first."""
        if self.options.force_int8_skipln and self.eight_bit is not None:
            x = self.quantise(x, self.weights.range(f"{p}add_local_input_quantizer_amax"))
            narrow = self.from_fp32(residual)
            residual = self.to_fp32(self.quantise(narrow, self.weights.range(f"{p}add_residual_input_quantizer_amax")))
        return self._norm(f"{p}layernorm", self.graph.elementwise(self.to_fp32(x), residual, "SUM"), name)

    def _norm(self, norm: str, x: Tensor, name: str) -> tuple[Tensor, Tensor]:
        """Return the normalised tensor and the next residual, FP32: the sum x itself in Megatron models, else the former again."""
        gamma, beta = self.weights[f"{norm}_gamma"], self.weights[f"{norm}_beta"]
        y = self.from_fp32(self.graph.layer_norm(x, gamma, beta, self.config.layer_norm_eps, self.tokens.rank, name))
        return y, x if self.options.megatron else self.to_fp32(y)

    # products ---------------------------------------------------------------------------------------------------------------

    def product(self, name: str, x: Tensor, quantise: bool = True) -> Tensor:
        """Return x times a kernel plus its bias; with --int8 or --fp8 input and kernel are rounded to eight bits."""
        if self.eight_bit is None or not quantise:
            return self._linear(name, x, quantise=False)
        return self._linear(name, self.quantise(x, self.weights.range(f"{name}_input_amax")))

    def _linear(self, name: str, x: Tensor, factor: float = 1.0, quantise: bool = True) -> Tensor:
        g = self.graph
        kernel, bias = self.weights[f"{name}_kernel"] * np.float32(factor), self.weights[f"{name}_bias"] * np.float32(factor)
        if self.eight_bit is not None and quantise:
            scale, per_row = self._kernel_scale(name, kernel, factor)
            axis, constant = self.tokens.rank - 2 if per_row else None, g.constant(scale)
            matrix = g.quantize(self._rows(kernel), constant, self.eight_bit, axis)  # folded by TensorRT at build time
            matrix = g.dequantize(matrix, constant, self.dtype, axis)
        else:
            matrix = self._rows(kernel, self.dtype)
        product = g.matmul(x, matrix, transpose_b=True)
        return g.elementwise(product, self._row(bias, self.dtype), "SUM")

    def _kernel_scale(self, name: str, kernel: np.ndarray, factor: float) -> tuple[np.ndarray, bool]:
        """Return the scale of a kernel and whether it is one per output row.

        INT8: the trained range of each row, else its largest weight. FP8: one scale a matrix, as E4M3 has range to spare.
        """
        if self.options.fp8:
            return np.array(np.abs(kernel).max() / FP8_MAX, np.float32), False
        trained = self.weights.ranges.get(f"{name}_kernel_amax")
        amax = np.abs(kernel).max(1) if trained is None else np.broadcast_to(trained, kernel.shape[:1]) * factor
        return np.maximum(amax / INT8_MAX, np.finfo(np.float32).tiny).astype(np.float32), True  # a row of zeros has no range

    # types ------------------------------------------------------------------------------------------------------------------

    def quantise(self, x: Tensor, amax: float) -> Tensor:
        """Return x rounded to eight bits with the range amax: a quantize and a dequantize layer."""
        if self.eight_bit is None:
            return x
        scale = self.graph.constant(np.array(amax / self.code_max, np.float32))
        return self.graph.dequantize(self.graph.quantize(x, scale, self.eight_bit), scale, self.dtype)

    def to_fp32(self, x: Tensor) -> Tensor:
        types = self.graph.trt.DataType
        return x if self.dtype == types.FLOAT else self.graph.cast(x, types.FLOAT)

    def from_fp32(self, x: Tensor) -> Tensor:
        return x if self.dtype == self.graph.trt.DataType.FLOAT else self.graph.cast(x, self.dtype)

    def _rows(self, array: np.ndarray, dtype: Any = None) -> Tensor:
        """Return a matrix (out, in) as a constant of the activations' rank."""
        return self._constant(array, (1,) * (self.tokens.rank - 2), dtype)

    def _row(self, array: np.ndarray, dtype: Any = None) -> Tensor:
        """Return a vector (out,) as a constant of the activations' rank."""
        return self._constant(array, (1,) * (self.tokens.rank - 1), dtype)

    def _constant(self, array: np.ndarray, ones: Sequence[int], dtype: Any) -> Tensor:
        return self.graph.constant(array.reshape((*ones, *array.shape)), dtype)
