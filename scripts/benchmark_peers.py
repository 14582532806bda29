#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Measures the CUDA engine beside PyTorch on the same shapes in one run: eager in a CUDA graph, and torch.compile in one.

    python3 scripts/benchmark_peers.py --replace --precisions fp16 int8 fp8 --models large --lengths 128 384
    python3 scripts/benchmark_peers.py --replace --precisions fp16 int8 fp8 --lengths --packed squad/dev-v1.1.json

Keeps one row a measurement in docs/results/h200.csv, written after each; scripts/results_table.py makes the tables. Random
weights and ids (zeros run faster than data does), all positions real, device time between two CUDA events around one pass;
both sides of a ratio come from the same run on the same GPU, one after the other. The peers are FP16 (torch_peer.py).

--packed runs all windows of a SQuAD file in the file's order: as they are, 2,048 at a time (engine "packed" in the results), and
padded to 384, 128 at a time ("padded"). Their times are those of 128 sequences.

Exit status: 0 done; 1 a measurement failed, its row is left out and the others stand.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch_peer  # noqa: E402
from benchmark_matrix import facts_of_gpu  # noqa: E402

from helpers import backends  # noqa: E402
from helpers.batching import Batch, pack, random_batch  # noqa: E402
from helpers.bench import percentile, summary  # noqa: E402
from helpers.data_processing import WindowOptions, make_windows, read_squad  # noqa: E402
from helpers.engine_file import read_info, written_whole  # noqa: E402
from helpers.tokenization import FullTokenizer  # noqa: E402

TIMES = ("avg_ms", "p95_ms", "p99_ms", "median_ms")
COLUMNS = ("model", "seq_len", "batch", "precision", "engine", *TIMES, "machine", "versions", "date")
KEY = COLUMNS[:5]
PRECISIONS = {"fp16": ["--fp16"], "int8": ["--fp16", "--int8"], "fp8": ["--fp16", "--fp8"]}
LONGEST, LARGEST = 384, 128  # tokens of a sequence, sequences of a padded batch
PACK = 2048  # windows of SQuAD in a packed batch; what the engines are built for
VOCABULARY_FILE = ROOT / "models" / "bert_minilm_l6_qa_squad11_fake_quant" / "vocab.txt"


class Results:
    """The rows of the CSV file, which is written whole after each new one."""

    def __init__(self, path: Path, replace: bool, versions: str) -> None:
        self.path, self.replace = path, replace
        self.rows: list[dict[str, str]] = []
        if path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                self.rows = list(csv.DictReader(file))
        self.facts = {"machine": facts_of_gpu("name") or "unknown GPU", "versions": versions}

    def add(self, key: tuple[object, ...], times: dict[str, float]) -> None:
        """Keep a measurement; `key` is model, length, batch, precision, engine."""
        row = dict(zip(KEY, map(str, key), strict=True))
        if self.replace:
            self.rows = [old for old in self.rows if any(old[name] != row[name] for name in KEY)]
        numbers = {name: f"{times[name]:.4f}" for name in TIMES}
        self.rows.append({**row, **numbers, **self.facts, "date": date.today().isoformat()})
        with written_whole(self.path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)


class Engines:
    """Our engines: built all at once while the peers are measured, each loaded when it is first needed and then kept."""

    def __init__(self, models: list[str], precisions: list[str], directory: Path, pool: ThreadPoolExecutor) -> None:
        self.built: dict[tuple[str, str], Future[Path]] = {
            (model, precision): pool.submit(build_engine, model, precision, directory)
            for model in models
            for precision in precisions
        }
        self.loaded: dict[tuple[str, str], Any] = {}

    def session(self, model: str, precision: str) -> Any:
        key = model, precision
        if key not in self.loaded:
            path = self.built[key].result()
            self.loaded[key] = backends.load(path, read_info(path), backends.LoadOptions(enable_graph=True))
        return self.loaded[key]

    def forget(self, model: str) -> None:
        """Free the GPU memory of a model's engines."""
        self.loaded = {key: session for key, session in self.loaded.items() if key[0] != model}


def build_engine(model: str, precision: str, directory: Path) -> Path:
    """Write an engine of random weights for up to 2,048 sequences of 384, unless it is there."""
    hidden, layers, heads, inner = torch_peer.MODELS[model]
    folder, path = directory / f"{model}-{precision}", directory / f"{model}-{precision}.engine"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bert_config.json").write_text(
        f'{{"hidden_size": {hidden}, "num_hidden_layers": {layers}, "num_attention_heads": {heads}, "intermediate_size": {inner}, '
        f'"vocab_size": {torch_peer.VOCABULARY}, "max_position_embeddings": 512, "type_vocab_size": 2, "hidden_act": "gelu"}}'
    )
    command = [sys.executable, str(ROOT / "builder_varseqlen.py"), "--backend", "cuda", "--random-weights", "1"]
    command += ["-c", str(folder), "-o", str(path), "-b", str(PACK), "-s", str(LONGEST), *PRECISIONS[precision]]
    # Without the compiled module the builder searches no algorithms; the runs below search theirs.
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "INFER_C_DIR": "/nonexistent"})
    if done.returncode:
        raise RuntimeError(f"the build ended with status {done.returncode}: {(done.stderr.splitlines() or ['no word'])[-1]}")
    return path


class Benchmark:
    """All measurements of a run; one that fails is noted, and the rest goes on."""

    def __init__(self, args: argparse.Namespace, engines: Engines) -> None:
        self.args, self.engines = args, engines
        self.peers = torch_peer.PeerProcess()
        self.limits = args.iterations, args.warm_up, args.seconds
        self.results = Results(args.csv, args.replace, self.peers.versions())
        self.failures: list[str] = []

    def attempt(self, key: tuple[object, ...], work: Callable[..., dict[str, float]], *arguments: object) -> None:
        """Keep what `work` measures; note its failure."""
        try:
            times = work(*arguments)
            self.results.add(key, times)
            rate = int(str(key[2])) * 1000 / times["avg_ms"]
            line = f"{times['avg_ms']:8.4f} ms, median {times['median_ms']:8.4f}, {rate:6.0f} sequences/s"
            print("{:5} {:3} {:3} {:4} {:7}".format(*key), line, flush=True)
        except Exception as error:
            self.failures.append(f"{' '.join(map(str, key))}: {(str(error).splitlines() or [repr(error)])[0]}")
            print(f"failed: {self.failures[-1]}", file=sys.stderr, flush=True)

    def shape(self, model: str, length: int, batch: int) -> None:
        """Measure every engine on one shape."""
        began = time.perf_counter()
        for engine in self.args.engines:
            if engine != "ours":
                self.attempt((model, length, batch, "fp16", engine), self.peer, model, batch, length, engine == "compile")
                continue
            for precision in self.args.precisions:
                sequences = random_batch([length] * batch, torch_peer.VOCABULARY)
                self.attempt((model, length, batch, precision, engine), self.ours, model, precision, sequences)
        print(f"{model:5} {length:3} {batch:3} took {time.perf_counter() - began:.1f} s", flush=True)

    def squad(self, model: str, batches: list[Batch]) -> None:
        """Measure all windows of SQuAD, as they are and padded."""
        began = time.perf_counter()
        windows = sum(batch.size for batch in batches)
        full = random_batch([LONGEST] * LARGEST, torch_peer.VOCABULARY)
        padded = [full] * (windows // LARGEST)
        if windows % LARGEST:
            padded.append(random_batch([LONGEST] * (windows % LARGEST), torch_peer.VOCABULARY))
        for precision in self.args.precisions:
            for engine, content in (("packed", batches), ("padded", padded)):
                self.attempt((model, LONGEST, LARGEST, precision, engine), self.pass_over, model, precision, content)
        print(f"{model:5} all windows took {time.perf_counter() - began:.1f} s", flush=True)

    def peer(self, model: str, batch: int, length: int, compiled: bool) -> dict[str, float]:
        return summary(self.peers.times(model, batch, length, compiled, *self.limits), 1)

    def ours(self, model: str, precision: str, sequences: Batch) -> dict[str, float]:
        once = self.engines.session(model, precision).timer(sequences)
        return summary(torch_peer.measure(once, *self.limits), 1)

    def pass_over(self, model: str, precision: str, batches: list[Batch]) -> dict[str, float]:
        """Return the statistics of 128 sequences: of each batch the median of three runs after one, a repeated batch once."""
        session = self.engines.session(model, precision)
        medians: dict[int, float] = {}
        for batch in batches:
            if id(batch) not in medians:
                once = session.timer(batch)
                once()
                medians[id(batch)] = percentile([once() for _ in range(3)], 0.5)
        times = [medians[id(batch)] for batch in batches]
        each = summary([LARGEST * t / batch.size for t, batch in zip(times, batches, strict=True)], 1)
        return {**each, "avg_ms": LARGEST * sum(times) / sum(batch.size for batch in batches)}


def squad_batches(path: Path) -> list[Batch]:
    """Return all windows of a SQuAD file in the file's order, 2,048 to a batch."""
    tokenizer = FullTokenizer.from_file(VOCABULARY_FILE)
    windows = []
    for example in read_squad(path):
        question, passage = tokenizer.encode([example.question, example.passage])
        windows += make_windows(question, passage, tokenizer, WindowOptions(LONGEST, 128))
    groups = [windows[begin : begin + PACK] for begin in range(0, len(windows), PACK)]
    return [pack([window.ids for window in group], [window.segments for window in group]) for group in groups]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--models", nargs="+", choices=torch_peer.MODELS, default=list(torch_peer.MODELS))
    add("--lengths", nargs="*", type=int, default=[128, 384], help="sequence lengths (default 128 384; none: only --packed)")
    add("--batch-sizes", nargs="+", type=int, default=[1, 2, 4, 8, 12, 16, 24, 32, 64, 128])
    add("--engines", nargs="+", choices=("eager", "compile", "ours"), default=["eager", "compile", "ours"])
    add("--precisions", nargs="+", choices=PRECISIONS, default=["fp16"], help="of our engine (default fp16)")
    add("--packed", type=Path, metavar="FILE", help="also run all windows of this SQuAD file, packed and padded")
    add("--engine-dir", type=Path, metavar="DIR", help="keep our engines there for later runs, and use what is there")
    add("--iterations", type=int, default=100, help="timed runs (default 100)")
    add("--warm-up", type=int, default=10, help="untimed runs before them, at least; they take half of --seconds (default 10)")
    add("--seconds", type=float, default=2, help="begin no timed run after so long; rest as long before (default 2)")
    add("--csv", type=Path, default=ROOT / "docs" / "results" / "h200.csv", help="results (default docs/results/h200.csv)")
    add("--replace", action="store_true", help="drop older rows of what is measured; by default they stay before the new ones")
    return parser.parse_args()


def main() -> int:
    args = arguments()
    batches = squad_batches(args.packed) if args.packed else []
    with tempfile.TemporaryDirectory() as directory, ThreadPoolExecutor(3) as pool:
        ours = args.models if "ours" in args.engines or batches else []
        engines = Engines(ours, args.precisions, args.engine_dir or Path(directory), pool)
        benchmark = Benchmark(args, engines)
        for model in args.models:
            for length in args.lengths:
                for batch in args.batch_sizes:
                    benchmark.shape(model, length, batch)
            if batches:
                benchmark.squad(model, batches)
            engines.forget(model)
        benchmark.peers.close()
    for failure in benchmark.failures:
        print(f"not measured: {failure}", file=sys.stderr)
    return 1 if benchmark.failures else 0


if __name__ == "__main__":
    sys.exit(main())
