# SPDX-License-Identifier: Apache-2.0
"""Where results go: through links and into pipes, and never over what they are made from."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from conftest import MODEL, ONNX
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
