# SPDX-License-Identifier: Apache-2.0
"""Weights and quantiser ranges from the initializers of an ONNX file; its graph is read only to undo an exporter's renaming."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from helpers.config import BertConfig
from helpers.errors import InputError, MissingDependency
from helpers.weights import Found, Weights
from helpers.weights.state_dict import canonical, weights_from_names


def read(config: BertConfig, path: str | Path) -> Weights:
    """Return the weights of an ONNX BERT; float initializers of any width, external data included.

    Raises InputError for a file that is missing, corrupt, or not a BERT of this configuration.
    """
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise MissingDependency("reading ONNX files needs the onnx package; pip install onnx") from error
    try:
        model = onnx.load(str(path))
    except Exception as error:  # protobuf, onnx and the operating system each raise their own
        raise InputError(f"{path} cannot be read as an ONNX file ({str(error).splitlines()[0]}); check -x/--onnx") from error
    folded = _folded_products(model.graph)
    found = Found(f"ONNX file {path}")
    for initializer in model.graph.initializer:
        given = initializer.name
        name = folded.get(given, given)
        if _belongs(onnx, name, initializer):
            array = _float_array(onnx, initializer, path)
            found.add(name, given, array.T if given in folded else array)
    if not found.tensors:
        raise InputError(f"{path} has no weights among its {len(model.graph.initializer)} initializers; give a BERT model")
    return weights_from_names(config, found.tensors, found.source)


def _belongs(onnx: Any, name: str, initializer: Any) -> bool:
    """Return whether an initializer is a parameter or a range; graph constants (shapes, scales, zero points) are not."""
    float_types = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16}
    if initializer.data_type not in float_types:
        return False
    try:
        return canonical(name) is not None
    except KeyError:
        # A matrix nobody knows is a renamed weight, to be reported; a scalar or a vector may be any constant.
        return name.startswith("bert.") or sum(size > 1 for size in initializer.dims) >= 2


def _folded_products(graph: Any) -> dict[str, str]:
    """Return parameter names of matrices that an exporter transposed and renamed to `onnx::MatMul_N`.

    The product's node still carries the module path: /bert/encoder/layer.0/attention/self/query/MatMul.
    """
    renamed = {}
    for node in graph.node:
        if (
            node.op_type == "MatMul"
            and len(node.input) == 2
            and node.input[1].startswith("onnx::")
            and node.name.endswith("/MatMul")
        ):
            renamed[node.input[1]] = node.name.strip("/").removesuffix("/MatMul").replace("/", ".") + ".weight"
    return renamed


def _float_array(onnx: Any, initializer: Any, path: str | Path) -> np.ndarray:
    try:
        return np.asarray(onnx.numpy_helper.to_array(initializer, base_dir=str(Path(path).parent)), dtype=np.float32)
    except Exception as error:
        raise InputError(f"{path}: initializer {initializer.name} cannot be read ({error}); the file may be cut off") from error
