# SPDX-License-Identifier: Apache-2.0
"""Activation ranges for INT8 and FP8 engines, measured by running the reference on text; and their cache.

The ranges have the names and the meaning of the quantisation-aware ones, so every backend reads one table.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from helpers.batching import Batch, pack, random_batch
from helpers.config import BertConfig
from helpers.data_processing import REMEDY_BUILDING, WindowOptions, make_windows, question_room, read_squad
from helpers.engine_file import text_digest, written_whole
from helpers.errors import EngineMismatch, InputError
from helpers.files import is_file, read_json, read_text
from helpers.reference import Reference
from helpers.tokenization import FullTokenizer
from helpers.weights import Weights
from helpers.weights.names import activation_ranges

CACHE_FORMAT = 1
QUESTIONS = 100
PERCENTILE = 99.999  # of the absolute values; docs/decisions.md has the F1 of others
_SMALLEST, _LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)  # of the ranges in a cache


class Histogram:
    """How often each magnitude occurs in a float32 stream: bins are the upper 16 bits of the number, 128 an octave (0.8 %)."""

    def __init__(self) -> None:
        self.counts = np.zeros(1 << 15, np.int64)
        self.maximum = 0.0

    def add(self, values: np.ndarray) -> None:
        magnitudes = np.abs(values.astype(np.float32, copy=False)).ravel()
        self.maximum = max(self.maximum, float(magnitudes.max()))
        self.counts += np.bincount(magnitudes.view(np.int32) >> 16, minlength=1 << 15)

    def percentile(self, percent: float) -> float:
        """Return the magnitude that `percent` of the values do not exceed, at most the maximum."""
        share = np.cumsum(self.counts) / self.counts.sum()
        bin_above = int(np.searchsorted(share, percent / 100)) + 1
        upper = np.array([bin_above << 16], np.int32).view(np.float32)[0]
        return min(self.maximum, float(upper)) if percent < 100 else self.maximum


def measure(
    config: BertConfig,
    weights: Weights,
    batches: Iterable[Batch],
    percentile: float,
    progress: Callable[[int], Any] = lambda done: None,
) -> dict[str, np.ndarray]:
    """Return the range of every activation that a quantised engine rounds."""
    names = set(activation_ranges(config))
    histograms = {name: Histogram() for name in names}

    def observe(name: str, tensor: np.ndarray) -> None:
        if name in names:
            histograms[name].add(tensor)

    reference = Reference(config, weights)
    for batch in batches:
        reference(batch, observe)
        progress(batch.size)
    return {name: np.asarray(max(histogram.percentile(percentile), 1e-6), np.float32) for name, histogram in histograms.items()}


def text_batches(squad_json: str | Path, tokenizer: FullTokenizer, count: int, sequence_length: int) -> list[Batch]:
    """Return the first window of each of the first `count` questions that have one, a batch each, as the old calibrator did."""
    options = WindowOptions(sequence_length=sequence_length)
    batches: list[Batch] = []
    for example in read_squad(squad_json):
        question, passage = tokenizer.encode([example.question, example.passage])
        question_room(question, options, example.id, REMEDY_BUILDING)
        windows = make_windows(question, passage, tokenizer, options)
        if windows:
            batches.append(pack([windows[0].ids], [windows[0].segments]))
        if len(batches) == count:
            break
    if not batches:
        raise InputError(f"{squad_json} has no question with a passage to calibrate on; give another -j/--squad-json")
    return batches


def random_batches(config: BertConfig, sequence_length: int) -> list[Batch]:
    """Return one sequence of random ids: calibration for random weights, which no text could fit better."""
    return [random_batch([sequence_length], config.vocab_size, 0)]


def default_cache(config: BertConfig, weights: Weights, sequence_length: int) -> Path:
    """Return the cache's name in the current directory: the old demo's, with the digest of the weights."""
    shape = f"L{config.num_hidden_layers}H{config.head_size}A{config.num_attention_heads}S{sequence_length}"
    return Path(f"BertSquad{shape}-{weights.digest()[:12]}.CalibCache")


def settings_of(tokenizer: FullTokenizer, squad_json: Path, count: int, sequence_length: int, percentile: float) -> dict[str, Any]:
    """Return what, beside the weights, decides the ranges."""
    at_hand = is_file(squad_json, "SQuAD file")
    return {
        "squad_json": text_digest(read_text(squad_json, "SQuAD file")) if at_hand else None,
        "questions": count,
        "sequence_length": sequence_length,
        "percentile": percentile,
        "vocabulary": tokenizer.digest,
        "lower_case": tokenizer.lower_case,
    }


def read_cache(path: Path, weights: Weights, settings: dict[str, Any], config: BertConfig) -> dict[str, np.ndarray]:
    """Return the ranges of a cache; raise EngineMismatch when it was made from other weights or with other settings.

    The digest of the text is compared only where the text is at hand.
    """
    content = read_json(path, "calibration cache")
    remedy = "delete it, or name another with -p/--calib-path"
    complete = isinstance(content, dict) and all(isinstance(content.get(part), dict) for part in ("settings", "ranges"))
    if not complete or content.get("format") != CACHE_FORMAT:
        raise InputError(f"{path} is no calibration cache of this version; {remedy}")
    if content.get("weights") != weights.digest():
        found = str(content.get("weights"))[:12]
        raise EngineMismatch(
            f"the calibration cache {path} belongs to weights {found}, these are {weights.digest()[:12]}; {remedy}"
        )
    cached = content["settings"]
    for name, value in settings.items():
        if value is not None and cached.get(name) != value:
            raise EngineMismatch(f"the calibration cache {path} was made with {name} {cached.get(name)}, not {value}; {remedy}")
    names, ranges = activation_ranges(config), content["ranges"]
    missing = set(names) - set(ranges)
    if missing:
        raise InputError(f"the calibration cache {path} lacks {len(missing)} ranges, {min(missing)} for one; {remedy}")
    for name in names:
        value = ranges[name]
        if type(value) not in (int, float) or not _SMALLEST <= value <= _LARGEST:  # false for NaN too
            raise InputError(f"the calibration cache {path} has range {name} = {value!r}, which is no positive number; {remedy}")
    return {name: np.asarray(ranges[name], np.float32) for name in names}


def write_cache(path: Path, weights: Weights, settings: dict[str, Any], ranges: dict[str, np.ndarray]) -> None:
    """Write the ranges with the identity of the weights and the settings."""
    content = {
        "format": CACHE_FORMAT,
        "weights": weights.digest(),
        "source": weights.source,
        "settings": settings,
        "ranges": {name: float(value) for name, value in sorted(ranges.items())},
    }
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
