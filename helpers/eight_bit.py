# SPDX-License-Identifier: Apache-2.0
"""The two 8-bit formats: INT8, symmetric, and FP8 in its E4M3 form; both round to nearest even and saturate.

A tensor with the range amax has the scale amax / LIMITS[precision]; what is stored, times the scale, is the value.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from helpers.config import Precision

EightBit = Literal["int8", "fp8"]

LIMITS: dict[EightBit, float] = {"int8": 127.0, "fp8": 448.0}  # INT8 never uses -128, as in quantisation-aware training


def eight_bit_format(precision: Precision) -> EightBit | None:
    """Return the 8-bit format of an engine's precision; None where it has 16 or 32 bits."""
    return precision if precision == "int8" or precision == "fp8" else None


def encode(scaled: np.ndarray, precision: EightBit) -> np.ndarray:
    """Return values that are divided by their scale already as int8, or as uint8 with E4M3's bits. NaN has no code."""
    limit = LIMITS[precision]
    if precision == "int8":
        return np.clip(np.rint(scaled), -limit, limit).astype(np.int8)
    # E4M3 (Micikevicius et al., "FP8 formats for deep learning", 2022): sign, 4 bits of exponent with bias 7, 3 of mantissa.
    if scaled.dtype == np.float32:
        return _encode_float32(scaled)
    magnitude = np.minimum(np.abs(scaled), limit)
    _, exponent = np.frexp(np.maximum(magnitude, 2.0**-9))  # magnitude = [0.5, 1) * 2^exponent; zero is among the subnormals
    step = np.maximum(exponent - 4, -9)  # log2 of the distance between neighbours; 2^-9 for subnormals
    codes = np.rint(np.ldexp(magnitude, -step)).astype(np.int32) + 8 * (step + 9)  # a mantissa rounded up to 16 carries over
    return (codes | np.signbit(scaled) * 0x80).astype(np.uint8)


def _encode_float32(scaled: np.ndarray) -> np.ndarray:
    """The same from float32's own bits, in a third of the time: BERT-large has 300 million weights to encode."""
    magnitude = np.minimum(np.abs(scaled), np.float32(LIMITS["fp8"]))
    bits = magnitude.view(np.uint32)
    rounded = (bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20  # 3 bits of mantissa are left, and the exponent, whose bias is 127
    subnormal = np.rint(magnitude * np.float32(2.0**9)).astype(np.uint32)  # below 2^-6; 8 is 2^-6 itself
    codes = np.where(magnitude < np.float32(2.0**-6), subnormal, rounded - (127 - 7 << 3))
    return (codes | np.signbit(scaled) * np.uint32(0x80)).astype(np.uint8)


def nearest(scaled: np.ndarray, precision: EightBit) -> np.ndarray:
    """Return the values that `encode` stores, in the type of the argument."""
    if precision == "int8":
        return np.clip(np.rint(scaled), -LIMITS[precision], LIMITS[precision])
    return _E4M3[encode(scaled, precision)].astype(scaled.dtype, copy=False)


def _e4m3_table() -> np.ndarray:
    """Return the value of every code, float32 (256,)."""
    codes = np.arange(256)
    exponent, mantissa = codes >> 3 & 15, codes & 7
    magnitude = np.where(exponent == 0, np.ldexp(mantissa, -9), np.ldexp(8 + mantissa, exponent - 10))
    magnitude[codes & 127 == 127] = np.nan
    return np.where(codes < 128, magnitude, -magnitude).astype(np.float32)


_E4M3 = _e4m3_table()
