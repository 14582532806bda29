# SPDX-License-Identifier: Apache-2.0
"""The BERT network of TensorRT's plugins: fixed length, variable length, INT8 interleaved, and Megatron's residuals.

Weakly typed on TensorRT 10 (the builder chooses precisions, INT8 comes from ranges of tensors), typed by its tensors on 11.
What the plugins cannot take is refused before, in choice.py: inside them a failed assertion would end the process.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from helpers.backends.trt.graph import Graph, Tensor
from helpers.backends.trt.plugins import FLOAT, HALF, INT8, Plugins
from helpers.config import BertConfig, BuildOptions
from helpers.weights import Weights
from helpers.weights.names import FINAL_RANGE, HEAD_BIAS, HEAD_KERNEL

INT8_NORM_SIZES = (768, 1024)  # hidden sizes the INT8 skip-layer-norm plugin is compiled for


class PluginNetwork:
    """Writes the network of one model into a Graph.

    Activations are [S, B, C, 1, 1] (fixed), [T, C, 1, 1] (variable length) or [1, C, T, 1] (interleaved).
    """

    def __init__(self, graph: Graph, config: BertConfig, weights: Weights, options: BuildOptions, weak: bool) -> None:
        self.graph, self.config, self.weights, self.options, self.weak = graph, config, weights, options, weak
        self.plugins = Plugins(graph, options.v3_plugins)
        self.interleaved = options.layout == "packed" and options.interleaved and options.int8
        self.kind = "interleaved" if self.interleaved else "varseqlen" if options.layout == "packed" else "fixed"
        self.float_type = HALF if options.fp16 else FLOAT
        self.attention_type, self.norm_type = self._types()
        self.lengths: list[Tensor] = []  # what the attention plugin reads beside qkv

    def _types(self) -> tuple[int, int]:
        """Return the types at the borders of the attention and of the skip-layer-norm plugins."""
        o = self.options
        if not o.int8:
            return self.float_type, self.float_type
        if self.kind == "fixed":
            return INT8 if o.force_int8_multihead else self.float_type, INT8 if o.force_int8_skipln else self.float_type
        return INT8, INT8 if self.config.hidden_size in INT8_NORM_SIZES else self.float_type

    def build(self, batch: int, seqlen: int) -> None:
        """Add inputs, layers and output; a size of -1 is dynamic. Variable-length networks ignore both sizes."""
        g, c = self.graph, self.config
        x, residual = self._embeddings(batch, seqlen)
        for layer in range(c.num_hidden_layers):
            x, residual = self._layer(layer, x, residual)
        head = g.convolution(x, self.weights[HEAD_KERNEL], self.weights[HEAD_BIAS], "squad_output")
        self._keep_float(head)
        logits = head.get_output(0)
        if not self.weak:
            logits = g.cast(logits, g.trt.DataType.FLOAT)
        # [S,B,2,1,1] -> [B,S,2,1,1]; [T,2,1,1] or [1,2,T,1] -> [2,T,1,1]
        order = {"fixed": (1, 0, 2, 3, 4), "varseqlen": (1, 0, 2, 3), "interleaved": (1, 2, 0, 3)}[self.kind]
        g.output(g.shuffle(logits, order), "logits_out")

    # blocks -----------------------------------------------------------------------------------------------------------------

    def _embeddings(self, batch: int, seqlen: int) -> tuple[Tensor, Tensor]:
        """Return the first layer's input and the first residual."""
        g, o = self.graph, self.options
        if self.kind == "fixed":
            names = ("input_ids", "segment_ids", "input_mask")
            inputs = [g.shuffle(g.input(name, (batch, seqlen)), (1, 0)) for name in names]
            x, mask = self.plugins.embeddings("fixed", inputs, self.weights, o.fp16, self.attention_type)
            self.lengths = [mask]
            if self._ranged:
                g.set_range(mask, 1.0)  # INT32 and never quantised; without a range TensorRT warns of it
        else:
            inputs = [g.input(name, (-1,)) for name in ("input_ids", "segment_ids", "cu_seqlens", "max_seqlen")]
            kind = "megatron" if o.megatron else "varseqlen"
            x, second = self.plugins.embeddings(kind, inputs, self.weights, o.fp16 or o.int8, self.attention_type)
            self.lengths = inputs[2:] if self.interleaved else [second, *inputs[2:]]
        residual = second if o.megatron and self.kind != "fixed" else x
        if self.interleaved:
            x = g.shuffle(x, (2, 1, 0, 3))
            residual = g.shuffle(residual, (2, 1, 0, 3)) if o.megatron else x
        x.name = "embeddings_output"
        self._range(x, self._layer_input_range(0))
        if o.megatron:
            self._range(residual, "l0_attention_output_add_residual_input_quantizer_amax")
        return x, residual

    def _layer(self, layer: int, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        g, p, megatron = self.graph, f"l{layer}_", self.options.megatron
        context = self._attention(p, x)
        attended = self._product(f"{p}attention_output_dense", context, f"{p}attention_output_add_local_input_quantizer_amax")
        x, residual = self._skip_norm(f"{p}attention_output_layernorm", attended, residual, f"{p}skipln_1", summed=megatron)
        self._range(x, f"{p}intermediate_dense_input_amax")
        if megatron:
            self._range(residual, f"{p}output_add_residual_input_quantizer_amax")
        inner = self._convolution(f"{p}intermediate_dense", x).get_output(0)
        inner = g.activation(inner, self.config.activation.upper(), f"{p}gelu")
        self._range(inner, f"{p}output_dense_input_amax")
        local = f"{p}output_add_local_input_quantizer_amax"
        inner = self._product(f"{p}output_dense", inner, local, keep_float=self.options.force_fc2_gemm)
        last = layer == self.config.num_hidden_layers - 1
        x, residual = self._skip_norm(f"{p}output_layernorm", inner, residual, f"{p}output_reshape", summed=megatron and not last)
        self._range(x, FINAL_RANGE if last else self._layer_input_range(layer + 1))
        if megatron and not last:
            self._range(residual, f"l{layer + 1}_attention_output_add_residual_input_quantizer_amax")
        return x, residual

    def _attention(self, p: str, x: Tensor) -> Tensor:
        c = self.config
        kernel, bias = (self._pack_qkv(p, what) for what in ("kernel", "bias"))
        qkv = self.graph.convolution(x, kernel, bias, f"{p}attention_qkv_mult").get_output(0)
        prefix, probabilities = f"{p}attention_self_", None
        if self._ranged:
            operands = ("qv_a", "qv_b", "av_b")  # query, key and value share one scale, as they are one tensor
            self._range(qkv, max(self.weights.range(f"{prefix}{name}_input_quantizer_amax") for name in operands))
        if self.attention_type == INT8:
            probabilities = self.weights.range(f"{prefix}av_a_input_quantizer_amax") / 127
        inputs, name = [qkv, *self.lengths], f"{p}attention_context_layer"
        context = self.plugins.attention(
            self.kind, inputs, c.num_attention_heads, c.hidden_size, self.attention_type, probabilities, name
        )
        context.name = name
        self._range(context, f"{p}attention_output_dense_input_amax")
        return context

    def _pack_qkv(self, p: str, what: str) -> np.ndarray:
        """Return the kernel or bias of the one product for query, key and value.

        Rows go head by head, in each head query, key, value; interleaved: all of query, all of key, all of value.
        """
        heads, size = self.config.num_attention_heads, self.config.head_size
        parts = np.stack([self.weights[f"{p}attention_self_{name}_{what}"] for name in ("query", "key", "value")])
        if self.interleaved:
            return parts.reshape(-1, *parts.shape[2:])
        by_head = parts.reshape(3, heads, size, *parts.shape[2:]).swapaxes(0, 1)  # (heads, 3, size, ...)
        return np.ascontiguousarray(by_head).reshape(-1, *parts.shape[2:])

    def _product(self, name: str, x: Tensor, range_name: str, keep_float: bool = False) -> Tensor:
        """Add a product whose result enters a skip-layer-norm: in the type that plugin reads."""
        layer = self._convolution(name, x)
        y = layer.get_output(0)
        self._range(y, range_name)
        if self.options.int8 and self.weak and self.norm_type != INT8:
            layer.set_output_type(0, self._builder_type)
        if keep_float:
            self._keep_float(layer)
        return y

    def _convolution(self, name: str, x: Tensor) -> Any:
        return self.graph.convolution(x, self.weights[f"{name}_kernel"], self.weights[f"{name}_bias"], name)

    def _skip_norm(self, norm: str, x: Tensor, residual: Tensor, name: str, summed: bool) -> tuple[Tensor, Tensor]:
        """Return LayerNorm(x + residual) and the next residual: the sum itself with Megatron, else the normalised tensor."""
        gamma, beta = self.weights[f"{norm}_gamma"], self.weights[f"{norm}_beta"]
        kind = "megatron" if summed else self.kind
        outputs = self.plugins.skip_norm(kind, x, residual, gamma, beta, self.norm_type, name)
        outputs[0].name = name
        return outputs[0], outputs[-1]

    # types and ranges -------------------------------------------------------------------------------------------------------

    @property
    def _ranged(self) -> bool:
        return self.options.int8 and self.weak

    @property
    def _builder_type(self) -> Any:
        types = self.graph.trt.DataType
        return types.HALF if self.options.fp16 else types.FLOAT

    def _range(self, x: Tensor, source: str | float) -> None:
        """Set the INT8 range of a tensor, from the table of ranges when `source` is a name."""
        if self._ranged:
            self.graph.set_range(x, self.weights.range(source) if isinstance(source, str) else source)

    def _layer_input_range(self, layer: int) -> float:
        """Return the range of a layer's input, which quantisation-aware training stores for each of its three readers."""
        if not self._ranged:
            return 0.0
        return max(self.weights.range(f"l{layer}_attention_self_{name}_input_amax") for name in ("query", "key", "value"))

    def _keep_float(self, layer: Any) -> None:
        """Ask the builder to leave a layer in 16 or 32 bits; binding with --strict."""
        if self.options.int8 and self.weak:
            layer.precision = self._builder_type
            layer.set_output_type(0, self._builder_type)
