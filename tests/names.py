# SPDX-License-Identifier: Apache-2.0
"""A tiny model, and its parameter names spelt as TensorFlow, Hugging Face and Megatron spell them, for files the tests write."""

from __future__ import annotations

import re

import numpy as np

from helpers.config import BertConfig
from helpers.weights import Weights, random_weights
from helpers.weights.names import expected_shapes

TINY = BertConfig(8, 1, 2, 16, vocab_size=12, max_position_embeddings=16)
EXPECTED = random_weights.make(TINY, 5)


def assert_same(weights: Weights, limit: float = 0.0) -> None:
    """Fail where weights that were read are not those of EXPECTED."""
    assert set(weights.tensors) == set(expected_shapes(TINY))
    for name, array in weights.tensors.items():
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, EXPECTED[name], atol=limit, err_msg=name)


def huggingface_name(name: str) -> str:
    """l0_attention_self_query_kernel -> bert.encoder.layer.0.attention.self.query.weight"""
    if name.startswith("cls_squad_output"):
        return "qa_outputs." + {"weights": "weight", "bias": "bias"}[name.rsplit("_", 1)[1]]
    if match := re.fullmatch(r"bert_embeddings_(\w+_embeddings)", name):
        return f"bert.embeddings.{match[1]}.weight"
    name = re.sub("^bert_embeddings_", "bert.embeddings.", name)
    name = re.sub(r"^l(\d+)_", r"bert.encoder.layer.\1.", name)
    name = name.replace("attention_self_", "attention.self.").replace("attention_output_", "attention.output.")
    name = name.replace("intermediate_dense", "intermediate.dense").replace("output_dense", "output.dense")
    name = name.replace("output_layernorm", "output.layernorm").replace("layernorm", "LayerNorm")
    return re.sub(r"_(kernel|bias|gamma|beta)$", lambda m: "." + {"bias": "bias", "beta": "bias"}.get(m[1], "weight"), name)


def huggingface_names(config: BertConfig, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return a Hugging Face state dict, with the buffer and the pooler that such files carry."""
    named = {huggingface_name(name): array for name, array in tensors.items()}
    named["bert.embeddings.position_ids"] = np.arange(config.max_position_embeddings)[None]
    named["bert.pooler.dense.weight"] = np.ones((config.hidden_size, config.hidden_size), np.float32)
    return named


def tensorflow_names(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the variables of a fine-tuned TensorFlow checkpoint, kernels (in, out), with what training adds."""
    variables = {}
    for name, array in tensors.items():
        path = re.sub(r"^l(\d+)_", r"bert/encoder/layer_\1/", name).replace("bert_embeddings_", "bert/embeddings/")
        path = path.replace("attention_self_", "attention/self/").replace("attention_output_", "attention/output/")
        path = path.replace("intermediate_dense", "intermediate/dense").replace("output_dense", "output/dense")
        path = path.replace("output_layernorm", "output/LayerNorm").replace("embeddings/layernorm", "embeddings/LayerNorm")
        path = path.replace("cls_squad_", "cls/squad/")
        path = re.sub(r"(query|key|value|dense|LayerNorm)_(\w+)$", r"\1/\2", path)
        variables[path] = array.T if path.endswith("/kernel") else array
    kernel = variables["bert/encoder/layer_0/intermediate/dense/kernel"]
    variables["bert/encoder/layer_0/intermediate/dense/kernel/adam_m"] = np.zeros_like(kernel)
    variables["bert/pooler/dense/kernel"] = np.zeros((4, 4), np.float32)
    variables["global_step"] = np.array(7, np.int64)
    return variables
