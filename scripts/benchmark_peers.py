#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Measures the CUDA engine beside PyTorch on the same shapes in one run: eager in a CUDA graph, and torch.compile in one.

    python3 scripts/benchmark_peers.py --models large base --lengths 128 384 --batch-sizes 1 32 128

Appends one row a measurement to docs/results/h200.csv and prints the table. Random weights and ids (zeros run faster than
data does), all positions real, FP16, device time between two CUDA events around one pass; the median of the ratio's two
sides comes from the same process on the same GPU. The peers are what a user of PyTorch would write with care: fused query,
key and value, scaled_dot_product_attention, tanh GELU.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from helpers.backends import LoadOptions, cuda  # noqa: E402
from helpers.batching import random_batch  # noqa: E402
from helpers.bench import summary  # noqa: E402
from helpers.engine_file import read_info  # noqa: E402

MODELS = {  # hidden size, layers, heads, intermediate size
    "base": (768, 12, 12, 3072),
    "large": (1024, 24, 16, 4096),
}
COLUMNS = ("model", "seq_len", "batch", "precision", "engine", "avg_ms", "p95_ms", "p99_ms", "machine", "versions", "date")


def peer(torch: Any, model: str, batch: int, length: int, compiled: bool) -> Callable[[], float]:
    """Return a function that runs PyTorch once, in a CUDA graph, and returns its milliseconds."""
    functional = torch.nn.functional
    hidden, layers, heads, inner = MODELS[model]

    def random(*shape: int) -> Any:
        return torch.randn(shape, device="cuda", dtype=torch.float16) * 0.02

    def one_layer(x: Any, p: dict[str, Any]) -> Any:
        q, k, v = functional.linear(x, p["qkv"], p["qkv_bias"]).view(batch, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
        context = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, hidden)
        x = x + functional.linear(context, p["out"], p["out_bias"])
        x = functional.layer_norm(x, (hidden,), p["gamma1"], p["beta1"], 1e-12)
        wide = functional.gelu(functional.linear(x, p["up"], p["up_bias"]), approximate="tanh")
        x = x + functional.linear(wide, p["down"], p["down_bias"])
        return functional.layer_norm(x, (hidden,), p["gamma2"], p["beta2"], 1e-12)

    def embed(ids: Any, segments: Any) -> Any:
        x = word[ids] + position[None, :length] + kind[segments]
        return functional.layer_norm(x, (hidden,), gamma, beta, 1e-12)

    shapes = {"qkv": (3 * hidden, hidden), "out": (hidden, hidden), "up": (inner, hidden), "down": (hidden, inner)}
    weights = []
    for _ in range(layers):
        p = {name: random(*shape) for name, shape in shapes.items()}
        p |= {f"{name}_bias": random(shape[0]) for name, shape in shapes.items()}
        p |= {f"gamma{i}": random(hidden) + 1 for i in (1, 2)} | {f"beta{i}": random(hidden) for i in (1, 2)}
        weights.append(p)
    word, position, kind, head = random(30522, hidden), random(512, hidden), random(2, hidden), random(2, hidden)
    gamma, beta = random(hidden) + 1, random(hidden)
    ids = torch.randint(0, 30522, (batch, length), device="cuda")
    segments = torch.randint(0, 2, (batch, length), device="cuda")
    # Compiled a layer at a time: all layers share the code, so it is compiled once and not 24 times.
    run_embed, run_layer = (torch.compile(embed), torch.compile(one_layer)) if compiled else (embed, one_layer)

    def forward() -> Any:
        x = run_embed(ids, segments)
        for p in weights:
            x = run_layer(x, p)
        return functional.linear(x, head)

    stream = torch.cuda.Stream()
    with torch.inference_mode(), torch.cuda.stream(stream):
        for _ in range(3):
            forward()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            forward()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]

    def once() -> float:
        with torch.cuda.stream(stream):
            events[0].record()
            graph.replay()
            events[1].record()
        events[1].synchronize()
        return float(events[0].elapsed_time(events[1]))

    return once


def ours(model: str, batch: int, length: int, directory: Path) -> Callable[[], float]:
    """Return a function that runs our engine once, in a CUDA graph, and returns its milliseconds."""
    path = directory / f"{model}.engine"
    if not path.exists():
        build_engine(model, path)
    session = cuda.CudaSession(path, read_info(path), LoadOptions(enable_graph=True))
    return session.timer(random_batch([length] * batch, 30522))


def build_engine(model: str, path: Path) -> None:
    """Write an engine of random weights for up to 128 sequences of 384."""
    hidden, layers, heads, inner = MODELS[model]
    folder = path.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bert_config.json").write_text(
        f'{{"hidden_size": {hidden}, "num_hidden_layers": {layers}, "num_attention_heads": {heads}, "intermediate_size": {inner}, '
        '"vocab_size": 30522, "max_position_embeddings": 512, "type_vocab_size": 2, "hidden_act": "gelu"}'
    )
    command = [sys.executable, str(ROOT / "builder_varseqlen.py"), "--backend", "cuda", "--random-weights", "1", "--fp16"]
    command += ["-c", str(folder), "-o", str(path), "-b", "128", "-s", "384"]
    # Without the compiled module the builder searches no algorithms; the runs below search theirs.
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL, env={**os.environ, "INFER_C_DIR": "/nonexistent"})


def measure(once: Callable[[], float], iterations: int, warm_up: int) -> dict[str, Any]:
    for _ in range(warm_up):
        once()
    return summary([once() for _ in range(iterations)], 1)


def machine_and_versions() -> tuple[str, str]:
    try:
        import torch

        cudnn = torch.backends.cudnn.version()
        return torch.cuda.get_device_name(), f"PyTorch {torch.__version__}; CUDA {torch.version.cuda}; cuDNN {cudnn}"
    except ImportError:
        return "unknown GPU", "no PyTorch"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--lengths", nargs="+", type=int, default=[128, 384])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 2, 4, 8, 12, 16, 24, 32, 64, 128])
    parser.add_argument("--engines", nargs="+", choices=("eager", "compile", "ours"), default=["eager", "compile", "ours"])
    parser.add_argument("--iterations", type=int, default=100, help="timed runs (default 100)")
    parser.add_argument("--warm-up", type=int, default=10, help="untimed runs before them (default 10)")
    parser.add_argument("--csv", type=Path, default=ROOT / "docs" / "results" / "h200.csv", help="file to append to")
    args = parser.parse_args()
    machine, versions = machine_and_versions()
    args.csv.parent.mkdir(parents=True, exist_ok=True)
    fresh = not args.csv.exists()
    with args.csv.open("a", newline="") as file, tempfile.TemporaryDirectory() as directory:
        writer = csv.writer(file, lineterminator="\n")
        if fresh:
            writer.writerow(COLUMNS)
        for model in args.models:
            for length in args.lengths:
                for batch in args.batch_sizes:
                    for engine in args.engines:
                        if engine == "ours":
                            once = ours(model, batch, length, Path(directory))
                        else:
                            import torch

                            once = peer(torch, model, batch, length, engine == "compile")
                        r = measure(once, args.iterations, args.warm_up)
                        del once  # its memory is needed by the next
                        numbers = [f"{r[name]:.4f}" for name in ("avg_ms", "p95_ms", "p99_ms")]
                        today = date.today().isoformat()
                        writer.writerow([model, length, batch, "fp16", engine, *numbers, machine, versions, today])
                        file.flush()
                        print(f"{model:6} {length:4} {batch:4} {engine:8} avg {numbers[0]} median {r['median_ms']:.4f}", flush=True)


if __name__ == "__main__":
    main()
