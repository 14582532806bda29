# SPDX-License-Identifier: Apache-2.0
"""Weights from a Megatron `--pickle` dictionary, through an unpickler that can build arrays and tensors and nothing else."""

from __future__ import annotations

import collections
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from helpers.config import BertConfig
from helpers.errors import InputError, MissingDependency
from helpers.weights import Weights
from helpers.weights.pytorch import as_array, state_dict_in
from helpers.weights.state_dict import weights_from_names

# Every global a pickle of arrays names; NumPy 2 moved its core, so both spellings.
_NUMPY = {("numpy", "ndarray"), ("numpy", "dtype")} | {
    (module, name)
    for module in ("numpy.core.multiarray", "numpy._core.multiarray", "numpy.core.numeric", "numpy._core.numeric")
    for name in ("_reconstruct", "scalar", "_frombuffer")
}
_TORCH = {
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
    *(("torch", f"{kind}Storage") for kind in ("Float", "Half", "BFloat16", "Double", "Long", "Int", "Char", "Byte", "Bool")),
    *(("torch", name) for name in ("float32", "float16", "bfloat16", "float64", "int64", "int32", "int8", "uint8", "bool", "Size")),
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("_codecs", "encode"):  # how protocol 2 spells bytes
            return _latin1
        if (module, name) == ("torch.storage", "_load_from_bytes"):  # how tensors pickle their data: a torch file inside
            return _torch_bytes
        if (module, name) in _NUMPY or (module, name) in _TORCH:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it refers to {module}.{name}, which is no array or tensor")


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it encodes bytes as {encoding}")
    return text.encode("latin1")


def _torch_bytes(data: bytes) -> Any:
    import torch

    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def read(config: BertConfig, path: str | Path) -> Weights:
    """Return the weights of a pickled dictionary of names to arrays; entries whose name contains `scale` are skipped.

    Raises InputError for a file that is missing, corrupt, or refers to anything but arrays and tensors.
    """
    try:
        with open(path, "rb") as file:
            content = _ArrayUnpickler(file).load()
    except OSError as error:
        raise InputError(f"the pickle {path} cannot be read ({error.strerror}); correct -pkl/--pickle") from error
    except ModuleNotFoundError as error:
        raise MissingDependency(f"{path} holds torch tensors and {error.name} is not installed; pip install torch") from error
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise InputError(f"{path} is not loaded: {str(error) or repr(error)}; only dictionaries of arrays or tensors are") from error
    arrays = {name: as_array(value) for name, value in state_dict_in(content, path).items() if "scale" not in name}
    return weights_from_names(config, {name: np.asarray(array) for name, array in arrays.items()}, f"pickle {path}")
