# SPDX-License-Identifier: Apache-2.0
"""Where results go: through links and into pipes, never over what they are made from, and whole or not at all."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import MODEL, ONNX, PASSAGE, QUESTION, ROOT, SAMPLE
from helpers.engine_file import read_info, written_whole


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


@pytest.mark.parametrize("backend", ["cpu", "cuda"])
def test_an_engine_may_be_read_by_whom_the_umask_lets(script, tmp_path, backend: str) -> None:
    other = tmp_path / "other"
    other.touch()
    assert script("builder", "-x", ONNX, "-c", MODEL, "-o", tmp_path / "e.engine", "--backend", backend).status == 0
    assert (tmp_path / "e.engine").stat().st_mode == other.stat().st_mode


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


@pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=["Ctrl-C", "TERM", "KILL"])
def test_a_killed_build_leaves_nothing_half_written(tmp_path, kill: signal.Signals) -> None:
    """Killed at several moments of the work: there is no engine, or a whole one."""
    out = tmp_path / "e.engine"
    command = [sys.executable, "builder.py", "-x", ONNX, "-c", MODEL, "-o", out, "--backend", "cpu"]
    for delay in (0.0, 0.15, 0.4):
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        assert process.stderr
        while not (line := process.stderr.readline()).startswith("building: "):
            assert line, "the build ended early"
        time.sleep(delay)
        process.send_signal(kill)
        _, err = process.communicate(timeout=60)
        assert "Traceback" not in err, err
        left = list(tmp_path.iterdir())
        if out in left:
            assert read_info(out).backend == "cpu"
        if kill != signal.SIGKILL:
            assert set(left) <= {out}
            # Python drops its handlers when it ends: then the signal itself is the status, and the engine is whole.
            assert process.returncode in (130, 143) or out in left, err


def test_a_failed_write_keeps_the_old_file(tmp_path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), written_whole(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("backend", ["cpu", "cuda"])
def test_a_full_disk_is_said_in_one_sentence(tmp_path, backend: str) -> None:
    """A limit on the size of files stands for the disk: writing fails on the way."""
    out = tmp_path / "e.engine"
    out.write_text("old")
    build = shlex.join([sys.executable, "builder.py", "-x", str(ONNX), "-c", str(MODEL), "-o", str(out), "--backend", backend])
    done = subprocess.run(["bash", "-c", f"ulimit -f 10000; {build}"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert f"error: {out} cannot be written (File too large); make room there" in done.stderr
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert [(path, path.read_text()) for path in tmp_path.iterdir()] == [(out, "old")]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has this file")
def test_results_sent_to_a_full_disk(engines) -> None:
    ask = shlex.join([sys.executable, "inference.py", "-e", str(engines["fp32"]), "-p", PASSAGE, "-q", QUESTION])
    done = subprocess.run(["bash", "-c", f"{ask} > /dev/full"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stderr.splitlines()[-1].startswith("error: the output cannot be written (No space left on device)")
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
