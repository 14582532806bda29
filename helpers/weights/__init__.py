# SPDX-License-Identifier: Apache-2.0
"""Weights of a model under one set of names, whatever file they came from; the readers are the modules beside this one."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, field

import numpy as np

from helpers.config import BertConfig
from helpers.errors import InputError
from helpers.weights.names import expected_shapes


@dataclass(frozen=True)
class Weights:
    """Parameters and ranges of one model.

    tensors: float32 arrays named and shaped as `names.expected_shapes` says.
    ranges: amax of every quantiser, by name: shape () for activations, (out,) for the kernels.
    source: what the user gave, for messages and engine metadata.
    """

    tensors: dict[str, np.ndarray]
    ranges: dict[str, np.ndarray] = field(default_factory=dict)
    source: str = "weights"

    def __getitem__(self, name: str) -> np.ndarray:
        return self.tensors[name]

    def digest(self) -> str:
        """Return a SHA-256 over names, shapes and values: the identity of the model in caches and engines."""
        return self._digest

    @functools.cached_property
    def _digest(self) -> str:  # a second for BERT-large, asked for by the cache's name, its content and the engine
        sha = hashlib.sha256()
        for name in sorted(self.tensors):
            array = np.ascontiguousarray(self.tensors[name])
            sha.update(f"{name}{array.shape}{array.dtype}".encode())
            sha.update(array.data)
        return sha.hexdigest()

    def kernel_amax(self, product: str) -> np.ndarray:
        """Return the range of every output row of a kernel, float32 (out,): the stored ones, or the rows' own largest values."""
        own = np.abs(self[f"{product}_kernel"]).max(1)
        stored = self.ranges.get(f"{product}_kernel_amax", own)
        return np.maximum(np.broadcast_to(stored, own.shape), 1e-12).astype(np.float32)  # a row of zeros has no range

    def range(self, name: str) -> float:
        """Return one activation range; raise InputError when the weights have none of that name."""
        if name not in self.ranges:
            raise InputError(
                f"{self.source} has no activation range {name}, which an INT8 or FP8 engine needs; "
                "give quantisation-aware weights, or calibrate by giving --squad-json"
            )
        return float(np.max(self.ranges[name]))


class Found:
    """The tensors of a file by the project's names, gathered one by one; `source` names the file in messages."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.tensors: dict[str, np.ndarray] = {}
        self._given: dict[str, str] = {}  # what the file calls each of them

    def add(self, name: str, given: str, array: np.ndarray) -> None:
        """Add the tensor that the file calls `given`; raise InputError where another of that name came with other values."""
        if name in self.tensors and not np.array_equal(array, self.tensors[name]):
            raise InputError(
                f"{self.source} has two different tensors for {name}, {self._given[name]} and {given}; give a file with one of them"
            )
        self.tensors[name], self._given[name] = array, given


def is_floating(array: np.ndarray) -> bool:
    """Return whether an array holds floating-point numbers of at least 16 bits; narrower ones mean nothing without their scales."""
    return array.dtype.name in ("bfloat16", "float16", "float32", "float64")  # NumPy counts bfloat16 as raw bytes


def checked(config: BertConfig, tensors: dict[str, np.ndarray], ranges: dict[str, np.ndarray], source: str) -> Weights:
    """Return the weights as float32 after comparing every name and shape with the configuration.

    Raises InputError that names every tensor that is missing, misshapen, unused, not finite or no floating-point one.
    """
    expected = expected_shapes(config)
    faults = [f"{name} {expected[name]} is missing" for name in expected if name not in tensors]
    faults += [f"{name} is not used" for name in tensors if name not in expected]
    result: dict[str, np.ndarray] = {}
    for name, shape in expected.items():
        if name not in tensors:
            continue
        array = tensors[name]
        if array.shape != shape:
            faults.append(f"{name} has shape {array.shape} where the configuration says {shape}")
            continue
        if not is_floating(array):
            faults.append(f"{name} holds {array.dtype}, not floating-point numbers")
            continue
        result[name] = np.ascontiguousarray(array, dtype=np.float32)
        if not np.isfinite(result[name]).all():
            faults.append(f"{name} holds values that are not finite")
    for name, amax in ranges.items():
        if not (np.isfinite(amax).all() and (np.asarray(amax) > 0).all()):
            faults.append(f"range {name} is not a positive number")
        rows = expected.get(name.removesuffix("_amax"), (1,))[0]
        if np.size(amax) not in (1, rows):
            faults.append(f"range {name} has {np.size(amax)} values for {rows} rows")
    if faults:
        shown = "; ".join(faults[:20]) + (f"; and {len(faults) - 20} more" if len(faults) > 20 else "")
        raise InputError(f"{source} does not fit the model configuration: {shown}")
    return Weights(result, {name: np.asarray(amax, dtype=np.float32) for name, amax in ranges.items()}, source)
