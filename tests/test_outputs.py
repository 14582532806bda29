# SPDX-License-Identifier: Apache-2.0
"""Where results go: through links and into pipes, and never over what they are made from."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from conftest import MODEL, ONNX, SAMPLE
from helpers.engine_file import read_info


def test_a_link_stays_and_what_it_leads_to_is_replaced(script, few, engines, tmp_path) -> None:
    (tmp_path / "disk").mkdir()
    for name in ("e.engine", "p.json"):
        (tmp_path / "disk" / name).write_text("old")
        (tmp_path / name).symlink_to(Path("disk", name))
    assert script("builder", "-x", ONNX, "-c", MODEL, "-o", tmp_path / "e.engine", "--backend", "cpu").status == 0
    assert script("inference", "-e", engines["fp32"], "-sq", few, "-o", tmp_path / "p.json").status == 0
    assert (tmp_path / "e.engine").is_symlink() and (tmp_path / "p.json").is_symlink()
    assert read_info(tmp_path / "disk" / "e.engine").backend == "cpu"
    assert json.loads((tmp_path / "disk" / "p.json").read_text())
    assert sorted(path.name for path in (tmp_path / "disk").iterdir()) == ["e.engine", "p.json"]


@pytest.mark.parametrize("backend", ["cpu", "cuda"])
def test_an_engine_goes_into_a_pipe(script, tmp_path, backend: str) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with (tmp_path / "e.engine").open("wb") as file, subprocess.Popen(["timeout", "20", "cat", pipe], stdout=file) as reader:
        assert script("builder", "-x", ONNX, "-c", MODEL, "-o", pipe, "--backend", backend).status == 0
        assert reader.wait(10) == 0
    assert pipe.is_fifo()
    assert read_info(tmp_path / "e.engine").backend == backend
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e.engine", "pipe"]


@pytest.mark.parametrize(
    ("line", "other"),
    [
        ("inference -e e -sq s.json -o s.json", "-sq/--squad-json"),
        ("inference -e e -sq s.json -o e", "-e/--engine"),
        ("inference -e e -sq s.json --n-best-file ./e", "-e/--engine"),
        ("inference -e e -sq s.json -v vocab.txt --na-prob-file link.txt", "-v/--vocab-file"),
        ("inference -e e -sq s.json -o p.json --n-best-file p.json", "-o/--output-prediction-file"),
        ("inference -e plan -sq s.json -o plan.json", "the engine's metadata"),
        ("builder -x m.onnx -c model -o m.onnx", "-x/--onnx"),
        ("builder -x m.onnx -c model -o ../{here}/m.onnx", "-x/--onnx"),
        ("builder -x m.onnx -c model -o model/vocab.txt", "-c/--config-dir"),
        ("builder -x m.onnx -c model -o vocab.txt -v link.txt", "-v/--vocab-file"),
        ("builder -pt m.onnx -c model -o s.json -j s.json", "-j/--squad-json"),
        ("builder -m ckpt -c model -o ckpt.index", "-m/--ckpt"),
        ("builder -x m.onnx -c model -o new -p new", "-o/--output"),
        ("builder -x m.onnx -c model -o new -tcf m.onnx", "-x/--onnx"),
        ("builder --hf model -o model/model.safetensors", "--hf"),
    ],
)
def test_what_is_read_is_not_overwritten(script, engines, tmp_path, monkeypatch, line: str, other: str) -> None:
    (tmp_path / "model").symlink_to(MODEL)
    (tmp_path / "e").symlink_to(engines["fp32"])
    (tmp_path / "s.json").symlink_to(SAMPLE)
    (tmp_path / "link.txt").symlink_to("vocab.txt")
    for name, content in {"m.onnx": b"m", "vocab.txt": b"v", "ckpt.index": b"c", "plan": b"ftrt"}.items():
        (tmp_path / name).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    command, *words = line.format(here=tmp_path.name).split()
    ended = script(command, *words, *(["--backend", "cpu"] if command == "builder" else []))
    assert (ended.status, ended.out) == (2, "")
    assert f", which {other} uses too; give each a file of its own" in ended.sentence
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
