# SPDX-License-Identifier: Apache-2.0
"""Weights from PyTorch's, Hugging Face's and Megatron's files: .safetensors, .pt, .bin, --pickle. Nothing in them is executed."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from helpers.config import BertConfig
from helpers.errors import InputError
from helpers.weights import Weights, torch_file
from helpers.weights.state_dict import weights_from_names


def read(config: BertConfig, path: str | Path) -> Weights:
    """Return the weights of a state dict file. Raises InputError for a file that is missing, corrupt or does not fit."""
    arrays = _safetensors(path) if _is_safetensors(path) else torch_file.load(path)
    return weights_from_names(config, arrays, f"PyTorch file {path}")


def read_megatron(config: BertConfig, path: str | Path) -> Weights:
    """Return the weights of a Megatron dictionary; its entries whose name contains `scale` are no weights."""
    arrays = {name: array for name, array in torch_file.load(path).items() if "scale" not in name}
    return weights_from_names(config, arrays, f"pickle {path}")


def _is_safetensors(path: str | Path) -> bool:
    """Return whether a file begins with a JSON header behind its 8 bytes of length."""
    try:
        with open(path, "rb") as file:
            return file.read(9)[8:] == b"{"
    except OSError as error:
        raise InputError(f"the file {path} cannot be read ({error.strerror}); correct -pt/--pytorch") from error


def _safetensors(path: str | Path) -> dict[str, np.ndarray]:
    import ml_dtypes  # noqa: F401  (lets NumPy hold the bfloat16 tensors of a file)
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="numpy") as file:
            kinds = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118  (not a mapping)
            narrow = [name for name, kind in kinds.items() if kind.startswith(("F8", "F6", "F4"))]
            if narrow:
                raise InputError(f"{path} has {narrow[0]} in {kinds[narrow[0]]}; give the model in FP32, FP16 or BF16")
            return {name: file.get_tensor(name) for name in kinds}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} cannot be read as safetensors ({error}); it may be cut off, fetch it again") from error
