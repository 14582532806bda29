# SPDX-License-Identifier: Apache-2.0
"""Doubles of the BERT plugins' registry and creators: which exist, and which fields they demand.

Fields, types and counts are those of the plugin sources of TensorRT 10.16 and 11.1; a creator that finds a field missing or of the
wrong size returns None, as the real ones do. What the plugins compute is in plugin_math.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from trt.signatures import bind

ATTENTION, SKIP, EMBEDDINGS = (
    "CustomQKVToContextPluginDynamic",
    "CustomSkipLayerNormPluginDynamic",
    "CustomEmbLayerNormPluginDynamic",
)
NORM = ("layernorm_beta", "layernorm_gamma")
TABLES = [f"bert_embeddings_{name}" for name in (*NORM, "word_embeddings", "token_type_embeddings", "position_embeddings")]
INT, REAL = "INT32", "FLOAT32"
# kind -> {field: (type, count or None for any, required)}
_qkv = {"hidden_size": (INT, 1, True), "num_heads": (INT, 1, True), "dq_probs": (REAL, 1, False)}
_emb = dict.fromkeys(TABLES, (REAL, None, True)) | {"output_fp16": (INT, 1, False)}
_skip = {"beta": (REAL, None, True), "gamma": (REAL, None, True)}
_typed = {"type_id": (INT, 1, True)}
_masked = _typed | {"has_mask": (INT, 1, True)}
_scale_max = {"use_int8_scale_max": (INT, 1, False)}
FIELDS: dict[tuple[str, str], dict[str, tuple[str, int | None, bool]]] = {
    (ATTENTION, "fixed"): _qkv | _masked,
    (ATTENTION, "varseqlen"): _qkv | _masked | _scale_max | {"var_seqlen": (INT, 1, False)},
    (ATTENTION, "interleaved"): _qkv | _scale_max,
    (SKIP, "fixed"): _skip | _typed | {"ld": (INT, 1, True), "bias": (REAL, None, False)},
    (SKIP, "varseqlen"): _skip | _typed | {"bias": (REAL, None, False)},
    (SKIP, "interleaved"): _skip,
    (SKIP, "megatron"): _skip,
    (EMBEDDINGS, "fixed"): _emb | {"mha_type_id": (INT, 1, False), "full_mask": (INT, 1, False)},
    (EMBEDDINGS, "varseqlen"): _emb,
    (EMBEDDINGS, "megatron"): _emb,
}
KINDS = {
    (ATTENTION, 2): {"1": "fixed", "2": "varseqlen", "3": "interleaved"},
    (ATTENTION, 3): {"4": "fixed", "5": "varseqlen", "6": "interleaved"},
    (SKIP, 2): {"1": "fixed", "2": "varseqlen", "3": "interleaved", "4": "megatron"},
    (SKIP, 3): {"5": "fixed", "6": "varseqlen", "7": "interleaved", "8": "megatron"},
    (EMBEDDINGS, 2): {"1": "fixed", "2": "varseqlen", "3": "megatron"},
    (EMBEDDINGS, 3): {"6": "fixed", "4": "varseqlen", "5": "megatron"},
}


class Plugin:
    """A plugin as created: name, kind, generation and the fields it read."""

    def __init__(self, cls: type, name: str, kind: str, fields: dict[str, np.ndarray]) -> None:
        self.stands_for, self.name, self.kind, self.fields = cls, name, kind, fields

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


def read_fields(trt: Any, collection: Any, wanted: dict[str, tuple[str, int | None, bool]]) -> dict[str, np.ndarray] | None:
    """Return the fields a creator knows; None when one is missing, of the wrong type or count. Unknown ones are errors here:
    the real creators ignore them, but ours has no business to send any."""
    found = {}
    for field in collection:
        assert field.name in wanted, f"unknown plugin field {field.name}"
        kind, count, _ = wanted[field.name]
        if field.type != getattr(trt.PluginFieldType, kind) or (count is not None and field.size != count):
            return None
        found[field.name] = np.array(field.data).reshape(-1).copy()
    if any(required and name not in found for name, (_, _, required) in wanted.items()):
        return None
    if "dq_probs" in found and not found["dq_probs"][0] > 0:
        return None
    return found


class Registry:
    """get_creator of the real registry, for the BERT plugins only."""

    def __init__(self, trt: Any) -> None:
        self.trt, self.loaded, self.missing = trt, False, set[tuple[str, str]]()

    def __getattr__(self, name: str) -> Any:
        if name != "get_creator":
            raise AttributeError(f"'IPluginRegistry' object has no attribute '{name}'")

        def get_creator(*args: Any, **kwargs: Any) -> Any:
            bound = bind(self.trt, self.trt.IPluginRegistry, name, args, kwargs)
            return self._creator(bound["type"], bound["version"])

        return get_creator

    def _creator(self, name: str, version: str) -> Any:
        if not self.loaded or (name, version) in self.missing:
            return None
        for generation in (2, 3):
            kind = KINDS.get((name, generation), {}).get(version)
            if kind is not None:
                return creator(self.trt, name, kind, generation)
        return None


def creator(trt: Any, plugin_name: str, kind: str, generation: int) -> Any:
    """Return a creator of the real base class, so that isinstance tells generations apart as it does for real ones."""
    base = trt.IPluginCreatorV3One if generation == 3 else trt.IPluginCreator
    made = trt.IPluginV3 if generation == 3 else trt.IPluginV2

    class Creator(base):  # type: ignore[misc,valid-type]
        def __init__(self) -> None:
            base.__init__(self)

        def create_plugin(self, *args: Any, **kwargs: Any) -> Plugin | None:
            bound = bind(trt, base, "create_plugin", args, kwargs)
            if generation == 3:
                assert bound["phase"] == trt.TensorRTPhase.BUILD
            fields = read_fields(trt, bound["field_collection"], FIELDS[plugin_name, kind])
            return None if fields is None else Plugin(made, plugin_name, kind, fields)

    return Creator()
