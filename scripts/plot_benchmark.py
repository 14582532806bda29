#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Draw results of inference_benchmark.sh as a chart: latency and throughput by batch size, beside the published tables."""

from __future__ import annotations

import argparse
import csv
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PUBLISHED = ROOT / "docs" / "results" / "published-latency.csv"
COLOURS = {"int8-qat": "#8c510a", "int8": "#d95f02", "fp8": "#7570b3", "fp16": "#1b7837", "fp32": "#666666"}
DASHES = ("--", ":", "-.")
Lines = dict[str, list[tuple[int, float]]]  # label -> (batch, average milliseconds), ascending


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("results", type=Path, help="CSV file of inference_benchmark.sh")
    parser.add_argument("-o", "--output", type=Path, help="chart, .svg, .png or .pdf (default: the results with .svg)")
    parser.add_argument(
        "--published",
        nargs="*",
        default=["A100", "T4"],
        metavar="GPU",
        help="published tables beside them: A100 A30 L40S (TensorRT 10.16), T4 V100 (7.2); none without a name (default: A100 T4)",
    )
    args = parser.parse_args()
    rows = read(args.results)
    if not rows:
        sys.exit(f"plot_benchmark.py: {args.results} holds no results; run scripts/inference_benchmark.sh first")
    published = read(PUBLISHED)
    known = {row["gpu"] for row in published}
    if unknown := [name for name in args.published if name not in known]:
        print(f"plot_benchmark.py: no published table of {unknown[0]}; there are {', '.join(sorted(known))}", file=sys.stderr)
        sys.exit(2)
    output = args.output or args.results.with_suffix(".svg")
    draw(rows, newest(published, args.published), output)
    print(f"chart: {output}")


def read(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file; end with status 1 where it cannot be read or lacks a column."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        for row in rows:
            row["model"], row["precision"], int(row["seq_len"]), int(row["batch"]), float(row["avg_ms"])
    except (OSError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        sys.exit(f"plot_benchmark.py: {path} cannot be read as results ({error!r}); give a file of inference_benchmark.sh")
    return rows


def newest(rows: Iterable[dict[str, str]], gpus: Iterable[str]) -> list[dict[str, str]]:
    """Return the published rows of some GPUs, of the newest README that has each GPU."""
    chosen = []
    rows = list(rows)
    for gpu in gpus:
        mine = [row for row in rows if row["gpu"] == gpu]
        last = max((row["source"] for row in mine), key=lambda source: "10." in source)
        chosen += [row for row in mine if row["source"] == last]
    return chosen


def lines(rows: list[dict[str, str]], model: str, length: str, name: str) -> Lines:
    """Return the curves of one panel by label, which is precision and, from the column `name`, where it was measured."""
    found: Lines = defaultdict(list)
    for row in rows:
        if (row["model"], row["seq_len"]) == (model, length):
            found[f"{row['precision']} {row[name]}"].append((int(row["batch"]), float(row["avg_ms"])))
    return {label: sorted(points) for label, points in found.items()}


def draw(rows: list[dict[str, str]], published: list[dict[str, str]], output: Path) -> None:
    """Write the chart: a column for each model and length, latency above, throughput below."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        print(
            "plot_benchmark.py: the chart needs matplotlib; pip install matplotlib",
            file=sys.stderr,
        )
        sys.exit(3)
    matplotlib.use("Agg")
    from matplotlib import pyplot

    for row in rows:
        row["where"] = f"{row['machine']}, {row['engine']}"
    panels = sorted({(row["model"], int(row["seq_len"])) for row in rows})
    figure, grid = pyplot.subplots(2, len(panels), figsize=(4.6 * len(panels) + 0.6, 8), squeeze=False, sharex="col")
    legend: dict[str, Any] = {}
    for column, (model, length) in enumerate(panels):
        ours, theirs = lines(rows, model, str(length), "where"), lines(published, model, str(length), "gpu")
        latency, throughput = grid[0][column], grid[1][column]
        gpus = list(dict.fromkeys(row["gpu"] for row in published))
        for label, points in [*ours.items(), *theirs.items()]:
            precision, where = label.split(" ", 1)
            dash = DASHES[gpus.index(where) % len(DASHES)] if label in theirs else "-"
            if label in theirs:
                label += " (published)"
            style = {"color": COLOURS.get(precision, "black"), "linestyle": dash, "linewidth": 1 if dash != "-" else 2}
            batches, times = [batch for batch, _ in points], [ms for _, ms in points]
            marker = {"marker": "o", "markersize": 4} if dash == "-" else {}
            (legend[label],) = latency.plot(batches, times, **style, **marker)
            throughput.plot(batches, [batch * 1000 / ms for batch, ms in points], **style, **marker)
        latency.set_title(f"{model}, sequence length {length}", fontsize=11)
        throughput.set_xlabel("batch size")
        for axis in (latency, throughput):
            axis.set_xscale("log", base=2)
            axis.set_yscale("log")
            axis.xaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
            axis.yaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
            axis.grid(True, which="major", color="#dddddd", linewidth=0.6)
            axis.spines[["top", "right"]].set_visible(False)
    grid[0][0].set_ylabel("average latency, ms")
    grid[1][0].set_ylabel("sequences per second")
    columns = max(1, min(3, len(panels)))
    height = 0.22 * (-(-len(legend) // columns)) + 0.15
    figure.tight_layout(rect=(0, height / 8, 1, 1))
    figure.legend(legend.values(), legend.keys(), loc="lower center", ncol=columns, frameon=False, fontsize=8)
    figure.savefig(output, dpi=150, metadata={"Date": None} if output.suffix == ".svg" else None)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
