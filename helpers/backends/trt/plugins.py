# SPDX-License-Identifier: Apache-2.0
"""TensorRT's BERT plugins: their names, versions and fields. Which of them a network needs is for plugin_network.py.

Two generations do the same work: "deprecated" (IPluginV2DynamicExt) and "v3" (IPluginV3).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from helpers.backends.trt import api
from helpers.backends.trt.graph import Graph, Tensor
from helpers.errors import BertError
from helpers.weights import Weights
from helpers.weights.names import POSITION_EMBEDDINGS, TOKEN_TYPE_EMBEDDINGS, WORD_EMBEDDINGS

FLOAT, HALF, INT8 = 0, 1, 2  # DataType numbers, which the type fields hold; the same in every version
ATTENTION = "CustomQKVToContextPluginDynamic"
SKIP_NORM = "CustomSkipLayerNormPluginDynamic"
EMBEDDINGS = "CustomEmbLayerNormPluginDynamic"

# (plugin, kind) -> version of the deprecated and of the v3 generation. The numbering of the embeddings does not keep order.
VERSIONS = {
    (ATTENTION, "fixed"): ("1", "4"),
    (ATTENTION, "varseqlen"): ("2", "5"),
    (ATTENTION, "interleaved"): ("3", "6"),
    (SKIP_NORM, "fixed"): ("1", "5"),
    (SKIP_NORM, "varseqlen"): ("2", "6"),
    (SKIP_NORM, "interleaved"): ("3", "7"),
    (SKIP_NORM, "megatron"): ("4", "8"),
    (EMBEDDINGS, "fixed"): ("1", "6"),
    # Versions 4 and 5 serialise output_fp16 through a pointer to a dead local (read in the 10.16 and 11.1 sources), so an
    # engine may come back with another type than it was built with: the deprecated ones stand in for them.
    (EMBEDDINGS, "varseqlen"): ("2", "2"),
    (EMBEDDINGS, "megatron"): ("3", "3"),
}


class Plugins:
    """Adds plugin layers of one generation to a graph."""

    def __init__(self, graph: Graph, v3: bool) -> None:
        self.graph, self.v3 = graph, v3

    def attention(
        self, kind: str, inputs: Sequence[Tensor], heads: int, hidden: int, type_id: int, probabilities: float | None, name: str
    ) -> Tensor:
        """Add attention over the packed QKV product. probabilities: INT8 scale (amax / 127) of the softmax output.

        Fixed inputs: qkv [S, B, 3E, 1, 1], mask. Variable length: qkv [T, 3E, 1, 1], mask (not read), cu_seqlens, max_seqlen.
        Interleaved: qkv [1, 3E, T, 1], cu_seqlens, max_seqlen.
        """
        fields = {"hidden_size": integer(hidden), "num_heads": integer(heads)}
        if kind != "interleaved":
            # without has_mask the fused kernels are off and INT8 and variable length are impossible
            fields |= {"type_id": integer(type_id), "has_mask": integer(1)}
        if kind == "varseqlen":
            fields["var_seqlen"] = integer(1)
        if kind != "fixed":
            fields["use_int8_scale_max"] = integer(1)
        if probabilities is not None:
            fields["dq_probs"] = np.array([probabilities], np.float32)
        return self._add(ATTENTION, kind, inputs, fields, name).get_output(0)

    def skip_norm(
        self, kind: str, x: Tensor, residual: Tensor, gamma: np.ndarray, beta: np.ndarray, type_id: int, name: str
    ) -> list[Tensor]:
        """Add LayerNorm(x + residual); return the result and, for kind "megatron", the sum before it."""
        fields = {"beta": beta, "gamma": gamma}
        if kind in ("fixed", "varseqlen"):
            fields["type_id"] = integer(type_id)
        if kind == "fixed":
            fields["ld"] = integer(gamma.size)
        layer = self._add(SKIP_NORM, kind, [x, residual], fields, name)
        return [layer.get_output(i) for i in range(2 if kind == "megatron" else 1)]

    def embeddings(self, kind: str, inputs: Sequence[Tensor], weights: Weights, half: bool, attention_type: int) -> list[Tensor]:
        """Add embeddings and their LayerNorm; return the result and a second output.

        The second is the mask for attention (fixed), a placeholder (variable length) or the sum before the LayerNorm (Megatron).
        Fixed inputs are [S, B]; the others are ids [T], segments [T], cu_seqlens, max_seqlen.
        """
        fields = {
            "bert_embeddings_layernorm_beta": weights["bert_embeddings_layernorm_beta"],
            "bert_embeddings_layernorm_gamma": weights["bert_embeddings_layernorm_gamma"],
            "bert_embeddings_word_embeddings": weights[WORD_EMBEDDINGS],
            "bert_embeddings_token_type_embeddings": weights[TOKEN_TYPE_EMBEDDINGS],
            "bert_embeddings_position_embeddings": weights[POSITION_EMBEDDINGS],
            "output_fp16": integer(half),
        }
        if kind == "fixed":
            fields["mha_type_id"] = integer(attention_type)  # decides the encoding of the mask: must be the attention's type
        layer = self._add(EMBEDDINGS, kind, inputs, fields, "embeddings")
        return [layer.get_output(0), layer.get_output(1)]

    def _add(self, plugin_name: str, kind: str, inputs: Sequence[Tensor], fields: dict[str, np.ndarray], name: str) -> Any:
        trt, network = self.graph.trt, self.graph.network
        version = VERSIONS[plugin_name, kind][self.v3]
        creator = api.plugin_creator(trt, plugin_name, version)
        # A PluginFieldCollection holds neither arrays nor fields: both must live in names until the plugin is made.
        arrays = {key: np.ascontiguousarray(array).reshape(-1) for key, array in fields.items()}
        types = {np.dtype(np.int32): trt.PluginFieldType.INT32, np.dtype(np.float32): trt.PluginFieldType.FLOAT32}
        records = [trt.PluginField(key, array, types[array.dtype]) for key, array in arrays.items()]
        collection = trt.PluginFieldCollection(records)
        third = isinstance(creator, trt.IPluginCreatorV3One)
        phase = (trt.TensorRTPhase.BUILD,) if third else ()
        plugin = creator.create_plugin(name, collection, *phase)
        if plugin is None:
            sizes = {key: array.tolist() for key, array in arrays.items() if array.size == 1}
            raise BertError(f"the plugin {plugin_name} version {version} refused {sizes}; add --no-plugins to build without it")
        layer = network.add_plugin_v3(list(inputs), [], plugin) if third else network.add_plugin_v2(list(inputs), plugin)
        api.made(layer, f"the plugin layer {name}").name = name
        return layer


def integer(value: int | bool) -> np.ndarray:
    """Return the data of an INT32 field."""
    return np.array([value], np.int32)
