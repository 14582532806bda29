# SPDX-License-Identifier: Apache-2.0
"""The scripts of the command line on the TensorRT backend, from checkpoint to answer and table, with and without metadata."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers import cuda_utils
from helpers.cli import run_script
from trt.harness import TRT, WEAK
from trt.models import MODEL
from trt.runtime_double import GPU

MODULES = {"builder": "build", "inference": "answer", "perf": "bench"}
PASSAGE = "TensorRT is a high performance deep learning inference platform that delivers low latency and high throughput."
ANSWER = "a high performance deep learning inference platform"


def script(monkeypatch: pytest.MonkeyPatch, command: str, *arguments: object) -> int:
    monkeypatch.setattr(cuda_utils, "open_gpu", lambda library="auto": GPU)
    monkeypatch.setattr("sys.argv", [f"{command}.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        run_script(command, f"helpers.{MODULES[command.removesuffix('_varseqlen')]}")
    return int(ended.value.code or 0)


@pytest.mark.parametrize("layout", ["", "_varseqlen"])
def check_scripts(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    engine = tmp_path / "demo.engine"
    model = ["-x", MODEL / "bert_minilm_l6_qa_fake_quant.onnx", "-c", MODEL, "-o", engine, "--backend", "tensorrt"]
    assert script(monkeypatch, f"builder{layout}", *model, "-b", 2, "-s", 64, "--fp16", "--no-plugins") == 0
    assert f"TensorRT {TRT.__version__} built the engine (no plugins)" in capsys.readouterr().err
    asked = ["-e", engine, "-p", PASSAGE, "-q", "What is TensorRT?", "-v", MODEL / "vocab.txt"]
    for _ in range(2):
        assert script(monkeypatch, f"inference{layout}", *asked) == 0
        assert f"'{ANSWER}'" in capsys.readouterr().out
        assert script(monkeypatch, f"perf{layout}", "-e", engine, "-b", 2, "-s", 64, "-i", 2, "-w", 1, "--json") == 0
        assert json.loads(capsys.readouterr().out)["backend"] == "tensorrt"
        Path(f"{engine}.json").unlink(missing_ok=True)  # the second round runs a plan as trtexec leaves it


@pytest.mark.skipif(not WEAK, reason="-il falls back to no plugins on TensorRT 11")
def check_refusal_ends_with_status_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    model = ["-x", MODEL / "bert_minilm_l6_qa_fake_quant.onnx", "-c", MODEL, "-o", tmp_path / "x", "--backend", "tensorrt"]
    assert script(monkeypatch, "builder_varseqlen", *model, "-s", 64, "--int8", "-il") == 2
    assert "needs head size 64, the model has 32; add --no-plugins" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
