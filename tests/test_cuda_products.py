# SPDX-License-Identifier: Apache-2.0
"""The Hopper products against NumPy in float64: every way to cut them, every epilogue, FP16, INT8 and FP8, at odd sizes.

Needs a Hopper GPU and the module infer_c_ops (cmake -DBERT_TEST_OPS=ON).
"""

from __future__ import annotations

import json

import numpy as np
import pytest

from helpers import eight_bit
from tests.cuda_engine import built
from tests.cuda_engine.arrays import check_rounded, error, gelu, half, tile_stats

ops = built.module("infer_c_ops")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(ops is None or built.capability() != 90, reason="needs a Hopper GPU and -DBERT_TEST_OPS=ON"),
]

EPILOGUES = {"norm": 0, "norm_gelu_tanh": 1, "norm_gelu_erf": 2, "residual": 3, "bias": 4, "gelu_tanh": 5, "gelu_erf": 6}
FORMATS = {"fp16": 0, "int8": 1, "fp8": 2}
# Numbers as in Variant (product_sm90.h): tile rows and columns, split, FP16 sums, share, pair, blocks a multiprocessor, early,
# prefetch. Every tile, with ways to fetch, to lay out shared memory and to overlap spread over them; FP16 alone has FP16 sums.
EITHER = [
    (64, 48, 1, 0, 1, 1, 2, 1, 1),
    (64, 64, 1, 0, 2, 2),
    (64, 64, 2, 0),
    (64, 64, 4, 0, 1, 2),
    (64, 64, 2, 0, 1, 1, 3),
    (64, 96, 1, 0, 1, 2, 1, 0, 2),
    (128, 48, 2, 0, 1, 1, 2, 0),
    (128, 48, 4, 0, 2, 1, 1, 1, 1),
    (128, 64, 1, 0, 4, 1),
    (128, 64, 1, 0, 1, 1, 1, 0, 1),
    (128, 64, 2, 0, 2, 2),
    (128, 96, 1, 0, 2, 2, 2, 0),
    (128, 96, 2, 0, 1, 1, 1, 2, 2),
    (128, 128, 1, 0, 2, 1),
    (128, 128, 2, 0, 2, 2),
    (192, 96, 1, 0, 4, 1, 1),
    (192, 128, 1, 0, 1, 2, 1),
    (256, 128, 1, 0, 2, 2, 1),
    (256, 1, 2),
    (256, 2, 2),
    (256, 3, 2),
]
HALF_VARIANTS = [
    *EITHER,
    (64, 48, 4, 0, 2, 1, 2, 1, 1),
    (64, 72, 1, 0, 2, 1),
    (128, 72, 1, 0),
    (128, 104, 4, 1),
    (128, 104, 4, 1, 2, 1, 1, 2, 2),
    (128, 64, 4, 1, 2, 1),
    (128, 96, 4, 1, 1, 2, 1),
    (128, 128, 4, 1),
    (128, 128, 4, 1, 2, 1, 1, 0, 1),
    (192, 64, 2, 0, 4, 1),
    (192, 96, 2, 1, 2, 2, 1),
    (192, 128, 2, 1),
    (256, 64, 2, 0, 1, 1, 1),
    (256, 96, 1, 0, 4, 1, 1, 0),
]
EIGHT_BIT_VARIANTS = [*EITHER, (128, 64, 4, 0, 1, 2)]
SIZES = [(1, 384, 384), (17, 1152, 384), (127, 96, 1008), (128, 3072, 1024), (129, 1024, 4096), (300, 784, 208), (515, 2304, 768)]
# The persistent kernel walks over several tiles a block only where there are many.
MANY_ROWS = [(4500, 784, 208), (20001, 528, 400)]


def sizes(variant: tuple[int, ...], epilogue: str, box: int) -> list[tuple[int, int, int]]:
    """Return the sizes a variant takes: its blocks share a depth of at least one box each. (NumPy has no erf: few rows for it.)"""
    persistent = len(variant) == 3
    split = 1 if persistent else variant[2]
    many = persistent and "erf" not in epilogue
    return [size for size in SIZES + MANY_ROWS * many if split <= -(-size[2] // box)]


@pytest.mark.parametrize("epilogue", ["norm", "norm_gelu_tanh", "norm_gelu_erf", "residual"])
@pytest.mark.parametrize("variant", HALF_VARIANTS, ids=str)
def test_fp16(epilogue: str, variant: tuple[int, ...]) -> None:
    rng = np.random.default_rng([*variant, EPILOGUES[epilogue]])
    for rows, columns, depth in sizes(variant, epilogue, 64):
        x = (rng.standard_normal((rows, depth)) * 2 + 0.5).astype(np.float16)
        w = (rng.standard_normal((columns, depth)) * depth**-0.5).astype(np.float16)
        bias = rng.standard_normal(columns).astype(np.float32)
        residual = (rng.standard_normal((rows, columns)) * 3 - 1).astype(np.float16)
        product = x.astype(np.float64) @ w.astype(np.float64).T
        if epilogue == "residual":
            base, factor = residual.astype(np.float64), rng.standard_normal(columns).astype(np.float32)
        else:
            base, factor = x.astype(np.float64), w.astype(np.float64).sum(1).astype(np.float32)
        eps, width = 1e-12, int(rng.choice([48, 64, 96, 128, 256]))
        mean, scale = base.mean(1, keepdims=True), 1 / np.sqrt(base.var(1, keepdims=True) + eps)
        if epilogue == "residual":
            expected = product + bias + (base - mean) * scale * factor
        else:
            expected = scale * (product - mean * factor) + bias
            expected = expected if epilogue == "norm" else gelu(expected, epilogue.removeprefix("norm_"))
        stats = tile_stats(base, width).astype(np.float32)
        given = bias / 2 if epilogue == "norm_gelu_tanh" else bias
        out, out_stats, *_ = ops.product(
            list(variant), 0, EPILOGUES[epilogue], half(x), half(w), bias, given, factor, stats, width, eps, half(residual), 1.0, 0
        )
        out = out.view(np.float16).astype(np.float64)
        where = f"{rows} x {columns} x {depth}"
        assert error(out, expected) <= 1e-3, where
        assert np.abs(out - expected).max() <= 2e-3 * np.abs(expected).max() + 2e-3, where
        if epilogue == "residual":
            wanted = tile_stats(out, {1: 256, 2: 192, 3: 256}[variant[1]] if len(variant) == 3 else variant[1])
            assert np.abs(out_stats.reshape(wanted.shape) - wanted).max() <= 1e-4 * np.abs(wanted).max() + 1e-5, where


@pytest.mark.parametrize("precision", ["int8", "fp8"])
@pytest.mark.parametrize("epilogue", ["bias", "gelu_tanh", "gelu_erf", "residual"])
@pytest.mark.parametrize("variant", EIGHT_BIT_VARIANTS, ids=str)
def test_eight_bits(epilogue: str, variant: tuple[int, ...], precision: str) -> None:
    rng = np.random.default_rng([*variant, EPILOGUES[epilogue], FORMATS[precision]])
    limit = 127 if precision == "int8" else 448
    for rows, columns, depth in sizes(variant, epilogue, 128):
        x, w = (np.clip(rng.standard_normal((n, depth)) * limit / 4, -limit, limit) for n in (rows, columns))
        product = eight_bit.nearest(x, precision) @ eight_bit.nearest(w, precision).T
        stored_x, stored_w = eight_bit.encode(x, precision), eight_bit.encode(w, precision)
        scale = (rng.uniform(0.5, 1.5, columns) * 16 / limit**2 * depth**-0.5).astype(np.float32)
        bias, factor = rng.standard_normal((2, columns)).astype(np.float32)
        residual = (rng.standard_normal((rows, columns)) * 3 - 1).astype(np.float16)
        base, eps, inverse = residual.astype(np.float64), 1e-12, limit / 3.5
        expected = product * scale + bias
        if epilogue == "residual":
            expected += (base - base.mean(1, keepdims=True)) / np.sqrt(base.var(1, keepdims=True) + eps) * factor
        elif epilogue != "bias":
            expected = gelu(expected, epilogue)
        stats = tile_stats(base, columns).astype(np.float32)
        numbers = FORMATS[precision], EPILOGUES[epilogue]
        # Of query, key and value the first two leave in E4M3, in whose units scale and bias then are.
        narrow = columns // 96 * 64 if epilogue == "bias" else 0
        unit = np.where(np.arange(columns) < narrow, np.float32(128), np.float32(1))
        out, _, _, in_8_bits = ops.product(
            list(variant),
            *numbers,
            stored_x,
            stored_w,
            scale * unit,
            bias * unit,
            factor,
            stats,
            columns,
            eps,
            half(residual),
            inverse,
            0,
            narrow,
        )
        where = f"{rows} x {columns} x {depth}"
        if narrow:
            check_rounded(in_8_bits, expected[:, :narrow] * 128, "fp8", equal=0.95, slack=5e-3)
        expected = expected[:, narrow:]
        if epilogue in ("bias", "residual"):
            out = out.view(np.float16).astype(np.float64)
            # The tensor cores add products of E4M3 up in fewer bits than FP32 has.
            assert error(out, expected) <= (1e-3 if precision == "int8" else 2e-3), where
            loosest = (2e-3 if precision == "int8" else 5e-3) * np.abs(expected).max() + 2e-3
            assert np.abs(out - expected).max() <= loosest, where
        else:
            # The tanh form is found in FP16, whose error near 0 is a step of E4M3.
            equal = 0.95 if epilogue == "gelu_erf" else 0.85 if precision == "fp8" else 0.9
            check_rounded(out, expected * inverse, precision, equal=equal, slack=2e-3)


@pytest.mark.parametrize("precision", ["int8", "fp8"])
@pytest.mark.parametrize("inverse", [1e-2, 40.0, 1e6])
@pytest.mark.parametrize("variant", [(64, 64, 1, 0), (256, 2, 2)], ids=str)
def test_gelu_of_values_beyond_fp16(variant: tuple[int, ...], inverse: float, precision: str) -> None:
    """It is found in FP16, whose infinities must neither meet zeros nor each other."""
    rows, columns, depth = 17, 96, 128
    x, w = np.ones((rows, depth)), np.ones((columns, depth))
    sums = np.resize([1e9, -1e9, 7e4, -7e4, 600.0, -600.0, -6.0, 0.0], columns)
    stored = [eight_bit.encode(each, precision) for each in (x, w)]
    nothing = np.zeros((rows, columns), np.uint16)
    numbers = FORMATS[precision], EPILOGUES["gelu_tanh"]
    scale, stats = (sums / depth).astype(np.float32), np.ones((rows, 1, 2), np.float32)
    zeros = np.zeros(columns, np.float32)
    out, *_ = ops.product(list(variant), *numbers, *stored, scale, zeros, zeros, stats, columns, 1e-12, nothing, inverse, 0)
    expected = np.where(sums > 0, sums, 0.0)  # to less than a step
    check_rounded(out, np.broadcast_to(np.minimum(expected * inverse, 1e6), out.shape), precision, equal=0.95)


@pytest.mark.parametrize("precision", ["int8", "fp8"])
@pytest.mark.parametrize(
    ("rows", "hidden"),
    [(1, 16), (17, 384), (129, 768), (1024, 1024), (3000, 1024), (1500, 384), (1100, 768), (5, 4096), (1030, 4096)],
)
def test_layernorm_into_eight_bits(rows: int, hidden: int, precision: str) -> None:
    rng = np.random.default_rng([rows, hidden])
    x = (rng.standard_normal((rows, hidden)) * 3 + 1).astype(np.float16)
    gamma, beta = rng.standard_normal((2, hidden)).astype(np.float32)
    inverse = (127 if precision == "int8" else 448) / 4  # some saturate
    out, stats, _ = ops.quantise_layernorm(FORMATS[precision], half(x), gamma, beta, inverse, 1e-12, 0)
    wide = x.astype(np.float64)
    normal = (wide - wide.mean(1, keepdims=True)) / np.sqrt(wide.var(1, keepdims=True) + 1e-12) * gamma + beta
    check_rounded(out, normal * inverse, precision, equal=0.999, slack=1e-6)
    assert np.allclose(stats, tile_stats(wide, hidden)[:, 0], rtol=1e-4, atol=1e-5)


LIBRARY = [[0, 1, 1]] * 4


@pytest.mark.parametrize("rows", [128, 2048])
def test_a_search_goes_on_without_what_does_not_run(rows: int) -> None:
    """Ways that fail are left out, cuBLASLt's products among them; what is found is one that runs."""

    first: list[list[int]] = []

    def fails(ways: list[list[int]]) -> bool:
        first.extend(ways if not first else [])
        return ways == LIBRARY or any(way[:2] in ([128, 64], [64, 64]) and way not in first for way in ways)

    error, known, found = ops.search(rows, 256, True, fails)
    assert (error, known) == ("", True)
    assert not fails(json.loads(found)[str(rows)])


@pytest.mark.parametrize("runs", [1, 2, 40])
def test_a_search_that_a_failing_gpu_ends_has_found_nothing(runs: int) -> None:
    left = iter(range(runs))
    error, known, found = ops.search(128, 256, True, lambda ways: next(left, None) is None)
    assert ("this pass fails" in error, known, found) == (True, False, "{}")
