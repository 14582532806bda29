# SPDX-License-Identifier: Apache-2.0
"""The benchmark says what it measured, and its arithmetic is right for every batch size."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from helpers import bench
from helpers.batching import Batch


class FakeSession:
    """A session whose runs take as many milliseconds as its batch has sequences, plus a growing part."""

    info = None
    concurrency = batch_size = 1

    def __init__(self) -> None:
        self.runs: list[int] = []

    def timer(self, batch: Batch):
        def once() -> float:
            self.runs.append(batch.size)
            return batch.size + len(self.runs) / 1000

        return once


def test_warm_up_runs_are_not_counted() -> None:
    session = FakeSession()
    from helpers.batching import random_batch

    times = bench.measure(session, random_batch([8, 8], 100), iterations=5, warm_up=3, duration=0)
    assert len(times) == 5
    assert len(session.runs) == 8
    assert times[0] == pytest.approx(2.004)


def test_duration_goes_on_past_the_count() -> None:
    from helpers.batching import random_batch

    times = bench.measure(FakeSession(), random_batch([8], 100), iterations=2, warm_up=0, duration=0.05)
    assert len(times) > 10


def test_summary_is_that_of_its_own_runs() -> None:
    times = [float(n) for n in range(1, 101)]
    result = bench.summary(times[::-1], 4)
    assert (result["avg_ms"], result["p95_ms"], result["p99_ms"], result["median_ms"]) == (50.5, 96, 100, 51)
    assert result["throughput"] == pytest.approx(4000 / 50.5)
    assert bench.summary([7.0], 1)["p99_ms"] == 7.0


def test_squad_lengths_have_squads_mean_whatever_the_batch() -> None:
    for size in (8, 64, 500):
        lengths = bench.sequence_lengths(size, 384, "squad", 1)
        assert len(lengths) == size
        assert 165 < np.mean(lengths) < 190
        assert max(lengths) <= 384
    assert bench.sequence_lengths(3, 100, "fixed", 1) == [100] * 3
    assert max(bench.sequence_lengths(64, 128, "squad", 1)) == 128


def test_squad_lengths_are_those_of_the_sample() -> None:
    from conftest import MODEL, SAMPLE
    from helpers.data_processing import WindowOptions, make_windows, read_squad
    from helpers.tokenization import FullTokenizer

    tokenizer = FullTokenizer.from_file(MODEL / "vocab.txt")
    lengths = []
    for example in read_squad(SAMPLE):
        question, passage = tokenizer.encode([example.question, example.passage])
        lengths += [len(window.ids) for window in make_windows(question, passage, tokenizer, WindowOptions(384))]
    assert np.mean(lengths) == pytest.approx(np.mean(bench.sequence_lengths(1000, 384, "squad", 1)), rel=0.04)


def test_perf_prints_the_old_facts_for_every_batch_size(script, engines) -> None:
    ended = script("perf", "-e", engines["int8"], "-b", 2, "-b", 1, "-s", 32, "-i", 3, "-w", 1)
    assert ended.status == 0, ended.err
    lines = ended.out.splitlines()
    assert re.fullmatch(r"Running 3 iterations with Batch Size: 1", lines[0])
    assert lines[2] == "Running 3 iterations with Batch Size: 2"
    for line in (lines[1], lines[3]):
        assert line.startswith("\tTotal Time: ")
        for label in ("Average Time", "95th Percentile Time", "99th Percentile Time"):
            assert re.search(rf"{label}: \d+\.\d{{3}} ms", line), line


def test_perf_varseqlen_measures_mixed_lengths_and_says_so(script, engines) -> None:
    run = ("-e", engines["packed"], "-b", 8, "-s", 128, "-i", 2, "-w", 1, "--json")
    mixed, fixed = (json.loads(script("perf_varseqlen", *run, *more).out) for more in ((), ("--lengths", "fixed")))
    assert (mixed["lengths"], fixed["lengths"]) == ("squad", "fixed")
    assert fixed["results"][0]["tokens"] == 8 * 128 > mixed["results"][0]["tokens"]
    for key in ("device", "runtime", "arithmetic", "versions", "precision", "includes_copies"):
        assert mixed[key] not in (None, "")
    assert mixed["includes_copies"] is True
