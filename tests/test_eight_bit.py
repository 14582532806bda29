# SPDX-License-Identifier: Apache-2.0
"""INT8 and E4M3 codes against ml_dtypes and against rounding written out."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from helpers.eight_bit import encode, nearest
from helpers.reference import fake_quantise

CODES = np.arange(256, dtype=np.uint8)
VALUES = CODES.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
FINITE = np.isfinite(VALUES)  # all but 0x7F and 0xFF


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_code_stands_for_itself(dtype: type) -> None:
    values = VALUES[FINITE].astype(dtype)
    assert len(values) == 254
    assert np.array_equal(encode(values, "fp8"), CODES[FINITE])
    found = nearest(values, "fp8")
    assert found.dtype == dtype and np.array_equal(found, values)


def test_between_codes_the_nearest_counts_and_in_the_middle_the_even_one() -> None:
    ascending = np.sort(VALUES[FINITE])
    middle = (ascending[1:] + ascending[:-1]) / 2
    random = np.random.default_rng(1)
    spread = random.choice([-1, 1], 100_000) * 2.0 ** random.uniform(-14, 8.8, 100_000)
    for values in (middle, np.nextafter(middle, 999), np.nextafter(middle, -999), spread.astype(np.float32)):
        expected = values.astype(ml_dtypes.float8_e4m3fn)
        assert np.array_equal(encode(values, "fp8"), expected.view(np.uint8))
        assert np.array_equal(nearest(values, "fp8"), expected.astype(np.float32))


def test_both_formats_saturate() -> None:
    values = np.array([448, 464, 1e30, np.inf, -500, -np.inf])
    assert nearest(values, "fp8").tolist() == [448, 448, 448, 448, -448, -448]
    assert encode(np.array([126.5, 127.5, 128, np.inf, -128, -1e9, 0.5, 1.5]), "int8").tolist() == [
        126,
        127,
        127,
        127,
        -127,
        -127,
        0,
        2,
    ]
    assert encode(values, "int8").dtype == np.int8 and encode(values, "fp8").dtype == np.uint8


def test_fake_quantise_scales_by_row() -> None:
    x = np.random.default_rng(1).standard_normal((3, 500)).astype(np.float32)
    amax = np.array([4.0, 1.0, 0.1], np.float32)
    found = fake_quantise(x, amax, "fp8")
    assert found.dtype == np.float32
    for row, limit in enumerate(amax):
        clipped = np.clip(x[row], -limit, limit)
        assert (np.abs(found[row] - clipped) <= np.maximum(np.abs(clipped) / 16, limit / 448 / 1024) * 1.0001).all()
        assert np.array_equal(found[row], fake_quantise(x[row], limit, "fp8"))


def test_float32_is_encoded_as_float64_is() -> None:
    exact = np.unique(nearest(np.linspace(-500, 500, 4001), "fp8")).astype(np.float32)
    halves = (exact[1:] + exact[:-1]) / 2  # ties
    small = np.ldexp(np.arange(-40, 41), -11).astype(np.float32)  # subnormals and their ties
    values = np.concatenate([exact, halves, np.nextafter(halves, 0), np.nextafter(halves, 1e9), small, [np.inf, -np.inf, -0.0]])
    assert np.array_equal(encode(values.astype(np.float32), "fp8"), encode(values.astype(np.float32).astype(np.float64), "fp8"))
