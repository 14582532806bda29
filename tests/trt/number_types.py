# SPDX-License-Identifier: Apache-2.0
"""TensorRT's number types in NumPy: rounding to FP16, BF16, FP8 E4M3 and INT8, with a tag that says which type a value has."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

FLOATS = ("FLOAT", "HALF", "BF16")
_real: type = np.float32  # what FP32 is computed in


@contextlib.contextmanager
def exact() -> Iterator[None]:
    """Compute FP32 in double precision and leave out the plugins' own roundings (16 bits inside INT8 ones, epsilons).

    INT8 amplifies them: a value that crosses a rounding border moves by a whole step, and the next layer spreads it. Without
    them an INT8 network must agree with the reference to many digits, so a wrong range or place of rounding cannot hide.
    """
    global _real
    _real = np.float64
    try:
        yield
    finally:
        _real = np.float32


def is_exact() -> bool:
    return _real is np.float64


class BadNetwork(Exception):
    """TensorRT would refuse this network or these shapes."""


def demand(condition: bool, message: str) -> None:
    if not condition:
        raise BadNetwork(message)


@dataclass
class Value:
    """An array and its TensorRT type. Floating types and eight-bit codes are kept as float32 arrays of rounded numbers."""

    array: np.ndarray
    dtype: str
    amax: float | None = None  # dynamic range, where one was set
    mask_form: str = ""  # "index" or "packed": the embedding plugin's mask encoding


def fp16(x: np.ndarray) -> np.ndarray:
    """Round to FP16; large arrays by additions alone, as NumPy's conversion of subnormals takes ten times as long."""
    x = x.astype(np.float32, copy=False)
    if x.size < 4096 or not np.abs(x).max() < 65504:
        with np.errstate(over="ignore"):
            return x.astype(np.float16).astype(np.float32)
    spread = x * np.float32(2**13 + 1)  # Veltkamp's splitting to 11 bits
    half = np.float32(0.5)  # subnormals of FP16 are multiples of 2^-24, the step of FP32 at one half
    return np.where(np.abs(x) < np.float32(2**-14), (x + half) - half, spread - (spread - x))


def bf16(x: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def fp8(x: np.ndarray) -> np.ndarray:
    """Round to E4M3: 3 mantissa bits, least exponent -6, largest number 448."""
    x = np.clip(x, -448, 448).astype(np.float32)
    exponent = np.maximum(np.frexp(x)[1] - 1, -6)
    step = np.exp2(exponent.astype(np.float32) - 3)
    return (np.rint(x / step) * step).astype(np.float32)


def int8(x: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(x), -128, 127)


ROUND = {"HALF": fp16, "BF16": bf16, "FP8": fp8, "INT8": int8}


def rounded(array: np.ndarray, dtype: str) -> np.ndarray:
    """Return an array with the precision of a type."""
    if dtype in FLOATS or dtype in ROUND:
        array = np.asarray(array, _real)
        return ROUND[dtype](array) if dtype in ROUND else array
    return np.asarray(array, {"INT32": np.int32, "INT64": np.int64, "BOOL": np.bool_}[dtype])


def fake_int8(x: np.ndarray, amax: np.ndarray | float) -> np.ndarray:
    """Return x on the symmetric INT8 grid of a range."""
    scale = np.asarray(amax, _real) / 127
    return np.clip(np.rint(x / scale), -128, 127) * scale
