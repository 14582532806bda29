# SPDX-License-Identifier: Apache-2.0
"""Measured ranges, and a cache that is only used for what it was made from."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest

from conftest import MODEL, ONNX, PASSAGE, QUESTION, ROOT, SAMPLE, small_config, small_weights
from helpers import calibrator
from helpers.batching import random_batch
from helpers.errors import InputError
from helpers.reference import Reference
from helpers.tokenization import FullTokenizer
from helpers.weights.names import activation_ranges

DECISIONS = (ROOT / "docs" / "decisions.md").read_text(encoding="utf-8")
CALIBRATE = ("--int8", "--calibrate", "-n", 3, "-j", SAMPLE, "-s", 128, "--backend", "cpu")


def test_a_percentile_is_that_of_all_values() -> None:
    histogram = calibrator.Histogram()
    values = np.random.default_rng(1).standard_normal(200_000).astype(np.float32)
    for part in np.split(values, 4):
        histogram.add(part)
    for percent in (50, 99, 99.9, 99.99):
        assert histogram.percentile(percent) == pytest.approx(np.percentile(np.abs(values), percent), rel=0.01)
    assert histogram.percentile(100) == np.abs(values).max()


def test_every_range_is_measured_on_the_float_model() -> None:
    config = small_config()
    weights = small_weights(config)
    batch = random_batch([20, 30], config.vocab_size)
    ranges = calibrator.measure(config, weights, [batch], 100)
    assert set(ranges) == set(activation_ranges(config))
    seen: dict[str, np.ndarray] = {}
    Reference(config, weights)(batch, lambda name, tensor: seen.__setitem__(name, tensor))
    assert ranges["l1_output_dense_input_amax"] == pytest.approx(np.abs(seen["l1_output_dense_input_amax"]).max())
    assert ranges["l0_attention_self_av_a_input_quantizer_amax"] <= 1


def test_calibration_is_cached_under_the_name_of_the_weights(script, tmp_path, monkeypatch) -> None:
    import onnx

    monkeypatch.chdir(tmp_path)
    build = ("-x", ONNX, "-c", MODEL, "-o", "e", *CALIBRATE)
    first = script("builder", *build)
    assert "ranges: measured on 3 questions" in first.err, first.err
    (cache,) = tmp_path.glob("BertSquadL6H32A12S128-*.CalibCache")
    content = json.loads(cache.read_text())
    assert content["weights"].startswith(cache.stem.split("-")[1])
    assert content["settings"]["questions"] == 3
    cache.write_text(json.dumps(content | {"ranges": dict.fromkeys(content["ranges"], 1.5)}))
    second = script("builder", *build)
    assert f"ranges: calibration cache {cache.name}" in second.err
    scales = {i.name: onnx.numpy_helper.to_array(i) for i in onnx.load("e").graph.initializer}
    assert scales["l0_attention_self_query_input_amax_scale"] == pytest.approx(1.5 / 127)


@pytest.fixture(scope="module")
def made(tmp_path_factory, config, weights) -> str:
    """Return the content of a cache of the repository's model, made with the settings of CALIBRATE."""
    path = tmp_path_factory.mktemp("cache") / "cache.json"
    tokenizer = FullTokenizer.from_file(MODEL / "vocab.txt")
    settings = calibrator.settings_of(tokenizer, SAMPLE, 3, 128, calibrator.PERCENTILE)
    calibrator.write_cache(path, weights, settings, {name: np.float32(1.5) for name in activation_ranges(config)})
    return path.read_text()


@pytest.mark.parametrize(
    ("change", "more", "status", "sentence"),
    [
        ({"weights": "0" * 64}, (), 4, "belongs to weights 000000000000, these are"),
        ({"format": 0}, (), 1, "is no calibration cache of this version"),
        ({"ranges": {}}, (), 1, "lacks 85 ranges"),
        ({"ranges": []}, (), 1, "is no calibration cache of this version"),
        ({"settings": None}, (), 1, "is no calibration cache of this version"),
        ({"settings": {}}, (), 4, "was made with squad_json None, not"),
        ({}, ("-n", 4), 4, "was made with questions 3, not 4"),
        ({}, ("--calib-percentile", 99), 4, "was made with percentile 99.999, not 99.0"),
        ({}, ("-s", 256), 4, "was made with sequence_length 128, not 256"),
    ],
)
def test_a_cache_of_other_weights_or_settings_is_refused(
    script, tmp_path, made: str, change, more, status: int, sentence: str
) -> None:
    cache = tmp_path / "cache.json"
    cache.write_text(json.dumps(json.loads(made) | change))
    ended = script("builder", "-x", ONNX, "-c", MODEL, "-o", tmp_path / "e", "-p", cache, *CALIBRATE, *more)
    assert sentence in ended.sentence
    assert "delete it, or name another with -p/--calib-path" in ended.sentence
    assert ended.status == status
    assert not (tmp_path / "e").exists()


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), -1.5, 0, 1e-60, 10**400, None, True, [1.5], "1.5"], ids=lambda value: repr(value)[:9]
)
def test_a_cache_with_a_range_that_is_none_is_refused(tmp_path, made: str, config, weights, value: object) -> None:
    cache = tmp_path / "cache.json"
    content = json.loads(made)
    content["ranges"]["l1_output_dense_input_amax"] = value
    cache.write_text(json.dumps(content))
    with pytest.raises(InputError) as error:
        calibrator.read_cache(cache, weights, content["settings"], config)
    assert f"has range l1_output_dense_input_amax = {value!r}, which is no positive number; delete it, or name" in str(error.value)


def test_weights_without_ranges_are_calibrated(script, tmp_path, monkeypatch) -> None:
    """Random weights carry none; they are measured on random ids, so that any configuration can be built and benchmarked."""
    monkeypatch.chdir(tmp_path)
    values = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    (tmp_path / "bert_config.json").write_text(json.dumps(values))
    ended = script("builder", "--random-weights", 1, "-c", ".", "-o", "e", "--int8", "--backend", "cpu")
    assert ended.status == 0, ended.err
    assert "ranges: measured on random ids" in ended.err
    measured = script("perf", "-e", "e", "-b", 2, "-i", 3, "-w", 1, "--json")
    assert json.loads(measured.out)["results"][0]["batch_size"] == 2


def test_calibrated_int8_answers(script, tmp_path) -> None:
    build = ("-x", ONNX, "-c", MODEL, "-o", tmp_path / "e", "-p", tmp_path / "cache", *CALIBRATE, "-n", 20, "-s", 384)
    assert script("builder", *build).status == 0
    ended = script("inference", "-e", tmp_path / "e", "-p", PASSAGE, "-q", QUESTION)
    assert "high performance deep learning inference platform" in ended.out


def test_the_table_of_calibrations(monkeypatch, capsys) -> None:
    spec = importlib.util.spec_from_file_location("calibration_table", ROOT / "scripts" / "calibration_table.py")
    assert spec and spec.loader
    table = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(table)
    one = calibrator.text_batches(SAMPLE, FullTokenizer.from_file(MODEL / "vocab.txt"), 1, 128)
    monkeypatch.setattr(calibrator, "text_batches", lambda *settings: one)
    table.main(["--questions", "2"])
    rows = capsys.readouterr().out.splitlines()[2:]
    assert rows[0].endswith(" | 0.0 % | 0 |")
    names = [row.split("|")[1].strip() for row in rows]
    assert len(names) == 9 and all(f"| {name} |" in DECISIONS.replace("**", "") for name in names[1:])
