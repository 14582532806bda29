# SPDX-License-Identifier: Apache-2.0
"""What the tests share: the repository's model, engines built from it once, small models, and the scripts as functions."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from doubles import ROOT, Run, repository, runner
from helpers.cli import status_of
from helpers.config import BertConfig
from helpers.options import parse
from helpers.weights import Weights, onnx_model, random_weights

MODEL = ROOT / "models" / "bert_minilm_l6_qa_squad11_fake_quant"
ONNX = MODEL / "bert_minilm_l6_qa_fake_quant.onnx"
SAMPLE = ROOT / "squad" / "dev-sample-1000.json"
PASSAGE = (
    "TensorRT is a high performance deep learning inference platform that delivers low latency and high throughput for apps "
    "such as recommenders, speech and image/video on NVIDIA GPUs. It includes parsers to import models, and plugins to support "
    "novel ops and layers before applying optimizations for inference."
)
QUESTION = "What is TensorRT?"
ANSWER = "a high performance deep learning inference platform"
MODULES = {"builder": "build", "inference": "answer", "perf": "bench"}


@dataclass
class Ended:
    """How a script ended."""

    status: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """Return the error line; fail when the script said anything else but progress, or left a traceback."""
        lines = [line for line in self.err.splitlines() if "error: " in line]
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err
        return lines[0]


@pytest.fixture
def script(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Return a function that runs a script in this process, with the arguments of the command line."""

    def run(command: str, *arguments: object) -> Ended:
        capsys.readouterr()
        try:
            parsed = parse(command, [str(argument) for argument in arguments])
            module = importlib.import_module("helpers." + MODULES[command.removesuffix("_varseqlen").removesuffix("_c")])
            status = status_of(lambda: module.main(command, parsed))
        except SystemExit as end:
            status = int(end.code or 0)
        captured = capsys.readouterr()
        return Ended(status, captured.out, captured.err)

    return run


def shell(*arguments: object, stdin: str = "", cwd: Path = ROOT, **environment: str) -> Ended:
    """Run a script of the repository in a process of its own."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        input=stdin.encode(),
        capture_output=True,
        cwd=cwd,
        env={**os.environ, **environment},
        timeout=300,
    )
    return Ended(done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a repository for the shell scripts, with doubles of what they run."""
    return repository(tmp_path)


@pytest.fixture
def run(root: Path) -> Run:
    """Return a function that runs a shell script of that repository."""
    return runner(root)


@pytest.fixture(scope="session")
def config() -> BertConfig:
    return BertConfig.from_dir(MODEL)


@pytest.fixture(scope="session")
def weights(config: BertConfig) -> Weights:
    return onnx_model.read(config, ONNX)


@pytest.fixture(scope="session")
def engines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return cpu engines of the repository's model by name: fp32, fp16, int8 and packed."""
    directory = tmp_path_factory.mktemp("engines")
    kinds = {"fp32": ("builder",), "fp16": ("builder", "--fp16"), "int8": ("builder", "--int8"), "packed": ("builder_varseqlen",)}
    built = {}
    for name, (command, *flags) in kinds.items():
        built[name] = directory / f"{name}.engine"
        arguments = ["-x", ONNX, "-c", MODEL, "-o", built[name], "-s", 384, "--backend", "cpu", *flags]
        parsed = parse(command, [str(argument) for argument in arguments])
        build = importlib.import_module("helpers.build")
        build.main(command, parsed)
    return built


@pytest.fixture(scope="session")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a SQuAD file of the sample's first two articles."""
    content = json.loads(SAMPLE.read_text())
    content["data"] = content["data"][:2]
    path = tmp_path_factory.mktemp("squad") / "few.json"
    path.write_text(json.dumps(content))
    return path


def small_config(heads: int = 2, head_size: int = 16, layers: int = 2, **others: object) -> BertConfig:
    """Return a model that runs in milliseconds."""
    hidden = heads * head_size
    values = {"intermediate_size": 4 * hidden, "vocab_size": 120, "max_position_embeddings": 64, **others}
    return BertConfig(hidden, layers, heads, **values)  # type: ignore[arg-type]


def small_weights(config: BertConfig, seed: int = 1) -> Weights:
    """Return random weights with activations of everyday size: 0.02 alone would leave every logit near zero."""
    made = random_weights.make(config, seed)
    scaled = {name: array * (1 if name.endswith("_gamma") else 6) for name, array in made.tensors.items()}
    return Weights(scaled, {}, made.source)


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Return |found - expected| / |expected|. Compare as `not (error <= limit)`, so that NaN fails."""
    return float(np.linalg.norm(np.asarray(found, np.float64) - expected) / np.linalg.norm(expected))


def assert_close(found: np.ndarray, expected: np.ndarray, limit: float) -> None:
    assert found.shape == expected.shape
    error = relative_error(found, expected)
    if not (error <= limit):
        raise AssertionError(f"relative error {error:.2e} is above {limit:.0e}")
