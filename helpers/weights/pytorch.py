# SPDX-License-Identifier: Apache-2.0
"""Weights from PyTorch's and Hugging Face's files: .safetensors, .pt, .bin. Nothing in a file is ever executed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from helpers.config import BertConfig
from helpers.errors import InputError, MissingDependency
from helpers.weights import Weights
from helpers.weights.state_dict import weights_from_names


def read(config: BertConfig, path: str | Path) -> Weights:
    """Return the weights of a state dict file; a dictionary may hold it under `model`, `state_dict` or `module`.

    Raises InputError for a missing, corrupt or unfitting file, and for one that holds more than tensors.
    """
    if not Path(path).is_file():
        raise InputError(f"there is no PyTorch file {path}; correct -pt/--pytorch")
    arrays = _safetensors(path) if _is_safetensors(path) else _torch(path)
    return weights_from_names(config, arrays, f"PyTorch file {path}")


def _is_safetensors(path: str | Path) -> bool:
    with open(path, "rb") as file:
        head = file.read(9)
    return head[8:] == b"{" and head[:2] != b"PK"


def _safetensors(path: str | Path) -> dict[str, np.ndarray]:
    try:
        from safetensors import SafetensorError, safe_open
    except ModuleNotFoundError as error:
        raise MissingDependency("reading .safetensors files needs the safetensors package; pip install safetensors") from error
    try:
        import ml_dtypes  # noqa: F401  (gives NumPy bfloat16, which the file may hold)
    except ModuleNotFoundError:
        pass
    try:
        with safe_open(str(path), framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
    except (SafetensorError, OSError, TypeError, AttributeError) as error:
        raise InputError(f"{path} cannot be read as safetensors ({error}); it may be cut off, fetch it again") from error


def _torch(path: str | Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ModuleNotFoundError as error:
        raise MissingDependency("reading .pt and .bin files needs the torch package; pip install torch") from error
    try:
        content = torch.load(str(path), map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and torch each raise their own
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise InputError(f"{path} cannot be read as tensors alone ({reason}); save its state dict, or use .safetensors") from error
    return {name: as_array(tensor) for name, tensor in state_dict_in(content, path).items()}


def state_dict_in(content: Any, path: str | Path) -> dict[str, Any]:
    """Return the mapping of names to tensors inside what a file holds; raise InputError where there is none."""
    for key in ("model", "state_dict", "module"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    tensors = {}
    for name, value in content.items() if isinstance(content, dict) else ():
        if hasattr(value, "shape"):
            tensors[str(name)] = value
    if not tensors:
        raise InputError(f"{path} holds no dictionary of tensors; give a state dict")
    return tensors


def as_array(tensor: Any) -> np.ndarray:
    """Return a torch tensor or an array as NumPy, floats as float32."""
    if isinstance(tensor, np.ndarray | np.generic):
        return np.asarray(tensor)
    tensor = tensor.detach().cpu()
    result: np.ndarray = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    return result
