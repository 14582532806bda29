# SPDX-License-Identifier: Apache-2.0
"""What perf.py and perf_varseqlen.py do: a timing loop, percentiles, and a record that says what was measured."""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

import numpy as np

from helpers import backends
from helpers.answer import load_options
from helpers.backends import Session
from helpers.batching import Batch, random_batch
from helpers.build import versions
from helpers.cli import log, progress_bar
from helpers.engine_text import engine_info
from helpers.errors import EngineMismatch, UsageError

MOST_TOKENS = 2**31 - 1  # a batch's offsets are int32
# Lengths of the 10,833 windows of SQuAD v1.1 dev (window 384, stride 128, uncased) at the quantiles 0, 5, ..., 100 %.
SQUAD_QUANTILES = (41, 88, 110, 120, 127, 133, 139, 145, 150, 157, 164, 172, 179, 188, 198, 210, 223, 247, 272, 320, 384)


def main(command: str, args: argparse.Namespace) -> None:
    """Measure every batch size asked for, in ascending order, and print one block (or JSON record) each."""
    info = engine_info(args.engine)
    if args.sequence_length > info.max_length:
        raise EngineMismatch(
            f"the engine {args.engine} takes at most {info.max_length} word pieces, not {args.sequence_length}; "
            f"give -s {info.max_length} or less"
        )
    sizes = sorted(set(args.batch_size or [1]))
    if sizes[-1] * args.sequence_length > MOST_TOKENS:
        raise UsageError(
            f"-b {sizes[-1]} with -s {args.sequence_length} is more than the {MOST_TOKENS} word pieces that a run can count; "
            f"give -b {MOST_TOKENS // args.sequence_length} or less"
        )
    session = backends.load(args.engine, info, load_options(args, latency=True))
    spread = getattr(args, "lengths", "fixed")
    records = []
    for size in sizes:
        lengths = sequence_lengths(size, args.sequence_length, spread, args.random_seed)
        vocab_size = min(info.config.vocab_size, 30522)  # a plan without metadata does not know its own
        batch = random_batch(lengths, vocab_size, args.random_seed)
        times = measure(session, batch, args.iterations, args.warm_up_runs, args.duration)
        records.append(
            {"batch_size": size, "sequence_length": args.sequence_length, "tokens": batch.tokens, **summary(times, size)}
        )
    facts = {
        "engine": args.engine,
        "backend": info.backend,
        "precision": info.precision,
        "layout": info.layout,
        "lengths": spread,
        "includes_copies": not hasattr(session, "timer"),
        "enable_graph": args.enable_graph,
        **session.describe(),
        "versions": versions(),
        "measured": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    if args.json:
        print(json.dumps({**facts, "results": records}))
        return
    log(f"{info.describe()}; {', '.join(str(value) for value in session.describe().values())}")
    for record in records:
        print(text_block(record))


def sequence_lengths(size: int, longest: int, spread: str, seed: int) -> list[int]:
    """Return the length of every sequence of a batch: all of the longest, or spread like SQuAD's windows and cut there."""
    if spread == "fixed":
        return [longest] * size
    # Evenly spaced quantiles rather than a draw, so that every batch size has the spread of the whole set; then shuffled.
    shares = (np.arange(size) + 0.5) / size
    lengths = np.interp(shares, np.linspace(0, 1, len(SQUAD_QUANTILES)), SQUAD_QUANTILES).round().astype(int)
    np.random.default_rng(seed).shuffle(lengths)
    return [min(int(length), longest) for length in lengths]


def measure(session: Session, batch: Batch, iterations: int, warm_up: int, duration: float) -> list[float]:
    """Return the milliseconds of every timed run: device time where the session can tell it, else the host clock around `run`.

    Goes on until both the count and the duration, in seconds, are reached.
    """
    once: Callable[[], float] = session.timer(batch) if hasattr(session, "timer") else lambda: _host_milliseconds(session, batch)
    for _ in range(warm_up):
        once()
    times: list[float] = []
    began = time.perf_counter()
    with progress_bar(iterations, "runs") as bar:
        while len(times) < iterations or time.perf_counter() - began < duration:
            times.append(once())
            bar.update()
    return times


def _host_milliseconds(session: Session, batch: Batch) -> float:
    began = time.perf_counter()
    session.run(batch)
    return (time.perf_counter() - began) * 1000


def percentile(times: list[float], share: float) -> float:
    """Return the element with index floor(n x share) of the ascending times, as the old scripts do; the last one at most."""
    return sorted(times)[min(len(times) - 1, math.floor(len(times) * share))]


def summary(times: list[float], batch_size: int) -> dict[str, Any]:
    """Return the statistics of one batch size; milliseconds, and sequences per second."""
    average = sum(times) / len(times)
    return {
        "iterations": len(times),
        "total_ms": sum(times),
        "avg_ms": average,
        "median_ms": percentile(times, 0.5),
        "p95_ms": percentile(times, 0.95),
        "p99_ms": percentile(times, 0.99),
        "min_ms": min(times),
        "throughput": batch_size * 1000 / average,
    }


def text_block(record: dict[str, Any]) -> str:
    """Return the two lines the old scripts print for a batch size, with units and throughput."""
    return (
        f"Running {record['iterations']} iterations with Batch Size: {record['batch_size']}\n"
        f"\tTotal Time: {record['total_ms']:.3f} ms \tAverage Time: {record['avg_ms']:.3f} ms "
        f"\t95th Percentile Time: {record['p95_ms']:.3f} ms \t99th Percentile Time: {record['p99_ms']:.3f} ms "
        f"\tThroughput: {record['throughput']:.2f} sentences/s"
    )
