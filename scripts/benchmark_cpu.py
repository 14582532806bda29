#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compare whole `inference.py -sq` runs on this CPU with ONNX Runtime on the repository's ONNX file, in one go.

The peer gets the same windows, batches of 16 sorted by length, and is timed without start-up, tokenization and answers; ours is
the wall time of the whole process. Prints a Markdown table: windows/s (median of the repetitions), ratio, F1, EM.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from helpers.backends.cpu import cpu_name, cpus  # noqa: E402
from helpers.batching import Batch, pack  # noqa: E402
from helpers.build import versions  # noqa: E402
from helpers.data_processing import WindowOptions, make_windows, read_squad  # noqa: E402
from helpers.squad_metrics import evaluate_v11  # noqa: E402
from helpers.tokenization import FullTokenizer  # noqa: E402

MODEL = ROOT / "models" / "bert_minilm_l6_qa_squad11_fake_quant"
ONNX = MODEL / "bert_minilm_l6_qa_fake_quant.onnx"
ENGINES = {"FP32": [], "--fp16": ["--fp16"], "--int8": ["--int8"], "--int8 --fp16": ["--int8", "--fp16"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--squad-json", type=Path, default=ROOT / "squad" / "dev-sample-1000.json", help="questions (default: the sample)"
    )
    parser.add_argument("--repetitions", type=int, default=3, help="runs of each, taken in turns (default: 3)")
    args = parser.parse_args()
    dataset = json.loads(args.squad_json.read_text(encoding="utf-8"))
    batches = peer_batches(args.squad_json)
    windows = sum(batch.size for batch in batches)
    rates: dict[str, list[float]] = {"peer": [], **{name: [] for name in ENGINES}}
    scores: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as directory:
        for name, flags in ENGINES.items():
            engine = Path(directory) / f"{name}.engine"
            build = ["builder.py", "-x", ONNX, "-c", MODEL, "-s", "384", "--backend", "cpu", "-o", engine, *flags]
            subprocess.run([sys.executable, *map(str, build)], cwd=ROOT, check=True, capture_output=True)
        for repetition in range(args.repetitions + 1):  # the first, which compiles and fills caches, is not counted
            for name in rates:
                if name == "peer":
                    seconds = peer_seconds(batches)
                else:
                    predictions = Path(directory) / "predictions.json"
                    seconds = our_seconds(Path(directory) / f"{name}.engine", args.squad_json, predictions)
                    scores[name] = evaluate_v11(dataset, json.loads(predictions.read_text()))
                if repetition:
                    rates[name].append(windows / seconds)
    report(rates, scores, windows, args.repetitions)


def peer_batches(squad_json: Path) -> list[Batch]:
    """Return all windows of the file in batches of 16, sorted by length."""
    tokenizer = FullTokenizer.from_file(MODEL / "vocab.txt")
    windows = []
    for example in read_squad(squad_json):
        question, passage = tokenizer.encode([example.question, example.passage])
        windows += make_windows(question, passage, tokenizer, WindowOptions(384))
    windows.sort(key=lambda window: len(window.ids))
    groups = [windows[begin : begin + 16] for begin in range(0, len(windows), 16)]
    return [pack([window.ids for window in group], [window.segments for window in group]) for group in groups]


def peer_seconds(batches: list[Batch]) -> float:
    """Return how long ONNX Runtime takes on the file as it is, default settings."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(ONNX), providers=["CPUExecutionProvider"])
    names = ("input_ids", "segment_ids", "input_mask")
    feeds = [{name: array.astype(np.int64) for name, array in zip(names, batch.pad(), strict=True)} for batch in batches]
    session.run(None, feeds[0])
    began = time.perf_counter()
    for feed in feeds:
        session.run(None, feed)
    return time.perf_counter() - began


def our_seconds(engine: Path, squad_json: Path, predictions: Path) -> float:
    """Return the wall time of a whole `inference.py -sq` process."""
    command = [sys.executable, "inference.py", "-e", engine, "-sq", squad_json, "-o", predictions]
    began = time.perf_counter()
    subprocess.run([str(word) for word in command], cwd=ROOT, check=True, capture_output=True)
    return time.perf_counter() - began


def report(rates: dict[str, list[float]], scores: dict[str, dict[str, float]], windows: int, repetitions: int) -> None:
    found = versions()
    print(f"{cpu_name()}, {cpus()} CPUs; {windows} windows of up to 384 word pieces; median of {repetitions} runs in turns;")
    print(f"OpenVINO {found.get('openvino')}, ONNX Runtime {found.get('onnxruntime')}, Python {sys.version.split()[0]}\n")
    print("| | windows/s | ratio | F1 | EM |\n| --- | --- | --- | --- | --- |")
    peer = statistics.median(rates["peer"])
    print(f"| ONNX Runtime, the ONNX file as it is | {peer:.1f} | 1.0 | | |")
    for name in ENGINES:
        rate, score = statistics.median(rates[name]), scores[name]
        print(f"| `inference.py`, {name} | {rate:.1f} | {rate / peer:.2f} | {score['f1']:.2f} | {score['exact_match']:.2f} |")


if __name__ == "__main__":
    main()
