#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Times the products of BERT's layers alone: this engine's beside cuBLASLt's through PyTorch, in FP16, FP8 and INT8.

    cmake -S . -B build -DBERT_TEST_OPS=ON && cmake --build build -j
    python3 scripts/benchmark_products.py --rows 128 1024 4096 16384 49152

Prints a Markdown table of microseconds (docs/kernels.md keeps one). One launch of several in a CUDA graph, the median of five
replays, random data; weights and small inputs are in the L2 cache. Ours have the epilogues they have in an engine (folded
LayerNorm, residual, GELU, rounding to 8 bits), cuBLASLt's add the bias.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "build")]

SIZES = {  # columns, depth, epilogue in FP16, epilogue in 8 bits (product_sm90.h)
    "large": {"qkv": (3072, 1024, 0, 4), "output": (1024, 1024, 3, 3), "ffn1": (4096, 1024, 1, 5), "ffn2": (1024, 4096, 3, 3)},
    "base": {"qkv": (2304, 768, 0, 4), "output": (768, 768, 3, 3), "ffn1": (3072, 768, 1, 5), "ffn2": (768, 3072, 3, 3)},
}
FORMATS = {"fp16": 0, "int8": 1, "fp8": 2}
# Variants, as build/perf --algorithms takes them: what suits many rows, few, and few in FP16 alone.
MANY = [(256, 1, 2), (256, 2, 2), (256, 3, 2)]
FEW = [
    *[(64, 48, 1, 0), (64, 64, 1, 0), (64, 64, 2, 0, 2, 2), (64, 64, 4, 0), (128, 64, 1, 0), (128, 64, 2, 0), (128, 48, 4, 0)],
    *[(128, 96, 1, 0), (128, 96, 2, 0, 1, 1, 1), (128, 128, 2, 0, 2)],
    *[(128, 128, 1, 0, 1, 1, 1), (192, 96, 1, 0, 1, 1, 1), (192, 128, 1, 0, 1, 1, 1), (256, 128, 1, 0, 1, 1, 1)],
]
FEW_HALF = [(64, 96, 1, 0, 1, 2), (128, 64, 4, 1), (128, 128, 4, 1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", type=int, default=[128, 1024, 4096, 16384, 49152])
    parser.add_argument("--models", nargs="+", choices=SIZES, default=list(SIZES))
    args = parser.parse_args()
    import infer_c_ops
    import torch

    print("| model | product | rows | cuBLASLt FP16 | this engine FP16 | cuBLASLt FP8 | this engine FP8 | this engine INT8 |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for model in args.models:
        for rows in args.rows:
            for name in SIZES[model]:
                cells = [
                    cell(us, 2.0 * rows * np.prod(SIZES[model][name][:2])) for us in times(infer_c_ops, torch, model, name, rows)
                ]
                print(f"| {model} | {name} | {rows} | {' | '.join(cells)} |", flush=True)


def cell(us: float, operations: float) -> str:
    """Return microseconds and TFLOP/s."""
    return f"{us:.1f} ({operations / us / 1e6:.0f})"


def times(ops: Any, torch: Any, model: str, name: str, rows: int) -> list[float]:
    """Return microseconds: cuBLASLt FP16, ours, cuBLASLt FP8, ours, ours in INT8."""
    columns, depth, epilogue, epilogue8 = SIZES[model][name]
    x = torch.randn(rows, depth, device="cuda", dtype=torch.float16)
    w = torch.randn(columns, depth, device="cuda", dtype=torch.float16) * 0.03
    bias = torch.randn(columns, device="cuda", dtype=torch.float16)
    x8, w8 = x.to(torch.float8_e4m3fn), w.to(torch.float8_e4m3fn)
    one = torch.ones((), device="cuda")

    def scaled() -> Any:
        return torch._scaled_mm(x8, w8.t(), one, one, bias=bias, out_dtype=torch.float16, use_fast_accum=True)

    integers = [torch.randint(-127, 128, t.shape, device="cuda", dtype=torch.int8).cpu().numpy() for t in (x, w)]
    floats = [t.view(torch.uint8).cpu().numpy() for t in (x8, w8)]
    halves = [t.view(torch.int16).cpu().numpy().view(np.uint16) for t in (x, w)]
    vector = np.ones(columns, np.float32) * np.float32(1e-3)
    residual = torch.randn(rows, columns, device="cuda", dtype=torch.float16).view(torch.int16).cpu().numpy().view(np.uint16)
    stats = np.ones((rows, 1, 2), np.float32)

    def ours(precision: str, operands: list[np.ndarray]) -> float:
        box = 64 if precision == "fp16" else 128
        few = FEW + FEW_HALF * (precision == "fp16")
        ways = [v for v in few if v[2] <= depth // box] * (rows <= 1024) + MANY * (rows > 512)
        number = epilogue if precision == "fp16" else epilogue8
        fixed = (FORMATS[precision], number, *operands, vector, vector, vector, stats, depth, 1e-12, residual, 20.0, repeats(rows))
        narrow = columns // 3 * 2 if name == "QKV" and precision != "fp16" else 0
        return 1e3 * min(ops.product(list(way), *fixed, narrow)[2] for way in ways)

    return [
        timed(torch, lambda: torch.nn.functional.linear(x, w, bias), repeats(rows)),
        ours("fp16", halves),
        timed(torch, scaled, repeats(rows)),
        ours("fp8", floats),
        ours("int8", integers),
    ]


def repeats(rows: int) -> int:
    return 6 if rows > 4096 else 40


def timed(torch: Any, once: Callable[[], Any], count: int) -> float:
    """Return microseconds of one of `count` calls in a CUDA graph, the median of five replays."""
    stream = torch.cuda.Stream()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with torch.cuda.stream(stream):
        once()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for _ in range(count):
                once()
        samples = []
        for _ in range(5):
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            samples.append(begin.elapsed_time(end))
    return 1e3 * sorted(samples)[2] / count


if __name__ == "__main__":
    main()
