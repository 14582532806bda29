#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write the GPU tables of README.md and docs/results/h200.md from the CSV files; with --check only say whether they are up to date.

The measurements are docs/results/h200.csv (scripts/benchmark_peers.py), what NVIDIA published is published-latency.csv beside it.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path

from plot_benchmark import newest

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"
README, PAGE = ROOT / "README.md", RESULTS / "h200.md"
BEGIN, END = "<!-- Written by scripts/results_table.py: begin -->\n", "<!-- end -->\n"
MODELS, LENGTHS = ("base", "large"), (128, 384)
BATCHES = (1, 2, 4, 8, 12, 16, 24, 32, 64, 128)
FEW = (1, 8, 32, 128)  # the README's
PRECISIONS = ("fp16", "int8", "fp8")
PUBLISHED = ("A100", "L40S")
PUBLISHED_COLUMNS = [f"published {gpu}, {precision}" for gpu in PUBLISHED for precision in ("FP16", "INT8")]
HEAD = """# Results on an H200

<!-- Written by scripts/results_table.py from h200.csv and published-latency.csv. -->

"""
Key = tuple[str, int, int, str, str]  # model, length, batch, precision, engine (or the GPU of a published table)
Row = dict[str, str]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; status 1 when a page is out of date")
    args = parser.parse_args()
    rows = read(RESULTS / "h200.csv")
    found = {key(row, row["engine"]): row for row in rows}  # of equal keys the newest
    found |= {key(row, row["gpu"]): row for row in newest(read(RESULTS / "published-latency.csv"), PUBLISHED)}
    before, rest = README.read_text(encoding="utf-8").split(BEGIN)
    readme = before + BEGIN + compact(found, caption(rows)) + END + rest.split(END, 1)[1]
    pages = {README: readme, PAGE: HEAD + full(found, caption(rows))}
    stale = [path for path, text in pages.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        if args.check:
            print(f"{path.relative_to(ROOT)} is out of date; run: python scripts/results_table.py", file=sys.stderr)
        else:
            path.write_text(pages[path], encoding="utf-8")
    return 1 if args.check and stale else 0


def read(path: Path) -> list[Row]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def key(row: Row, engine: str) -> Key:
    return row["model"].removeprefix("bert-"), int(row["seq_len"]), int(row["batch"]), row["precision"], engine


def caption(rows: Sequence[Row]) -> str:
    """Return what holds for all figures: machine, versions, days."""
    machines, versions, days = (sorted({row[name] for row in rows}) for name in ("machine", "versions", "date"))
    period = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    return f"{' and '.join(machines)}; {' and '.join(versions)}; {period}"


def compact(found: dict[Key, Row], facts: str) -> str:
    """Return the README's part: few batch sizes, medians only."""
    columns = ["torch.compile", "this engine, FP16", "ratio", "this engine, INT8", "this engine, FP8", *PUBLISHED_COLUMNS]
    lines = []
    for model in MODELS:
        for length in LENGTHS:
            for batch in FEW:
                at = (model, length, batch)
                ours = [milliseconds(found, at, precision, "ours", "median_ms") for precision in PRECISIONS]
                cells = [
                    milliseconds(found, at, "fp16", "compile", "median_ms"),
                    ours[0],
                    ratio(found, at),
                    *ours[1:],
                    *published(found, at),
                ]
                lines.append([model, str(length), str(batch), *cells])
    return (
        f"\n{facts}.\n\n"
        "Median milliseconds of device time. The ratio is torch.compile's time by this engine's, both in FP16. The last four\n"
        "columns are TensorRT's averages on other GPUs, as NVIDIA published them ([source](docs/results/README.md)). What is\n"
        "empty was not measured.\n\n" + table(["model", "length", "batch", *columns], lines) + packed(found)
    )


def full(found: dict[Key, Row], facts: str) -> str:
    """Return the page with everything."""
    ours = ["this engine, FP16", "95th", "99th", "ratio", "this engine, INT8", "this engine, FP8"]
    columns = ["batch", "eager", "torch.compile", *ours, *PUBLISHED_COLUMNS]
    text = (
        f"{facts}.\n\n"
        "Milliseconds of device time between two CUDA events around one pass: averages, and for this engine in FP16 the 95th\n"
        "and 99th percentile. Random weights and ids, all positions real. eager and torch.compile are PyTorch in FP16, in a CUDA\n"
        "graph; the ratio is torch.compile's median by this engine's in FP16. The published times are TensorRT's on other GPUs,\n"
        "as NVIDIA gave them with demo/BERT ([README.md](README.md)). What is empty was not measured.\n\n"
    )
    for model in MODELS:
        for length in LENGTHS:
            lines = []
            for batch in BATCHES:
                at = (model, length, batch)
                peers = [milliseconds(found, at, "fp16", engine) for engine in ("eager", "compile")]
                fp16 = [milliseconds(found, at, "fp16", "ours", column) for column in ("avg_ms", "p95_ms", "p99_ms")]
                eight_bit = [milliseconds(found, at, precision, "ours") for precision in PRECISIONS[1:]]
                lines.append([str(batch), *peers, *fp16, ratio(found, at), *eight_bit, *published(found, at)])
            text += f"## BERT-{model}, length {length}\n\n{table(columns, lines)}\n"
    return text.rstrip("\n") + "\n" + packed(found, "\n## All windows of SQuAD, packed\n")


def packed(found: dict[Key, Row], heading: str = "") -> str:
    """Return the table of SQuAD's windows, packed against padded; nothing where none is measured."""
    lines = []
    for model in MODELS:
        for precision in PRECISIONS:
            times = [average(found, (model, 384, 128, precision, engine)) for engine in ("padded", "packed")]
            if any(times):
                rates = [f"{128_000 / time:,.0f}" if time else "" for time in times]
                gain = f"{times[0] / times[1]:.2f}" if times[0] and times[1] else ""
                lines.append([model, precision.upper(), *rates, gain])
    if not lines:
        return ""
    words = (
        "All windows of SQuAD v1.1 dev in order, sequences per second: padded to 384, 128 at a time; packed, 2,048 at a time.\n\n"
    )
    return f"{heading}\n{words}" + table(["model", "precision", "padded", "packed", "ratio"], lines)


def central(found: dict[Key, Row], key: Key) -> float | None:
    return float(found[key]["median_ms"] or found[key]["avg_ms"]) if key in found else None


def average(found: dict[Key, Row], key: Key) -> float | None:
    return float(found[key]["avg_ms"]) if key in found else None


def milliseconds(found: dict[Key, Row], at: tuple[str, int, int], precision: str, engine: str, column: str = "avg_ms") -> str:
    """Return a time with three digits; nothing where it is not measured."""
    row = found.get((*at, precision, engine))
    if row is None or not row[column]:
        return ""
    value = float(row[column])
    return f"{value:.{3 if value < 2 else 2 if value < 20 else 1}f}"


def published(found: dict[Key, Row], at: tuple[str, int, int]) -> list[str]:
    """Return TensorRT's times with the digits that were published."""
    rows = [found.get((*at, precision, gpu)) for gpu in PUBLISHED for precision in PRECISIONS[:2]]
    return [row["avg_ms"] if row else "" for row in rows]


def ratio(found: dict[Key, Row], at: tuple[str, int, int]) -> str:
    """Return the ratio of medians; of averages where rows of an older version have no medians."""
    peer, ours = (central(found, (*at, "fp16", engine)) for engine in ("compile", "ours"))
    return f"{peer / ours:.2f}" if peer and ours else ""


def table(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [columns, ["---"] * len(columns), *lines]
    return "".join("| " + " | ".join(row) + " |\n" for row in rows).replace("|  |", "| |").replace("|  |", "| |")


if __name__ == "__main__":
    sys.exit(main())
