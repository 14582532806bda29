#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Score predictions on a SQuAD v1.1 file and compare F1 with a reference; helpers/squad_metrics.py does the arithmetic."""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the script runs from any directory

from helpers.cli import log, status_of
from helpers.files import read_json
from helpers.squad_metrics import evaluate_v11, gold_answers, missing_note

TITLE = "TensorRT BERT SQuAD accuracy against the reference"
EPILOG = """stdout: one line that starts "&&&& PASSED" (F1 is at least REFERENCE_F1 minus the tolerance) or "&&&& FAILED",
then one line of JSON with exact_match and f1. Exact match is not compared.

exit status: 0 scored, passed or not; 1 a file cannot be used, or FAILED under --strict-status; 2 wrong usage.
A script that must stop at FAILED gives --strict-status: without it the status stays 0, as users of this command expect.
"""


def number(text: str) -> float:
    """Return the finite number that `text` spells."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number; give a percentage such as 90 or 0.5")
    return value


def tolerance(text: str) -> float:
    """Return the number that `text` spells, which must not be negative."""
    value = number(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative; raise the reference F1 instead")
    return value


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", metavar="DATASET", help="SQuAD v1.1 file with the questions and their answers")
    parser.add_argument("predictions", metavar="PREDICTIONS", help="JSON object: question id to answer text")
    parser.add_argument("reference_f1", metavar="REFERENCE_F1", type=number, help="F1 that the model should reach, in percent")
    parser.add_argument(
        "--tolerance", type=tolerance, default=0.5, help="points of F1 below the reference that still pass (default: %(default)s)"
    )
    parser.add_argument(
        "--strict-status", action="store_true", help="end with status 1 if the result is FAILED (default: status 0)"
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    args = parse_arguments(arguments)
    dataset, predictions = read_json(args.dataset, "dataset"), read_json(args.predictions, "prediction file")
    scores = evaluate_v11(dataset, predictions)

    golds = gold_answers(dataset)
    unanswerable = sum(not texts for texts in golds.values())
    if str(dataset.get("version")) != "1.1":
        log(f"{args.dataset} has version {dataset.get('version')!r}, not '1.1'; it is scored by the rules of 1.1")
    if unanswerable:
        log(f"{unanswerable} of {len(golds)} questions have no gold answer; only an empty prediction is right for them")
    if missing := missing_note(golds, predictions):
        log(missing)

    passed = scores["f1"] >= args.reference_f1 - args.tolerance
    if not passed:
        log(f"F1 {scores['f1']:.3f} is more than {args.tolerance:g} below the reference {args.reference_f1:g}")
    print(f"&&&& {'PASSED' if passed else 'FAILED'} {TITLE}")
    print(json.dumps(scores))
    return 1 if args.strict_status and not passed else 0


if __name__ == "__main__":
    sys.exit(status_of(main))
