# SPDX-License-Identifier: Apache-2.0
"""What an engine file says of itself: damaged, of another version, without permission, beside an older one's."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest

from conftest import MODEL, ONNX, PASSAGE, QUESTION
from helpers.engine_file import read_info
from helpers.errors import EngineMismatch

ASK = ("-p", PASSAGE, "-q", QUESTION)


def test_an_engine_without_vocabulary_asks_for_one(script, tmp_path) -> None:
    (tmp_path / "bert_config.json").write_text((MODEL / "bert_config.json").read_text())
    engine = tmp_path / "e"
    assert script("builder", "-x", ONNX, "-c", tmp_path, "-o", engine, "--backend", "cpu").status == 0
    ended = script("inference", "-e", engine, *ASK)
    assert (ended.status, "carries no vocabulary; give the model's vocab.txt with -v" in ended.sentence) == (2, True)
    assert script("inference", "-e", engine, "-v", MODEL / "vocab.txt", *ASK).status == 0


def test_an_engine_of_a_backend_that_is_missing_here(script, engines, tmp_path) -> None:
    """What a user sees who copies an engine from a machine with TensorRT."""
    plan = tmp_path / "plan.engine"
    plan.write_bytes(b"ftrt" + b"\0" * 100)
    info = replace(read_info(engines["fp32"]), backend="tensorrt", gpu="NVIDIA A100 8.0")
    (tmp_path / "plan.engine.json").write_text(info.to_json())
    ended = script("inference", "-e", plan, *ASK)
    assert ended.status == 3
    assert "tensorrt" in ended.sentence.lower()
    assert "pip install" in ended.sentence


def test_an_engine_of_another_format(script, engines, tmp_path) -> None:
    plan = tmp_path / "plan.engine"
    plan.write_bytes(b"x")
    text = read_info(engines["fp32"]).to_json().replace('"format": 1', '"format": 99')
    (tmp_path / "plan.engine.json").write_text(text)
    ended = script("inference", "-e", plan, *ASK)
    assert (ended.status, "has engine format 99, this version reads format 1" in ended.sentence) == (4, True)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (b'"backend": "cpu"', b'"backend": "abc"', "is an engine for the backend 'abc', this version has tensorrt, cuda, cpu"),
        (b'"batch_sizes": [1]', b'"batch_sizes": "x"', "the metadata of {path} cannot be read (ValueError"),
        (b'"sequence_lengths": [384]', b'"sequence_lengths": ["a"]', "the metadata of {path} cannot be read (ValueError"),
        (b'"sequence_lengths": [384]', b'"sequence_lengths": [   ]', "the metadata of {path} cannot be read (ValueError"),
        (b'"lower_case": true', b'"lower_case": null', "the metadata of {path} cannot be read (TypeError"),
        (b'"backend": "cpu"', b'"backend": "c\xff "', "the metadata of {path} cannot be read (UnicodeDecodeError"),
        (b'"backend": "cpu"', b'"backend": [[]]', "the metadata of {path} cannot be read (TypeError"),
    ],
)
def test_metadata_that_is_wrong_in_one_place(script, engines, tmp_path, old: bytes, new: bytes, sentence: str) -> None:
    path = tmp_path / "e"
    content = engines["fp32"].read_bytes()
    assert content.count(old) == 1
    path.write_bytes(content.replace(old, new + b" " * (len(old) - len(new))))
    ended = script("inference", "-e", path, *ASK)
    assert (ended.status, sentence.format(path=path) in ended.sentence) == (4, True), ended.err


@pytest.mark.parametrize("cut", range(24))
def test_metadata_that_is_cut_off(tmp_path, cut: int) -> None:
    """Wherever it ends: tag, lengths, key or value; and where a length says more than the file has."""
    prefix = b"\x0a\x0fdemobert_engine\x12"
    entry = b"\x72" + bytes([len(prefix) + 3]) + prefix + b"\x02{}"
    for name, content in (("cut", entry[:cut]), ("long", b"\x72" + b"\xff" * (cut % 9) + b"\x7f")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(EngineMismatch, match="is no engine of builder.py|cannot be read"):
            read_info(tmp_path / name)


def test_an_engine_that_may_not_be_read(script, engines, tmp_path, monkeypatch) -> None:
    def refuse(path: Path, *arguments: object, **more: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    long = script("inference", "-e", tmp_path / ("e" * 300), *ASK)
    assert (long.status, "cannot be read (File name too long); correct -e/--engine" in long.sentence) == (1, True)
    for method in ("open", "stat"):  # root may read everything, so that a mode of 000 would show nothing
        with monkeypatch.context() as patch:
            patch.setattr(Path, method, refuse)
            ended = script("inference", "-e", engines["fp32"], *ASK)
        assert (ended.status, "cannot be read (Permission denied); correct -e/--engine" in ended.sentence) == (1, True), ended.err


@pytest.mark.parametrize("backend", ["cpu", "cuda"])
def test_an_engine_in_the_place_of_a_plan(script, engines, tmp_path, backend: str) -> None:
    """The plan's metadata would hide the engine's own."""
    out, beside = tmp_path / "e", tmp_path / "e.json"
    beside.write_text(replace(read_info(engines["fp32"]), backend="tensorrt").to_json())
    ended = script("builder", "-x", ONNX, "-c", MODEL, "-o", out, "--backend", backend)
    assert (ended.status, beside.exists(), f"removed {beside}" in ended.err) == (0, False, True)
    for text in ('{"id": "an answer"}', "[", replace(read_info(out), backend="tensorrt").to_json()):
        beside.write_text(text)
        assert read_info(out).backend == backend
    beside.write_text('{"id": "an answer"}')
    assert script("builder", "-x", ONNX, "-c", MODEL, "-o", out, "--backend", backend).status == 0
    assert beside.read_text() == '{"id": "an answer"}'
