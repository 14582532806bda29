# SPDX-License-Identifier: Apache-2.0
"""--verify of the builders: good engines pass, broken ones fail and stay, and what cannot be verified is said before the build."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from conftest import MODEL, ONNX, SAMPLE, small_config, small_weights
from helpers import backends, calibrator, verify
from helpers.batching import random_batch
from helpers.config import BuildOptions
from helpers.errors import UsageError
from helpers.reference import Reference
from helpers.tokenization import FullTokenizer
from helpers.weights.names import activation_ranges

BUILD = ("-x", ONNX, "-c", MODEL, "-j", SAMPLE, "--backend", "cpu")


@pytest.mark.parametrize(
    ("command", "flags", "largest"), [("builder", (), 0.1), ("builder_varseqlen", (), 0.1), ("builder", ("--int8",), 30)]
)
def test_a_good_engine_passes(script, tmp_path, command: str, flags: tuple, largest: float) -> None:
    built = script(command, *BUILD, *flags, "-o", tmp_path / "e", "-s", 128, "--verify", 6, "--verify-limit", 15)
    assert built.status == 0, built.err
    line = re.fullmatch(
        rf"verified on 6 questions of {SAMPLE}: F1 (\S+), of the FP32 reference (\S+) .*; largest error of a logit: (\S+) % .*\n",
        built.out,
    )
    assert line, built.out
    found, expected, error = map(float, line.groups())
    assert 40 < expected <= 100 and abs(found - expected) <= 15
    assert 0 < error < largest
    assert "no effect" not in built.err


def test_an_engine_with_spoiled_ranges_fails_and_stays(script, tmp_path, config, weights) -> None:
    tokenizer = FullTokenizer.from_file(MODEL / "vocab.txt")
    settings = calibrator.settings_of(tokenizer, SAMPLE, 3, 128, calibrator.PERCENTILE)
    calibrator.write_cache(tmp_path / "cache", weights, settings, {name: np.float32(0.01) for name in activation_ranges(config)})
    asked = ("--int8", "--calibrate", "-n", 3, "-p", tmp_path / "cache", "-s", 128, "--verify", 6)
    built = script("builder", *BUILD, *asked, "-o", tmp_path / "e")
    assert built.status == 1
    assert "the int8 engine's F1 " in built.sentence and " is more than 1 below FP32's " in built.sentence
    assert built.sentence.endswith(f"; {verify.REMEDY} ({tmp_path / 'e'} is left in place)")
    assert "verified on 6 questions" in built.out
    assert script("builder", *BUILD, *asked, "-o", tmp_path / "e", "--verify-limit", 100).status == 0


def test_logits_that_are_no_numbers_fail(script, tmp_path, monkeypatch) -> None:
    real = backends.load

    def broken(*arguments):
        session = real(*arguments)
        run = session.run
        session.run = lambda batch: np.where(np.arange(batch.tokens)[:, None] == 7, np.float32(np.nan), run(batch))
        return session

    monkeypatch.setattr(backends, "load", broken)
    built = script("builder", *BUILD, "-o", tmp_path / "e", "-s", 128, "--verify", 2, "--verify-limit", 1000)
    assert (built.status, built.out) == (1, "")
    assert "the fp32 engine gave logits that are not finite numbers; " in built.sentence
    assert (tmp_path / "e").exists()


def test_the_largest_error_of_all_batches_counts() -> None:
    config = small_config()
    reference = Reference(config, small_weights(config))
    batches = [random_batch([20], config.vocab_size, seed) for seed in range(3)]
    errors = iter([0.01, -0.5, 0.1])

    class Session:
        info, batch_size = None, 4

        def run(self, batch):
            logits = reference(batch)
            logits[3, 1] += next(errors)
            return logits

    beside = verify.Beside(Session(), reference)
    largest = max(np.abs(beside.run(batch)).max() for batch in batches)
    assert beside.error == pytest.approx(0.5 / largest, rel=1e-4)


@pytest.fixture
def nowhere(tmp_path, monkeypatch) -> Path:
    """A directory with a model configuration and no vocabulary, for builds that must not begin; without the module infer_c."""
    (tmp_path / "bert_config.json").write_text((MODEL / "bert_config.json").read_text())
    monkeypatch.setenv("INFER_C_DIR", str(tmp_path))
    monkeypatch.setattr(backends.module("cuda"), "build", None)
    monkeypatch.setattr(backends.module("cpu"), "build", None)
    return tmp_path


@pytest.mark.parametrize(
    ("flags", "status", "sentence"),
    [
        (
            ("-c", "{nowhere}"),
            2,
            "--verify asks questions, which needs the model's vocabulary; give vocab.txt with -v/--vocab-file",
        ),
        (("--backend", "cuda"), 3, "--verify runs the new engine, which this machine cannot: infer_c, which runs cuda engines, "),
        (("-j", "{nowhere}/unanswered"), 1, "has no answers to the first 2 questions; give --verify a file with some by -j"),
        (("-j", "{nowhere}/missing"), 1, "missing"),
        (
            ("-s", 64, "-j", "{nowhere}/long"),
            2,
            " of 64 word pieces leaves no room for the passage in a window of 64; give a longer -s, or other",
        ),
    ],
)
def test_what_cannot_be_verified_is_said_before_the_build(script, nowhere: Path, flags, status: int, sentence: str) -> None:
    content = json.loads(SAMPLE.read_text())
    for question in (q for article in content["data"] for paragraph in article["paragraphs"] for q in paragraph["qas"]):
        question["answers"] = []
    (nowhere / "unanswered").write_text(json.dumps(content))
    (nowhere / "long").write_text(SAMPLE.read_text().replace('"question": "', '"question": "' + "why " * 70))
    flags = [str(flag).format(nowhere=nowhere) for flag in flags]
    ended = script("builder", *BUILD, "-o", nowhere / "e", "--int8", "--calibrate", "--verify", 2, *flags)
    assert (ended.status, sentence in ended.sentence) == (status, True), ended.err
    assert not (nowhere / "e").exists()


def test_megatron_models_are_not_compared_with_another_model() -> None:
    tokenizer = FullTokenizer.from_file(MODEL / "vocab.txt")
    with pytest.raises(UsageError, match="no Megatron residuals; leave out --verify or --megatron"):
        verify.prepare(2, SAMPLE, "tensorrt", BuildOptions(Path("e"), megatron=True), tokenizer)


def test_a_limit_alone_has_no_effect(script, tmp_path) -> None:
    built = script("builder", *BUILD, "-o", tmp_path / "e", "--verify-limit", 3)
    assert (built.status, built.out) == (0, "")
    assert "--verify-limit has no effect without --verify" in built.err
