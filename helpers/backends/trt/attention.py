# SPDX-License-Identifier: Apache-2.0
"""What differs between padded and packed tokens in the plugin-free network: inputs, positions and attention.

Attention goes through TensorRT's attention layer where its documented limits allow, otherwise through two matrix products
and a softmax in FP32. Packed tokens use the layer's packed form of TensorRT 11.3 and later; before, they are spread to a
rectangle inside the network for the attention alone, so all other products still work on real tokens only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from helpers.backends.trt import api
from helpers.backends.trt.graph import Graph, Tensor
from helpers.config import BertConfig

if TYPE_CHECKING:
    from helpers.backends.trt.typed_network import TypedNetwork

# The attention layer's limits, as the developer guide and the headers of TensorRT 10.16 and 11.1 state them.
HEAD_SIZES = range(16, 257, 8)
INT8_HEAD_SIZES, INT8_LONGEST = (16, 32, 64), 512
PACKED_SINCE = (11, 3)  # key and value lengths gave build errors and wrong answers in 11.1 and 11.2, by public reports
MASKED = 10000.0  # subtracted from the scores of padding: exp(-10000) is 0, and the number is finite in every type


class Tokens(Protocol):
    """The inputs of a network and the layers that know where a token stands."""

    ids: Tensor
    segments: Tensor
    rank: int  # of activations: (batch, seqlen, hidden) or (tokens, hidden)

    def position_embeddings(self, table: np.ndarray) -> Tensor: ...

    def attention(self, q: Tensor, k: Tensor, v: Tensor, p: str) -> Tensor: ...


class Padded:
    """Inputs input_ids, segment_ids, input_mask: INT32 (batch, seqlen)."""

    rank = 3

    def __init__(self, net: TypedNetwork, config: BertConfig, batch: int, seqlen: int) -> None:
        g = net.graph
        self.graph, self.config, self.seqlen = g, config, seqlen
        self.ids, self.segments, mask = (g.input(name, (batch, seqlen)) for name in ("input_ids", "segment_ids", "input_mask"))
        self.heads = Heads(net, config, g.cast(mask, g.trt.DataType.BOOL), mask)

    def position_embeddings(self, table: np.ndarray) -> Tensor:
        """Return rows 0 .. seqlen-1 of the table: FP32 (1, seqlen, hidden)."""
        g, hidden = self.graph, self.config.hidden_size
        if self.seqlen > 0:
            return g.constant(table[None, : self.seqlen], name="position_embeddings")
        shape = g.join([g.size(self.ids, 1), g.constant(np.array([hidden], np.int64))])
        rows = g.slice_to(g.constant(table, name="position_embeddings"), shape, (0, 0), (1, 1))
        return g.shuffle(rows, None, (1, -1, hidden))

    def attention(self, q: Tensor, k: Tensor, v: Tensor, p: str) -> Tensor:
        """Return the context of (batch, seqlen, hidden) queries, keys and values."""
        context = self.heads(self.heads.split(q), self.heads.split(k), self.heads.split(v), p)
        return self.graph.shuffle(context, (0, 2, 1, 3), (0, 0, self.config.hidden_size))


class Packed:
    """Inputs input_ids, segment_ids (tokens,), cu_seqlens (batch+1,) and, where attention is padded inside, max_seqlen (longest,).

    As in the plugin engines max_seqlen speaks through its length; its values are not read.
    """

    rank = 2

    def __init__(self, net: TypedNetwork, config: BertConfig) -> None:
        g = net.graph
        self.graph, self.config, self.net = g, config, net
        self.ids, self.segments = g.input("input_ids", (-1,)), g.input("segment_ids", (-1,))
        self.cu_seqlens = g.input("cu_seqlens", (-1,))
        self.packed_layer = packed_attention(g, net)
        count = g.elementwise(g.size(self.cu_seqlens, 0), g.constant(np.array([1], np.int64)), "SUB")
        starts = g.slice_to(self.cu_seqlens, count, (0,), (1,))  # (batch,)
        ends = g.slice_to(self.cu_seqlens, count, (1,), (1,))
        token = g.arange(g.size(self.ids, 0))  # (tokens,)
        sequence = self._sequence_of(token, ends)
        self.position = g.elementwise(token, g.gather(starts, sequence, 0), "SUB")
        if not self.packed_layer:
            self._rectangle(starts, ends, sequence)

    def _sequence_of(self, token: Tensor, ends: Tensor) -> Tensor:
        """Return the sequence each token belongs to, (tokens,): the number of sequences that end at or before it."""
        g = self.graph
        after = g.elementwise(token, g.constant(np.array([1], np.int32)), "SUM")
        ended = g.elementwise(g.shuffle(ends, None, (1, -1)), g.shuffle(after, None, (-1, 1)), "LESS")  # (tokens, batch)
        return g.reduce_sum(g.cast(ended, g.trt.DataType.INT32), 1)

    def _rectangle(self, starts: Tensor, ends: Tensor, sequence: Tensor) -> None:
        """Prepare the way from tokens to a (batch, longest) rectangle and back."""
        g, int32 = self.graph, self.graph.trt.DataType.INT32
        longest = g.size(g.input("max_seqlen", (-1,)), 0)
        row = g.shuffle(g.arange(longest), None, (1, -1))
        token_at = g.elementwise(g.shuffle(starts, None, (-1, 1)), row, "SUM")  # (batch, longest)
        real = g.elementwise(token_at, g.shuffle(ends, None, (-1, 1)), "LESS")
        last = g.elementwise(g.cast(g.size(self.ids, 0), int32), g.constant(np.array([1], np.int32)), "SUB")
        self.spread = g.elementwise(token_at, g.shuffle(last, None, (1, 1)), "MIN")  # padding reads some token; the mask hides it
        begin = g.elementwise(sequence, g.cast(longest, int32), "PROD")
        self.collect = g.elementwise(begin, self.position, "SUM")  # (tokens,): place in the flattened rectangle
        self.heads = Heads(self.net, self.config, real, token_at)

    def position_embeddings(self, table: np.ndarray) -> Tensor:
        """Return the table's row for every token: FP32 (tokens, hidden)."""
        return self.graph.gather(self.graph.constant(table, name="position_embeddings"), self.position, 0)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, p: str) -> Tensor:
        """Return the context of (tokens, hidden) queries, keys and values."""
        if self.packed_layer:
            return self._packed_attention(q, k, v, p)
        g, hidden = self.graph, self.config.hidden_size
        q, k, v = (self.heads.split(g.gather(x, self.spread, 0)) for x in (q, k, v))
        context = self.heads(q, k, v, p)
        rows = g.shuffle(g.shuffle(context, (0, 2, 1, 3), (0, 0, hidden)), None, (-1, hidden))
        return g.gather(rows, self.collect, 0)

    def _packed_attention(self, q: Tensor, k: Tensor, v: Tensor, p: str) -> Tensor:
        g, c, trt = self.graph, self.config, self.graph.trt
        shape = (0, c.num_attention_heads, c.head_size)
        q, k, v = (g.shuffle(x, None, shape) for x in (q, k, v))
        layer = attention_layer(g, q, k, v, f"{p}attention")
        layer.query_form = layer.key_value_form = trt.AttentionIOForm.PACKED_NHD
        layer.query_lengths = layer.key_value_lengths = self.cu_seqlens
        layer.decomposable = True
        return g.shuffle(layer.get_output(0), None, (0, c.hidden_size))


class Heads:
    """Attention over (batch, heads, seqlen, head size).

    real: BOOL (batch, seqlen), which keys may be attended to; like: any INT32 tensor of that shape.
    """

    def __init__(self, net: TypedNetwork, config: BertConfig, real: Tensor, like: Tensor) -> None:
        g, types = net.graph, net.graph.trt.DataType
        self.graph, self.config, self.net = g, config, net
        self.fused = attention_fits(net)
        keys = g.shuffle(real, None, (0, 1, 1, -1))
        if self.fused:
            # The layer broadcasts a mask over batch and heads only, so the query axis is written out.
            queries = g.shuffle(like, None, (0, 1, -1, 1))
            self.mask = g.elementwise(g.elementwise(queries, queries, "EQUAL"), keys, "AND")
        else:
            one, far = (g.constant(np.full((1, 1, 1, 1), value, np.float32)) for value in (1, MASKED))
            self.mask = g.elementwise(g.elementwise(g.cast(keys, types.FLOAT), one, "SUB"), far, "PROD")

    def split(self, x: Tensor) -> Tensor:
        """Turn (batch, seqlen, hidden) into (batch, heads, seqlen, head size)."""
        return self.graph.shuffle(x, None, (0, 0, self.config.num_attention_heads, self.config.head_size), (0, 2, 1, 3))

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, p: str) -> Tensor:
        g, net = self.graph, self.net
        quantised = attention_quantised(net)
        if quantised:
            q, k, v = self._round(q, k, v, p)
        if not self.fused:
            scores = net.to_fp32(g.matmul(q, k, transpose_b=True))
            weights = net.from_fp32(g.softmax(g.elementwise(scores, self.mask, "SUM"), 3))
            return g.matmul(net.quantise(weights, softmax_scale(net, p) * net.code_max) if quantised else weights, v)
        layer = attention_layer(g, q, k, v, f"{p}attention")
        layer.mask = self.mask
        layer.decomposable = not quantised  # a decomposed quantised softmax would silently run in 16 bits
        if quantised:
            layer.normalization_quantize_to_type = net.eight_bit
            layer.normalization_quantize_scale = g.constant(np.array(softmax_scale(net, p), np.float32))
        return layer.get_output(0)

    def _round(self, q: Tensor, k: Tensor, v: Tensor, p: str) -> tuple[Tensor, Tensor, Tensor]:
        net, p = self.net, f"{p}attention_self_"
        root = self.config.head_size**0.5  # the query is already divided by it, so its range is too
        q = net.quantise(q, net.weights.range(f"{p}qv_a_input_quantizer_amax") / root)
        k = net.quantise(k, net.weights.range(f"{p}qv_b_input_quantizer_amax"))
        return q, k, net.quantise(v, net.weights.range(f"{p}av_b_input_quantizer_amax"))


def attention_layer(g: Graph, q: Tensor, k: Tensor, v: Tensor, name: str) -> Any:
    """Add the attention layer without causal mask; return it, not its output. It does not scale the scores."""
    op = g.trt.AttentionNormalizationOp.SOFTMAX
    if hasattr(g.network, "add_attention_v2"):
        layer = g.network.add_attention_v2(q, k, v, op, g.trt.CausalMaskKind.NONE)
    else:
        layer = g.network.add_attention(q, k, v, op, False)
    api.made(layer, f"the attention layer {name}").name = name
    return layer


def attention_fits(net: TypedNetwork) -> bool:
    """Return whether the attention layer takes this model in this type; FP32 has no fused kernel and gains nothing from it."""
    g, head = net.graph, net.config.head_size
    if net.dtype not in (g.trt.DataType.HALF, g.trt.DataType.BF16) or not hasattr(g.network, "add_attention"):
        return False
    if attention_quantised(net):
        return head in INT8_HEAD_SIZES and max(net.options.sequence_lengths) <= INT8_LONGEST
    return head in HEAD_SIZES


def attention_quantised(net: TypedNetwork) -> bool:
    """Return whether attention runs in eight bits: asked for with -imh."""
    return net.options.force_int8_multihead and net.eight_bit is not None


def packed_attention(g: Graph, net: TypedNetwork) -> bool:
    """Return whether packed tokens can enter the attention layer as they are: FP16 on TensorRT 11.3 and later."""
    if not attention_fits(net) or attention_quantised(net) or net.dtype != g.trt.DataType.HALF:
        return False
    return api.version(g.trt) >= PACKED_SINCE and hasattr(g.trt, "AttentionIOForm")


def softmax_scale(net: TypedNetwork, p: str) -> float:
    """Return the scale of the quantised softmax: its trained range; for FP8 1/448, as probabilities end at 1."""
    if net.options.fp8:
        return 1 / net.code_max
    return net.weights.range(f"{p}attention_self_av_a_input_quantizer_amax") / net.code_max
