# SPDX-License-Identifier: Apache-2.0
"""What the tests of single kernels share: FP16 as the bits the modules take, errors, statistics of tiles, GELU in float64."""

from __future__ import annotations

import numpy as np

from helpers import eight_bit


def half(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x.astype(np.float16)).view(np.uint16)


def error(out: np.ndarray, expected: np.ndarray) -> float:
    """Return the relative error in the Frobenius norm; NaN where the output has one."""
    return float(np.linalg.norm(out.astype(np.float64) - expected) / np.linalg.norm(expected))


def tile_stats(x: np.ndarray, width: int) -> np.ndarray:
    """Return mean and squared deviations of every tile of `width` columns, (rows, tiles, 2)."""
    tiles = [x[:, i : i + width] for i in range(0, x.shape[1], width)]
    return np.stack([np.stack([t.mean(1), ((t - t.mean(1, keepdims=True)) ** 2).sum(1)], -1) for t in tiles], 1)


def gelu(x: np.ndarray, form: str) -> np.ndarray:
    if form == "gelu_tanh":
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    from math import erf

    return 0.5 * x * (1 + np.vectorize(erf)(x / np.sqrt(2)))


E4M3 = np.array([(c & 7) * 2.0**-9 if c < 8 else (8 + (c & 7)) * 2.0 ** ((c >> 3) - 10) for c in range(127)])  # all but NaN


def decode(codes: np.ndarray, precision: str) -> np.ndarray:
    """Return the values that 8-bit codes stand for; NaN for E4M3's NaN."""
    if precision == "int8":
        return codes.view(np.int8).astype(np.float64)
    magnitude = np.append(E4M3, np.nan)[codes & 0x7F]
    return np.where(codes & 0x80, -magnitude, magnitude)


def check_rounded(out: np.ndarray, exact: np.ndarray, precision: str, equal: float, slack: float = 0.0) -> None:
    """Assert that codes are `exact` (in units of the scale) rounded: one step off at most, and a share of `equal` not at all.

    slack: what the computation before the rounding may be off, as a share of the largest value; for E4M3's small steps near 0.
    """
    values, wanted = decode(out, precision), eight_bit.nearest(exact, precision)
    step = 1.0 if precision == "int8" else np.maximum(2.0 ** (np.floor(np.log2(np.maximum(np.abs(wanted), 2.0**-6))) - 3), 2.0**-9)
    assert (np.abs(values - wanted) <= step + slack * np.abs(exact).max()).all()
    assert (values != wanted).sum() <= max(1, (1 - equal) * wanted.size)
