# SPDX-License-Identifier: Apache-2.0
"""The matrix of inference_benchmark.sh: architectures, models, precisions and sizes, and the command line that picks from it."""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
# By compute capability, the newest first; each reaches down to the number it stands with.
CAPABILITIES = {"Blackwell": 10.0, "Hopper": 9.0, "Ada": 8.9, "Ampere": 8.0, "Turing": 7.5, "Xavier": 7.2, "Volta": 7.0}
ARCHITECTURES = (*reversed(CAPABILITIES), "CPU")
NEWER = ("Ampere", "Ada", "Hopper", "Blackwell")  # measured 2000 times; the older ones 1000
PRECISIONS = {"base": ("int8", "fp16", "fp32"), "large": ("int8-qat", "int8", "fp16", "fp32"), "megatron": ("int8-qat",)}
LENGTHS = (128, 384)
BATCHES = (1, 2, 4, 8, 12, 16, 24, 32, 64, 128)
CPU_BATCHES = (1, 2, 4, 8)


@dataclass(frozen=True)
class Configuration:
    """One row of the matrix."""

    model: str  # base, large, megatron-dense, megatron-sparse
    precision: str
    length: int
    batch: int
    random: bool

    @property
    def megatron(self) -> bool:
        return self.model.startswith("megatron")

    @property
    def title(self) -> str:
        """The model's name in results and in the published tables."""
        return self.model.replace("megatron-", "megatron-large-") if self.megatron else f"bert-{self.model}"

    @property
    def engine(self) -> Path:
        random = "_random" if self.random else ""
        if self.megatron:
            name = (
                f"bert_mt_large_{self.precision}_bs{self.batch}_seqlen{self.length}_weight{self.model[9:]}{random}_benchmark.engine"
            )
        else:
            name = f"bert_{self.model}_{self.precision}_bs{self.batch}_seqlen{self.length}{random}_benchmark.engine"
        return Path("engines") / name


def arguments() -> argparse.Namespace:
    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            self.exit(2, f"{self.prog}: {message}; {self.prog} -h lists the options\n")

    megatron = "--megatron" in sys.argv
    name = "inference_benchmark_megatron.sh" if megatron else "inference_benchmark.sh"
    models = ("megatron-dense", "megatron-sparse") if megatron else ("base", "large")
    precisions = ("int8-qat",) if megatron else ("int8-qat", "int8", "fp8", "fp16", "fp32")
    parser = Parser(
        prog=name,
        allow_abbrev=False,
        description="Builds what is absent of engines/, measures every configuration that the results lack, and draws a chart.",
        epilog="Exit status: 0 done; 1 a configuration failed, the others are measured; 2 wrong usage; 3 a program is missing.",
    )
    add = parser.add_argument
    add("--gpu", choices=ARCHITECTURES, help="architecture (default: this machine's); CPU measures the cpu backend")
    add("--megatron", action="store_true", help=argparse.SUPPRESS)
    add("--models", nargs="+", choices=models, default=models, help="models (default: all)")
    add("--precisions", nargs="+", choices=precisions, help="precisions (default: all but fp8)")
    add("--lengths", nargs="+", type=int, default=LENGTHS, metavar="N", help="sequence lengths (default: 128 384)")
    add("--batches", nargs="+", type=int, metavar="N", help="batch sizes (default: 1 2 4 8 12 16 24 32 64 128; CPU: 1 2 4 8)")
    add("--iterations", type=int, metavar="N", help="timed runs (default: 2000 from Ampere on, 1000 before, CPU: 20)")
    add("--warm-up-runs", type=int, metavar="N", help="untimed runs before (default: 100, CPU: 3)")
    add("--backend", choices=("auto", "tensorrt", "cuda", "cpu"), help="what runs the engines (default: auto, with --gpu CPU: cpu)")
    add("--random-weights", action="store_true", help="made-up weights in place of downloaded checkpoints")
    add("--output", type=Path, metavar="FILE", help="results (default: results/inference_benchmark_<gpu>.csv)")
    add("--remove-engines", action="store_true", help="remove each engine built here once it is measured, to save disk")
    add("--dry-run", action="store_true", help="print the commands only")
    args = parser.parse_args()
    args.gpu = args.gpu or architecture()
    if not args.gpu:
        parser.exit(3, f"{name}: nvidia-smi names no GPU that is known; name one with --gpu, or give --gpu CPU\n")
    cpu = args.gpu == "CPU"
    if cpu and args.backend not in (None, "cpu"):
        parser.error("--gpu CPU measures the cpu backend; leave out --backend")
    if args.megatron and not args.random_weights:
        if cpu or args.backend not in (None, "auto", "tensorrt"):
            parser.error("Megatron's residuals are TensorRT's alone; give --random-weights to measure speed without them")
        args.backend = "tensorrt"
    for option in ("lengths", "batches", "iterations"):
        given = getattr(args, option)
        if given is not None and min(given if isinstance(given, (list, tuple)) else [given]) < 1:
            parser.error(f"--{option} takes whole numbers of at least 1")
    args.backend = args.backend or ("cpu" if cpu else "auto")
    args.batches = sorted(set(args.batches or (CPU_BATCHES if cpu else BATCHES)))
    args.iterations = args.iterations or (20 if cpu else 2000 if args.gpu in NEWER else 1000)
    args.warm_up_runs = args.warm_up_runs if args.warm_up_runs is not None else (3 if cpu else 100)
    args.output = args.output or ROOT / "results" / f"{name.removesuffix('.sh')}_{args.gpu.lower()}.csv"
    return args


def matrix(args: argparse.Namespace) -> list[Configuration]:
    """Return what is to be measured, in the documented order; say what is left out."""
    todo = []
    for model in args.models:
        known = PRECISIONS[model.split("-")[0]]
        for precision in args.precisions or known:
            if precision not in (*known, "fp8"):
                print(f"skipped: {model} {precision}, which has no checkpoint", file=sys.stderr)
                continue
            for length in sorted(set(args.lengths)):
                todo += [Configuration(model, precision, length, batch, args.random_weights) for batch in args.batches]
    return todo


def heading(configuration: Configuration, gpu: str) -> str:
    c = configuration
    return f"{c.title} {c.precision}, sequence length {c.length}, batch size {c.batch}, {gpu}"


def facts_of_gpu(field: str) -> str | None:
    """Return a field of the first GPU, as nvidia-smi gives it; None where there is none."""
    try:
        done = subprocess.run(["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader"], capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.splitlines()[0].strip() if done.returncode == 0 and done.stdout.strip() else None


def architecture() -> str | None:
    """Return the architecture of this machine's first GPU; None where there is none that is known."""
    try:
        capability = float(facts_of_gpu("compute_cap") or 0)
    except ValueError:
        return None
    return next((name for name, least in CAPABILITIES.items() if capability >= least), None)
