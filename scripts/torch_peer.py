# SPDX-License-Identifier: Apache-2.0
"""BERT as a user of PyTorch would write it with care: the peer of benchmark_peers.py, eager or compiled, in a CUDA graph.

Fused query, key and value, scaled_dot_product_attention, tanh GELU, FP16, all positions real. It runs in a process of its own,
as `PeerProcess` starts it: in one with PyTorch's model our short passes take longer (docs/kernels.md), which would flatter it.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any

MODELS = {  # hidden size, layers, heads, intermediate size
    "base": (768, 12, 12, 3072),
    "large": (1024, 24, 16, 4096),
}
VOCABULARY = 30522


@lru_cache(maxsize=1)
def weights(model: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return random weights on the GPU: those of embeddings and head, and those of each layer."""
    import torch

    hidden, layers, _, inner = MODELS[model]

    def random(*shape: int) -> Any:
        return torch.randn(shape, device="cuda", dtype=torch.float16) * 0.02

    shapes = {"qkv": (3 * hidden, hidden), "out": (hidden, hidden), "up": (inner, hidden), "down": (hidden, inner)}
    stack = []
    for _ in range(layers):
        p = {name: random(*shape) for name, shape in shapes.items()}
        p |= {f"{name}_bias": random(shape[0]) for name, shape in shapes.items()}
        p |= {f"gamma{i}": random(hidden) + 1 for i in (1, 2)} | {f"beta{i}": random(hidden) for i in (1, 2)}
        stack.append(p)
    rows = {"word": VOCABULARY, "position": 512, "kind": 2, "head": 2}
    ends = {name: random(count, hidden) for name, count in rows.items()}
    return ends | {"gamma": random(hidden) + 1, "beta": random(hidden)}, stack


def timer(model: str, batch: int, length: int, compiled: bool) -> Callable[[], float]:
    """Return a function that runs PyTorch once, in a CUDA graph, and returns its milliseconds between two CUDA events."""
    import torch

    functional = torch.nn.functional
    hidden, _, heads, _ = MODELS[model]
    ends, stack = weights(model)

    def embed(ids: Any, segments: Any) -> Any:
        x = ends["word"][ids] + ends["position"][None, :length] + ends["kind"][segments]
        return functional.layer_norm(x, (hidden,), ends["gamma"], ends["beta"], 1e-12)

    def one_layer(x: Any, p: dict[str, Any]) -> Any:
        q, k, v = functional.linear(x, p["qkv"], p["qkv_bias"]).view(batch, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
        context = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, hidden)
        x = x + functional.linear(context, p["out"], p["out_bias"])
        x = functional.layer_norm(x, (hidden,), p["gamma1"], p["beta1"], 1e-12)
        wide = functional.gelu(functional.linear(x, p["up"], p["up_bias"]), approximate="tanh")
        x = x + functional.linear(wide, p["down"], p["down_bias"])
        return functional.layer_norm(x, (hidden,), p["gamma2"], p["beta2"], 1e-12)

    run_embed, run_layer = embed, one_layer
    if compiled:
        # A layer at a time: all layers share the code, so it is compiled once and not 24 times. Forgetting the shapes before
        # keeps every shape its own code: from the second on PyTorch would compile one code for all, and after eight none.
        torch.compiler.reset()
        run_embed, run_layer = (torch.compile(function, dynamic=False) for function in (embed, one_layer))
    ids = torch.randint(0, VOCABULARY, (batch, length), device="cuda")
    segments = torch.randint(0, 2, (batch, length), device="cuda")

    def forward() -> Any:
        x = run_embed(ids, segments)
        for p in stack:
            x = run_layer(x, p)
        return functional.linear(x, ends["head"])

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())  # which made the weights
    with torch.inference_mode(), torch.cuda.stream(stream):
        for _ in range(2):
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


def versions() -> str:
    """Return the versions that the peers' figures depend on."""
    try:
        import torch

        return f"PyTorch {torch.__version__}; CUDA {torch.version.cuda}; cuDNN {torch.backends.cudnn.version()}"
    except ImportError:
        return "no PyTorch"


def runs(once: Callable[[], float], count: int, seconds: float) -> list[float]:
    """Return the milliseconds of `count` runs; of fewer, but three, once `seconds` have passed."""
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < count and (len(times) < 3 or time.perf_counter() - began < seconds):
        times.append(once())
    return times


def measure(once: Callable[[], float], iterations: int, warm_up: int, seconds: float) -> list[float]:
    """Return the milliseconds of runs, after a rest of `seconds` and a warm-up of half of that and at least `warm_up` runs.

    Hot GPUs are slower, and a search of ours leaves one hotter than PyTorch's compiler does: hence the rest.
    """
    time.sleep(seconds)
    ends = time.perf_counter() + seconds / 2
    while warm_up > 0 or time.perf_counter() < ends:
        once()
        warm_up -= 1
    return runs(once, iterations, seconds)


class PeerProcess:
    """PyTorch in a process of its own, started when it is first asked; it answers a line of JSON with one."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None

    def ask(self, **request: Any) -> Any:
        """Return what the other process answers; raise RuntimeError with its error."""
        if self.process is None:
            self.process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdin and self.process.stdout
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(request), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"PyTorch's process ended with status {self.close()}")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["result"]

    def times(self, model: str, batch: int, length: int, compiled: bool, *limits: float) -> list[float]:
        """Return milliseconds of runs; limits: as those of `measure`."""
        return [float(ms) for ms in self.ask(shape=[model, batch, length, compiled], limits=limits)]

    def versions(self) -> str:
        return str(self.ask())

    def close(self) -> int:
        """End the process; return its exit status."""
        if self.process is None:
            return 0
        process, self.process = self.process, None
        with contextlib.suppress(BrokenPipeError), process:  # closes the pipes, which ends it
            pass
        return process.wait()


def serve() -> None:
    """Answer requests until there are no more. What PyTorch prints goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            result = measure(timer(*request["shape"]), *request["limits"]) if request else versions()
            print(json.dumps({"result": result}), file=answers, flush=True)
        except Exception as error:
            print(json.dumps({"error": (str(error).splitlines() or [repr(error)])[0]}), file=answers, flush=True)


if __name__ == "__main__":
    serve()
