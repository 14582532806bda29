# SPDX-License-Identifier: Apache-2.0
"""Every kernel of the CUDA engine against NumPy in float64, on fresh random data at odd sizes.

Needs a Hopper GPU and the module infer_c_ops (cmake -DBERT_TEST_OPS=ON).
"""

from __future__ import annotations

import numpy as np
import pytest

from helpers import eight_bit
from tests.cuda_engine import built
from tests.cuda_engine.arrays import check_rounded, error, half, tile_stats

ops = built.module("infer_c_ops")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(ops is None or built.capability() != 90, reason="needs a Hopper GPU and -DBERT_TEST_OPS=ON"),
]

SHORT = [0 if i % 5 == 2 else 1 + i * 37 % 128 for i in range(700)]  # more sequences than a block has threads
LENGTHS = [[1], [17], [127], [128], [129], [384], [512], [1, 17, 127, 128, 129, 384, 512, 64, 65], [0, 70, 0, 200, 0, 0]]


def attention_reference(qkv: np.ndarray, lengths: list[int], heads: int) -> np.ndarray:
    hidden = qkv.shape[1] // 3
    out, first = np.empty((len(qkv), hidden)), 0
    for length in filter(None, lengths):
        q, k, v = (
            qkv[first : first + length, i * hidden : (i + 1) * hidden].astype(np.float64).reshape(length, heads, -1).swapaxes(0, 1)
            for i in range(3)
        )
        s = q @ k.swapaxes(1, 2) / np.sqrt(hidden // heads)
        p = np.exp(s - s.max(-1, keepdims=True))
        out[first : first + length] = (p / p.sum(-1, keepdims=True) @ v).swapaxes(0, 1).reshape(length, hidden)
        first += length
    return out


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize(("head_size", "fast"), [(64, True), (32, True), (64, False), (40, False), (128, False)])
def test_attention(lengths: list[int], head_size: int, fast: bool) -> None:
    rng = np.random.default_rng([sum(lengths), head_size])
    for heads in (1, 3, 12):
        qkv = (rng.standard_normal((sum(lengths), 3 * heads * head_size)) * 2).astype(np.float16)
        bounds = np.cumsum([0, *lengths], dtype=np.int32)
        out, _ = ops.attention(half(qkv), bounds, heads, max(lengths), fast, 0)
        assert error(out.view(np.float16), attention_reference(qkv, lengths, heads)) <= 1e-3


@pytest.mark.parametrize("heads", [1, 5])
@pytest.mark.parametrize("head_size", [64, 32])
@pytest.mark.parametrize(
    "lengths",
    [[384] * 11 + [1 + i * 61 % 384 for i in range(119)], [512] * 40, SHORT, SHORT[:40]],
    ids=["130", "40 of 512", "700 short", "40 short"],
)
def test_attention_of_many_sequences(lengths: list[int], head_size: int, heads: int) -> None:
    """Hopper's attention has a kernel for few blocks of 64 queries and one for many (attention_sm90.cu).

    Of these only the last list runs on the first; with 5 heads each multiprocessor has several heads and sequences to walk over.
    """
    qkv = np.random.default_rng([head_size, heads]).standard_normal((sum(lengths), 3 * heads * head_size)).astype(np.float16)
    out, _ = ops.attention(half(qkv), np.cumsum([0, *lengths], dtype=np.int32), heads, max(lengths), True, 0)
    assert error(out.view(np.float16), attention_reference(qkv, lengths, heads)) <= 1e-3


@pytest.mark.parametrize("head_size", [64, 32])
@pytest.mark.parametrize("batch", [1, 5, 60])
def test_attention_of_limits_above_the_lengths(head_size: int, batch: int) -> None:
    """The launch is sized for max_seqlen and all sequences, also where none is as long and the last ones are empty."""
    lengths = [1 + i * 29 % 130 for i in range(batch)] + [0] * batch
    qkv = np.random.default_rng([head_size, batch]).standard_normal((sum(lengths), 3 * 4 * head_size)).astype(np.float16)
    expected = attention_reference(qkv, lengths, 4)
    for max_seqlen in (130, 384, 512):
        out, _ = ops.attention(half(qkv), np.cumsum([0, *lengths], dtype=np.int32), 4, max_seqlen, True, 0)
        assert error(out.view(np.float16), expected) <= 1e-3


@pytest.mark.parametrize(
    "lengths",
    [[128], [129], [1, 17, 127, 128, 0, 384, 65, 0, 0], [65, 512, 0, 384, 200] * 5, SHORT[:200]],
    ids=["128", "129", "mixed", "long", "200 short"],
)
@pytest.mark.parametrize("head_size", [64, 32])
@pytest.mark.parametrize(("precision", "number", "limit"), [("int8", 1, 127), ("fp8", 2, 448)])
def test_attention_in_8_bits(precision: str, number: int, limit: int, head_size: int, lengths: list[int]) -> None:
    rng = np.random.default_rng([sum(lengths), head_size, number])
    hidden = 3 * head_size
    codes = np.clip(rng.standard_normal((sum(lengths), 2 * hidden)) * 112, -448, 448)  # of queries and keys
    values = (rng.standard_normal((sum(lengths), hidden)) * 2).astype(np.float16)
    unit = 8 / 448
    qkv = np.concatenate([eight_bit.nearest(codes, "fp8") * unit, values], axis=1)
    context = attention_reference(qkv, lengths, 3)
    inverse_scale = float(np.float32(limit / np.abs(context).max() * 1.1))  # a few values lie beyond the range
    bounds = np.cumsum([0, *lengths], dtype=np.int32)
    stored = eight_bit.encode(codes, "fp8")
    out, _ = ops.attention_8bit(number, stored, half(values), bounds, 3, max(lengths), unit**2, inverse_scale, 0)
    check_rounded(out, context * inverse_scale, precision, equal=0.98, slack=2e-3)
    assert precision == "fp8" or (out != 0x80).all()  # INT8 saturates at -127


def test_attention_in_fp32() -> None:
    qkv = np.random.default_rng(1).standard_normal((300, 3 * 4 * 24)).astype(np.float32)
    out = ops.attention_f32(qkv, np.array([0, 1, 172, 300], np.int32), 4, 171)
    assert error(out, attention_reference(qkv, [1, 171, 128], 4)) <= 1e-5


def test_large_scores_do_not_overflow() -> None:
    for heads in (1, 80):  # few blocks and many
        qkv = (np.random.default_rng(2).standard_normal((200, 3 * heads * 64)) * 60).astype(np.float16)
        for fast in (True, False):
            out, _ = ops.attention(half(qkv), np.array([0, 200], np.int32), heads, 200, fast, 0)
            assert error(out.view(np.float16), attention_reference(qkv, [200], heads)) <= 2e-3


@pytest.mark.parametrize("growth", [3, 8, 25, 200])
def test_scores_that_grow_along_the_keys(growth: float) -> None:
    """Weights are relative to the first keys' largest score until one becomes too large for FP16."""
    lengths, heads = [512, 384, 200], 40
    qkv = np.random.default_rng(4).standard_normal((sum(lengths), 3 * heads * 64)) * 0.5
    along = np.concatenate([np.linspace(-growth, growth, length) for length in lengths])
    hidden = heads * 64
    qkv[:, :hidden] += 1
    qkv[:, hidden : 2 * hidden] += along[:, None] / 8  # 64 columns over the root of 64
    out, _ = ops.attention(half(qkv), np.cumsum([0, *lengths], dtype=np.int32), heads, 512, True, 0)
    assert error(out.view(np.float16), attention_reference(qkv.astype(np.float16), lengths, heads)) <= 2e-3


@pytest.mark.parametrize(("rows", "hidden"), [(1, 8), (17, 384), (129, 1024), (3, 1000), (5, 4096)])
def test_add_layernorm(rows: int, hidden: int) -> None:
    rng = np.random.default_rng(hidden)
    x, r = ((rng.standard_normal((rows, hidden)) * 3 + 1).astype(np.float16) for _ in range(2))
    bias, gamma, beta = (rng.standard_normal(hidden).astype(np.float32) for _ in range(3))
    s = x.astype(np.float64) + r + bias
    expected = (s - s.mean(1, keepdims=True)) / np.sqrt(s.var(1, keepdims=True) + 1e-12) * gamma + beta
    out = ops.add_layernorm(half(x), bias, half(r), gamma, beta, 1e-12)
    assert error(out.view(np.float16), expected) <= 1e-3


def test_embedding_and_head() -> None:
    rng = np.random.default_rng(3)
    word, position, kind = ((rng.standard_normal((n, 776)) * 0.5).astype(np.float16) for n in (1000, 512, 2))
    triples = np.stack([rng.integers(0, n, 333) for n in (1000, 512, 2)], 1).astype(np.int32)
    out, stats = ops.embed_sum(np.ascontiguousarray(triples[:, [0, 2, 1]]), half(word), half(position), half(kind))
    x = word[triples[:, 0]].astype(np.float64) + position[triples[:, 1]] + kind[triples[:, 2]]
    assert error(out.view(np.float16), x) <= 1e-3
    stored = out.view(np.float16).astype(np.float64)
    assert np.allclose(stats, tile_stats(stored, 776)[:, 0], rtol=1e-4, atol=1e-6)
    gamma, beta = rng.standard_normal((2, 776)).astype(np.float32)
    kernel, bias = rng.standard_normal((2, 776)).astype(np.float32), rng.standard_normal(2).astype(np.float32)
    normal = (stored - stored.mean(1, keepdims=True)) / stored.std(1, keepdims=True) * gamma + beta
    logits = ops.head_of_sum(out, stats, gamma, beta, 1e-12, kernel, bias)
    assert error(logits, normal @ kernel.T + bias) <= 1e-5
    found = ops.head_of_sum(out, np.zeros((0, 2), np.float32), gamma, beta, 1e-12, kernel, bias)  # finds the statistics itself
    assert error(found, normal @ kernel.T + bias) <= 1e-5
