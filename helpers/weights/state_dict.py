# SPDX-License-Identifier: Apache-2.0
"""Dotted PyTorch names (ONNX initializers, state dicts, Hugging Face files, Megatron dictionaries) to the project's names."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from helpers.config import BertConfig
from helpers.errors import InputError
from helpers.weights import Found, Weights, checked, is_floating
from helpers.weights.names import FINAL_RANGE, HEAD_BIAS, HEAD_KERNEL, PRODUCTS, activation_ranges

_LAYER = re.compile(r"bert\.encoder\.layers?\.(\d+)\.(.+)")
# Attention quantisers of sparse checkpoints, by their usual name.
_MATMUL_ALIASES = {"matmul_q": "qv_a", "matmul_k": "qv_b", "matmul_v": "av_b", "matmul_a": "av_a"}
# Buffers and parameters without a part in question answering: pruning masks, the pooler, index buffers.
_SKIPPED = re.compile(r"(_mask|\.pooler\..*|position_ids|token_type_ids|num_batches_tracked)$")
# Quantisers whose tensors stay in floating point here: embedding tables and the head.
_SKIPPED_RANGES = re.compile(r"(bert\.embeddings\..*|qa_outputs\..*)_amax$")


def canonical(name: str) -> str | None:
    """Return the project's name of a tensor or an amax; None for those that play no part.

    Raises KeyError for a name outside the scheme.
    """
    dotted = re.sub(r"^(module\.|model\.)+", "", name.lower())
    dotted = re.sub(r"^(?=(embeddings?|encoder|pooler)\.)", "bert.", dotted)
    dotted = (
        dotted.replace("dense_act", "dense").replace("bert.embedding.", "bert.embeddings.").replace("tokentype_", "token_type_")
    )
    if _SKIPPED.search(dotted) or _SKIPPED_RANGES.search(dotted):
        return None
    if match := re.fullmatch(r"(?:(?:.+\.)?qa_outputs|qa)\.(weight|bias)", dotted):
        return HEAD_BIAS if match[1] == "bias" else HEAD_KERNEL
    if dotted.startswith("bert.encoder.final_input_quantizer"):
        return FINAL_RANGE
    if match := _LAYER.fullmatch(dotted):
        return f"l{match[1]}_" + _in_layer(match[2])
    if match := re.fullmatch(r"bert\.embeddings\.layernorm\.(weight|bias|gamma|beta)", dotted):
        return "bert_embeddings_layernorm_" + _norm_parameter(match[1])
    if match := re.fullmatch(r"bert\.embeddings\.((word|position|token_type)_embeddings)\.weight", dotted):
        return f"bert_embeddings_{match[1]}"
    raise KeyError(name)


def _norm_parameter(name: str) -> str:
    return {"weight": "gamma", "bias": "beta"}.get(name, name)


def _in_layer(rest: str) -> str:
    """Return the name inside a layer: `attention.self.query._input_quantizer._amax` -> `attention_self_query_input_amax`."""
    parts = [part.strip("_") for part in rest.split(".")]
    for alias, usual in _MATMUL_ALIASES.items():
        parts = [part.replace(f"{alias}_input", f"{usual}_input") for part in parts]
    if "layernorm" in parts and parts[-1] != "amax":
        parts[-1] = _norm_parameter(parts[-1])
    elif parts[-1] == "weight":
        parts[-1] = "kernel"
    elif parts[-1] == "amax" and parts[-2] in ("weight_quantizer", "input_quantizer") and len(parts) > 2:
        parts[-2] = {"weight_quantizer": "kernel", "input_quantizer": "input"}[parts[-2]]
    joined = "_".join(parts)
    # Megatron keeps query, key and value in one product and leaves `self` out.
    joined = joined.replace("query_key_value", "self_qkv")
    return re.sub(r"^attention_(qv|av)_", r"attention_self_\1_", joined)


def _unfused(name: str, array: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Return the three of a fused (3, heads, head size) query-key-value entry, any other as it is.

    An input range is the same for all three.
    """
    if "_self_qkv_" not in name:
        return [(name, array)]
    whole = array.size == 1 or name.endswith("_input_amax")
    if not whole and array.shape[0] % 3:
        raise InputError(f"{name} has {array.shape[0]} rows, which are not the rows of query, key and value together")
    parts = (array, array, array) if whole else np.split(array, 3)
    names = [name.replace("_self_qkv_", f"_self_{product}_") for product in ("query", "key", "value")]
    return list(zip(names, parts, strict=True))


def weights_from_names(config: BertConfig, arrays: Mapping[str, np.ndarray], source: str) -> Weights:
    """Return the weights of a mapping of dotted names to arrays of any float type.

    Raises InputError that names every tensor outside the scheme, missing or misshapen, or two that become one.
    """
    found = Found(source)
    last = f"l{config.num_hidden_layers - 1}_output_layernorm_output_quantizer_amax"
    for given, array in arrays.items():
        try:
            ours = canonical(given)
        except KeyError:
            ours = given  # `checked` reports it as not used
        if ours is not None:
            for name, part in _unfused(ours, np.asarray(array)):
                found.add(FINAL_RANGE if name == last else name, given, part)
    ranges = {}
    for name in _range_names(config):
        if name in found.tensors:
            ranges[name] = _as_range(found.tensors.pop(name), name, source)
    return checked(config, found.tensors, ranges, source)


def _range_names(config: BertConfig) -> list[str]:
    kernels = [f"l{layer}_{product}_kernel_amax" for layer in range(config.num_hidden_layers) for product in PRODUCTS]
    return activation_ranges(config) + kernels


def _as_range(amax: np.ndarray, name: str, source: str) -> np.ndarray:
    """Return an amax as () for an activation, as (out,) for a kernel quantised by output row."""
    if not is_floating(amax) or not amax.size:
        raise InputError(f"{source} has {amax.size} values of {amax.dtype} as range {name}; give one in floating point")
    amax = np.abs(np.asarray(amax, dtype=np.float32)).reshape(-1)
    return amax if name.endswith("_kernel_amax") and amax.size > 1 else amax.max()
