#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Score predictions on a SQuAD v2.0 file, with questions that have no answer; helpers/squad_metrics.py does the arithmetic."""

from __future__ import annotations

import argparse
import importlib
import json
import math
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the script runs from any directory

from helpers import squad_metrics as metrics
from helpers.cli import log, status_of
from helpers.engine_file import written_whole
from helpers.errors import InputError, MissingDependency
from helpers.files import check_apart, read_json

EPILOG = """result (JSON, indented): exact, f1, total; the same as HasAns_* and NoAns_* where there are such questions; with
--na-prob-file also best_exact, best_exact_thresh, best_f1 and best_f1_thresh: the best totals that any threshold gives, and
that threshold; with --out-image-dir also pr_exact_ap, pr_f1_ap and pr_oracle_ap. A question without a prediction scores 0.

exit status: 0 scored; 1 a file cannot be used; 2 wrong usage; 3 matplotlib is needed and missing.
"""


def threshold(text: str) -> float:
    """Return the number that `text` spells; infinities are allowed."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number; give a probability such as 0.5")
    return value


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", metavar="DATASET", help="SQuAD v2.0 file with the questions and their answers")
    parser.add_argument("predictions", metavar="PREDICTIONS", help="JSON object: question id to answer text, empty for no answer")
    parser.add_argument("-o", "--out-file", type=Path, metavar="FILE", help="write the result there (default: stdout)")
    parser.add_argument("-n", "--na-prob-file", metavar="FILE", help="JSON object: question id to the probability of no answer")
    parser.add_argument(
        "-t",
        "--na-prob-thresh",
        metavar="THRESHOLD",
        type=threshold,
        help="a probability above this means no answer (default: 1.0); needs --na-prob-file",
    )
    parser.add_argument(
        "-p",
        "--out-image-dir",
        metavar="DIR",
        help="draw precision-recall curves and histograms as PNG files there; needs --na-prob-file and matplotlib",
    )
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="name every question without a prediction, not only the first five"
    )
    args = parser.parse_args(arguments)
    for option, value in (("-t/--na-prob-thresh", args.na_prob_thresh), ("-p/--out-image-dir", args.out_image_dir)):
        if value is not None and args.na_prob_file is None:
            parser.error(f"{option} needs the probabilities of no answer; give their file with -n/--na-prob-file")
    return args


def main(arguments: list[str] | None = None) -> None:
    args = parse_arguments(arguments)
    inputs = [("DATASET", args.dataset), ("PREDICTIONS", args.predictions), ("-n/--na-prob-file", args.na_prob_file)]
    check_apart([(option, path) for option, path in inputs if path], [("-o/--out-file", args.out_file)])
    plt = import_pyplot() if args.out_image_dir else None
    dataset, predictions = read_json(args.dataset, "dataset"), read_json(args.predictions, "prediction file")
    na_probs = read_json(args.na_prob_file, "no-answer file") if args.na_prob_file else None
    limit = 1.0 if args.na_prob_thresh is None else args.na_prob_thresh
    result: dict[str, float] = metrics.evaluate_v20(dataset, predictions, na_probs, limit)

    golds = metrics.gold_answers(dataset)
    if missing := metrics.missing_note(golds, predictions, shown=len(golds) if args.verbose else 5):
        log(missing)
    try:
        if plt is not None:
            result |= draw(plt, Path(args.out_image_dir), golds, predictions, na_probs)
        write(json.dumps(result, indent=2) + "\n", args.out_file)
    except OSError as error:
        raise InputError(f"{error.filename or args.out_file} cannot be written ({error.strerror}); choose another place") from error


def import_pyplot() -> Any:
    """Return matplotlib's drawing module, set to draw without a screen."""
    try:
        importlib.import_module("matplotlib").use("Agg")
        return importlib.import_module("matplotlib.pyplot")
    except ImportError as error:
        raise MissingDependency(f"-p/--out-image-dir needs matplotlib ({error}); run: pip install matplotlib") from error


def draw(plt: Any, folder: Path, golds: metrics.Golds, predictions: dict[str, str], na_probs: Any) -> dict[str, float]:
    """Draw the three curves and the histograms into `folder`; return the average precisions by result key."""
    folder.mkdir(parents=True, exist_ok=True)
    known = metrics.probabilities(golds, predictions, na_probs)
    curves = {
        "pr_exact": ("exact match", metrics.v20_scores(golds, predictions, metrics.exact_match)),
        "pr_f1": ("F1", metrics.v20_scores(golds, predictions, metrics.f1)),
        "pr_oracle": ("answerable or not", {key: float(bool(texts)) for key, texts in golds.items()}),
    }
    averages = {}
    for name, (what, scores) in curves.items():
        average, precisions, recalls = metrics.precision_recall(golds, scores, known)
        averages[f"{name}_ap"] = average
        figure, axes = plt.subplots()
        axes.step(recalls, precisions, where="pre")
        axes.fill_between(recalls, precisions, step="pre", alpha=0.2)
        axes.set(
            xlabel="recall", ylabel="precision", xlim=(0, 1.05), ylim=(0, 1.05), title=f"{what}: average precision {average:.2f}"
        )
        figure.savefig(folder / f"{name}.png")
        plt.close(figure)
    for name, answerable in (("hasAns", True), ("noAns", False)):
        values = [value for key, value in known.items() if bool(golds[key]) == answerable]
        if values:
            figure, axes = plt.subplots()
            axes.hist(values, bins=20, range=(min(0, *values), max(1, *values)), weights=[1 / len(values)] * len(values))
            axes.set(xlabel="probability of no answer", ylabel="share of the questions", title=f"{name}: {len(values)} questions")
            figure.savefig(folder / f"na_prob_hist_{name}.png")
            plt.close(figure)
    return averages


def write(text: str, path: Path | None) -> None:
    """Print `text`, or write it to `path` in one step: a failure leaves an older file as it was."""
    if path is None:
        print(text, end="")
        return
    with written_whole(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(status_of(main))
