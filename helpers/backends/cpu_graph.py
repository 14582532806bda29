# SPDX-License-Identifier: Apache-2.0
"""The ONNX graph of a BERT question-answering model for CPUs: plain operators, dynamic batch and length, INT8 as explicit Q/DQ."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from helpers.config import BertConfig
from helpers.weights import Weights

OPSET = 20  # the first with Gelu


class GraphBuilder:
    """Collects nodes and initializers; every method returns the name of its output.

    int8: matrix products read and multiply INT8. Attention inside and the residual sums stay in floating point, which is as
    fast on CPUs and nearer to FP32, unless int8_attention or int8_residual ask for the stored ranges there too.
    """

    def __init__(
        self, config: BertConfig, weights: Weights, int8: bool = False, int8_attention: bool = False, int8_residual: bool = False
    ) -> None:
        self.config, self.weights, self.int8 = config, weights, int8
        self.int8_attention, self.int8_residual = int8 and int8_attention, int8 and int8_residual
        self.nodes: list[Any] = []
        self.initializers: dict[str, Any] = {}

    def node(self, op: str, *inputs: str, name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, name: str, value: np.ndarray | np.generic) -> str:
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(np.asarray(value, order="C"), name)
        return name

    def tensor(self, name: str) -> str:
        """Return a parameter of the model as an initializer of its own name."""
        return self.constant(name, self.weights[name])

    def quantised(self, x: str, range_name: str, wanted: bool, factor: float = 1) -> str:
        """Return an activation rounded to INT8 and back with the stored range (times a factor), where that is wanted."""
        if not wanted:
            return x
        scale = self.constant(f"{range_name}_scale", np.float32(self.weights.range(range_name) * factor / 127))
        zero = self.constant("zero_int8", np.int8(0))
        q = self.node("QuantizeLinear", x, scale, zero, name=f"{x}_{range_name}_q")
        return self.node("DequantizeLinear", q, scale, zero, name=f"{x}_{range_name}_dq")

    def product(self, x: str, names: list[str], name: str) -> str:
        """Return x times one or several parameter matrices side by side, plus bias."""
        factors = np.concatenate([np.full(len(self.weights[f"{part}_bias"]), self.factor(part)) for part in names])  # (out,)
        kernel = np.concatenate([self.weights[f"{part}_kernel"] for part in names]) * factors[:, None]  # (out, in)
        bias = self.constant(f"{name}_bias", np.concatenate([self.weights[f"{part}_bias"] for part in names]) * factors)
        if self.int8:
            x = self.quantised(x, f"{names[0]}_input_amax", True)
            amax = np.concatenate([self.weights.kernel_amax(part) for part in names]) * factors
            scale = self.constant(f"{name}_kernel_scale", amax / 127)
            zero = self.constant(f"{name}_kernel_zero", np.zeros(len(amax), np.int8))
            rounded = np.clip(np.rint(kernel / (amax / 127)[:, None]), -127, 127).astype(np.int8)
            stored = self.constant(f"{name}_kernel_int8", rounded.T)
            matrix = self.node("DequantizeLinear", stored, scale, zero, name=f"{name}_kernel", axis=1)
        else:
            matrix = self.constant(f"{name}_kernel", kernel.T)
        return self.node("Add", self.node("MatMul", x, matrix, name=f"{name}_matmul"), bias, name=f"{name}_product")

    def factor(self, product: str) -> np.float32:
        """Return what a product's output is multiplied with: 1 / sqrt(head size) for the query, so that scores need no scaling."""
        return np.float32(1 / math.sqrt(self.config.head_size) if product.endswith("attention_self_query") else 1)

    def norm(self, x: str, name: str) -> str:
        gamma, beta = self.tensor(f"{name}_gamma"), self.tensor(f"{name}_beta")
        return self.node("LayerNormalization", x, gamma, beta, name=name, axis=-1, epsilon=self.config.layer_norm_eps)

    def embeddings(self) -> str:
        words = self.node("Gather", self.tensor("bert_embeddings_word_embeddings"), "input_ids", name="words")
        types = self.node("Gather", self.tensor("bert_embeddings_token_type_embeddings"), "segment_ids", name="types")
        length = self.node("Shape", "input_ids", name="length", start=1, end=2)
        start = self.constant("zero", np.array([0], np.int64))
        table = self.tensor("bert_embeddings_position_embeddings")
        positions = self.node("Slice", table, start, length, start, name="positions")
        summed = self.node("Add", self.node("Add", words, types, name="words_types"), positions, name="embeddings")
        return self.norm(summed, "bert_embeddings_layernorm")

    def mask(self) -> str:
        """Return what is added to the scores: 0 for real tokens, a number no score survives for padding, (batch, 1, 1, length)."""
        real = self.node("Cast", "input_mask", name="mask_float", to=TensorProto.FLOAT)
        one, low = self.constant("one", np.float32(1)), self.constant("low", np.float32(-10000))
        away = self.node("Mul", self.node("Sub", one, real, name="mask_inverse"), low, name="mask_low")
        return self.node("Unsqueeze", away, self.constant("axes_1_2", np.array([1, 2], np.int64)), name="mask")

    def attention(self, p: str, x: str, mask: str) -> str:
        heads, size = self.config.num_attention_heads, self.config.head_size
        qkv = self.product(x, [f"{p}attention_self_{n}" for n in ("query", "key", "value")], f"{p}qkv")
        shape = self.constant("shape_qkv", np.array([0, 0, 3, heads, size], np.int64))
        split = self.node("Reshape", qkv, shape, name=f"{p}qkv_heads")
        split = self.node("Transpose", split, name=f"{p}qkv_first", perm=[2, 0, 3, 1, 4])  # (3, batch, heads, length, size)
        query_factor = self.factor(f"{p}attention_self_query")
        parts = []
        for index, (range_name, factor) in enumerate((("qv_a", float(query_factor)), ("qv_b", 1.0), ("av_b", 1.0))):
            part = self.node("Gather", split, self.constant(f"index_{index}", np.int64(index)), name=f"{p}part_{index}", axis=0)
            parts.append(self.quantised(part, f"{p}attention_self_{range_name}_input_quantizer_amax", self.int8_attention, factor))
        q, k, v = parts  # (batch, heads, length, size) each
        k = self.node("Transpose", k, name=f"{p}key_t", perm=[0, 1, 3, 2])
        scores = self.node("Add", self.node("MatMul", q, k, name=f"{p}qk"), mask, name=f"{p}masked")
        weights = self.node("Softmax", scores, name=f"{p}softmax", axis=-1)
        weights = self.quantised(weights, f"{p}attention_self_av_a_input_quantizer_amax", self.int8_attention)
        context = self.node("Transpose", self.node("MatMul", weights, v, name=f"{p}av"), name=f"{p}context", perm=[0, 2, 1, 3])
        return self.node(
            "Reshape", context, self.constant("shape_hidden", np.array([0, 0, heads * size], np.int64)), name=f"{p}joined"
        )

    def residual(self, p: str, local: str, x: str) -> str:
        local = self.quantised(local, f"{p}add_local_input_quantizer_amax", self.int8_residual)
        x = self.quantised(x, f"{p}add_residual_input_quantizer_amax", self.int8_residual)
        return self.norm(self.node("Add", local, x, name=f"{p}sum"), f"{p}layernorm")

    def layer(self, p: str, x: str, mask: str) -> str:
        context = self.attention(p, x, mask)
        local = self.product(context, [f"{p}attention_output_dense"], f"{p}attention_output")
        x = self.residual(f"{p}attention_output_", local, x)
        inner = self.product(x, [f"{p}intermediate_dense"], f"{p}intermediate")
        approximate = "tanh" if self.config.activation == "gelu_tanh" else "none"
        inner = self.node("Gelu", inner, name=f"{p}gelu", approximate=approximate)
        return self.residual(f"{p}output_", self.product(inner, [f"{p}output_dense"], f"{p}output"), x)

    def model(self) -> ModelProto:
        mask, x = self.mask(), self.embeddings()
        for layer in range(self.config.num_hidden_layers):
            x = self.layer(f"l{layer}_", x, mask)
        head = self.constant("head_kernel", self.weights["cls_squad_output_weights"].T)
        bias = self.tensor("cls_squad_output_bias")
        self.node("Add", self.node("MatMul", x, head, name="head_matmul"), bias, name="logits_out")
        shape = ["batch", "length"]
        graph = helper.make_graph(
            self.nodes,
            "bert_question_answering",
            [helper.make_tensor_value_info(n, TensorProto.INT32, shape) for n in ("input_ids", "segment_ids", "input_mask")],
            [helper.make_tensor_value_info("logits_out", TensorProto.FLOAT, [*shape, 2])],
            list(self.initializers.values()),
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10, producer_name="demobert")
